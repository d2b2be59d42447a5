"""Arrays on GPUs for tests: of CuPy and PyTorch on a GPU, or, with emulated kernels, of stand-ins.

Emulated (see cuda_calls.py), ``fake_cupy`` is CuPy and PyTorch's tensors on the CPU count as tensors on the first GPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cuda_calls
import fake_cupy
from fastrnn import config, spec
from fastrnn.cuda import cublaslt, extension, kernels, libraries

device = cuda_calls.device()
EMULATED = isinstance(device, cuda_calls.Emulation)
AVAILABLE = device is not None and (EMULATED or importlib.util.find_spec("cupy") is not None)
needs_kernels = pytest.mark.skipif(
    not AVAILABLE, reason="no CUDA device with CuPy and no emulation of one: see tests/cuda_calls.py"
)
emulated_only = pytest.mark.skipif(not EMULATED, reason="looks into the stand-in for CuPy")


def forget() -> None:
    """What was found out about libraries, and everything that was made of them."""
    for cache in (libraries.cupy, libraries.torch, kernels.Problem, spec.make_spec):
        cache.cache_clear()
    libraries._libraries.clear()


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """The stand-ins in the place of what is not there; nothing on a GPU."""
    if not EMULATED:
        yield
        return
    torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", fake_cupy.module())
        patch.setattr(extension, "module", device.module)
        patch.setattr(extension, "absent", None)
        patch.setattr(cublaslt, "choose", lambda kernels: None)  # one would take addresses for those of a GPU
        patch.setattr(config, "cuda_driver", lambda: "emulated")
        if torch is not None:
            patch.setattr(libraries.Torch, "device", lambda self, array: None if array.device.type == "meta" else 0)
            patch.setattr(libraries.Torch, "_place", lambda self, index: torch.device("cpu"))
            patch.setattr(libraries.Torch, "on", lambda self, index: contextlib.nullcontext(TORCHS_STREAM))
            patch.setattr(libraries.Torch, "memory", lambda self, index: 2**40)
            patch.setattr(libraries.Torch, "current", lambda self: None)
            patch.setattr(libraries.Torch, "is_capturing", lambda self: False)
            patch.setattr(libraries.Torch, "wait", lambda self, *streams: fake_cupy.cuda.waits.append(streams[:2]))
        forget()
        yield
    forget()


TORCHS_STREAM = 0


class CuPys:
    """Arrays of one library: there and back."""

    name = "cupy"

    def put(self, array: np.ndarray) -> Any:
        bits = array.dtype == np.uint16  # of bfloat16
        return sys.modules["cupy"].array(array.view(libraries.numpy_dtype("bfloat16")) if bits else array)

    def get(self, array: Any) -> np.ndarray:
        assert type(array) is sys.modules["cupy"].ndarray
        values = array.get()
        return values.view(np.uint16) if values.dtype.name == "bfloat16" else values


class Torchs:
    name = "torch"

    def put(self, array: np.ndarray) -> Any:
        torch = importlib.import_module("torch")
        if array.dtype == np.uint16:  # the bits of bfloat16
            return self.put(array.view(np.int16)).view(torch.bfloat16)
        # At an address of its own: torch takes NumPy's memory as it is.
        return torch.from_numpy(np.array(array, order="C")).to("cpu" if EMULATED else "cuda")

    def get(self, array: Any) -> np.ndarray:
        torch = importlib.import_module("torch")
        assert type(array) is torch.Tensor
        if array.dtype == torch.bfloat16:
            return self.get(array.view(torch.int16)).view(np.uint16)
        return array.cpu().numpy()


class Others:
    """Emulated only: of a library that has nothing but DLPack."""

    name = "elsewhere"

    def put(self, array: np.ndarray) -> Any:
        return fake_cupy.Elsewhere(CuPys().put(array)._values)

    def get(self, array: Any) -> np.ndarray:
        assert type(array) is fake_cupy.Elsewhere
        return CuPys().get(fake_cupy.ndarray(array.values))


#: Whether CuPy has bfloat16: its own from version 14 on, the stand-in's always, given ml_dtypes.
HAS_BFLOAT16 = (
    AVAILABLE
    and importlib.util.find_spec("ml_dtypes") is not None
    and (EMULATED or int(importlib.import_module("cupy").__version__.partition(".")[0]) >= 14)
)


def libraries_here() -> list[Any]:
    found: list[Any] = [CuPys()]
    if importlib.util.find_spec("torch"):
        found.append(Torchs())
    return [*found, Others()] if EMULATED else found


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """What reads a number back from the GPU, and says so, may do it."""
    fake_cupy.cuda.may_wait = True
    try:
        yield
    finally:
        fake_cupy.cuda.may_wait = False
