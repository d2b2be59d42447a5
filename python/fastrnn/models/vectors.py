"""Vectors in the place of lines, as sources of pairs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, overload

import numpy as np


class Vectors(Sequence[tuple[float, ...]]):
    """Finite vectors (n, D): each by itself is a tuple, a ``batch`` is an array.

    ``lengths`` (n,) are zero: they have no tokens.

    Example:
        >>> import numpy as np
        >>> from fastrnn.models.vectors import Vectors
        >>> vectors = Vectors.checked("here", "vectors", [[1, 2], [3, 4]], 2, "float32")
        >>> vectors[1], len(vectors[:1])
        ((3.0, 4.0), 1)
        >>> vectors.batch(np.array([1, 0]))
        (array([[3., 4.],
               [1., 2.]], dtype=float32), array([0, 0]))
    """

    def __init__(self, values: np.ndarray) -> None:
        self._values, self.lengths = values, np.zeros(len(values), np.int64)

    @classmethod
    def checked(cls, where: str, name: str, given: Any, features: int, dtype: str) -> Vectors:
        """From what a caller gave as argument ``name``; a TypeError or ValueError tells what is wrong with it."""
        try:
            array = np.asarray(given)
        except ValueError:  # NumPy's own message names no argument
            raise ValueError(f"{where}: {name} must have shape (n, {features}), got rows of other shapes") from None
        if array.shape == (0,):
            array = array.reshape(0, features)
        if array.dtype.kind not in "buif":
            raise TypeError(f"{where}: {name} must be real numbers (n, {features}), got {array.dtype}")
        if array.ndim != 2 or array.shape[1] != features:
            raise ValueError(f"{where}: {name} must have shape (n, {features}), got {array.shape}")
        with np.errstate(over="ignore"):
            values = np.array(array, dtype, order="C")
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            row = int(finite.argmin())
            raise ValueError(f"{where}: {name} must be finite in {dtype}, got {array[row].tolist()} as row {row}")
        return cls(values)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, key: int) -> tuple[float, ...]: ...
    @overload
    def __getitem__(self, key: slice) -> Vectors: ...
    def __getitem__(self, key: int | slice) -> tuple[float, ...] | Vectors:
        return Vectors(self._values[key]) if isinstance(key, slice) else tuple(self._values[key].tolist())

    def crc(self) -> int:
        """A checksum."""
        return zlib.crc32(np.ascontiguousarray(self._values).data)

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (B, D) and their lengths (B,)."""
        return self._values[rows], self.lengths[rows]
