"""What a sequence-to-sequence model answers: texts, how probable they are, and what each token was read from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import check_choice, check_probability, check_real, check_size
from .decoding import Sampler
from .search import Hypothesis, Ranking
from .vocabulary import UNKNOWN, BpeVocabulary, Vocabulary, WordVocabulary

MAX_LENGTH = 1000  # tokens of a line, unless another limit is given
#: Of ``Seq2Seq.translations``, by name.
OPTIONS = (
    "length_penalty", "coverage_penalty", "max_ratio", "unknown", "temperature", "top_k", "top_p", "seed", "batch_size",
    "max_length",
)  # fmt: skip
_UNKNOWN_TOKENS = ("avoid", "keep", "copy")
_WIDEST = 1 << 16  # beam
_EXTRA = 10  # tokens that an output may have beyond its share of the source
_MOST = 1 << 31  # of that share: far from overflow


@dataclass(frozen=True)
class Decoding:
    """How outputs are found; ``Seq2Seq.translations`` explains its options."""

    beam: int
    n_best: int
    ranking: Ranking
    max_ratio: float
    unknown: str
    draw: Callable[[np.ndarray], np.ndarray] | None
    batch_size: int
    max_length: int

    @classmethod
    def checked(
        cls,
        where: str,
        beam: Any,
        n_best: Any,
        attends: bool,
        own_rng: np.random.Generator,
        *,
        length_penalty: Any = 1.0,
        coverage_penalty: Any = 0.0,
        max_ratio: Any = 2.0,
        unknown: Any = "avoid",
        temperature: Any = 0.0,
        top_k: Any = None,
        top_p: Any = None,
        seed: Any = None,
        batch_size: Any = 64,
        max_length: Any = MAX_LENGTH,
    ) -> Decoding:
        """From arguments of a model that ``attends`` to its source; a TypeError or ValueError names the wrong one."""
        beam = check_size(where, "beam", beam, high=_WIDEST)
        if check_size(where, "n_best", n_best) > beam:
            raise ValueError(f"{where}: n_best must be at most beam={beam}, got {n_best}")
        ranking = Ranking(
            check_probability(where, "length_penalty", length_penalty),
            check_real(where, "coverage_penalty", coverage_penalty),
        )
        check_choice(where, "unknown", unknown, _UNKNOWN_TOKENS)
        for name, given in (
            ("coverage_penalty", ranking.coverage_penalty > 0.0),
            ("unknown='copy'", unknown == "copy"),
        ):
            if given and not attends:
                raise ValueError(f"{where}: {name} needs a model with attention, got attention='none'")
        sampler = Sampler.checked(where, temperature, top_k, top_p)
        rng = own_rng if seed is None else np.random.default_rng(check_size(where, "seed", seed, low=0))
        draws = sampler.temperature > 0.0
        if draws and beam > 1:
            raise ValueError(f"{where}: temperature is for beam=1, got {temperature=} and {beam=}")
        for name, value in (("top_k", top_k), ("top_p", top_p), ("seed", seed)):
            if value is not None and not draws:
                raise ValueError(f"{where}: {name} is for drawing, got {name}={value} and temperature=0")
        return cls(
            beam,
            n_best,
            ranking,
            check_real(where, "max_ratio", max_ratio),
            unknown,
            (lambda logits: np.array([sampler.draw(row, rng) for row in logits])) if draws else None,
            check_size(where, "batch_size", batch_size),
            check_size(where, "max_length", max_length),
        )

    @classmethod
    def of_options(
        cls, where: str, beam: Any, n_best: Any, attends: bool, own_rng: np.random.Generator, options: dict[str, Any]
    ) -> Decoding:
        """``checked``, of options that a user gave by name."""
        for name in options:
            if name not in OPTIONS:
                raise TypeError(f"{where}: options must be some of {', '.join(OPTIONS)}, got {name!r}")
        return cls.checked(where, beam, n_best, attends, own_rng, **options)

    def never(self, breaks: np.ndarray) -> np.ndarray:
        """Tokens that are not written, ``breaks`` among them."""
        return np.append(breaks, np.int64(UNKNOWN)) if self.unknown == "avoid" else breaks

    @property
    def copy(self) -> bool:
        return self.unknown == "copy"

    @property
    def reads(self) -> bool:
        """Whether it needs what attention read."""
        return self.copy or self.ranking.coverage_penalty > 0.0

    def limits(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens that outputs may have, of sources of these lengths."""
        return np.minimum(self.max_ratio * lengths, _MOST).astype(np.int64) + _EXTRA


@dataclass(frozen=True)
class Translation:
    """An output of ``Seq2Seq.translations``.

    Attributes:
        text: the line.
        tokens: its tokens as text, without its end; unknown ones as the text shows them.
        source: the tokens that were read, in the order of the line, without its end.
        log_p: log probability of what was written in nats: of the tokens and, unless the output was cut off, its end.
        score: what it was ranked by.
        attention: (len(tokens), len(source) + 1): row t, which sums to 1, says how much token t was read from each
            token of the source and, in the last column, its end; None for a model without attention.
    """

    text: str
    tokens: list[str]
    source: list[str]
    log_p: float
    score: float
    attention: np.ndarray | None


def translation_of(
    hypothesis: Hypothesis, source: Sequence[str], vocabulary: Vocabulary, reverse: bool, copy: bool
) -> Translation:
    """``source``: the tokens of the line; ``reverse``: the model read them from the end; ``copy``: for unknown ones."""
    attention = hypothesis.attention
    if attention is not None and reverse:
        attention = np.concatenate([attention[:, -2::-1], attention[:, -1:]], axis=1)
    ids = hypothesis.tokens.tolist()
    tokens, text = [vocabulary.decode([i]) for i in ids], vocabulary.decode(ids)
    if copy and UNKNOWN in ids and source:
        assert attention is not None
        for place in np.flatnonzero(hypothesis.tokens == UNKNOWN):
            tokens[place] = source[int(attention[place, :-1].argmax())]
        text = (" " if isinstance(vocabulary, WordVocabulary) else "").join(tokens)
    return Translation(text, tokens, list(source), hypothesis.log_p, hypothesis.score, attention)


def tokens_of(vocabulary: Vocabulary, line: str) -> list[str]:
    """A line's tokens as text, without what separates them, unknown ones as they are."""
    return [piece.strip() or piece for piece in vocabulary.pieces(line)]


def compared(vocabulary: Vocabulary, line: str) -> list[str]:
    """What ``metrics`` compare: words, however many blanks are between them, or all of the line, cut into tokens."""
    return tokens_of(vocabulary, line) if isinstance(vocabulary, WordVocabulary) else vocabulary.pieces(line)


def breaks_in(vocabulary: Vocabulary, end: int) -> np.ndarray:
    """Tokens beside the ``end`` that hold a line break, as byte-pair tokens may: an output is one line."""
    if not isinstance(vocabulary, BpeVocabulary):
        return np.empty(0, np.int64)
    return np.array([i for i in range(len(vocabulary)) if i != end and "\n" in vocabulary.decode([i])], np.int64)
