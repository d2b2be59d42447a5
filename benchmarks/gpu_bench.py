"""The CUDA kernels beside PyTorch's cuDNN: one line of JSON for each cell, dtype and shape, as soon as it is measured.

    PYTHONPATH=... python benchmarks/gpu_bench.py --seconds 300 [--latency US] > rows.jsonl

What fails is a line too, with the reason. `gpu_check.py` runs this and makes a table of it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn.torch
from fastrnn import _cuda
from fastrnn.cuda import cublaslt

#: T, B, I, H, L, bidirectional
SHAPES = (
    (1000, 16, 128, 128, 1, False),
    (1024, 16, 768, 768, 1, False),
    (256, 64, 1024, 1024, 1, False),
    (256, 32, 256, 256, 1, True),
    (512, 16, 512, 512, 1, False),
    (128, 128, 1024, 1024, 2, False),
    (1000, 8, 64, 64, 1, False),
    (256, 64, 128, 128, 2, True),
    (256, 32, 256, 256, 1, False),
    (100, 20, 650, 650, 2, False),
    (128, 32, 512, 512, 4, False),
)
#: Lengths are drawn from 1..T.
PACKED = (256, 32, 256, 256, 1, False)
#: Where the own kernel's products are measured beside cuBLASLt's.
OWN_PRODUCTS = SHAPES[:3]
NUMBERS = ("bfloat16", "float16", "float32", "tf32")
GATES = {"lstm": 4, "gru": 3}
SECONDS = 0.6  # of each row's turns
#: What an H200 or H100 does at best: operations/s of dense products, bytes/s of its second-level cache, and the seconds
#: that the cell itself takes in a step. The first measured by others, the latter two estimates.
PEAK = {"bfloat16": 790e12, "float16": 790e12, "tf32": 400e12, "float32": 67e12}
CACHE_BANDWIDTH = 5.5e12
CELL_SECONDS = 0.12e-6
#: Up to this size one multiprocessor can hold the recurrent weights, and nobody has to wait for another.
SMALL = 128


def layers(cell: str, number: str, shape: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """torch's layer, the same on the kernels, and x."""
    T, B, I, H, L, bidirectional = shape  # noqa: E741
    dtype = getattr(torch, {"tf32": "float32"}.get(number, number))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = number == "tf32"
    torch.manual_seed(0)
    theirs = getattr(torch.nn, cell.upper())(I, H, L, bidirectional=bidirectional, device="cuda", dtype=dtype)
    theirs.flatten_parameters()
    return (
        theirs,
        fastrnn.torch.accelerate(copy.deepcopy(theirs)),
        torch.randn(T, B, I, device="cuda", dtype=dtype),
    )


def inference(layer: Any, x: Any) -> Callable[[], Any]:
    layer = copy.deepcopy(layer).eval()
    if isinstance(layer, (torch.nn.LSTM, torch.nn.GRU)):
        layer.flatten_parameters()

    @torch.no_grad()
    def call() -> Any:
        return layer(x)[0]

    return call


def training(layer: Any, leaf: Any, make_x: Callable[[Any], Any], dy: Any) -> Callable[[], Any]:
    def call() -> Any:
        layer.zero_grad()
        leaf.grad = None
        y = layer(make_x(leaf))[0]
        y = y.data if isinstance(y, PackedSequence) else y
        y.backward(dy)
        return y

    return call


def off(ours: torch.Tensor, other: torch.Tensor) -> float:
    return float((ours.float() - other.float()).abs().max() / other.float().abs().max())


