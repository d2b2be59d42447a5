"""The checks of a call's arrays: what ``_core`` is handed has been through here.

Every function raises before anything has changed. Messages start with the cell's name, then the argument, what was
expected with its numbers, and what came. The common case is kept to a few attribute reads: a single step of a small
layer takes five microseconds, of which this is a part.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from .arrays import HOST, plain, type_name
from .spec import Spec

Array = np.ndarray
States = tuple["Array | None", "Array | None"]

_ndarray = np.ndarray
_BOOL = np.dtype(np.bool_)


def check_input(spec: Spec, x: Any, batch_first: bool) -> tuple[Array, bool]:
    """x as (T, B, I), not yet ``contiguous``, and whether it came unbatched as (T, I)."""
    x = spec.arrays.check(spec.label, "x", x, spec.dtype)
    ndim = x.ndim
    if ndim not in (2, 3) or x.shape[-1] != spec.input_size:
        features = f"input_size={spec.input_size}"
        batched, unbatched = f"({'B, T' if batch_first else 'T, B'}, {features})", f"(T, {features})"
        expected = {2: unbatched, 3: batched}.get(ndim, f"{batched} or, without a batch, {unbatched}")
        raise ValueError(f"{spec.label}: x must have shape {expected}, got {tuple(x.shape)}")
    unbatched = ndim == 2
    return (time_major(x, unbatched, batch_first) if unbatched or batch_first else x), unbatched


def check_index(spec: Spec, x: Any, index: Any, batch_first: bool) -> tuple[Array, Array, bool]:
    """x (U, I), not yet ``contiguous``, index as int32 (T, B) of its own, and whether it came unbatched as (T,)."""
    if spec.arrays is not HOST:
        raise ValueError(f"{spec.label}: index is for the CPU; on {spec.arrays.device} give x[index] as x")
    x = HOST.check(spec.label, "x", x, spec.dtype)
    if x.ndim != 2 or x.shape[1] != spec.input_size:
        raise ValueError(f"{spec.label}: x must have shape (U, input_size={spec.input_size}) with index, got {x.shape}")
    index = plain(spec.label, "index", index, "an array of integers")
    if index.dtype.kind not in "iu":
        raise TypeError(f"{spec.label}: index must be integers, got dtype {index.dtype}")
    if index.ndim not in (1, 2):
        batched = "(B, T)" if batch_first else "(T, B)"
        raise ValueError(f"{spec.label}: index must have shape {batched} or, without a batch, (T,), got {index.shape}")
    if not index.dtype.isnative:
        raise TypeError(f"{spec.label}: index must have native byte order, got dtype {index.dtype.str!r}")
    unbatched = index.ndim == 1
    index = time_major(index, unbatched, batch_first)
    try:
        index = np.array(index, order="C")  # what another thread writes from now on comes too late
        bad = (index < 0) | (index >= len(x))
    except MemoryError:
        seq_len, batch = index.shape
        spec.refuse(spec.describe_call(seq_len, batch, len(x)))
        raise
    if bad.any():
        t, b = np.unravel_index(bad.argmax(), bad.shape)
        place = f"t={t}" if unbatched else f"t={t}, b={b}"
        raise ValueError(
            f"{spec.label}: index must be at least 0 and below U={len(x)}, the rows of x, got {index[t, b]} at {place}"
        )
    return x, index.astype(np.int32, copy=False), unbatched


def check_output_grad(spec: Spec, dy: Any, seq_len: int, batch: int, unbatched: bool, batch_first: bool) -> Array:
    """dy, which has y's shape, as (T, B, D*P), C-contiguous."""
    dy = spec.arrays.check(spec.label, "dy", dy, spec.dtype)
    if unbatched:
        shape: tuple[int, ...] = (seq_len, spec.output_size)
    else:
        shape = (batch, seq_len, spec.output_size) if batch_first else (seq_len, batch, spec.output_size)
    if dy.shape != shape:
        axes = _leading_axes(seq_len, batch, unbatched, batch_first)
        expected = ", ".join([*(f"{axis}={n}" for axis, n in axes.items()), str(spec.output_size)])
        raise ValueError(f"{spec.label}: dy must have y's shape ({expected}), got {tuple(dy.shape)}")
    return spec.arrays.contiguous(time_major(dy, unbatched, batch_first) if unbatched or batch_first else dy)


def _leading_axes(seq_len: int, batch: int, unbatched: bool, batch_first: bool) -> dict[str, int]:
    if unbatched:
        return {"T": seq_len}
    return {"B": batch, "T": seq_len} if batch_first else {"T": seq_len, "B": batch}


def time_major(array: Array, unbatched: bool, batch_first: bool) -> Array:
    """The caller's layout as (T, B, ...), a view."""
    return array[:, None] if unbatched else array.swapaxes(0, 1) if batch_first else array


def in_layout(array: Array, unbatched: bool, batch_first: bool) -> Array:
    """The other way round."""
    return array[:, 0] if unbatched else array.swapaxes(0, 1) if batch_first else array


