"""Clipping gradients by their global norm, and the dicts of arrays that it and optimizers take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import _core
from .arrays import HOST, is_cupys, on_device_of, type_name
from .checks import check_real

Arrays = Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]]


def as_groups(where: str, what: str, arrays: Arrays) -> list[Mapping[str, np.ndarray]]:
    groups = [arrays] if isinstance(arrays, Mapping) else arrays
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, Mapping) for group in groups):
        raise TypeError(
            f"{where}: {what} must be a dict of arrays or a list of such dicts, got {type(arrays).__name__}"
        )
    return list(groups)


def label_of(what: str, groups: Sequence[Any], index: int, name: str) -> str:
    return f"{what}[{name!r}]" if len(groups) == 1 else f"{what}[{index}][{name!r}]"


def check_array(where: str, label: str, array: Any, *, written: bool) -> None:
    if not isinstance(array, np.ndarray) and not is_cupys(array):
        raise TypeError(f"{where}: {label} must be a NumPy array, got {type_name(array)}")
    if array.dtype not in (np.float32, np.float64) or not array.dtype.isnative:
        raise TypeError(f"{where}: {label} must have dtype float32 or float64, got {array.dtype.str}")
    if written and not getattr(array.flags, "writeable", True):  # CuPy's always are
        raise ValueError(f"{where}: {label} must be writeable, got a read-only array")


def _by_dtype(arrays: Iterable[np.ndarray]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Those of the CPU, C-contiguous, for a call of the kernels for each dtype."""
    for dtype in ("float32", "float64"):
        chosen = [HOST.contiguous(a) for a in arrays if isinstance(a, np.ndarray) and a.dtype.name == dtype]
        if chosen:
            yield dtype, chosen


def _sum_of_squares(arrays: list[np.ndarray], divisor: float) -> float:
    """Sum of (g / divisor)^2 over all arrays in float64; the order of the sum depends on the shapes alone."""
    total = 0.0
    for dtype, chosen in _by_dtype(arrays):
        total += _core.sum_of_squares(dtype, chosen, divisor)
    for array in arrays:
        if not isinstance(array, np.ndarray):
            with on_device_of(array):
                wide = array.astype(np.float64) / divisor
                total += float((wide * wide).sum())
    return total


def _multiply(arrays: list[np.ndarray], factor: float) -> None:
    plain = [array for array in arrays if isinstance(array, np.ndarray) and HOST.contiguous(array) is array]
    for dtype, chosen in _by_dtype(plain):
        _core.multiply(dtype, chosen, factor)
    done = set(map(id, plain))
    for array in arrays:
        if id(array) not in done:
            with on_device_of(array):
                np.multiply(array, factor, out=array)


def clip_grad_norm(grads: Arrays, max_norm: float) -> float:
    """Scale all gradients together so that their global norm is at most ``max_norm``; return the norm before.

    ``norm = sqrt(sum g^2)`` over every array of every dict; where it exceeds ``max_norm`` each array is multiplied in
    place by ``max_norm / (norm + 1e-6)``, as ``torch.nn.utils.clip_grad_norm_`` does. The sum is kept in float64: no
    float32 gradient, however large, overflows it.

    A norm that is not finite is returned and, as in torch, still scales: an infinite norm makes finite entries 0 and
    infinite ones NaN, a NaN norm makes everything NaN. Test the returned norm (``math.isfinite``) before the
    optimizer's step.

    Args:
        grads: a dict of float32 or float64 arrays, or a list of such dicts. No array may appear twice. CuPy's are
            waited for, as the norm is read back from the GPU.
        max_norm: a number >= 0; ``math.inf`` only measures.

    Raises:
        TypeError: for anything but dicts of float32 and float64 arrays.
        ValueError: for a negative or NaN ``max_norm``, or a read-only array.

    Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013.

    Example:
        >>> import numpy as np, fastrnn
        >>> grads = {"w": np.array([3.0, 4.0])}
        >>> fastrnn.clip_grad_norm(grads, max_norm=1.0)
        5.0
        >>> grads["w"].round(6)
        array([0.6, 0.8])
    """
    where = "clip_grad_norm"
    if max_norm != math.inf:
        max_norm = check_real(where, "max_norm", max_norm)
    groups = as_groups(where, "grads", grads)
    arrays = []
    for index, group in enumerate(groups):
        for name, array in group.items():
            check_array(where, label_of("grads", groups, index, name), array, written=True)
            arrays.append(array)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = math.sqrt(_sum_of_squares(arrays, 1.0))
        if norm == math.inf:
            # Only float64 entries can get here while finite: their squares overflow, so divide by the largest first.
            largest = max(_largest(array) for array in arrays if array.size)
            if math.isfinite(largest):
                norm = largest * math.sqrt(_sum_of_squares(arrays, largest))
        if max_norm == math.inf:
            return norm
        scale = min(1.0, max_norm / (norm + 1e-6)) if not math.isnan(norm) else math.nan
        if scale != 1.0:
            _multiply(arrays, scale)
    return norm


def _largest(array: np.ndarray) -> float:
    with on_device_of(array):
        return float(np.abs(array).max())
