"""The ``fastrnn`` command. A command is a function that declares its arguments and one that runs them."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from . import get_num_threads, output, show_config, threads
from .bench import shapes


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse itself would print the whole usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _number(kind: type, low: float, *, above: bool = False) -> Callable[[str], Any]:
    """The type of an argument that takes finite numbers >= low, or > low with ``above``."""
    what = "an integer" if kind is int else "a number"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value if above else low <= value) or value == math.inf:
            raise argparse.ArgumentTypeError(f"must be {what} {'>' if above else '>='} {low:g}, got {text!r}")
        return value

    return parse


_seconds = _number(float, 0.0, above=True)
_count = _number(int, 0)


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "demo",
        help="train a small language model on text that comes with Python",
        description="Trains a character language model for about a minute on the manual pages behind Python's help(), "
        "prints its perplexity before and after and a text it writes, and compares the speed of the LSTM layer with "
        "plain NumPy, and with torch where it is installed.",
    )
    parser.add_argument("--seconds", type=_seconds, default=40.0, metavar="N", help="training time (default: 40)")
    parser.add_argument("--seed", type=_count, default=0, metavar="N", help="decides weights and text (default: 0)")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> None:
    from . import demo

    demo.run(args.seconds, args.seed)


def _thread_count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= threads._MAX_THREADS:
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to {threads._MAX_THREADS}, got {text!r}")
    return value


def _shape(text: str) -> shapes.Shape:
    try:
        return shapes.Shape.parse(text)
    except ValueError as error:  # argparse would not show its message
        raise argparse.ArgumentTypeError(str(error)) from None


class _NamesOf:
    """The type of an argument that takes some of these names, separated by commas; each counts once."""

    def __init__(self, options: Iterable[str]) -> None:
        self._options = tuple(options)

    def __call__(self, text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        if not set(names) <= set(self._options):
            raise argparse.ArgumentTypeError(f"must be some of {','.join(self._options)}, got {text!r}")
        return names


def _add_bench(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "bench",
        help="time the layers beside every peer that is installed",
        description="Times the layers, inference and training, beside torch, onnxruntime, openvino and NumPy, as far "
        "as they are installed. The table has the median time of a call with the interquartile range, the ratio of the "
        "times (above 1: fastrnn is faster), the time as a multiple of what this machine could do at best, and the "
        "error. Each peer runs in processes of its own, which take turns.",
    )
    parser.add_argument(
        "--cell", type=_NamesOf(shapes.CELLS), default=list(shapes.CELLS), metavar="LIST", help="lstm,gru,rnn (default)"
    )
    parser.add_argument(
        "--shape", type=_shape, nargs="+", default=shapes.STANDARD, metavar="T,B,I,H,L",
        help="steps, batch, input size, hidden size and layers of each row (default: ten standard shapes)",
    )  # fmt: skip
    parser.add_argument(
        "--mode", type=_NamesOf(shapes.MODES), default=list(shapes.MODES), metavar="LIST", help="infer,train (default)"
    )
    parser.add_argument(
        "--threads", type=_thread_count, metavar="N", help="threads of each peer (default: as fastrnn info tells)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu (default); cuda is yet to come")
    parser.add_argument(
        "--seconds", type=_seconds, default=3.0, metavar="N", help="time for each row and mode (default: 3)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there, after each row")
    parser.set_defaults(run=_bench)


@contextmanager
def _orderly_end() -> Iterator[None]:
    """SIGTERM and SIGHUP leave through the `finally` of everything inside, with status 128 + n."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    in_main_thread = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
    # One that is ignored stays ignored: nohup wants that.
    numbers = [number for number in numbers if in_main_thread and signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for each in numbers:  # a second one must not disturb the end
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _bench(args: argparse.Namespace) -> None:
    from .bench import harness, report
    from .spec import check_device

    if check_device("bench", args.device) is not None:
        raise RuntimeError("bench: --device must be 'cpu' in this version; benchmarks/gpu_check.py measures GPUs")
    count = args.threads or get_num_threads()
    settings = harness.Settings(args.cell, args.shape, args.mode, count, args.seconds)

    latest: report.Document = {}

    def keep(document: report.Document) -> None:
        latest.update(document)
        if args.json:
            output.write_json(args.json, document)

    if args.json:
        output.check_writable(args.json)  # better known now than after the first row
    try:
        with _orderly_end():
            harness.run(settings, lambda line: print(line, file=sys.stderr, flush=True), keep)
    except KeyboardInterrupt:
        if latest:
            report.show(latest)
        raise
    report.show(latest)
    if failed := report.failures(latest):
        sys.stdout.flush()
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise RuntimeError(f"bench: fastrnn failed: {failed[0]}{more}")


def _add_info(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("info", help="print versions, instruction sets, threads and devices")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(run=_info)


def _info(args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(show_config(mode="dicts"), indent=2))
    else:
        show_config()


def _add_lm(commands: argparse._SubParsersAction) -> None:
    from .models.commands import add_lm

    add_lm(commands, _number, _NamesOf)


def _add_seq2seq(commands: argparse._SubParsersAction) -> None:
    from .models.seq2seq_commands import add_seq2seq

    add_seq2seq(commands, _number)


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastrnn", description="Fused recurrent layers and the models built on them.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for add in (_add_demo, _add_bench, _add_info, _add_lm, _add_seq2seq):
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 2 for what went wrong (one line on standard error), 130 after Ctrl-C."""
    # A character that the terminal cannot show must not end a run.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        args = _make_parser().parse_args(argv)  # which imports what the commands are made of
        args.run(args)
        if sys.stdout is not None:  # where it is closed, nobody reads
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone (`fastrnn info | head`); what Python would flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, RuntimeError, OSError, ArithmeticError, MemoryError) as error:
        print(f"fastrnn: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0
