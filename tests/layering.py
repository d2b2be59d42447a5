"""What the tests of layers, functions and streams share."""

import threading

import numpy as np
import pytest
from numpy.testing import assert_allclose

import fastrnn

LAYERS = {
    "lstm": fastrnn.LSTM,
    "gru": fastrnn.GRU,
    "rnn_tanh": fastrnn.RNN,
    "rnn_relu": lambda *args, **kwargs: fastrnn.RNN(*args, nonlinearity="relu", **kwargs),
}
cells = pytest.mark.parametrize("cell", LAYERS)
T, B, I, H = 6, 3, 4, 5  # noqa: E741


def make(cell="lstm", *args, **kwargs):
    return LAYERS[cell](I, H, *args, **{"seed": 0, "dtype": "float64"} | kwargs)


def normal(*shape, seed=1, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def pair(state):
    """A state's arrays, whichever the cell."""
    return state if isinstance(state, tuple) else (state,)


def random_state(layer, *batch, seed=2):
    count = layer.num_layers * (1 + layer.bidirectional)
    h = normal(count, *batch, getattr(layer, "proj_size", 0) or H, seed=seed, dtype=layer.dtype)
    if not isinstance(layer, fastrnn.LSTM):
        return h
    return h, normal(count, *batch, H, seed=seed + 1, dtype=layer.dtype)


def train(layer, x, state=None, dy=None, dstate=None, **kwargs):
    """Everything that one forward and backward give, by name; the layer's gradients are left at zero."""
    y, state_n, tape = layer.forward(x, state, **kwargs)
    dy = normal(*y.shape, seed=7, dtype=layer.dtype) if dy is None else dy
    dx, dstate_0 = layer.backward(tape, dy, dstate)
    results = {"y": y, "dx": dx, **{f"d{name}": g.copy() for name, g in layer.grads.items()}}
    results |= dict(zip(("h_n", "c_n"), pair(state_n), strict=False))
    results |= dict(zip(("dh_0", "dc_0"), pair(dstate_0), strict=False))
    layer.zero_grad()
    return results


def assert_same(got, expected, **tolerance):
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert_allclose(got[name], want, err_msg=name, **{"rtol": 0, "atol": 1e-13} | tolerance)


def in_threads(count, work):
    """Runs work(0) .. work(count - 1) at once; gives their results and exceptions."""
    results, start = [None] * count, threading.Barrier(count)

    def run(i):
        start.wait()
        try:
            results[i] = work(i)
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
