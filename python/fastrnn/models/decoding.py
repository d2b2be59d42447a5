"""Writing text token by token: drawing from the probabilities of the next one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..checks import check_probability, check_real, check_size


class Decoder(Protocol):
    """Rows of text that grow by one token a step."""

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Each row has read its token of (N,): logits (N, V) of the next ones, free to be changed."""

    def select(self, rows: np.ndarray) -> None:
        """Keep these rows, in this order; a row may be taken several times."""


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
        """``logits`` (V,); a token of logit -inf is never drawn."""
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
        order = np.argsort(-weights, kind="stable")[: self.top_k]
        kept = weights[order]
        if self.top_p is not None:
            cumulative = np.cumsum(kept / kept.sum())
            kept = kept[: int(np.searchsorted(cumulative, self.top_p)) + 1]
        return int(order[_draw(kept, rng)])


def _draw(weights: np.ndarray, rng: np.random.Generator) -> int:
    """An index with probability proportional to its weight; one of weight 0 is never drawn."""
    edges = np.cumsum(weights)
    # side="right" skips empty intervals; the minimum keeps a draw that rounds up to the sum inside.
    place = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
    return min(place, int(np.flatnonzero(weights)[-1]))


def sample(
    where: str, decoder: Decoder, last: int, count: int, sampler: Sampler, rng: np.random.Generator, never: int
) -> Iterator[int]:
    """``count`` tokens after ``last``, none of them ``never``."""
    token = last
    for _ in range(count):
        logits = decoder.step(np.array([token]))[0]
        if np.isnan(logits).any() or logits.max() == np.inf:
            raise FloatingPointError(f"{where}: the model's outputs are not finite; check its weights")
        logits[never] = -np.inf
        token = sampler.draw(logits, rng)
        yield token
