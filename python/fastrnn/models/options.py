"""Arguments that commands on language models share: texts, models, training."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .kinds import KINDS
from .ngram import SMOOTHINGS
from .schedules import SCHEDULES
from .text_model import Text
from .tokens import read_pieces
from .vocabulary import VOCABULARIES

Number = Callable[..., Callable[[str], Any]]  # (kind, low, above): the type of an argument

_MODEL = (
    "level", "min_frequency", "vocab_size", "embedding", "hidden", "layers", "dropout", "tie", "window", "direct",
    "order", "smoothing", "k", "seed",
)  # fmt: skip
_TRAINING = (
    "epochs", "batch_size", "bptt", "optimizer", "lr", "momentum", "weight_decay", "schedule", "warmup", "decay",
    "decay_after", "average", "patience", "seconds", "sample_every",
)  # fmt: skip


def read_text(path: Path) -> str:
    """The text of a file; a one-line error where it is none."""
    return "".join(read_pieces(path))


def read_data(path: Path) -> tuple[Text, Text, Text | None]:
    """Text to learn from, text held out, and text to test on if there is any.

    A folder holds train.txt, valid.txt and perhaps test.txt; of a single file the last tenth is held out.
    """
    if path.is_dir():
        test = path / "test.txt"
        return path / "train.txt", path / "valid.txt", test if test.exists() else None
    text = read_text(path)
    cut = len(text) - len(text) // 10
    # At the end of a line if there is one near: a word or a verse in two is neither.
    line = text.rfind("\n", cut - len(text) // 100, cut) + 1
    return text[: line or cut], text[line or cut :], None


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """What ``kinds.make`` takes."""
    return {name: getattr(args, name) for name in _MODEL}


def training_options(args: argparse.Namespace) -> dict[str, Any]:
    """What ``fit`` of models of weights takes."""
    return {name: getattr(args, name) for name in _TRAINING} | {"clip": args.clip or None}


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH",
        help="a text file, whose last tenth is held out, or a folder with train.txt, valid.txt and perhaps test.txt, "
        "which may be larger than memory",
    )  # fmt: skip


def add_model(parser: argparse.ArgumentParser, number: Number) -> None:
    count, natural, real = number(int, 1), number(int, 0), number(float, 0.0)
    group = parser.add_argument_group("tokens")
    group.add_argument("--level", choices=tuple(VOCABULARIES), default="char", help="what a token is (default: char)")
    group.add_argument("--min-frequency", type=count, default=1, metavar="N", help="rarer symbols are unknown (1)")
    group.add_argument("--vocab-size", type=count, default=8192, metavar="N", help="bpe: symbols at most (8192)")
    group = parser.add_argument_group("models of weights")
    group.add_argument("--embedding", type=count, default=128, metavar="N", help="size of a token's vector (128)")
    group.add_argument("--hidden", type=count, default=256, metavar="N", help="units of each layer (256)")
    group.add_argument("--layers", type=count, default=1, metavar="N", help="recurrent layers (1)")
    group.add_argument("--dropout", type=real, default=0.0, metavar="P", help="probability (0)")
    group.add_argument("--tie", action="store_true", help="one matrix for embedding and output")
    group.add_argument("--window", type=count, default=4, metavar="N", help="window: tokens that are seen (4)")
    group.add_argument("--direct", action="store_true", help="window: connect embeddings and output")
    group = parser.add_argument_group("n-gram models")
    group.add_argument("--order", type=count, default=5, metavar="N", help="length of the longest n-grams (5)")
    group.add_argument("--smoothing", choices=SMOOTHINGS, default="kneser_ney", help="(default: kneser_ney)")
    group.add_argument("--k", type=number(float, 0.0, above=True), default=0.01, metavar="X", help="of add_k (0.01)")
    parser.add_argument("--seed", type=natural, metavar="N", help="decides everything that is drawn")
    parser.add_argument("--threads", type=count, metavar="N", help="(default: as fastrnn info tells)")


def add_training(parser: argparse.ArgumentParser, number: Number) -> None:
    count, natural = number(int, 1), number(int, 0)
    real, positive = number(float, 0.0), number(float, 0.0, above=True)
    group = parser.add_argument_group("training of models of weights")
    group.add_argument("--epochs", type=count, default=10, metavar="N", help="passes over the text (10)")
    group.add_argument("--batch-size", type=count, default=32, metavar="N", help="streams read side by side (32)")
    group.add_argument("--bptt", type=count, default=64, metavar="N", help="tokens a step (64)")
    group.add_argument("--optimizer", choices=("adam", "adamw", "sgd"), default="adam", help="(default: adam)")
    group.add_argument("--lr", type=positive, metavar="X", help="learning rate (adam 0.002, sgd 1)")
    group.add_argument("--momentum", type=real, default=0.0, metavar="X", help="sgd: (0)")
    group.add_argument("--weight-decay", type=real, default=0.0, metavar="X", help="(0)")
    group.add_argument("--clip", type=real, default=1.0, metavar="X", help="largest norm of the gradients; 0: any (1)")
    group.add_argument("--schedule", choices=SCHEDULES, default="constant", help="of the rate (default: constant)")
    group.add_argument("--warmup", type=natural, default=0, metavar="N", help="steps with a rising rate (0)")
    group.add_argument(
        "--decay", type=positive, metavar="X", help="multiplies the rate at a plateau (0.25) or by zaremba (0.5)"
    )
    group.add_argument("--decay-after", type=natural, metavar="N", help="zaremba: last epoch of the whole rate (4)")
    group.add_argument(
        "--average", type=_average, metavar="N",
        help="sgd: take the mean of the weights from the end of epoch N on, or of one that the trigger 'plateau' finds",
    )  # fmt: skip
    group.add_argument("--patience", type=count, metavar="N", help="stop after N epochs without a lower loss on valid")
    group.add_argument("--seconds", type=positive, metavar="N", help="stop after that time")
    group.add_argument("--sample-every", type=count, metavar="N", help="show what the model writes, every N steps")


def kinds_of(text: str) -> list[str]:
    """The type of an argument that takes some of the kinds of model."""
    names = list(dict.fromkeys(text.split(",")))
    if not set(names) <= set(KINDS):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(KINDS)}, got {text!r}")
    return names


def _average(text: str) -> int | str:
    """The type of --average."""
    if text == "plateau":
        return text
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be 'plateau' or an integer >= 1, got {text!r}")
