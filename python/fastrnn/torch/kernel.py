"""The compiled kernels as operators on tensors, and their gradients.

Tensors are handed over by address: nothing is copied, and torch owns every array but what forward keeps for backward.
That is a ``_core.Reserve``; on its way through autograd a tensor of one byte stands for it, the first of its memory,
which lives as long as this tensor. Where only a copy of the byte arrives (a hook that moves saved tensors, say), or y
has been changed since, backward runs the forward pass again.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _core
from . import composite

_library = torch.library.Library("fastrnn", "DEF")
_memory: weakref.ref[_core.Memory] | None = None  # that of the layers that live, see hold_memory
_holders: weakref.WeakKeyDictionary[torch.nn.Module, _core.Memory] = weakref.WeakKeyDictionary()
_reserves: weakref.WeakValueDictionary[int, _core.Reserve] = weakref.WeakValueDictionary()
# y of the same forward pass, and the version it had then.
_outputs: weakref.WeakKeyDictionary[_core.Reserve, tuple[Tensor, int]] = weakref.WeakKeyDictionary()


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
    """The tensors of a call: time-major, contiguous, of one dtype on the CPU.

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


def run(stack: Stack, given: Sequences, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, h_n and, for LSTM, c_n (else nothing), differentiable where anything asks for a gradient."""
    asked = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*given[:3], *weights))
    if asked and (torch.compiler.is_compiling() or not torch.is_inference_mode_enabled()):
        y, h_n, c_n = _Run.apply(stack, given.packed, given.dropout, *given[:5], given.seed, *weights)
    else:
        y, h_n, c_n, _ = _call("forward", stack, given, weights, given.dropout > 0)
    return y, h_n, c_n if stack.cell == "lstm" else None


def _call(name: str, stack: Stack, given: Sequences, *rest: Any) -> Any:
    """The function itself where tensors are what they seem; torch's dispatcher, at some cost, where they are traced."""
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0:
        weights, *others = rest
        if all(t is None or type(t) in _PLAIN for t in (*given[:3], *weights, *others)):
            return _FUNCTIONS[name](stack, given, *rest)
    return getattr(torch.ops.fastrnn, name)(*stack, *given, *rest)


_PLAIN = (Tensor, torch.nn.Parameter, bool, list)  # the latter: arguments that are no tensors


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx, stack, packed, dropout, x, h_0, c_0, lengths, resets, seed, *weights):  # type: ignore[no-untyped-def]
        given = Sequences(x, h_0, c_0, lengths, resets, packed, dropout, seed)
        y, h_n, c_n, kept = _call("forward", stack, given, weights, True)
        ctx.set_materialize_grads(False)
        ctx.stack, ctx.packed, ctx.dropout = stack, packed, dropout
        saved_y = y
        if torch.compiler.is_compiling():
            saved_y = y.clone()  # in a compiled graph nothing notices when y is changed in place
        elif stack.cell != "lstm" and (reserve := _reserves.get(kept.data_ptr())) is not None:
            # torch's GRU and RNN do not mind when y is changed in place afterwards: backward then computes it again.
            saved_y, _outputs[reserve] = y.data, (y.detach(), y._version)
        ctx.save_for_backward(x, h_0, c_0, lengths, resets, seed, saved_y, kept, *weights)
        if stack.cell != "lstm" and c_n is not None:
            ctx.mark_non_differentiable(c_n)
        return y, h_n, c_n

    @staticmethod
    def backward(ctx, dy, dh_n, dc_n):  # type: ignore[no-untyped-def]
        x, h_0, c_0, lengths, resets, seed, y, kept, *weights = ctx.saved_tensors
        given = Sequences(x, h_0, c_0, lengths, resets, ctx.packed, ctx.dropout, seed)
        needs = ctx.needs_input_grad
        need_x, need_h_0, need_c_0, need_weights = needs[3], needs[4], needs[5], needs[9:]
        nothing = (None, None, None)
        if ctx.stack.cell != "lstm":
            dc_n = None
        if dy is None and dh_n is None and dc_n is None:
            return (*nothing, None, None, None, *nothing, *(None for _ in weights))
        batched = any(d is not None and _is_batched(d) for d in (dy, dh_n, dc_n))
        if torch.is_grad_enabled() or batched:  # create_graph=True, is_grads_batched=True
            with torch.enable_grad():
                dx, dh_0, dc_0, dweights = composite.differentiable_backward(
                    ctx.stack, given, weights, (dy, dh_n, dc_n), (need_x, need_h_0, need_c_0, *need_weights)
                )
        else:
            dy, dh_n, dc_n = (None if d is None else d.resolve_neg().contiguous() for d in (dy, dh_n, dc_n))
            dx, dh_0, dc_0, dweights = _call(
                "backward",
                ctx.stack,
                given,
                weights,
                y,
                kept,
                dy,
                dh_n,
                dc_n,
                [need_x, need_h_0, need_c_0],
                list(need_weights),
            )
        return (
            *nothing,
            dx if need_x else None,
            dh_0 if need_h_0 else None,
            dc_0 if need_c_0 else None,
            *nothing,
            *(dw if need else None for dw, need in zip(dweights, need_weights, strict=True)),
        )