def check_states(spec: Spec, state: Any, names: tuple[str, str, str], batch: int, unbatched: bool) -> States:
    """(h, c) as C-contiguous (L*D, B, .); c is None but for LSTM. None stands for zeros, for a member of the pair too.

    names: of the whole, of h and of c.
    """
    if state is None:
        return None, None
    if not spec.has_c:
        if isinstance(state, (tuple, list)):
            raise TypeError(f"{spec.label}: {names[0]} must be one array {names[1]}, got a {type(state).__name__}")
        return _check_state(spec, names[1], state, spec.state_size, batch, unbatched), None
    if not isinstance(state, (tuple, list)):
        raise TypeError(f"{spec.label}: {names[0]} must be a pair ({names[1]}, {names[2]}), got {_kind(state)}")
    if len(state) != 2:
        raise ValueError(f"{spec.label}: {names[0]} must be a pair ({names[1]}, {names[2]}), got {len(state)} items")
    return (
        _check_state(spec, names[1], state[0], spec.state_size, batch, unbatched),
        _check_state(spec, names[2], state[1], spec.hidden_size, batch, unbatched),
    )


def _check_state(spec: Spec, name: str, value: Any, size: int, batch: int, unbatched: bool) -> Array | None:
    if value is None:
        return None
    value = spec.arrays.check(spec.label, name, value, spec.dtype)
    if value.shape != ((spec.num_states, size) if unbatched else (spec.num_states, batch, size)):
        layers = "num_layers*2" if spec.bidirectional else "num_layers"
        last = "proj_size" if size != spec.hidden_size else "hidden_size"
        middle = "" if unbatched else f"B={batch}, "
        expected = f"({layers}={spec.num_states}, {middle}{last}={size})"
        raise ValueError(f"{spec.label}: {name} must have shape {expected}, got {tuple(value.shape)}")
    return spec.arrays.contiguous(value[:, None] if unbatched else value)


def check_integers(label: str, name: str, values: Any, low: int, high: int, bound: str) -> Array:
    """A list, tuple or array of integers as an int64 vector, each low <= value <= high. ``bound`` names the maximum.

    Always a copy, taken before the check: what another thread writes into ``values`` meanwhile cannot get past it.
    """
    if isinstance(values, (list, tuple)):
        values = tuple(values)
        array = np.empty(len(values), np.int64)
        for i, value in enumerate(values):
            try:
                if isinstance(value, bool):
                    raise TypeError
                value = operator.index(value)
            except TypeError:
                raise TypeError(f"{label}: {name} must be integers, got {value!r} at index {i}") from None
            if not low <= value <= high:
                _out_of_range(label, name, low, bound, value, i)
            array[i] = value
        return array
    values = plain(label, name, values, "a list or an array of integers")
    if values.dtype.kind not in "iu":
        raise TypeError(f"{label}: {name} must be integers, got dtype {values.dtype}")
    if values.ndim != 1:
        raise ValueError(f"{label}: {name} must have one dimension, got shape {values.shape}")
    if not values.dtype.isnative:
        raise TypeError(f"{label}: {name} must have native byte order, got dtype {values.dtype.str!r}")
    values = np.array(values, order="C")
    bad = (values < low) | (values > high)
    if bad.any():
        i = int(bad.argmax())
        _out_of_range(label, name, low, bound, int(values[i]), i)
    return values.astype(np.int64, copy=False)


def _out_of_range(label: str, name: str, low: int, bound: str, value: int, index: int) -> NoReturn:
    raise ValueError(f"{label}: {name} must be between {low} and {bound}, got {value} at index {index}")


def check_lengths(spec: Spec, lengths: Any, seq_len: int, batch: int, unbatched: bool) -> Array:
    """int64 (B,), each 0 <= length <= T; those on a GPU are taken at their word, which kernels bring into range."""
    if unbatched:
        raise ValueError(f"{spec.label}: lengths need a batch, x of shape (B, T, .) or (T, B, .); here x is unbatched")
    array = spec.arrays.integers(spec.label, "lengths", lengths)
    if array is None:
        array = check_integers(spec.label, "lengths", lengths, 0, seq_len, f"T={seq_len}")
    if array.shape != (batch,):
        raise ValueError(f"{spec.label}: lengths must have shape (B={batch},), got {tuple(array.shape)}")
    return array


def check_resets(spec: Spec, resets: Any, seq_len: int, batch: int, unbatched: bool, batch_first: bool) -> Array:
    """bool (T, B), C-contiguous."""
    if spec.bidirectional:
        raise ValueError(f"{spec.label}: resets cannot be used with bidirectional=True")
    arrays = HOST if isinstance(resets, _ndarray) else spec.arrays  # a GPU is brought what is on the CPU
    resets = arrays.check(spec.label, "resets", resets, _BOOL)
    axes = _leading_axes(seq_len, batch, unbatched, batch_first)
    if resets.shape != tuple(axes.values()):
        expected = ", ".join(f"{axis}={n}" for axis, n in axes.items()) + ("," if unbatched else "")
        raise ValueError(f"{spec.label}: resets must have shape ({expected}), got {tuple(resets.shape)}")
    return arrays.contiguous(time_major(resets, unbatched, batch_first))


