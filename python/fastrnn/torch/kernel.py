"""The compiled kernels as operators on tensors, and their gradients."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import composite
from .call import PLAIN, Sequences, Sizes, Stack, plain, shapes_of
from .devices import DEVICES, part_for

_library = torch.library.Library("fastrnn", "DEF")


def run(stack: Stack, given: Sequences, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, h_n and, for LSTM, c_n (else nothing), differentiable where anything asks for a gradient."""
    if given.packed and not part_for(given.x).TAKES_PACKED:
        return _run_padded(stack, given, weights)
    if given.lengths is not None or given.resets is not None:
        given = part_for(given.x).prepared(given)
    asked = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*given[:3], *weights))
    if asked and (torch.compiler.is_compiling() or not torch.is_inference_mode_enabled()):
        y, h_n, c_n = _Run.apply(stack, given.packed, given.dropout, *given[:5], given.seed, *weights)
    else:
        y, h_n, c_n, _ = _call("forward", stack, given, weights, given.dropout > 0)
    return y, h_n, c_n if stack.cell == "lstm" else None


def _run_padded(stack: Stack, given: Sequences, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same for packed rows, padded on the way in. The CPU knows which rows live: nothing waits for the GPU."""
    x, lengths = given.x, given.lengths
    assert lengths is not None
    rows = composite.running(lengths)
    at = part_for(x).beside(x, rows.flatten().nonzero().squeeze(1))
    padded = x.new_zeros(rows.numel(), x.shape[-1]).index_copy(0, at, x).unflatten(0, rows.shape)
    y, h_n, c_n = run(stack, given._replace(x=padded, packed=False), weights)
    return y.flatten(0, 1).index_select(0, at), h_n, c_n


def _call(name: str, stack: Stack, given: Sequences, *rest: Any) -> Any:
    """The function itself where tensors are what they seem; torch's dispatcher, at some cost, where they are traced."""
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0:
        weights, *others = rest
        if all(t is None or type(t) in _DIRECT for t in (*given[:3], *weights, *others)):
            return getattr(part_for(given.x), name)(stack, given, *rest)
    return getattr(torch.ops.fastrnn, name)(*stack, *given, *rest)


_DIRECT = (*PLAIN, bool, list)  # the latter: arguments that are no tensors


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx, stack, packed, dropout, x, h_0, c_0, lengths, resets, seed, *weights):  # type: ignore[no-untyped-def]
        given = Sequences(x, h_0, c_0, lengths, resets, packed, dropout, seed)
        y, h_n, c_n, kept = _call("forward", stack, given, weights, True)
        ctx.set_materialize_grads(False)
        ctx.stack, ctx.packed, ctx.dropout = stack, packed, dropout
        # In a compiled graph nothing notices when y is changed in place.
        saved_y = y.clone() if torch.compiler.is_compiling() else part_for(x).output_to_save(stack, y, kept)
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
            dy, dh_n, dc_n = (None if d is None else plain(d) for d in (dy, dh_n, dc_n))
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


def _split(args: tuple[Any, ...]) -> tuple[Stack, Sequences, tuple[Any, ...]]:
    return Stack(*args[:4]), Sequences(*args[4:12]), args[12:]


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stack, given, (weights, training) = _split(args)
    x, sizes = given.x, Sizes(stack, *shapes_of(given, weights))
    y, h_n, c_n = (x.new_empty(shape) for shape in (sizes.y, sizes.h, sizes.c))
    part = DEVICES.get(x.device.type, DEVICES["cpu"])  # meta tensors have none
    kept = part.bytes_kept(stack, sizes, x.dtype) if training else 0
    return y, h_n, c_n, x.new_empty(kept, dtype=torch.uint8)


def _fake_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    stack, given, (weights, _, _, _, _, _, needs, need_dweights) = _split(args)
    x, sizes = given.x, Sizes(stack, *shapes_of(given, weights))
    dx, dh_0, dc_0 = (
        x.new_empty(shape if need else 0) for shape, need in zip((x.shape, sizes.h, sizes.c), needs, strict=True)
    )
    dweights = [torch.empty_like(w) if need else w.new_empty(0) for w, need in zip(weights, need_dweights, strict=True)]
    return dx, dh_0, dc_0, dweights


def _from_anyone(device: str, name: str, *args: Any) -> Any:
    """The operators can be called by hand and by compilers: what the layers see to is seen to here again.

    Operators give tensors, empty ones for what is not there, and none twice.
    """

    def ready(value: Any) -> Any:
        if isinstance(value, Tensor):
            return plain(value)
        return [ready(item) for item in value] if isinstance(value, (list, tuple)) else value

    args = tuple(map(ready, args))
    stack, given, rest = _split(args)
    given = DEVICES[device].prepared(given)
    weights, *others = rest
    for tensor in (given.h_0, given.c_0, *weights, *others[2:5]):  # dy, dh_n, dc_n of backward
        if isinstance(tensor, Tensor) and (tensor.device != given.x.device or tensor.dtype != given.x.dtype):
            expected, got = (f"{t.dtype} on device {t.device}" for t in (given.x, tensor))
            raise ValueError(f"fastrnn: all tensors must be like x, {expected}, got one of {got}")
    if given.is_step and stack.num_states != 1:
        raise ValueError(f"fastrnn: x of {stack.num_states} layers and directions must have 3 dimensions, got 2")
    if given.packed and not DEVICES[device].TAKES_PACKED:
        raise ValueError(f"fastrnn: x on device {device} must be padded, got packed rows")
    if given.packed and (given.lengths is None or int(given.lengths.sum()) != given.x.shape[0]):
        raise ValueError(f"fastrnn: packed x must have one row for each step, got {given.x.shape[0]} rows")

    def complete(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(complete, value))
        return given.x.new_empty(0) if value is None else value

    first, second, *others = map(complete, getattr(DEVICES[device], name)(stack, given, *rest))
    return (first, second.clone() if second is first else second, *others)


for _name, _fake in (("forward", _fake_forward), ("backward", _fake_backward)):
    for _device in DEVICES:
        _library.impl(_name, functools.partial(_from_anyone, _device, _name), _device.upper())
    torch.library.register_fake(f"fastrnn::{_name}", _fake, lib=_library)
