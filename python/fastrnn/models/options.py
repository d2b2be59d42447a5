"""Arguments that commands on models share: texts, models, training."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from . import kinds
from .ngram import SMOOTHINGS
from .schedules import SCHEDULES
from .text_model import Text, TextModel
from .tokens import hold_out, parting, read_pieces
from .trainable import Trainable
from .vocabulary import VOCABULARIES

Number = Callable[..., Callable[[str], Any]]  # (kind, low, above): the type of an argument
Arguments = argparse._ActionsContainer  # a parser, or a group of its arguments

_MODEL = (
    "level", "min_frequency", "vocab_size", "embedding", "hidden", "layers", "dropout", "tie", "proj_size", "skip",
    "window", "direct", "order", "smoothing", "k", "seed",
)  # fmt: skip
#: Options of ``fit`` that all models of weights share.
RUN = (
    "epochs", "optimizer", "lr", "momentum", "weight_decay", "clip", "schedule", "warmup", "decay", "decay_after",
    "average", "patience", "seconds", "sample_every",
)  # fmt: skip
_TRAINING = ("batch_size", "bptt", *RUN)
_SIZES = {"embedding": 128, "hidden": 256}  # where they are not given
_IN_MEMORY = 1 << 26  # bytes of a file whose text is read as a whole


def read_text(path: Path) -> str:
    """The text of a file; a one-line error where it is none."""
    return "".join(read_pieces(path))


def read_data(path: Path) -> tuple[Text, Text, Text | None]:
    """Text to learn from, text held out, and text to test on if there is any.

    A folder holds train.txt, valid.txt and perhaps test.txt. Of a single file the last tenth is held out. All are read
    through once: what is wrong with them shows now.
    """
    if path.is_dir():
        train, valid, test = (path / f"{name}.txt" for name in ("train", "valid", "test"))
        for each in (train, valid, test) if test.exists() else (train, valid):
            for _ in read_pieces(each):
                pass
        return train, valid, test if test.exists() else None
    if path.is_file() and path.stat().st_size > _IN_MEMORY:
        return *hold_out(path), None
    text = read_text(path)
    near, cut = parting(len(text))
    line = text.rfind("\n", near, cut) + 1
    return text[: line or cut], text[line or cut :], None


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The arguments of these names that were given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of the options of models."""
    return given(args, _MODEL)


def training_options(args: argparse.Namespace, names: Iterable[str] = _TRAINING) -> dict[str, Any]:
    """What was given of the options that ``fit`` of models of weights takes."""
    options = given(args, names)
    return options | {"clip": None} if options.get("clip") == 0.0 else options


def new_model(kind: str, options: Mapping[str, Any]) -> TextModel:
    """A model with the options given, and with the command's sizes where they are not."""
    known = kinds.options_of(kind)
    for name in options:
        if name not in known:
            raise ValueError(f"{flag(name)} is not for --model {kind}")
    sizes = {name: size for name, size in _SIZES.items() if name in known}
    if options.get("tie"):
        sizes["embedding"] = options.get("proj_size") or options.get("hidden", sizes["hidden"])
    return kinds.make(kind, **sizes | dict(options))


def check_same(model: TextModel, kind: str | None, options: Mapping[str, Any], where: str) -> None:
    """Whether a language model that was saved is the one that the options ask for."""
    asked = dict(options) if kind is None else {"model": kind, **options}
    check_config({"model": kinds.kind_of(model), **model.config}, asked, where)


def check_config(saved: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    """Whether the configuration of the model in a folder is what the options ask for."""
    for name, value in asked.items():
        if name not in saved or saved[name] != value:
            raise ValueError(
                f"{where} holds another model: {flag(name)} must be {saved.get(name, 'left out')}, got {value}"
            )


def saved_training_options(model: Trainable, names: Collection[str] = _TRAINING) -> dict[str, Any]:
    """Those of the run that a model was saved in the middle of."""
    if model._training is None:
        return {}
    try:
        data = model._training.data
        options = {**data["options"], "epochs": data["epochs"]}
    except (LookupError, TypeError) as error:
        raise ValueError(f"the training state is damaged: {error!r}") from None
    if options.get("schedule") != "zaremba":
        options.pop("decay_after", None)
        if options.get("schedule") != "plateau":
            options.pop("decay", None)
    return {name: value for name, value in options.items() if name in names}


def flag(name: str) -> str:
    """An option as it is typed."""
    return "--" + name.replace("_", "-")


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH",
        help="a text file, whose last tenth is held out, or a folder with train.txt, valid.txt and perhaps test.txt; "
        "but for n-grams they may be larger than memory",
    )  # fmt: skip


