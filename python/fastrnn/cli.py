"""The ``fastrnn`` command. A command is a function that declares its arguments and one that runs them."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import show_config


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse itself would print the whole usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds > 0, got {text!r}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be an integer >= 0, got {text!r}")
    return value


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


def _add_info(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("info", help="print versions, instruction sets, threads and devices")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(run=_info)


def _info(args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(show_config(mode="dicts"), indent=2))
    else:
        show_config()


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastrnn", description="Fused recurrent layers and the models built on them.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for add in (_add_demo, _add_info):
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 2 for bad input (one line on standard error), 130 after Ctrl-C."""
    # A character that the terminal cannot show must not end a run.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    args = _make_parser().parse_args(argv)
    try:
        args.run(args)
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
