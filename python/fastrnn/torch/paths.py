"""Whether a call can run on the kernels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .call import GATES
from .devices import DEVICES, part_for

_STRIDED = torch.strided
_CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}


class Obstacle(NamedTuple):
    """What keeps a call from the kernels."""

    reason: str
    serves: str  # what it runs on instead: torch's own "layer", or "composite"


def cell_of(layer: nn.Module) -> str:
    """Which cell a layer of torch's, or a cell, computes, as the kernels name it."""
    if isinstance(layer, nn.RNNBase):
        return _CELLS[layer.mode]
    names: dict[Any, str] = {nn.LSTMCell: "lstm", nn.GRUCell: "gru"}
    return names.get(layer._original) or f"rnn_{layer.nonlinearity}"


def obstacle(
    layer: nn.Module,
    weights: Sequence[Tensor],
    input: Any,
    hx: Any = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    recording: bool | None = None,
) -> Obstacle | None:
    """None where the kernels serve. recording: whether for autograd; None: as torch.is_grad_enabled() says."""
    if recording is None:
        recording = torch.is_grad_enabled()
    reason = _transform()
    if reason is not None:  # most of which torch's own layers do not know either
        return Obstacle(reason, _instead(layer, weights, input, hx))
    reason = _reason(layer, weights, input, hx, lengths, resets, recording)
    if reason is None:
        return None
    extras = lengths is not None or resets is not None
    # What torch refuses, its own layer refuses with its own error.
    return Obstacle(reason, _instead(layer, weights, input, hx) if extras else "layer")


def _instead(layer: nn.Module, weights: Sequence[Tensor], input: Any, hx: Any) -> str:
    return "composite" if isinstance(layer, nn.RNNBase) and _fits(layer, weights, input, hx) else "layer"


def _transform() -> str | None:
    if not torch.compiler.is_compiling():
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return "inside a torch.func transform"
        if torch.autograd.forward_ad._current_level >= 0:
            return "inside forward-mode differentiation"
    return None


def _reason(
    layer: nn.Module,
    weights: Sequence[Tensor],
    input: Any,
    hx: Any,
    lengths: Tensor | None,
    resets: Tensor | None,
    recording: bool,
) -> str | None:
    x = input.data if isinstance(input, PackedSequence) else input
    if not isinstance(x, Tensor):
        return f"the input is a {type(x).__name__}"
    if x.is_cpu and isinstance(layer, nn.RNNCellBase) and (quicker := quicker_on_torch(layer, x, recording)):
        return quicker
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace and ONNX need torch's own operators"
    on_cpu, dtype = x.is_cpu, autocast_dtype(x) or x.dtype
    index = -1 if on_cpu else x.get_device()
    for tensor in (x, *weights, *_states(hx)):
        if not (
            isinstance(tensor, Tensor)
            and (tensor.is_cpu if on_cpu else tensor.is_cuda and tensor.get_device() == index)
            and (tensor.dtype == dtype or autocast_dtype(tensor) == dtype)
            and tensor.layout == _STRIDED
        ):
            return _fault(tensor, x, dtype)
    part = part_for(x)
    if dtype not in part.DTYPES:
        return _fault(x, x, dtype)
    if (declined := part.declines(layer, x, isinstance(input, PackedSequence))) is not None:
        return declined  # type: ignore[no-any-return]
    if not part.AUTOCASTS and torch.is_autocast_enabled("cpu" if on_cpu else x.device.type):
        return "autocast is on"
    for extra in (lengths, resets):
        if extra is not None and not extra.is_cpu and extra.device != x.device:
            return f"lengths or resets are on device {extra.device}"
    if not (
        _fits(layer, weights, input, hx) if isinstance(layer, nn.RNNBase) else _fits_cell(layer, weights, input, hx)
    ):
        return "torch refuses such shapes"
    return None


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """What a call casts this tensor to under autocast where the kernels serve it; None: it stays as it is."""
    device = "cpu" if tensor.is_cpu else tensor.device.type
    part = DEVICES.get(device)
    if part is None or not part.AUTOCASTS or not torch.is_autocast_enabled(device):
        return None
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return torch.get_autocast_dtype(device) if eligible else None