def _is_batched(tensor: Tensor) -> bool:
    """Whether vmap has hidden a dimension of it."""
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    return bool(functorch.is_batchedtensor(tensor) or functorch.is_legacy_batchedtensor(tensor))


# ---- the operators

_STACK = "str cell, int num_layers, bool bidirectional, bool bias"
_GIVEN = "Tensor x, Tensor? h_0, Tensor? c_0, Tensor? lengths, Tensor? resets, bool packed, float dropout, Tensor? seed"
# Compilers must hand the tensors over as they were laid out.
_TAGS = (getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order),)
_library.define(
    f"forward({_STACK}, {_GIVEN}, Tensor[] weights, bool training) -> (Tensor, Tensor, Tensor, Tensor)", tags=_TAGS
)
_library.define(
    f"backward({_STACK}, {_GIVEN}, Tensor[] weights, Tensor y, Tensor kept, Tensor? dy, Tensor? dh_n, Tensor? dc_n,"
    " bool[] needs, bool[] need_dweights) -> (Tensor, Tensor, Tensor, Tensor[])",
    tags=_TAGS,
)


class _Sizes:
    """Of one call, from the shapes of its tensors; batch: that of packed rows, else None."""

    def __init__(self, stack: Stack, x: Sequence[int], batch: int | None, w_hh: Sequence[int]) -> None:
        gates, self.state_size = w_hh
        self.hidden_size = gates // composite.GATES[stack.cell]
        self.input_size = x[-1]
        self.batch = x[-2] if batch is None else batch
        states = (stack.num_states, self.batch) if batch is not None or len(x) == 3 else (self.batch,)
        self.seq_len = None if batch is not None else x[0] if len(x) == 3 else 1
        self.y = (*x[:-1], (2 if stack.bidirectional else 1) * self.state_size)
        self.h = (*states, self.state_size)
        self.c = (*states, self.hidden_size) if stack.cell == "lstm" else (0,)


def _shapes(given: Sequences, weights: Sequence[Tensor]) -> tuple[Any, ...]:
    return given.x.shape, given.lengths.shape[0] if given.packed else None, weights[1].shape  # type: ignore[union-attr]


@functools.lru_cache(maxsize=1024)
def _known(stack: Stack, dtype: torch.dtype, shapes: tuple[Any, ...]) -> tuple[_Sizes, _core.Problem]:
    sizes = _Sizes(stack, *shapes)
    name = "float32" if dtype == torch.float32 else "float64"
    proj_size = 0 if sizes.state_size == sizes.hidden_size else sizes.state_size
    return sizes, _core.Problem(stack.cell, name, sizes.input_size, sizes.hidden_size, proj_size, *stack[1:])


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _threads() -> int:
    return min(torch.get_num_threads(), _core.get_num_threads())


