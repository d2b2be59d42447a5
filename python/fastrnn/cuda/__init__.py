"""Layers and functions on the arrays of GPUs: the choices that are theirs alone.

``fastrnn.LSTM(..., device="cuda")`` holds its weights in CuPy's arrays and takes x, states and gradients of CuPy,
PyTorch or any library with DLPack; ``fastrnn.functional`` takes them by what it is given. Results are arrays of the
library that x is of, computed on its current stream, CuPy's for those reached by DLPack. Backward's stream waits for
forward's, and the other way; calls of one layer on streams that are not ordered add to its gradients in no order. No
call waits for the GPU or reads from it; but where kernels, CUDA graphs or cuBLASLt are loaded, the driver may wait.
"""

from __future__ import annotations

#: Whether products of float32 may go through TF32, which has 10 bits after the point instead of 23 and is faster. Read
#: by every forward; the backward of its tape does as it did, and a stream as when it was made or last selected from.
#: Layers of ``fastrnn.torch`` follow PyTorch's own setting.
allow_tf32 = False