def add_model(parser: argparse.ArgumentParser, number: Number) -> None:
    count = number(int, 1)
    group = parser.add_argument_group("tokens")
    group.add_argument("--level", choices=tuple(VOCABULARIES), help="what a token is (default: char)")
    add_vocabulary(group, number)
    group = parser.add_argument_group("models of weights")
    add_weights(group, number, **_SIZES)
    group.add_argument("--proj-size", type=count, metavar="N", help="lstm: size of h after a projection")
    add_skip(group)
    group.add_argument("--window", type=count, metavar="N", help="window: tokens that are seen (4)")
    group.add_argument("--direct", action="store_true", default=None, help="window: connect embeddings and output")
    group = parser.add_argument_group("n-gram models")
    group.add_argument("--order", type=count, metavar="N", help="length of the longest n-grams (5)")
    group.add_argument("--smoothing", choices=SMOOTHINGS, help="(default: kneser_ney)")
    group.add_argument("--k", type=number(float, 0.0, above=True), metavar="X", help="of add_k (0.01)")
    add_seed(parser, number)
    add_threads(parser, number)


def add_vocabulary(group: Arguments, number: Number) -> None:
    count = number(int, 1)
    group.add_argument("--min-frequency", type=count, metavar="N", help="rarer symbols are unknown (1)")
    group.add_argument("--vocab-size", type=count, metavar="N", help="bpe: symbols at most (8192)")


def add_weights(group: Arguments, number: Number, embedding: int, hidden: int) -> None:
    """Sizes, and the like, of any model with recurrent layers; the two are what the help calls their defaults."""
    count, real = number(int, 1), number(float, 0.0)
    group.add_argument("--embedding", type=count, metavar="N", help=f"size of a token's vector ({embedding})")
    group.add_argument("--hidden", type=count, metavar="N", help=f"units of each layer ({hidden})")
    group.add_argument("--layers", type=count, metavar="N", help="recurrent layers (1)")
    group.add_argument("--dropout", type=real, metavar="P", help="probability (0)")
    group.add_argument("--tie", action="store_true", default=None, help="one matrix for embedding and output")


def add_seed(parser: Arguments, number: Number) -> None:
    parser.add_argument("--seed", type=number(int, 0), metavar="N", help="decides everything that is drawn")


def add_threads(parser: Arguments, number: Number) -> None:
    parser.add_argument("--threads", type=number(int, 1), metavar="N", help="(default: as fastrnn info tells)")


def add_training(parser: argparse.ArgumentParser, number: Number) -> None:
    count = number(int, 1)
    group = parser.add_argument_group("training of models of weights")
    group.add_argument("--batch-size", type=count, metavar="N", help="streams read side by side (32)")
    group.add_argument("--bptt", type=count, metavar="N", help="tokens a step (64)")
    add_run(group, number)


def add_run(group: Arguments, number: Number) -> None:
    """Those of ``RUN``."""
    count, natural = number(int, 1), number(int, 0)
    real, positive = number(float, 0.0), number(float, 0.0, above=True)
    group.add_argument("--epochs", type=count, metavar="N", help="passes over the text (10)")
    group.add_argument("--optimizer", choices=("adam", "adamw", "sgd"), help="(default: adam)")
    group.add_argument("--lr", type=positive, metavar="X", help="learning rate (adam 0.002, sgd 1)")
    group.add_argument("--momentum", type=real, metavar="X", help="sgd: (0)")
    group.add_argument("--weight-decay", type=real, metavar="X", help="(0)")
    group.add_argument("--clip", type=real, metavar="X", help="largest norm of the gradients; 0: any (1)")
    group.add_argument("--schedule", choices=SCHEDULES, help="of the rate (default: constant)")
    group.add_argument("--warmup", type=natural, metavar="N", help="steps with a rising rate (0)")
    group.add_argument(
        "--decay", type=positive, metavar="X", help="multiplies the rate at a plateau (0.25) or by zaremba (0.5)"
    )
    group.add_argument("--decay-after", type=natural, metavar="N", help="zaremba: last epoch of the whole rate (4)")
    group.add_argument(
        "--average", type=_average, metavar="N",
        help="sgd: take the mean of the weights from the end of epoch N on, or of one that the trigger 'plateau' finds",
    )  # fmt: skip
    group.add_argument("--patience", type=count, metavar="N", help="stop after N epochs that were not better on valid")
    group.add_argument("--seconds", type=positive, metavar="N", help="stop after that time")
    group.add_argument("--sample-every", type=count, metavar="N", help="show what the model writes, every N steps")


def add_skip(parser: Arguments) -> None:
    parser.add_argument(
        "--skip", action="store_true", default=None, help="add the input of recurrent layers to their output"
    )


def _average(text: str) -> int | str:
    """The type of --average."""
    if text == "plateau":
        return text
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be 'plateau' or an integer >= 1, got {text!r}")
