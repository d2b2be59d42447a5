"""Which cuBLASLt the CUDA kernels leave their large products to.

One that is in the process already, as PyTorch's is; else one of NVIDIA's wheels; else the system's; else none, and the
kernels multiply by themselves. The environment variable FASTRNN_CUBLASLT names another one, or is "off". The choice
is made once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "FASTRNN_CUBLASLT"
_NAMES = tuple(f"libcublasLt.so.{major}" for major in (13, 12, 11))


class Choice(NamedTuple):
    """What was found: where, as dlopen takes it, and version; None and None: nothing, or not wanted."""

    name: str | None
    version: str | None
    text: str


@functools.cache
def choose(kernels: Any) -> Choice:
    """Loads what is found into these kernels, a module like fastrnn._cuda.

    Raises:
        ValueError: FASTRNN_CUBLASLT names what is no cuBLASLt of a known version.
    """
    asked = os.environ.get(VARIABLE, "auto")
    if asked == "off":
        kernels.unload_cublaslt()
        return Choice(None, None, f"off, as {VARIABLE} asks")
    if asked != "auto":
        try:
            return _load(kernels, asked, False)
        except RuntimeError as error:
            message = f"{VARIABLE} must be 'auto', 'off' or the path of a cuBLASLt, got {asked!r}: {error}"
            raise ValueError(message) from None
    for name, resident in _places():
        try:
            return _load(kernels, name, resident)
        except RuntimeError:  # the next one, then
            continue
    return Choice(None, None, "none found")


def _load(kernels: Any, name: str, resident: bool) -> Choice:
    number = kernels.load_cublaslt(name, resident)
    version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return Choice(name, version, f"{version}, {name}" + (" of this process" if resident else ""))


def _places() -> Iterator[tuple[str, bool]]:
    """Names, and whether it must be in the process already; looked up as they are asked for."""
    yield from ((name, True) for name in _NAMES)
    with contextlib.suppress(Exception):  # not installed, or whatever keeps it from finding one
        yield importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cublasLt").abs_path, False
    yield from ((str(path), False) for path in _of_wheels())
    yield from ((name, False) for name in _NAMES)


def _of_wheels() -> list[Path]:
    """Those in site-packages/nvidia, the latest version first."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        spec = None
    roots = list(spec.submodule_search_locations or ()) if spec else []
    return [path for name in _NAMES for root in roots for path in sorted(Path(root).glob(f"*/lib/{name}"))]