def _forward(
    stack: Stack, given: Sequences, weights: Sequence[Tensor], training: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """y, h_n, c_n (LSTM), and what training keeps. An allocation takes as long as a small step: none is needless."""
    x, (sizes, problem) = given.x, _known(stack, given.x.dtype, _shapes(given, weights))
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
    sizes: _Sizes,
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
        _address(given.h_0),
        _address(given.c_0),
        [w.data_ptr() for w in weights],
        None if lengths is None else lengths.numpy(),
        None if resets is None else resets.numpy(),
        given.dropout,
        0 if given.seed is None else int(given.seed),
        training,
        _leased(),
        _threads(),
        tuple(map(_address, out)),
    )[3]


def _backward(
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
    x, lstm, (sizes, problem) = given.x, stack.cell == "lstm", _known(stack, given.x.dtype, _shapes(given, weights))
    reserve = _reserves.get(kept.data_ptr())
    written = None if reserve is None else _outputs.get(reserve)
    if written is not None and written[0]._version != written[1]:
        reserve = None
    if reserve is None:
        y = x.new_empty(sizes.y)
        unused = (x.new_empty(sizes.h), x.new_empty(sizes.c) if lstm else None)
        reserve = _run_forward(stack, given, weights, True, sizes, problem, (y, *unused))
        assert reserve is not None
    dx = torch.empty_like(x) if needs[0] else None
    dh_0 = x.new_empty(sizes.h) if needs[1] else None
    dc_0 = x.new_empty(sizes.c) if needs[2] and lstm else None
    dweights = [torch.empty_like(w) if need else None for w, need in zip(weights, need_dweights, strict=True)]
    _core.backward(
        problem,
        reserve,
        x.data_ptr(),
        y.data_ptr(),
        [w.data_ptr() for w in weights],
        _address(dy),
        _address(dh_n),
        _address(dc_n) if lstm else None,
        needs[0],
        list(map(_address, dweights)),
        _leased(),
        _threads(),
        (_address(dx), _address(dh_0), _address(dc_0)),
        False,
    )
    return dx, dh_0, dc_0, dweights


def _split(args: tuple[Any, ...]) -> tuple[Stack, Sequences, tuple[Any, ...]]:
    return Stack(*args[:4]), Sequences(*args[4:12]), args[12:]


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stack, given, (weights, training) = _split(args)
    x, sizes = given.x, _Sizes(stack, *_shapes(given, weights))
    y, h_n, c_n = (x.new_empty(shape) for shape in (sizes.y, sizes.h, sizes.c))
    return y, h_n, c_n, x.new_empty(1 if training else 0, dtype=torch.uint8)


def _fake_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    stack, given, (weights, _, _, _, _, _, needs, need_dweights) = _split(args)
    x, sizes = given.x, _Sizes(stack, *_shapes(given, weights))
    dx, dh_0, dc_0 = (
        x.new_empty(shape if need else 0) for shape, need in zip((x.shape, sizes.h, sizes.c), needs, strict=True)
    )
    dweights = [torch.empty_like(w) if need else w.new_empty(0) for w, need in zip(weights, need_dweights, strict=True)]
    return dx, dh_0, dc_0, dweights


def _from_anyone(function: Any, *args: Any) -> Any:
    """The operators can be called by hand and by compilers: what the layers see to is seen to here again.

    Operators give tensors, empty ones for what is not there, and none twice.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.resolve_neg().contiguous()
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    args = tuple(map(plain, args))
    stack, given, rest = _split(args)
    if given.is_step and stack.num_states != 1:
        raise ValueError(f"fastrnn: x of {stack.num_states} layers and directions must have 3 dimensions, got 2")
    if given.packed and (given.lengths is None or int(given.lengths.sum()) != given.x.shape[0]):
        raise ValueError(f"fastrnn: packed x must have one row for each step, got {given.x.shape[0]} rows")

    def complete(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(complete, value))
        return given.x.new_empty(0) if value is None else value

    first, second, *others = map(complete, function(stack, given, *rest))
    return (first, second.clone() if second is first else second, *others)


_FUNCTIONS: dict[str, Any] = {"forward": _forward, "backward": _backward}
for _name, _function, _fake in (("forward", _forward, _fake_forward), ("backward", _backward, _fake_backward)):
    _library.impl(_name, functools.partial(_from_anyone, _function), "CPU")
    torch.library.register_fake(f"fastrnn::{_name}", _fake, lib=_library)
