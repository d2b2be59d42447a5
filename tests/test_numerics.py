"""Limits and modes of the arithmetic: saturation, the accuracy of tanh and sigmoid, denormal numbers."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest

import helpers
from fastrnn import functional, reference
from helpers import ISAS, Case, kernels

CELLS = tuple(reference.CELLS)

# ---------------------------------------------------------------------------------------------------------------------
# Limits
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("scale", [1e4, 1e30, np.inf])
def test_saturated_gates_reach_their_limits(isa, dtype, cell, scale):
    case = Case(cell, dtype, T=3, B=5, I=3, H=19, state=False)
    data = helpers.draw(case)
    weights = {name: np.abs(w) + np.asarray(0.01, dtype) for name, w in data.weights.items()}
    for sign in (1, -1):
        data = replace(data, x=np.full_like(data.x, sign * scale), weights=weights)
        y = helpers.run_on(isa, case, data)["y"]
        if cell == "rnn_relu":
            assert np.all(y > 1e3 if sign > 0 else y == 0)
        elif cell == "gru":  # z = 1 keeps the zero state; z = 0 takes n = -1
            np.testing.assert_array_equal(y, 0 if sign > 0 else -1)
        elif cell == "rnn_tanh":
            np.testing.assert_array_equal(y, sign)
        elif sign > 0:  # all gates open: c counts the steps
            expected = np.tanh(np.arange(1, 4, dtype=dtype))[:, None, None]
            np.testing.assert_allclose(y, np.broadcast_to(expected, y.shape), rtol=8 * np.finfo(dtype).eps)
        else:
            np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e3, 1e4, 1e30])
def test_a_closed_lstm_keeps_its_cell_and_passes_its_gradient(isa, dtype, size):
    case = Case("lstm", dtype, T=6, B=5, H=19)
    data = helpers.draw(case)
    i, f, _, o = np.split(data.weights["bias_ih_l0"], 4)  # views
    i[:], f[:], o[:] = -size, size, -size
    got = helpers.run_on(isa, case, data)
    np.testing.assert_array_equal(got["c_n"], data.state[1])
    np.testing.assert_array_equal(got["dc_0"], data.dstate[1])
    assert not got["y"].any()
    for name in ("dx", "dh_0", "dweight_ih_l0", "dweight_hh_l0", "dbias_ih_l0"):
        assert not got[name].any(), name


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e3, 1e4, 1e30])
def test_a_closed_gru_keeps_its_state_and_passes_its_gradient(isa, dtype, size):
    case = Case("gru", dtype, T=6, B=5, H=19)
    data = helpers.draw(case)
    np.split(data.weights["bias_hh_l0"], 3)[1][:] = size
    data.dy[:] = 0
    got = helpers.run_on(isa, case, data)
    np.testing.assert_array_equal(got["y"], np.broadcast_to(data.state[0], got["y"].shape))
    np.testing.assert_array_equal(got["dh_0"], data.dstate[0])
    assert not got["dx"].any()
    assert not got["dweight_hh_l0"].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("size", [10.0, 80.0, 89.0, 104.0, 700.0, 745.0, 1e4, 1e30])
def test_large_biases_equal_the_reference(isa, dtype, cell, size):
    case = Case(cell, dtype, T=4, B=5, H=35, num_layers=2)
    data = helpers.draw(case)
    rng = np.random.default_rng(0)
    if cell == "rnn_relu":
        size = min(size, 1e4)  # it has no limit
    for name, w in data.weights.items():
        if "bias_ih" in name:  # not in both, where they might cancel
            w += (size * rng.choice([-1, 0, 1], w.shape)).astype(dtype)
    expected = helpers.exact(case, data)
    assert all(np.isfinite(value).all() for value in expected.values())
    helpers.assert_within(helpers.run_on(isa, case, data), expected, helpers.tolerances(case, data, expected))


def pointwise(cell, x, isa):
    """y of one unit after one step from h = 1, for every element of x: tanh(x) or the GRU's gate z = sigmoid(x)."""
    weights = {
        "rnn_tanh": {"weight_ih_l0": [[1]], "weight_hh_l0": [[0]]},
        "gru": {"weight_ih_l0": [[0], [1], [0]], "weight_hh_l0": [[0], [0], [0]]},  # n = 0, hence h = z
    }[cell]
    weights = {name: np.array(w, x.dtype) for name, w in weights.items()}
    with kernels(isa):
        y, _, _ = functional.forward(cell, x.reshape(1, -1, 1), weights, np.ones((1, x.size, 1), x.dtype))
    return y.ravel()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tanh_and_sigmoid_are_accurate_everywhere(isa, dtype):
    exact, eps = helpers.EXACT[dtype], np.finfo(dtype).eps
    for low, high in itertools.pairwise(
        [1e-30, 1e-12, 1e-6, 1e-3, 1e-2, 0.1, 0.3, 0.6, 1, 3, 9, 20, 50, 100, 800, 1e30]
    ):
        x = np.geomspace(low, high, 2001).astype(dtype)
        x = np.concatenate([x, -x])
        expected = np.tanh(x.astype(exact))
        assert helpers.largest(pointwise("rnn_tanh", x, isa) - expected) <= 8 * eps * helpers.largest(expected), (
            low,
            high,
        )
        expected = reference.sigmoid(x.astype(exact))
        assert helpers.largest(pointwise("gru", x, isa) - expected) <= 8 * eps, (low, high)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tanh_and_sigmoid_have_exact_limits_and_keep_nan(isa, dtype):
    info = np.finfo(dtype)
    x = np.array([0, -0.0, 1e4, -1e4, info.max, info.min, np.inf, -np.inf, np.nan], dtype)
    tanh = pointwise("rnn_tanh", x, isa)
    np.testing.assert_array_equal(tanh, [0, 0, 1, -1, 1, -1, 1, -1, np.nan])
    finite = x[np.isfinite(x)]  # with an infinite x, 0 * x makes the other gates NaN
    np.testing.assert_array_equal(pointwise("gru", finite, isa), [0.5, 0.5, 1, 0, 1, 0])
    # Never beyond its limits, however the polynomial rounds.
    x = np.linspace(-30, 30, 100_001).astype(dtype)
    assert np.abs(pointwise("rnn_tanh", x, isa)).max() <= 1
    z = pointwise("gru", x, isa)
    assert z.min() >= 0
    assert z.max() <= 1


