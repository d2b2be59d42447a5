"""Finding outputs of a decoder for many inputs at once: greedily, by beam search, or by drawing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .decoding import checked_step, log_softmax, not_finite


class Rows(Protocol):
    """A ``decoding.StepDecoder`` for the rows of many sentences, which tells what attention read."""

    weights: np.ndarray | None  # (N, S)

    def step(self, tokens: np.ndarray) -> np.ndarray: ...
    def select(self, rows: np.ndarray) -> None: ...
    def best(self, tokens: np.ndarray, count: int, never: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A step, too: the ``count`` most probable tokens after these, or all if there are fewer, best first, of equal
        ones the lower, and their log p, float64: (N, count). None of ``never``, int32: where too few are left, the rest
        has a log p of -inf."""


@dataclass(frozen=True)
class Hypothesis:
    """An output: ``tokens`` without the end, the ``log_p`` of what was written (the end, too, unless it was cut off) in
    nats, the ``score`` that ranks it, and the ``attention`` (tokens, S) that was paid when each was chosen, if any."""

    tokens: np.ndarray
    log_p: float
    score: float
    attention: np.ndarray | None


@dataclass(frozen=True)
class Ranking:
    """What makes an output better than another::

        score = log p / length^length_penalty + coverage_penalty * sum_s log min(sum_t attention_ts, 1)

    The length counts the end. A penalty of 0 leaves the log p as it is; with a ``length_penalty`` of 1 it is the mean
    of the tokens' log p. The second term is 0 where every token of the input was paid attention to.

    Source (coverage): Wu et al., "Google's neural machine translation system", 2016.
    """

    length_penalty: float = 1.0
    coverage_penalty: float = 0.0

    def score(self, log_p: float, length: int, attention: np.ndarray | None) -> float:
        score = log_p / length**self.length_penalty
        if self.coverage_penalty and attention is not None:
            paid = attention.sum(axis=0, dtype=np.float64)
            score += self.coverage_penalty * float(np.log(np.clip(paid, 1e-30, 1.0)).sum())
        return score

    def bound(self, log_p: float, limit: int) -> float:
        """What an unfinished output can reach at best: its log p only falls, and the other term is at most 0."""
        return log_p / limit**self.length_penalty


class _Search:
    """The outputs of all sentences, as they grow.

    Every sentence that is not done has the same number of rows, next to each other: at first one, then ``beam``.
    """

    def __init__(
        self, limits: np.ndarray, lengths: np.ndarray, beam: int, n_best: int, ranking: Ranking, end: int
    ) -> None:
        self._limits, self._lengths, self._end = limits, lengths, end
        self._beam, self._n_best, self._ranking = beam, n_best, ranking
        self.finished: list[list[Hypothesis]] = [[] for _ in limits]
        self.live = np.flatnonzero(limits > 0)  # numbers of sentences
        self.log_p = np.zeros((len(self.live), 1))
        self.tokens = np.full(len(self.live), end, np.int32)  # the last of each row
        self._written: list[np.ndarray] = []  # the tokens after each step but the last, (N,)
        self._parents: list[np.ndarray] = []  # the rows of the step before from which theirs went on
        self._attention: list[np.ndarray] = []  # (N, S) of each step

    def note(self, weights: np.ndarray | None) -> None:
        """What attention read at the step that comes before ``extend``."""
        if weights is not None:
            self._attention.append(weights)

    def extend(self, rows: np.ndarray, tokens: np.ndarray, log_p: np.ndarray) -> np.ndarray:
        """Candidates (B, C) of each sentence, best first: the row that they go on from, their token, their log p.

        Returns the rows that the next step begins with.
        """
        length = len(self._written) + 1
        next_rows: list[int] = []
        next_tokens: list[int] = []
        next_p: list[list[float]] = []
        still: list[int] = []
        candidates = zip(rows.tolist(), tokens.tolist(), log_p.tolist(), strict=True)  # much faster to go through
        for number, (own_rows, own_tokens, own_p) in zip(self.live.tolist(), candidates, strict=True):
            last_step = length == self._limits[number]
            open_ranks: list[int] = []
            for rank, (row, token, p) in enumerate(zip(own_rows, own_tokens, own_p, strict=True)):
                if p == -np.inf or len(open_ranks) == self._beam:
                    break
                if token != self._end:
                    open_ranks.append(rank)
                if last_step or (token == self._end and rank < self._beam):
                    self._finish(number, row, token, p)
            if last_step or not open_ranks or self._is_done(number, own_p[open_ranks[0]]):
                continue
            # Where there are too few, the last one once more, out of the running.
            missing = self._beam - len(open_ranks)
            still.append(number)
            for rank in open_ranks + open_ranks[-1:] * missing:
                next_rows.append(own_rows[rank])
                next_tokens.append(own_tokens[rank])
            next_p.append([own_p[rank] for rank in open_ranks] + [-np.inf] * missing)
        kept = np.array(next_rows, np.int64)
        self.tokens = np.array(next_tokens, np.int32)
        self._written.append(self.tokens)
        self._parents.append(kept)
        self.live, self.log_p = np.array(still, np.int64), np.array(next_p).reshape(len(still), self._beam)
        return kept

    def _finish(self, number: int, row: int, token: int, log_p: float) -> None:
        length = len(self._written) + 1
        path, tokens = [row], [token]  # from the end on
        for parents, written in zip(reversed(self._parents), reversed(self._written), strict=True):
            tokens.append(written[path[-1]])
            path.append(parents[path[-1]])
        ids = np.array(tokens[:0:-1] if token == self._end else tokens[::-1], np.int32)
        attention = None
        if self._attention:
            read = zip(self._attention, reversed(path), strict=True)
            attention = np.stack([weights[place] for weights, place in read])[: len(ids), : self._lengths[number]]
        score = self._ranking.score(log_p, length, attention)
        self.finished[number].append(Hypothesis(ids, log_p, score, attention))

    def _is_done(self, number: int, best_open: float) -> bool:
        finished = self.finished[number]
        if len(finished) >= self._beam:
            return True
        if len(finished) < self._n_best:
            return False
        worst = sorted(hypothesis.score for hypothesis in finished)[-self._n_best]
        return worst >= self._ranking.bound(best_open, self._limits[number])


