"""Calls of the CUDA kernels for tests: on a GPU, or on the CPU in the emulation that tests/cuda/ compiles them against.

The emulated module is the one that FASTRNN_CUDA_EMULATED names:

    cmake -B build -DFASTRNN_CUDA_EMULATED=ON && cmake --build build --target _cuda_emulated
    FASTRNN_CUDA_EMULATED=$(ls build/tests/cuda/_cuda_emulated*.so) pytest tests/test_cuda_kernels.py

Without that variable the tests run on the GPU, given an extension built for it and a PyTorch that sees it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

import helpers
from fastrnn import reference
from helpers import Arrays, Case, Data, is_of_weight, largest, named_gradients

#: What kernels compute in, and the dtype of the arrays they take.
NUMBERS = {
    "float64": "float64",
    "float32": "float32",
    "tf32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
}
#: Of what products are rounded to. TF32 has as many bits as float16.
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "float16": 2.0**-10, "bfloat16": 2.0**-7}


class Emulation:
    """The emulated module, whose device memory is NumPy's."""

    stream = 0

    def __init__(self, path: str) -> None:
        loader = importlib.machinery.ExtensionFileLoader("_cuda_emulated", path)
        spec = importlib.util.spec_from_loader("_cuda_emulated", loader)
        assert spec is not None
        self.module = importlib.util.module_from_spec(spec)
        loader.exec_module(self.module)

    def put(self, array: np.ndarray) -> Any:
        """A copy in device memory."""
        return array.copy()

    def get(self, array: Any) -> np.ndarray:
        return np.asarray(array).copy()

    def address(self, array: Any) -> int:
        return int(array.ctypes.data)


class Gpu:
    """The extension that is installed, and PyTorch's memory."""

    def __init__(self, module: ModuleType, torch: ModuleType) -> None:
        self.module, self._torch = module, torch

    @property
    def stream(self) -> int:
        return int(self._torch.cuda.current_stream().cuda_stream)

    def put(self, array: np.ndarray) -> Any:
        plain = array.view(np.int16) if array.dtype == np.uint16 else array
        return self._torch.from_numpy(np.ascontiguousarray(plain)).cuda()

    def get(self, array: Any) -> np.ndarray:
        plain = array.cpu().numpy()
        return plain.view(np.uint16) if plain.dtype == np.int16 else plain

    def address(self, array: Any) -> int:
        return int(array.data_ptr())


def device() -> Emulation | Gpu | None:
    """None: there is neither."""
    path = os.environ.get("FASTRNN_CUDA_EMULATED")
    if path:
        return Emulation(path)
    try:
        import torch

        from fastrnn import _cuda
    except ImportError:
        return None
    return Gpu(_cuda, torch) if torch.cuda.is_available() else None


def stored(array: np.ndarray, number: str) -> np.ndarray:
    """The array as kernels take it; NumPy has no bfloat16, whose bits stand in uint16 here."""
    if number != "bfloat16":
        return np.ascontiguousarray(array, dtype=NUMBERS[number])
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # ties to even
    return np.where(np.isnan(array), 0x7FC0, nearest).astype(np.uint16)


def loaded(array: np.ndarray, number: str) -> np.ndarray:
    if number != "bfloat16":
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


def rounded(data: Data, number: str) -> Data:
    """Data whose numbers all exist in the dtype."""

    def fit(array: np.ndarray) -> np.ndarray:
        return loaded(stored(array, number), number).astype(array.dtype)

    return replace(
        data,
        x=fit(data.x),
        weights={name: fit(w) for name, w in data.weights.items()},
        state=tuple(map(fit, data.state)),
        dy=fit(data.dy),
        dstate=tuple(map(fit, data.dstate)),
    )


