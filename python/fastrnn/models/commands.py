"""``fastrnn lm``: train, compare, evaluate and use language models from text files."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .. import set_num_threads
from ..output import check_writable, print_table, write_json
from . import kinds, ladder
from .inspect_command import add_inspect
from .neural_model import NeuralModel
from .options import (
    Number,
    add_data,
    add_model,
    add_training,
    check_same,
    flag,
    model_options,
    new_model,
    read_data,
    read_text,
    saved_training_options,
    training_options,
)


def _train(args: argparse.Namespace) -> None:
    if args.threads:
        set_num_threads(args.threads)
    given, training = model_options(args), training_options(args)
    train, valid, test = read_data(args.data)
    if args.resume:
        model = kinds.load(args.out)
        check_same(model, args.model, given, args.out)
        if not isinstance(model, NeuralModel):
            raise ValueError(f"--resume is for models of weights, {args.out} holds {model!r}")
        training = saved_training_options(model) | training | {"resume": True}
    else:
        model = new_model(args.model or "lstm", given)
        if training and not isinstance(model, NeuralModel):
            raise ValueError(f"{flag(next(iter(training)))} is not for --model {args.model}")
        if Path(args.out, "model.json").exists():
            raise ValueError(f"{args.out} holds a model already: go on with --resume, or choose another --out")
        model.build(train)
    symbols = f"{model}: {len(model.vocabulary or ()):,} symbols"
    if isinstance(model, NeuralModel):
        print(f"{symbols}, {model.num_parameters:,} weights", flush=True)
        model.fit(train, valid, checkpoint=args.out, **training)
    else:
        model.fit(train, valid, checkpoint=args.out)
        print(f"{symbols}, {model.num_parameters:,} n-grams", flush=True)
    best = kinds.load_best(args.out)
    if not best.normalized:
        print("no perplexity: the scores of stupid_backoff sum to no probability")
        return
    for name, text in (("valid", valid), ("test", test)):
        if text is not None:
            _print_result(name, best.evaluate(text))


def _ladder(args: argparse.Namespace) -> None:
    if args.threads:
        set_num_threads(args.threads)
    if args.json:
        check_writable(args.json)  # better known now than after the first model
    given, training = model_options(args), training_options(args)
    if args.smoothing:
        raise ValueError("--smoothing is not for lm ladder, which shows all of them")
    known = {name for kind in args.models for name in kinds.options_of(kind)}
    if any(issubclass(kinds.KINDS[kind], NeuralModel) for kind in args.models):
        known |= training.keys()
    for name in (*given, *training):
        if name not in known:
            raise ValueError(f"{flag(name)} is not for --models {','.join(args.models)}")
    train, valid, test = read_data(args.data)
    names, out = ladder.names_of(args.models, given.get("order", 5)), args.out and Path(args.out)
    for rungs, orders in ladder.run(names, given, train, valid, test, lambda name: training, out):
        if args.json:
            write_json(args.json, ladder.document(rungs, orders))
    print_table("", ladder.table(rungs))
    if orders:
        print_table("N-grams by order; unseen: of those of the text held out", ladder.orders_table(orders))


def _print_result(name: str, result: dict[str, float | int]) -> None:
    print(
        f"{name}: loss {result['loss']:.4f} nats per token, perplexity {result['perplexity']:.2f}, "
        f"{result['bits_per_character']:.4f} bits per character, {result['tokens']:,} tokens"
    )


def _eval(args: argparse.Namespace) -> None:
    result = kinds.load_best(args.model).evaluate(args.file)
    if args.json:
        print(json.dumps(result, allow_nan=False))
    else:
        _print_result(str(args.file), result)


def _generate(args: argparse.Namespace) -> None:
    names = ("temperature", "top_k", "top_p", "repetition_penalty", "stop", "seed")
    options = {name: getattr(args, name) for name in names}
    model = kinds.load_best(args.model)
    pieces: Iterable[str]
    if args.beam:
        pieces = [model.generate(args.prompt, args.tokens, beam_size=args.beam, **options)]
    else:
        pieces = model.generate(args.prompt, args.tokens, stream=True, **options)
    for piece in itertools.chain([args.prompt], pieces):  # each as it comes
        print(piece, end="", flush=True)
    print()


def _score(args: argparse.Namespace) -> None:
    model, text = kinds.load_best(args.model), read_text(args.file)
    vocabulary = model.vocabulary
    assert vocabulary is not None
    for piece, log_p in zip(vocabulary.pieces(text)[1:], model.score(text), strict=True):
        print(f"{log_p:.4f}\t{piece!r}")


def add_lm(commands: Any, number: Number, names_of: Callable[[Iterable[str]], Callable[[str], list[str]]]) -> None:
    """Adds ``lm`` and its own commands; number(kind, low, above) makes the type of an argument,
    names_of(names) that of one which takes some of them."""
    count, natural = number(int, 1), number(int, 0)
    real, positive = number(float, 0.0), number(float, 0.0, above=True)
    lm = commands.add_parser("lm", help="train and use language models on your own text")
    own = lm.add_subparsers(metavar="COMMAND", required=True, parser_class=type(lm))

    train = own.add_parser("train", help="train a language model on a text file")
    add_data(train)
    train.add_argument("--out", required=True, metavar="DIR", help="where the model goes; DIR/best is the best one")
    train.add_argument("--model", choices=tuple(reversed(kinds.KINDS)), help="(default: lstm)")
    train.add_argument(
        "--resume", action="store_true", help="go on with the run in --out and its options, but for when to stop"
    )
    add_model(train, number)
    add_training(train, number)
    train.set_defaults(run=_train)

    climb = own.add_parser("ladder", help="compare all kinds of language model on a text file")
    add_data(climb)
    climb.add_argument("--out", metavar="DIR", help="a folder for each model; training there is gone on with")
    climb.add_argument(
        "--models", type=names_of(kinds.KINDS), default=list(ladder.MODELS), metavar="LIST",
        help=f"{','.join(ladder.MODELS)} (default); ngram stands for unigrams and each smoothing at --order",
    )  # fmt: skip
    climb.add_argument("--json", metavar="FILE", help="write the figures there, after each model")
    add_model(climb, number)
    add_training(climb, number)
    climb.set_defaults(run=_ladder)

    def add(name: str, run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        parser = own.add_parser(name, help=help)
        parser.add_argument("model", metavar="DIR", help="folder that lm train wrote")
        parser.set_defaults(run=run)
        return parser

    parser = add("eval", _eval, "how well a model predicts a text")
    parser.add_argument("file", type=Path, metavar="FILE", help="text in UTF-8")
    parser.add_argument("--json", action="store_true", help="as one JSON object")

    parser = add("score", _score, "the log probability of each token of a text")
    parser.add_argument("file", type=Path, metavar="FILE", help="text in UTF-8")

    parser = add("generate", _generate, "let a model write")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="to go on from")
    parser.add_argument("--tokens", type=natural, default=200, metavar="N", help="(200)")
    parser.add_argument("--temperature", type=real, default=1.0, metavar="X", help="0: always the most probable (1)")
    parser.add_argument("--top-k", type=count, metavar="N", help="draw from the N most probable tokens only")
    parser.add_argument("--top-p", type=positive, metavar="X", help="or from those that together reach probability X")
    parser.add_argument(
        "--repetition-penalty", type=positive, default=1.0, metavar="X", help="above 1: against repeated tokens (1)"
    )
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before it; may be given several times")
    parser.add_argument("--beam", type=count, metavar="N", help="search for the most probable text, N side by side")
    parser.add_argument("--seed", type=natural, metavar="N")

    add_inspect(add, count, natural)
