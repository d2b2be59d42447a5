"""fastrnn.torch's layers beside torch.nn's in the same process: through autograd, with torch's tensors and threads.

    python benchmarks/torch_layers.py [--threads 2] [--seconds 2] [--cell lstm,gru,rnn] [--json FILE]

Rows are the standard shapes of `fastrnn bench`, inference (``no_grad``) and forward + backward; 10 steps of the cells
in a Python loop; packed sequences (B=32, I=H=256, lengths uniform in 1..T, T = 100 and 1000), forward + backward; and a
training step of models in which linear layers stand between recurrent ones. torch's and fastrnn's take turns, a call
each; reported are the medians, their interquartile ranges over them, the ratio (above 1: fastrnn is faster), and the
largest difference of the outputs and gradients over the largest value. With the models two more calls take turns: the
accelerated layers without what stands between them, and that without the layers. Their sum over the time of the model
shows what the change from one to the other costs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

import fastrnn.torch
from fastrnn.bench import machine, shapes

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
STEPS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}
PACKED_BATCH = 32
SINGLE_STEPS = ((1, 64), (1, 256), (8, 256), (32, 256), (128, 512))  # of the cells: B, and I = H
LOOP = 10  # steps of the cells
MODELS = ((100, 1, 128), (50, 16, 256), (35, 64, 512))  # T, B, and the sizes of all layers
Call = Callable[[], list[torch.Tensor]]


def make_pair(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs, mine = make(), make()
    mine.load_state_dict(theirs.state_dict())
    return theirs, fastrnn.torch.accelerate(mine)


class Between(nn.Module):
    """Two recurrent layers, and what stands before, between and after them; either can be left out."""

    def __init__(self, cell: str, size: int, layers: bool = True, linear: bool = True) -> None:
        super().__init__()
        self.rnns = nn.ModuleList(CELLS[cell](size, size) if layers else None for _ in range(2))
        self.linear = nn.ModuleList(nn.Linear(size, size) if linear else None for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        for i in range(3):
            if self.linear[i] is not None:
                x = torch.tanh(self.linear[i](x))
            if i < 2 and self.rnns[i] is not None:
                x = self.rnns[i](x)[0]
        return (x,)


def inference(layer: nn.Module, x: torch.Tensor) -> Call:
    @torch.no_grad()
    def call() -> list[torch.Tensor]:
        return [layer(x)[0]]

    return call


def training(layer: nn.Module, x: Any, dy: torch.Tensor) -> Call:
    leaf = x.data if isinstance(x, nn.utils.rnn.PackedSequence) else x

    def call() -> list[torch.Tensor]:
        layer.zero_grad()
        leaf.grad = None
        y = layer(x)[0]
        (y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y).backward(dy)
        return [leaf.grad, *(w.grad for w in layer.parameters())]

    return call


def layer_pair(cell: str, shape: shapes.Shape) -> tuple[nn.Module, nn.Module]:
    return make_pair(lambda: CELLS[cell](shape.input_size, shape.hidden_size, shape.num_layers))


def rows(cells: list[str]) -> Iterator[tuple[str, str, str, list[Call]]]:
    """(cell, shape, mode, calls: torch's, fastrnn's and, of models, those of their two parts)."""
    for shape in shapes.STANDARD:
        for cell in cells:
            layers = layer_pair(cell, shape)
            x = torch.randn(shape.seq_len, shape.batch, shape.input_size)
            dy = torch.randn(shape.seq_len, shape.batch, shape.hidden_size)
            yield cell, str(shape), "infer", [inference(layer, x) for layer in layers]
            x.requires_grad_()
            yield cell, str(shape), "train", [training(layer, x, dy) for layer in layers]
    for batch, size in SINGLE_STEPS:
        for cell in cells:
            steps = make_pair(lambda: STEPS[cell](size, size))  # noqa: B023
            x, dy = torch.randn(LOOP, batch, size), torch.randn(LOOP, batch, size)
            yield cell, f"loop {batch},{size}", "infer", [inference(Loop(step), x) for step in steps]
            x.requires_grad_()
            yield cell, f"loop {batch},{size}", "train", [training(Loop(step), x, dy) for step in steps]
    for seq_len in (100, 1000):
        shape = shapes.Shape(seq_len, PACKED_BATCH, 256, 256, 1)
        lengths = torch.from_numpy(np.random.default_rng(0).integers(1, seq_len + 1, shape.batch))
        x = torch.randn(seq_len, shape.batch, shape.input_size)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        dy = torch.randn(len(packed.data), shape.hidden_size)
        packed.data.requires_grad_()
        for cell in cells:
            yield cell, f"packed {shape}", "train", [training(layer, packed, dy) for layer in layer_pair(cell, shape)]
    for seq_len, batch, size in MODELS:
        x, dy = torch.randn(seq_len, batch, size), torch.randn(seq_len, batch, size)
        x.requires_grad_()
        for cell in cells:
            models = [
                *make_pair(lambda: Between(cell, size)),  # noqa: B023
                fastrnn.torch.accelerate(Between(cell, size, linear=False)),
                Between(cell, size, layers=False),
            ]
            yield cell, f"model {seq_len},{batch},{size}", "train", [training(model, x, dy) for model in models]


class Loop(nn.Module):
    """A cell in a Python loop over time, as layers that cannot be fused are written."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        state, outputs = None, []
        for x_t in x:
            state = self.step(x_t, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return (torch.stack(outputs),)


def measure(calls: list[Call], seconds: float) -> tuple[list[list[float]], float]:
    """Seconds of each call of each, and the error of the second against the first."""
    expected, got = ([t.clone() for t in call()] for call in calls[:2])
    error = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(got, expected, strict=True))
    times: list[list[float]] = [[] for _ in calls]
    start = perf_counter()
    # At least five rounds, but of calls that take many seconds two tell enough.
    while (elapsed := perf_counter() - start) < seconds or len(times[0]) < (2 if elapsed > 30 else 5):
        for call, own in zip(calls, times, strict=True):
            begin = perf_counter()
            call()
            own.append(perf_counter() - begin)
    return times, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--cell", default="lstm,gru,rnn")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name begins with it, such as model")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fastrnn.set_num_threads(options.threads)
    record = []
    for cell, shape, mode, calls in rows(options.cell.split(",")):
        if not shape.startswith(options.only):
            continue
        times, error = measure(calls, options.seconds)
        medians = [float(np.median(t)) for t in times]
        spreads = [float(np.subtract(*np.quantile(t, (0.75, 0.25)))) / m for t, m in zip(times, medians, strict=True)]
        record.append(
            {"cell": cell, "shape": shape, "mode": mode, "torch_ms": medians[0] * 1e3, "fastrnn_ms": medians[1] * 1e3}
            | {"torch_spread": spreads[0], "fastrnn_spread": spreads[1], "error": error}
            | ({"parts_ms": sum(medians[2:]) * 1e3} if len(calls) > 2 else {})
        )
        print(
            f"{cell:5}{shape:26}{mode:6} torch {medians[0] * 1e3:9.3f} ms ±{spreads[0]:4.0%}"
            f"  fastrnn {medians[1] * 1e3:9.3f} ms ±{spreads[1]:4.0%}  ratio {medians[0] / medians[1]:6.2f}"
            f"  error {error:.0e}" + (f"  parts / whole {sum(medians[2:]) / medians[1]:.2f}" if len(calls) > 2 else ""),
            flush=True,
        )
        if options.json:
            document = {
                "machine": machine.describe(),
                "versions": machine.versions(["torch"]),
                "commit": machine.commit(),
                "threads": options.threads,
                "packed_batch": PACKED_BATCH,
                "rows": record,
            }
            options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
