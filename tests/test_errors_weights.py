"""Error messages of weights, gradients, functions and streams, word for word; nothing has changed after one."""

import numpy as np
import pytest

from errors import BIG, F4, B, H, I, T, Tagged, environment, floats, params, raised, snapshot
from fastrnn import GRU, LSTM, RNN, functional


@pytest.fixture
def env():
    return environment()


# ---------------------------------------------------------------------------------------------------------------------
# Entries of the weight and gradient dicts
# ---------------------------------------------------------------------------------------------------------------------

NAMES = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
W = "weight_hh_l0"
ENTRIES = [
    (lambda d: d.pop(W), ValueError, "rnn: {} must hold this layer's 4 entries, got missing ['weight_hh_l0']"),
    (
        lambda d: d.update(weight_hh_l1=d[W]),
        ValueError,
        "rnn: {} must hold this layer's 4 entries, got unexpected ['weight_hh_l1']",
    ),
    (
        lambda d: d.update(w=d.pop(W)),
        ValueError,
        "rnn: {} must hold this layer's 4 entries, got missing ['weight_hh_l0'], unexpected ['w']",
    ),
    (lambda d: d.clear(), ValueError, f"rnn: {{}} must hold this layer's 4 entries, got missing {NAMES}"),
    (lambda d: d.update({W: None}), TypeError, "rnn: {}['weight_hh_l0'] must be a numpy array, got NoneType"),
    (lambda d: d.update({W: d[W].tolist()}), TypeError, "rnn: {}['weight_hh_l0'] must be a numpy array, got list"),
    (
        lambda d: d.update({W: d[W].view(Tagged)}),
        TypeError,
        "rnn: {}['weight_hh_l0'] must be a numpy array, got Tagged",
    ),
    (
        lambda d: d.update({W: d[W].astype("f8")}),
        TypeError,
        "rnn: {}['weight_hh_l0'] must have dtype float32, got float64",
    ),
    (
        lambda d: d.update({W: d[W].astype(BIG)}),
        TypeError,
        f"rnn: {{}}['weight_hh_l0'] must have native byte order, got dtype {BIG!r}",
    ),
    (
        lambda d: d.update({W: d[W][:4]}),
        ValueError,
        "rnn: {}['weight_hh_l0'] must have shape (5, 5), got (4, 5)",
    ),
    (
        lambda d: d.update({W: d[W].ravel()}),
        ValueError,
        "rnn: {}['weight_hh_l0'] must have shape (5, 5), got (25,)",
    ),
    (
        lambda d: d.update({W: np.asfortranarray(d[W])}),
        ValueError,
        "rnn: {}['weight_hh_l0'] must be C-contiguous and aligned, got strides (4, 20)",
    ),
    (
        lambda d: d.update({W: np.zeros((5, 10), F4)[:, ::2]}),
        ValueError,
        "rnn: {}['weight_hh_l0'] must be C-contiguous and aligned, got strides (40, 8)",
    ),
    (
        lambda d: d.update({W: np.frombuffer(bytes(101), F4, 25, 1).reshape(5, 5)}),
        ValueError,
        "rnn: {}['weight_hh_l0'] must be C-contiguous and aligned, got strides (20, 4)",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), params(ENTRIES))
def test_entry_of_parameters(env, change, error, message):
    layer, x, state_dict = env.rnn, env.x, env.rnn.state_dict()
    y, _, tape = layer.forward(x)
    dx, _ = layer.backward(tape, np.ones_like(y), retain=True)
    change(layer.parameters)
    calls = [lambda: layer(x), lambda: layer.forward(x), layer.stream, layer.state_dict]
    for call in (*calls, lambda: layer.load_state_dict(state_dict)):
        raised(call, error, message.format("parameters"))
    # The open tape has the arrays of its forward.
    assert layer.backward(tape, np.ones_like(y))[0].tobytes() == dx.tobytes()


@pytest.mark.parametrize(("change", "error", "message"), params(ENTRIES))
def test_entry_of_grads(env, change, error, message):
    layer, expected = env.rnn, dict(env.rnn.grads)
    y, _, tape = layer.forward(env.x)
    change(layer.grads)
    for call in (lambda: layer.backward(tape, np.ones_like(y)), layer.zero_grad):
        raised(call, error, message.format("grads"))
    assert not any(g.any() for g in expected.values())
    layer.grads.clear()
    layer.grads.update(expected)
    layer.backward(tape, np.ones_like(y))
    assert any(g.any() for g in expected.values())


