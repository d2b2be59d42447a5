"""The compiled kernels for GPUs, ``fastrnn._cuda``, where they were built. Loaded on first use: layers on the CPU start
without them."""

from __future__ import annotations

import importlib
from typing import Any

from ..locks import ForkLock
from . import cublaslt

#: The extension, and why there is none.
module: Any
absent: str | None


_loading = ForkLock()


def _load() -> None:
    found = reason = None
    try:
        found = importlib.import_module("fastrnn._cuda")
    except ModuleNotFoundError:
        reason = "this fastrnn was built without CUDA"
    except ImportError as error:
        reason = f"fastrnn._cuda cannot be loaded: {error}"
    globals().update(absent=reason, module=found)


def sizes(*args: Any) -> tuple[int, int, int]:
    """As the extension's, with room for the cuBLASLt that is used."""
    kernels = _found("module")
    cublaslt.choose(kernels)
    return kernels.sizes(*args)


def _found(name: str) -> Any:
    if name not in globals():
        with _loading.lock:
            if name not in globals():
                _load()
    return globals()[name]


def __getattr__(name: str) -> Any:
    if name not in ("module", "absent"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _found(name)
