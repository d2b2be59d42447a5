"""The few layers that the models need around the recurrent ones, each with its own backward.

Parameters and activations are arrays of one device: of the CPU, where the kernels work on them, or of a GPU. Token ids
are NumPy's in either case.

They keep the conventions of ``fastrnn.LSTM``: ``forward`` returns what ``backward`` needs, parameter gradients are
added to ``grads``, activation gradients are returned. Names and initial values follow torch's word language model
example: embedding and output weights U(-0.1, 0.1), bias zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import _core
from ..arrays import HOST, Arrays
from . import array_api
from .products import add_outer, product

_INIT_RANGE = 0.1

# Shares of the tokens of a batch: up to so many symbols all are taken, which saves a sort; so many distinct ones are
# still worth an index, whose own costs are a fraction of what a product takes.
_WHOLE, _DISTINCT = 0.25, 0.5


class Layer:
    """Parameters and their gradients under the same names."""

    def __init__(self, arrays: Arrays) -> None:
        self.parameters: dict[str, Any] = {}
        self.grads: dict[str, Any] = {}
        self._arrays = arrays

    def _add(self, name: str, value: np.ndarray) -> None:
        self.parameters[name] = self._arrays.upload(value)
        self.grads[name] = self._arrays.zeros(value.shape, value.dtype)

    def zero_grad(self) -> None:
        for grad in self.grads.values():
            self._arrays.write(grad, 0)


def _uniform(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, bound: float = _INIT_RANGE
) -> np.ndarray:
    return rng.uniform(-bound, bound, shape).astype(dtype)


def reshaped(array: Any, shape: tuple[int, ...]) -> Any:
    """The array in another shape, of which one size may be -1: the standard has no method for it."""
    return array.reshape(shape) if isinstance(array, np.ndarray) else array_api.namespace(array).reshape(array, shape)


@dataclass
class Embedded:
    """Vectors of tokens: ``x`` and more ``options`` for the ``forward`` of a recurrent layer."""

    x: Any
    ids: np.ndarray  # whose vectors x has
    mask: Any = None  # of dropout
    options: dict[str, Any] = field(default_factory=dict)


class Embedding(Layer):
    """y = weight[ids]; weight (V, E), ids integers of any shape, y (..., E)."""

    def __init__(
        self, symbols: int, size: int, dtype: np.dtype, rng: np.random.Generator, arrays: Arrays = HOST
    ) -> None:
        super().__init__(arrays)
        self._add("weight", _uniform(rng, (symbols, size), dtype))
        self._written: list[np.ndarray] = []  # ids since the gradient was zero

    def forward(self, ids: np.ndarray) -> Any:
        weight, flat = self.parameters["weight"], _int32(ids.reshape(-1))
        if self._arrays is HOST:
            y = np.empty((ids.size, weight.shape[1]), weight.dtype)
            _core.take_rows(weight, flat, y)
            return y.reshape(*ids.shape, weight.shape[1])
        y = array_api.take_rows(weight, self._arrays.upload(flat))
        return reshaped(y, (*ids.shape, weight.shape[1]))

    def backward(self, ids: np.ndarray, dy: Any) -> None:
        """grads["weight"][ids] += dy, each id as often as it occurs."""
        flat, grad = _int32(ids.reshape(-1)), self.grads["weight"]
        if self._arrays is HOST:
            _core.add_rows(grad, flat, np.ascontiguousarray(dy).reshape(ids.size, grad.shape[1]))
        else:
            array_api.add_rows(grad, self._arrays.upload(flat), reshaped(dy, (ids.size, grad.shape[1])))
        self._written.append(flat)

    def read(
        self, ids: np.ndarray, stack: Any, dropout: Dropout | None = None, rng: np.random.Generator | None = None
    ) -> Embedded:
        """The vectors of ids (T, B), after dropout, for this recurrent layer; None: for another reader.

        Where the layer can take them so, and many ids occur again and again, each of the distinct vectors once. Of a
        small vocabulary that is the weight itself, which must stay until the layer's backward.
        """
        if stack is not None and stack._takes_index and (dropout is None or not dropout.drops(rng)):
            weight = self.parameters["weight"]
            if len(weight) <= _WHOLE * ids.size:
                return Embedded(weight, np.arange(len(weight), dtype=np.int32), options={"index": ids})
            distinct, index = np.unique(ids, return_inverse=True)
            if distinct.size <= _DISTINCT * ids.size:
                return Embedded(self.forward(distinct), distinct, options={"index": index.reshape(ids.shape)})
        x, mask = self.forward(ids), None
        if dropout is not None:
            x, mask = dropout.forward(x, rng)
        return Embedded(x, ids, mask)

    def read_backward(self, embedded: Embedded, dx: Any) -> None:
        self.backward(embedded.ids, Dropout.backward(embedded.mask, dx))

    def zero_grad(self) -> None:
        super().zero_grad()
        self._written.clear()

    def zero_written_rows(self) -> None:
        """``zero_grad`` where nothing but ``backward`` has written to the gradient: a fraction of a large one."""
        if self._arrays is not HOST:  # many small writes would take longer than one
            self.zero_grad()
        for ids in self._written:
            self.grads["weight"][ids] = 0
        self._written.clear()


class Linear(Layer):
    """y = x weightᵀ + bias; x (N, I), weight (O, I), bias (O,), both U(-1/sqrt(I), 1/sqrt(I)) at first."""

    def __init__(
        self, inputs: int, outputs: int, dtype: np.dtype, rng: np.random.Generator, arrays: Arrays = HOST
    ) -> None:
        super().__init__(arrays)
        bound = 1.0 / math.sqrt(inputs)
        self._add("weight", _uniform(rng, (outputs, inputs), dtype, bound))
        self._add("bias", _uniform(rng, (outputs,), dtype, bound))

    def forward(self, x: Any) -> Any:
        return _affine(self._arrays, x, self.parameters["weight"], self.parameters["bias"])

    def backward(self, x: Any, dy: Any) -> Any:
        self.grads["bias"] += dy.sum(axis=0)
        if self._arrays is HOST:
            add_outer(self.grads["weight"], dy, x)
            return product(dy, self.parameters["weight"])
        self.grads["weight"] += dy.T @ x
        return dy @ self.parameters["weight"]


def _affine(arrays: Arrays, x: Any, weight: Any, bias: Any) -> Any:
    """x weightᵀ + bias."""
    y = product(x, weight.T) if arrays is HOST else x @ weight.T
    y += bias
    return y


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
        arrays: Arrays = HOST,
    ) -> None:
        super().__init__(arrays)
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
    def weight(self) -> Any:
        return self._weight_owner.parameters["weight"]

    def logits(self, x: Any) -> Any:
        return _affine(self._arrays, x, self.weight, self.parameters["bias"])

    def searcher(self, rows: int) -> _core.TopSymbols:
        """Finds the most probable symbols of some rows, mostly so many, again and again; until the weights change.

        On the CPU. It keeps no (N, V) numbers, and packs the weights once where there are enough rows.
        """
        return _core.TopSymbols(self.weight, self.parameters["bias"], rows, self._memory)

    def nats(self, x: Any, targets: np.ndarray) -> Any:
        """The loss of each row, (N,)."""
        weight, bias, targets = self.weight, self.parameters["bias"], _int32(targets)
        if self._arrays is HOST:
            return _core.cross_entropy(x, weight, bias, targets, 1.0, None, None, None, self._memory)
        return array_api.cross_entropy(x, weight, bias, self._arrays.upload(targets), 1.0)

    def loss(
        self, x: Any, targets: np.ndarray, scale: float, accumulate: bool = True, smoothing: float = 0.0
    ) -> tuple[Any, Any]:
        """``nats`` and dx of ``scale * sum(nats)``, whose gradients by the parameters are added to ``grads``, or take
        the place of what is there. For ``smoothing`` see ``_smooth``; no target may be negative then."""
        dx = self._arrays.empty(x.shape, x.dtype)
        weight, bias, targets = self.weight, self.parameters["bias"], _int32(targets)
        grads = self._weight_owner.grads["weight"], self.grads["bias"]
        if self._arrays is HOST:
            nats = _core.cross_entropy(x, weight, bias, targets, scale, dx, *grads, self._memory, accumulate=accumulate)
        else:
            if not accumulate:
                for grad in grads:
                    self._arrays.write(grad, 0)
            nats = array_api.cross_entropy(x, weight, bias, self._arrays.upload(targets), scale, dx, *grads)
        if smoothing > 0.0:
            self._smooth(x, targets, scale, smoothing, nats, dx)
        return nats, dx

    def _smooth(self, x: Any, targets: np.ndarray, scale: float, share: float, nats: Any, dx: Any) -> None:
        """Moves a ``share`` of each target's probability to all V symbols alike (label smoothing; on the CPU).

        -sum_v q_v log p_v with q = (1 - share) [v = target] + share / V differs from ``nats`` by
        share (logits[target] - mean_v logits[v]), which is linear in weight and bias: no (N, V) numbers are needed.

        Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016.
        """
        weight, bias, symbols = self.weight, self.parameters["bias"], len(self.weight)
        dweight, dbias, step = self._weight_owner.grads["weight"], self.grads["bias"], scale * share
        of_targets, mean = weight[targets], weight.mean(axis=0)
        nats += share * ((x * (of_targets - mean)).sum(axis=1) + bias[targets] - bias.mean())
        dx += step * (of_targets - mean)
        _core.add_rows(dweight, targets, np.ascontiguousarray(step * x, x.dtype))
        dweight -= (step / symbols) * x.sum(axis=0)
        np.add.at(dbias, targets, step)
        dbias -= step * len(targets) / symbols


class Dropout:
    """y = x keep / (1 - p), each element kept with probability 1 - p.

    Source: Zaremba, Sutskever, Vinyals, "Recurrent neural network regularization", 2014: only between layers, never
    along time.
    """

    def __init__(self, p: float, arrays: Arrays = HOST) -> None:
        self.p = p
        self._arrays = arrays

    def drops(self, rng: np.random.Generator | None) -> bool:
        return rng is not None and self.p > 0.0

    def forward(self, x: Any, rng: np.random.Generator | None) -> tuple[Any, Any]:
        """y and the mask for ``backward``; without ``rng`` (evaluation) or with p = 0 x itself and None.

        The mask is drawn on the CPU, so that a seed drops the same units on every device.
        """
        if rng is None or not self.drops(rng):
            return x, None
        kept = self._arrays.upload(rng.random(x.shape, dtype=np.float32) >= self.p)
        mask = kept.astype(x.dtype) if self._arrays is HOST else array_api.namespace(x).astype(kept, x.dtype)
        mask *= 1.0 / (1.0 - self.p) if self.p < 1.0 else 0.0
        return x * mask, mask

    @staticmethod
    def backward(mask: Any, dy: Any) -> Any:
        return dy if mask is None else dy * mask
