"""What is measured: cells, modes, shapes, and the ideal time of each."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from .. import spec

#: The cells' names on the command line, and those of `fastrnn.reference`.
CELLS = {"lstm": "lstm", "gru": "gru", "rnn": "rnn_tanh"}
MODES = ("infer", "train")
GATES = {name: spec.GATES[cell] for name, cell in CELLS.items()}

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Shape:
    """T, B, I, H, L of one measurement."""

    seq_len: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From "T,B,I,H,L".

        Raises:
            ValueError: anything but five positive integers.
        """
        try:
            sizes = [int(size) for size in text.split(",")]
            if len(sizes) == 5 and min(sizes) >= 1:
                return cls(*sizes)
        except ValueError:
            pass
        raise ValueError(f"must be five integers >= 1 as T,B,I,H,L, got {text!r}")

    def __str__(self) -> str:
        return ",".join(map(str, astuple(self)))


STANDARD = tuple(
    Shape(*sizes)
    for sizes in (
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
    )
)


def flops(cell: str, shape: Shape, mode: str) -> int:
    """Operations of the matrix products; training has three products in the place of each of inference."""
    H = shape.hidden_size
    columns = shape.input_size + H + (shape.num_layers - 1) * 2 * H
    return 2 * shape.seq_len * shape.batch * GATES[cell] * H * columns * (3 if mode == "train" else 1)


def slice_bytes(cell: str, shape: Shape, threads: int) -> int:
    """The weights that one thread reads again and again: where they fit decides how fast.

    A layer runs through all its steps before the next one begins, so that only its recurrent weights count. With one
    step alone everything is read once in each call.
    """
    H = shape.hidden_size
    size = _single_step_bytes(cell, shape) if shape.seq_len == 1 else GATES[cell] * H * H * _FLOAT_BYTES
    return -(-size // threads)


def ideal_seconds(cell: str, shape: Shape, mode: str, peak_flops: float, bandwidth: float) -> float:
    """The time below which the machine cannot do the work, however it is written.

    Either the arithmetic units are the limit, or the reading of the weights, once for every step (for training once
    more on the way back). Waiting of the threads for each other is not in it.

    Args:
        peak_flops: of all threads, 1/s.
        bandwidth: of all threads reading slices of `slice_bytes`, bytes/s.
    """
    per_step = GATES[cell] * shape.hidden_size**2 * shape.num_layers * _FLOAT_BYTES
    read = _single_step_bytes(cell, shape) if shape.seq_len == 1 else shape.seq_len * per_step
    passes = 2 if mode == "train" else 1
    return max(flops(cell, shape, mode) / peak_flops, passes * read / bandwidth)


def _single_step_bytes(cell: str, shape: Shape) -> int:
    """All weights, the input's too: with many steps those are read once for all, with one they are as many again."""
    return flops(cell, shape, "infer") // (2 * shape.seq_len * shape.batch) * _FLOAT_BYTES
