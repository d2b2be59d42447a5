"""The few layers that the models need around the recurrent ones, each with its own backward.

They keep the conventions of ``fastrnn.LSTM``: ``forward`` returns what ``backward`` needs, parameter gradients are
added to ``grads``, activation gradients are returned. Names and initial values follow torch's word language model
example: embedding and output weights U(-0.1, 0.1), bias zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core

_INIT_RANGE = 0.1


class Layer:
    """Parameters and their gradients under the same names."""

    def __init__(self) -> None:
        self.parameters: dict[str, np.ndarray] = {}
        self.grads: dict[str, np.ndarray] = {}

    def _add(self, name: str, value: np.ndarray) -> None:
        self.parameters[name] = value
        self.grads[name] = np.zeros_like(value)

    def zero_grad(self) -> None:
        for grad in self.grads.values():
            grad.fill(0)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return rng.uniform(-_INIT_RANGE, _INIT_RANGE, shape).astype(dtype)


class Embedding(Layer):
    """y = weight[ids]; weight (V, E), ids integers of any shape, y (..., E)."""

    def __init__(self, symbols: int, size: int, dtype: np.dtype, rng: np.random.Generator) -> None:
        super().__init__()
        self._add("weight", _uniform(rng, (symbols, size), dtype))
        self._written: list[np.ndarray] = []  # ids since the gradient was zero

    def forward(self, ids: np.ndarray) -> np.ndarray:
        weight = self.parameters["weight"]
        y = np.empty((ids.size, weight.shape[1]), weight.dtype)
        _core.take_rows(weight, _int32(ids), y)
        return y.reshape(*ids.shape, weight.shape[1])

    def backward(self, ids: np.ndarray, dy: np.ndarray) -> None:
        """grads["weight"][ids] += dy, each id as often as it occurs."""
        ids, grad = _int32(ids), self.grads["weight"]
        _core.add_rows(grad, ids, np.ascontiguousarray(dy).reshape(ids.size, grad.shape[1]))
        self._written.append(ids)

    def zero_grad(self) -> None:
        super().zero_grad()
        self._written.clear()

    def zero_written_rows(self) -> None:
        """``zero_grad`` where nothing but ``backward`` has written to the gradient: a fraction of a large one."""
        for ids in self._written:
            self.grads["weight"][ids] = 0
        self._written.clear()


def _int32(ids: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(ids, np.int32)


class Output(Layer):
    """The softmax layer over V symbols; x (N, I), weight (V, I), bias (V,), targets int32 (N,)::

        logits = x weightᵀ + bias
        nats = -log softmax(logits)[target]

    A row whose target is negative counts for nothing. With ``tied`` the weight and its gradient are those of that
    embedding (Press, Wolf, "Using the output embedding to improve language models", 2017), and only the bias is its
    own. The loss and its gradients are one call of the kernels, which keeps no more of the (N, V) numbers than some
    rows' logits.
    """

    def __init__(
        self,
        inputs: int,
        symbols: int,
        dtype: np.dtype,
        rng: np.random.Generator,
        tied: Embedding | None = None,
    ) -> None:
        super().__init__()
        self._weight_owner: Layer = self if tied is None else tied
        if tied is None:
            self._add("weight", _uniform(rng, (symbols, inputs), dtype))
        self._add("bias", np.zeros(symbols, dtype))
        self._memory = _core.Memory()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_memory"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _memory=_core.Memory())

    @property
    def weight(self) -> np.ndarray:
        return self._weight_owner.parameters["weight"]

    def logits(self, x: np.ndarray) -> np.ndarray:
        y = x @ self.weight.T
        y += self.parameters["bias"]
        return y

    def nats(self, x: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The loss of each row, (N,)."""
        return _core.cross_entropy(
            x, self.weight, self.parameters["bias"], targets, 1.0, None, None, None, self._memory
        )

    def loss(
        self, x: np.ndarray, targets: np.ndarray, scale: float, accumulate: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """``nats`` and dx of ``scale * sum(nats)``, whose gradients by the parameters are added to ``grads``, or take
        the place of what is there."""
        dx = np.empty_like(x)
        dweight, dbias = self._weight_owner.grads["weight"], self.grads["bias"]
        nats = _core.cross_entropy(
            x, self.weight, self.parameters["bias"], targets, scale, dx, dweight, dbias, self._memory,
            accumulate=accumulate,
        )  # fmt: skip
        return nats, dx


class Dropout:
    """y = x keep / (1 - p), each element kept with probability 1 - p.

    Source: Zaremba, Sutskever, Vinyals, "Recurrent neural network regularization", 2014: only between layers, never
    along time.
    """

    def __init__(self, p: float) -> None:
        self.p = p

    def forward(self, x: np.ndarray, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray | None]:
        """y and the mask for ``backward``; without ``rng`` (evaluation) or with p = 0 x itself and None."""
        if rng is None or self.p == 0.0:
            return x, None
        mask = (rng.random(x.shape, dtype=np.float32) >= self.p).astype(x.dtype)
        mask *= 1.0 / (1.0 - self.p) if self.p < 1.0 else 0.0
        return x * mask, mask

    @staticmethod
    def backward(mask: np.ndarray | None, dy: np.ndarray) -> np.ndarray:
        return dy if mask is None else dy * mask
