"""``arrays.Arrays`` of a GPU."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from ..arrays import type_name
from .libraries import HOMES, Library, library_of, of_array


class OnDevice:
    """One GPU's: the home library's hold the weights, arguments may be any library's."""

    def __init__(self, home: Library, index: int) -> None:
        self.home, self.index = home, index
        self.device = f"cuda:{index}"
        self.own = home.own

    def __reduce__(self) -> tuple[Any, ...]:
        return on_device, (self.home.name, self.index)

    def current(self) -> contextlib.AbstractContextManager[Any]:
        return self.home.on(self.index)

    def check(self, label: str, name: str, value: Any, dtype: Any) -> Any:
        library = library_of(value)
        if library is None:
            expected = (
                f"an array on {self.device}, of CuPy, PyTorch or another library with DLPack and __array_namespace__"
            )
            alone = hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray)
            lacks = ", which has DLPack but no __array_namespace__" if alone else ""
            raise TypeError(f"{label}: {name} must be {expected}, got {type_name(value)}{lacks}")
        array = self._here(library, label, name, value)
        if library.dtype(array) != dtype.name:
            raise TypeError(f"{label}: {name} must have dtype {dtype.name}, got {library.dtype(array)}")
        return array

    def integers(self, label: str, name: str, value: Any) -> Any:
        library = library_of(value)
        if library is None:
            return None
        array = self._here(library, label, name, value)
        if not library.dtype(array).startswith(("int", "uint")):
            raise TypeError(f"{label}: {name} must be integers, got dtype {library.dtype(array)}")
        if len(array.shape) != 1:
            raise ValueError(f"{label}: {name} must have one dimension, got shape {tuple(array.shape)}")
        with library.on(self.index):
            return self.contiguous(library.converted(array, "int64"))

    def _here(self, library: Library, label: str, name: str, value: Any) -> Any:
        array = library.take(value)
        index = library.device(array)
        if index != self.index:
            found = "the CPU" if index is None else f"cuda:{index}"
            raise ValueError(f"{label}: {name} must be an array on {self.device}, got one on {found}")
        return array

    def owns(self, value: Any) -> bool:
        return library_of(value) is self.home

    def fits(self, value: Any, dtype: Any, shape: tuple[int, ...]) -> bool:
        return (
            self.owns(value)
            and self.home.device(value) == self.index
            and self.home.dtype(value) == dtype.name
            and tuple(value.shape) == shape
            and self.home.is_contiguous(value)
        )

    def contiguous(self, array: Any) -> Any:
        library = of_array(array)
        if library.is_contiguous(array):
            return array
        with library.on(self.index):
            return library.copy(array)

    def is_writeable(self, array: Any) -> bool:
        return True

    def span(self, value: Any) -> tuple[int, int] | None:
        library = library_of(value)
        return None if library is None else (library.address(value), library.nbytes(value))

    def empty(self, shape: tuple[int, ...], dtype: Any, like: Any = None) -> Any:
        return (self.home if like is None else of_array(like)).empty(shape, dtype.name, self.index)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        array = self.empty(shape, dtype)
        self.write(array, 0)
        return array

    def write(self, array: Any, value: Any) -> None:
        with self.home.on(self.index):
            array[...] = value

    def copied(self, array: Any) -> Any:
        with self.home.on(self.index):
            return self.home.copy(array)

    def upload(self, array: np.ndarray) -> Any:
        return self.home.upload(array, self.index)

    def download(self, array: Any) -> np.ndarray:
        return self.home.download(array)

    def give(self, value: Any, array: Any) -> Any:
        library = library_of(value)
        return array if library is None or array is None else library.give(array, value)


def on_device(name: str, index: int) -> OnDevice:
    """The arrays of a library of ``HOMES`` on a GPU."""
    return OnDevice(HOMES[name](), index)
