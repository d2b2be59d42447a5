"""Functions compute what layers do."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastrnn import functional
from layering import B, I, T, assert_same, cells, make, normal, pair, random_state, train

STACKS = [{}, {"num_layers": 3, "bias": False}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}]


@cells
@pytest.mark.parametrize("options", STACKS, ids=str)
def test_functions_compute_what_layers_do(cell, options):
    layer, x = make(cell, **options), normal(B, T, I)
    lengths = np.array([1, T, 2]) if layer.batch_first else [B, 0, 1, 2, 1, 1]
    rows = B if layer.batch_first else T
    state, dstate = random_state(layer, rows), random_state(layer, rows, seed=5)
    expected = train(layer, x, state, dstate=dstate, lengths=lengths)
    y, state_n, tape = functional.forward(
        cell, x, layer.parameters, state, lengths=lengths, batch_first=layer.batch_first
    )
    assert not y.flags.writeable
    dx, dstate_0, dweights = functional.backward(tape, normal(*y.shape, seed=7), dstate)
    got = {"y": y, "dx": dx, **{f"d{name}": g for name, g in dweights.items()}}
    got |= dict(zip(("h_n", "c_n"), pair(state_n), strict=False))
    got |= dict(zip(("dh_0", "dc_0"), pair(dstate_0), strict=False))
    assert_same(got, expected, atol=0)
    inferred, _, tape = functional.forward(
        cell, x, layer.parameters, state, lengths=lengths, batch_first=layer.batch_first, training=False
    )
    assert tape is None
    assert_allclose(inferred, y, atol=1e-14)


def test_functions_read_a_projection_and_drop_out():
    layer, x = make("lstm", 2, proj_size=3, dropout=0.5), normal(T, B, I)
    expected = train(layer, x, dropout_seed=8)
    y, _, tape = functional.forward("lstm", x, layer.state_dict(), dropout=0.5, dropout_seed=8)
    assert_array_equal(y, expected["y"])
    assert_array_equal(functional.backward(tape, normal(*y.shape, seed=7))[0], expected["dx"])
    seeds = {functional.forward("lstm", x, layer.parameters, dropout=0.5)[2].dropout_seed for _ in range(3)}
    assert len(seeds) == 3


def test_a_layers_tape_serves_the_function_too():
    layer, x = make("gru"), normal(T, B, I)
    expected = train(layer, x)
    y, _, tape = layer.forward(x)
    dx, _, dweights = functional.backward(tape, normal(*y.shape, seed=7))
    assert_array_equal(dx, expected["dx"])
    assert_array_equal(dweights["weight_hh_l0"], expected["dweight_hh_l0"])
    assert not layer.grads["weight_hh_l0"].any()