def quicker_on_torch(cell: Any, x: Tensor, recording: bool) -> str | None:
    """Why a step is better left to torch, if it is, as measured on two cores in loops of ten steps.

    A plain RNN's is two products, which torch's autograd knows how to undo: with gradients it takes 0.6 to 0.9 of the
    kernels' time at all sizes, without at fewer than about two million multiplications. A step of another cell is
    mostly the call itself at fewer than about 600 thousand: 0.8 to 1.05 of the kernels' time.
    """
    plain = cell._original is nn.RNNCell
    if plain and recording:
        return "a plain step that records gradients is quicker there"
    # Multiplications times input_size, which leaves out a division.
    work = x.numel() * cell.weight_hh.shape[0] * (cell.input_size + cell.hidden_size)
    few = work < (2_000_000 if plain else 600_000) * cell.input_size
    return "so small a step is quicker there" if few else None


def _fault(tensor: Any, x: Tensor, dtype: torch.dtype) -> str:
    """Of a tensor that the kernels cannot take, in a call with this x that computes in this dtype."""
    if not isinstance(tensor, Tensor):
        return f"a state is a {type(tensor).__name__}"
    part = DEVICES.get(tensor.device.type)
    if part is None:
        return f"there is no kernel for device {tensor.device.type}"
    if tensor.device != x.device:
        return f"devices differ: {tensor.device} and {x.device}"
    if tensor.dtype not in part.DTYPES:
        return f"there is no kernel for {tensor.dtype}"
    if tensor.dtype != dtype:
        return f"dtypes differ: {tensor.dtype} and {dtype}"
    return f"there is no kernel for layout {tensor.layout}"


def _states(hx: Any) -> Sequence[Any]:
    return () if hx is None else hx if isinstance(hx, (tuple, list)) else (hx,)


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
    if layer.mode != "LSTM" and states is hx:
        return False
    if states:
        rows = layer.num_layers * directions
        shapes = [(rows, *batch, state_size), (rows, *batch, hidden_size)][: 2 if layer.mode == "LSTM" else 1]
        if [state.shape for state in states] != shapes:
            return False
    gates, bias = GATES[cell_of(layer)], bool(layer.bias)
    sizes = (gates, layer.input_size, hidden_size, layer.proj_size, layer.num_layers, directions, bias)
    return [weight.shape for weight in weights] == _shapes_of_weights(sizes)


def _shapes_of_weights(sizes: tuple[Any, ...]) -> list[tuple[int, ...]]:
    # Dynamo traces the function behind a cache, and warns of it.
    return _weight_shapes(*sizes) if torch.compiler.is_compiling() else _known_weight_shapes(*sizes)


def _weight_shapes(
    gates: int, input_size: int, hidden_size: int, proj_size: int, num_layers: int, directions: int, bias: bool
) -> list[tuple[int, ...]]:
    rows, state_size = gates * hidden_size, proj_size or hidden_size
    shapes: list[tuple[int, ...]] = []
    for i in range(num_layers * directions):
        shapes += [(rows, input_size if i < directions else directions * state_size), (rows, state_size)]
        shapes += [(rows,), (rows,)] if bias else []
        shapes += [(state_size, hidden_size)] if proj_size else []
    return shapes


_known_weight_shapes = functools.lru_cache(maxsize=1024)(_weight_shapes)


def _fits_cell(cell: Any, weights: Sequence[Tensor], input: Any, hx: Any) -> bool:
    """The same for a cell."""
    shape, name, size = input.shape, cell_of(cell), cell.hidden_size
    if len(shape) not in (1, 2) or shape[-1] != cell.input_size:
        return False
    if name not in GATES or not size or not cell.input_size:
        return False  # a nonlinearity that torch does not know; nothing to compute
    if hx is not None:
        states, state_shape = _states(hx), (*shape[:-1], size)
        if (
            (states is hx) != (name == "lstm")
            or len(states) != (2 if name == "lstm" else 1)
            or any(state.shape != state_shape for state in states)
        ):
            return False
    sizes = (GATES[name], cell.input_size, size, 0, 1, 1, bool(cell.bias))
    return [weight.shape for weight in weights] == _shapes_of_weights(sizes)


def _consistent(packed: PackedSequence) -> bool:
    """Whether a PackedSequence, which anyone may have put together, is what torch makes."""
    sizes = packed.batch_sizes
    if sizes.dim() != 1 or not sizes.numel() or int(sizes.sum()) != packed.data.shape[0]:
        return False
    if int(sizes[-1]) < 1 or bool((sizes[1:] > sizes[:-1]).any()):
        return False
    orders = (packed.sorted_indices, packed.unsorted_indices)
    return all(order is None or tuple(order.shape) == (int(sizes[0]),) for order in orders)