@pytest.mark.parametrize(("change", "error", "message"), params(ENTRIES))
def test_entry_of_weights_given_to_the_function(env, change, error, message):
    weights = env.rnn.state_dict()
    change(weights)
    with pytest.raises(error) as info:
        functional.forward("rnn_tanh", env.x, weights)
    assert str(info.value).startswith("rnn: weights")
    if W in weights and isinstance(weights[W], np.ndarray) and weights[W].shape == (5, 5) and len(weights) == 4:
        assert str(info.value) == message.format("weights")


SHARED = "must have memory of its own, got"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, g: g[W].setflags(write=False), "grads['weight_hh_l0'] must be writeable, got a read-only array"),
        (lambda p, g: g.update({W: p[W]}), f"grads['weight_hh_l0'] {SHARED} memory of the parameters"),
        (lambda p, g: g.update({W: p[W][:]}), f"grads['weight_hh_l0'] {SHARED} memory of the parameters"),
        (lambda p, g: p.update({W: g[W][:]}), f"grads['weight_hh_l0'] {SHARED} memory of the parameters"),
        (
            lambda p, g: g.update(bias_ih_l0=g["bias_hh_l0"]),
            f"grads['bias_hh_l0'] {SHARED} some shared with grads['bias_ih_l0']",
        ),
        (
            lambda p, g: g.update(bias_ih_l0=g[W][0]),
            f"grads['bias_ih_l0'] {SHARED} some shared with grads['weight_hh_l0']",
        ),
        (
            lambda p, g: g.update(bias_ih_l0=g[W][1]),
            f"grads['weight_hh_l0'] {SHARED} some shared with grads['bias_ih_l0']",
        ),
        (lambda p, g: p.update(bias_ih_l0=g[W][1]), f"grads['weight_hh_l0'] {SHARED} some shared with the parameters"),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("before_forward", [True, False])
def test_grads_are_writeable_and_apart(env, change, message, before_forward):
    layer = env.rnn
    if before_forward:
        change(layer.parameters, layer.grads)
    y, _, tape = layer.forward(env.x)
    if not before_forward:
        change(layer.parameters, layer.grads)
    before = snapshot(env)
    raised(lambda: layer.backward(tape, np.ones_like(y)), ValueError, f"rnn: {message}")
    raised(layer.zero_grad, ValueError, f"rnn: {message}")
    assert snapshot(env) == before
    assert not tape.consumed


def test_parameters_may_share_memory_among_themselves(env):
    layer = RNN(H, H, 2, seed=0)
    layer.parameters["weight_hh_l1"] = layer.parameters["weight_hh_l0"][:]
    layer.parameters["weight_ih_l1"] = layer.parameters["weight_hh_l0"]
    y, _, tape = layer.forward(floats(T, B, H))
    layer.backward(tape, np.ones_like(y))
    assert not np.array_equal(layer.grads["weight_hh_l1"], layer.grads["weight_hh_l0"])


# ---------------------------------------------------------------------------------------------------------------------
# load_state_dict
# ---------------------------------------------------------------------------------------------------------------------

LOADED = [
    (lambda d: None, TypeError, "rnn: state_dict must be a mapping, got NoneType"),
    (lambda d: list(d.items()), TypeError, "rnn: state_dict must be a mapping, got list"),
    (
        lambda d: {k: v for k, v in d.items() if k != W},
        ValueError,
        "rnn: state_dict must hold this layer's 4 entries, got missing ['weight_hh_l0']",
    ),
    (
        lambda d: {"rnn." + k: v for k, v in d.items() if k == W} | {k: v for k, v in d.items() if k != W},
        ValueError,
        "rnn: state_dict must hold this layer's 4 entries, got missing ['weight_hh_l0'], "
        "unexpected ['rnn.weight_hh_l0']",
    ),
    (
        lambda d: d | {"bias_hh_l0": d["bias_hh_l0"][:4]},
        ValueError,
        "rnn: state_dict['bias_hh_l0'] must have shape (5,), got (4,)",
    ),
    (
        lambda d: d | {"bias_hh_l0": [0.0] * 5},
        TypeError,
        "rnn: state_dict['bias_hh_l0'] must be a numpy array or a torch tensor, got list",
    ),
    (
        lambda d: d | {"bias_hh_l0": np.zeros(5, int)},
        TypeError,
        "rnn: state_dict['bias_hh_l0'] must be of a floating-point dtype, got int64",
    ),
    (
        lambda d: d | {"bias_hh_l0": np.zeros(5, complex)},
        TypeError,
        "rnn: state_dict['bias_hh_l0'] must be of a floating-point dtype, got complex128",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), params(LOADED))
