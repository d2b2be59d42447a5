"""What must hold of any layer and any data: the laws of the options, rows kept apart, tapes and weights, limits."""

import itertools
import time
from dataclasses import replace

import helpers
import numpy as np
import pytest
from helpers import ISAS, Case, kernels
from hypothesis import assume, given
from hypothesis import strategies as st

from fastrnn import functional, reference

CELLS = tuple(reference.CELLS)
SEEDS = st.integers(0, 2**32 - 1)
ISA = st.sampled_from(ISAS)


@st.composite
def cases(draw, **fixed):
    """Small cases of every kind; an option given as a value is fixed, as a strategy it is drawn from that."""
    H = draw(fixed.pop("H", st.integers(1, 37)))
    cell = draw(st.sampled_from(CELLS))
    options = {
        "dtype": st.sampled_from(["float32", "float64"]),
        "T": st.integers(0, 9),
        "B": st.integers(1, 9),
        "I": st.integers(1, 20),
        "num_layers": st.integers(1, 3),
        "bidirectional": st.booleans(),
        "bias": st.booleans(),
        "proj_size": st.integers(0, H - 1) if cell == "lstm" else st.just(0),
        "state": st.booleans(),
        "lengths": st.booleans(),
        "resets": st.booleans(),
    } | fixed
    drawn = {name: draw(value) if isinstance(value, st.SearchStrategy) else value for name, value in options.items()}
    case = Case(cell, H=H, **drawn)
    assume(not (case.bidirectional and case.resets))
    return case


def run(case, data, isa, **kwargs):
    with kernels(isa):
        return helpers.run(functional, case, data, **kwargs)


def allowed_between(case, data):
    """How far two kernel results may lie apart."""
    return helpers.doubled(helpers.tolerances(case, data, helpers.exact(case, data)))


# ---------------------------------------------------------------------------------------------------------------------
# Laws
# ---------------------------------------------------------------------------------------------------------------------


@given(cases(bidirectional=False, state=True, T=st.integers(0, 9)), SEEDS, ISA, st.integers(0, 9))
def test_two_parts_in_turn_equal_the_whole(case, seed, isa, cut):
    cut = min(cut, case.T)
    data = helpers.draw(case, seed)
    whole = run(case, data, isa)
    first = replace(data, x=data.x[:cut], dy=data.dy[:cut])
    second = replace(data, x=data.x[cut:], dy=data.dy[cut:])
    if case.lengths:
        first = replace(first, lengths=np.minimum(data.lengths, cut))
        second = replace(second, lengths=np.maximum(data.lengths - cut, 0))
    if case.resets:
        first, second = replace(first, resets=data.resets[:cut]), replace(second, resets=data.resets[cut:])
    with kernels(isa):
        values, tape = helpers.run_forward(functional, case, first)
        second = replace(second, state=tuple(values[name] for name in ("h_n", "c_n") if name in values))
        late = helpers.run(functional, case, second)
        first = replace(first, dstate=tuple(late[name] for name in ("dh_0", "dc_0") if name in late))
        early = values | helpers.run_backward(functional, first, tape)
    joined = {}
    for name in whole:
        if name in ("y", "dx"):
            joined[name] = np.concatenate([early[name], late[name]])
        elif name.endswith("_n"):
            joined[name] = late[name]
        elif name.endswith("_0"):
            joined[name] = early[name]
        else:
            joined[name] = early[name] + late[name]
    helpers.assert_within(joined, whole, allowed_between(case, data))


@given(cases(), SEEDS, ISA)
def test_the_order_of_the_rows_does_not_matter(case, seed, isa):
    data = helpers.draw(case, seed)
    order = np.random.default_rng(seed).permutation(case.B)
    permuted = replace(
        data,
        x=data.x[:, order],
        dy=data.dy[:, order],
        state=tuple(s[:, order] for s in data.state),
        dstate=tuple(s[:, order] for s in data.dstate),
        lengths=None if data.lengths is None else data.lengths[order],
        resets=None if data.resets is None else data.resets[:, order],
    )
    expected = run(case, data, isa)
    for name in ("y", "h_n", "c_n", "dx", "dh_0", "dc_0"):
        if name in expected:
            expected[name] = expected[name][:, order]
    helpers.assert_within(run(case, permuted, isa), expected, allowed_between(case, data))