# ---------------------------------------------------------------------------------------------------------------------
# Floating-point mode
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_floating_point_mode_of_the_caller_is_left_alone(isa, cell):
    case = Case(cell, "float32", T=20, B=16, H=96, I=64)
    data = helpers.draw(case)

    def denormals_live():
        smallest = np.full(64, np.finfo(np.float32).smallest_subnormal)
        assert np.all(smallest * np.float32(4) > 0)
        assert np.all(np.full(64, np.finfo(np.float32).tiny) / np.float32(4) > 0)

    denormals_live()
    for threads in (1, 2):
        with kernels(isa, threads):
            helpers.run(functional, case, data)
            denormals_live()
            stream = helpers.layer_of(case, data).stream(case.B)
            stream.step(data.x[0])
            denormals_live()


@pytest.mark.parametrize("isa", ISAS)
def test_denormals_do_not_slow_a_step(isa):
    # The state falls to a third at each step: from 1e-36 on it is soon denormal, and stays so for thirteen steps.
    H = 64
    weights = {"weight_ih_l0": np.zeros((H, 1)), "weight_hh_l0": np.full((H, H), 1 / (3 * H))}
    weights = {name: w.astype(np.float32) for name, w in weights.items()}
    x = np.zeros((16, 16, 1), np.float32)

    def fastest(start):
        state = np.full((1, 16, H), start, np.float32)
        times = []
        for _ in range(50):
            before = time.perf_counter()
            functional.forward("rnn_relu", x, weights, state)
            times.append(time.perf_counter() - before)
        return min(times)

    with kernels(isa, 1):
        assert fastest(1e-36) < 3 * fastest(1e8)
