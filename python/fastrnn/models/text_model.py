"""What all language models share: a vocabulary, and everything that follows from the probability of the next token."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..checks import check_choice, check_size
from . import checkpoint
from .decoding import Decoder, Sampler, sample
from .vocabulary import UNKNOWN, VOCABULARIES, Vocabulary, vocabulary_from_dict

Model = TypeVar("Model", bound="TextModel")


class TextModel(ABC):
    """A language model from text to text.

    A kind of model says what it is called on disk (``_format``), which of its attributes are constructor arguments
    (``_config``), and how it predicts: all tokens of a text (``_nats``) or one after the other (``_decoder``).
    """

    _format: ClassVar[str]
    _config: ClassVar[tuple[str, ...]]

    def __init__(self, level: str, seed: int | None, min_frequency: int) -> None:
        where = type(self).__name__
        self.level = check_choice(where, "level", level, VOCABULARIES)
        self.seed = check_size(where, "seed", new_seed() if seed is None else seed, low=0)
        self.min_frequency = check_size(where, "min_frequency", min_frequency)
        self.vocabulary: Vocabulary | None = None
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

    @abstractmethod
    def fit(
        self,
        train: str,
        valid: str | None = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: Any = True,
    ) -> list[dict[str, Any]]:
        """Learn from a text; returns the records of the run, also kept in ``history``."""

    # -- vocabulary ----------------------------------------------------------------------------------------------------

    def build(self, text: str) -> Vocabulary:
        """Take the vocabulary of ``text``, which is returned, and make the weights that depend on it.

        ``fit`` does so by itself.
        """
        where = f"{type(self).__name__}.build"
        if self.vocabulary is not None:
            raise RuntimeError(f"{where}: the vocabulary is there already; make a new model for another one")
        self._check_text("build", "text", text, least=1)
        return self._build(VOCABULARIES[self.level].of_text(text, self.min_frequency))

    def _build(self, vocabulary: Vocabulary) -> Vocabulary:
        self.vocabulary = vocabulary
        return vocabulary

    def _built(self, call: str) -> Vocabulary:
        if self.vocabulary is None:
            raise RuntimeError(
                f"{type(self).__name__}.{call}: the model has no vocabulary yet: call fit (or build) first"
            )
        return self.vocabulary

    def _encode(self, call: str, text: str) -> np.ndarray:
        vocabulary = self._built(call)
        self._check_text(call, "text", text, least=2)
        return vocabulary.encode(text)

    def _check_text(self, call: str, name: str, text: Any, least: int) -> None:
        where = f"{type(self).__name__}.{call}"
        if not isinstance(text, str):
            raise TypeError(f"{where}: {name} must be a str, got {type(text).__name__}")
        vocabulary = VOCABULARIES[self.level]
        if (count := vocabulary.count(text)) < least:
            raise ValueError(f"{where}: {name} must have at least {least} {vocabulary.unit}, got {count}")

    # -- prediction ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _nats(self, ids: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """-log p of each token after the first, in chunks (nats (t, B), valid (t, B)), from the streams of ``_cut``."""

    @abstractmethod
    def _decoder(self, ids: np.ndarray) -> Decoder:
        """One row that has read all of ``ids``, of which there is at least one, but the last."""

    def evaluate(self, text: str, *, batch_size: int = 1) -> dict[str, float | int]:
        """How well the model predicts ``text``.

        Every token but the first, which has nothing before it, is predicted from all those before it. With
        ``batch_size`` above 1 the text is cut into as many streams, each starting from nothing: faster, and
        slightly pessimistic.

        Returns a dict: ``loss`` (nats per token), ``perplexity`` (exp(loss)), ``tokens`` (predicted tokens),
        ``bits_per_character``.
        """
        where = f"{type(self).__name__}.evaluate"
        ids = self._encode("evaluate", text)
        batch_size = min(check_size(where, "batch_size", batch_size), len(ids) - 1)
        total = sum(float(nats.sum(where=valid, dtype=np.float64)) for nats, valid in self._nats(ids, batch_size))
        tokens = len(ids) - 1
        loss = total / tokens
        first = len(self._built("evaluate").decode(ids[:1]))  # characters that nothing predicts
        return {
            "loss": loss,
            "perplexity": math.inf if loss > 709.0 else math.exp(loss),
            "tokens": tokens,
            "bits_per_character": total / math.log(2.0) / max(1, len(text) - first),
        }

    def score(self, text: str) -> np.ndarray:
        """log p of each token of ``text`` but the first, in nats: float64, entry i for token i + 1."""
        ids = self._encode("score", text)
        return -np.concatenate([nats[:, 0] for nats, _ in self._nats(ids, 1)]).astype(np.float64)

    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int = 100,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str:
        """A continuation of ``prompt`` (which is not part of the result).

        Args:
            prompt: text to go on from; an empty one stands for the end of a line (or the first symbol, without one in
                the vocabulary).
            max_new_tokens: how many tokens, >= 0.
            temperature: divides the logits; below 1 plainer, 0 always the most probable token.
            top_k: draw from the k most probable tokens only.
            top_p: draw from the most probable tokens that together reach probability p, in (0, 1].
            seed: integer >= 0; None goes on with the model's own generator (started by its seed).

        Raises:
            TypeError, ValueError: naming the argument. FloatingPointError: the weights hold NaN or infinity.
        """
        where = f"{type(self).__name__}.generate"
        vocabulary = self._built("generate")
        if not isinstance(prompt, str):
            raise TypeError(f"{where}: prompt must be a str, got {type(prompt).__name__}")
        count = check_size(where, "max_new_tokens", max_new_tokens, low=0)
        sampler = Sampler.checked(where, temperature, top_k, top_p)
        rng = self._sampling if seed is None else np.random.default_rng(check_size(where, "seed", seed, low=0))
        ids = vocabulary.encode(prompt)
        if len(ids) == 0:
            ids = np.array([vocabulary.start], np.int32)
        last = int(ids[-1])
        new = sample(where, self._decoder(ids), last, count, sampler, rng, UNKNOWN)
        # What stands between the last token and the first new one, such as a space, is part of the continuation.
        return vocabulary.decode([last, *new])[len(vocabulary.decode([last])) :]

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], *, training: bool = True) -> None:
        """Write the model to ``folder`` (made if missing): ``model.json`` and the arrays that it names, no pickle.

        With ``training`` also the training state, if there is one (the optimizer's arrays and the position), so that
        ``fit(..., resume=True)`` can carry on. A save that fails or is cut off leaves the model that was there.
        """
        vocabulary = self._built("save")
        data, archives = self._contents(training)
        data = {"config": self.config, "vocabulary": vocabulary.to_dict(), "history": self.history} | data
        checkpoint.write(folder, self._format, data, archives)

    @classmethod
    def load(cls: type[Model], folder: str | os.PathLike[str], device: str = "cpu") -> Model:
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
        config = {"min_frequency": 1} | config  # which the first models had not
        try:
            model = cls._of_config(config, device)
            if model.config != config:
                raise ValueError(f"config must have the keys {sorted(model.config)}, got {sorted(config)}")
            vocabulary = vocabulary_from_dict(data.get("vocabulary"))
            if vocabulary.level != model.level:
                raise ValueError(f"the vocabulary must be of level {model.level!r}, got {vocabulary.level!r}")
            model._build(vocabulary)
            model.history = checked_history(data.get("history"))
            model._set_contents(data, archives)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {folder} is damaged: {error}") from None
        return model

    @classmethod
    def _of_config(cls: type[Model], config: dict[str, Any], device: str) -> Model:
        return cls(**config)

    @abstractmethod
    def _contents(self, training: bool) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
        """What is saved beside configuration, vocabulary and history: JSON data, and arrays by role and name."""

    @abstractmethod
    def _set_contents(self, data: dict[str, Any], archives: dict[str, dict[str, np.ndarray]]) -> None:
        """Take what ``_contents`` gave; TypeError or ValueError for anything else."""


def new_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])


def checked_history(history: Any) -> list[dict[str, Any]]:
    if not isinstance(history, list) or not all(isinstance(record, dict) for record in history):
        raise ValueError("history must be a list of records")
    return history


def cut(ids: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A text as streams side by side: inputs and targets (T, B), and how many targets each stream has, (B,).

    Stream b predicts tokens 1 + b T ... of ``ids``; the last streams may be shorter.
    """
    count = len(ids) - 1
    length = -(-count // batch_size)
    padded = np.zeros(length * batch_size + 1, np.int32)
    padded[: len(ids)] = ids
    inputs = padded[:-1].reshape(batch_size, length).T
    targets = padded[1:].reshape(batch_size, length).T
    return inputs, targets, np.clip(count - length * np.arange(batch_size), 0, length)