def poison_padding(case, data):
    ended = np.arange(case.T)[:, None] >= data.lengths
    data.x[ended] = np.nan
    data.dy[ended] = np.nan
    return ended


@given(cases(lengths=True), SEEDS, ISA)
def test_lengths_and_resets_equal_the_pieces_alone_with_nan_in_the_padding(case, seed, isa):
    data = helpers.draw(case, seed)
    ended = poison_padding(case, data)
    got = run(case, data, isa)
    with kernels(isa):
        expected = helpers.pieces_alone(functional, case, data)
    helpers.assert_within(got, expected, allowed_between(case, data))
    assert not got["y"][ended].any()
    assert not got["dx"][ended].any()
    empty = data.lengths == 0
    for letter, s, ds in zip("hc", data.state, data.dstate, strict=False):
        np.testing.assert_array_equal(got[f"{letter}_n"][:, empty], s[:, empty] if case.state else 0)
        np.testing.assert_array_equal(got[f"d{letter}_0"][:, empty], ds[:, empty])


@given(cases(lengths=True), SEEDS, ISA)
def test_nan_in_the_padding_changes_no_bit(case, seed, isa):
    data = helpers.draw(case, seed)
    clean = run(case, data, isa)
    poison_padding(case, data)
    helpers.assert_same_bits(run(case, data, isa), clean)


@given(cases(lengths=False, resets=True, bidirectional=False), SEEDS, ISA)
def test_resets_equal_the_pieces_alone(case, seed, isa):
    data = helpers.draw(case, seed)
    with kernels(isa):
        expected = helpers.pieces_alone(functional, case, data)
    helpers.assert_within(run(case, data, isa), expected, allowed_between(case, data))


@given(cases(resets=True, bidirectional=False, state=True, T=st.integers(1, 9)), SEEDS, ISA)
def test_a_reset_at_the_first_step_erases_nan_and_stops_the_gradient(case, seed, isa):
    data = helpers.draw(case, seed)
    data.resets[0] = True
    clean = run(case, data, isa)
    running = np.full(case.B, True) if data.lengths is None else data.lengths > 0
    for s in data.state:
        s[:, running] = np.nan
    got = run(case, data, isa)
    helpers.assert_same_bits(got, clean)
    for name in ("dh_0", "dc_0"):
        if name in got:
            assert not got[name][:, running].any()


@given(cases(num_layers=st.integers(1, 2), T=st.integers(2, 9)), SEEDS, ISA, st.data())
def test_a_reset_erases_nan_that_arose_before_it(case, seed, isa, choice):
    case = replace(case, bidirectional=False, resets=True, lengths=False)
    data = helpers.draw(case, seed)
    row, at = choice.draw(st.integers(0, case.B - 1)), choice.draw(st.integers(1, case.T - 1))
    data.resets[at, row] = True
    clean = run(case, data, isa)
    data.x[choice.draw(st.integers(0, at - 1)), row] = np.nan
    got = run(case, data, isa)
    others = np.arange(case.B) != row
    for name in ("y", "dx"):
        assert got[name][at:].tobytes() == clean[name][at:].tobytes()
        assert got[name][:, others].tobytes() == clean[name][:, others].tobytes()
    for name in ("h_n", "c_n"):
        if name in got:
            assert got[name].tobytes() == clean[name].tobytes()


@given(cases(num_layers=st.integers(2, 3)), SEEDS, ISA, st.sampled_from([0.0, 1e-3, 0.5, 0.9, 1.0]))
def test_dropout_masks_are_those_of_the_reference(case, seed, isa, p):
    case = replace(case, dropout=p)
    data = replace(helpers.draw(case, seed), dropout_seed=seed * 0x1_0000_0001)
    expected = helpers.exact(case, data)
    helpers.assert_within(run(case, data, isa), expected, helpers.tolerances(case, data, expected))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout_multiplies_by_exactly_the_reference_mask(isa, p):
    # A second layer of the rectifier with W_ih = 1 and W_hh = 0 passes the first layer's masked output on.
    case = Case("rnn_relu", "float64", T=5, B=3, I=4, H=21, num_layers=2, bias=False, state=False, dropout=p)
    data = helpers.draw(case)
    data.weights["weight_ih_l1"][:] = np.eye(case.H)
    data.weights["weight_hh_l1"][:] = 0
    below = {name: w for name, w in data.weights.items() if "l0" in name}
    with kernels(isa):
        first, _, _ = functional.forward("rnn_relu", data.x, below)
        values, _ = helpers.run_forward(functional, case, data)
    mask = reference.dropout_mask(data.dropout_seed, p, case.T, case.B, case.H, 0, 0, 1)
    np.testing.assert_array_equal(values["y"], first * mask)


