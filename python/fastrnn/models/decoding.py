"""Writing text token by token: drawing each from the probabilities of the next one, or searching for the best text."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..checks import check_probability, check_real, check_size
from .vocabulary import REPLACEMENT, Vocabulary


class StepDecoder(Protocol):
    """Rows of text that grow by one token a step."""

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Each row has read its token of (N,): logits (N, V) of the next ones, free to be changed."""

    def select(self, rows: np.ndarray) -> None:
        """Keep these rows, in this order; a row may be taken several times."""


class RepetitionPenalty:
    """A ``StepDecoder`` that makes the tokens of prompt and continuation less probable, for a ``penalty`` above 1.

    Their logits are divided by it where positive and multiplied by it where negative (Keskar et al., "CTRL: a
    conditional transformer language model for controllable generation", 2019).
    """

    def __init__(self, decoder: StepDecoder, penalty: float, prompt: np.ndarray, symbols: int) -> None:
        self._decoder, self._penalty = decoder, penalty
        self._seen = np.zeros((1, symbols), bool)
        self._seen[0, prompt] = True
        self._begun = False

    def step(self, tokens: np.ndarray) -> np.ndarray:
        logits = self._decoder.step(tokens).astype(np.float64)
        if self._begun:  # the first token is the prompt's last, or in the place of an empty prompt
            self._seen[np.arange(len(tokens)), tokens] = True
        self._begun = True
        seen = logits[self._seen]
        with np.errstate(over="ignore"):
            logits[self._seen] = np.where(seen > 0, seen / self._penalty, seen * self._penalty)
        return logits

    def select(self, rows: np.ndarray) -> None:
        self._decoder.select(rows)
        self._seen = self._seen[rows]


# -- from tokens to text -----------------------------------------------------------------------------------------------


def check_stops(where: str, stop: Any) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, (tuple, list)) or not all(isinstance(text, str) for text in stops):
        raise TypeError(f"{where}: stop must be a str or a list of them, got {stop!r}")
    if "" in stops:
        raise ValueError(f"{where}: stop must not be empty, got {stop!r}")
    return tuple(stops)


