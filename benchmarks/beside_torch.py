"""Times the layers beside torch.nn on the shapes of the library's tables, with the error beside the speed.

    python benchmarks/beside_torch.py [--threads N] [--cell lstm,gru,rnn] [--shape T,B,I,H,L ...] [--json FILE]
    python benchmarks/beside_torch.py --table FILE      # prints the table of an earlier run

Both sides get the same weights and run in turns in one process, after a warm-up; printed are medians, the spread
(interquartile range over median), the ratio torch / fastrnn, and the largest difference of any output or gradient over
the largest value. Shapes with T = 1 use `layer.stream` for inference, as a program that has one step at a time would.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

import fastrnn

SHAPES = [
    (1, 1, 256, 256, 1),
    (100, 1, 128, 128, 1),
    (100, 1, 512, 512, 1),
    (50, 16, 256, 256, 1),
    (35, 20, 200, 200, 2),
    (35, 20, 650, 650, 2),
    (100, 32, 512, 512, 1),
    (100, 64, 256, 256, 1),
    (1000, 8, 128, 128, 1),
    (50, 128, 1024, 1024, 1),
]
CELLS = {
    "lstm": (fastrnn.LSTM, torch.nn.LSTM),
    "gru": (fastrnn.GRU, torch.nn.GRU),
    "rnn": (fastrnn.RNN, torch.nn.RNN),
}


def interleaved(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each call, the functions taking turns until `seconds` have passed (at least 5 turns)."""
    for function in functions.values():
        for _ in range(2):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def summary(times: list[float]) -> dict[str, float]:
    first, median, third = statistics.quantiles(times, n=4)
    return {"ms": median, "spread": (third - first) / median, "calls": len(times)}


def relative_error(pairs: list[tuple[np.ndarray, torch.Tensor]]) -> float:
    return max(float(np.abs(ours - theirs.numpy()).max() / theirs.abs().max()) for ours, theirs in pairs)


def measure(cell: str, shape: tuple[int, ...], seconds: float) -> dict:
    seq_len, batch, input_size, hidden_size, layers = shape
    ours_class, theirs_class = CELLS[cell]
    theirs = theirs_class(input_size, hidden_size, layers)
    ours = ours_class(input_size, hidden_size, layers)
    ours.load_state_dict(theirs.state_dict())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((seq_len, batch, input_size), dtype=np.float32)
    dy = rng.standard_normal((seq_len, batch, hidden_size), dtype=np.float32)
    x_torch, dy_torch = torch.tensor(x), torch.tensor(dy)
    x_grad = torch.tensor(x, requires_grad=True)

    def train():
        y, _, tape = ours.forward(x)
        return y, ours.backward(tape, dy)[0]

    def train_torch():
        x_grad.grad = None
        y, _ = theirs(x_grad)
        y.backward(dy_torch)
        return y.detach()

    def infer_torch():
        with torch.no_grad():
            return theirs(x_torch)[0]

    y, dx = train()
    y_torch = train_torch()
    pairs = [(y, y_torch), (dx, x_grad.grad)]
    error = relative_error(pairs + [(ours.grads[name], p.grad) for name, p in theirs.named_parameters()])

    infer: Callable[[], object] = lambda: ours(x)  # noqa: E731
    if seq_len == 1:
        stream, out = ours.stream(batch), np.empty((batch, hidden_size), np.float32)
        infer = lambda: stream.step(x[0], out)  # noqa: E731
    result: dict = {"cell": cell, "shape": list(shape), "error": error}
    for mode, pair in (("infer", (infer, infer_torch)), ("train", (train, train_torch))):
        times = interleaved({"fastrnn": pair[0], "torch": pair[1]}, seconds)
        result[mode] = {name: summary(t) for name, t in times.items()}
        result[mode]["ratio"] = result[mode]["torch"]["ms"] / result[mode]["fastrnn"]["ms"]
    return result


def row(result: dict) -> str:
    cells = [",".join(map(str, result["shape"])), result["cell"]]
    for mode in ("infer", "train"):
        ours, theirs = result[mode]["fastrnn"], result[mode]["torch"]
        cells.append(f"{ours['ms']:.3g} ±{ours['spread']:.0%} / {theirs['ms']:.3g} ±{theirs['spread']:.0%}")
        cells.append(f"{result[mode]['ratio']:.2f}")
    return "| " + " | ".join([*cells, f"{result['error']:.0e}"]) + " |"


HEADER = (
    "| T,B,I,H,L | cell | inference, ms: fastrnn / torch | ratio "
    "| forward + backward, ms: fastrnn / torch | ratio | error |\n"
    "|---|---|---|---|---|---|---|"
)


def machine() -> dict:
    model = platform.processor()
    try:
        with open("/proc/cpuinfo") as f:
            model = next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "commit": commit.stdout.strip() or None,
        "torch": torch.__version__,
        "fastrnn": fastrnn.show_config(mode="dicts"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=fastrnn.get_num_threads())
    parser.add_argument("--cell", default="lstm,gru,rnn")
    parser.add_argument("--shape", nargs="*", default=[",".join(map(str, s)) for s in SHAPES])
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each measurement")
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--table", help="measure nothing; print the table of this JSON")
    args = parser.parse_args()
    if args.table:
        with open(args.table) as f:
            print("\n".join([HEADER, *(row(result) for result in json.load(f)["results"])]))
        return
    fastrnn.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    results = []
    print(HEADER, flush=True)
    for shape in args.shape:
        for cell in args.cell.split(","):
            results.append(measure(cell, tuple(int(n) for n in shape.split(",")), args.seconds))
            print(row(results[-1]), flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"machine": machine(), "threads": args.threads, "results": results}, f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    sys.exit(main())
