"""Stacks of recurrent layers with skip connections as models use them: weights, dropout, streams, errors, GPUs."""

import copy
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fake_cupy
import fastrnn
import gpu_arrays
from errors import raised
from fastrnn import optim, reference
from fastrnn.models import array_api
from fastrnn.models.stack import ResidualLSTM, make_stack
from layering import B, T, assert_same, normal, pair, random_state, train
from stacks import (
    EPS,
    LENGTHS,
    SIZE,
    as_state,
    assert_close,
    cells,
    every_input,
    given,
    residual,
    restated,
    weights_of,
    with_nan,
)

# ---------------------------------------------------------------------------------------------------------------------
# Weights and gradients
# ---------------------------------------------------------------------------------------------------------------------


def test_gradients_are_added_up_and_zeroed_in_place():
    layer = residual("rnn", 2)
    x, state, dy, _ = given(layer)
    once, arrays = train(layer, x, state, dy), dict(layer.grads)
    for _ in range(2):
        _, _, tape = layer.forward(x, state)
        layer.backward(tape, dy)
    for name, grad in layer.grads.items():
        assert grad is arrays[name]
        assert_allclose(grad, 2 * once[f"d{name}"], rtol=0, atol=8 * EPS * abs(once[f"d{name}"]).max())
    layer.zero_grad()
    assert not any(grad.any() for grad in arrays.values())


def test_optimizers_reach_every_layer():
    layer = residual("gru", 3)
    x, state, dy, _ = given(layer)
    before = layer.state_dict()
    optimizer = optim.SGD(layer.parameters, lr=0.1)
    _, _, tape = layer.forward(x, state)
    layer.backward(tape, dy)
    optimizer.step(layer.grads)
    for name, array in layer.parameters.items():
        assert_allclose(array, before[name] - 0.1 * layer.grads[name], rtol=0, atol=4 * EPS * abs(array).max())
    moved = layer(x, state)[0]
    replaced = residual("gru", 3)
    for name, array in layer.parameters.items():
        replaced.parameters[name] = array.copy()
    assert_array_equal(replaced(x, state)[0], moved)
    again = residual("gru", 3, seed=9)
    again.load_state_dict(layer.state_dict())
    assert_array_equal(again(x, state)[0], moved)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_go_their_own_way(copied):
    layer = residual("lstm", 3, dropout=0.5)
    x, state, dy, _ = given(layer)
    other = copied(layer)
    assert type(other) is ResidualLSTM
    assert_same(train(other, x, state, dy), train(layer, x, state, dy), atol=0)  # from the same generator
    other.parameters["weight_hh_l2"][...] = 0
    assert layer.parameters["weight_hh_l2"].all()
    _, _, tape = other.forward(x, state)
    other.backward(tape, dy)
    assert not any(grad.any() for grad in layer.grads.values())


def test_a_tape():
    layer = residual("gru", 2, dropout=0.5)
    x, state, dy, _ = given(layer)
    _, _, tape = layer.forward(x, state, dropout_seed=2**64 - 1)
    assert tape.dropout_seed == 2**64 - 1
    assert tape.nbytes > 0
    assert not tape.consumed
    layer.backward(tape, dy, retain=True)
    once = {name: grad.copy() for name, grad in layer.grads.items()}
    layer.backward(tape, dy)
    assert_allclose(layer.grads["weight_ih_l0"], 2 * once["weight_ih_l0"], rtol=0, atol=1e-14)
    assert tape.consumed
    with pytest.raises(TypeError, match="gru: a Tape cannot be copied or pickled"):
        copy.deepcopy(tape)


# ---------------------------------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------------------------------


@cells
@every_input
def test_dropout_acts_on_what_layers_read_from_layers(cell, inputs):
    layer = residual(cell, 3, inputs, dropout=0.4)
    x, state, dy, dstate = given(layer)
    _, _, tape = layer.forward(x, state, lengths=LENGTHS, dropout_seed=3)
    assert tape.masks[0] is None
    assert not np.array_equal(*tape.masks[1:])
    got = train(layer, x, state, dy, dstate, lengths=LENGTHS, dropout_seed=3)
    assert_close(layer, got, restated(cell, layer, x, state, dy, dstate, LENGTHS, tape.masks))
    assert_array_equal(layer(x, state)[0], residual(cell, 3, inputs)(x, state)[0])  # none in inference


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masks_keep_the_mean(p, dtype):
    layer = residual("rnn", 3, dropout=p, dtype=dtype)
    _, _, tape = layer.forward(normal(40, 50, SIZE, dtype=dtype), dropout_seed=1)
    for mask in tape.masks[1:]:
        assert mask.dtype == dtype
        assert_allclose(np.unique(mask), [0, 1 / (1 - p)], rtol=4 * np.finfo(dtype).eps)
        # Five standard deviations of the mean of independent ones.
        assert abs(mask.mean(dtype=np.float64) - 1) < 5 * np.sqrt(p / (1 - p) / mask.size)


