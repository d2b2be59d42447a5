"""The ladder of language models: what each kind of model, from counting to gates, makes of the same text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..output import Table
from . import kinds
from .ngram_language_model import NgramLanguageModel
from .text_model import Text, TextModel


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
    ngrams = ["1-gram", *(f"{order}-gram {smoothing}" for smoothing in ("add_k", "stupid_backoff", "kneser_ney"))]
    return [name for model in models for name in (ngrams if model == "ngram" else [model])]


def make(name: str, options: Mapping[str, Any]) -> TextModel:
    """The model of a rung; ``options`` are those of ``kinds.make``."""
    length, _, smoothing = name.partition("-gram")
    if not length.isdigit():
        return kinds.make(name, **options)
    return kinds.make("ngram", **dict(options) | {"order": int(length), "smoothing": smoothing.strip() or "kneser_ney"})


def climb(
    model: TextModel,
    name: str,
    train: Text,
    valid: Text | None,
    test: Text | None,
    training: Mapping[str, Any],
    folder: Path | None,
    progress: Any = True,
) -> tuple[TextModel, Rung]:
    """Train a model, or go on with the run that is in ``folder``, and measure it."""
    counts = isinstance(model, NgramLanguageModel)
    options = {} if counts else dict(training)
    if folder is not None and (folder / "model.json").exists():
        saved = kinds.load(folder)
        if saved.config != model.config | {"seed": saved.config["seed"]}:
            raise ValueError(f"{folder} holds another model: {saved!r}; choose another folder")
        model = saved
        options |= {} if counts else {"resume": True}
    if not (counts and model.history):
        model.fit(train, valid, checkpoint=folder, progress=progress, **options)
    seconds = sum(record["seconds"] for record in model.history)
    tokens = sum(record["seconds"] * record["tokens_per_second"] for record in model.history)
    best = kinds.load_best(folder) if folder is not None else model

    def perplexity(text: Text | None) -> float | None:
        return float(best.evaluate(text)["perplexity"]) if text is not None and best.normalized else None

    rung = Rung(
        name, perplexity(valid), perplexity(test), best.num_parameters, best.nbytes, tokens / seconds, seconds
    )  # fmt: skip
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
