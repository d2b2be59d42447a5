"""The compiled kernels for GPUs, ``fastrnn._cuda``, where they were built. Loaded on first use: layers on the CPU start
without them."""

from __future__ import annotations

import importlib
from typing import Any

from . import cublaslt

#: The extension, and why there is none.
module: Any
absent: str | None


def _load() -> None:
    global module, absent
    module = absent = None
    try:
        module = importlib.import_module("fastrnn._cuda")
    except ModuleNotFoundError:
        absent = "this fastrnn was built without CUDA"
    except ImportError as error:
        absent = f"fastrnn._cuda cannot be loaded: {error}"


def sizes(*args: Any) -> tuple[int, int, int]:
    """As the extension's, with room for the cuBLASLt that is used."""
    cublaslt.choose(module)
    return module.sizes(*args)


def __getattr__(name: str) -> Any:
    if name not in ("module", "absent"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _load()
    return globals()[name]
