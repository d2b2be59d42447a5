"""What models that learn from pairs share: vocabularies, training on batches of similar length, figures."""

from __future__ import annotations

import itertools
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ..checks import check_choice, check_flag, check_probability, check_size
from . import metrics as measures
from .buckets import Examples, bounds_of
from .decoding import not_finite
from .lines import Sentences
from .model import perplexity
from .nn import Embedding, Output
from .pairs import Lines, line_error, read_pairs
from .run import Settings
from .schedules import Options
from .stack import CELLS, make_stack
from .trainable import Trainable
from .translation import MAX_LENGTH, compared
from .vocabulary import UNKNOWN, VOCABULARIES, BpeVocabulary, CharVocabulary, Vocabulary

Pairs = tuple[Any, Lines]  # sources as a kind of model takes them, mostly lines, and target lines


class _Data(Examples):
    """What a run learns from, and how."""

    def step(
        self, model: PairsModel, epoch: int, position: int, state: Any, rng: np.random.Generator, done: float
    ) -> tuple[float, int, None]:
        loss = model.loss_and_grads(
            self.batch(epoch, position),
            rng,
            label_smoothing=self.options["label_smoothing"],
            sampling=self.options["sampling"] * min(done, 1.0),
            accumulate=False,
        )
        return loss, self.count(epoch, position), None


