"""What a call of the kernels is: its layers, its tensors and their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Of each cell, as the kernels name it.
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


class Stack(NamedTuple):
    """What the weights' shapes do not tell."""

    cell: str
    num_layers: int
    bidirectional: bool
    bias: bool

    @property
    def num_states(self) -> int:
        return self.num_layers * (2 if self.bidirectional else 1)


class Sequences(NamedTuple):
    """The tensors of a call: time-major, contiguous, of one dtype on one device, but that lengths, resets and seed may
    stand on the CPU.

    One step of one layer can do without the first dimension: x (B, I), states and results (B, P) and (B, H).
    """

    x: Tensor  # (T, B, I); packed: (sum of lengths, I), step by step
    h_0: Tensor | None  # (L*D, B, P)
    c_0: Tensor | None  # (L*D, B, H), LSTM only
    lengths: Tensor | None  # int64 (B,); packed: never rising
    resets: Tensor | None  # bool (T, B)
    packed: bool
    dropout: float
    seed: Tensor | None  # int64 (); None without dropout

    @property
    def is_step(self) -> bool:
        return self.x.dim() == 2 and not self.packed


class Sizes:
    """Of one call, from the shapes of its tensors; batch: that of packed rows, else None."""

    def __init__(self, stack: Stack, x: Sequence[int], batch: int | None, w_hh: Sequence[int]) -> None:
        gates, self.state_size = w_hh
        self.hidden_size = gates // GATES[stack.cell]
        self.input_size = x[-1]
        self.batch = x[-2] if batch is None else batch
        states = (stack.num_states, self.batch) if batch is not None or len(x) == 3 else (self.batch,)
        self.seq_len = None if batch is not None else x[0] if len(x) == 3 else 1
        self.y = (*x[:-1], (2 if stack.bidirectional else 1) * self.state_size)
        self.h = (*states, self.state_size)
        self.c = (*states, self.hidden_size) if stack.cell == "lstm" else (0,)
        self.is_lstm = stack.cell == "lstm"
        self.of_layer = (self.input_size, self.hidden_size, self.state_size)

    def new_gradients(
        self, x: Tensor, weights: Sequence[Tensor], needs: Sequence[bool], need_dweights: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]:
        """dx, dh_0, dc_0 and the weights' gradients, as far as they are needed, to be written."""
        dx = torch.empty_like(x) if needs[0] else None
        dh_0 = x.new_empty(self.h) if needs[1] else None
        dc_0 = x.new_empty(self.c) if needs[2] and self.is_lstm else None
        return (
            dx,
            dh_0,
            dc_0,
            [torch.empty_like(w) if need else None for w, need in zip(weights, need_dweights, strict=True)],
        )


#: Types of tensors that are what they seem.
PLAIN = (Tensor, torch.nn.Parameter)


def plain(tensor: Tensor) -> Tensor:
    """The tensor as the kernels read it: its numbers side by side in memory, at an address that is a multiple of their
    size; itself where they are."""
    if torch.compiler.is_compiling() or tensor.is_neg() or not tensor.is_contiguous():
        return tensor.resolve_neg().contiguous()
    if type(tensor) in PLAIN and tensor.data_ptr() % tensor.element_size():
        return tensor.clone()
    return tensor


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def shapes_of(given: Sequences, weights: Sequence[Tensor]) -> tuple[Any, ...]:
    return given.x.shape, given.lengths.shape[0] if given.packed else None, weights[1].shape  # type: ignore[union-attr]
