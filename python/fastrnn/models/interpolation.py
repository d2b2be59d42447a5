"""Linear interpolation of language models: a recurrent one with an n-gram, say."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check_probability, check_real, check_size
from . import checkpoint as files
from .decoding import StepDecoder, log_softmax
from .model import checked_history, perplexity
from .progress import reporter
from .text_model import Text, TextModel

_SUM_ERROR = 1e-6  # that of float32 weights
_PART = re.compile(r"part-[0-9a-f]{12}")


class Interpolation(TextModel):
    """Predicts with the weighted mean of the probabilities of K models::

        p(w | h) = sum_i weights[i] p_i(w | h)

    The models are used as they are, not copied. ``fit`` finds the weights on a text.

    Args:
        models: K >= 1 language models with the same vocabulary, of any kinds that have probabilities (stupid_backoff
            has none).
        weights: K numbers >= 0 with sum 1; None makes all equal.
        seed: integer >= 0 that decides what ``generate`` draws; None draws one, kept as ``model.seed``.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: a model has no vocabulary yet.

    Source: Jelinek, Mercer, "Interpolated estimation of Markov source parameters from sparse data", 1980.

    Example:
        >>> from fastrnn.models import Interpolation, LanguageModel, NgramLanguageModel
        >>> train, valid = "hello world. " * 50, "hello you. hello world. "
        >>> rnn = LanguageModel(embedding=8, hidden=16, seed=1)
        >>> history = rnn.fit(train, epochs=5, batch_size=4, bptt=16, lr=0.02, progress=False)
        >>> ngram = NgramLanguageModel("char", order=3)
        >>> history = ngram.fit(train, progress=False)
        >>> model = Interpolation([rnn, ngram])
        >>> history = model.fit(valid, progress=False)
        >>> model.evaluate(valid)["loss"] <= min(part.evaluate(valid)["loss"] for part in model.models)
        True
    """

    _format = "fastrnn.Interpolation"
    _config = ("weights", "seed")

    def __init__(
        self, models: Sequence[TextModel], weights: Sequence[float] | None = None, seed: int | None = None
    ) -> None:
        self.models = _checked_models(models)
        super().__init__(self.models[0].level, seed, self.models[0].min_frequency)
        self.vocabulary = self.models[0].vocabulary
        count = len(self.models)
        self.weights = [1.0 / count] * count if weights is None else weights

    def __repr__(self) -> str:
        return f"Interpolation({list(self.models)}, weights={self.weights}, seed={self.seed})"

    @property
    def weights(self) -> list[float]:
        """What each model counts for."""
        return list(self._weights)

    @weights.setter
    def weights(self, weights: Sequence[float]) -> None:
        self._weights = _checked_weights(weights, len(self.models))

    @property
    def num_parameters(self) -> int:
        """Those of the models, and the weights."""
        return sum(model.num_parameters for model in self.models) + len(self.weights)

    @property
    def nbytes(self) -> int:
        """The bytes that they take."""
        return sum(model.nbytes for model in self.models) + 8 * len(self.weights)

    # -- weights -------------------------------------------------------------------------------------------------------

    def fit(
        self,
        train: Text,
        valid: Text | None = None,
        *,
        epochs: int = 1000,
        tolerance: float = 1e-6,
        batch_size: int = 1,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: Any = True,
    ) -> list[dict[str, Any]]:
        """Find the weights that make a text most probable, by expectation maximisation, from equal ones::

            r_i(t) = weights[i] p_i(w_t) / sum_j weights[j] p_j(w_t)
            weights[i] = mean of r_i over t

        The models stay as they are. The text should be one that they were not trained on, or those win that know it by
        heart. Its log-likelihood is concave in the weights: every step raises it, and there is one maximum. Returns
        one record for each step.

        Args:
            train: text of at least two tokens, or the path of a file of text.
            valid: another one, evaluated after each step.
            epochs: how many steps at most.
            tolerance: end when the loss is within so many nats per token of the lowest, >= 0. As the loss is convex,
                it is no further than max_i mean_t(p_i(w_t) / p(w_t)) - 1.
            batch_size: streams that the texts are cut into, as in ``evaluate``.
            checkpoint: folder that ``save`` writes to at the end.
            progress: True shows progress on standard error, False nothing; or an object (``models.progress.Progress``).

        Records: ``epoch``, ``weights`` and what they give: ``loss`` (nats per token), ``perplexity``; ``seconds``; with
        ``valid`` also ``valid_loss``, ``valid_perplexity``. The model has the weights of the last one.

        Raises:
            TypeError, ValueError: naming the argument. FloatingPointError: a model gives no finite probabilities.

        Source: Dempster, Laird, Rubin, "Maximum likelihood from incomplete data via the EM algorithm", 1977.
        """
        where = "Interpolation.fit"
        epochs = check_size(where, "epochs", epochs)
        tolerance = check_real(where, "tolerance", tolerance)
        batch_size = check_size(where, "batch_size", batch_size)
        ids = self._ids("fit", "train", train, 2, None)
        held_out_ids = None if valid is None else self._ids("fit", "valid", valid, 2, None)
        report = reporter(where, progress)
        if checkpoint is not None:
            files.make_folder(checkpoint)  # a wrong path fails now, not after the search
        begun = time.perf_counter()
        likelihood = _Likelihood(where, self._log_p(ids, batch_size))
        held_out = None if held_out_ids is None else _Likelihood(where, self._log_p(held_out_ids, batch_size))
        weights = np.full(len(self.models), 1.0 / len(self.models))
        history: list[dict[str, Any]] = []
        report.start(epochs, "weights")
        try:
            for epoch in range(1, epochs + 1):
                loss, gains = likelihood(weights)
                record: dict[str, Any] = {"epoch": epoch, "weights": weights.tolist()}
                record |= {"loss": loss, "perplexity": perplexity(loss)}
                if held_out is not None:
                    record["valid_loss"], _ = held_out(weights)
                    record["valid_perplexity"] = perplexity(record["valid_loss"])
                history.append(record | {"seconds": time.perf_counter() - begun})
                figures = f"{_shown(weights)}, perplexity {record['perplexity']:.2f}"
                report.update(epoch, figures)
                if gains.max() - 1.0 <= tolerance:
                    break
                weights = weights * gains
            report.message(f"weights {figures}, {epoch} steps")
        finally:
            report.close()
        self.weights, self.history = history[-1]["weights"], history
        if checkpoint is not None:
            self.save(checkpoint)
            files.remove_best_of_others(checkpoint)
        return history

    def _log_p(self, ids: np.ndarray, batch_size: int) -> np.ndarray:
        """log p_i of each token but the first, (K, T)."""
        batch_size = min(batch_size, len(ids) - 1)
        return -np.array(
            [np.concatenate([nats[valid] for nats, valid in model._nats(ids, batch_size)]) for model in self.models],
            np.float64,
        )

    # -- prediction ----------------------------------------------------------------------------------------------------

    def _nats(self, ids: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        log_weights = _log(self.weights)
        for nats, valid in _aligned([model._nats(ids, batch_size) for model in self.models]):
            yield -_mixed(-nats, log_weights), valid

    def _decoder(self, ids: np.ndarray) -> StepDecoder:
        return _Mixture([model._decoder(ids) for model in self.models], _log(self.weights))

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], *, training: bool = True) -> None:
        """Write the model to ``folder`` (made if missing): each of the models to a folder in it, and ``model.json``.

        A save that fails or is cut off leaves the model that was there.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        # New names each time: the old model.json goes on naming the old parts, until the new one takes its place.
        parts = [f"part-{secrets.token_hex(6)}" for _ in self.models]
        try:
            for model, part in zip(self.models, parts, strict=True):
                model.save(path / part, training=training)
            files.write(path, self._format, {"config": self.config, "parts": parts, "history": self.history}, {})
        except BaseException:
            with suppress(OSError):
                if files.peek(path, "parts") != parts:  # the new model.json is not in place
                    for part in parts:
                        shutil.rmtree(path / part, ignore_errors=True)
            raise
        for entry in path.iterdir():
            if _PART.fullmatch(entry.name) and entry.name not in parts:
                shutil.rmtree(entry, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "cpu") -> Interpolation:
        """The model that ``save`` wrote.

        Raises:
            FileNotFoundError, ValueError: one line that names the file, when it is missing, damaged, changed or of
                another kind.
        """
        from . import kinds  # which has to import this module

        where = f"{cls.__name__}.load"
        data, _ = files.read(where, folder, cls._format)
        try:
            config, parts = data.get("config"), data.get("parts")
            if not isinstance(config, dict) or set(config) != set(cls._config):
                raise ValueError(f"config must have the keys {sorted(cls._config)}")
            # Only plain names of our own making: an index cannot point outside its folder.
            if not isinstance(parts, list) or not all(
                isinstance(part, str) and _PART.fullmatch(part) for part in parts
            ):
                raise ValueError(f"parts must be names of folders, got {parts}")
            history = checked_history(data.get("history"))
        except ValueError as error:
            raise ValueError(f"{where}: {folder} is damaged: {error}") from None
        models = [kinds.load(Path(folder, part), device) for part in parts]
        try:
            model = cls(models, **config)
            model.history = history
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {folder} is damaged: {error}") from None
        return model


