"""Whether a call can run on the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

_DTYPES = (torch.float32, torch.float64)
_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


class Obstacle(NamedTuple):
    """What keeps a call from the kernels."""

    reason: str
    serves: str  # what it runs on instead: torch's own "layer", or "composite"


def obstacle(
    layer: nn.RNNBase,
    weights: Sequence[Tensor],
    input: Any,
    hx: Any = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> Obstacle | None:
    """None where the kernels serve."""
    reason = _transform()
    if reason is not None:  # most of which torch's own layers do not know either
        return Obstacle(reason, "composite" if _fits(layer, weights, input, hx) else "layer")
    reason = _reason(layer, weights, input, hx, lengths, resets)
    if reason is None:
        return None
    extras = lengths is not None or resets is not None
    # What torch refuses, its own layer refuses with its own error.
    return Obstacle(reason, "composite" if extras and _fits(layer, weights, input, hx) else "layer")


def _transform() -> str | None:
    if not torch.compiler.is_compiling():
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return "inside a torch.func transform"
        if torch.autograd.forward_ad._current_level >= 0:
            return "inside forward-mode differentiation"
    return None


def _reason(
    layer: nn.RNNBase,
    weights: Sequence[Tensor],
    input: Any,
    hx: Any,
    lengths: Tensor | None,
    resets: Tensor | None,
) -> str | None:
    packed = isinstance(input, PackedSequence)
    x = input.data if packed else input
    if not isinstance(x, Tensor):
        return f"the input is a {type(x).__name__}"
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return "torch.jit.trace and ONNX need torch's own operators"
    for tensor in (x, *weights, *_states(hx)):
        if not isinstance(tensor, Tensor):
            return f"a state is a {type(tensor).__name__}"
        if tensor.device.type != "cpu":
            return f"there is no kernel for device {tensor.device.type}"
        if tensor.dtype not in _DTYPES:
            return f"there is no kernel for {tensor.dtype}"
        if tensor.dtype != x.dtype:
            return f"dtypes differ: {tensor.dtype} and {x.dtype}"
        if tensor.layout != torch.strided:
            return f"there is no kernel for layout {tensor.layout}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if (lengths is not None and lengths.device.type != "cpu") or (resets is not None and resets.device.type != "cpu"):
        return "lengths or resets are not on the CPU"
    if not _fits(layer, weights, input, hx):
        return "torch refuses such shapes"
    return None


def _states(hx: Any) -> list[Any]:
    return [] if hx is None else list(hx) if isinstance(hx, (tuple, list)) else [hx]


def _fits(layer: nn.RNNBase, weights: Sequence[Tensor], input: Any, hx: Any) -> bool:
    """Whether torch takes tensors of these shapes. The kernels read what they are told to: nothing else checks."""
    packed = isinstance(input, PackedSequence)
    x = input.data if packed else input
    if not isinstance(x, Tensor):
        return False
    if x.dim() not in ((2,) if packed else (2, 3)) or x.shape[-1] != layer.input_size:
        return False
    if packed:
        if not _consistent(input):
            return False
        batch: tuple[int, ...] = (int(input.batch_sizes[0]),)
    elif x.dim() == 3:
        batch = (x.shape[0 if layer.batch_first else 1],)
        if x.shape[1 if layer.batch_first else 0] == 0:
            return False
    else:
        batch = ()
        if x.shape[0] == 0:
            return False
    state_size, hidden_size = layer.proj_size or layer.hidden_size, layer.hidden_size
    directions = 2 if layer.bidirectional else 1
    states = _states(hx)
    if states:
        rows = layer.num_layers * directions
        shapes = [(rows, *batch, state_size), (rows, *batch, hidden_size)][: 2 if layer.mode == "LSTM" else 1]
        if [tuple(state.shape) for state in states] != shapes:
            return False
    gates = _GATES[layer.mode] * hidden_size
    expected: list[tuple[int, ...]] = []
    for i in range(layer.num_layers * directions):
        expected += [(gates, layer.input_size if i < directions else directions * state_size), (gates, state_size)]
        expected += [(gates,), (gates,)] if layer.bias else []
        expected += [(state_size, hidden_size)] if layer.proj_size else []
    return [tuple(weight.shape) for weight in weights] == expected


def _consistent(packed: PackedSequence) -> bool:
    """Whether a PackedSequence, which anyone may have put together, is what torch makes."""
    sizes = packed.batch_sizes
    if sizes.dim() != 1 or not sizes.numel() or int(sizes.sum()) != packed.data.shape[0]:
        return False
    if int(sizes[-1]) < 1 or bool((sizes[1:] > sizes[:-1]).any()):
        return False
    orders = (packed.sorted_indices, packed.unsorted_indices)
    return all(order is None or tuple(order.shape) == (int(sizes[0]),) for order in orders)
