"""What a call costs on a layer so small that its kernels take next to nothing, with torch beside it.

    python benchmarks/overhead.py                   # a minute; one step of one row, sizes 4 and 4
    python benchmarks/overhead.py --json FILE

Times are whole calls, kernels included: microseconds, the median over rounds and the range of their middle half. A
pair is ``forward`` and ``backward``. Rounds of all kinds of calls take turns. What a call costs over its kernels is its
time less that of one more step, as calls of many steps tell it.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

import fastrnn
from fastrnn.bench import machine

SIZE = 4
CALLS = 200  # of one kind before the next has its turn
MORE_STEPS = 128  # of a long call than of a short one


def fastrnn_calls(cell: str) -> dict[str, Callable[[], object]]:
    layer = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}[cell](SIZE, SIZE, seed=0)
    x, dy = np.ones((2, 1, 1, SIZE), np.float32)
    long_x, long_dy = np.ones((2, 1 + MORE_STEPS, 1, SIZE), np.float32)
    stream = layer.stream()
    return {
        "step": functools.partial(stream.step, x[0]),
        "call": functools.partial(layer, x),
        "long call": functools.partial(layer, long_x),
        "pair": lambda: layer.backward(layer.forward(x)[2], dy),
        "long pair": lambda: layer.backward(layer.forward(long_x)[2], long_dy),
    }


def torch_calls(cell: str) -> dict[str, Callable[[], object]]:
    try:
        import torch
    except ImportError:
        return {}
    layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[cell](SIZE, SIZE)
    x, dy = torch.ones((2, 1, 1, SIZE))
    x.requires_grad_()

    @torch.inference_mode()
    def call() -> object:
        return layer(x)

    return {"torch call": call, "torch pair": lambda: layer(x)[0].backward(dy)}


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Quartiles of each kind's mean time in a round, in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            start = perf_counter()
            for _ in range(CALLS):
                call()
            times[name].append((perf_counter() - start) / CALLS * 1e6)
    for name in ("call", "pair"):
        rounds_of = zip(times[name], times.pop(f"long {name}"), strict=True)
        times[f"{name} over kernels"] = [short - (long - short) / MORE_STEPS for short, long in rounds_of]
    return {name: [round(float(q), 2) for q in np.quantile(t, (0.25, 0.5, 0.75))] for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = {}
    for cell in ("lstm", "gru", "rnn"):
        rows[cell] = measure(fastrnn_calls(cell) | torch_calls(cell), options.rounds)
        for name, (low, median, high) in rows[cell].items():
            print(f"{cell:5} {name:17} {median:7.2f} us   ({low:.2f} to {high:.2f})", flush=True)
    if options.json:
        record = {"machine": machine.describe(), "commit": machine.commit(), "microseconds": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