def test_the_same_seed_gives_the_same_masks():
    layer = residual("lstm", 3, dropout=0.4)
    x, state, dy, _ = given(layer)
    first, again, other = (train(layer, x, state, dy, dropout_seed=seed) for seed in (5, np.int64(5), 6))
    assert_same(first, again, atol=0)
    assert not np.allclose(first["y"], other["y"])


def test_without_a_seed_the_layers_generator_gives_one():
    layers = [residual("rnn", 2, dropout=0.5, seed=seed) for seed in (0, 0, 1)]
    x = normal(T, B, SIZE)
    seeds = [[layer.forward(x)[2].dropout_seed for _ in range(3)] for layer in layers]
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 6
    y, _, tape = layers[0].forward(x)
    assert_array_equal(layers[0].forward(x, dropout_seed=tape.dropout_seed)[0], y)
    assert residual("gru", 2).forward(x, dropout_seed=3)[2].dropout_seed is None


def test_dropping_all_leaves_the_way_past_the_layers():
    layer, x = residual("gru", 2, dropout=1.0), normal(T, B, SIZE)
    first, _, _ = reference.forward("gru", x, weights_of(layer, 0))
    alone, _, _ = reference.forward("gru", np.zeros_like(x), weights_of(layer, 1))
    assert_allclose(layer.forward(x)[0], first + x + alone, rtol=0, atol=1e-14)


# ---------------------------------------------------------------------------------------------------------------------
# Streams
# ---------------------------------------------------------------------------------------------------------------------


@cells
@every_input
@pytest.mark.parametrize("batch", [0, 1, B])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_stream_equals_the_whole_call(cell, inputs, batch, dtype):
    layer = residual(cell, 3, inputs, dtype=dtype, **({"proj_size": SIZE - 1} if cell == "lstm" else {}))
    x, state, _, _ = given(layer, batch=batch)
    kept = x.copy()
    y, state_n = layer(x, state)
    stream = layer.stream(batch)
    stream.state = state
    steps = [stream.step(x_t) for x_t in x]
    got, expected = {"y": np.stack(steps)}, {"y": y}
    for name, part_got, part_expected in zip("hc", pair(stream.state), pair(state_n), strict=False):
        got[name], expected[name] = part_got, part_expected
    assert all(array.dtype == dtype for array in got.values())
    assert_close(layer, got, expected)
    assert_array_equal(x, kept)


@cells
def test_select_and_reset_of_a_stream(cell):
    layer = residual(cell)
    state, x = random_state(layer, B), normal(4, SIZE)
    stream = layer.stream(B)
    stream.state = state
    rows = np.array([2, 0, 0, 1])
    stream.select(rows)
    assert stream.batch_size == 4
    chosen = [s[:, rows] for s in pair(state)]
    for got, want in zip(pair(stream.state), chosen, strict=True):
        assert_array_equal(got, want)
    stream.reset([1, 3])
    for each in chosen:
        each[:, [1, 3]] = 0
    y, _ = layer(x[None], as_state(tuple(chosen)))
    assert_allclose(stream.step(x), y[0], rtol=0, atol=1e-13)
    stream.reset()
    assert not any(s.any() for s in pair(stream.state))
    stream.state = as_state(tuple(chosen))
    read = pair(stream.state)
    for each in (*chosen, *read):
        each[...] = 7  # both were copied
    assert not any((s == 7).any() for s in pair(stream.state))
    stream.state = None
    assert not any(s.any() for s in pair(stream.state))
    stream.select([])
    assert stream.step(x[:0]).shape == (0, SIZE)


def test_a_stream_is_a_snapshot_of_the_weights():
    layer, x = residual("gru"), normal(1, SIZE)
    expected, stream = layer(x[None])[0][0], layer.stream()
    for array in layer.parameters.values():
        array[...] = 0
    assert_allclose(stream.step(x), expected, rtol=0, atol=1e-14)


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "options"),
    {
        "make_stack: cell must be one of 'lstm', 'gru', 'rnn', 'rnn_relu', got 'tanh'": {"cell": "tanh"},
        "make_stack: skip must be True or False, got 1": {"skip": 1},
        "make_stack: num_layers must be an integer >= 1, got 0": {"num_layers": 0},
        "make_stack: dropout must be a number between 0 and 1, got 1.5": {"dropout": 1.5},
        "make_stack: proj_size must be an integer >= 0, got -1": {"proj_size": -1},
        "make_stack: proj_size is for cell='lstm', got proj_size=2 and cell='gru'": {"cell": "gru", "proj_size": 2},
        "lstm: hidden_size must be an integer >= 1, got 0": {"hidden_size": 0},
        "lstm: dtype must be 'float32' or 'float64', got 'int8'": {"dtype": "int8"},
    }.items(),
)
def test_wrong_options(message, options):
    options = {"cell": "lstm", "input_size": 4, "hidden_size": SIZE, "skip": True} | options
    raised(lambda: make_stack(**options), TypeError if "skip" in message else ValueError, message)


