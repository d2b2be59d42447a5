"""The compiled kernels for GPUs, ``fastrnn._cuda``, where they were built."""

from __future__ import annotations

import functools
import importlib
from typing import Any

#: The extension, and why there is none.
module: Any = None
absent: str | None = None
try:
    module = importlib.import_module("fastrnn._cuda")
except ModuleNotFoundError:
    absent = "this fastrnn was built without CUDA"
except ImportError as _error:
    absent = f"fastrnn._cuda cannot be loaded: {_error}"


@functools.lru_cache(maxsize=1024)
def problem(
    cell: str,
    dtype: str,
    input_size: int,
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
) -> Any:
    """One recurrent stack as the kernels know it."""
    return module.Problem(cell, dtype, input_size, hidden_size, proj_size, num_layers, bidirectional, bias)