class PairsModel(Trainable):
    """A model that learns targets from sources, line by line.

    A kind of model says at which levels it reads lines (``_levels``), makes its weights (``_make_weights``), puts pairs
    side by side (``_batch``), computes (``loss_and_grads``, ``_nats``) and answers (``_answers``, for ``_METRICS``).
    Sources that are no lines, and targets that are more than lines, it reads itself (``_read``, ``_ids``).
    """

    _VOCABULARIES: ClassVar[tuple[str, ...]] = ("source", "target")
    _METRICS: ClassVar[tuple[str, ...]] = tuple(measures.METRICS)
    _SAMPLES: ClassVar[bool] = False  # whether it writes: inputs can be its own tokens, outputs be searched for

    cell: str
    embedding: int
    hidden: int
    layers: int
    dropout: float
    skip: bool
    dtype: str
    min_frequency: int
    vocab_size: int

    def __init__(self, seed: int | None) -> None:
        super().__init__(seed)
        self.vocabularies: dict[str, Vocabulary] = {}
        self._ends: dict[str, int] = {}  # the ids of a line's end

    @property
    @abstractmethod
    def _levels(self) -> dict[str, str]:
        """What a token is, of each of ``_VOCABULARIES``."""

    @abstractmethod
    def _make_weights(self) -> None:
        """Those that depend on the vocabularies, which are there."""

    @abstractmethod
    def _batch(self, source: Any, target: Sentences, rows: np.ndarray) -> Any:
        """Pairs side by side."""

    @abstractmethod
    def loss_and_grads(
        self,
        batch: Any,
        rng: np.random.Generator | None = None,
        *,
        label_smoothing: float = 0.0,
        sampling: float = 0.0,
        accumulate: bool = True,
    ) -> float:
        """Mean cross-entropy of the targets of a batch, in nats, whose gradients are added to ``grads``.

        Without ``accumulate`` they take the place of those of earlier calls. Dropout and sampling are drawn by ``rng``.
        """

    @abstractmethod
    def _nats(self, batch: Any) -> np.ndarray:
        """-log p of each target, (B,) in float64."""

    @abstractmethod
    def _answers(self, sources: Any, beam: int, batch_size: int) -> list[str]:
        """What the model makes of each source."""

    # -- arguments of constructors -------------------------------------------------------------------------------------

    def _set_sizes(
        self, *, cell: Any, embedding: Any, hidden: Any, layers: Any, dropout: Any, skip: Any, min_frequency: Any,
        vocab_size: Any, dtype: Any,
    ) -> None:  # fmt: skip
        """Those that all kinds have; a TypeError or ValueError names the wrong one."""
        where = type(self).__name__
        self.cell = check_choice(where, "cell", cell, CELLS)
        self.embedding = check_size(where, "embedding", embedding)
        self.hidden = check_size(where, "hidden", hidden)
        self.layers = check_size(where, "layers", layers)
        self.dropout = check_probability(where, "dropout", dropout)
        self.skip = check_flag(where, "skip", skip)
        self.min_frequency = check_size(where, "min_frequency", min_frequency)
        self.vocab_size = check_size(where, "vocab_size", vocab_size, low=BpeVocabulary.LEAST)
        self.dtype = check_choice(where, "dtype", dtype, ("float32", "float64"))

    def _make_stack(self, inputs: int, seed: int, bidirectional: bool = False) -> Any:
        return make_stack(
            self.cell, inputs, self.hidden, self.layers, dropout=self.dropout, bidirectional=bidirectional,
            skip=self.skip, dtype=self.dtype, seed=int(seed),
        )  # fmt: skip

    # -- vocabularies --------------------------------------------------------------------------------------------------

    def build(self, pairs: Pairs) -> None:
        """Take the vocabularies of pairs, and make the weights that depend on them; ``fit`` does so by itself."""
        where = f"{type(self).__name__}.build"
        if self.vocabularies:
            raise RuntimeError(f"{where}: the vocabularies are there already; make a new model for other ones")
        self._build_of(self._read(where, "pairs", pairs))

    def _build_of(self, sides: tuple[Any, Any]) -> None:
        vocabularies = {
            name: self._make_vocabulary(name, side)
            for name, side in zip(("source", "target"), sides, strict=True)
            if name in self._VOCABULARIES
        }
        self._set_vocabularies(vocabularies)

    def _make_vocabulary(self, name: str, lines: list[str]) -> Vocabulary:
        """That of one side's lines."""
        pieces: Iterable[str] = (line + "\n" for line in lines)
        level = self._levels[name]
        if level == BpeVocabulary.level:
            return BpeVocabulary.of_pieces(pieces, self.min_frequency, self.vocab_size)
        if level == CharVocabulary.level:  # however few lines there are, their end is a symbol
            pieces = itertools.chain(pieces, ["\n" * self.min_frequency])
        vocabulary = VOCABULARIES[level].of_pieces(pieces, self.min_frequency)
        if len(vocabulary) == 2 and any(map(str.strip, lines)):  # the unknown one and the end of a line
            raise ValueError(
                f"{type(self).__name__}: min_frequency={self.min_frequency} leaves no symbol of the {name} lines: "
                "none is there that often"
            )
        return vocabulary

    def _vocabularies(self) -> dict[str, Vocabulary]:
        return self._built("save")

    def _built(self, call: str) -> dict[str, Vocabulary]:
        if not self.vocabularies:
            raise RuntimeError(
                f"{type(self).__name__}.{call}: the model has no vocabularies yet: call fit (or build) first"
            )
        return self.vocabularies

    def _set_vocabularies(self, vocabularies: dict[str, Vocabulary]) -> None:
        for name, level in self._levels.items():
            if vocabularies[name].level != level:
                raise ValueError(f"the {name} vocabulary must be of level {level!r}, got {vocabularies[name].level!r}")
        self._ends = {name: _end_of(name, vocabulary) for name, vocabulary in vocabularies.items()}
        self.vocabularies = dict(vocabularies)
        try:
            self._make_weights()
        except BaseException:  # too large ones, say
            self.vocabularies = {}
            raise

    # -- pairs as ids --------------------------------------------------------------------------------------------------

    def _read(self, where: str, name: str, pairs: Any) -> tuple[Any, Any]:
        """Both sides, equally many, at least one."""
        return read_pairs(where, name, pairs)

    def _sentences(
        self, where: str, name: str, side: str, given: Any, lines: Sequence[str], max_length: int
    ) -> Sentences:
        """The ids of each line with its end; messages tell of the argument ``name`` or, if ``given`` is a file, of
        that."""
        vocabulary, end = self.vocabularies[side], self._ends[side]

        def ids() -> Iterator[np.ndarray]:
            for number, line in enumerate(lines, 1):
                found = vocabulary.encode(line)
                found[found == end] = UNKNOWN  # a word that is written like the end
                if len(found) > max_length:
                    raise line_error(
                        where, name, given, number, f"has {len(found)} tokens, more than max_length={max_length}"
                    )
                yield np.append(self._in_order(side, found), np.int32(end))

        return Sentences.of(ids())

    def _in_order(self, side: str, ids: np.ndarray) -> np.ndarray:
        """The tokens of a line in the order in which they are read."""
        return ids

    def _ids(self, where: str, name: str, pairs: Any, lines: tuple[Any, Any], max_length: int) -> tuple[Any, Sentences]:
        """Both sides as the model computes with them; a source has ``lengths`` and a ``crc`` as ``Sentences`` have."""
        source, target = (
            self._sentences(where, f"{name}[{i}]", side, pairs[i], lines[i], max_length)
            for i, side in enumerate(("source", "target"))
        )
        return source, target

    # -- computation ---------------------------------------------------------------------------------------------------

    def _zero_grads_before(self, output: Output) -> None:
        """All gradients that ``output`` does not write anew: of embeddings the rows that were written."""
        for part in self._parts().values():
            if isinstance(part, Embedding):
                part.zero_written_rows()  # of a tied one, too: what it keeps of them would grow with each step
            elif part is not output:
                part.zero_grad()

    # -- training ------------------------------------------------------------------------------------------------------

    def fit(
        self,
        train: Pairs,
        valid: Pairs | None = None,
        *,
        epochs: int = 10,
        batch_size: int = 64,
        max_tokens: int | None = None,
        max_length: int = MAX_LENGTH,
        label_smoothing: float = 0.0,
        sampling: float = 0.0,
        metric: str = "loss",
        optimizer: str = "adam",
        lr: float | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        clip: float | None = 1.0,
        schedule: str = "constant",
        warmup: int = 0,
        decay: float | None = None,
        decay_after: int | None = None,
        average: int | str | None = None,
        patience: int | None = None,
        seconds: float | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        sample_every: int | None = None,
        progress: Any = True,
    ) -> list[dict[str, Any]]:
        """Train on pairs of lines; returns one record for each epoch.

        Pairs of similar length are read together, so that little is padded, in another order each epoch.

        Args:
            train: source and target: two lists of lines, or two paths of files (UTF-8) whose lines belong together.
            valid: pairs that are held out, for the figures of each epoch.
            epochs: passes over the pairs.
            batch_size: pairs a step, at most.
            max_tokens: pairs a step times the tokens of the longest line of them, at most; None: any number.
            max_length: tokens of a line; a longer one is an error.
            label_smoothing: share of each target's probability that goes to all symbols alike, in [0, 1).
            sampling: share of the decoder's inputs that are the model's own most probable tokens, in [0, 1], at the end
                of the run; it grows from 0 with the share of the run that is behind (scheduled sampling). Each step
                then writes the batch once before it learns from it. For models that write, ``Seq2Seq`` and
                ``SequenceGenerator``.
            metric: "loss", or one that ``evaluate`` knows: what on ``valid`` tells which epoch was best, for
                ``checkpoint/best``, ``patience``, ``schedule`` and ``average``. Other than "loss" needs ``valid``,
                whose sources are then answered each epoch.
            optimizer, lr, momentum, weight_decay, clip, schedule, warmup, decay, decay_after, average: how each step is
                taken: as in ``LanguageModel.fit``.
            patience, seconds: when to stop: as in ``LanguageModel.fit``.
            checkpoint, resume, progress: as in ``LanguageModel.fit``.
            sample_every: show what the model makes of the first line of ``valid`` (or ``train``), each time after so
                many steps.

        Ctrl-C ends a run after the step with an evaluation and a checkpoint; a second one ends it at once.

        Records: those of ``LanguageModel.fit``; with another ``metric`` than "loss" also ``valid_bleu`` or the like.

        Raises:
            TypeError, ValueError: naming the argument, or the file and its line.
            FloatingPointError, KeyboardInterrupt: as in ``LanguageModel.fit``.

        Sources: Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016 (label smoothing);
        Bengio, Vinyals, Jaitly, Shazeer, "Scheduled sampling for sequence prediction with recurrent neural networks",
        2015.
        """
        where = f"{type(self).__name__}.fit"
        options = Options.checked(
            where, optimizer=optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay, clip=clip,
            schedule=schedule, warmup=warmup, decay=decay, decay_after=decay_after, average=average,
        )  # fmt: skip
        settings = Settings.checked(
            where, epochs=epochs, patience=patience, seconds=seconds, sample_every=sample_every, checkpoint=checkpoint,
            resume=resume, progress=progress,
        )  # fmt: skip
        batch_size = check_size(where, "batch_size", batch_size)
        max_tokens = None if max_tokens is None else check_size(where, "max_tokens", max_tokens)
        max_length = check_size(where, "max_length", max_length)
        if check_probability(where, "label_smoothing", label_smoothing) == 1.0:
            raise ValueError(f"{where}: label_smoothing must be below 1, got {label_smoothing}")
        if check_probability(where, "sampling", sampling) > 0.0 and not self._SAMPLES:
            raise ValueError(f"{where}: sampling is for models that write, got {sampling}")
        check_choice(where, "metric", metric, ("loss", *self._METRICS))
        needing = settings.needs_valid(options) or (f"metric={metric!r}" if metric != "loss" else None)
        if valid is None and needing:
            raise ValueError(f"{where}: {needing} needs valid pairs")
        pairs = self._read(where, "train", train)
        held_out = None if valid is None else self._read(where, "valid", valid)
        built = bool(self.vocabularies)
        if not built:
            self._build_of(pairs)
        try:
            source, target = self._ids(where, "train", train, pairs, max_length)
            ids = None if held_out is None else self._ids(where, "valid", valid, held_out, max_length)
            if held_out is not None and metric in measures.METRICS:  # what fails should fail now, not after an epoch
                try:
                    self._measure(metric, held_out[1], held_out)
                except ValueError as error:
                    raise ValueError(f"{where}: valid has no {metric}: {error}") from None
            self._begin(settings)
        except (ValueError, OSError, RuntimeError):
            if not built:  # those of lines that are wrong are none to go on with
                self.vocabularies = {}
            raise
        taught = np.flatnonzero(target.lengths)  # nothing is learned from a line without a target
        data = _Data(
            lambda rows: self._batch(source, target, taught[rows]),
            np.maximum(source.lengths, target.lengths)[taught],
            target.lengths[taught],
            batch_size=batch_size,
            max_tokens=max_tokens,
            seed=self._seeds["training"],
            fingerprint=_fingerprint(source, target),
            what="train pairs",
            extra_options={
                "label_smoothing": float(label_smoothing),
                "sampling": float(sampling),
                "metric": metric,
                "max_length": max_length,
            }
            | ({"epochs": settings.epochs} if sampling else {}),  # which say when how much is sampled
        )
        evaluate: Callable[[], dict[str, float]] | None = None
        if held_out is not None and ids is not None:
            names = () if metric == "loss" else (metric,)
            evaluate = partial(self._figures, held_out, ids, names, batch_size, max_tokens=max_tokens)
        shown = (pairs if held_out is None else held_out)[0][:1]
        return self._fit(
            settings,
            options,
            data,
            evaluate,
            lambda: f"{shown[0]}\n-> {self._answers(shown, 1, 1)[0]}",
            f"valid_{metric}",
            None if ids is None else _fingerprint(*ids),
        )

    # -- use -----------------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        pairs: Pairs,
        *,
        metrics: Sequence[str] = (),
        beam: int = 1,
        batch_size: int = 64,
        max_length: int = MAX_LENGTH,
    ) -> dict[str, float | int]:
        """How well the model predicts the targets of pairs, given as for ``fit``, and how good its answers are.

        Returns a dict: ``loss`` (nats per token of the targets, their ends included), ``perplexity`` (exp(loss), at
        most 1e304), ``tokens``, and one entry for each of ``metrics``: see ``models.metrics``. Models that write find
        their answers with this ``beam``.

        Raises:
            TypeError, ValueError: naming the argument, or the file and its line. FloatingPointError: the weights hold
                NaN or infinity.
        """
        where = f"{type(self).__name__}.evaluate"
        self._built("evaluate")
        if check_size(where, "beam", beam) > 1 and not self._SAMPLES:
            raise ValueError(f"{where}: beam is for models that write, got {beam}")
        if isinstance(metrics, str) or not isinstance(metrics, Sequence):
            raise TypeError(f"{where}: metrics must be a list of names, got {type(metrics).__name__}")
        for metric in metrics:
            check_choice(where, "metrics", metric, self._METRICS)
        batch_size = check_size(where, "batch_size", batch_size)
        lines = self._read(where, "pairs", pairs)
        ids = self._ids(where, "pairs", pairs, lines, check_size(where, "max_length", max_length))
        figures = self._figures(lines, ids, metrics, batch_size, beam)
        if not math.isfinite(figures["loss"]):
            raise not_finite(where)
        return figures | {"tokens": int(ids[1].lengths.sum())}

    def _figures(
        self,
        pairs: tuple[Any, Any],
        ids: tuple[Any, Sentences],
        names: Sequence[str],
        batch_size: int,
        beam: int = 1,
        max_tokens: int | None = None,
    ) -> dict[str, float]:
        source, target = ids
        loss = float(self._nats_of(source, target, batch_size, max_tokens).sum() / target.lengths.sum())
        figures = {"loss": loss, "perplexity": perplexity(loss)}
        outputs = [""] * len(target)
        for rows in similar(source.lengths, batch_size, max_tokens) if names else ():
            for row, output in zip(rows, self._answers([pairs[0][i] for i in rows], beam, len(rows)), strict=True):
                outputs[row] = output
        return figures | {name: self._measure(name, outputs, pairs) for name in names}

    def _measure(self, metric: str, outputs: Sequence[str], pairs: tuple[Any, Any]) -> float:
        return measures.score(metric, outputs, pairs[1], pairs[0], partial(compared, self.vocabularies["target"]))

    def score(self, pairs: Pairs, *, batch_size: int = 64, max_length: int = MAX_LENGTH) -> np.ndarray:
        """log p of each target given its source, its end included, in nats: float64 (pairs,).

        Arguments and errors are those of ``evaluate``.
        """
        where = f"{type(self).__name__}.score"
        self._built("score")
        batch_size = check_size(where, "batch_size", batch_size)
        lines = self._read(where, "pairs", pairs)
        ids = self._ids(where, "pairs", pairs, lines, check_size(where, "max_length", max_length))
        nats = self._nats_of(*ids, batch_size)
        if not np.isfinite(nats).all():
            raise not_finite(where)
        return -nats

    def _nats_of(self, source: Any, target: Sentences, batch_size: int, max_tokens: int | None = None) -> np.ndarray:
        nats = np.empty(len(target))
        for rows in similar(np.maximum(source.lengths, target.lengths), batch_size, max_tokens):
            nats[rows] = self._nats(self._batch(source, target, rows))
        return nats


def _fingerprint(source: Any, target: Sentences) -> list[int]:
    return [int(target.lengths.sum()), target.crc(), int(source.lengths.sum()), source.crc()]


def _end_of(name: str, vocabulary: Vocabulary) -> int:
    """The id of a line's end."""
    ids = vocabulary.encode("\n")
    if len(ids) != 1 or ids[0] == UNKNOWN:
        raise ValueError(
            f"the {name} vocabulary must have a symbol for the end of a line, got {len(vocabulary)} others"
        )
    return int(ids[0])


def similar(lengths: np.ndarray, batch_size: int, max_tokens: int | None = None) -> Iterator[np.ndarray]:
    """Rows of similar length, at a time no more than ``Buckets`` has in a batch."""
    order = np.argsort(lengths, kind="stable")
    for begin, end in itertools.pairwise(bounds_of(lengths[order], batch_size, max_tokens)):
        yield order[begin:end]
