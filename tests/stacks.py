"""Stacks with skip connections, and what they compute restated, for their tests."""

import numpy as np
import pytest

from fastrnn import reference
from fastrnn.models.stack import make_stack
from layering import B, T, assert_same, normal, pair, random_state
from layering import H as SIZE

KERNELS = {"lstm": "lstm", "gru": "gru", "rnn": "rnn_tanh", "rnn_relu": "rnn_relu"}
KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
LENGTHS = [2, 0, T]
EPS = np.finfo(np.float64).eps
cells = pytest.mark.parametrize("cell", KERNELS)
every_input = pytest.mark.parametrize("inputs", [SIZE, SIZE - 1], ids="input_size={}".format)


def residual(cell="lstm", layers=3, inputs=SIZE, **options):
    return make_stack(cell, inputs, SIZE, layers, skip=True, **{"seed": 0, "dtype": "float64"} | options)


def with_nan(array, lengths=LENGTHS):
    array = array.copy()
    for b, length in enumerate(lengths):
        array[length:, b] = np.nan
    return array


def weights_of(layer, k):
    """The weights of one layer under the names that they have in a stack of one."""
    ends = [f"_l{k}", f"_l{k}_reverse"][: 1 + layer.bidirectional]
    return {
        f"{kind}{end.replace(f'_l{k}', '_l0')}": layer.parameters[kind + end]
        for end in ends
        for kind in KINDS
        if kind + end in layer.parameters
    }


def part(state, k, directions):
    return None if state is None else tuple(s[k * directions : (k + 1) * directions] for s in pair(state))


def as_state(parts):
    return None if parts is None else parts[0] if len(parts) == 1 else parts


def restated(cell, layer, x, state, dy, dstate, lengths=None, masks=None):
    """What ``train`` gives, by the equations of ``ResidualLSTM`` on layers of the reference."""
    L, D = layer.num_layers, 1 + layer.bidirectional
    masks = [1.0] * L if masks is None else [1.0 if mask is None else mask for mask in masks]
    ends = [len(x)] * x.shape[1] if lengths is None else lengths
    inside = np.arange(len(x))[:, None, None] < np.array(ends)[:, None]
    y, grad = np.where(inside, x, 0), np.where(inside, dy, 0)
    proj_size = getattr(layer, "proj_size", 0)
    skipped = [k > 0 or layer.input_size == D * (proj_size or layer.hidden_size) for k in range(L)]
    tapes, states, dstates, dweights = [], [], [], {}
    for k in range(L):
        out, state_n, tape = reference.forward(
            KERNELS[cell], y * masks[k], weights_of(layer, k), as_state(part(state, k, D)),
            lengths=lengths, bidirectional=layer.bidirectional, proj_size=proj_size,
        )  # fmt: skip
        y = out + y if skipped[k] else out
        tapes.append(tape)
        states.append(pair(state_n))
    for k in reversed(range(L)):
        through, dstate_0, dw = reference.backward(tapes[k], grad, as_state(part(dstate, k, D)))
        grad = through * masks[k] + grad if skipped[k] else through * masks[k]
        dstates.insert(0, pair(dstate_0))
        dweights |= {f"d{name.replace('_l0', f'_l{k}')}": dw[name] for name in dw}
    results = {"y": y, "dx": grad, **dweights}
    results |= dict(zip(("h_n", "c_n"), map(np.concatenate, zip(*states, strict=True)), strict=False))
    return results | dict(zip(("dh_0", "dc_0"), map(np.concatenate, zip(*dstates, strict=True)), strict=False))


def assert_close(layer, got, expected):
    """Up to a rounding of each term of the sums along layers, steps and rows, in the dtype of the layer."""
    terms = layer.num_layers * T * (B + layer.input_size + 2 * SIZE)
    atol = terms * float(np.finfo(layer.dtype).eps) * max(1.0, *(abs(a).max(initial=0.0) for a in expected.values()))
    assert_same(got, expected, atol=atol)


def given(layer, steps=T, batch=B):
    """x, state, dy, dstate."""
    outputs = (1 + layer.bidirectional) * (getattr(layer, "proj_size", 0) or SIZE)
    x, dy = (normal(steps, batch, size, seed=size, dtype=layer.dtype) for size in (layer.input_size, outputs))
    return x, random_state(layer, batch), dy, random_state(layer, batch, seed=5)