@given(
    # Enough work for several threads.
    cases(dtype="float32", T=st.integers(1, 5), B=st.integers(8, 40), I=st.integers(1, 150), H=st.integers(30, 150)),
    SEEDS,
    ISA,
    st.sampled_from([2, 3, 4, 7]),
)
def test_any_number_of_threads_gives_the_result(case, seed, isa, threads):
    data = helpers.draw(case, seed)
    expected = helpers.exact(case, data)
    with kernels(isa, threads):
        got = helpers.run(functional, case, data)
        helpers.assert_within(got, expected, helpers.tolerances(case, data, expected))
        helpers.assert_same_bits(helpers.run(functional, case, data), got)


# ---------------------------------------------------------------------------------------------------------------------
# Tapes and weights
# ---------------------------------------------------------------------------------------------------------------------


@given(st.lists(cases(T=st.integers(0, 5)), min_size=2, max_size=4), SEEDS, ISA, st.data())
def test_open_tapes_are_consumed_in_any_order(several, seed, isa, choice):
    several = [replace(case, dropout=0.3) for case in several]
    data = [helpers.draw(case, seed + i) for i, case in enumerate(several)]
    expected = [run(case, d, isa) for case, d in zip(several, data, strict=True)]
    with kernels(isa):
        opened = [helpers.run_forward(functional, case, d) for case, d in zip(several, data, strict=True)]
        for i in choice.draw(st.permutations(range(len(several)))):
            values, tape = opened[i]
            helpers.assert_same_bits(values | helpers.run_backward(functional, data[i], tape), expected[i])


@given(cases(), SEEDS, ISA)
def test_open_tapes_of_one_layer_are_consumed_in_any_order(case, seed, isa):
    data = [helpers.draw(case, seed + i) for i in range(3)]
    data = [replace(d, weights=data[0].weights) for d in data]
    expected = [run(case, d, isa) for d in data]
    with kernels(isa):
        layer = helpers.layer_of(case, data[0])
        tapes = [run_layer_forward(layer, case, d)[1] for d in data]
        for i in (1, 2, 0):
            layer.zero_grad()
            dx, dstate = layer.backward(tapes[i], data[i].dy, helpers.as_state(data[i].dstate))
            got = helpers.named_gradients(dx, dstate, layer.grads)
            helpers.assert_same_bits(got, {name: expected[i][name] for name in got})


def run_layer_forward(layer, case, data, seed=None):
    y, state, tape = layer.forward(
        data.x,
        helpers.as_state(data.state) if case.state else None,
        lengths=data.lengths,
        resets=data.resets,
        dropout_seed=data.dropout_seed if seed is None else seed,
    )
    return {"y": y, **helpers.named_state(state, "", "_n")}, tape


@given(cases(num_layers=st.integers(2, 3)), SEEDS, ISA)
def test_layers_give_the_bits_of_functional(case, seed, isa):
    case = replace(case, dropout=0.3)
    data = helpers.draw(case, seed)
    expected = run(case, data, isa)
    with kernels(isa):
        layer = helpers.layer_of(case, data)
        values, tape = run_layer_forward(layer, case, data)
        dx, dstate = layer.backward(tape, data.dy, helpers.as_state(data.dstate))
    helpers.assert_same_bits(values | helpers.named_gradients(dx, dstate, layer.grads), expected)


@given(cases(), SEEDS, ISA)
def test_gradients_add_up_over_calls(case, seed, isa):
    data = helpers.draw(case, seed)
    once = run(case, data, isa)
    with kernels(isa):
        layer = helpers.layer_of(case, data)
        for _ in range(2):
            _, tape = run_layer_forward(layer, case, data)
            layer.backward(tape, data.dy, helpers.as_state(data.dstate))
    eps = float(np.finfo(case.dtype).eps)
    for name, grad in layer.grads.items():
        np.testing.assert_allclose(grad, 2 * once[f"d{name}"], rtol=0, atol=8 * eps * helpers.largest(grad))