class _Mixture:
    """A ``StepDecoder`` whose logits are the logarithms of mixed probabilities."""

    def __init__(self, decoders: list[StepDecoder], log_weights: np.ndarray) -> None:
        self._decoders, self._log_weights = decoders, log_weights

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return _mixed(np.array([log_softmax(part.step(tokens)) for part in self._decoders]), self._log_weights)

    def select(self, rows: np.ndarray) -> None:
        for part in self._decoders:
            part.select(rows)


class _Likelihood:
    """The loss of a text as a function of the weights, and the factors by which a step of EM changes these."""

    def __init__(self, where: str, log_p: np.ndarray) -> None:
        self._best = log_p.max(axis=0)
        if not np.isfinite(self._best).all():
            token = int(np.flatnonzero(~np.isfinite(self._best))[0]) + 1
            raise FloatingPointError(f"{where}: the models' log p of token {token} are {log_p[:, token - 1]}")
        self._ratios = np.exp(log_p - self._best)  # one of each token's is 1: no mixture of them is 0

    def __call__(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = weights @ self._ratios
        loss = -float(np.mean(self._best + np.log(mixed)))
        return loss, self._ratios @ (1.0 / mixed) / len(mixed)


def _mixed(log_p: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """log sum_i weights[i] p_i, of (K, ..., ...) the (..., ...)."""
    return np.logaddexp.reduce(log_p + log_weights[:, None, None], axis=0)


def _log(weights: Sequence[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(weights)


def _aligned(
    parts: list[Iterator[tuple[np.ndarray, np.ndarray]]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks ((K, t, B), (t, B)) from those of K models, each of which cuts the same T steps as it likes."""
    left = [next(part) for part in parts]
    while True:
        steps = min(len(nats) for nats, _ in left)
        yield np.array([nats[:steps] for nats, _ in left], np.float64), left[0][1][:steps]
        left = [(nats[steps:], valid[steps:]) for nats, valid in left]
        try:
            left = [chunk if len(chunk[0]) else next(part) for chunk, part in zip(left, parts, strict=True)]
        except StopIteration:
            return


def _shown(weights: np.ndarray) -> str:
    return ", ".join(f"{weight:.3f}" for weight in weights)


def _checked_models(models: Any) -> tuple[TextModel, ...]:
    where = "Interpolation"
    if not isinstance(models, (list, tuple)):
        raise TypeError(f"{where}: models must be a list of language models, got {type(models).__name__}")
    if not models:
        raise ValueError(f"{where}: models must have at least 1 language model, got 0")
    for i, model in enumerate(models):
        if not isinstance(model, TextModel):
            raise TypeError(f"{where}: models[{i}] must be a language model, got {type(model).__name__}")
        if not model.normalized:
            raise ValueError(f"{where}: models[{i}] must have probabilities that sum to 1, got {model!r}")
        if model.vocabulary is None:
            raise RuntimeError(f"{where}: models[{i}] has no vocabulary yet: call fit (or build) first")
    first = models[0].vocabulary
    for i, model in enumerate(models):
        if model.vocabulary != first:
            shown = [f"{len(m.vocabulary)} of level {m.level!r}" for m in (models[0], model)]
            raise ValueError(
                f"{where}: models must have the same vocabulary, but the tokens of models[0] ({shown[0]}) and "
                f"models[{i}] ({shown[1]}) differ"
            )
    return tuple(models)


def _checked_weights(weights: Any, count: int) -> list[float]:
    where = "Interpolation"
    if isinstance(weights, np.ndarray):
        weights = weights.tolist()
    if not isinstance(weights, (list, tuple)):
        raise TypeError(f"{where}: weights must be a list of {count} numbers, got {type(weights).__name__}")
    if len(weights) != count:
        raise ValueError(f"{where}: weights must have a number for each of the {count} models, got {len(weights)}")
    checked = [check_probability(where, f"weights[{i}]", weight) for i, weight in enumerate(weights)]
    if abs(sum(checked) - 1.0) > _SUM_ERROR:
        raise ValueError(f"{where}: weights must have the sum 1, got {sum(checked)}")
    return checked
