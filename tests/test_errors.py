"""Error messages of constructors, calls and backward, word for word, and that nothing has changed after one."""

import copy
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import fastrnn
from errors import BIG, F4, B, H, I, T, Tagged, environment, floats, params, raised, snapshot
from fastrnn import _core, functional, spec


@pytest.fixture
def env():
    return environment()


# ---------------------------------------------------------------------------------------------------------------------
# Constructors
# ---------------------------------------------------------------------------------------------------------------------

LSTM, GRU, RNN = fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN
CPU_DTYPES = "dtype must be 'float32' or 'float64'"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    params(
        [
            (lambda: LSTM(0, 5), ValueError, "lstm: input_size must be an integer >= 1, got 0"),
            (lambda: LSTM(4, -5), ValueError, "lstm: hidden_size must be an integer >= 1, got -5"),
            (lambda: GRU(4, 5, 0), ValueError, "gru: num_layers must be an integer >= 1, got 0"),
            (lambda: GRU(4.0, 5), TypeError, "gru: input_size must be an integer >= 1, got 4.0"),
            (lambda: RNN(True, 5), TypeError, "rnn: input_size must be an integer >= 1, got True"),
            (lambda: RNN(np.True_, 5), TypeError, f"rnn: input_size must be an integer >= 1, got {np.True_!r}"),
            (lambda: RNN(4, "5"), TypeError, "rnn: hidden_size must be an integer >= 1, got '5'"),
            (lambda: RNN(4, 5, None), TypeError, "rnn: num_layers must be an integer >= 1, got None"),
            (lambda: LSTM(4, 5, proj_size=-1), ValueError, "lstm: proj_size must be an integer >= 0, got -1"),
            (lambda: LSTM(4, 5, proj_size=5), ValueError, "lstm: proj_size must be smaller than hidden_size=5, got 5"),
            (lambda: LSTM(4, 5, 2, 0.5), TypeError, "lstm: bias must be True or False, got 0.5"),
            (lambda: LSTM(4, 5, batch_first=1), TypeError, "lstm: batch_first must be True or False, got 1"),
            (lambda: LSTM(4, 5, bidirectional=2), TypeError, "lstm: bidirectional must be True or False, got 2"),
            (lambda: GRU(4, 5, 2, dropout=1.5), ValueError, "gru: dropout must be a number between 0 and 1, got 1.5"),
            (lambda: GRU(4, 5, 2, dropout=-0.1), ValueError, "gru: dropout must be a number between 0 and 1, got -0.1"),
            (
                lambda: GRU(4, 5, 2, dropout=float("nan")),
                ValueError,
                "gru: dropout must be a number between 0 and 1, got nan",
            ),
            (lambda: GRU(4, 5, 2, dropout=True), TypeError, "gru: dropout must be a number between 0 and 1, got True"),
            (lambda: GRU(4, 5, 2, dropout="0"), TypeError, "gru: dropout must be a number between 0 and 1, got '0'"),
            (lambda: RNN(4, 5, 1, "selu"), ValueError, "rnn: nonlinearity must be one of 'tanh', 'relu', got 'selu'"),
            (
                lambda: RNN(4, 5, nonlinearity=np.array(["tanh", "relu"])),
                ValueError,
                f"rnn: nonlinearity must be one of 'tanh', 'relu', got {np.array(['tanh', 'relu'])!r}",
            ),
            (lambda: RNN(4, 5, nonlinearity=[]), ValueError, "rnn: nonlinearity must be one of 'tanh', 'relu', got []"),
            (lambda: RNN(4, 5, dtype="int32"), ValueError, f"rnn: {CPU_DTYPES}, got 'int32'"),
            (lambda: RNN(4, 5, dtype="real"), ValueError, f"rnn: {CPU_DTYPES}, got 'real'"),
            (lambda: RNN(4, 5, dtype=None), TypeError, f"rnn: {CPU_DTYPES}, got None"),
            (lambda: RNN(4, 5, dtype=7), TypeError, f"rnn: {CPU_DTYPES}, got 7"),
            (lambda: RNN(4, 5, dtype=">f4"), ValueError, "rnn: dtype must have native byte order, got '>f4'"),
            (
                lambda: LSTM(4, 5, dtype="bfloat16"),
                ValueError,
                "lstm: dtype bfloat16 is for CUDA only; on the CPU it must be 'float32' or 'float64'",
            ),
            (
                lambda: LSTM(4, 5, dtype=np.float16),
                ValueError,
                "lstm: dtype float16 is for CUDA only; on the CPU it must be 'float32' or 'float64'",
            ),
            (
                lambda: LSTM(4, 5, device="tpu"),
                ValueError,
                "lstm: device must be 'cpu', 'cuda' or 'cuda:N', got 'tpu'",
            ),
            (
                lambda: LSTM(4, 5, device="cuda:x"),
                ValueError,
                "lstm: device must be 'cpu', 'cuda' or 'cuda:N', got 'cuda:x'",
            ),
            (
                lambda: LSTM(4, 5, device=0),
                TypeError,
                "lstm: device must be a string, 'cpu', 'cuda' or 'cuda:N', got 0",
            ),
            (
                lambda: LSTM(4, 5, seed=-1),
                ValueError,
                "lstm: seed must be None, an integer >= 0 or what numpy.random.default_rng takes, got -1",
            ),
            (
                lambda: LSTM(4, 5, seed=1.5),
                TypeError,
                "lstm: seed must be None, an integer >= 0 or what numpy.random.default_rng takes, got 1.5",
            ),
            (
                lambda: LSTM(4, 5, seed=True),
                TypeError,
                "lstm: seed must be None, an integer >= 0 or what numpy.random.default_rng takes, got True",
            ),
        ]
    ),
)
def test_constructor(call, error, message):
    raised(call, error, message)


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:12"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_names_what_is_missing(device, dtype):
    missing = "; ".join(fastrnn.show_config(mode="dicts")["cuda"]["missing"])
    assert "built without CUDA" in missing
    raised(
        lambda: LSTM(4, 5, dtype=dtype, device=device),
        RuntimeError,
        f"lstm: device {device!r} is not available: {missing}",
    )


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((1, 10**7), {}),
        ((2**62, 2**62), {}),
        ((10**30, 1), {}),
        ((1, 2**31), {"dtype": "float64"}),
        ((1, 1, 10**12), {}),
        ((1, 1, 10**9), {"bias": False}),
        ((1, 10**8), {"proj_size": 10**7}),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_allocated(sizes, options):
    cells = [LSTM] if "proj_size" in options else [LSTM, GRU, RNN]
    for cell in cells:
        with pytest.raises(
            ValueError, match=r"input_size=\d+, hidden_size=\d+, num_layers=\d+.* cannot be allocated: w"
        ):
            cell(*sizes, **options)


