"""The kernels on tensors in the CPU's memory.

Tensors are handed over by address: nothing is copied, and torch owns every array but what forward keeps for backward.
That is a ``_core.Reserve``; on its way through autograd a tensor of one byte stands for it, the first of its memory,
which lives as long as this tensor. Where only a copy of the byte arrives (a hook that moves saved tensors, say), or y
has been changed since, backward runs the forward pass again.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _core
from .call import Sequences, Sizes, Stack, address, shapes_of

#: What there are kernels for.
DTYPES = (torch.float32, torch.float64)
TAKES_PACKED = True
#: Whether calls under autocast run on the kernels, in its dtype.
AUTOCASTS = False

_memory: weakref.ref[_core.Memory] | None = None  # that of the layers that live, see hold_memory
_holders: weakref.WeakKeyDictionary[torch.nn.Module, _core.Memory] = weakref.WeakKeyDictionary()
_reserves: weakref.WeakValueDictionary[int, _core.Reserve] = weakref.WeakValueDictionary()
# y of the same forward pass, and the version it had then.
_outputs: weakref.WeakKeyDictionary[_core.Reserve, tuple[Tensor, int]] = weakref.WeakKeyDictionary()


def hold_memory(layer: torch.nn.Module) -> None:
    """What calls have used stays for later ones as long as this layer, or another that was given here, lives."""
    global _memory
    if layer not in _holders:
        memory = _leased() or _core.Memory()
        _memory = weakref.ref(memory)
        _holders[layer] = memory


def release_memory(layer: torch.nn.Module) -> None:
    """Undoes ``hold_memory``."""
    _holders.pop(layer, None)


def _leased() -> _core.Memory | None:
    return None if _memory is None else _memory()


def declines(layer: torch.nn.Module, x: Tensor, packed: bool) -> str | None:
    """What keeps this part from a call whose tensors it could take."""
    return None


def prepared(given: Sequences) -> Sequences:
    return given


def bytes_kept(stack: Stack, sizes: Sizes, dtype: torch.dtype) -> int:
    """Of the tensor that stands for what forward keeps for backward."""
    return 1


def output_to_save(stack: Stack, y: Tensor, kept: Tensor) -> Tensor:
    """What backward finds as y. torch's GRU and RNN do not mind when y is changed in place afterwards: backward then
    computes it again."""
    reserve = None if stack.cell == "lstm" else _reserves.get(kept.data_ptr())
    if reserve is None:
        return y
    _outputs[reserve] = (y.detach(), y._version)
    return y.data


@functools.lru_cache(maxsize=1024)
def _known(stack: Stack, dtype: torch.dtype, shapes: tuple[Any, ...]) -> tuple[Sizes, _core.Problem]:
    sizes = Sizes(stack, *shapes)
    name = "float32" if dtype == torch.float32 else "float64"
    proj_size = 0 if sizes.state_size == sizes.hidden_size else sizes.state_size
    return sizes, _core.Problem(stack.cell, name, sizes.input_size, sizes.hidden_size, proj_size, *stack[1:])


def _threads() -> int:
    return min(torch.get_num_threads(), _core.get_num_threads())


def forward(
    stack: Stack, given: Sequences, weights: Sequence[Tensor], training: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """y, h_n, c_n (LSTM), and what training keeps. An allocation takes as long as a small step: none is needless."""
    x, (sizes, problem) = given.x, _known(stack, given.x.dtype, shapes_of(given, weights))
    h_n = x.new_empty(sizes.h)
    y = h_n if given.is_step and not training else x.new_empty(sizes.y)
    c_n = x.new_empty(sizes.c) if stack.cell == "lstm" else None
    reserve = _run_forward(stack, given, weights, training, sizes, problem, (y, h_n, c_n))
    if reserve is None:
        return y, h_n, c_n, None
    if reserve.nbytes == 0:
        return y, h_n, c_n, x.new_empty(1, dtype=torch.uint8)
    kept = torch.frombuffer(reserve, dtype=torch.uint8, count=1)
    _reserves[kept.data_ptr()] = reserve
    return y, h_n, c_n, kept


def _run_forward(
    stack: Stack,
    given: Sequences,
    weights: Sequence[Tensor],
    training: bool,
    sizes: Sizes,
    problem: _core.Problem,
    out: Sequence[Tensor | None],
) -> _core.Reserve | None:
    x, lengths, resets = given.x, given.lengths, given.resets
    seq_len = sizes.seq_len
    if seq_len is None:
        seq_len = int(lengths.max()) if sizes.batch else 0  # type: ignore[union-attr]
    return _core.forward(
        problem,
        (x.data_ptr(), seq_len, sizes.batch, given.packed),
        address(given.h_0),
        address(given.c_0),
        [w.data_ptr() for w in weights],
        None if lengths is None else lengths.numpy(),
        None if resets is None else resets.numpy(),
        given.dropout,
        0 if given.seed is None else int(given.seed),
        training,
        _leased(),
        _threads(),
        tuple(map(address, out)),
    )[3]


def backward(
    stack: Stack,
    given: Sequences,
    weights: Sequence[Tensor],
    y: Tensor,
    kept: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    needs: Sequence[bool],
    need_dweights: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]:
    x, lstm, (sizes, problem) = given.x, stack.cell == "lstm", _known(stack, given.x.dtype, shapes_of(given, weights))
    reserve = _reserves.get(kept.data_ptr())
    written = None if reserve is None else _outputs.get(reserve)
    if written is not None and written[0]._version != written[1]:
        reserve = None
    if reserve is None:
        y = x.new_empty(sizes.y)
        unused = (x.new_empty(sizes.h), x.new_empty(sizes.c) if lstm else None)
        reserve = _run_forward(stack, given, weights, True, sizes, problem, (y, *unused))
        assert reserve is not None
    dx, dh_0, dc_0, dweights = sizes.new_gradients(x, weights, needs, need_dweights)
    _core.backward(
        problem,
        reserve,
        x.data_ptr(),
        y.data_ptr(),
        [w.data_ptr() for w in weights],
        address(dy),
        address(dh_n),
        address(dc_n) if lstm else None,
        needs[0],
        list(map(address, dweights)),
        _leased(),
        _threads(),
        (address(dx), address(dh_0), address(dc_0)),
        False,
    )
    return dx, dh_0, dc_0, dweights
