"""What layers need of the library whose arrays they work on: NumPy's here, those of GPUs in ``cuda``.

A ``Spec`` carries the ``Arrays`` of its device; everything else handles arrays only through it, and by what all
libraries have in common: shape, slices, swapaxes.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import numpy as np

_ndarray = np.ndarray


class Arrays(Protocol):
    """The arrays of one device."""

    #: As a layer's ``device``: "cpu" or "cuda:N".
    device: str
    #: How messages call an array that can hold weights.
    own: str

    def current(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, the arrays' own operations run on this device."""

    def check(self, label: str, name: str, value: Any, dtype: Any) -> Any:
        """The value as the kernels' array, if it is one of this device and dtype: else a TypeError or ValueError."""

    def integers(self, label: str, name: str, value: Any) -> Any:
        """The value as int64 where it is already beyond the reach of checks, in a GPU's memory; else None."""

    def owns(self, value: Any) -> bool:
        """Whether it is of the library that holds the weights."""

    def fits(self, value: Any, dtype: Any, shape: tuple[int, ...]) -> bool:
        """Whether it is one of those, of this dtype and shape, that the kernels can read in place."""

    def contiguous(self, array: Any) -> Any:
        """The array itself where the kernels can read it, else a copy."""

    def is_writeable(self, array: Any) -> bool: ...

    def span(self, value: Any) -> tuple[int, int] | None:
        """Where a C-contiguous array stands: its address and bytes; None of what is no array."""

    def empty(self, shape: tuple[int, ...], dtype: Any, like: Any = None) -> Any:
        """Of the library of ``like``, by default of that which holds a layer's weights."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any: ...

    def write(self, array: Any, value: Any) -> None:
        """In place, a number or an array of this device."""

    def copied(self, array: Any) -> Any: ...

    def upload(self, array: np.ndarray) -> Any:
        """A layer's own array with these numbers; the very array on the CPU."""

    def download(self, array: Any) -> np.ndarray:
        """The numbers of a layer's own array; the very array on the CPU."""

    def give(self, value: Any, array: Any) -> Any:
        """A result as an array of the library that ``value``, an argument, is of."""


class Host:
    """NumPy's arrays."""

    device = "cpu"
    own = "a numpy array"

    def __reduce__(self) -> str:
        return "HOST"  # copies are the one that there is

    def current(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def check(self, label: str, name: str, value: Any, dtype: np.dtype[Any]) -> np.ndarray:
        if type(value) is _ndarray and value.dtype == dtype:
            return value
        value = plain(label, name, value, self.own)
        if value.dtype != dtype:
            if value.dtype.newbyteorder("=") == dtype:
                raise TypeError(f"{label}: {name} must have native byte order, got dtype {value.dtype.str!r}")
            raise TypeError(f"{label}: {name} must have dtype {dtype.name}, got {value.dtype}")
        return value

    def integers(self, label: str, name: str, value: Any) -> None:
        return None

    def owns(self, value: Any) -> bool:
        return type(value) is _ndarray

    def fits(self, value: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
        return (
            type(value) is _ndarray
            and value.dtype == dtype
            and value.shape == shape
            and value.flags.c_contiguous
            and value.flags.aligned
        )

    def contiguous(self, array: np.ndarray) -> np.ndarray:
        flags = array.flags
        return array if flags.c_contiguous and flags.aligned else array.copy(order="C")

    def is_writeable(self, array: np.ndarray) -> bool:
        return array.flags.writeable

    def span(self, value: Any) -> tuple[int, int] | None:
        return (value.__array_interface__["data"][0], value.nbytes) if isinstance(value, _ndarray) else None

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], like: Any = None) -> np.ndarray:
        return np.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        return np.zeros(shape, dtype)

    def write(self, array: np.ndarray, value: Any) -> None:
        array[...] = value

    def copied(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def upload(self, array: np.ndarray) -> np.ndarray:
        return array

    def download(self, array: np.ndarray) -> np.ndarray:
        return array

    def give(self, value: Any, array: Any) -> Any:
        return array


HOST = Host()


def plain(label: str, name: str, value: Any, expected: str) -> np.ndarray:
    """Any ndarray or memmap, as ndarray. Other subclasses are refused: what they add (a mask, a unit) would be lost
    silently."""
    if type(value) is _ndarray:
        return value
    if isinstance(value, np.memmap):
        return np.asarray(value)
    hint = "; pass numpy.asarray(...) of it" if isinstance(value, _ndarray) else ""
    raise TypeError(f"{label}: {name} must be {expected}, got {type_name(value)}{hint}")


def type_name(value: Any) -> str:
    """As messages call a type: without its module, unless NumPy has a type of that name."""
    kind = type(value)
    return kind.__name__ if kind.__name__ != "ndarray" else f"{kind.__module__.partition('.')[0]}.ndarray"


# ---- optimizers take CuPy's arrays as they take NumPy's


def is_cupys(array: Any) -> bool:
    return hasattr(array, "__cuda_array_interface__") and hasattr(array, "__array_ufunc__") and hasattr(array, "get")


def place_of(array: Any) -> Any:
    """Tells arrays apart that cannot meet in one operation: None, or the number of a GPU."""
    return None if isinstance(array, np.ndarray) else array.device.id


def on_device_of(array: Any) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if isinstance(array, np.ndarray) else array.device


def copy_of(array: np.ndarray) -> np.ndarray:
    with on_device_of(array):
        return array.copy()
