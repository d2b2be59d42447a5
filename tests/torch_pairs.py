"""torch.nn's modules beside fastrnn.torch's: equal pairs, their results, and how far these may differ."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn.torch as fast

# torch's own, of code that calls it
IGNORED = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


def pair(cell, *args, seed=0, **options):
    """torch's layer and ours, equal."""
    layers = []
    for module in (nn, fast):
        torch.manual_seed(seed)
        layers.append(getattr(module, cell)(*args, **options))
    return layers


def tensors(*values):
    """All tensors in nested tuples, in order."""
    for value in values:
        if isinstance(value, PackedSequence):
            yield value.data
        elif isinstance(value, (tuple, list)):
            yield from tensors(*value)
        elif value is not None:
            yield value


def results(layer, x, hx=None, call=None):
    """Outputs of one call and all gradients of a loss that weighs each output by numbers of its own."""
    layer.zero_grad()
    leaves = [t.detach().clone().requires_grad_() for t in tensors(x, hx)]
    states = leaves[1:]
    hx = None if not states else tuple(states) if len(states) == 2 else states[0]
    outputs = list(tensors((call or layer)(leaves[0], hx)))
    numbers = torch.Generator().manual_seed(3)
    loss = sum((y * torch.randn(y.shape, generator=numbers).to(y)).sum() for y in outputs)
    loss.backward()
    return [y.detach() for y in outputs] + [t.grad for t in leaves] + [w.grad for w in layer.parameters()]


def assert_close(got, expected, steps=1):
    """Within rounding: each value is a sum over a few dozen units and, in gradients, over the steps."""
    for mine, theirs in zip(got, expected, strict=True):
        mine, theirs = mine.detach(), theirs.detach()
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        if mine.numel():
            largest = max(1.0, float(theirs.abs().max()))
            error = float((mine - theirs).abs().max())
            assert error <= 64 * max(1, steps) * torch.finfo(mine.dtype).eps * largest, (error, largest)


def draw_state(cell, layer, batch):
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    dtype = layer.weight_hh_l0.dtype
    h = torch.randn(rows, *batch, layer.proj_size or layer.hidden_size, dtype=dtype)
    return (h, torch.randn(rows, *batch, layer.hidden_size, dtype=dtype)) if cell == "LSTM" else h
