"""``fastrnn seq2seq``: train, evaluate and use models that write a line for each line that they read."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .. import set_num_threads
from . import attention, checkpoint, figures, metrics, translation
from .lines import iterate_lines, read_lines
from .options import (
    RUN,
    Number,
    add_run,
    add_seed,
    add_skip,
    add_threads,
    add_vocabulary,
    add_weights,
    check_config,
    given,
    saved_training_options,
    training_options,
)
from .pairs import Pairs
from .seq2seq import Seq2Seq
from .stack import CELLS
from .tokens import check_regular
from .translation import MAX_LENGTH, Translation
from .vocabulary import VOCABULARIES

_MODEL = tuple(name for name in Seq2Seq._config if name != "dtype")
_TRAINING = ("batch_size", "max_tokens", "max_length", "label_smoothing", "sampling", "metric", *RUN)
_DECODING = ("length_penalty", "coverage_penalty", "max_ratio", "unknown", "temperature", "top_k", "top_p")
_LINE_BREAK = re.compile(r"[\r\n]")


def _load_best(folder: str) -> Seq2Seq:
    return Seq2Seq.load(checkpoint.best_or_latest(folder))


# -- train -------------------------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> None:
    if args.threads:
        set_num_threads(args.threads)
    options, training = _model_options(args), training_options(args, _TRAINING)
    train, valid = (args.src, args.tgt), _valid(args)
    _check_files("train", args)
    if args.resume:
        model = Seq2Seq.load(args.out)
        check_config(model.config, options, args.out)
        training = saved_training_options(model, _TRAINING) | training | {"resume": True}
    else:
        if args.tie and args.hidden:
            options.setdefault("embedding", args.hidden)
        model = Seq2Seq(**options)
        if Path(args.out, "model.json").exists():
            raise ValueError(f"{args.out} holds a model already: go on with --resume, or choose another --out")
        model.build(train)
    symbols = " and ".join(f"{len(vocabulary):,}" for vocabulary in model.vocabularies.values())
    print(f"{model}: {symbols} symbols, {model.num_parameters:,} weights", flush=True)
    model.fit(train, valid, checkpoint=args.out, **training)
    if valid is not None:
        metric, limit = training.get("metric", "loss"), training.get("max_length", MAX_LENGTH)
        judges = () if metric == "loss" else (metric,)
        result = _load_best(args.out).evaluate(valid, metrics=judges, max_length=limit)
        print(f"valid: {_shown(result)}")


def _model_options(args: argparse.Namespace) -> dict[str, Any]:
    levels = {} if args.level is None else {"src_level": args.level, "tgt_level": args.level}
    return levels | given(args, _MODEL)


def _check_files(command: str, args: argparse.Namespace) -> None:
    for name in ("src", "tgt", "valid_src", "valid_tgt"):
        if (path := getattr(args, name, None)) is not None:
            check_regular(f"seq2seq {command}", f"--{name.replace('_', '-')}", path)


def _valid(args: argparse.Namespace) -> Pairs | None:
    if args.valid_src is None and args.valid_tgt is None:
        return None
    if args.valid_src is None or args.valid_tgt is None:
        alone = "--valid-src" if args.valid_tgt is None else "--valid-tgt"
        raise ValueError(f"seq2seq train: --valid-src and --valid-tgt belong together, got {alone} alone")
    return args.valid_src, args.valid_tgt


def _shown(result: dict[str, float | int]) -> str:
    """Figures of ``evaluate`` for people, those of answers first."""
    named = [f"{name} {result[name]:.4g}" for name in metrics.METRICS if name in result]
    loss = f"loss {result['loss']:.4f} nats per token", f"perplexity {result['perplexity']:.2f}"
    counts = [f"{result[name]:,} {name}" for name in ("lines", "tokens") if name in result]
    return ", ".join([*named, *loss, *counts])


# -- use ---------------------------------------------------------------------------------------------------------------


def _eval(args: argparse.Namespace) -> None:
    _check_files("eval", args)
    model, lines = _load_best(args.model), len(read_lines(args.src))
    found = model.evaluate((args.src, args.tgt), metrics=(args.metric,), beam=args.beam, max_length=args.max_length)
    result = {args.metric: found[args.metric], "lines": lines, **found}
    print(json.dumps(result, allow_nan=False) if args.json else f"{args.src}: {_shown(result)}")


def _translate(args: argparse.Namespace) -> None:
    if args.threads:
        set_num_threads(args.threads)
    if hasattr(sys.stdout, "reconfigure") and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # as the input, whatever the locale
    if sys.stdin is None:
        raise RuntimeError("standard input is closed: lines to translate are read there")
    model = _load_best(args.model)
    how = given(args, _DECODING) | {"n_best": args.n_best or 1, "max_length": args.max_length}
    model.translations([], args.beam, seed=args.seed, **how)  # what is wrong with the options shows before a line comes
    for number, line in enumerate(iterate_lines(sys.stdin.buffer, "standard input"), 1):
        seed = None if args.seed is None else args.seed + number - 1
        found = _translations(model, line, f"standard input: line {number}", args.beam, seed=seed, **how)
        if args.n_best is None:
            print(_one_line(found[0]), flush=True)
        else:
            print("".join(f"{number}\t{each.score:.4f}\t{_one_line(each)}\n" for each in found), end="", flush=True)


def _translations(model: Seq2Seq, line: str, name: str, beam: int, max_length: int, **how: Any) -> list[Translation]:
    """Of one line, which errors call ``name``."""
    length = len(model.vocabularies["source"].encode(line))
    if length > max_length:
        raise ValueError(f"{name} has {length} tokens, more than --max-length {max_length}")
    return model.translations([line], beam, max_length=max_length, **how)[0]


def _one_line(translation: Translation) -> str:
    return _LINE_BREAK.sub(" ", translation.text)


# -- inspect -----------------------------------------------------------------------------------------------------------


def _inspect(args: argparse.Namespace) -> None:
    model = _load_best(args.model)
    drawn = dict(_figures(model, args))
    if not drawn:
        raise ValueError(f"seq2seq inspect: {args.model} has nothing to show: no attention to a --line, no training")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        path = args.out / f"{name}.png"
        figures.save(figure, path)
        print(path, flush=True)


def _figures(model: Seq2Seq, args: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    if args.line is not None and model.attention != "none":
        found = _translations(model, args.line, "seq2seq inspect: --line", args.beam, args.max_length)
        if not found[0].tokens:
            raise ValueError(f"seq2seq inspect: the output for --line {args.line!r} is empty: no token read anything")
        yield "attention", figures.attention_map(found[0])
    # The best model knows nothing of the epochs after it.
    history = Seq2Seq.load(args.model).history
    if history:
        yield "learning-curves", figures.learning_curves({Path(args.model).resolve().name: history})


# -- the commands ------------------------------------------------------------------------------------------------------


def add_seq2seq(commands: Any, number: Number) -> None:
    """Adds ``seq2seq`` and its own commands; number(kind, low, above) makes the type of an argument."""
    count, real, positive = number(int, 1), number(float, 0.0), number(float, 0.0, above=True)
    seq2seq = commands.add_parser("seq2seq", help="train and use models that write a line for each line they read")
    own = seq2seq.add_subparsers(metavar="COMMAND", required=True, parser_class=type(seq2seq))

    train = own.add_parser("train", help="train a model on two text files whose lines belong together")
    _add_pairs(train)
    train.add_argument("--valid-src", type=Path, metavar="FILE", help="sources held out, for figures of each epoch")
    train.add_argument("--valid-tgt", type=Path, metavar="FILE", help="their targets")
    train.add_argument("--out", required=True, metavar="DIR", help="where the model goes; DIR/best is the best one")
    train.add_argument(
        "--resume", action="store_true", help="go on with the run in --out and its options, but for when to stop"
    )
    _add_model(train, number)
    group = train.add_argument_group("training")
    group.add_argument("--batch-size", type=count, metavar="N", help="pairs a step at most (64)")
    group.add_argument(
        "--max-tokens", type=count, metavar="N", help="pairs a step times the tokens of their longest line at most"
    )
    group.add_argument("--max-length", type=count, metavar="N", help=f"tokens of a line at most ({MAX_LENGTH})")
    group.add_argument("--label-smoothing", type=real, metavar="P", help="share of targets for all symbols alike (0)")
    group.add_argument(
        "--sampling", type=real, metavar="P", help="share of the decoder's inputs that it wrote itself, at the end (0)"
    )
    group.add_argument(
        "--metric", choices=("loss", *metrics.METRICS), help="tells on valid which epoch is best (default: loss)"
    )
    add_run(group, number)
    train.set_defaults(run=_train)

    def add(name: str, run: Callable[[argparse.Namespace], None], **about: str) -> argparse.ArgumentParser:
        parser = own.add_parser(name, **about)
        parser.add_argument("model", metavar="DIR", help="folder that seq2seq train wrote")
        parser.add_argument("--beam", type=count, default=1, metavar="N", help="outputs followed side by side (1)")
        parser.add_argument(
            "--max-length", type=count, default=MAX_LENGTH, metavar="N", help=f"tokens of a line at most ({MAX_LENGTH})"
        )
        parser.set_defaults(run=run)
        return parser

    parser = add(
        "translate",
        _translate,
        help="write a line for each line of standard input",
        description="Reads lines of UTF-8 from standard input and answers each at once with one line on standard "
        "output; an empty one with an empty one. With --n-best each has up to N lines instead, best first: the number "
        "of the line that was read, a tab, the score, a tab, the output.",
    )
    parser.add_argument("--n-best", type=count, metavar="N", help="the N best outputs, at most as many as --beam")
    parser.add_argument("--length-penalty", type=real, metavar="P", help="rank by log p / tokens^P, 0 to 1 (1)")
    parser.add_argument("--coverage-penalty", type=real, metavar="X", help="and by what attention has left out (0)")
    parser.add_argument("--max-ratio", type=real, metavar="X", help="tokens at most for each of the source (2)")
    parser.add_argument(
        "--unknown", choices=translation._UNKNOWN_TOKENS,
        help="tokens: not written, written as <unk>, or copied from where attention reads (default: avoid)",
    )  # fmt: skip
    parser.add_argument("--temperature", type=real, metavar="X", help="above 0: draw tokens (0)")
    parser.add_argument("--top-k", type=count, metavar="N", help="draw from the N most probable tokens only")
    parser.add_argument("--top-p", type=positive, metavar="X", help="or from those that together reach probability X")
    parser.add_argument("--seed", type=number(int, 0), metavar="N", help="for drawing: line i has the seed N + i - 1")
    add_threads(parser, number)

    parser = add("eval", _eval, help="how well a model predicts targets, and how good its answers are")
    _add_pairs(parser)
    parser.add_argument("--metric", choices=tuple(metrics.METRICS), required=True, help="of the answers")
    parser.add_argument("--json", action="store_true", help="as one JSON object")

    parser = add("inspect", _inspect, help="draw what attention reads for a line, and learning curves")
    parser.add_argument("--line", metavar="TEXT", help="a source, for attention.png")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the figures go")


def _add_pairs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--src", type=Path, required=True, metavar="FILE", help="sources in UTF-8, one a line")
    parser.add_argument("--tgt", type=Path, required=True, metavar="FILE", help="their targets, as many lines")


def _add_model(parser: argparse.ArgumentParser, number: Number) -> None:
    group = parser.add_argument_group("tokens")
    for name, side in (("--level", "both sides"), ("--src-level", "sources"), ("--tgt-level", "targets")):
        default = " (default: word)" if name == "--level" else ""
        group.add_argument(name, choices=tuple(VOCABULARIES), help=f"what a token is on {side}{default}")
    add_vocabulary(group, number)
    group = parser.add_argument_group("model")
    group.add_argument("--cell", choices=tuple(CELLS), help="(default: lstm)")
    group.add_argument("--attention", choices=("none", *attention.KINDS), help="(default: general)")
    add_weights(group, number, 256, 256)
    for name, about in (
        ("--bidirectional", "the encoder reads in both directions"),
        ("--input-feeding", "the decoder reads what attention found a token before, too; slower"),
        ("--reverse", "the encoder reads the source from its end"),
    ):
        group.add_argument(name, action="store_true", default=None, help=about)
    add_skip(group)
    add_seed(parser, number)
    add_threads(parser, number)
