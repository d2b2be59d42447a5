"""Optimizers for dicts of NumPy arrays, or of CuPy's.

Parameters and gradients are one dict or several (a list of dicts), such as ``layer.parameters`` and ``layer.grads``. An
optimizer keeps the dicts, not the arrays: an entry that is replaced by another array of its shape and dtype takes part
in the next step. Updates run in place: on the CPU in kernels that read and write each number once, on a GPU by the
arrays' own operations, on its current stream.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from . import _core
from .arrays import HOST, copy_of, on_device_of, place_of
from .checks import check_flag, check_probability, check_real, check_size
from .clipping import Arrays, as_groups, check_array, label_of


class _Batch(NamedTuple):
    """Arrays of the CPU for one call of the kernels."""

    dtype: str
    params: list[np.ndarray]
    grads: list[np.ndarray]
    slots: list[list[np.ndarray]]  # for each slot one of every parameter


class _Companion(ABC):
    """What goes along with parameters, step by step: checking, sorting, state_dict.

    A subclass names its hyperparameters in ``_options`` and its arrays per parameter in ``_slots``, and updates arrays
    of the CPU in ``_run`` and one of a GPU in ``_update``.
    """

    _name = "companion"
    _options: tuple[str, ...] = ()
    _slots: tuple[str, ...] = ()

    def __init__(self, params: Arrays) -> None:
        self._groups = as_groups(self._name, "params", params)
        self._step = 0
        self._state: list[dict[str, dict[str, np.ndarray]]] = []
        seen: set[int] = set()
        for index, group in enumerate(self._groups):
            for name, param in group.items():
                label = label_of("params", self._groups, index, name)
                self._check_param(label, param)
                if id(param) in seen:
                    raise ValueError(f"{self._name}: {label} is an array that params already hold under another name")
                seen.add(id(param))
            self._state.append({name: self._new_slots(param) for name, param in group.items()})

    def _new_slots(self, param: np.ndarray) -> dict[str, np.ndarray]:
        with on_device_of(param):
            return {slot: np.zeros_like(param) for slot in self._slots}

    def _advance(self, grads: Arrays, scale: float) -> None:
        """One step; everything is checked before the first array changes."""
        work = list(self._pairs(as_groups(self._name, "grads", grads)))
        self._step += 1
        for dtype in ("float32", "float64"):
            batch = _Batch(dtype, [], [], [[] for _ in self._slots])
            for param, grad, of_param in work:
                if isinstance(param, np.ndarray) and param.dtype.name == dtype:
                    batch.params.append(param)
                    batch.grads.append(HOST.contiguous(grad))
                    for arrays, name in zip(batch.slots, self._slots, strict=True):
                        arrays.append(of_param[name])
            if batch.params:
                self._run(batch, scale)
        for param, grad, of_param in work:
            if not isinstance(param, np.ndarray):
                with on_device_of(param):
                    self._update(param, grad if scale == 1.0 else grad * scale, of_param)

    def state_dict(self) -> dict[str, Any]:
        """Hyperparameters, step count and, under "state", copies of the arrays ("0.w.exp_avg": of "w" in dict 0)."""
        state = {key: copy_of(slot) for key, slot in self._named_slots()}
        options = {name: getattr(self, name) for name in self._options}
        return {"optimizer": self._name, "step": self._step, **options, "state": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict()``: strict about names, shapes and dtypes, and without effect when it fails."""
        if not isinstance(state, Mapping):
            raise TypeError(f"{self._name}: state must be a dict as state_dict() returns, got {type(state).__name__}")
        expected = {"optimizer", "step", *self._options, "state"}
        if set(state) != expected:
            raise ValueError(
                f"{self._name}: state must have the keys {sorted(expected)}, got {sorted(map(str, state))}"
            )
        if state["optimizer"] != self._name:
            raise ValueError(f"{self._name}: state must come from {self._name!r}, got {state['optimizer']!r}")
        step = check_size(self._name, "state['step']", state["step"], low=0)
        options = self._checked_options({name: state[name] for name in self._options})
        slots, arrays = dict(self._named_slots()), state["state"]
        if not isinstance(arrays, Mapping) or set(arrays) != set(slots):
            got = sorted(map(str, arrays)) if isinstance(arrays, Mapping) else type(arrays).__name__
            raise ValueError(f"{self._name}: state['state'] must have the keys {sorted(slots)}, got {got}")
        for key, slot in slots.items():
            check_array(self._name, f"state['state'][{key!r}]", arrays[key], written=False)
            self._check_like(f"state['state'][{key!r}]", arrays[key], slot)
        for key, slot in slots.items():
            with on_device_of(slot):
                slot[...] = arrays[key]
        for name, value in options.items():
            setattr(self, name, value)
        self._step = step

    def _checked_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The hyperparameters of a state_dict, checked as the constructor checks its arguments."""
        probe = type(self)({}, **options)
        if probe._slots != self._slots:  # such as momentum where this optimizer has none
            raise ValueError(f"{self._name}: state must hold the arrays {self._slots}, got {probe._slots}")
        return {name: getattr(probe, name) for name in options}

    def _named_slots(self) -> Iterator[tuple[str, np.ndarray]]:
        for index, group in enumerate(self._state):
            for name, slots in group.items():
                for slot, array in slots.items():
                    yield f"{index}.{name}.{slot}", array

    def _pairs(
        self, grads: list[Mapping[str, np.ndarray]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        if len(grads) != len(self._groups):
            raise ValueError(f"{self._name}: grads must be {len(self._groups)} dict(s) as params are, got {len(grads)}")
        for index, (params, given, state) in enumerate(zip(self._groups, grads, self._state, strict=True)):
            if set(params) != set(state):
                raise ValueError(f"{self._name}: params must keep the names {sorted(state)}, got {sorted(params)}")
            if set(given) != set(state):
                raise ValueError(f"{self._name}: grads must have the names {sorted(state)}, got {sorted(given)}")
            for name, slots in state.items():
                param, grad = params[name], given[name]
                label = label_of("params", grads, index, name)
                self._check_param(label, param)
                for slot in slots.values():
                    self._check_like(label, param, slot)
                label = label_of("grads", grads, index, name)
                check_array(self._name, label, grad, written=False)
                self._check_like(label, grad, param)
                yield param, grad, slots

    def _check_param(self, label: str, param: Any) -> None:
        check_array(self._name, label, param, written=True)
        if not param.flags.c_contiguous:
            raise ValueError(f"{self._name}: {label} must be C-contiguous, got strides {param.strides}")

    def _check_like(self, label: str, array: np.ndarray, like: np.ndarray) -> None:
        if place_of(array) != place_of(like):
            places = ["the CPU" if place is None else f"cuda:{place}" for place in map(place_of, (like, array))]
            raise TypeError(f"{self._name}: {label} must be an array on {places[0]}, got one on {places[1]}")
        if array.shape != like.shape:
            raise ValueError(f"{self._name}: {label} must have shape {like.shape}, got {array.shape}")
        if array.dtype != like.dtype:
            raise TypeError(f"{self._name}: {label} must have dtype {like.dtype}, got {array.dtype}")

    @abstractmethod
    def _run(self, batch: _Batch, scale: float) -> None:
        """By the kernels: all arrays of the CPU of one dtype."""

    @abstractmethod
    def _update(self, p: Any, g: Any, slots: dict[str, Any]) -> None:
        """By the array's own operations."""


