"""The ladder of language models: what each kind of model, from counting to gates, makes of the same text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..output import Table
from . import kinds
from .neural_model import NeuralModel
from .ngram_language_model import NgramLanguageModel
from .options import new_model
from .text_model import Text, TextModel

MODELS = ("ngram", "window", "rnn", "gru", "lstm")
_UNIGRAMS = "1-gram"


@dataclass(frozen=True)
class Rung:
    """What a model came to."""

    name: str
    valid_perplexity: float | None  # None: the model gives no probabilities
    test_perplexity: float | None
    parameters: int  # weights, or n-grams
    bytes: int
    tokens_per_second: float  # in training
    seconds: float  # of training


@dataclass(frozen=True)
class Order:
    """The n-grams of one order."""

    order: int
    entries: int
    bytes: int
    unseen: float  # share of those of a text held out, repeats included


def names_of(models: Iterable[str], order: int) -> list[str]:
    """The rungs, from the lowest: "ngram" stands for unigrams and for each smoothing at ``order``."""
    smoothings = ("add_k", "stupid_backoff", "kneser_ney")
    ngrams = [_UNIGRAMS] * (order > 1) + [f"{order}-gram {smoothing}" for smoothing in smoothings]
    return [name for model in models for name in (ngrams if model == "ngram" else [model])]


def make(name: str, options: Mapping[str, Any]) -> TextModel:
    """The model of a rung, by those of the options that are for its kind."""
    length, _, smoothing = name.partition("-gram")
    kind = "ngram" if length.isdigit() else name
    taken = {option: value for option, value in options.items() if option in kinds.options_of(kind)}
    if kind == "ngram":
        taken |= {"order": int(length), "smoothing": smoothing.strip() or "kneser_ney"}
    return new_model(kind, taken)


def climb(
    name: str,
    options: Mapping[str, Any],
    train: Text,
    valid: Text | None,
    test: Text | None,
    training: Mapping[str, Any],
    folder: Path | None,
    progress: Any = True,
) -> tuple[TextModel, Rung]:
    """Train the model of a rung, or go on with its run in ``folder``, and measure the best that it came to.

    N-grams are counted anew: a folder does not tell what text its counts are of.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return climb(name, options, train, valid, test, training, Path(temporary), progress)
    model = make(name, options)
    if (folder / "model.json").exists():
        saved = type(model).load(folder)
        drawn = {"seed": saved.seed} if options.get("seed") is None else {}
        if saved.config != model.config | drawn:
            raise ValueError(f"{folder} holds another model: {saved!r}; choose another folder")
        if isinstance(model, NeuralModel):
            model = saved
    if isinstance(model, NeuralModel):
        begun = model._training is not None or bool(model.history)
        model.fit(train, valid, checkpoint=folder, progress=progress, resume=begun, **training)
    else:
        model.fit(train, valid, checkpoint=folder, progress=progress)
    seconds = sum(record["seconds"] for record in model.history)
    tokens = sum(record["seconds"] * record["tokens_per_second"] for record in model.history)
    best = kinds.load_best(folder)

    def perplexity(text: Text | None) -> float | None:
        if text is None or not best.normalized:
            return None
        return float(best.evaluate(text)["perplexity"])

    rung = Rung(name, perplexity(valid), perplexity(test), best.num_parameters, best.nbytes, tokens / seconds, seconds)
    return best, rung


def orders(model: NgramLanguageModel, text: Text) -> list[Order]:
    """The n-grams that a model has, and what of a text's they lack, by order."""
    ngrams = model.ngrams
    unseen = ngrams.unseen(model._ids("orders", "text", text, 1, None))
    return [Order(n, *figures) for n, figures in enumerate(zip(ngrams.entries, ngrams.nbytes, unseen, strict=True), 1)]


def table(rungs: Iterable[Rung]) -> Table:
    header = ["model", "valid perplexity", "test perplexity", "parameters", "MB", "tokens/s", "minutes"]
    return header, [
        [
            rung.name,
            _perplexity(rung.valid_perplexity),
            _perplexity(rung.test_perplexity),
            f"{rung.parameters:,}",
            f"{rung.bytes / 1e6:,.1f}",
            f"{rung.tokens_per_second:,.0f}",
            f"{rung.seconds / 60:,.1f}",
        ]
        for rung in rungs
    ]


def _perplexity(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def orders_table(rows: Iterable[Order]) -> Table:
    header = ["order", "n-grams", "MB", "unseen"]
    return header, [
        [f"{row.order}", f"{row.entries:,}", f"{row.bytes / 1e6:,.1f}", f"{row.unseen:.1%}"] for row in rows
    ]


def document(rungs: Iterable[Rung], rows: Iterable[Order]) -> dict[str, Any]:
    """Both as JSON data."""
    return {"rungs": [asdict(rung) for rung in rungs], "orders": [asdict(row) for row in rows]}


def run(
    names: Iterable[str],
    options: Mapping[str, Any],
    train: Text,
    valid: Text,
    test: Text | None,
    training: Callable[[str], Mapping[str, Any]],
    out: Path | None,
    progress: Any = True,
) -> Iterator[tuple[list[Rung], list[Order]]]:
    """Climb all rungs; after each of them, those so far and the orders of the last n-grams.

    ``training`` gives what ``fit`` of the rung of a name takes. Each model has a folder of its own in ``out``.
    """
    rungs: list[Rung] = []
    rows: list[Order] = []
    for name in names:
        folder = None if out is None else out / name.replace(" ", "-")
        model, rung = climb(name, options, train, valid, test, training(name), folder, progress)
        rungs = [*rungs, rung]
        if isinstance(model, NgramLanguageModel):
            rows = orders(model, valid if test is None else test)
        yield rungs, rows