@given(cases(), SEEDS, ISA)
def test_weights_changed_between_calls_take_effect(case, seed, isa):
    before, after = helpers.draw(case, seed), helpers.draw(case, seed + 1)
    expected = run(case, after, isa)
    with kernels(isa):
        layer = helpers.layer_of(case, before)
        _, tape = run_layer_forward(layer, case, before)
        layer.backward(tape, before.dy, helpers.as_state(before.dstate))
        layer.zero_grad()
        for i, (name, w) in enumerate(after.weights.items()):
            if i % 2:
                layer.parameters[name] = w
            else:
                layer.parameters[name][...] = w
        values, tape = run_layer_forward(layer, case, after)
        dx, dstate = layer.backward(tape, after.dy, helpers.as_state(after.dstate))
    helpers.assert_same_bits(values | helpers.named_gradients(dx, dstate, layer.grads), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


@given(
    cases(T=st.integers(1, 9), B=st.integers(2, 9), state=True),
    SEEDS,
    ISA,
    st.sampled_from(["x", "h_0", "c_0", "dy", "dstate"]),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.data(),
)
def test_what_is_not_finite_stays_in_its_row(case, seed, isa, where, value, choice):
    data = helpers.draw(case, seed)
    clean = run(case, data, isa)
    row = choice.draw(st.integers(0, case.B - 1))
    assume(case.lengths is False or data.lengths[row] > 0)
    length = case.T if data.lengths is None else int(data.lengths[row])
    t = choice.draw(st.integers(0, length - 1))
    target = {
        "x": data.x[t, row],
        "h_0": data.state[0][0, row],
        "c_0": data.state[-1][0, row],
        "dy": data.dy[t, row],
        "dstate": data.dstate[0][0, row],
    }[where]
    target[choice.draw(st.integers(0, target.size - 1))] = value
    got = run(case, data, isa)
    others = np.arange(case.B) != row
    for name in ("y", "h_n", "c_n", "dx", "dh_0", "dc_0"):
        if name in got:
            assert got[name][:, others].tobytes() == clean[name][:, others].tobytes(), name
    if where == "x" and np.isnan(value) and not case.resets:
        # Every unit reads x and, one step later, every unit of the row; of a single layer's two directions the reverse
        # one has passed the later steps before.
        last = t + 1 if case.bidirectional and case.num_layers == 1 else length
        assert np.isnan(got["y"][t:last, row]).all()
        assert np.isnan(got["h_n"][:, row]).all()
    values = [name for name in ("y", "h_n", "c_n") if name in got]
    if where in ("dy", "dstate"):
        helpers.assert_same_bits({name: got[name] for name in values}, {name: clean[name] for name in values})
    elif np.isinf(value) and case.cell != "rnn_relu":  # gates saturate: the row has finite results, where the maths has
        expected = helpers.exact(case, data)
        allowed = helpers.tolerances(case, data, {name: np.nan_to_num(a, posinf=0) for name, a in expected.items()})
        helpers.assert_within({n: got[n] for n in values}, {n: expected[n] for n in values}, allowed)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_nan_in_one_element_of_the_state_stays_in_its_row(isa, dtype, cell):
    case = Case(cell, dtype, T=3, B=7, H=19)
    for s, unit, row in itertools.product(range(2 if cell == "lstm" else 1), (0, 15, 18), (0, 3, 6)):
        data = helpers.draw(case)
        clean = run(case, data, isa)
        data.state[s][0, row, unit] = np.nan
        got = run(case, data, isa)
        assert np.isnan(got["y"][1:, row]).all()
        others = np.arange(case.B) != row
        for name in ("y", "h_n", "dx", "dh_0"):
            assert got[name][:, others].tobytes() == clean[name][:, others].tobytes(), name


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
        y = run(case, data, isa)["y"]
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
    got = run(case, data, isa)
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
    got = run(case, data, isa)
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
    helpers.assert_within(run(case, data, isa), expected, helpers.tolerances(case, data, expected))


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