class Writer:
    """The text of new tokens, as soon as later ones can no longer change it, up to the first stop string.

    What stands between ``last``, the token before them, and the first of them, such as a space, is part of the text,
    unless a blank is there already (``spaced``). The stop string that ends first counts, and the longest of those that
    end at the same place: the text does not depend on how it is cut into tokens.
    """

    def __init__(self, vocabulary: Vocabulary, last: int, stops: tuple[str, ...], spaced: bool) -> None:
        self._vocabulary, self._stops = vocabulary, stops
        self._longest = max(map(len, stops), default=1) - 1  # of the beginnings of stop strings
        self._start_after([last], " " if spaced else "")
        self._held = ""  # perhaps the beginning of a stop string
        self.stopped = False

    def _start_after(self, ids: list[int], blank: str = "") -> None:
        self._ids, self._blank = ids, blank
        self._known = len(self._vocabulary.decode(ids))

    def _new(self, text: str) -> str:
        return text[self._known :].removeprefix(self._blank)

    def add(self, token: int) -> str:
        """One more token: the text that is certain now."""
        self._ids = [*self._ids, token]  # a new list: copies of a writer share it
        text = self._vocabulary.decode(self._ids)
        if text.endswith(REPLACEMENT):
            return ""  # perhaps the first bytes of a character
        piece = self._new(text)
        self._start_after([token])
        return self._released(piece)

    def end(self) -> str:
        """No more tokens: the rest of the text."""
        piece = self._released(self._new(self._vocabulary.decode(self._ids)))
        return piece if self.stopped else piece + self._held

    def _released(self, piece: str) -> str:
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        for size in range(min(len(text), self._longest), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                self._held = text[-size:]
                return text[:-size]
        self._held = ""
        return text


def write(tokens: Iterable[int], writer: Writer) -> Iterator[str]:
    """The pieces of their text; takes no more tokens than it needs."""
    for token in tokens:
        if piece := writer.add(token):
            yield piece
        if writer.stopped:
            return
    if piece := writer.end():
        yield piece


# -- drawing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampler:
    """Draws a token from softmax(logits / temperature), cut to its most probable part.

    ``temperature`` 0 takes the most probable token. ``top_k`` keeps the k most probable tokens; ``top_p`` keeps the
    most probable ones until their sum reaches p (Holtzman et al., "The curious case of neural text degeneration",
    2020). With both, ``top_k`` acts first.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    @classmethod
    def checked(cls, where: str, temperature: Any, top_k: Any, top_p: Any) -> Sampler:
        if top_p is not None and check_probability(where, "top_p", top_p) == 0.0:
            raise ValueError(f"{where}: top_p must be above 0 and at most 1, got {top_p}")
        return cls(
            check_real(where, "temperature", temperature),
            None if top_k is None else check_size(where, "top_k", top_k),
            None if top_p is None else float(top_p),
        )

    def draw(self, logits: np.ndarray, rng: np.random.Generator) -> int:
        """``logits`` (V,), some finite; a token of logit -inf is never drawn."""
        if self.temperature == 0.0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64)
        # The largest becomes 0 before the division: a temperature near 0 then tends to the most probable token, never
        # to inf - inf.
        scaled -= scaled.max()
        with np.errstate(over="ignore"):
            scaled /= self.temperature
        weights = np.exp(scaled)
        if self.top_k is None and self.top_p is None:
            return _draw(weights, rng)
        part = weights if self.top_k is None else np.partition(weights, -min(self.top_k, len(weights)))[-self.top_k :]
        ranked = -np.sort(-part)
        if self.top_p is not None:
            cumulative = np.cumsum(ranked / ranked.sum())
            ranked = ranked[: int(np.searchsorted(cumulative, self.top_p)) + 1]
        rank = _draw(ranked, rng)
        # Its token; equal ones rank by their places. Sorting weights is many times as fast as sorting tokens by them.
        equal = np.flatnonzero(weights == ranked[rank])
        return int(equal[rank - np.count_nonzero(ranked > ranked[rank])])


def _draw(weights: np.ndarray, rng: np.random.Generator) -> int:
    """An index with probability proportional to its weight; one of weight 0 is never drawn. The largest weight is 1."""
    edges = np.cumsum(weights)
    # random() is at most 1 - 2**-53: the product never rounds up to the sum. side="right" skips empty intervals.
    return int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The places of the ``count`` largest values, largest first; of equal ones the first."""
    if count < len(values):
        bound = np.partition(values, -count)[-count]
        above = np.flatnonzero(values > bound)
        places = np.concatenate([above, np.flatnonzero(values == bound)[: count - len(above)]])
    else:
        places = np.arange(len(values))
    return places[np.argsort(-values[places], kind="stable")]


def checked_step(where: str, decoder: StepDecoder, tokens: np.ndarray) -> np.ndarray:
    logits = decoder.step(tokens)
    if not np.isfinite(logits.max(axis=1)).all():  # NaN is the maximum of its row
        raise not_finite(where)
    return logits


def not_finite(where: str) -> FloatingPointError:
    return FloatingPointError(f"{where}: the model's outputs are not finite; check its weights")


def sample(
    where: str, decoder: StepDecoder, last: int, count: int, sampler: Sampler, rng: np.random.Generator, never: int
) -> Iterator[int]:
    """``count`` tokens after ``last``, none of them ``never``."""
    token = last
    for _ in range(count):
        logits = checked_step(where, decoder, np.array([token]))[0]
        logits[never] = -np.inf
        token = sampler.draw(logits, rng)
        yield token


# -- searching ---------------------------------------------------------------------------------------------------------


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of each row of (N, V), in float64."""
    scores = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf: NaN is for the caller to find
        scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return scores


def beam_search(
    where: str,
    decoder: StepDecoder,
    last: int,
    count: int,
    beam_size: int,
    length_penalty: float,
    writer: Writer,
    never: int,
) -> str:
    """The best text of ``count`` tokens after ``last``, or fewer up to a stop string, none of them ``never``.

    At each length the ``beam_size`` continuations of highest log p stay, of equal ones that of the better text and the
    lower token. Those with a stop string are finished. The best of the finished texts, and of those of ``count``
    tokens, has the highest log p / length ** length_penalty, where the length counts the tokens of the stop string;
    with ``length_penalty`` from 0 to 1.
    """
    best, best_score = "", -math.inf
    log_p, tokens, texts, writers = np.zeros(1), np.array([last]), [""], [writer]
    for length in range(1, count + 1):
        scores = log_p[:, None] + log_softmax(checked_step(where, decoder, tokens))
        symbols = scores.shape[1]
        scores[:, never] = -np.inf
        flat = scores.ravel()
        places = _largest(flat, beam_size)
        places = places[flat[places] > -np.inf]
        log_p = flat[places]
        rows, tokens = np.divmod(places, symbols)
        writers = [copy.copy(writers[row]) for row in rows]
        pieces = [writer.add(int(token)) for writer, token in zip(writers, tokens, strict=True)]
        texts = [texts[row] + piece for row, piece in zip(rows, pieces, strict=True)]
        live = []
        for beam, writer in enumerate(writers):
            if not writer.stopped and length < count:
                live.append(beam)
            elif (score := log_p[beam] / length**length_penalty) > best_score:
                best, best_score = texts[beam] + ("" if writer.stopped else writer.end()), score
        # A log p only falls: what the first of the others can reach at best.
        if not live or best_score >= log_p[live[0]] / count**length_penalty:
            break
        log_p, tokens = log_p[live], tokens[live]
        texts, writers = [texts[beam] for beam in live], [writers[beam] for beam in live]
        decoder.select(rows[live])
    return best
