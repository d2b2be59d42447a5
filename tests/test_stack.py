"""Stacks of recurrent layers with skip connections: values and gradients, against the reference's composed by hand."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrnn
from fastrnn.models.stack import CELLS, ResidualGRU, ResidualLSTM, ResidualRNN, make_stack
from layering import B, T, assert_same, normal, pair, random_state, train
from stacks import (
    EPS,
    KERNELS,
    LENGTHS,
    SIZE,
    as_state,
    assert_close,
    cells,
    every_input,
    given,
    residual,
    restated,
    with_nan,
)

# ---------------------------------------------------------------------------------------------------------------------
# What make_stack gives
# ---------------------------------------------------------------------------------------------------------------------


@cells
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "dropout": 0.5}], ids=str)
def test_both_kinds_of_stack_have_the_same_weights_from_a_seed(cell, options):
    plain, skipping = (make_stack(cell, 3, SIZE, 2, skip=skip, seed=1, **options) for skip in (False, True))
    assert type(plain) in (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN)
    assert type(skipping) in (ResidualLSTM, ResidualGRU, ResidualRNN)
    assert isinstance(skipping, type(plain))
    for name in ("parameters", "grads"):
        assert list(getattr(skipping, name)) == list(getattr(plain, name))
        for key, array in getattr(plain, name).items():
            assert_array_equal(getattr(skipping, name)[key], array)
    for name in ("input_size", "hidden_size", "num_layers", "bidirectional", "dropout", "dtype", "device"):
        assert getattr(skipping, name) == getattr(plain, name)
    assert repr(skipping) == f"Residual{plain!r}"
    assert set(CELLS) == set(KERNELS)


def test_without_skip_it_is_one_call_of_the_layer():
    layer, own = make_stack("rnn_relu", 4, SIZE, 2, seed=1), fastrnn.RNN(4, SIZE, 2, nonlinearity="relu", seed=1)
    x = normal(T, B, 4, dtype="float32")
    assert_array_equal(layer(x)[0], own(x)[0])
    assert make_stack("lstm", 4, SIZE, proj_size=2).proj_size == 2


@pytest.mark.parametrize("skip", [False, True])
def test_one_layer_has_nothing_to_drop(skip):
    assert make_stack("gru", 4, SIZE, dropout=0.5, skip=skip).dropout == 0.0


def test_a_warning_points_at_the_callers_line():
    with pytest.warns(UserWarning, match="gru: dropout=0.5 has no effect with num_layers=1") as record:
        ResidualGRU(4, SIZE, dropout=0.5)
    assert record[0].filename == __file__


# ---------------------------------------------------------------------------------------------------------------------
# Values and gradients
# ---------------------------------------------------------------------------------------------------------------------


@cells
@every_input
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=str)
@pytest.mark.parametrize("layers", [1, 3])
def test_values_and_gradients_are_those_of_layers_composed_by_hand(cell, inputs, bidirectional, lengths, layers):
    layer = residual(cell, layers, inputs * (1 + bidirectional), bidirectional=bidirectional)
    x, state, dy, dstate = given(layer)
    expected = restated(cell, layer, x, state, dy, dstate, lengths)
    if lengths is not None:
        x, dy = with_nan(x), with_nan(dy)
    assert_close(layer, train(layer, x, state, dy, dstate, lengths=lengths), expected)
    y, state_n = layer(x, state, lengths=lengths)
    names = ("y", "h_n", "c_n")[: 1 + len(pair(state_n))]
    got = dict(zip(names, (y, *pair(state_n)), strict=True))
    assert_close(layer, got, {name: expected[name] for name in names})
    assert isinstance(state_n, tuple) == (cell == "lstm")
    assert got["h_n"].shape == (layers * (1 + bidirectional), B, SIZE)


@every_input
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_with_a_projection(inputs, dtype):
    layer = residual("lstm", 3, 2 if inputs == SIZE else inputs, proj_size=2, dtype=dtype)
    x, state, dy, dstate = given(layer)
    got = train(layer, x, state, dy, dstate, lengths=LENGTHS)
    assert all(array.dtype == dtype for array in got.values())
    assert got["y"].shape == (T, B, 2)
    assert_close(layer, got, restated("lstm", layer, x, state, dy, dstate, LENGTHS))


@cells
@pytest.mark.parametrize(
    "options",
    [
        {"layers": 1},
        {"layers": 3, "dropout": 0.4},
        {"layers": 2, "inputs": 2, "dropout": 0.4, "lengths": [1, 3]},
        {"layers": 2, "inputs": 6, "bidirectional": True, "lengths": [3, 2]},
    ],
    ids=str,
)
def test_every_gradient_against_finite_differences(cell, options):
    options = {"inputs": 3, "lengths": None, "bidirectional": False, "dropout": 0.0} | options
    lengths, steps, batch, size = options["lengths"], 3, 2, 3
    layer = make_stack(
        cell, options["inputs"], size, options["layers"], dropout=options["dropout"], skip=True, seed=2,
        bidirectional=options["bidirectional"], dtype="float64",
    )  # fmt: skip
    D = 1 + layer.bidirectional
    x, dy = normal(steps, batch, layer.input_size), normal(steps, batch, D * size, seed=2)
    state, dstate = (
        tuple(normal(layer.num_layers * D, batch, size, seed=seed + i) for i in range(1 + (cell == "lstm")))
        for seed in (3, 5)
    )
    if lengths is not None:
        x, dy = with_nan(x, lengths), with_nan(dy, lengths)
    factors = [np.where(np.isnan(dy), 0, dy), *dstate]

    def values():
        y, state_n, tape = layer.forward(x, as_state(state), lengths=lengths, dropout_seed=7)
        return (y, *pair(state_n)), tape

    def loss():
        return sum((value * factor).sum() for value, factor in zip(values()[0], factors, strict=True))

    found, tape = values()
    dx, dstate_0 = layer.backward(tape, dy, as_state(dstate))
    arguments = [(x, dx), *zip(state, pair(dstate_0), strict=True)]
    arguments += [(array, layer.grads[name]) for name, array in layer.parameters.items()]
    step = EPS ** (1 / 3)
    rounding = 8 * EPS * sum(abs(v).max() * abs(f).sum() for v, f in zip(found, factors, strict=True))

    def slope(array, index, h):
        kept, losses = array[index], []
        for moved in (kept + h, kept - h):
            array[index] = moved
            losses.append(loss())
        array[index] = kept
        return (losses[0] - losses[1]) / (2 * h)

    for array, gradient in arguments:
        for index in np.ndindex(array.shape):
            if np.isnan(array[index]):
                assert gradient[index] == 0
                continue
            # The difference over 2h errs by four times as much as the one over h.
            fine, coarse = slope(array, index, step), slope(array, index, 2 * step)
            allowed = abs(coarse - fine) + rounding / step
            assert abs(fine - gradient[index]) <= allowed
            assert allowed < 1e-6


@every_input
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_is_never_used(inputs, bidirectional):
    layer = residual("gru", 2, inputs * (1 + bidirectional), bidirectional=bidirectional, dropout=0.3)
    x, state, dy, dstate = given(layer)
    clean = train(layer, x, state, dy, dstate, lengths=LENGTHS, dropout_seed=1)
    for b, length in enumerate(LENGTHS):
        assert not clean["y"][length:, b].any()
        assert not clean["dx"][length:, b].any()
    for filled in (with_nan, lambda a: np.where(np.isnan(with_nan(a)), np.inf, a)):
        got = train(layer, filled(x), state, filled(dy), dstate, lengths=LENGTHS, dropout_seed=1)
        assert_same(got, clean, atol=0)
    assert_array_equal(clean["h_n"][:, 1], state[:, 1])  # an empty row's final state is its initial one


@cells
@every_input
@pytest.mark.parametrize(("steps", "batch"), [(0, B), (T, 0), (0, 0)])
def test_no_steps_or_no_rows(cell, inputs, steps, batch):
    layer = residual(cell, 2, inputs, dropout=0.5)
    x, state, dy, dstate = given(layer, steps, batch)
    for lengths in (None, [steps] * batch):
        results = train(layer, x, state, dy, dstate, lengths=lengths)
        assert results["y"].shape == (steps, batch, SIZE)
        assert results["dx"].shape == x.shape
        assert results["h_n"].shape == results["dh_0"].shape == (2, batch, SIZE)
        if steps == 0:  # the state passes through, and so does its gradient
            assert_array_equal(results["h_n"], pair(state)[0])
            assert_array_equal(results["dh_0"], pair(dstate)[0])
        assert all(not results[f"d{name}"].any() for name in layer.grads)


@cells
def test_a_state_goes_on_where_it_came_from(cell):
    layer = residual(cell)
    x, state, dy, dstate = given(layer)
    expected = train(layer, x, state, dy, dstate)
    y_1, between, first = layer.forward(x[:2], state)
    y_2, state_n, second = layer.forward(x[2:], between)
    dx_2, dbetween = layer.backward(second, dy[2:], dstate)
    dx_1, dstate_0 = layer.backward(first, dy[:2], dbetween)
    got = {"y": np.concatenate([y_1, y_2]), "dx": np.concatenate([dx_1, dx_2])}
    got |= {f"d{name}": grad for name, grad in layer.grads.items()}
    got |= dict(zip(("h_n", "c_n"), pair(state_n), strict=False))
    got |= dict(zip(("dh_0", "dc_0"), pair(dstate_0), strict=False))
    assert_close(layer, got, expected)


def test_gradients_of_states_alone_and_none_of_x():
    layer = residual("lstm", 2)
    x, state, dy, (dh, dc) = given(layer)
    zeros = np.zeros_like(dh)
    for partial, whole in (((dh, None), (dh, zeros)), ((None, dc), (zeros, dc))):
        expected = train(layer, x, state, np.zeros_like(dy), whole)
        _, _, tape = layer.forward(x, state)
        dx, dstate_0 = layer.backward(tape, None, partial)
        assert_allclose(dx, expected["dx"], rtol=0, atol=1e-14)
        assert_allclose(dstate_0[0], expected["dh_0"], rtol=0, atol=1e-14)
        layer.zero_grad()
    _, _, tape = layer.forward(x, state)
    assert layer.backward(tape, dy, need_dx=False)[0] is None
    assert_array_equal(
        layer.grads["weight_ih_l0"], train(residual("lstm", 2), x, state, dy, (None, zeros))["dweight_ih_l0"]
    )


@every_input
def test_layouts(inputs):
    plain = residual("gru", 2, inputs)
    first = ResidualGRU(inputs, SIZE, 2, batch_first=True, dtype="float64", seed=0)
    x, state, dy, dstate = given(plain)
    expected = train(plain, x, state, dy, dstate, lengths=LENGTHS)
    got = train(first, x.swapaxes(0, 1), state, dy.swapaxes(0, 1), dstate, lengths=LENGTHS)
    for name in ("y", "dx"):
        got[name] = got[name].swapaxes(0, 1)
    assert_close(plain, got, expected)
    expected = train(plain, x[:, :1], state[:, :1], dy[:, :1], dstate[:, :1])
    got = train(plain, x[:, 0], state[:, 0], dy[:, 0], dstate[:, 0])
    for name in ("y", "dx", "h_n", "dh_0"):
        expected[name] = expected[name][:, 0]
    assert_close(plain, got, expected)


def test_a_memmap_is_an_array(tmp_path):
    layer, x = residual("gru", 1), normal(T, B, SIZE)
    x.tofile(tmp_path / "x")
    got = train(layer, np.memmap(tmp_path / "x", np.float64, "r", shape=x.shape))
    assert type(got["y"]) is type(got["dx"]) is np.ndarray
    assert_same(got, train(layer, x), atol=0)


def test_a_reset_starts_from_a_zero_state():
    layer, x = residual("lstm", 2), normal(T, B, SIZE)
    resets = np.zeros((T, B), bool)
    resets[3, 1] = True
    y, _ = layer(x, random_state(layer, B), resets=resets)
    assert_allclose(y[3:, 1:2], layer(x[3:, 1:2])[0], rtol=0, atol=1e-14)