def measure(cell: str, number: str, shape: tuple[Any, ...], latency: float) -> dict[str, Any]:
    """Milliseconds of cuDNN and of every way to call the kernels, taking turns; their largest differences."""
    theirs, mine, x = layers(cell, number, shape)
    dy = torch.randn(*x.shape[:2], shape[3] * (1 + shape[5]), device="cuda", dtype=x.dtype)
    forward, both = (Ours(cell, number, theirs, x, dy, mode) for mode in (False, True))
    leaf = x.clone().requires_grad_()
    ways: dict[str, Callable[[], Any]] = {
        "cudnn_inference": inference(theirs, x),
        "layer_inference": inference(mine, x),
        "cudnn_training": training(theirs, leaf, lambda x: x, dy),
        "layer_training": training(mine, x.clone().requires_grad_(), lambda x: x, dy),
    }
    expected = ways["cudnn_training"]().detach()
    before = _cuda.cublaslt_products()
    both.both()
    row: dict[str, Any] = {
        "cublaslt_products": _cuda.cublaslt_products() - before,
        "error": {
            "y": off(both.y, expected),
            "inference": off(forward.forward(), ways["cudnn_inference"]()),
            "dx": off(both.dx, leaf.grad),
            "dweights": max(off(g, w.grad) for g, w in zip(both.grads, theirs.parameters(), strict=True)),
        },
    }
    ways |= {
        "inference": forward.forward,
        "inference_graph": captured(forward.forward),
        "training": both.both,
        "training_graph": captured(both.both),
    }
    row["paths"] = both.paths
    if "one_sm" in row["paths"]:
        with general():
            ways |= {
                "general_inference_graph": captured(forward.forward),
                "general_training_graph": captured(both.both),
            }
    if row["cublaslt_products"] and shape in OWN_PRODUCTS:
        with own_products():
            ways |= {
                "own_products_inference_graph": captured(forward.forward),
                "own_products_training_graph": captured(both.both),
            }
    return row | in_turns(ways) | {"floor_inference_ms": 1e3 * floor(cell, number, shape, latency)}


def measure_packed(cell: str, number: str) -> dict[str, Any]:
    """The same for a PackedSequence, which the layers pad and cuDNN takes as it is."""
    theirs, mine, x = layers(cell, number, PACKED)
    lengths = torch.randint(1, len(x) + 1, (x.shape[1],))

    def packed(x: Any) -> Any:
        return pack_padded_sequence(x, lengths, enforce_sorted=False)

    dy = torch.randn(int(lengths.sum()), PACKED[3], device="cuda", dtype=x.dtype)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    ways = {
        "cudnn_inference": inference(theirs, packed(x)),
        "layer_inference": inference(mine, packed(x)),
        "cudnn_training": training(theirs, leaves[0], packed, dy),
        "layer_training": training(mine, leaves[1], packed, dy),
    }
    y = [ways[name]().detach() for name in ("layer_training", "cudnn_training")]
    return {"error": {"y": off(*y), "dx": off(leaves[1].grad, leaves[0].grad)}} | in_turns(ways)


