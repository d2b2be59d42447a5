"""Layers and functions on the arrays of GPUs: the choices that are theirs alone.

``fastrnn.LSTM(..., device="cuda")`` holds its weights in CuPy's arrays and takes x, states and gradients of CuPy,
PyTorch or any library with DLPack; ``fastrnn.functional`` takes them by what it is given. Results are arrays of the
library that x is of, computed on its current stream. Nothing waits for the GPU, and nothing is read back from it.
"""

from __future__ import annotations

#: Whether products of float32 may go through TF32, which has 10 bits after the point instead of 23 and is faster. Read
#: by every forward; the backward of its tape does as it did. Layers of ``fastrnn.torch`` follow PyTorch's own setting.
allow_tf32 = False
