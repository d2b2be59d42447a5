"""What must hold of any layer and any data: the laws of the options, tapes and weights, rows kept apart."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import helpers
from fastrnn import functional, reference
from helpers import ISAS, Case, kernels

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
    whole = helpers.run_on(isa, case, data)
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
    expected = helpers.run_on(isa, case, data)
    for name in ("y", "h_n", "c_n", "dx", "dh_0", "dc_0"):
        if name in expected:
            expected[name] = expected[name][:, order]
    helpers.assert_within(helpers.run_on(isa, case, permuted), expected, allowed_between(case, data))


def poison_padding(case, data):
    ended = np.arange(case.T)[:, None] >= data.lengths
    data.x[ended] = np.nan
    data.dy[ended] = np.nan
    return ended


@given(cases(lengths=True), SEEDS, ISA)
def test_lengths_and_resets_equal_the_pieces_alone_with_nan_in_the_padding(case, seed, isa):
    data = helpers.draw(case, seed)
    ended = poison_padding(case, data)
    got = helpers.run_on(isa, case, data)
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
    clean = helpers.run_on(isa, case, data)
    poison_padding(case, data)
    helpers.assert_same_bits(helpers.run_on(isa, case, data), clean)


@given(cases(lengths=False, resets=True, bidirectional=False), SEEDS, ISA)
def test_resets_equal_the_pieces_alone(case, seed, isa):
    data = helpers.draw(case, seed)
    with kernels(isa):
        expected = helpers.pieces_alone(functional, case, data)
    helpers.assert_within(helpers.run_on(isa, case, data), expected, allowed_between(case, data))


@given(cases(resets=True, bidirectional=False, state=True, T=st.integers(1, 9)), SEEDS, ISA)
def test_a_reset_at_the_first_step_erases_nan_and_stops_the_gradient(case, seed, isa):
    data = helpers.draw(case, seed)
    data.resets[0] = True
    clean = helpers.run_on(isa, case, data)
    running = np.full(case.B, True) if data.lengths is None else data.lengths > 0
    for s in data.state:
        s[:, running] = np.nan
    got = helpers.run_on(isa, case, data)
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
    clean = helpers.run_on(isa, case, data)
    data.x[choice.draw(st.integers(0, at - 1)), row] = np.nan
    got = helpers.run_on(isa, case, data)
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
    helpers.assert_within(helpers.run_on(isa, case, data), expected, helpers.tolerances(case, data, expected))


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
    expected = [helpers.run_on(isa, case, d) for case, d in zip(several, data, strict=True)]
    with kernels(isa):
        opened = [helpers.run_forward(functional, case, d) for case, d in zip(several, data, strict=True)]
        for i in choice.draw(st.permutations(range(len(several)))):
            values, tape = opened[i]
            helpers.assert_same_bits(values | helpers.run_backward(functional, data[i], tape), expected[i])


@given(cases(), SEEDS, ISA)
def test_open_tapes_of_one_layer_are_consumed_in_any_order(case, seed, isa):
    data = [helpers.draw(case, seed + i) for i in range(3)]
    data = [replace(d, weights=data[0].weights) for d in data]
    expected = [helpers.run_on(isa, case, d) for d in data]
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
    expected = helpers.run_on(isa, case, data)
    with kernels(isa):
        layer = helpers.layer_of(case, data)
        values, tape = run_layer_forward(layer, case, data)
        dx, dstate = layer.backward(tape, data.dy, helpers.as_state(data.dstate))
    helpers.assert_same_bits(values | helpers.named_gradients(dx, dstate, layer.grads), expected)


@given(cases(), SEEDS, ISA)
def test_gradients_add_up_over_calls(case, seed, isa):
    data = helpers.draw(case, seed)
    once = helpers.run_on(isa, case, data)
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
    expected = helpers.run_on(isa, case, after)
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
    clean = helpers.run_on(isa, case, data)
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
    got = helpers.run_on(isa, case, data)
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
    elif np.isinf(value) and case.cell != "rnn_relu":  # gates saturate: what the maths leaves finite is finite
        finite = helpers.draw(case, seed)
        allowed = helpers.tolerances(case, finite, helpers.exact(case, finite))
        helpers.assert_within(got, helpers.exact(case, data), allowed)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_nan_in_one_element_of_the_state_stays_in_its_row(isa, dtype, cell):
    case = Case(cell, dtype, T=3, B=7, H=19)
    for s, unit, row in itertools.product(range(2 if cell == "lstm" else 1), (0, 15, 18), (0, 3, 6)):
        data = helpers.draw(case)
        clean = helpers.run_on(isa, case, data)
        data.state[s][0, row, unit] = np.nan
        got = helpers.run_on(isa, case, data)
        assert np.isnan(got["y"][1:, row]).all()
        others = np.arange(case.B) != row
        for name in ("y", "h_n", "dx", "dh_0"):
            assert got[name][:, others].tobytes() == clean[name][:, others].tobytes(), name
