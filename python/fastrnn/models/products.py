"""Products of matrices on the threads of the kernels.

NumPy's BLAS has threads of its own, which go on waiting on the cores where those of the kernels are to work next.
"""

from __future__ import annotations

import math

import numpy as np

from .. import _core


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a b, of (..., K) and (K, N), of one dtype; b may be the transpose of a matrix."""
    out = np.empty((*a.shape[:-1], b.shape[1]), a.dtype)
    _core.product(_flat(a), b, _flat(out))
    return out


def add_outer(gradient: np.ndarray, dy: np.ndarray, x: np.ndarray) -> None:
    """gradient += dyᵀ x: what dy (..., O) and x (..., I) give of the gradient (O, I) of W in y = W x."""
    _core.product(_flat(dy).T, _flat(x), gradient, add=True)


def _flat(array: np.ndarray) -> np.ndarray:
    """(..., K) -> (N, K)."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
