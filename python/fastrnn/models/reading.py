"""How a decoder reads the encoder's outputs: attention, and the layer that joins what it found to the decoder's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays import HOST
from .attention import Attention, Memory
from .nn import Layer
from .products import add_outer, product


class Combine(Layer):
    """What attention read joins the output of the decoder's layers::

        a = tanh(W [context; y] + b)

    Each half of W has a product of its own, so that contexts and outputs may stay where they were made. Contexts
    (T, B, M) and their gradients are in memory row by row, as attention has them. What stands past the end of a row is
    computed, too: batches have rows of similar lengths, and to pick the tokens out first took longer.

    W (H, M + H), b (H,), each U(-1/sqrt(M + H), 1/sqrt(M + H)) at first.
    """

    def __init__(self, memory_size: int, hidden: int, dtype: np.dtype, rng: np.random.Generator) -> None:
        super().__init__(HOST)
        self._memory_size = memory_size
        bound = 1.0 / math.sqrt(memory_size + hidden)
        for name, shape in (("weight", (hidden, memory_size + hidden)), ("bias", (hidden,))):
            self._add(name, rng.uniform(-bound, bound, shape).astype(dtype))

    def _halves(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return matrix[:, : self._memory_size], matrix[:, self._memory_size :]

    def forward(self, contexts: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """a (T, B, H), of outputs y (T, B, H)."""
        of_contexts, of_outputs = self._halves(self.parameters["weight"])
        a = product(outputs, of_outputs.T)
        a += product(contexts.swapaxes(0, 1), of_contexts.T).swapaxes(0, 1)
        a += self.parameters["bias"]
        return np.tanh(a, out=a)

    def backward(
        self, contexts: np.ndarray, outputs: np.ndarray, a: np.ndarray, da: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The gradients of contexts and outputs."""
        # of tanh: 1 - tanh^2
        dsums = da * (1.0 - a * a)
        by_row = np.ascontiguousarray(dsums.swapaxes(0, 1))
        (of_contexts, of_outputs), grads = self._halves(self.parameters["weight"]), self._halves(self.grads["weight"])
        add_outer(grads[0], by_row, contexts.swapaxes(0, 1))
        add_outer(grads[1], dsums, outputs)
        self.grads["bias"] += dsums.sum(axis=(0, 1))
        return product(by_row, of_contexts).swapaxes(0, 1), product(dsums, of_outputs)


class Reader:
    """Attention, and ``Combine`` for what it finds."""

    def __init__(self, attend: Attention, combine: Combine) -> None:
        self.attend, self.combine = attend, combine

    def prepare(self, memory: np.ndarray, lengths: np.ndarray) -> Reading:
        """Of the encoder's outputs (S, B, M): rows end after ``lengths`` (B,) >= 1 steps and are zero from there."""
        return Reading(self, self.attend.prepare(memory, lengths))


class Reading:
    """One memory, as all steps of a decoder read it."""

    def __init__(self, reader: Reader, memory: Memory) -> None:
        self._reader, self._memory = reader, memory

    def __len__(self) -> int:
        return len(self._memory.values)

    def __getitem__(self, rows: Any) -> Reading:
        return Reading(self._reader, self._memory[rows])

    def forward(self, y: np.ndarray) -> tuple[np.ndarray, Any]:
        """a (T, B, H), of outputs y (T, B, H), and what ``Gradient.through`` needs."""
        contexts, read = self._reader.attend.forward(y, self._memory)
        a = self._reader.combine.forward(contexts, y)
        return a, (read, contexts, y, a)

    def step(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """a (N, H), of outputs y (N, H) at one step, and the weights (N, S).

        Rows that read the same are next to each other, equally many for each.
        """
        rows, sentences = len(y), len(self)
        queries = y.reshape(sentences, rows // max(sentences, 1), y.shape[1])
        contexts, weights = self._reader.attend.read(queries, self._memory)
        a = self._reader.combine.forward(contexts.reshape(1, rows, contexts.shape[2]), y[None])
        return a[0], weights.reshape(rows, weights.shape[2])

    def gradient(self) -> Gradient:
        """Zero, at first."""
        return Gradient(self._reader, self._memory)


class Gradient:
    """Of one memory, while the steps that have read it are differentiated."""

    def __init__(self, reader: Reader, memory: Memory) -> None:
        self._reader, self._memory, self._sums = reader, memory, memory.zeros()

    def through(self, tape: Any, da: np.ndarray) -> np.ndarray:
        """The gradient of the outputs that ``Reading.forward`` was given."""
        read, contexts, y, a = tape
        dcontexts, dy = self._reader.combine.backward(contexts, y, a, da)
        dy += self._reader.attend.backward(read, dcontexts, self._memory, self._sums)
        return dy

    def of_outputs(self) -> np.ndarray:
        """That of the encoder's outputs, when all steps are through."""
        return self._reader.attend.prepare_backward(self._memory, self._sums)
