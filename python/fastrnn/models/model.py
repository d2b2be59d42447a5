"""What all models that are kept in a folder share: a configuration, a seed, records, and their files."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..checks import check_size
from . import checkpoint
from .vocabulary import Vocabulary, vocabulary_from_dict

Loaded = TypeVar("Loaded", bound="Model")


class Model(ABC):
    """A model that ``save`` writes to a folder.

    A kind of model says what it is called on disk (``_format``), which of its attributes are constructor arguments
    (``_config``), which vocabularies it has (``_VOCABULARIES``, ``_vocabularies``), and what else is saved
    (``_contents``).
    """

    _format: ClassVar[str]
    _config: ClassVar[tuple[str, ...]]
    _VOCABULARIES: ClassVar[tuple[str, ...]] = ()  # their keys in model.json

    def __init__(self, seed: int | None) -> None:
        self.seed = check_size(type(self).__name__, "seed", new_seed() if seed is None else seed, low=0)
        self.history: list[dict[str, Any]] = []
        # Independent streams from one seed; each part keeps its own whatever the others draw.
        names = ("recurrent", "weights", "training", "sampling")
        self._seeds = dict(zip(names, np.random.SeedSequence(self.seed).spawn(len(names)), strict=True))
        self._sampling = np.random.default_rng(self._seeds["sampling"])

    def __repr__(self) -> str:
        config = ", ".join(f"{name}={value!r}" for name, value in self.config.items())
        return f"{type(self).__name__}({config})"

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, device aside."""
        return {name: getattr(self, name) for name in self._config}

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """How many numbers training found."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The bytes that these take."""

    def save(self, folder: str | os.PathLike[str], *, training: bool = True) -> None:
        """Write the model to ``folder`` (made if missing): ``model.json`` and ``.safetensors`` archives that it names.

        With ``training`` also the training state, if there is one (the optimizer's arrays and the position), so that
        ``fit(..., resume=True)`` can carry on. A save that fails or is cut off leaves the model that was there; an
        OSError (a full disk) names the file. Nothing is pickled: ``safetensors.torch.load_file`` reads the weights into
        a module of torch with the same names.
        """
        vocabularies = {key: vocabulary.to_dict() for key, vocabulary in self._vocabularies().items()}
        data, archives = self._contents(training)
        data = {"config": self.config, **vocabularies, "history": self.history} | data
        checkpoint.write(folder, self._format, data, archives)

    @classmethod
    def load(cls: type[Loaded], folder: str | os.PathLike[str], device: str = "cpu") -> Loaded:
        """The model that ``save`` wrote.

        Raises:
            FileNotFoundError, ValueError: one line that names the file, when it is missing, damaged, changed or of
                another kind.
        """
        where = f"{cls.__name__}.load"
        data, archives = checkpoint.read(where, folder, cls._format)
        config: Any = data.get("config")
        if not isinstance(config, dict):
            raise ValueError(f"{where}: {folder} is damaged: it has no config")
        try:
            model = cls._of_config(config, device)
            if model.config != config:
                raise ValueError(f"config must have the keys {sorted(model.config)}, got {sorted(config)}")
            model._set_vocabularies({key: vocabulary_from_dict(data.get(key)) for key in cls._VOCABULARIES})
            model.history = checked_history(data.get("history"))
            model._set_contents(data, archives)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {folder} is damaged: {error}") from None
        return model

    @classmethod
    def _of_config(cls: type[Loaded], config: dict[str, Any], device: str) -> Loaded:
        if device != "cpu":
            raise RuntimeError(f"{cls.__name__}.load: device must be 'cpu' for models of this kind, got {device!r}")
        return cls(**config)

    @abstractmethod
    def _vocabularies(self) -> dict[str, Vocabulary]:
        """Those of ``_VOCABULARIES``, by key; a RuntimeError before they are there."""

    @abstractmethod
    def _set_vocabularies(self, vocabularies: dict[str, Vocabulary]) -> None:
        """Take what ``_vocabularies`` gave, and make the weights that depend on it; ValueError for anything else."""

    def _contents(self, training: bool) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
        """What is saved beside configuration, vocabularies and history: JSON data, and arrays by role and name."""
        return {}, {}

    def _set_contents(self, data: dict[str, Any], archives: dict[str, dict[str, np.ndarray]]) -> None:  # noqa: B027
        """Take what ``_contents`` gave; TypeError or ValueError for anything else."""


def new_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])


def perplexity(loss: float) -> float:
    """Of a mean loss in nats; at most 1e304, as JSON has no infinity."""
    return math.exp(min(loss, 700.0))


def checked_history(history: Any) -> list[dict[str, Any]]:
    if not isinstance(history, list) or not all(isinstance(record, dict) for record in history):
        raise ValueError("history must be a list of records")
    for record in history:
        figures = [value for name, value in record.items() if name == "loss" or name.startswith("valid_")]
        if type(record.get("epoch")) is not int or not all(type(figure) in (int, float) for figure in figures):
            raise ValueError(f"history must have records of epochs and their losses, got {record}")
    return history
