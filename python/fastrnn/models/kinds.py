"""The kinds of language model by name, and any of them from its folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import checkpoint
from .interpolation import Interpolation
from .language_model import LanguageModel
from .ngram_language_model import NgramLanguageModel
from .text_model import TextModel
from .training import BEST
from .window_model import WindowModel

_CLASSES: tuple[type[TextModel], ...] = (LanguageModel, WindowModel, NgramLanguageModel, Interpolation)
#: From counting to gates.
KINDS: dict[str, type[TextModel]] = {
    "ngram": NgramLanguageModel,
    "window": WindowModel,
    "rnn": LanguageModel,
    "gru": LanguageModel,
    "lstm": LanguageModel,
}


def make(kind: str, **options: Any) -> TextModel:
    """A model of one of ``KINDS``, given what its constructor takes of the options of all kinds."""
    cls: Callable[..., TextModel] = KINDS[kind]
    if KINDS[kind] is LanguageModel:
        options["cell"] = kind
    return cls(**{name: value for name, value in options.items() if name in KINDS[kind]._config})


def load(folder: str | os.PathLike[str], device: str = "cpu") -> TextModel:
    """The model that ``save`` of any kind wrote.

    Raises:
        FileNotFoundError, ValueError: one line that names the file, when it is missing, damaged or of no known kind.
    """
    where = "load"
    kind = checkpoint.kind_of(where, folder)
    for cls in _CLASSES:
        if cls._format == kind:
            return cls.load(folder, device)
    known = ", ".join(cls._format for cls in _CLASSES)
    raise ValueError(f"{where}: {folder} must hold one of {known}, got {kind!r}")


def load_best(folder: str | os.PathLike[str], device: str = "cpu") -> TextModel:
    """The best model of a training run, or the one that stands there alone."""
    best = Path(folder, BEST)
    return load(best if best.is_dir() else folder, device)
