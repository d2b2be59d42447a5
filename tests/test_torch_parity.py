"""The same numbers as torch.nn from the same weights: values and all gradients, and weights both ways."""

import warnings

import numpy as np
import pytest
import torch

import fastrnn

T, B, I, H = 7, 4, 5, 6  # noqa: E741

CELLS = {
    "lstm": (fastrnn.LSTM, torch.nn.LSTM, {}),
    "gru": (fastrnn.GRU, torch.nn.GRU, {}),
    "rnn_tanh": (fastrnn.RNN, torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (fastrnn.RNN, torch.nn.RNN, {"nonlinearity": "relu"}),
}
cells = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])

STACKS = [
    {},
    {"num_layers": 3},
    {"bias": False, "num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]
PROJECTIONS = [{"proj_size": 3}, {"proj_size": 2, "num_layers": 2, "bidirectional": True, "bias": False}]
STACKED = [(cell, options) for cell in CELLS for options in STACKS] + [("lstm", options) for options in PROJECTIONS]


def both(cell, dtype, **options):
    """A layer of each library with the same weights, which torch drew."""
    ours, theirs, own = CELLS[cell]
    torch.manual_seed(1)
    theirs = theirs(I, H, **own, **options, dtype=getattr(torch, dtype))
    ours = ours(I, H, **own, **options, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def draw(dtype, *shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def states(layer, cell, batch, seed):
    count = layer.num_layers * (1 + layer.bidirectional)
    h = draw(layer.dtype, count, *batch, getattr(layer, "proj_size", 0) or H, seed=seed)
    return (h, draw(layer.dtype, count, *batch, H, seed=seed + 1)) if cell == "lstm" else (h,)


def as_state(arrays):
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def run_ours(layer, x, state, dy, dstate, **kwargs):
    y, state_n, tape = layer.forward(x, as_state(state), **kwargs)
    dx, dstate_0 = layer.backward(tape, dy, as_state(dstate))
    return [y, *as_tuple(state_n), dx, *as_tuple(dstate_0), *layer.grads.values()]


def run_theirs(layer, x, state, dy, dstate, lengths=None):
    x, *state = (torch.tensor(a, requires_grad=True) for a in (x, *state))
    padded = None
    if lengths is None:
        y, state_n = layer(x, as_state(state))
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.tensor(lengths), batch_first=layer.batch_first, enforce_sorted=False
        )
        padded, state_n = layer(packed, as_state(state))
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(padded, batch_first=layer.batch_first, total_length=T)
    outputs = [y, *as_tuple(state_n)]
    grads = torch.autograd.grad(outputs, [x, *state, *layer.parameters()], [torch.tensor(d) for d in (dy, *dstate)])
    return [a.detach().numpy() for a in (*outputs, *grads)]


def assert_close(ours, theirs, dtype):
    # Both err by a few roundings of the largest number for each of the T steps that a gradient passes.
    eps = 32 * np.finfo(dtype).eps
    assert len(ours) == len(theirs)
    for got, want in zip(ours, theirs, strict=True):
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=eps * max(1.0, np.abs(want).max()))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@dtypes
@pytest.mark.parametrize(("cell", "options"), STACKED, ids=str)
def test_values_and_gradients(cell, options, dtype):
    ours, theirs = both(cell, dtype, **options)
    x = draw(dtype, B, T, I) if ours.batch_first else draw(dtype, T, B, I)
    size = (1 + ours.bidirectional) * (getattr(ours, "proj_size", 0) or H)
    data = x, states(ours, cell, [B], 2), draw(dtype, *x.shape[:2], size, seed=4), states(ours, cell, [B], 5)
    assert_close(run_ours(ours, *data), run_theirs(theirs, *data), dtype)


@dtypes
@cells
@pytest.mark.parametrize("bidirectional", [False, True])
def test_unbatched(cell, bidirectional, dtype):
    ours, theirs = both(cell, dtype, num_layers=2, bidirectional=bidirectional)
    y_size = (1 + bidirectional) * H
    data = draw(dtype, T, I), states(ours, cell, [], 2), draw(dtype, T, y_size, seed=4), states(ours, cell, [], 5)
    assert_close(run_ours(ours, *data), run_theirs(theirs, *data), dtype)


@dtypes
@cells
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str)
def test_lengths_are_packed_sequences(cell, options, dtype):
    ours, theirs = both(cell, dtype, **options)
    x = draw(dtype, B, T, I) if ours.batch_first else draw(dtype, T, B, I)
    dy = draw(dtype, *x.shape[:2], (1 + ours.bidirectional) * H, seed=4)
    data = x, states(ours, cell, [B], 2), dy, states(ours, cell, [B], 5)
    lengths = [3, T, 1, 5]
    assert_close(run_ours(ours, *data, lengths=lengths), run_theirs(theirs, *data, lengths=lengths), dtype)


@cells
def test_inference(cell):
    ours, theirs = both(cell, "float32", num_layers=2)
    x = draw("float32", T, B, I)
    y, state = ours(x)
    with torch.no_grad():
        want, want_state = theirs(torch.tensor(x))
    got = [y, *as_tuple(state)]
    assert_close(got, [a.numpy() for a in (want, *as_tuple(want_state))], "float32")


@dtypes
@cells
@pytest.mark.parametrize("bidirectional", [False, True])
def test_weights_carry_over_both_ways(cell, bidirectional, dtype):
    options = {"num_layers": 2, "bidirectional": bidirectional} | ({"proj_size": 2} if cell == "lstm" else {})
    ours, theirs = both(cell, dtype, **options)
    assert list(ours.parameters) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert ours.parameters[name].dtype == dtype
        np.testing.assert_array_equal(ours.parameters[name], tensor.numpy())
    fresh = CELLS[cell][0](I, H, **CELLS[cell][2], **options, dtype=dtype, seed=3)
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in fresh.state_dict().items()})
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(fresh.parameters[name], tensor.numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_tensors_of_other_dtypes_are_converted(dtype):
    layer = fastrnn.GRU(I, H)
    source = torch.nn.GRU(I, H).to(getattr(torch, dtype))
    layer.load_state_dict(source.state_dict())
    for name, tensor in source.state_dict().items():
        np.testing.assert_array_equal(layer.parameters[name], tensor.float().numpy())


def test_parameters_that_require_gradients_and_views_load():
    layer, source = fastrnn.GRU(I, H), torch.nn.GRU(I, H)
    tensors = dict(source.named_parameters())
    tensors["weight_hh_l0"] = torch.nn.Parameter(source.weight_hh_l0.detach().T.contiguous()).T
    layer.load_state_dict(tensors)
    np.testing.assert_array_equal(layer.parameters["weight_hh_l0"], source.weight_hh_l0.detach().numpy())


def test_integer_tensors_do_not_load():
    layer, state = fastrnn.RNN(I, H), torch.nn.RNN(I, H).state_dict()
    before = layer.state_dict()
    state["bias_hh_l0"] = torch.zeros(H, dtype=torch.int64)
    with pytest.raises(
        TypeError, match=r"^rnn: state_dict\['bias_hh_l0'\] must be of a floating-point dtype, got int64$"
    ):
        layer.load_state_dict(state)
    for name, a in layer.parameters.items():
        np.testing.assert_array_equal(a, before[name])


def test_initial_weights_have_torchs_range():
    ours, theirs = fastrnn.LSTM(I, 64, 2, seed=0), torch.nn.LSTM(I, 64, 2)
    for arrays in (ours.parameters.values(), (p.detach().numpy() for p in theirs.parameters())):
        values = np.concatenate([a.ravel() for a in arrays])
        assert -0.125 <= values.min() < -0.12
        assert 0.12 < values.max() <= 0.125
        assert abs(values.mean()) < 2e-3
        assert abs(values.std() - 0.125 / 3**0.5) < 2e-3


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("options", [*STACKS, {"dropout": 0.5, "num_layers": 2}], ids=str)
def test_repr_is_torchs(name, options):
    ours, theirs = (getattr(module, name)(I, H, **options) for module in (fastrnn, torch.nn))
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_both_warn_of_dropout_without_effect(name):
    for module in (fastrnn, torch.nn):
        with pytest.warns(UserWarning, match="dropout"):
            getattr(module, name)(I, H, dropout=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            getattr(module, name)(I, H, 2, dropout=0.5)


@cells
def test_dropout_of_everything_agrees(cell):
    """The masks differ by design; with p = 1 there is but one."""
    ours, theirs = both(cell, "float64", num_layers=2, dropout=1.0)
    data = draw("float64", T, B, I), states(ours, cell, [B], 2), draw("float64", T, B, H), states(ours, cell, [B], 5)
    assert_close(run_ours(ours, *data), run_theirs(theirs, *data), "float64")
