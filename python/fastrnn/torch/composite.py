"""The same layers in torch's own operations: differentiable any number of times, on any device, dtype and transform.

Slow, one small operation after the other. It serves where the kernels cannot: for gradients of gradients, and for
``lengths`` and ``resets``, which torch's own layers lack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .call import GATES, Sequences, Stack

Outputs = tuple[Tensor, Tensor, Tensor | None]


def run(stack: Stack, given: Sequences, weights: Sequence[Tensor]) -> Outputs:
    """What ``kernel.run`` gives."""
    if given.is_step:
        h_0, c_0 = (None if t is None else t.unsqueeze(0) for t in (given.h_0, given.c_0))
        y, h, c = run(stack, given._replace(x=given.x.unsqueeze(0), h_0=h_0, c_0=c_0), weights)
        return y.squeeze(0), h.squeeze(0), c if c is None else c.squeeze(0)
    x, rows = given.x, None
    lengths, resets = (None if t is None else t.to(x.device) for t in (given.lengths, given.resets))
    if given.packed:
        assert lengths is not None
        rows = running(lengths)
        x = x.new_zeros(*rows.shape, x.shape[-1]).index_put(torch.where(rows), x)
    elif lengths is not None:
        rows = running(lengths, x.shape[0])
        x = torch.where(rows[..., None], x, 0)  # what stands in the padding must not reach the gradients
    batch, hidden_size = x.shape[1], weights[1].shape[0] // GATES[stack.cell]
    state_size = weights[1].shape[1]
    zeros = [x.new_zeros(stack.num_states, batch, size) for size in (state_size, hidden_size)]
    h_0 = zeros[0] if given.h_0 is None else given.h_0
    c_0 = zeros[1] if given.c_0 is None else given.c_0
    directions = 2 if stack.bidirectional else 1
    per_direction = len(weights) // stack.num_states
    final_h, final_c = [], []
    for layer in range(stack.num_layers):
        outputs = []
        for direction in range(directions):
            i = layer * directions + direction
            own = weights[i * per_direction : (i + 1) * per_direction]
            y, h, c = _scan(stack, x, h_0[i], c_0[i], own, rows, resets, direction == 1)
            outputs.append(y)
            final_h.append(h)
            final_c.append(c)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if given.dropout > 0 and layer + 1 < stack.num_layers:
            x = x * _dropout_mask(stack, given, x, layer, directions)
    y = x if not given.packed else x[torch.where(rows)]  # type: ignore[arg-type]
    return y, torch.stack(final_h), torch.stack(final_c) if stack.cell == "lstm" else None


def running(lengths: Tensor, seq_len: int | None = None) -> Tensor:
    """bool (T, B): whether row b has a step t."""
    if seq_len is None:
        seq_len = int(lengths.max()) if lengths.numel() else 0
    return torch.arange(seq_len, device=lengths.device)[:, None] < lengths


def _scan(
    stack: Stack,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Sequence[Tensor],
    rows: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer in one direction: y (T, B, P), zero where a row has ended, and the final h and c."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if stack.bias else (None, None)
    w_hr = rest[-1] if len(rest) % 2 else None
    outputs: list[Tensor] = []
    steps = range(x.shape[0])
    for t in reversed(steps) if reverse else steps:
        if resets is not None:
            keep = ~(resets[t] if rows is None else resets[t] & rows[t])[:, None]  # a row that has ended stays
            h, c = torch.where(keep, h, 0), torch.where(keep, c, 0)
        from_x = torch.nn.functional.linear(x[t], w_ih, b_ih)
        from_h = torch.nn.functional.linear(h, w_hh, b_hh)
        new_h, new_c = _CELLS[stack.cell](from_x, from_h, h, c)
        if w_hr is not None:
            new_h = new_h @ w_hr.t()
        if rows is None:
            h, c, y = new_h, new_c, new_h
        else:
            here = rows[t][:, None]
            h, c = torch.where(here, new_h, h), torch.where(here, new_c, c)
            y = torch.where(here, new_h, 0)
        outputs.append(y)
    if reverse:
        outputs.reverse()
    return torch.stack(outputs) if outputs else x.new_empty(0, x.shape[1], h.shape[-1]), h, c


def _lstm(from_x: Tensor, from_h: Tensor, _: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (from_x + from_h).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(from_x: Tensor, from_h: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    r_x, z_x, n_x = from_x.chunk(3, -1)
    r_h, z_h, n_h = from_h.chunk(3, -1)
    z = (z_x + z_h).sigmoid()
    n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return (1 - z) * n + z * h, c


_CELLS = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": lambda from_x, from_h, h, c: ((from_x + from_h).tanh(), c),
    "rnn_relu": lambda from_x, from_h, h, c: ((from_x + from_h).relu(), c),
}


def _dropout_mask(stack: Stack, given: Sequences, x: Tensor, layer: int, directions: int) -> Tensor:
    """(T, B, D*P): the kernels' own masks where their seed is given, else drawn by torch."""
    if given.seed is None:
        return torch.nn.functional.dropout(torch.ones_like(x), given.dropout)
    seq_len, batch, width = x.shape
    masks = [
        reference.dropout_mask(
            int(given.seed), given.dropout, seq_len, batch, width // directions, layer, direction, directions
        )
        for direction in range(directions)
    ]
    return torch.cat([torch.from_numpy(mask) for mask in masks], -1).to(x)


def differentiable_backward(
    stack: Stack,
    given: Sequences,
    weights: Sequence[Tensor],
    output_grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]:
    """The gradients of x, h_0, c_0 and the weights where needed, as functions of all of these and of output_grads."""
    # Views: a tensor that stands in two places gets the gradient of each by itself.
    inputs: list[Any] = [None if t is None else t.view_as(t) for t in (given.x, given.h_0, given.c_0, *weights)]
    x, h_0, c_0, *own_weights = inputs
    outputs = run(stack, given._replace(x=x, h_0=h_0, c_0=c_0), own_weights)
    used = [(y, dy) for y, dy in zip(outputs, output_grads, strict=True) if y is not None and dy is not None]
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    grads = iter(
        torch.autograd.grad(
            [y for y, _ in used], wanted, [dy for _, dy in used], create_graph=True, materialize_grads=True
        )
    )
    dx, dh_0, dc_0, *dweights = (next(grads) if need else None for need in needs)
    return dx, dh_0, dc_0, dweights