def gather(spec: Spec, what: str, mapping: Mapping[str, Any]) -> list[Array]:
    """The entries of a mapping of weights or gradients in ``_core``'s order, each looked at afresh: users may replace
    them between calls."""
    if type(mapping) is dict:
        found = spec.kernels.gather(spec.problem, mapping, spec.names)
        if found is not None:
            return found
    # The same with words: finds out what is wrong.
    arrays: list[Any] = []
    for name, shape in spec.shapes:
        array = mapping.get(name)
        if not spec.arrays.fits(array, spec.dtype, shape):
            _bad_entry(spec, what, mapping, name, shape)
        arrays.append(array)
    if len(mapping) != len(arrays):
        check_names(spec, what, mapping)
    return arrays


def _bad_entry(spec: Spec, what: str, mapping: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> NoReturn:
    check_names(spec, what, mapping)
    entry = f"{what}[{name!r}]"
    array = mapping[name]
    if not spec.arrays.owns(array):
        raise TypeError(f"{spec.label}: {entry} must be {spec.arrays.own}, got {type_name(array)}")
    spec.arrays.check(spec.label, entry, array, spec.dtype)
    if array.shape != shape:
        raise ValueError(f"{spec.label}: {entry} must have shape {shape}, got {tuple(array.shape)}")
    raise ValueError(f"{spec.label}: {entry} must be C-contiguous and aligned, got strides {strides_of(array)}")


def check_names(spec: Spec, what: str, mapping: Mapping[str, Any]) -> None:
    """Exactly this stack's names, no more and no fewer."""
    expected = {name for name, _ in spec.shapes}
    missing = [name for name, _ in spec.shapes if name not in mapping]
    extra = sorted(str(name) for name in mapping if name not in expected)
    if missing or extra:
        found = [f"{text} {names}" for text, names in (("missing", missing), ("unexpected", extra)) if names]
        raise ValueError(f"{spec.label}: {what} must hold this layer's {len(expected)} entries, got {', '.join(found)}")


def check_grads(
    spec: Spec, grads: Mapping[str, Any], weights: list[Array], parameters: Mapping[str, Any]
) -> list[Array]:
    """Gradients that backward may add to: writeable, apart from each other, from the weights that it reads and from the
    parameters of this moment."""
    if type(grads) is dict and type(parameters) is dict:
        found = spec.kernels.gather_gradients(spec.problem, grads, spec.names, weights, parameters)
        if found is not None:
            return found
    # The same with words: finds out what is wrong.
    arrays = gather(spec, "grads", grads)
    for array, (name, _) in zip(arrays, spec.shapes, strict=True):
        if not spec.arrays.is_writeable(array):
            raise ValueError(f"{spec.label}: grads[{name!r}] must be writeable, got a read-only array")
    _check_apart(spec, arrays, [*weights, *parameters.values()])
    return arrays


def _check_apart(spec: Spec, grads: Sequence[Array], others: Sequence[Any]) -> None:
    # By address; the others may share memory among themselves, so the furthest end is kept for each kind.
    names = [f"grads[{name!r}]" for name, _ in spec.shapes] + [""] * len(others)
    found = zip(map(spec.arrays.span, (*grads, *others)), names, strict=True)
    grad_end, grad_name, other_end = 0, "", 0
    for (start, nbytes), name in sorted((span, name) for span, name in found if span is not None):
        end = start + nbytes
        if name and start < other_end:
            raise ValueError(f"{spec.label}: {name} must have memory of its own, got memory of the parameters")
        if start < grad_end:
            what = name or "the parameters"
            raise ValueError(f"{spec.label}: {grad_name} must have memory of its own, got some shared with {what}")
        if name:
            grad_end, grad_name = end, name
        else:
            other_end = max(other_end, end)


def weight_value(spec: Spec, name: str, shape: tuple[int, ...], value: Any) -> Array:
    """A weight to load, NumPy's, CuPy's or torch's, as a new array of the stack's dtype."""
    entry = f"state_dict[{name!r}]"
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # torch's, without importing torch
        value = value.detach().cpu()
        if value.is_floating_point() and value.element_size() < 4:
            value = value.float()  # NumPy knows no bfloat16
        value = value.numpy()
    elif hasattr(value, "__cuda_array_interface__") and hasattr(value, "get"):  # CuPy's, without importing it
        value = value.get()
    value = plain(spec.label, entry, value, "a numpy array or a torch tensor")
    if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
        raise TypeError(f"{spec.label}: {entry} must be of a floating-point dtype, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{spec.label}: {entry} must have shape {shape}, got {tuple(value.shape)}")
    return np.array(value, spec.dtype, order="C")


def strides_of(array: Any) -> Any:
    return array.strides if hasattr(array, "strides") else array.stride()  # torch's


def _kind(value: Any) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, _ndarray) else type(value).__name__
