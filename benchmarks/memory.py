"""Memory of training beside torch's, and whether it grows over many calls of changing shapes. Linux only.

    python benchmarks/memory.py [--json FILE]

Peak: a process for each library and shape does a step of a tiny layer, makes layer and data, and then does three
training steps; reported is how far its resident memory rose above what it was before these. Growth: 10,000 training
steps and inferences of shapes drawn at random; reported is the resident memory after each tenth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrnn.bench import machine, shapes

THREADS = 2
CALLS = 10_000
MIB = 1 << 20


def resident(field: str) -> int:
    """Bytes: VmRSS now, VmHWM at most since it was reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak_of(library: str, cell: str, shape: shapes.Shape) -> int:
    """Bytes that three training steps take at most, on top of layer, data, gradient of y and loaded code."""
    make = torch_step if library == "torch" else fastrnn_step
    make(cell, shapes.Shape(2, 2, 2, 2, 1))()  # what a library loads or starts once
    step = make(cell, shape)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = resident("VmRSS")
    for _ in range(3):
        step()
    return resident("VmHWM") - before


def fastrnn_step(cell: str, shape: shapes.Shape) -> Callable[[], None]:
    import fastrnn

    fastrnn.set_num_threads(THREADS)
    layers: dict[str, Any] = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}
    layer = layers[cell](shape.input_size, shape.hidden_size, shape.num_layers)
    x, dy = make_arrays(shape)

    def step() -> None:
        layer.zero_grad()
        _, _, tape = layer.forward(x)
        layer.backward(tape, dy)

    return step


def torch_step(cell: str, shape: shapes.Shape) -> Callable[[], None]:
    import torch

    torch.set_num_threads(THREADS)
    layers: dict[str, Any] = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
    layer = layers[cell](shape.input_size, shape.hidden_size, shape.num_layers)
    x, dy = (torch.from_numpy(array) for array in make_arrays(shape))
    x.requires_grad_()

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x)[0].backward(dy)

    return step


def make_arrays(shape: shapes.Shape) -> list[NDArray[np.float32]]:
    """x and dy."""
    rng = np.random.default_rng(0)
    sizes = shape.input_size, shape.hidden_size
    return [rng.standard_normal((shape.seq_len, shape.batch, size), dtype=np.float32) for size in sizes]


def growth() -> list[int]:
    """Resident bytes after each tenth of the calls."""
    import fastrnn

    fastrnn.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    layers = [cell(24, 40, num_layers=2, seed=0) for cell in (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN)]
    after = []
    for call in range(1, CALLS + 1):
        layer = layers[rng.integers(len(layers))]
        seq_len, batch = (int(size) for size in rng.integers(1, 65, 2))
        x = rng.standard_normal((seq_len, batch, 24), dtype=np.float32)
        if rng.random() < 0.5:
            layer(x)
        else:
            y, _, tape = layer.forward(x)
            layer.backward(tape, y)
        if call % (CALLS // 10) == 0:
            after.append(resident("VmRSS"))
    return after


def _in_process(*args: str) -> Any:
    command = [sys.executable, __file__, "--child", *args]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        result: Any = (
            growth() if args.child == ["growth"] else peak_of(*args.child[:2], shapes.Shape.parse(args.child[2]))
        )
        print(json.dumps(result))
        return 0

    document: dict[str, Any] = {"machine": machine.describe(), "commit": machine.commit(), "peaks": []}
    print("T,B,I,H,L          cell  fastrnn MiB  torch MiB  fastrnn/torch")
    for shape in shapes.STANDARD:
        for cell in shapes.CELLS:
            ours, theirs = (_in_process(library, cell, str(shape)) for library in ("fastrnn", "torch"))
            document["peaks"].append({"cell": cell, "shape": str(shape), "fastrnn": ours, "torch": theirs})
            print(f"{shape!s:18} {cell:4} {ours / MIB:11.1f} {theirs / MIB:10.1f} {ours / theirs:14.2f}", flush=True)
    document["growth"] = _in_process("growth")
    print(f"MiB after each {CALLS // 10} calls:", *(f"{size / MIB:.1f}" for size in document["growth"]))
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
