"""The kinds of language model by name, and any of them from its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from . import checkpoint
from .interpolation import Interpolation
from .language_model import LanguageModel
from .model import Loaded
from .ngram_language_model import NgramLanguageModel
from .text_model import TextModel
from .window_model import WindowModel

CLASSES: tuple[type[TextModel], ...] = (LanguageModel, WindowModel, NgramLanguageModel, Interpolation)
#: From counting to gates.
KINDS: dict[str, type[TextModel]] = {
    "ngram": NgramLanguageModel,
    "window": WindowModel,
    "rnn": LanguageModel,
    "rnn_relu": LanguageModel,
    "gru": LanguageModel,
    "lstm": LanguageModel,
}


def options_of(kind: str) -> tuple[str, ...]:
    """What ``make`` takes for a kind."""
    return tuple(name for name in KINDS[kind]._config if name != "cell")


def make(kind: str, **options: Any) -> TextModel:
    """A model of one of ``KINDS``, given arguments of its constructor."""
    cls: Callable[..., TextModel] = KINDS[kind]
    return cls(cell=kind, **options) if KINDS[kind] is LanguageModel else cls(**options)


def kind_of(model: TextModel) -> str | None:
    """Its name in ``KINDS``."""
    if isinstance(model, LanguageModel):
        return model.cell
    return next((name for name, cls in KINDS.items() if type(model) is cls), None)


def load(folder: str | os.PathLike[str], device: str = "cpu") -> TextModel:
    """The language model that ``save`` of any kind wrote.

    Raises:
        FileNotFoundError, ValueError: one line that names the file, when it is missing, damaged or of no known kind.
    """
    return load_one_of(CLASSES, folder, device)


def load_one_of(classes: Sequence[type[Loaded]], folder: str | os.PathLike[str], device: str) -> Loaded:
    """The model of one of these classes that is in a folder."""
    where = "load"
    kind = checkpoint.kind_of(where, folder)
    for cls in classes:
        if cls._format == kind:
            return cls.load(folder, device)
    known = ", ".join(cls._format for cls in classes)
    raise ValueError(f"{where}: {folder} must hold one of {known}, got {kind!r}")


def load_best(folder: str | os.PathLike[str], device: str = "cpu") -> TextModel:
    """The best model of a training run, or the one that stands there alone."""
    return load(checkpoint.best_or_latest(folder), device)
