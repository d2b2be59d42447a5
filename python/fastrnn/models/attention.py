"""Attention: what a decoder reads of the encoder's outputs at each step.

Everything is time-major: queries (T, B, Q), memory (S, B, M), contexts (T, B, M). All steps of all rows are a few
batched matrix products; no product is made one step at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import HOST
from .nn import Layer
from .products import add_outer, product

KINDS = ("dot", "general", "additive")
_BLOCK = 1 << 20  # numbers T x S x size of additive attention made at a time


@dataclass
class Memory:
    """The encoder's outputs, made ready for queries: rows first; as ``prepare`` makes them, in memory step by step."""

    values: np.ndarray  # (B, S, M)
    keys: np.ndarray  # (B, S, Q)
    bias: np.ndarray  # (B, 1, S): 0, and -inf past the end of a row

    def __getitem__(self, rows: Any) -> Memory:
        return Memory(self.values[rows], self.keys[rows], self.bias[rows])

    def zeros(self) -> Memory:
        """For its gradients."""
        return Memory(np.zeros_like(self.values), np.zeros_like(self.keys), self.bias)


@dataclass
class Tape:
    queries: np.ndarray  # (B, T, Q)
    weights: np.ndarray  # (B, T, S)


class Attention(Layer):
    """A mean of the memory of each row, weighted by how well each of its steps answers the query::

        weight_ts = softmax over s < length of score(query_t, memory_s)
        context_t = sum_s weight_ts memory_s

        dot:       score(q, m) = q . m                               sizes must be equal
        general:   score(q, m) = q . (W m)
        additive:  score(q, m) = v . tanh(W_q q + W m)

    Parameters: ``weight`` W (Q, M); for "additive", whose inner size is Q, too, also ``weight_query`` (Q, Q) and ``v``
    (Q,). All start as U(-1/sqrt(n), 1/sqrt(n)), n being the size that the sums go over.

    Sources: Bahdanau, Cho, Bengio, "Neural machine translation by jointly learning to align and translate", 2015
    (additive); Luong, Pham, Manning, "Effective approaches to attention-based neural machine translation", 2015.
    """

    def __init__(self, kind: str, query_size: int, memory_size: int, dtype: np.dtype, rng: np.random.Generator) -> None:
        super().__init__(HOST)
        if kind == "dot" and query_size != memory_size:
            raise ValueError(
                f"attention='dot' needs queries and memory of one size, got {query_size} and {memory_size}"
            )
        self.kind = kind

        def add(name: str, *shape: int) -> None:
            bound = 1.0 / math.sqrt(shape[-1])
            self._add(name, rng.uniform(-bound, bound, shape).astype(dtype))

        if kind != "dot":
            add("weight", query_size, memory_size)
        if kind == "additive":
            add("weight_query", query_size, query_size)
            add("v", query_size)

    def prepare(self, memory: np.ndarray, lengths: np.ndarray) -> Memory:
        """Of (S, B, M), whose rows end after ``lengths`` (B,) >= 1 steps and are zero from there."""
        values = memory.swapaxes(0, 1)
        keys = values if self.kind == "dot" else product(memory, self.parameters["weight"].T).swapaxes(0, 1)
        steps = np.arange(values.shape[1])
        bias = np.where(steps < np.asarray(lengths)[:, None], 0.0, -np.inf).astype(values.dtype)
        return Memory(values, keys, bias[:, None, :])

    def read(self, queries: np.ndarray, memory: Memory) -> tuple[np.ndarray, np.ndarray]:
        """Contexts (B, T, M) and weights (B, T, S) of queries (B, T, Q)."""
        weights = self._scores(queries, memory.keys)
        weights += memory.bias
        weights -= weights.max(axis=2, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=2, keepdims=True)
        return weights @ memory.values, weights

    def forward(self, queries: np.ndarray, memory: Memory) -> tuple[np.ndarray, Tape]:
        """Contexts (T, B, M) of queries (T, B, Q)."""
        rows = queries.swapaxes(0, 1)
        contexts, weights = self.read(rows, memory)
        return contexts.swapaxes(0, 1), Tape(rows, weights)

    def backward(self, tape: Tape, dcontexts: np.ndarray, memory: Memory, dmemory: Memory) -> np.ndarray:
        """The gradient of the queries (T, B, Q); those of what ``prepare`` made are added to ``dmemory``."""
        weights, dcontexts = tape.weights, dcontexts.swapaxes(0, 1)
        dweights = dcontexts @ memory.values.swapaxes(1, 2)
        # of softmax: ds = a * (da - sum a * da)
        dscores = weights * (dweights - (weights * dweights).sum(axis=2, keepdims=True))
        dmemory.values += weights.swapaxes(1, 2) @ dcontexts
        dqueries, dkeys = self._scores_backward(tape.queries, memory.keys, dscores)
        dmemory.keys += dkeys
        return dqueries.swapaxes(0, 1)

    def prepare_backward(self, memory: Memory, dmemory: Memory) -> np.ndarray:
        """The gradient of the encoder's outputs (S, B, M), when all steps are through."""
        values, dvalues, dkeys = (each.swapaxes(0, 1) for each in (memory.values, dmemory.values, dmemory.keys))
        if self.kind == "dot":
            return dvalues + dkeys
        add_outer(self.grads["weight"], dkeys, values)
        return dvalues + product(dkeys, self.parameters["weight"])

    def _scores(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        if self.kind != "additive":
            return queries @ keys.swapaxes(1, 2)
        scores = np.empty((*queries.shape[:2], keys.shape[1]), queries.dtype)
        inner = product(queries, self.parameters["weight_query"].T)
        for rows, steps in _blocks(scores.shape, inner.shape[2]):
            scores[rows, steps] = _tanh_of_sums(inner[rows, steps], keys[rows]) @ self.parameters["v"]
        return scores

    def _scores_backward(
        self, queries: np.ndarray, keys: np.ndarray, dscores: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.kind != "additive":
            return dscores @ keys, dscores.swapaxes(1, 2) @ queries
        v, weight = self.parameters["v"], self.parameters["weight_query"]
        inner = product(queries, weight.T)
        dinner, dkeys = np.empty_like(inner), np.zeros_like(keys)
        for rows, steps in _blocks(dscores.shape, inner.shape[2]):
            tanh = _tanh_of_sums(inner[rows, steps], keys[rows])  # made again: kept, it would be the largest array
            d = dscores[rows, steps]
            self.grads["v"] += d.reshape(-1) @ tanh.reshape(-1, len(v))
            # of tanh: 1 - tanh^2
            np.square(tanh, out=tanh)
            np.subtract(1.0, tanh, out=tanh)
            tanh *= d[..., None]
            dinner[rows, steps] = tanh.sum(axis=2) * v
            dkeys[rows] += tanh.sum(axis=1) * v
        add_outer(self.grads["weight_query"], dinner, queries)
        return product(dinner, weight), dkeys


def _tanh_of_sums(inner: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(B, T, S, Q)."""
    sums = inner[:, :, None, :] + keys[:, None, :, :]
    return np.tanh(sums, out=sums)


def _blocks(shape: tuple[int, ...], size: int) -> Iterator[tuple[slice, slice]]:
    """Rows and steps of (B, T, S) that are worked on at a time: whole rows, or some steps of one that is too long."""
    fitting = max(1, _BLOCK // (shape[2] * size))  # steps
    rows, steps = max(1, fitting // max(1, shape[1])), min(fitting, max(1, shape[1]))
    for row in range(0, shape[0], rows):
        for step in range(0, shape[1], steps):
            yield slice(row, row + rows), slice(step, step + steps)