def test_load_state_dict(env, change, error, message):
    before = snapshot(env)
    good = {name: a + 1 for name, a in env.rnn.parameters.items()}
    raised(lambda: env.rnn.load_state_dict(change(good)), error, message)
    assert snapshot(env) == before


def test_loading_into_a_read_only_entry_changes_nothing(env):
    env.rnn.parameters["bias_hh_l0"].setflags(write=False)
    before, good = snapshot(env), {name: a + 1 for name, a in env.rnn.parameters.items()}
    raised(
        lambda: env.rnn.load_state_dict(good),
        ValueError,
        "rnn: parameters['bias_hh_l0'] must be writeable, got a read-only array",
    )
    assert snapshot(env) == before


# ---------------------------------------------------------------------------------------------------------------------
# Functions
# ---------------------------------------------------------------------------------------------------------------------

WEIGHTS = LSTM(I, H, proj_size=2, seed=0).state_dict()
MATRIX = "must be a matrix with"


def call(cell="lstm", **changes):
    weights = {name: w for name, w in (WEIGHTS | changes).items() if w is not None}
    return lambda: functional.forward(cell, floats(T, B, I), weights)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    params(
        [
            (call("qrnn"), ValueError, "cell must be one of 'lstm', 'gru', 'rnn_tanh', 'rnn_relu', got 'qrnn'"),
            (call([]), ValueError, "cell must be one of 'lstm', 'gru', 'rnn_tanh', 'rnn_relu', got []"),
            (
                lambda: functional.forward("gru", floats(T, B, I), [WEIGHTS]),
                TypeError,
                "gru: weights must be a mapping of names to arrays, got list",
            ),
            (
                call(weight_ih_l0=None),
                ValueError,
                "lstm: weights must hold 'weight_ih_l0', got only "
                "['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_hr_l0']",
            ),
            (call(weight_ih_l0=1), TypeError, "lstm: weights['weight_ih_l0'] must be a numpy array, got int"),
            (
                call(weight_ih_l0=floats(21, I)),
                ValueError,
                f"lstm: weights['weight_ih_l0'] {MATRIX} 4*hidden_size rows, got shape (21, 4)",
            ),
            (
                call(weight_hh_l0=floats(0, 2)),
                ValueError,
                f"lstm: weights['weight_hh_l0'] {MATRIX} 4*hidden_size rows, got shape (0, 2)",
            ),
            (
                call("rnn_relu", weight_hh_l0=floats(5)),
                ValueError,
                f"rnn: weights['weight_hh_l0'] {MATRIX} hidden_size rows, got shape (5,)",
            ),
            (
                call(weight_hr_l0=floats(2)),
                ValueError,
                f"lstm: weights['weight_hr_l0'] {MATRIX} proj_size rows, got shape (2,)",
            ),
            (
                call(weight_hr_l0=floats(5, 5)),
                ValueError,
                "lstm: weights['weight_hr_l0'] must have fewer than hidden_size=5 rows, got 5",
            ),
            (
                call(weight_ih_l0=np.zeros((20, 4), int)),
                TypeError,
                "lstm: weights['weight_ih_l0'] must have dtype float32 or float64 (native), got '<i8'",
            ),
            (
                call(weight_hh_l0=floats(20, 5)),
                ValueError,
                "lstm: weights['weight_hh_l0'] must have shape (20, 2), got (20, 5)",
            ),
            (
                call(weight_ih_l2=floats(20, 2)),
                ValueError,
                "lstm: weights must hold this layer's 5 entries, got unexpected ['weight_ih_l2']",
            ),
            (
                call("gru", weight_ih_l0=floats(15, I), weight_hh_l0=floats(15, 5), weight_hr_l0=None),
                ValueError,
                "gru: weights['bias_ih_l0'] must have shape (15,), got (20,)",
            ),
        ]
    ),
)
def test_function_weights(call, error, message):
    raised(call, error, message)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"dropout": 1.5}, ValueError, "lstm: dropout must be a number between 0 and 1, got 1.5"),
        ({"dropout": None}, TypeError, "lstm: dropout must be a number between 0 and 1, got None"),
        ({"batch_first": 1}, TypeError, "lstm: batch_first must be True or False, got 1"),
        ({"training": "no"}, TypeError, "lstm: training must be True or False, got 'no'"),
    ],
    ids=str,
)
def test_function_options(kwargs, error, message):
    raised(lambda: functional.forward("lstm", floats(T, B, I), WEIGHTS, **kwargs), error, message)