class Optimizer(_Companion):
    """What SGD and Adam share."""

    def __init__(self, params: Arrays, lr: float, weight_decay: float) -> None:
        self.lr = lr
        self.weight_decay = check_real(self._name, "weight_decay", weight_decay)
        super().__init__(params)

    @property
    def lr(self) -> float:
        """The learning rate; may be set between steps."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = check_real(self._name, "lr", value)

    def step(self, grads: Arrays, scale: float = 1.0) -> None:
        """Update every parameter in place; ``grads`` must have the names, shapes and dtypes of the parameters.

        ``scale`` multiplies the gradients, whose arrays stay as they are: with ``max_norm / norm`` that is clipping
        without another pass over them. Everything is checked before the first array changes.
        """
        self._advance(grads, scale if scale == 1.0 else check_real(self._name, "scale", scale))


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD`` (without dampening).

    ``d = g + weight_decay p``; with momentum ``v = momentum v + d`` and ``d = v`` (``d = d + momentum v`` with
    ``nesterov``); then ``p = p - lr d``.

    Args:
        params: a dict of float32 or float64 arrays, or a list of such dicts; updated in place.
        lr: learning rate >= 0.
        momentum: in [0, 1].
        weight_decay: >= 0, an L2 penalty.
        nesterov: look ahead along the momentum (needs momentum > 0).

    Raises:
        TypeError, ValueError: naming the argument, for anything else.

    Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning", 2013.

    Example:
        >>> import numpy as np, fastrnn
        >>> params, grads = {"w": np.ones(2)}, {"w": np.array([1.0, -1.0])}
        >>> fastrnn.optim.SGD(params, lr=0.5).step(grads)
        >>> params["w"]
        array([0.5, 1.5])
    """

    _name = "sgd"
    _options = ("lr", "momentum", "weight_decay", "nesterov")

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.momentum = check_probability(self._name, "momentum", momentum)
        self.nesterov = check_flag(self._name, "nesterov", nesterov)
        if self.nesterov and self.momentum == 0.0:
            raise ValueError(f"{self._name}: nesterov needs momentum > 0, got {self.momentum}")
        if self.momentum > 0.0:
            self._slots = ("momentum_buffer",)
        super().__init__(params, lr, weight_decay)

    def _run(self, batch: _Batch, scale: float) -> None:
        (buffers,) = batch.slots or ([],)
        options = self._lr, self.momentum, self.nesterov, self.weight_decay
        _core.sgd(batch.dtype, batch.params, batch.grads, buffers, *options, scale)

    def _update(self, p: Any, g: Any, slots: dict[str, Any]) -> None:
        d = g + self.weight_decay * p
        if self.momentum > 0.0:
            v = slots["momentum_buffer"]
            v *= self.momentum
            v += d
            d = d + self.momentum * v if self.nesterov else v
        p -= self._lr * d


