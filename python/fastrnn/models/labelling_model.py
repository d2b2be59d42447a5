"""What models that label lines or their tokens share: labels, loss and gradients, figures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..checks import check_choice, check_flag, check_size
from .decoding import log_softmax, not_finite
from .encoder_decoder import Encoder, token_places
from .lines import Sentences
from .model import perplexity
from .nn import Dropout, Embedding, Output
from .pairs import Lines, line_error, read_side
from .pairs_model import PairsModel, similar
from .trainable import Part
from .vocabulary import VOCABULARIES, Vocabulary, WordVocabulary

_FIRST = 2  # id of the first label in the vocabulary, after <unk> and <eos>


@dataclass(frozen=True)
class Batch:
    """Lines side by side: ids (S, B), padded to the longest, and numbers of labels (T, B), of each line T or fewer."""

    source: np.ndarray
    source_lengths: np.ndarray
    targets: np.ndarray
    target_lengths: np.ndarray


class LabellingModel(PairsModel):
    """A model that says one of a few labels of each line, or of each of its tokens.

    A kind of model says how many labels a line has (``_counts``, ``_NEED``), and what each is predicted from
    (``_features``, ``_features_backward``).
    """

    _config = (
        "level", "cell", "embedding", "hidden", "layers", "dropout", "bidirectional", "seed", "skip", "min_frequency",
        "vocab_size", "dtype",
    )  # fmt: skip
    _METRICS = ("accuracy",)
    _NEED: ClassVar[str]  # what a line of labels must have, in terms of ``count``

    def __init__(
        self,
        level: str = "word",
        cell: str = "lstm",
        embedding: int = 256,
        hidden: int = 256,
        layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = True,
        seed: int | None = None,
        *,
        skip: bool = False,
        min_frequency: int = 1,
        vocab_size: int = 8192,
        dtype: str = "float32",
    ) -> None:
        super().__init__(seed)
        self.level = check_choice(type(self).__name__, "level", level, VOCABULARIES)
        self.bidirectional = check_flag(type(self).__name__, "bidirectional", bidirectional)
        self._set_sizes(
            cell=cell, embedding=embedding, hidden=hidden, layers=layers, dropout=dropout, skip=skip,
            min_frequency=min_frequency, vocab_size=vocab_size, dtype=dtype,
        )  # fmt: skip

    @abstractmethod
    def _counts(self, source: Sentences) -> np.ndarray:
        """How many labels each line has, int64 (n,)."""

    @abstractmethod
    def _features(self, memory: np.ndarray, lengths: np.ndarray, places: np.ndarray) -> np.ndarray:
        """What the labels at these places of (T B) are predicted from, (N, size), in an encoder's outputs (S, B, size)
        for sources of these lengths (B,)."""

    @abstractmethod
    def _features_backward(
        self, d: np.ndarray, shape: tuple[int, ...], lengths: np.ndarray, places: np.ndarray
    ) -> np.ndarray:
        """The gradient of these outputs, of this shape."""

    # -- weights and labels --------------------------------------------------------------------------------------------

    @property
    def _levels(self) -> dict[str, str]:
        return {"source": self.level, "target": WordVocabulary.level}

    def _make_vocabulary(self, name: str, lines: list[str]) -> Vocabulary:
        if name == "target":
            return WordVocabulary.of_pieces(line + "\n" for line in lines)  # rare labels are labels, too
        return super()._make_vocabulary(name, lines)

    @property
    def labels(self) -> list[str]:
        """All of them, the one that the training lines have most often first."""
        return self._built("labels")["target"].symbols[_FIRST - 1 :]

    def _make_weights(self) -> None:
        rng, dtype = np.random.default_rng(self._seeds["weights"]), np.dtype(self.dtype)
        seed = self._seeds["recurrent"].generate_state(1)[0]
        self._encoder = Encoder(
            Embedding(len(self.vocabularies["source"]), self.embedding, dtype, rng),
            self._make_stack(self.embedding, seed, self.bidirectional),
            None,
            self.dropout,
        )
        size = 2 * self.hidden if self.bidirectional else self.hidden
        self._output = Output(size, len(self.labels), dtype, rng)
        self._dropout = Dropout(self.dropout)

    def _parts(self) -> dict[str, Part]:
        self._built("parameters")
        return {"embedding": self._encoder.embed, "encoder": self._encoder.stack, "output": self._output}

    # -- pairs as ids --------------------------------------------------------------------------------------------------

    def _ids(
        self, where: str, name: str, pairs: Any, lines: tuple[Any, Any], max_length: int
    ) -> tuple[Sentences, Sentences]:
        source = self._sentences(where, f"{name}[0]", "source", pairs[0], lines[0], max_length)
        target = Sentences.of(self._label_numbers(where, f"{name}[1]", pairs[1], lines[1], self._counts(source)))
        if not len(target.ids):
            raise ValueError(f"{where}: {name}[1] must have at least one label, got none")
        return source, target

    def _label_numbers(
        self, where: str, name: str, given: Any, lines: list[str], counts: np.ndarray
    ) -> Iterator[np.ndarray]:
        vocabulary = self.vocabularies["target"]
        for number, (line, count) in enumerate(zip(lines, counts.tolist(), strict=True), 1):
            ids, words = vocabulary.encode(line), line.split()
            if len(ids) != count:
                need = self._NEED.format(count=count)
                raise line_error(where, name, given, number, f"must have {need}, got {len(ids)}")
            if ids.min(initial=_FIRST) < _FIRST:
                label = words[int((ids < _FIRST).argmax())]
                raise line_error(
                    where, name, given, number,
                    f"has the label {label!r}, which is none of the {len(self.labels)} that the model was built with",
                )  # fmt: skip
            yield ids - np.int32(_FIRST)

    def _batch(self, source: Sentences, target: Sentences, rows: np.ndarray) -> Batch:
        return Batch(*source.batch(rows), *target.batch(rows))

    # -- computation ---------------------------------------------------------------------------------------------------

    def loss_and_grads(
        self,
        batch: Batch,
        rng: np.random.Generator | None = None,
        *,
        label_smoothing: float = 0.0,
        sampling: float = 0.0,
        accumulate: bool = True,
    ) -> float:
        self._built("loss_and_grads")
        self._check_drawing(rng, dropout=self.dropout)
        if not accumulate:
            self._zero_grads_before(self._output)
        lengths = batch.source_lengths
        memory, _, tape = self._encoder.forward(batch.source, lengths, rng)
        places, targets = _labels_in(batch)
        features, mask = self._dropout.forward(self._features(memory, lengths, places), rng)
        count = max(len(targets), 1)  # none in a batch of lines without tokens
        nats, d = self._output.loss(features, targets, 1.0 / count, accumulate, smoothing=label_smoothing)
        d = Dropout.backward(mask, d)
        self._encoder.backward(tape, self._features_backward(d, memory.shape, lengths, places), None)
        return float(nats.sum(dtype=np.float64) / count)

    def _features_of(self, source: np.ndarray, lengths: np.ndarray, places: np.ndarray) -> np.ndarray:
        return self._features(self._encoder(source, lengths)[0], lengths, places)

    def _nats(self, batch: Batch) -> np.ndarray:
        places, targets = _labels_in(batch)
        features, rows = self._features_of(batch.source, batch.source_lengths, places), len(batch.source_lengths)
        return np.bincount(places % rows, self._output.nats(features, targets), rows)

    def _figures(
        self,
        pairs: tuple[Any, Any],
        ids: tuple[Any, Sentences],
        names: Sequence[str],
        batch_size: int,
        beam: int = 1,
        max_tokens: int | None = None,
    ) -> dict[str, float]:
        """Loss and perplexity and, whatever is asked for, accuracy: all from one pass."""
        source, target = ids
        nats = right = 0.0
        for rows in similar(source.lengths, batch_size, max_tokens):
            batch = self._batch(source, target, rows)
            places, targets = _labels_in(batch)
            features = self._features_of(batch.source, batch.source_lengths, places)
            log_p = log_softmax(self._output.logits(features))
            nats -= float(log_p[np.arange(len(targets)), targets].sum())
            right += int(np.count_nonzero(log_p.argmax(axis=1) == targets))
        loss = nats / len(target.ids)
        return {"loss": loss, "perplexity": perplexity(loss), "accuracy": right / len(target.ids)}

    # -- use -----------------------------------------------------------------------------------------------------------

    def _logits(
        self, call: str, lines: Lines, batch_size: int, max_length: int
    ) -> tuple[int, Iterator[tuple[np.ndarray, np.ndarray]]]:
        """How many lines there are and, batch by batch, the line of each label (N,), in the order of its tokens, and
        logits (N, labels)."""
        self._built(call)
        where = f"{type(self).__name__}.{call}"
        batch_size = check_size(where, "batch_size", batch_size)
        read = read_side(where, "lines", lines)
        source = self._sentences(where, "lines", "source", lines, read, check_size(where, "max_length", max_length))
        counts = self._counts(source)

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for rows in similar(source.lengths, batch_size):
                places = token_places(int(counts[rows].max()), counts[rows])
                features = self._features_of(*source.batch(rows), places)
                logits = self._output.logits(features)
                if not np.isfinite(logits).all():
                    raise not_finite(where)
                yield rows[places % len(rows)], logits

        return len(read), batches()


def _labels_in(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Their places in (T B), and the labels there."""
    places = token_places(len(batch.targets), batch.target_lengths)
    return places, batch.targets.ravel()[places]
