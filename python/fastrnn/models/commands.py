"""``fastrnn lm``: train, evaluate and use language models from text files."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .. import set_num_threads
from .language_model import LanguageModel
from .schedules import SCHEDULES
from .training import BEST


def read_text(path: Path) -> str:
    """The text of a file; a one-line error where it is none."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}") from None
    if not text:
        raise ValueError(f"{path} is empty")
    return text


def read_data(path: Path) -> tuple[str, str, str | None]:
    """Text to learn from, text held out, and text to test on if there is any.

    A folder holds train.txt, valid.txt and perhaps test.txt; of a single file the last tenth is held out.
    """
    if path.is_dir():
        test = path / "test.txt"
        return (
            read_text(path / "train.txt"),
            read_text(path / "valid.txt"),
            read_text(test) if test.exists() else None,
        )
    text = read_text(path)
    cut = len(text) - len(text) // 10
    # At the end of a line if there is one near: a word or a verse in two is neither.
    line = text.rfind("\n", cut - len(text) // 100, cut) + 1
    return text[: line or cut], text[line or cut :], None


def load(folder: str) -> LanguageModel:
    """The best model of a training run, or the one that stands there alone."""
    best = Path(folder, BEST)
    return LanguageModel.load(best if best.is_dir() else folder)


def _train(args: argparse.Namespace) -> None:
    if args.threads:
        set_num_threads(args.threads)
    train, valid, test = read_data(args.data)
    if args.resume:
        model = LanguageModel.load(args.out)
    else:
        model = LanguageModel(
            args.level, args.model, args.embedding, args.hidden, args.layers, args.dropout, args.tie, args.seed,
            min_frequency=args.min_frequency,
        )  # fmt: skip
        if Path(args.out, "model.json").exists():
            raise ValueError(f"{args.out} holds a model already: go on with --resume, or choose another --out")
        model.build(train)
    print(f"{model}: {len(model.vocabulary or ()):,} symbols, {model.num_parameters:,} weights", flush=True)
    model.fit(
        train,
        valid,
        epochs=args.epochs,
        batch_size=args.batch_size,
        bptt=args.bptt,
        optimizer=args.optimizer,
        lr=args.lr,
        weight_decay=args.weight_decay,
        clip=args.clip or None,
        schedule=args.schedule,
        warmup=args.warmup,
        decay=args.decay,
        decay_after=args.decay_after,
        average=args.average,
        patience=args.patience,
        seconds=args.seconds,
        checkpoint=args.out,
        resume=args.resume,
        sample_every=args.sample_every,
    )
    best = load(args.out)
    for name, text in (("valid", valid), ("test", test)):
        if text is not None:
            _print_result(name, best.evaluate(text))


def _print_result(name: str, result: dict[str, float | int]) -> None:
    print(
        f"{name}: loss {result['loss']:.4f} nats per token, perplexity {result['perplexity']:.2f}, "
        f"{result['bits_per_character']:.4f} bits per character, {result['tokens']:,} tokens"
    )


def _eval(args: argparse.Namespace) -> None:
    result = load(args.model).evaluate(read_text(args.file))
    if args.json:
        print(json.dumps(result))
    else:
        _print_result(str(args.file), result)


def _generate(args: argparse.Namespace) -> None:
    names = ("temperature", "top_k", "top_p", "repetition_penalty", "stop", "seed")
    options = {name: getattr(args, name) for name in names}
    model = load(args.model)
    pieces: Iterable[str]
    if args.beam:
        pieces = [model.generate(args.prompt, args.tokens, beam_size=args.beam, **options)]
    else:
        pieces = model.generate(args.prompt, args.tokens, stream=True, **options)
    for piece in itertools.chain([args.prompt], pieces):  # each as it comes
        print(piece, end="", flush=True)
    print()


def _score(args: argparse.Namespace) -> None:
    model, text = load(args.model), read_text(args.file)
    vocabulary = model.vocabulary
    assert vocabulary is not None
    for token, log_p in zip(vocabulary.encode(text)[1:], model.score(text), strict=True):
        print(f"{log_p:.4f}\t{vocabulary.decode([int(token)])!r}")


def _average(text: str) -> int | str:
    """The type of --average."""
    if text == "plateau":
        return text
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be 'plateau' or an integer >= 1, got {text!r}")


def add_lm(commands: Any, number: Callable[..., Callable[[str], Any]]) -> None:
    """Adds ``lm`` and its own commands; number(kind, low, above) makes the type of an argument."""
    count, natural = number(int, 1), number(int, 0)
    real, positive = number(float, 0.0), number(float, 0.0, above=True)
    lm = commands.add_parser("lm", help="train and use language models on your own text")
    own = lm.add_subparsers(metavar="COMMAND", required=True, parser_class=type(lm))

    train = own.add_parser("train", help="train a recurrent language model on a text file")
    train.add_argument(
        "--data", type=Path, required=True, metavar="PATH",
        help="a text file, whose last tenth is held out, or a folder with train.txt, valid.txt and perhaps test.txt",
    )  # fmt: skip
    train.add_argument("--out", required=True, metavar="DIR", help="where the model goes; DIR/best is the best one")
    train.add_argument("--level", choices=("char", "word"), default="char", help="what a token is (default: char)")
    train.add_argument("--min-frequency", type=count, default=1, metavar="N", help="rarer symbols are unknown (1)")
    train.add_argument("--model", choices=("lstm", "gru", "rnn"), default="lstm", help="the cell (default: lstm)")
    train.add_argument("--embedding", type=count, default=128, metavar="N", help="size of a token's vector (128)")
    train.add_argument("--hidden", type=count, default=256, metavar="N", help="units of each layer (256)")
    train.add_argument("--layers", type=count, default=1, metavar="N", help="recurrent layers (1)")
    train.add_argument("--dropout", type=real, default=0.0, metavar="P", help="probability (0)")
    train.add_argument("--tie", action="store_true", help="one matrix for embedding and output")
    train.add_argument("--epochs", type=count, default=10, metavar="N", help="passes over the text (10)")
    train.add_argument("--batch-size", type=count, default=32, metavar="N", help="streams read side by side (32)")
    train.add_argument("--bptt", type=count, default=64, metavar="N", help="tokens a step (64)")
    train.add_argument("--optimizer", choices=("adam", "adamw", "sgd"), default="adam", help="(default: adam)")
    train.add_argument("--lr", type=positive, metavar="X", help="learning rate (adam 0.002, sgd 1)")
    train.add_argument("--weight-decay", type=real, default=0.0, metavar="X", help="(0)")
    train.add_argument("--clip", type=real, default=1.0, metavar="X", help="largest norm of the gradients; 0: any (1)")
    train.add_argument("--schedule", choices=SCHEDULES, default="constant", help="of the rate (default: constant)")
    train.add_argument("--warmup", type=natural, default=0, metavar="N", help="steps with a rising rate (0)")
    train.add_argument(
        "--decay", type=positive, metavar="X", help="multiplies the rate at a plateau (0.25) or by zaremba (0.5)"
    )
    train.add_argument("--decay-after", type=natural, metavar="N", help="zaremba: last epoch of the whole rate (4)")
    train.add_argument(
        "--average", type=_average, metavar="N",
        help="sgd: take the mean of the weights from the end of epoch N on, or of one that the trigger 'plateau' finds",
    )  # fmt: skip
    train.add_argument("--patience", type=count, metavar="N", help="stop after N epochs without a lower loss on valid")
    train.add_argument("--seconds", type=positive, metavar="N", help="stop after that time")
    train.add_argument("--sample-every", type=count, metavar="N", help="show what the model writes, every N steps")
    train.add_argument("--seed", type=natural, metavar="N", help="decides everything that is drawn")
    train.add_argument("--threads", type=count, metavar="N", help="(default: as fastrnn info tells)")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out, with the same options")
    train.set_defaults(run=_train)

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