class Call:
    """One forward and any number of backward passes of a case; every array begins as NaN."""

    def __init__(self, device: Emulation | Gpu, case: Case, data: Data, number: str, training: bool = True) -> None:
        self.device, self.case, self.data, self.number, self.training = device, case, data, number, training
        self.problem = device.module.Problem(
            case.cell, NUMBERS[number], case.I, case.H, case.proj_size, case.num_layers, case.bidirectional, case.bias
        )
        self._kept: list[Any] = []  # everything that the device was told an address of
        dropout = case.dropout if training else 0.0
        self.bytes = device.module.sizes(self.problem, case.T, case.B, dropout, training)
        self.options = device.module.Options(
            self._put(None if data.lengths is None else data.lengths.astype(np.int64)),
            self._put(None if data.resets is None else data.resets.astype(np.uint8)),
            dropout,
            data.dropout_seed,
            number == "tf32",
        )
        self.x = self._put(stored(data.x, number))
        self.weights = [self._put(stored(w, number)) for w in data.weights.values()]
        self.y = self._nan(case.T, case.B, case.output * (1 + case.bidirectional))
        self.reserve = self._bytes(self.bytes[0]) if training else None

    @property
    def paths(self) -> tuple[str, str]:
        """Of forward and backward, for arrays as aligned as can be."""
        return self.device.module.paths(self.problem, self.case.T, self.case.B, self.number == "tf32")

    def forward(self) -> Arrays:
        case = self.case
        state = [self._put(stored(s, self.number)) for s in self.data.state] if case.state else []
        final = [self._nan(*shape) for shape in case.state_shapes]
        self.device.module.forward(
            self.problem, case.T, case.B, self.x, *_pair(state), self.weights, self.options,
            (self._address(self.y), *_pair(map(self._address, final))), self.reserve, self._bytes(self.bytes[1]),
            self.device.stream,
        )  # fmt: skip
        return {name: self._get(a) for name, a in zip(("y", "h_n", "c_n"), [self.y, *final], strict=False)}

    def backward(self, dweights: list[np.ndarray] | None = None, need_dx: bool = True) -> Arrays:
        """dweights: what the gradients are added to; else they take its place."""
        case, data, number = self.case, self.data, self.number
        dx = self._nan(*data.x.shape) if need_dx else None
        dstate = [self._nan(*shape) for shape in case.state_shapes]
        before = dweights or [np.full(w.shape, np.nan, np.float32) for w in data.weights.values()]
        grads = [self.device.put(stored(b, number)) for b in before]
        self.device.module.backward(
            self.problem, case.T, case.B, self.x, self._address(self.y), self.weights, self.options,
            self._put(stored(data.dy, number)), *_pair(self._put(stored(s, number)) for s in data.dstate),
            (dx if dx is None else self._address(dx), *_pair(map(self._address, dstate))),
            [self.device.address(g) for g in grads], self.reserve, self._bytes(self.bytes[2]), self.device.stream,
            dweights is not None,
        )  # fmt: skip
        named = {name: self._get(g) for name, g in zip(data.weights, grads, strict=True)}
        state = tuple(map(self._get, dstate))
        return named_gradients(None if dx is None else self._get(dx), state[0] if len(state) == 1 else state, named)

    def _put(self, array: np.ndarray | None) -> int | None:
        """The address of a copy."""
        return None if array is None else self._address(self.device.put(array))

    def _address(self, array: Any) -> int:
        self._kept.append(array)
        return self.device.address(array)

    def _bytes(self, n: int) -> int | None:
        return self._put(np.full(n, 0xFF, np.uint8))  # NaN in every dtype

    def _nan(self, *shape: int) -> Any:
        return self.device.put(stored(np.full(shape, np.nan, np.float32), self.number))

    def _get(self, array: Any) -> np.ndarray:
        return loaded(self.device.get(array), self.number)


def _pair(items: Any) -> Sequence[Any]:
    """h and c, or None in the place of what is missing."""
    return [*items, None, None][:2]


def run(device: Emulation | Gpu, case: Case, data: Data, number: str) -> Arrays:
    """Every value and gradient of a case, by name."""
    call = Call(device, case, data, number)
    return call.forward() | call.backward()


def tolerances(case: Case, data: Data, expected: Arrays, eps: float) -> dict[str, float]:
    """As helpers.tolerances for what has fewer bits than float32: 2 x the largest error of the reference in float16 + 8
    eps max|expected|, over all values, all gradients of data and all gradients of weights. The error of a dtype of
    fewer bits is as many times larger as its eps."""
    plain = helpers.run(reference, case, data, dtype=np.float16)
    times = eps / EPS["float16"]

    def kind(name: str) -> str:
        return "weights" if is_of_weight(name) else "data" if name.startswith("d") else "values"

    errors: dict[str, float] = {}
    for name, want in expected.items():
        error = 2 * times * largest(plain[name] - want) + 8 * eps * largest(want)
        errors[kind(name)] = max(errors.get(kind(name), 0.0), error)
    return {name: errors[kind(name)] for name in expected}


def drawn(case: Case, number: str) -> tuple[Data, Arrays, dict[str, float]]:
    """As helpers.drawn, for any of NUMBERS."""
    if number in ("float32", "float64"):
        return helpers.drawn(case)
    for seed in itertools.count():
        data = rounded(helpers.draw(case, seed), number)
        if case.cell != "rnn_relu" or not helpers.near_zero(case, data, EPS[number]):
            break
    expected = helpers.exact(case, data)
    return data, expected, tolerances(case, data, expected, EPS[number])