def in_turns(ways: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Milliseconds of each."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or len(times["cudnn_inference"]) < 3:
        for name, way in ways.items():
            times[name].append(milliseconds(way))
    return {
        name: {"ms": statistics.median(taken), "least": min(taken), "most": max(taken), "runs": len(taken)}
        for name, taken in times.items()
    }


def floor(cell: str, number: str, shape: tuple[Any, ...], latency: float) -> float:
    """Seconds below which inference cannot be: the products at the peak, or reading the recurrent weights from the
    cache, then a meeting of all threads and the cell. Both directions may run at once."""
    T, B, I, H, L, bidirectional = shape  # noqa: E741
    gates, size, directions = GATES[cell], 2 if number in ("bfloat16", "float16") else 4, 1 + bidirectional
    step = 2 * gates * H * H * B * directions / PEAK[number]
    if H > SMALL:
        step = max(step, gates * H * H * size * directions / CACHE_BANDWIDTH) + latency
    total = 0.0
    for layer in range(L):
        inputs = I if layer == 0 else H * directions
        total += T * (step + CELL_SECONDS + 2 * gates * H * inputs * B * directions / PEAK[number])
    return total


class Ours:
    """The kernels on PyTorch's memory."""

    def __init__(self, cell: str, number: str, layer: Any, x: Any, dy: Any, training: bool) -> None:
        self._training, self._x, self._dy = training, x, dy
        self._T, self._B, _ = x.shape
        dtype = {"tf32": "float32"}.get(number, number)
        L, D = layer.num_layers, 1 + layer.bidirectional
        self._problem = _cuda.Problem(cell, dtype, layer.input_size, layer.hidden_size, 0, L, layer.bidirectional, True)
        self._options = _cuda.Options(None, None, 0.0, 0, number == "tf32")
        cublaslt.choose(_cuda)
        self._weights = [w.detach() for w in layer.parameters()]
        sizes = _cuda.sizes(self._problem, self._T, self._B, 0.0, training)
        self._memory = [torch.empty(n, dtype=torch.uint8, device="cuda") for n in sizes]
        self.y, self.dx = torch.empty_like(dy), torch.empty_like(x)
        self._states = [x.new_empty(L * D, self._B, layer.hidden_size) for _ in range(4)]
        self.grads = [torch.empty_like(w) for w in self._weights]
        self._has_c = cell == "lstm"
        #: Of forward and backward.
        self.paths: tuple[str, str] = _cuda.paths(self._problem, self._T, self._B, number == "tf32")

    def forward(self) -> Any:
        h_n, c_n = self._states[:2]
        _cuda.forward(
            self._problem, self._T, self._B, self._x.data_ptr(), None, None, [w.data_ptr() for w in self._weights],
            self._options, (self.y.data_ptr(), h_n.data_ptr(), c_n.data_ptr() if self._has_c else None),
            self._memory[0].data_ptr() if self._training else None, self._memory[1].data_ptr(), stream(),
        )  # fmt: skip
        return self.y

    def both(self) -> Any:
        self.forward()
        dh_0, dc_0 = self._states[2:]
        _cuda.backward(
            self._problem, self._T, self._B, self._x.data_ptr(), self.y.data_ptr(),
            [w.data_ptr() for w in self._weights], self._options, self._dy.data_ptr(), None, None,
            (self.dx.data_ptr(), dh_0.data_ptr(), dc_0.data_ptr() if self._has_c else None),
            [g.data_ptr() for g in self.grads], self._memory[0].data_ptr(), self._memory[2].data_ptr(), stream(),
            False,
        )  # fmt: skip
        return self.y


@contextlib.contextmanager
def general() -> Iterator[None]:
    """Calls take the general path, whatever the sizes."""
    os.environ["FASTRNN_CUDA_PATH"] = "general"
    try:
        yield
    finally:
        del os.environ["FASTRNN_CUDA_PATH"]


@contextlib.contextmanager
def own_products() -> Iterator[None]:
    """Calls leave nothing to cuBLASLt, which was in use."""
    _cuda.unload_cublaslt()
    try:
        yield
    finally:
        _cuda.load_cublaslt(cublaslt.choose(_cuda).name, False)


def stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The same as one CUDA graph."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def milliseconds(call: Callable[[], Any]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="no row is begun later than that")
    parser.add_argument("--latency", type=float, default=1.2, help="microseconds of a meeting of all threads")
    options = parser.parse_args()
    # Where cuDNN can take bfloat16 at all, torch may not lay its weights out for it unasked.
    torch.backends.cudnn.CUDNN_TENSOR_DTYPES.add(torch.bfloat16)
    end = time.monotonic() + options.seconds
    kinds = [(shape, False) for shape in SHAPES]
    kinds.insert(1, (PACKED, True))
    for number, (shape, packed), cell in itertools.product(NUMBERS, kinds, GATES):
        row: dict[str, Any] = {"cell": cell, "dtype": number, "shape": list(shape[:5]), "bidirectional": shape[5]}
        row["packed"] = packed
        if time.monotonic() > end:
            print(json.dumps(row | {"left_out": True}), flush=True)
            continue
        try:
            row |= measure_packed(cell, number) if packed else measure(cell, number, shape, options.latency * 1e-6)
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"
        print(json.dumps(row), flush=True)
        if "CUDA error" in row.get("failed", ""):
            return 1  # which no later call would survive
    return 0


if __name__ == "__main__":
    sys.exit(main())
