"""One set of threads for torch's operations and the kernels."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from .. import _core

_FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "omp_get_max_threads", "omp_in_parallel")


def share_threads() -> bool:
    """Runs the kernels on the OpenMP threads that torch has started, where it is built with GCC's or LLVM's OpenMP.

    These threads spin for a while after every operation. Threads of the kernels' own would have to share the cores with
    them, and the other way round.
    """
    functions = _functions_of(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    if functions is None:
        return False
    _core.use_openmp(functions)
    return True


def _functions_of(library: Path) -> tuple[int, int, int, int, int] | None:
    """The addresses of the runtime's functions as this library finds them, which may be one of several in a process."""
    try:
        loaded = ctypes.CDLL(str(library))
        first, *others = (ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value for name in _FUNCTIONS)
    except (OSError, AttributeError):
        return None
    return (first, *others)  # type: ignore[return-value]
