"""The reference against finite differences, against torch, and against what its options promise."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch

import helpers
from fastrnn import reference
from helpers import Case

CELLS = tuple(reference.CELLS)
EPS = float(np.finfo(np.float64).eps)


# Every option alone and together with others, for every cell that has it.
VARIANTS = {
    "plain": {},
    "no-bias": {"bias": False},
    "no-state": {"state": False},
    "one": {"T": 1, "B": 1, "I": 1, "H": 1},
    "layers": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "bidirectional-layers": {"bidirectional": True, "num_layers": 2},
    "lengths": {"lengths": True, "B": 6},
    "lengths-bidirectional-layers": {"lengths": True, "B": 6, "bidirectional": True, "num_layers": 2},
    "resets": {"resets": True},
    "resets-lengths-layers": {"resets": True, "lengths": True, "B": 6, "num_layers": 2},
    "dropout": {"dropout": 0.4, "num_layers": 3},
    "dropout-bidirectional": {"dropout": 0.4, "num_layers": 2, "bidirectional": True},
    "everything": {"dropout": 0.4, "num_layers": 3, "lengths": True, "resets": True, "B": 6, "bias": False},
}
PROJECTIONS = {
    "proj-1": {"proj_size": 1},
    "proj-layers": {"proj_size": 3, "num_layers": 2},
    "proj-everything": {
        "proj_size": 4,
        "num_layers": 2,
        "bidirectional": True,
        "lengths": True,
        "B": 6,
        "dropout": 0.4,
    },
}
CASES = [
    pytest.param(Case(cell, **options), id=f"{cell}-{name}")
    for cell in CELLS
    for name, options in (VARIANTS | (PROJECTIONS if cell == "lstm" else {})).items()
]


@pytest.mark.parametrize("case", CASES)
def test_gradients_match_finite_differences(case):
    helpers.assert_gradients(reference, case, helpers.draw(case), dtype=np.longdouble)


# ---------------------------------------------------------------------------------------------------------------------
# torch
# ---------------------------------------------------------------------------------------------------------------------


def torch_layer(case, data):
    kinds = {
        "lstm": (torch.nn.LSTM, {"proj_size": case.proj_size}),
        "gru": (torch.nn.GRU, {}),
        "rnn_tanh": (torch.nn.RNN, {"nonlinearity": "tanh"}),
        "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
    }
    kind, options = kinds[case.cell]
    shared = {"num_layers": case.num_layers, "bidirectional": case.bidirectional, "bias": case.bias}
    layer = kind(case.I, case.H, **shared, **options, dtype=torch.float64)
    layer.load_state_dict({name: torch.from_numpy(w) for name, w in data.weights.items()}, strict=True)
    return layer


def run_torch(case, data):
    """Every value and gradient, as `helpers.run`; lengths, which must be positive, through a PackedSequence."""
    layer = torch_layer(case, data)
    x = torch.tensor(data.x, requires_grad=True)
    state = tuple(torch.tensor(s, requires_grad=True) for s in data.state)
    fed = x
    if data.lengths is not None:
        fed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.from_numpy(data.lengths), enforce_sorted=False)
    y, final = layer(fed, state if len(state) > 1 else state[0])
    if data.lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=case.T)
    final = final if isinstance(final, tuple) else (final,)
    outputs, factors = (y, *final), (data.dy, *data.dstate)
    sum((a * torch.from_numpy(b)).sum() for a, b in zip(outputs, factors, strict=True)).backward()
    named = {"y": y, **dict(zip(("h_n", "c_n"), final, strict=False)), "dx": x.grad}
    named |= {f"d{name}_0": s.grad for name, s in zip("hc", state, strict=False)}
    named |= {f"d{name}": parameter.grad for name, parameter in layer.named_parameters()}
    return {name: tensor.detach().numpy() for name, tensor in named.items()}


def torch_cases():
    options = {
        "plain": {},
        "layers": {"num_layers": 3},
        "bidirectional": {"bidirectional": True, "num_layers": 2},
        "no-bias": {"bias": False, "H": 1, "I": 1},
        "lengths": {"lengths": True, "B": 6},
        "lengths-bidirectional": {"lengths": True, "B": 6, "bidirectional": True, "num_layers": 2},
    }
    projections = {
        "proj": {"proj_size": 3},
        "proj-layers": {"proj_size": 1, "num_layers": 2, "bidirectional": True, "lengths": True},
    }
    for cell in CELLS:
        for name, chosen in (options | (projections if cell == "lstm" else {})).items():
            yield pytest.param(Case(cell, T=17, **chosen), id=f"{cell}-{name}")


@pytest.mark.parametrize("case", list(torch_cases()))
def test_equals_torch(case):
    data = helpers.draw(case)
    if case.lengths:
        data = replace(data, lengths=np.maximum(data.lengths, 1))  # torch refuses empty rows
    expected = helpers.exact(case, data)
    allowed = helpers.tolerances(case, data, expected)
    helpers.assert_within(run_torch(case, data), expected, allowed)
    helpers.assert_within(helpers.run(reference, case, data), expected, allowed)


# ---------------------------------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    assert " ".join(f"{word:08x}" for word in reference.philox4x32(counter, key)) == words


def test_dropout_mask_takes_one_word_per_unit():
    seed, p = (3 << 32) | 5, 0.3
    mask = reference.dropout_mask(seed, p, T=4, B=3, units=10, layer=2, direction=1, directions=2)
    for t, b, unit in np.ndindex(mask.shape):
        word = int(reference.philox4x32((unit // 4, b, t, 2 * 2 + 1), (5, 3))[unit % 4])
        assert mask[t, b, unit] == (0 if word < round(p * 2**32) else 1 / (1 - p))


@pytest.mark.parametrize("p", [0.0, 2.0**-33, 0.1, 0.5, 1 - 2.0**-53, 1.0])
def test_dropout_mask_drops_with_probability_p(p):
    mask = reference.dropout_mask(1, p, T=50, B=8, units=64, layer=0, direction=0, directions=1)
    dropped = np.count_nonzero(mask == 0) / mask.size
    assert abs(dropped - p) <= 5 * np.sqrt(p * (1 - p) / mask.size) + 2.0**-32
    assert np.all((mask == 0) | (mask == (1 / (1 - p) if p < 1 else 0)))


def test_dropout_masks_differ_between_layers_directions_steps_rows_and_seeds():
    def mask(seed=1, layer=0, direction=0):
        return reference.dropout_mask(seed, 0.5, 8, 8, 64, layer, direction, 2)

    several = [mask(), mask(seed=2), mask(seed=1 + 2**32), mask(layer=1), mask(direction=1)]
    several += [np.roll(mask(), 1, axis) for axis in range(3)]
    for i, a in enumerate(several):
        for b in several[:i]:
            assert 0.4 < np.mean(a == b) < 0.6


@pytest.mark.parametrize("arguments", [(1, -0.1), (1, 1.5), (1, float("nan")), (-1, 0.5), (2**64, 0.5)])
def test_dropout_mask_refuses_what_is_out_of_range(arguments):
    with pytest.raises(ValueError, match=r"dropout_mask: (p|seed) must be"):
        reference.dropout_mask(*arguments, T=1, B=1, units=1, layer=0, direction=0, directions=1)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_multiplies_what_lies_between_layers(bidirectional):
    case = Case("gru", num_layers=2, bidirectional=bidirectional, dropout=0.4)
    data = helpers.draw(case)
    y, _, _ = reference.forward(
        "gru", data.x, data.weights, data.state[0], dropout=0.4, dropout_seed=data.dropout_seed, **case.layer
    )
    directions = 1 + bidirectional
    below = {name: w for name, w in data.weights.items() if "_l0" in name}
    above = {name.replace("_l1", "_l0"): w for name, w in data.weights.items() if "_l1" in name}
    middle, _, _ = reference.forward("gru", data.x, below, data.state[0][:directions], bidirectional=bidirectional)
    masks = [
        reference.dropout_mask(data.dropout_seed, 0.4, case.T, case.B, case.H, 0, d, directions)
        for d in range(directions)
    ]
    middle = middle * np.concatenate(masks, axis=2)
    expected, _, _ = reference.forward("gru", middle, above, data.state[0][directions:], bidirectional=bidirectional)
    np.testing.assert_array_equal(y, expected)


# ---------------------------------------------------------------------------------------------------------------------
# lengths and resets
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "options", [{"bidirectional": True}, {"resets": True}, {}], ids=["both-ways", "resets", "one-way"]
)
def test_lengths_equal_the_rows_alone_whatever_the_padding_holds(cell, options):
    case = Case(cell, T=6, B=8, num_layers=2, lengths=True, **options)
    data = helpers.draw(case)
    assert data.lengths.min() == 0
    assert data.lengths.max() == case.T
    ended = np.arange(case.T)[:, None] >= data.lengths
    data.x[ended] = np.nan
    data.dy[ended] = np.nan
    got = helpers.run(reference, case, data)
    helpers.assert_within(got, helpers.pieces_alone(reference, case, data), helpers.tolerances(case, data, got))
    assert not got["y"][ended].any()
    assert not got["dx"][ended].any()
    empty = data.lengths == 0
    np.testing.assert_array_equal(got["h_n"][:, empty], data.state[0][:, empty])
    np.testing.assert_array_equal(got["dh_0"][:, empty], data.dstate[0][:, empty])


@pytest.mark.parametrize("cell", CELLS)
def test_resets_equal_the_pieces_alone_and_erase_nan(cell):
    case = Case(cell, T=7, B=2, num_layers=2, resets=True)
    data = helpers.draw(case)
    data.resets[:] = False
    data.resets[[0, 3]] = True
    for s in data.state:
        s[:] = np.nan
    got = helpers.run(reference, case, data)
    zeros = tuple(np.zeros_like(s) for s in data.state)
    first = replace(data, x=data.x[:3], dy=data.dy[:3], state=zeros, dstate=zeros, resets=None)
    second = replace(data, x=data.x[3:], dy=data.dy[3:], state=zeros, resets=None)
    a, b = (helpers.run(reference, case, piece) for piece in (first, second))
    for name, value in got.items():
        if name in ("y", "dx"):
            expected = np.concatenate([a[name], b[name]])
        elif name.endswith("_n"):
            expected = b[name]
        elif name.endswith("_0"):
            expected = np.zeros_like(value)
        else:
            expected = a[name] + b[name]
        np.testing.assert_allclose(value, expected, rtol=0, atol=8 * EPS * helpers.largest(expected), err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_a_reset_erases_nan_that_arose_before_it(cell):
    case = Case(cell, T=5, B=2, resets=True)
    data = helpers.draw(case)
    data.resets[:] = False
    data.resets[2, 0] = True
    clean = helpers.run(reference, case, data)
    data.x[1, 0] = np.nan
    data.dy[:2, 0] = 0
    got = helpers.run(reference, case, data)
    assert np.isnan(got["y"][1, 0]).all()
    for name in ("y", "dx"):
        np.testing.assert_array_equal(got[name][2:], clean[name][2:])
        np.testing.assert_array_equal(got[name][:, 1], clean[name][:, 1])


# ---------------------------------------------------------------------------------------------------------------------
# Edges
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [Case(cell, T=T, B=B, num_layers=2) for cell in CELLS for T, B in [(0, 3), (4, 0)]], ids=str
)
def test_nothing_to_do_passes_the_state_and_its_gradient(case):
    data = helpers.draw(case)
    got = helpers.run(reference, case, data)
    for letter, s, ds in zip("hc", data.state, data.dstate, strict=False):
        np.testing.assert_array_equal(got[f"{letter}_n"], s)
        np.testing.assert_array_equal(got[f"d{letter}_0"], ds)
    assert not any(value.any() for name, value in got.items() if helpers.is_of_weight(name))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("scale", [1e4, np.inf])
def test_saturated_gates_reach_their_limits(cell, scale):
    case = Case(cell, T=3, B=2, I=2)
    data = helpers.draw(case)
    data = replace(data, weights={name: np.abs(w) for name, w in data.weights.items()})
    for sign in (1, -1):
        y, _, _ = reference.forward(cell, np.full_like(data.x, sign * scale), data.weights)
        if cell == "rnn_relu":
            assert np.all(y > 1e3 if sign > 0 else y == 0)
        elif cell == "gru":  # z = 1 keeps the zero state; z = 0 takes n = -1
            np.testing.assert_array_equal(y, 0.0 if sign > 0 else -1.0)
        elif cell == "rnn_tanh":
            np.testing.assert_array_equal(y, sign)
        else:  # all gates open: c counts the steps; all closed: 0
            expected = np.tanh([1.0, 2.0, 3.0]) if sign > 0 else np.zeros(3)
            np.testing.assert_array_equal(y, np.broadcast_to(expected[:, None, None], y.shape))


@pytest.mark.parametrize("cell", CELLS)
def test_the_dtype_is_that_of_every_result(cell):
    case = Case(cell, num_layers=2, dropout=0.5, lengths=True)
    data = helpers.draw(case)
    for dtype in (np.float32, np.float64, np.longdouble):
        assert {value.dtype for value in helpers.run(reference, case, data, dtype=dtype).values()} == {np.dtype(dtype)}


def test_a_tape_may_be_used_again_and_dx_left_out():
    case = Case("lstm", num_layers=2)
    data = helpers.draw(case)
    _, tape = helpers.run_forward(reference, case, data)
    first, second = (helpers.run_backward(reference, data, tape) for _ in range(2))
    helpers.assert_same_bits(first, second)
    dx, _, dweights = reference.backward(tape, data.dy, data.dstate, need_dx=False)
    assert dx is None
    np.testing.assert_array_equal(dweights["weight_ih_l0"], first["dweight_ih_l0"])


def test_missing_gradients_are_zero():
    case = Case("lstm")
    data = helpers.draw(case)
    _, tape = helpers.run_forward(reference, case, data)
    zero = np.zeros_like(data.dy)
    dx, _, _ = reference.backward(tape, None, data.dstate)
    np.testing.assert_array_equal(dx, reference.backward(tape, zero, data.dstate)[0])
    dx, _, _ = reference.backward(tape, data.dy)
    np.testing.assert_array_equal(dx, reference.backward(tape, data.dy, (None, np.zeros_like(data.dstate[1])))[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "peephole"}, "cell must be one of lstm, gru, rnn_tanh, rnn_relu, got 'peephole'"),
        ({"weights": {}}, "lstm: weights must have the shapes"),
        ({"bias": False}, "lstm: weights must have the shapes"),
        ({"state": (np.zeros((1, 3, 5)), np.zeros((1, 3, 4)))}, r"lstm: state must have the shapes \[\(1, 3, 5\)"),
        ({"lengths": [1, 2, 6]}, r"lstm: lengths must have shape \(B=3,\) and values from 0 to T=5, got \[1 2 6\]"),
        ({"lengths": [1, 2]}, "lstm: lengths must have shape"),
        ({"resets": np.zeros((3, 5), bool)}, r"lstm: resets must be bool of shape \(T=5, B=3\), got bool \(3, 5\)"),
        ({"resets": np.zeros((5, 3))}, "lstm: resets must be bool"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    data = helpers.draw(Case())
    arguments = {"cell": "lstm", "x": data.x, "weights": data.weights} | change
    with pytest.raises(ValueError, match=message):
        reference.forward(**arguments)


def test_resets_are_refused_where_there_are_two_directions():
    case = Case(bidirectional=True)
    data = helpers.draw(case)
    with pytest.raises(ValueError, match="lstm: resets cannot be used with bidirectional=True"):
        reference.forward("lstm", data.x, data.weights, resets=np.zeros((5, 3), bool), **case.layer)


def test_a_gradient_of_the_wrong_shape_is_refused():
    data = helpers.draw(Case())
    _, tape = helpers.run_forward(reference, Case(), data)
    with pytest.raises(ValueError, match=r"lstm: dy must have shape \(5, 3, 5\), got \(3, 5, 5\)"):
        reference.backward(tape, data.dy.reshape(3, 5, 5))
    with pytest.raises(ValueError, match="lstm: dstate must have the shapes"):
        reference.backward(tape, data.dy, (data.dstate[0], data.dstate[1][:, :2]))


def test_examples_in_docstrings():
    failed, attempted = doctest.testmod(reference)
    assert failed == 0
    assert attempted > 5