class Adam(Optimizer):
    """Adam, as ``torch.optim.Adam``.

    ``g = g + weight_decay p``, ``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) g^2``, and at step t
    ``p = p - lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)``.

    Args:
        params: a dict of float32 or float64 arrays, or a list of such dicts; updated in place.
        lr: learning rate >= 0.
        betas: decay of the two running means, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: >= 0, an L2 penalty (added to the gradient, not decoupled).

    Raises:
        TypeError, ValueError: naming the argument, for anything else.

    Source: Kingma, Ba, "Adam: a method for stochastic optimization", 2015.

    Example:
        >>> import numpy as np, fastrnn
        >>> params, grads = {"w": np.zeros(2)}, {"w": np.array([1.0, -3.0])}
        >>> fastrnn.optim.Adam(params, lr=0.1).step(grads)
        >>> params["w"].round(6)
        array([-0.1,  0.1])
    """

    _name = "adam"
    _options = ("lr", "betas", "eps", "weight_decay")
    _slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"{self._name}: betas must be a pair of numbers in [0, 1), got {betas!r}")
        self.betas = tuple(check_probability(self._name, f"betas[{i}]", beta) for i, beta in enumerate(betas))
        for i, beta in enumerate(self.betas):
            if beta == 1.0:
                raise ValueError(f"{self._name}: betas[{i}] must be below 1, got {beta}")
        self.eps = check_real(self._name, "eps", eps)
        super().__init__(params, lr, weight_decay)

    @property
    def _decay(self) -> tuple[float, float]:
        """The weight decay that is added to the gradient, and what p is multiplied by first."""
        return self.weight_decay, 1.0

    def _bias_corrections(self) -> tuple[float, float]:
        """lr / (1 - b1^t) and sqrt(1 - b2^t)."""
        beta_1, beta_2 = self.betas
        return self._lr / (1.0 - beta_1**self._step), math.sqrt(1.0 - beta_2**self._step)

    def _run(self, batch: _Batch, scale: float) -> None:
        lr, root = self._bias_corrections()
        first, second = batch.slots
        (beta_1, beta_2), (decay, shrink) = self.betas, self._decay
        options = lr, beta_1, beta_2, self.eps, root, decay, shrink
        _core.adam(batch.dtype, batch.params, batch.grads, first, second, *options, scale)

    def _update(self, p: Any, g: Any, slots: dict[str, Any]) -> None:
        m, v = slots["exp_avg"], slots["exp_avg_sq"]
        (beta_1, beta_2), (lr, root), (decay, shrink) = self.betas, self._bias_corrections(), self._decay
        p *= shrink
        d = g + decay * p
        m *= beta_1
        m += (1.0 - beta_1) * d
        v *= beta_2
        v += (1.0 - beta_2) * d * d
        p -= lr * m / (np.sqrt(v) / root + self.eps)