def test_memory_that_runs_out_on_the_way(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("fastrnn.layers._Recurrent._draw_weight", fail)
    raised(
        lambda: GRU(4, 5),
        ValueError,
        "gru: GRU(4, 5) cannot be allocated: no memory left for its weights",
    )


def test_the_memory_limit_is_that_of_machine_or_container(monkeypatch):
    assert 2**20 < spec._memory_limit() <= sys.maxsize
    monkeypatch.setattr(spec, "_memory_limit", lambda: 2900)
    spec.make_spec.cache_clear()
    GRU(3, 4, bias=False)
    raised(
        lambda: LSTM(3, 4, bias=False),
        ValueError,
        "lstm: input_size=3, hidden_size=4, num_layers=1 cannot be allocated: weights and gradients need 2944 bytes, "
        "available are 2900",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------------------------


def assert_usable(e):
    """The tape still gives what it would have given."""
    assert not e.tape.consumed
    e.lstm.zero_grad()
    dx, _ = e.lstm.backward(e.tape, e.dy)
    _, _, fresh = e.lstm.forward(e.x, dropout_seed=1)
    expected = {name: g.copy() for name, g in e.lstm.grads.items()}
    e.lstm.zero_grad()
    assert e.lstm.backward(fresh, e.dy)[0].tobytes() == dx.tobytes()
    assert all(expected[name].tobytes() == g.tobytes() for name, g in e.lstm.grads.items())


X = "lstm: x must have shape (T, B, input_size=4)"
WIDE = np.dtype(np.int64).newbyteorder().str
OR = " or, without a batch, (T, input_size=4)"

CALLS = [
    (lambda e: e.lstm(floats(T, B, 7)), ValueError, f"{X}, got (6, 3, 7)"),
    (lambda e: e.lstm(floats(T, 7)), ValueError, "lstm: x must have shape (T, input_size=4), got (6, 7)"),
    (lambda e: e.lstm(floats(I)), ValueError, f"{X}{OR}, got (4,)"),
    (lambda e: e.lstm(floats(1, T, B, I)), ValueError, f"{X}{OR}, got (1, 6, 3, 4)"),
    (lambda e: e.lstm(np.array(1, F4)), ValueError, f"{X}{OR}, got ()"),
    (lambda e: e.gru(floats(T, B, 7)), ValueError, "gru: x must have shape (B, T, input_size=4), got (6, 3, 7)"),
    (lambda e: e.lstm([[1.0] * I]), TypeError, "lstm: x must be a numpy array, got list"),
    (lambda e: e.lstm(None), TypeError, "lstm: x must be a numpy array, got NoneType"),
    (lambda e: e.lstm(e.x.astype("f8")), TypeError, "lstm: x must have dtype float32, got float64"),
    (lambda e: e.lstm(e.x.astype("i4")), TypeError, "lstm: x must have dtype float32, got int32"),
    (lambda e: e.lstm(e.x.astype("c8")), TypeError, "lstm: x must have dtype float32, got complex64"),
    (lambda e: e.lstm(e.x.astype(object)), TypeError, "lstm: x must have dtype float32, got object"),
    (lambda e: e.lstm(e.x.astype(BIG)), TypeError, f"lstm: x must have native byte order, got dtype {BIG!r}"),
    (
        lambda e: e.lstm(np.ma.masked_array(e.x)),
        TypeError,
        "lstm: x must be a numpy array, got MaskedArray; pass numpy.asarray(...) of it",
    ),
    (
        lambda e: e.lstm(e.x.view(Tagged)),
        TypeError,
        "lstm: x must be a numpy array, got Tagged; pass numpy.asarray(...) of it",
    ),
    # States
    (lambda e: e.lstm(e.x, e.h), TypeError, "lstm: state must be a pair (h_0, c_0), got an array of shape (2, 3, 5)"),
    (lambda e: e.lstm(e.x, {}), TypeError, "lstm: state must be a pair (h_0, c_0), got dict"),
    (lambda e: e.lstm(e.x, (e.h,) * 3), ValueError, "lstm: state must be a pair (h_0, c_0), got 3 items"),
    (lambda e: e.rnn(e.x, (e.h, e.h)), TypeError, "rnn: state must be one array h_0, got a tuple"),
    (lambda e: e.rnn(e.x, 0), TypeError, "rnn: h_0 must be a numpy array, got int"),
    (
        lambda e: e.lstm(e.x, (e.h[:1], e.h)),
        ValueError,
        "lstm: h_0 must have shape (num_layers=2, B=3, hidden_size=5), got (1, 3, 5)",
    ),
    (
        lambda e: e.lstm(e.x, (e.h, e.h[:, :2])),
        ValueError,
        "lstm: c_0 must have shape (num_layers=2, B=3, hidden_size=5), got (2, 2, 5)",
    ),
    (
        lambda e: e.lstm(e.x[:, 0], (e.h, e.h)),
        ValueError,
        "lstm: h_0 must have shape (num_layers=2, hidden_size=5), got (2, 3, 5)",
    ),
    (
        lambda e: e.gru(floats(B, T, I), e.h[:1]),
        ValueError,
        "gru: h_0 must have shape (num_layers*2=2, B=3, hidden_size=5), got (1, 3, 5)",
    ),
    (
        lambda e: e.proj(e.x, (floats(1, B, H), floats(1, B, H))),
        ValueError,
        "lstm: h_0 must have shape (num_layers=1, B=3, proj_size=2), got (1, 3, 5)",
    ),
    (lambda e: e.lstm(e.x, (e.h.astype("f8"), e.h)), TypeError, "lstm: h_0 must have dtype float32, got float64"),
    (
        lambda e: e.lstm(e.x, (e.h, e.h.astype(BIG))),
        TypeError,
        f"lstm: c_0 must have native byte order, got dtype {BIG!r}",
    ),
    # Lengths
    (
        lambda e: e.lstm(e.x, lengths=[1, 7, 2]),
        ValueError,
        "lstm: lengths must be between 0 and T=6, got 7 at index 1",
    ),
    (
        lambda e: e.lstm(e.x, lengths=np.array([1, 2, -1], np.int8)),
        ValueError,
        "lstm: lengths must be between 0 and T=6, got -1 at index 2",
    ),
    (
        lambda e: e.lstm(e.x, lengths=np.array([2**63, 1, 1], np.uint64)),
        ValueError,
        f"lstm: lengths must be between 0 and T=6, got {2**63} at index 0",
    ),
    (
        lambda e: e.lstm(e.x, lengths=[1, 10**40, 2]),
        ValueError,
        f"lstm: lengths must be between 0 and T=6, got {10**40} at index 1",
    ),
    (lambda e: e.lstm(e.x, lengths=[1, 2]), ValueError, "lstm: lengths must have shape (B=3,), got (2,)"),
    (
        lambda e: e.lstm(e.x, lengths=np.ones((3, 1), int)),
        ValueError,
        "lstm: lengths must have one dimension, got shape (3, 1)",
    ),
    (lambda e: e.lstm(e.x, lengths=[1, 2.0, 3]), TypeError, "lstm: lengths must be integers, got 2.0 at index 1"),
    (lambda e: e.lstm(e.x, lengths=[1, True, 3]), TypeError, "lstm: lengths must be integers, got True at index 1"),
    (lambda e: e.lstm(e.x, lengths=[[1], [2]]), TypeError, "lstm: lengths must be integers, got [1] at index 0"),
    (lambda e: e.lstm(e.x, lengths=np.ones(3)), TypeError, "lstm: lengths must be integers, got dtype float64"),
    (
        lambda e: e.lstm(e.x, lengths=np.ones(3, WIDE)),
        TypeError,
        f"lstm: lengths must have native byte order, got dtype {WIDE!r}",
    ),
    (
        lambda e: e.rnn.stream(3).select(np.ones(3, WIDE)),
        TypeError,
        f"rnn: rows must have native byte order, got dtype {WIDE!r}",
    ),
    (lambda e: e.lstm(e.x, lengths=np.ones(3, bool)), TypeError, "lstm: lengths must be integers, got dtype bool"),
    (lambda e: e.lstm(e.x, lengths=6), TypeError, "lstm: lengths must be a list or an array of integers, got int"),
    (lambda e: e.lstm(e.x, lengths="666"), TypeError, "lstm: lengths must be a list or an array of integers, got str"),
    (
        lambda e: e.lstm(e.x[:, 0], lengths=[6]),
        ValueError,
        "lstm: lengths need a batch, x of shape (B, T, .) or (T, B, .); here x is unbatched",
    ),
    # Resets
    (
        lambda e: e.lstm(e.x, resets=np.zeros((B, T), bool)),
        ValueError,
        "lstm: resets must have shape (T=6, B=3), got (3, 6)",
    ),
    (
        lambda e: e.lstm(e.x[:, 0], resets=np.zeros((T, 1), bool)),
        ValueError,
        "lstm: resets must have shape (T=6,), got (6, 1)",
    ),
    (
        lambda e: GRU(I, H, batch_first=True)(floats(B, T, I), resets=np.zeros((T, B), bool)),
        ValueError,
        "gru: resets must have shape (B=3, T=6), got (6, 3)",
    ),
    (
        lambda e: e.lstm(e.x, resets=np.zeros((T, B), np.uint8)),
        TypeError,
        "lstm: resets must have dtype bool, got uint8",
    ),
    (lambda e: e.lstm(e.x, resets=[[False] * B] * T), TypeError, "lstm: resets must be a numpy array, got list"),
    (
        lambda e: e.gru(floats(B, T, I), resets=np.zeros((B, T), bool)),
        ValueError,
        "gru: resets cannot be used with bidirectional=True",
    ),
    # Dropout seeds
    (
        lambda e: e.lstm.forward(e.x, dropout_seed=-1),
        ValueError,
        "lstm: dropout_seed must be an integer from 0 to 18446744073709551615, got -1",
    ),
    (
        lambda e: e.lstm.forward(e.x, dropout_seed=2**64),
        ValueError,
        "lstm: dropout_seed must be an integer from 0 to 18446744073709551615, got 18446744073709551616",
    ),
    (
        lambda e: e.rnn.forward(e.x, dropout_seed=1.0),
        TypeError,
        "rnn: dropout_seed must be an integer from 0 to 18446744073709551615, got 1.0",
    ),
    # Streams
    (
        lambda e: e.gru.stream(),
        ValueError,
        "gru: a stream cannot be made of a layer with bidirectional=True",
    ),
    (lambda e: e.rnn.stream(-1), ValueError, "rnn: batch_size must be an integer >= 0, got -1"),
    (lambda e: e.rnn.stream(1.0), TypeError, "rnn: batch_size must be an integer >= 0, got 1.0"),
]


@pytest.mark.parametrize(("call", "error", "message"), params(CALLS))
def test_call(env, call, error, message):
    before = snapshot(env)
    raised(lambda: call(env), error, message)
    assert snapshot(env) == before


@pytest.mark.parametrize("batch_size", [2**40, 2**62, 10**30])
def test_a_batch_that_cannot_be_allocated(batch_size):
    with pytest.raises(ValueError, match=rf"lstm: batch_size={batch_size} cannot be allocated: states need \d+ bytes"):
        LSTM(I, H).stream(batch_size)


def test_a_batch_beyond_what_is_counted(monkeypatch):
    monkeypatch.setattr(spec, "_memory_limit", lambda: sys.maxsize)
    raised(lambda: RNN(1, 1).stream(2**31), ValueError, "rnn: batch_size must be at most 2147483647, got 2147483648")


@pytest.mark.parametrize("shape", [(2**31, 1), (1, 2**31), (2**40, 0), (0, 2**40)], ids=str)
def test_an_x_beyond_what_is_counted(shape):
    x = np.broadcast_to(F4(0), (*shape, 1))
    for layer in (RNN(1, 1), LSTM(1, 1)):
        for call in (layer, layer.forward):
            with pytest.raises(ValueError, match=r": x must have T and B of at most 2147483647, got T=\d+, B=\d+$"):
                call(x)
    with pytest.raises(ValueError, match=rf"got T={shape[0]}, B={shape[1]}$"):
        RNN(1, 1, batch_first=True)(x.swapaxes(0, 1))


def test_a_call_that_cannot_be_allocated(env):
    T, B = 2**20, 2**21
    hint = f"a call with x of T={T}, B={B}, input_size=4 cannot be allocated: results need"
    x = np.broadcast_to(F4(0), (T, B, I))
    before = snapshot(env)
    for call in (env.lstm, env.lstm.forward, lambda x: functional.forward("lstm", x, env.lstm.parameters)):
        with pytest.raises(ValueError, match=rf"^lstm: {hint} \d+ bytes, available are \d+$"):
            call(x)
    assert snapshot(env) == before


@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_the_estimate_of_a_call_is_near_what_it_takes(monkeypatch, kind, options):
    layer = kind(16, 64, **options, seed=0)
    x = floats(50, 8, 16)
    y, state, tape = layer.forward(x)
    taken = y.nbytes + sum(s.nbytes for s in (state if kind is LSTM else (state,))) + tape.nbytes
    monkeypatch.setattr(spec, "_SURELY_FITS", 0)
    monkeypatch.setattr(spec, "_memory_limit", lambda: taken)
    layer.forward(x)
    monkeypatch.setattr(spec, "_memory_limit", lambda: int(0.8 * taken))
    with pytest.raises(ValueError, match="cannot be allocated"):
        layer.forward(x)
    layer.forward(x, lengths=[50, 1, 1, 1, 1, 1, 1, 1])
    layer(x)


def fails(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("no threads"), KeyboardInterrupt()], ids=repr)
def test_a_forward_that_fails_inside_leaves_the_generator(env, monkeypatch, error):
    before = snapshot(env)
    monkeypatch.setattr(_core, "forward", fails(error))
    kind = ValueError if isinstance(error, MemoryError) else type(error)
    with pytest.raises(kind) as info:
        env.lstm.forward(env.x)
    if kind is ValueError:
        assert str(info.value) == ("lstm: a call with x of T=6, B=3, input_size=4 cannot be allocated: no memory left")
    assert snapshot(env) == before


def test_memory_that_runs_out_in_backward_or_select(env, monkeypatch):
    before = snapshot(env)
    with monkeypatch.context() as patch:
        patch.setattr(_core, "backward", fails(MemoryError()))
        raised(
            lambda: env.lstm.backward(env.tape, env.dy),
            ValueError,
            "lstm: a call with x of T=6, B=3, input_size=4 cannot be allocated: no memory left",
        )
    assert snapshot(env) == before
    assert_usable(env)
    stream = env.rnn.stream(2)
    stream._stream = SimpleNamespace(batch_size=2, select=fails(MemoryError()))
    raised(lambda: stream.select([0, 1, 1]), ValueError, "rnn: batch_size=3 cannot be allocated: no memory left")


# forward checks in the same way as the plain call; this is that it does so before it changes anything.
@pytest.mark.parametrize(
    "kwargs",
    [
        {"x": floats(T, B, 7)},
        {"state": (floats(2, B, H), 0)},
        {"lengths": [9] * B},
        {"resets": 1},
        {"dropout_seed": ""},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_forward_fails_before_it_draws_a_seed(env, kwargs):
    before = snapshot(env)
    with pytest.raises((ValueError, TypeError), match=r"^lstm: "):
        env.lstm.forward(**({"x": env.x} | kwargs))
    assert snapshot(env) == before


# ---------------------------------------------------------------------------------------------------------------------
# Backward
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_tape_is_not_copied(env, duplicate):
    raised(
        lambda: duplicate(env.tape),
        TypeError,
        "lstm: a Tape cannot be copied or pickled: it serves one backward, in the process of its forward; "
        "call forward again instead",
    )
    assert_usable(env)


def consumed(e):
    y, _, tape = e.rnn.forward(e.x)
    e.rnn.backward(tape, np.ones_like(y))
    e.rnn.zero_grad()
    return tape


DY = "lstm: dy must have y's shape (T=6, B=3, 5)"
BACKWARD = [
    (lambda e: e.lstm.backward(e.tape, floats(T, B, 6)), ValueError, f"{DY}, got (6, 3, 6)"),
    (lambda e: e.lstm.backward(e.tape, floats(T, H)), ValueError, f"{DY}, got (6, 5)"),
    (lambda e: e.lstm.backward(e.tape, 1.0), TypeError, "lstm: dy must be a numpy array, got float"),
    (lambda e: e.lstm.backward(e.tape, e.dy.tolist()), TypeError, "lstm: dy must be a numpy array, got list"),
    (
        lambda e: e.lstm.backward(e.tape, e.dy.astype("f8")),
        TypeError,
        "lstm: dy must have dtype float32, got float64",
    ),
    (
        lambda e: e.lstm.backward(e.tape, e.dy.astype(BIG)),
        TypeError,
        f"lstm: dy must have native byte order, got dtype {BIG!r}",
    ),
    (
        lambda e: e.gru.backward(e.gru.forward(floats(B, T, I))[2], floats(T, B, 10)),
        ValueError,
        "gru: dy must have y's shape (B=3, T=6, 10), got (6, 3, 10)",
    ),
    (
        lambda e: e.rnn.backward(e.rnn.forward(e.x[:, 0])[2], floats(T, 1, H)),
        ValueError,
        "rnn: dy must have y's shape (T=6, 5), got (6, 1, 5)",
    ),
    (
        lambda e: e.lstm.backward(e.tape, None),
        ValueError,
        "lstm: dy may be None only where dstate is given, got None for both",
    ),
    (
        lambda e: e.lstm.backward(e.tape, None, (None, None)),
        ValueError,
        "lstm: dy may be None only where dstate is given, got None for both",
    ),
    (
        lambda e: e.lstm.backward(e.tape, e.dy, e.h),
        TypeError,
        "lstm: dstate must be a pair (dh_n, dc_n), got an array of shape (2, 3, 5)",
    ),
    (
        lambda e: e.lstm.backward(e.tape, e.dy, (e.h, e.h[:1])),
        ValueError,
        "lstm: dc_n must have shape (num_layers=2, B=3, hidden_size=5), got (1, 3, 5)",
    ),
    (
        lambda e: e.lstm.backward(e.tape, e.dy, (e.h.astype("f8"), None)),
        TypeError,
        "lstm: dh_n must have dtype float32, got float64",
    ),
    (
        lambda e: e.lstm.backward(e.tape, e.dy, need_dx=None),
        TypeError,
        "lstm: need_dx must be True or False, got None",
    ),
    (lambda e: e.lstm.backward(e.tape, e.dy, retain=1), TypeError, "lstm: retain must be True or False, got 1"),
    (
        lambda e: functional.backward(e.tape, e.dy, need_dx="no"),
        TypeError,
        "lstm: need_dx must be True or False, got 'no'",
    ),
    (
        lambda e: e.lstm.backward(None, e.dy),
        TypeError,
        "lstm: tape must be the Tape that forward returned, got NoneType",
    ),
    (
        lambda e: e.lstm.backward((e.tape,), e.dy),
        TypeError,
        "lstm: tape must be the Tape that forward returned, got tuple",
    ),
    (
        lambda e: e.rnn.backward(e.tape, e.dy),
        ValueError,
        "rnn: tape must be one of this layer's, got one of another forward: <Tape of lstm, {} bytes>",
    ),
    (
        lambda e: LSTM(I, H, 2).backward(e.tape, e.dy),
        ValueError,
        "lstm: tape must be one of this layer's, got one of another forward: <Tape of lstm, {} bytes>",
    ),
    (
        lambda e: e.rnn.backward(consumed(e), floats(T, B, H)),
        ValueError,
        "rnn: tape has been consumed by an earlier backward; each serves one",
    ),
    (
        lambda e: functional.backward(consumed(e), floats(T, B, H)),
        ValueError,
        "rnn: tape has been consumed by an earlier backward; each serves one",
    ),
    (
        lambda e: functional.backward(e.y, e.dy),
        TypeError,
        "backward: tape must be a Tape made by forward, got ndarray",
    ),
    (
        lambda e: e.lstm.backward(functional.forward("lstm", e.x, e.lstm.parameters)[2], e.dy),
        ValueError,
        "lstm: tape must be one of this layer's, got one of another forward: <Tape of lstm, {} bytes>",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), params(BACKWARD))
def test_backward(env, call, error, message):
    before = snapshot(env)
    raised(lambda: call(env), error, message.format(env.tape.nbytes))
    assert snapshot(env) == before
    assert_usable(env)


# ---------------------------------------------------------------------------------------------------------------------
# What Python has checked is checked again where it would matter
# ---------------------------------------------------------------------------------------------------------------------


def test_arrays_reshaped_behind_the_tapes_back_are_refused():
    layer = RNN(I, H, seed=0)
    x = floats(T, B, I)
    y, _, tape = layer.forward(x)
    reserve, _, *others = tape._saved
    tape._saved = (reserve, x[:2], *others)
    with pytest.raises((ValueError, TypeError)):
        layer.backward(tape, np.ones_like(y))
    assert not tape.consumed
    assert not any(g.any() for g in layer.grads.values())
