"""Limits and modes of the arithmetic: saturation, the accuracy of tanh and sigmoid, denormal numbers."""

import itertools
import platform
from dataclasses import replace

import numpy as np
import pytest

import fastrnn
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


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("H", [5, 15, 16, 17])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_input_leaves_finite_what_the_reference_does(isa, dtype, cell, H, value):
    # The gates of the row saturate: their derivatives are 0, and only 0 times the input itself is NaN.
    for options in [{}, {"num_layers": 2, "bidirectional": True}] + [{"proj_size": 3}] * (cell == "lstm"):
        case = Case(cell, dtype, T=4, B=5, I=3, H=H, **options)
        data, _, allowed = helpers.drawn(case)
        data = replace(data, x=data.x.copy())
        data.x[1, 2, 0] = value
        expected = helpers.exact(case, data)
        for name, array in expected.items():
            assert np.isfinite(array).all() == ("weight_ih_l0" not in name), name
        helpers.assert_within(helpers.run_on(isa, case, data), expected, allowed)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_dropping_a_unit_that_is_not_finite_leaves_nan(isa, dtype, cell, p):
    # A product with 0, as in the reference: the loss shows that something went wrong.
    case = Case(cell, dtype, T=4, B=5, I=3, H=19, num_layers=2, dropout=p)
    data, _, allowed = helpers.drawn(case)
    for name in ("x", "dy"):
        poisoned = replace(data, **{name: getattr(data, name).copy()})
        getattr(poisoned, name)[1, 2, 0] = np.nan
        expected = helpers.exact(case, poisoned)
        assert np.isnan(expected["y" if name == "x" else "dx"][1, 2]).all()
        helpers.assert_within(helpers.run_on(isa, case, poisoned), expected, allowed)


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


# Where the kernels set the mode; elsewhere denormal numbers may be computed with.
flushes = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64", "aarch64", "arm64"), reason="denormals are not flushed here"
)


@flushes
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2])
def test_denormals_are_flushed_inside_the_kernels(isa, dtype, threads):
    # y and the gradient of the state halve at each step: exactly, until they fall below the normal range.
    H, T, tiny = 96, 6, np.finfo(dtype).tiny
    weights = {"weight_ih_l0": np.eye(H, dtype=dtype), "weight_hh_l0": np.eye(H, dtype=dtype) / 2}
    x = np.zeros((T, 16, H), dtype)
    state = np.full((1, 16, H), 8 * tiny)
    halved = np.array([4, 2, 1, 0, 0, 0], dtype) * tiny
    with kernels(isa, threads):
        y, h_n, _ = functional.forward("rnn_relu", x, weights, state)
        np.testing.assert_array_equal(y, np.broadcast_to(halved[:, None, None], y.shape))
        assert not h_n.any()
        # Denormal inputs count as zero, whatever they are multiplied by.
        large = {name: w * 2**20 for name, w in weights.items()}
        y, _, _ = functional.forward("rnn_relu", np.full_like(x, tiny / 2), large, np.full_like(state, tiny / 2))
        assert not y.any()

        y, _, tape = functional.forward("rnn_relu", x + 1, weights)  # positive everywhere: the gradient flows
        dx, dh_0, _ = functional.backward(tape, None, state)
        halved = np.array([8, 4, 2, 1, 0, 0], dtype) * tiny
        np.testing.assert_array_equal(dx[::-1], np.broadcast_to(halved[:, None, None], dx.shape))
        assert not dh_0.any()


@flushes
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_denormals_are_flushed_inside_a_stream(isa, dtype):
    H, tiny = 35, np.finfo(dtype).tiny
    layer = fastrnn.RNN(H, H, nonlinearity="relu", bias=False, dtype=dtype)
    layer.load_state_dict({"weight_ih_l0": np.eye(H, dtype=dtype), "weight_hh_l0": np.eye(H, dtype=dtype) / 2})
    with kernels(isa):
        stream = layer.stream(3)
        stream.state = np.full((1, 3, H), 4 * tiny)
        for factor in (2, 1, 0, 0):
            np.testing.assert_array_equal(stream.step(np.zeros((3, H), dtype)), np.full((3, H), factor * tiny))