# ---------------------------------------------------------------------------------------------------------------------
# Streams
# ---------------------------------------------------------------------------------------------------------------------


def frozen(a):
    a.setflags(write=False)
    return a


def overlapping(s):
    raw = floats(2 * B * (I + H))
    s.step(raw[: B * I].reshape(B, I), raw[B * I - 1 : B * (I + H) - 1].reshape(B, H))


ROWS = "lstm: rows must be between 0 and batch_size-1=2"
STREAM = [
    (lambda s: s.step(floats(B, 7)), ValueError, "lstm: x_t must have shape (B=3, input_size=4), got (3, 7)"),
    (lambda s: s.step(floats(I)), ValueError, "lstm: x_t must have shape (B=3, input_size=4), got (4,)"),
    (lambda s: s.step(floats(1, B, I)), ValueError, "lstm: x_t must have shape (B=3, input_size=4), got (1, 3, 4)"),
    (lambda s: s.step([[0.0] * I] * B), TypeError, "lstm: x_t must be a numpy array, got list"),
    (lambda s: s.step(np.zeros((B, I))), TypeError, "lstm: x_t must have dtype float32, got float64"),
    (lambda s: s.step(np.zeros((B, I), BIG)), TypeError, f"lstm: x_t must have native byte order, got dtype {BIG!r}"),
    (lambda s: s.step(floats(B, I), floats(B, 4)), ValueError, "lstm: out must have shape (B=3, 5), got (3, 4)"),
    (lambda s: s.step(floats(B, I), 1), TypeError, "lstm: out must be a numpy array, got int"),
    (lambda s: s.step(floats(B, I), np.zeros((B, H))), TypeError, "lstm: out must have dtype float32, got float64"),
    (
        lambda s: s.step(floats(B, I), floats(H, B).T),
        ValueError,
        "lstm: out must be C-contiguous, aligned and writeable, got strides (4, 12)",
    ),
    (
        lambda s: s.step(floats(B, I), frozen(floats(B, H))),
        ValueError,
        "lstm: out must be C-contiguous, aligned and writeable, got strides (20, 4), read-only",
    ),
    (overlapping, ValueError, "lstm: out must not share memory with x_t, got arrays that overlap"),
    (
        lambda s: setattr(s, "state", floats(1, B, H)),
        TypeError,
        "lstm: state must be a pair (h, c), got an array of shape (1, 3, 5)",
    ),
    (
        lambda s: setattr(s, "state", (floats(1, B, H), floats(1, 2, H))),
        ValueError,
        "lstm: c must have shape (num_layers=1, B=3, hidden_size=5), got (1, 2, 5)",
    ),
    (lambda s: s.reset([0, 3]), ValueError, f"{ROWS}, got 3 at index 1"),
    (lambda s: s.reset([-1]), ValueError, f"{ROWS}, got -1 at index 0"),
    (lambda s: s.reset(np.array([[0]])), ValueError, "lstm: rows must have one dimension, got shape (1, 1)"),
    (lambda s: s.reset(np.array([True, False, True])), TypeError, "lstm: rows must be integers, got dtype bool"),
    (lambda s: s.reset(0), TypeError, "lstm: rows must be a list or an array of integers, got int"),
    (lambda s: s.select(np.array([0, 3], np.uint64)), ValueError, f"{ROWS}, got 3 at index 1"),
    (lambda s: s.select([0, 1.0]), TypeError, "lstm: rows must be integers, got 1.0 at index 1"),
    (lambda s: s.select(None), TypeError, "lstm: rows must be a list or an array of integers, got NoneType"),
]


@pytest.mark.parametrize(("call", "error", "message"), params(STREAM))
def test_stream(call, error, message):
    stream = LSTM(I, H, seed=0).stream(B)
    stream.step(floats(B, I))
    before = [s.tobytes() for s in stream.state]
    raised(lambda: call(stream), error, message)
    assert [s.tobytes() for s in stream.state] == before
    assert stream.batch_size == B


def test_an_empty_stream_has_no_rows():
    stream = GRU(I, H).stream(0)
    raised(
        lambda: stream.select(np.array([0], np.uint8)),
        ValueError,
        "gru: rows must be between 0 and batch_size-1=-1, got 0 at index 0",
    )
