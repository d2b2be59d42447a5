"""Recurrent stacks on GPUs, and what they need to be there."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..spec import MAX_COUNT, Spec
from . import extension, kernels
from .arrays import OnDevice, on_device
from .libraries import HOMES, Dtype, cupy, library_of, numpy_dtype, of_array

DTYPES = ("float32", "float64", "float16", "bfloat16")


class DeviceSpec(Spec):
    """A stack on a GPU. Whether a call fits into its memory is for its libraries to tell."""

    __slots__ = ("_place",)

    def __init__(self, place: tuple[str, int], *args: Any) -> None:
        self._place = place
        super().__init__(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        make, args = super().__reduce__()
        return make, (*args, self._place)

    def _device(self) -> tuple[Any, OnDevice]:
        name, index = self._place
        missing = extension.absent
        if missing is None and name == "cupy":
            missing = _cannot_import_cupy()
        if missing is not None:
            raise RuntimeError(f"{self.label}: device 'cuda:{index}' is not available: {missing}")
        return kernels, on_device(name, index)

    def _memory(self) -> int:
        name, index = self._place
        return HOMES[name]().memory(index)

    def check_call(self, seq_len: int, batch: int, x: Any, lengths: Any, training: bool, inputs: int | None) -> None:
        if seq_len > MAX_COUNT or batch > MAX_COUNT:
            raise ValueError(f"{self.label}: x must have T and B of at most {MAX_COUNT}, got T={seq_len}, B={batch}")

    def refuse(self, what: str) -> None:
        """The library's own error says more."""


def find_device(index: int | None) -> tuple[int, list[str]]:
    """The number of a GPU, by default the one that is current in CuPy, and what is missing to use it."""
    missing = _cannot_import_cupy()
    if missing is not None:
        return 0, [missing]
    xp = cupy().xp
    try:
        count = xp.cuda.runtime.getDeviceCount()
        found = xp.cuda.Device().id if index is None else index
    except xp.cuda.runtime.CUDARuntimeError as error:
        return 0, [f"CuPy finds no GPU: {error}"]
    return found, [] if found < count else [f"CuPy finds {count} GPUs, numbered from 0"]


def _cannot_import_cupy() -> str | None:
    try:
        cupy()
    except Exception as error:  # whatever a broken installation raises
        return f"CuPy, which holds a layer's weights, cannot be imported: {error}"
    return None


def place_of(array: Any) -> tuple[str, int] | None:
    library = library_of(array)
    if library is None or library.name not in HOMES:
        return None
    index = library.device(array)
    return None if index is None else (library.name, index)


def half_dtype(label: str, name: str) -> Any:
    """float16 or bfloat16, as far as CuPy has it."""
    if name == "bfloat16":
        try:
            dtype = numpy_dtype(name)
            cupy().xp.empty(0, dtype)
        except (ImportError, TypeError, ValueError) as error:
            raise ValueError(
                f"{label}: dtype bfloat16 needs a CuPy that has it (14 or newer) and ml_dtypes, which holds a layer's "
                f"weights; fastrnn.functional takes PyTorch's tensors: {error}"
            ) from None
        return dtype
    return np.dtype(np.float16)


def dtype_of_weight(label: str, entry: str, array: Any) -> Any:
    name = of_array(array).dtype(array)
    if name not in DTYPES:
        raise TypeError(f"{label}: {entry} must have dtype {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {name}")
    try:
        return numpy_dtype(name)
    except ImportError:
        return Dtype(name, 2)