class AdamW(Adam):
    """Adam with decoupled weight decay, as ``torch.optim.AdamW``: ``p = p - lr weight_decay p``, then the step of Adam.

    Args:
        params, lr, betas, eps: as for ``Adam``.
        weight_decay: >= 0.

    Source: Loshchilov, Hutter, "Decoupled weight decay regularization", 2019.

    Example:
        >>> import numpy as np, fastrnn
        >>> params, grads = {"w": np.ones(2)}, {"w": np.array([0.0, -3.0])}
        >>> fastrnn.optim.AdamW(params, lr=0.1, weight_decay=0.5).step(grads)
        >>> params["w"].round(6)
        array([0.95, 1.05])
    """

    _name = "adamw"

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    @property
    def _decay(self) -> tuple[float, float]:
        return 0.0, 1.0 - self._lr * self.weight_decay


class Average(_Companion):
    """The running mean of parameters, such as over the last steps of SGD.

    With the values ``p_1 ... p_n`` that the parameters had at n calls of ``update``::

        mean_n = (p_1 + ... + p_n) / n = mean_(n-1) + (p_n - mean_(n-1)) / n

    Args:
        params: a dict of float32 or float64 arrays, or a list of such dicts; only ``swap`` writes to them.

    Raises:
        TypeError, ValueError: naming the argument, for anything else.

    ``state_dict`` and ``load_state_dict`` are those of an optimizer: its step is the count, its arrays are the means,
    or after a ``swap`` what stands in their place.

    Source: Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", 1992.

    Example:
        >>> import numpy as np, fastrnn
        >>> params = {"w": np.zeros(2)}
        >>> average = fastrnn.optim.Average(params)
        >>> for value in (1.0, 2.0, 6.0):
        ...     params["w"][:] = value
        ...     average.update()
        >>> average.swap()  # to evaluate the mean, say
        >>> params["w"]
        array([3., 3.])
        >>> average.swap()  # to go on
        >>> params["w"]
        array([6., 6.])
    """

    _name = "average"
    _slots = ("mean",)

    @property
    def count(self) -> int:
        """How many values the mean is of."""
        return self._step

    def update(self) -> None:
        """Take the present values into the mean."""
        self._advance(self._groups, 1.0)

    def swap(self) -> None:
        """Exchange the parameters' numbers and the means'; a second call puts both back, to the bit."""
        if self.count == 0:
            raise RuntimeError(f"{self._name}: swap needs a mean: call update first")
        for param, _, slots in list(self._pairs(self._groups)):
            with on_device_of(param):
                kept = param.copy()
                param[...] = slots["mean"]
                slots["mean"][...] = kept

    # The parameters take the place of gradients: the mean moves as by SGD along mean - p, at a rate of 1 / n.

    def _run(self, batch: _Batch, scale: float) -> None:
        (means,) = batch.slots
        _core.sgd(batch.dtype, means, batch.grads, [], 1.0 / self._step, 0.0, False, 1.0, -scale)

    def _update(self, p: Any, g: Any, slots: dict[str, Any]) -> None:
        slots["mean"] += (g - slots["mean"]) / self._step
