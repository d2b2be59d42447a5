"""n-gram models of texts: ``NgramModel``, which counts ids, with a vocabulary."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from .checkpoint import make_folder, remove_best_of_others
from .ngram import NgramModel
from .progress import reporter
from .text_model import Text, TextModel, cut


class NgramLanguageModel(TextModel):
    """Predicts each token of a text from the ``order - 1`` tokens before it, by counting: see ``NgramModel``.

    Args:
        level: what a token is, as in ``LanguageModel``.
        order: length of the longest n-grams, an integer >= 1.
        smoothing: "kneser_ney", "add_k" or "stupid_backoff".
        k: what add_k adds to every count, above 0.
        alpha: factor of stupid_backoff for each token dropped from the context, above 0 and at most 1.
        seed: integer >= 0 that decides what ``generate`` draws; None draws one, kept as ``model.seed``.
        min_frequency, vocab_size: as in ``LanguageModel``.

    Raises:
        TypeError, ValueError: naming the argument.

    ``evaluate`` refuses stupid_backoff, whose scores sum to no probability; ``score`` gives their logarithms.

    Example:
        >>> from fastrnn.models import NgramLanguageModel
        >>> model = NgramLanguageModel(order=4)
        >>> history = model.fit("hello world. " * 50, progress=False)
        >>> model.evaluate("hello world. hello world.")["perplexity"] < 1.5
        True
    """

    _format = "fastrnn.NgramLanguageModel"
    _config = ("level", "order", "smoothing", "k", "alpha", "seed", "min_frequency", "vocab_size")

    def __init__(
        self,
        level: str = "char",
        order: int = 5,
        smoothing: str = "kneser_ney",
        *,
        k: float = 0.01,
        alpha: float = 0.4,
        seed: int | None = None,
        min_frequency: int = 1,
        vocab_size: int = 8192,
    ) -> None:
        super().__init__(level, seed, min_frequency, vocab_size)
        self.ngrams = NgramModel(order, smoothing, k=k, alpha=alpha)
        self.order, self.smoothing = self.ngrams.order, self.ngrams.smoothing
        self.k, self.alpha = self.ngrams.k, self.ngrams.alpha

    @property
    def normalized(self) -> bool:
        return self.ngrams.normalized

    @property
    def num_parameters(self) -> int:
        """Different n-grams, of all orders."""
        return sum(self.ngrams.entries)

    @property
    def nbytes(self) -> int:
        """The bytes that they take."""
        return sum(self.ngrams.nbytes)

    def fit(
        self,
        train: Text,
        valid: Text | None = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: Any = True,
    ) -> list[dict[str, Any]]:
        """Count the n-grams of a text, in place of what was counted before; returns a list of one record.

        Args:
            train: text of at least one token, or the path of a file of text.
            valid: another one, which is evaluated.
            checkpoint: folder that ``save`` writes to.
            progress: True shows progress on standard error, False nothing; or an object (``models.progress.Progress``).

        The record has ``epoch`` (1), ``tokens_per_second`` and ``seconds``; with ``valid`` also ``valid_loss`` and
        ``valid_perplexity``.
        """
        where = "NgramLanguageModel.fit"
        self._check_text("fit", "train", train, least=1)
        if valid is not None:
            self._check_text("fit", "valid", valid, least=2)
        report = reporter(where, progress)
        if checkpoint is not None:
            make_folder(checkpoint)  # a wrong path fails now, not after the counting
        if self.vocabulary is None:
            self.build(train)
        vocabulary = self._built("fit")
        report.start(1, "counting")
        try:
            ids = self._ids("fit", "train", train, 1, checkpoint)
            begun = time.perf_counter()
            self.ngrams.fit(ids, len(vocabulary))
            seconds = time.perf_counter() - begun
            record: dict[str, Any] = {"epoch": 1, "tokens_per_second": len(ids) / seconds, "seconds": seconds}
            if valid is not None and self.normalized:
                result = self.evaluate(valid)
                record |= {"valid_loss": result["loss"], "valid_perplexity": result["perplexity"]}
            self.history = [record]
            if checkpoint is not None:
                self.save(checkpoint)
                remove_best_of_others(checkpoint)
            figures = f"{self.num_parameters:,} n-grams"
            if "valid_perplexity" in record:
                figures += f", valid {record['valid_perplexity']:.2f}"
            report.update(1, figures)
            report.message(f"{figures}, {record['tokens_per_second']:,.0f} tokens/s")
        finally:
            report.close()
        return self.history

    def _nats(self, ids: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        inputs, _, lengths = cut(ids, batch_size)
        nats = np.zeros(inputs.shape)
        for stream, length in enumerate(lengths):
            first = stream * len(inputs)
            nats[:length, stream] = -self.ngrams.log_probs(ids[first : first + length + 1])
        yield nats, np.arange(len(inputs))[:, None] < lengths

    def _decoder(self, ids: np.ndarray) -> _Contexts:
        return _Contexts(self.ngrams, ids)

    def _contents(self, training: bool) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
        counts, arrays = self.ngrams.state()
        return {"counts": counts}, {"counts": arrays}

    def _set_contents(self, data: dict[str, Any], archives: dict[str, dict[str, np.ndarray]]) -> None:
        counts, vocabulary = data.get("counts"), self._built("load")
        expected = {name: getattr(self, name) for name in ("order", "smoothing", "k", "alpha")}
        if counts != expected | {"vocab_size": len(vocabulary)}:
            raise ValueError(f"counts must be of {expected} and {len(vocabulary)} symbols, got {counts}")
        self.ngrams = NgramModel.from_state(counts, archives.get("counts", {}))


class _Contexts:
    """A ``StepDecoder`` that keeps the last tokens of each row."""

    def __init__(self, ngrams: NgramModel, ids: np.ndarray) -> None:
        self._ngrams = ngrams
        self._read = ids[None, :-1]  # (N, tokens)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        read = np.column_stack([self._read, tokens])
        self._read = read[:, max(read.shape[1] - self._ngrams.order + 1, 0) :]
        contexts = [tuple(row) for row in self._read.tolist()]  # which rows share
        log_p = {context: np.log(self._ngrams.distribution(context)) for context in set(contexts)}
        return np.array([log_p[context] for context in contexts])

    def select(self, rows: np.ndarray) -> None:
        self._read = self._read[rows]
