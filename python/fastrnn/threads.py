"""The process's threads and cached workspaces."""

from __future__ import annotations

from . import _core
from .checks import check_size
from .cuda import extension

_MAX_THREADS = 1024  # kMaxThreads of csrc/cpu/threads.h


def set_num_threads(n: int) -> None:
    """Sets the most threads that one call uses, in the whole process; small problems use fewer.

    The default is the least of CPU affinity, cgroup quota, physical cores and OMP_NUM_THREADS, or FASTRNN_NUM_THREADS.

    Raises:
        ValueError, TypeError: n is not an integer from 1 to 1024.
    """
    _core.set_num_threads(check_size("set_num_threads", "n", n, 1, _MAX_THREADS))


def get_num_threads() -> int:
    """The most threads that one call uses."""
    return _core.get_num_threads()


def release_memory() -> None:
    """Drops the cached workspaces, and CUDA graphs kept for calls that come again. Memory of calls that run and of open
    tapes stays."""
    _core.release_memory()
    kernels = vars(extension).get("module")  # if it was used
    if kernels is not None:
        kernels.release_graphs()
