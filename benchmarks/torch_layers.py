"""fastrnn.torch's layers beside torch.nn's in the same process: through autograd, with torch's tensors and threads.

    python benchmarks/torch_layers.py [--threads 2] [--seconds 2] [--cell lstm,gru,rnn] [--json FILE]

Rows are the standard shapes of `fastrnn bench`, inference (``no_grad``) and forward + backward, and packed sequences
(B=32, I=H=256, lengths uniform in 1..T, T = 100 and 1000), forward + backward. The two layers take turns, a call each;
reported are the medians, their interquartile ranges over them, the ratio (above 1: fastrnn is faster), and the largest
difference of the outputs and gradients over the largest value.
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
PACKED_BATCH = 32
Call = Callable[[], list[torch.Tensor]]


def make_pair(cell: str, shape: shapes.Shape) -> tuple[nn.RNNBase, nn.RNNBase]:
    torch.manual_seed(0)
    theirs = CELLS[cell](shape.input_size, shape.hidden_size, shape.num_layers)
    mine = CELLS[cell](shape.input_size, shape.hidden_size, shape.num_layers)
    mine.load_state_dict(theirs.state_dict())
    return theirs, fastrnn.torch.accelerate(mine)


def inference(layer: nn.RNNBase, x: torch.Tensor) -> Call:
    @torch.no_grad()
    def call() -> list[torch.Tensor]:
        return [layer(x)[0]]

    return call


def training(layer: nn.RNNBase, x: Any, dy: torch.Tensor) -> Call:
    leaf = x.data if isinstance(x, nn.utils.rnn.PackedSequence) else x

    def call() -> list[torch.Tensor]:
        layer.zero_grad()
        leaf.grad = None
        y = layer(x)[0]
        (y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y).backward(dy)
        return [leaf.grad, *(w.grad for w in layer.parameters())]

    return call


def rows(cells: list[str]) -> Iterator[tuple[str, str, str, Call, Call]]:
    """(cell, shape, mode, torch's call, fastrnn's call)."""
    for shape in shapes.STANDARD:
        for cell in cells:
            layers = make_pair(cell, shape)
            x = torch.randn(shape.seq_len, shape.batch, shape.input_size)
            dy = torch.randn(shape.seq_len, shape.batch, shape.hidden_size)
            yield cell, str(shape), "infer", *(inference(layer, x) for layer in layers)
            x.requires_grad_()
            yield cell, str(shape), "train", *(training(layer, x, dy) for layer in layers)
    for seq_len in (100, 1000):
        shape = shapes.Shape(seq_len, PACKED_BATCH, 256, 256, 1)
        lengths = torch.from_numpy(np.random.default_rng(0).integers(1, seq_len + 1, shape.batch))
        x = torch.randn(seq_len, shape.batch, shape.input_size)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        dy = torch.randn(len(packed.data), shape.hidden_size)
        packed.data.requires_grad_()
        for cell in cells:
            calls = (training(layer, packed, dy) for layer in make_pair(cell, shape))
            yield cell, f"packed {shape}", "train", *calls


def measure(calls: tuple[Call, Call], seconds: float) -> tuple[list[list[float]], float]:
    """Seconds of each call of each, and the error."""
    expected, got = ([t.clone() for t in call()] for call in calls)
    error = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(got, expected, strict=True))
    times: list[list[float]] = [[], []]
    end = perf_counter() + seconds
    while perf_counter() < end or len(times[0]) < 5:
        for call, own in zip(calls, times, strict=True):
            start = perf_counter()
            call()
            own.append(perf_counter() - start)
    return times, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--cell", default="lstm,gru,rnn")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fastrnn.set_num_threads(options.threads)
    record = []
    for cell, shape, mode, *calls in rows(options.cell.split(",")):
        times, error = measure((calls[0], calls[1]), options.seconds)
        medians = [float(np.median(t)) for t in times]
        spreads = [float(np.subtract(*np.quantile(t, (0.75, 0.25)))) / m for t, m in zip(times, medians, strict=True)]
        record.append(
            {"cell": cell, "shape": shape, "mode": mode, "torch_ms": medians[0] * 1e3, "fastrnn_ms": medians[1] * 1e3}
            | {"torch_spread": spreads[0], "fastrnn_spread": spreads[1], "error": error}
        )
        print(
            f"{cell:5}{shape:26}{mode:6} torch {medians[0] * 1e3:9.3f} ms ±{spreads[0]:4.0%}"
            f"  fastrnn {medians[1] * 1e3:9.3f} ms ±{spreads[1]:4.0%}  ratio {medians[0] / medians[1]:6.2f}"
            f"  error {error:.0e}",
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