def test_wrong_calls_change_nothing():
    layer = residual("lstm", 2, dropout=0.5)
    x, (h, c), dy, _ = given(layer)
    (_, _, tape), (_, _, other) = layer.forward(x, dropout_seed=0), layer.forward(x)
    before = layer._rng.bit_generator.state
    plain, foreign = fastrnn.LSTM(SIZE, SIZE, dtype="float64").forward(x)[2], residual("lstm", 2).forward(x)[2]
    state = f"must have shape (num_layers=2, B={B}, hidden_size={SIZE}), got (1, {B}, {SIZE})"
    types = {
        "x must be a numpy array, got list": lambda: layer(x.tolist()),
        "tape must be the ResidualTape that forward returned, got Tape": lambda: layer.backward(plain, dy),
        "need_dx must be True or False, got 0": lambda: layer.backward(tape, dy, need_dx=0),
    }
    values = {
        f"x must have shape (T, B, input_size={SIZE}), got ({T}, {B}, 2)": lambda: layer(x[..., :2]),
        f"h_0 {state}": lambda: layer.forward(x, (h[:1], c)),
        f"lengths must be between 0 and T={T}, got 7 at index 1": lambda: layer.forward(x, lengths=[T, 7, 0]),
        f"resets must have shape (T={T}, B={B}), got (2,)": lambda: layer.forward(x, resets=np.zeros(2, bool)),
        "dropout_seed must be an integer from 0 to 18446744073709551615, got -1": lambda: layer.forward(
            x, dropout_seed=-1
        ),
        f"tape must be one of this layer's, got one of another forward: {foreign!r}": lambda: layer.backward(
            foreign, dy
        ),
        f"dy must have y's shape (T={T}, B={B}, {SIZE}), got (5, {B}, {SIZE})": lambda: layer.backward(tape, dy[1:]),
        f"dc_n {state}": lambda: layer.backward(tape, dy, (h, c[1:])),
        "dy may be None only where dstate is given, got None for both": lambda: layer.backward(
            tape, None, (None, None)
        ),
        f"h {state}": lambda: setattr(layer.stream(B), "state", (h[:1], c)),
        "rows must be between 0 and batch_size-1=2, got 3 at index 0": lambda: layer.stream(B).select([B]),
        "a stream cannot be made of a layer with bidirectional=True": residual(bidirectional=True).stream,
    }
    for error, calls in ((TypeError, types), (ValueError, values)):
        for message, call in calls.items():
            raised(call, error, f"lstm: {message}")
    assert layer._rng.bit_generator.state == before
    assert not any(grad.any() for grad in layer.grads.values())
    layer.backward(tape, dy)
    layer.backward(other, dy)
    consumed = "lstm: tape has been consumed by an earlier backward; each serves one"
    raised(lambda: layer.backward(tape, dy), ValueError, consumed)


# ---------------------------------------------------------------------------------------------------------------------
# On a GPU
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cupys():
    with gpu_arrays.installed(), gpu_arrays.waiting(), pytest.MonkeyPatch.context() as patch:
        if gpu_arrays.EMULATED:
            patch.setattr(array_api, "namespace", lambda array: fake_cupy.STANDARD)
        else:
            pytest.importorskip("array_api_compat")
        yield gpu_arrays.CuPys()


@gpu_arrays.needs_kernels
@every_input
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=str)
@pytest.mark.parametrize("where", ["host", "gpu"])
def test_on_a_gpu(cupys, inputs, lengths, where):
    cpu, gpu = (residual("lstm", 2, inputs, dropout=0.4, device=device) for device in ("cpu", "cuda"))
    x, state, dy, dstate = given(cpu)
    expected = train(cpu, x, state, dy, dstate, lengths=lengths, dropout_seed=1)
    if lengths is not None:
        x, dy = with_nan(x), with_nan(dy)
        lengths = lengths if where == "host" else cupys.put(np.array(lengths))
    x, dy = cupys.put(x), cupys.put(dy)
    state, dstate = tuple(map(cupys.put, state)), tuple(map(cupys.put, dstate))
    got = train(gpu, x, state, dy, dstate, lengths=lengths, dropout_seed=1)
    assert_close(cpu, {name: cupys.get(array) for name, array in got.items()}, expected)
    if lengths is None:
        y, _ = gpu(x, state)
        stream = gpu.stream(B)
        stream.state = state
        steps = np.stack([cupys.get(stream.step(x[t])) for t in range(T)])
        assert_close(cpu, {"y": steps}, {"y": cupys.get(y)})
