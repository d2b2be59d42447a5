"""Looks for cliffs: sizes at which a layer takes more time or memory than the sizes beside it.

    python benchmarks/scan.py --json FILE [--plot FILE.png]     # measures, about 15 minutes
    python benchmarks/scan.py --read FILE [--plot FILE.png]     # what was measured

One size is varied at a time, H, B, T or I, for each cell, in inference and in training, with float32, float64, lengths
(drawn from 1..T) and resets (one step in twenty). Each point is the time of a call over the operations of its matrix
products, and in training the bytes kept for backward over rows and hidden units. Both fall as sizes grow, or stay: a
point is a cliff where it lies more than 1.5 times above the size before it, or above the least of all smaller ones,
the latter told anew only where it has grown by 1.5 again. The exit status is 0 also where there are some.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import fastrnn
from fastrnn.bench import machine, shapes
from fastrnn.bench.harness import spread

LIMIT = 1.5
TURN_SECONDS = 0.002
AGAIN, AGAIN_AFTER = 10, 0.3  # a point that stands out is measured again so many times, after so many seconds each
CELLS = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}
VARIANTS = ("float32", "float64", "lengths", "resets")

_SMALL = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 20, 24, 31, 32, 33, 40, 48, 63, 64, 65, 80, 96, 100, 127, 128, 129)
_LARGE = (
    160,
    192,
    200,
    255,
    256,
    257,
    320,
    384,
    400,
    511,
    512,
    513,
    650,
    768,
    1000,
    1023,
    1024,
    1025,
    1500,
    2047,
    2048,
)
_BATCHES = (*range(1, 14), 15, 16, 17, 20, 25, 31, 32, 33, 48, 64, 65, 96, 127, 128, 129, 200, 256)
_STEPS = (1, 2, 3, 4, 5, 7, 8, 10, 16, 20, 32, 50, 64, 65, 100, 128, 200, 256, 400, 512, 513, 1000, 1024, 2000, 4096)
#: What is varied, its values, and the other sizes.
AXES = {
    "hidden_size": (_SMALL + _LARGE, shapes.Shape(20, 8, 64, 0, 1)),
    "batch": (_BATCHES, shapes.Shape(20, 0, 128, 128, 1)),
    "seq_len": (_STEPS, shapes.Shape(0, 8, 128, 128, 1)),
    "input_size": (_SMALL + _LARGE, shapes.Shape(20, 8, 0, 128, 1)),
}


@dataclass(frozen=True)
class Line:
    """Points that are compared with each other."""

    axis: str
    cell: str
    mode: str
    variant: str


@dataclass
class Point:
    value: int
    ns_per_flop: float
    spread: float  # interquartile range over median
    bytes_per_unit: float | None  # training: kept for backward, per row and hidden unit


def measure(line: Line, rounds: int) -> list[Point]:
    """All points of a line, in turns, each round in another order; those that stand out, again."""
    values, base = AXES[line.axis]
    calls, counts, kept = [], [], []
    for value in values:
        call, count, nbytes = _prepare(line, replace(base, **{line.axis: value}))
        calls.append(call)
        counts.append(count)
        kept.append(nbytes)
    times: list[list[float]] = [[] for _ in values]
    order = random.Random(0)
    for _ in range(rounds):
        for i in order.sample(range(len(values)), len(values)):
            times[i].append(_time(calls[i]))
    points = _points(values, times, counts, kept)
    for _ in range(AGAIN):  # slow spells of the machine pass, cliffs stay
        rising = {value for value, _ in cliffs(points, "ns_per_flop")}
        if not rising:
            break
        time.sleep(AGAIN_AFTER)
        for i, value in enumerate(values):
            if value in rising:
                times[i].append(_time(calls[i]))
        points = _points(values, times, counts, kept)
    return points


def _points(
    values: Sequence[int], times: list[list[float]], counts: list[float], kept: list[float | None]
) -> list[Point]:
    # The least: a slow spell of the machine is no property of a size.
    return [
        Point(value, min(measured) * 1e9 / count, spread(measured), nbytes)
        for value, measured, count, nbytes in zip(values, times, counts, kept, strict=True)
    ]


def _prepare(line: Line, shape: shapes.Shape) -> tuple[Any, float, float | None]:
    """The call to time, its operations, and what training keeps per row and unit."""
    rng = np.random.default_rng(0)
    dtype = "float64" if line.variant == "float64" else "float32"
    layer = CELLS[line.cell](shape.input_size, shape.hidden_size, dtype=dtype, seed=0)
    x = rng.standard_normal((shape.seq_len, shape.batch, shape.input_size)).astype(dtype)
    dy = rng.standard_normal((shape.seq_len, shape.batch, shape.hidden_size)).astype(dtype)
    options: dict[str, Any] = {}
    rows = shape.seq_len * shape.batch
    if line.variant == "lengths":
        options["lengths"] = rng.integers(1, shape.seq_len + 1, shape.batch)
        rows = int(options["lengths"].sum())
    elif line.variant == "resets":
        options["resets"] = rng.random((shape.seq_len, shape.batch)) < 0.05
    count = shapes.flops(line.cell, shape, line.mode) * rows / (shape.seq_len * shape.batch)
    if line.mode == "infer":
        return lambda: layer(x, **options), count, None

    def train() -> None:
        _, _, tape = layer.forward(x, **options)
        layer.backward(tape, dy)

    nbytes = layer.forward(x, **options)[2].nbytes / (rows * shape.hidden_size)
    return train, count, nbytes


def _time(call: Any) -> float:
    """Seconds of a call, the least of some."""
    call()
    best, end = float("inf"), time.perf_counter() + TURN_SECONDS
    while True:
        start = time.perf_counter()
        call()
        stop = time.perf_counter()
        best = min(best, stop - start)
        if stop >= end:
            return best


def cliffs(points: list[Point], of: str) -> Iterator[tuple[int, float]]:
    """Values at which `of` rises, and by what factor: above the value before, or higher than ever above the least."""
    heights = [getattr(point, of) for point in points]
    if None in heights:
        return
    least, known = heights[0], LIMIT
    for before, here, point in zip(heights, heights[1:], points[1:], strict=False):
        above = here / least
        if here > LIMIT * before or above > known:
            yield point.value, max(here / before, above)
        known, least = max(known, LIMIT * above), min(least, here)


def plot(document: dict[str, Any], path: Path) -> None:
    """A column for each axis; rows: time of inference and of training, memory of training."""
    from matplotlib import pyplot

    colours = {"lstm": "C0", "gru": "C1", "rnn": "C2"}
    styles = {"float32": "-", "float64": "--", "lengths": ":", "resets": "-."}
    panels = [("infer", "ns_per_flop"), ("train", "ns_per_flop"), ("train", "bytes_per_unit")]
    figure, axes = pyplot.subplots(len(panels), len(AXES), figsize=(20, 12), sharey="row", squeeze=False)
    for line, points in _lines(document):
        for row, (mode, of) in enumerate(panels):
            if line.mode == mode:
                axes[row][list(AXES).index(line.axis)].loglog(
                    [point.value for point in points],
                    [getattr(point, of) for point in points],
                    color=colours[line.cell], linestyle=styles[line.variant], linewidth=1, marker=".", markersize=3,
                    label=f"{line.cell} {line.variant}",
                )  # fmt: skip
    for row, (mode, of) in enumerate(panels):
        label = "ns per operation" if of == "ns_per_flop" else "bytes kept per row and unit"
        axes[row][0].set_ylabel(f"{mode}: {label}")
        for axis, panel in zip(AXES, axes[row], strict=True):
            panel.set_xlabel(axis)
            panel.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=6, ncols=3)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def report(document: dict[str, Any]) -> None:
    for line, points in _lines(document):
        for of in ("ns_per_flop", "bytes_per_unit"):
            for value, ratio in cliffs(points, of):
                print(f"{line.cell} {line.mode} {line.variant} {line.axis}={value}: {of} x{ratio:.2f}")


def _lines(document: dict[str, Any]) -> Iterator[tuple[Line, list[Point]]]:
    for entry in document["lines"]:
        yield Line(*entry["line"]), [Point(*point) for point in entry["points"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--json", type=Path, metavar="FILE", help="measure, and write what was measured")
    target.add_argument("--read", type=Path, metavar="FILE", help="what was measured before")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw it (needs matplotlib)")
    parser.add_argument("--threads", type=int, default=fastrnn.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7, help="for each point (default 7)")
    args = parser.parse_args()
    if args.read:
        document = json.loads(args.read.read_text(encoding="utf-8"))
    else:
        fastrnn.set_num_threads(args.threads)
        document = {"machine": machine.describe(), "commit": machine.commit(), "threads": args.threads, "lines": []}
        combinations = [
            Line(axis, cell, mode, variant)
            for axis in AXES for cell in CELLS for mode in shapes.MODES for variant in VARIANTS
        ]  # fmt: skip
        for number, line in enumerate(combinations, 1):
            print(f"{number}/{len(combinations)}: {line}", file=sys.stderr)
            points = [list(vars(point).values()) for point in measure(line, args.rounds)]
            document["lines"].append({"line": list(vars(line).values()), "points": points})
            args.json.write_text(json.dumps(document) + "\n", encoding="utf-8")
    report(document)
    if args.plot:
        plot(document, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