def search(
    where: str,
    decoder: Rows,
    end: int,
    limits: np.ndarray,
    lengths: np.ndarray,
    *,
    beam: int = 1,
    n_best: int = 1,
    ranking: Ranking | None = None,
    never: np.ndarray | None = None,
    draw: Callable[[np.ndarray], np.ndarray] | None = None,
    attention: bool = True,
) -> list[list[Hypothesis]]:
    """The ``n_best`` <= ``beam`` outputs of each sentence, best first.

    Rows begin after the token ``end``, which also ends them. One of ``limits`` (B,) tokens without it is cut off there.
    Attention reads inputs of ``lengths`` (B,).
    At each length the ``beam`` open outputs of highest log p stay, and those that end are finished if they are among
    the ``beam`` best. A sentence is done when ``beam`` outputs have ended, or when none that is open can come among
    the best. Tokens of ``never`` are not written.

    Without ``attention`` what it read is not kept, and coverage counts for nothing. ``draw`` gives a token for each row
    of logits (N, V), in the place of a search (``beam`` 1).
    """
    state = _Search(limits, lengths, beam, n_best, Ranking() if ranking is None else ranking, end)
    never = np.empty(0, np.int32) if never is None else never.astype(np.int32)
    count = 1 if beam == 1 else 2 * beam
    if len(state.live) < len(limits):
        decoder.select(state.live)
    while len(state.live):
        if draw is None:
            tokens, log_p = decoder.best(state.tokens, count, never)
            if not (log_p[:, 0] > -np.inf).all():  # all -inf or NaN: the end, at least, may always be chosen
                raise not_finite(where)
        else:
            tokens, log_p = _drawn(checked_step(where, decoder, state.tokens), never, draw)
        state.note(decoder.weights if attention else None)
        kept = state.extend(*_best(tokens, log_p, state.log_p, count))
        if not np.array_equal(kept, np.arange(len(tokens))):
            decoder.select(kept)
    return [sorted(found, key=lambda each: -each.score)[:n_best] for found in state.finished]


def _drawn(
    logits: np.ndarray, never: np.ndarray, draw: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A token for each row and its log p, (N, 1) each."""
    log_p = log_softmax(logits)  # what is written has the probability that the model gives it, whatever is not
    logits[:, never] = -np.inf
    tokens = draw(logits)[:, None]
    return tokens, np.take_along_axis(log_p, tokens, axis=1)


def _best(tokens: np.ndarray, log_p: np.ndarray, before: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
    """Rows, tokens and log p of the ``count`` best continuations of each sentence, (B, count), best first.

    Of the best tokens (B k, C) of each row and their log p, after outputs of log p ``before`` (B, k); equal ones are in
    the order of their rows.
    """
    sentences, width = before.shape
    rows = np.broadcast_to(np.arange(len(tokens))[:, None], tokens.shape)
    scores = before.reshape(-1, 1) + log_p
    rows, tokens, scores = (array.reshape(sentences, width * array.shape[1]) for array in (rows, tokens, scores))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return tuple(np.take_along_axis(array, order, axis=1) for array in (rows, tokens, scores))
