"""The layers as users meet them: construction, options, layouts, dropout."""

import doctest
import inspect
import threading
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrnn
from fastrnn.validation import check_lengths
from layering import B, H, I, T, assert_same, cells, make, normal, pair, random_state, train

# ---------------------------------------------------------------------------------------------------------------------
# Construction
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["", ".layers", ".functional", ".stream", ".config", ".threads"])
def test_examples_in_docstrings(module):
    failed, _ = doctest.testmod(__import__(f"fastrnn{module}", fromlist=["_"]))
    assert failed == 0


def test_public_names():
    assert set(fastrnn.__all__) <= set(dir(fastrnn))
    for name in fastrnn.__all__:
        assert getattr(fastrnn, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Transformer'"):
        fastrnn.Transformer  # noqa: B018


KEYWORDS = ["dtype", "device", "seed"]
COMMON = ["bias", "batch_first", "dropout", "bidirectional"]


@pytest.mark.parametrize(
    ("layer", "positional"),
    [
        (fastrnn.LSTM, ["input_size", "hidden_size", "num_layers", *COMMON, "proj_size"]),
        (fastrnn.GRU, ["input_size", "hidden_size", "num_layers", *COMMON]),
        (fastrnn.RNN, ["input_size", "hidden_size", "num_layers", "nonlinearity", *COMMON]),
    ],
)
def test_signatures_follow_torch(layer, positional):
    parameters = inspect.signature(layer).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == KEYWORDS
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    expected = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
    expected |= {"dtype": "float32", "device": "cpu", "seed": None}
    expected |= {"proj_size": 0} if layer is fastrnn.LSTM else {}
    expected |= {"nonlinearity": "tanh"} if layer is fastrnn.RNN else {}
    assert defaults == expected


@cells
def test_weights_have_torchs_names_and_shapes(cell):
    gates = {"lstm": 4, "gru": 3}.get(cell, 1)
    layer = make(cell, 2, bidirectional=True)
    expected = {}
    for k, inputs in enumerate([I, 2 * H]):
        for suffix in (f"l{k}", f"l{k}_reverse"):
            expected |= {f"weight_ih_{suffix}": (gates * H, inputs), f"weight_hh_{suffix}": (gates * H, H)}
            expected |= {f"bias_ih_{suffix}": (gates * H,), f"bias_hh_{suffix}": (gates * H,)}
    for arrays in (layer.parameters, layer.grads):
        assert {name: a.shape for name, a in arrays.items()} == expected
        assert all(a.flags.c_contiguous and a.flags.writeable and a.dtype == "float64" for a in arrays.values())
    assert all(not g.any() for g in layer.grads.values())


def test_projection_weights():
    layer = make("lstm", 2, proj_size=2, bias=False)
    assert {name: a.shape for name, a in layer.parameters.items()} == {
        "weight_ih_l0": (4 * H, I), "weight_hh_l0": (4 * H, 2), "weight_hr_l0": (2, H),
        "weight_ih_l1": (4 * H, 2), "weight_hh_l1": (4 * H, 2), "weight_hr_l1": (2, H),
    }  # fmt: skip
    y, (h_n, c_n) = layer(normal(T, B, I))
    assert y.shape == (T, B, 2)
    assert h_n.shape == (2, B, 2)
    assert c_n.shape == (2, B, H)


def test_options_are_attributes():
    layer = fastrnn.LSTM(I, H, 2, False, True, 0.25, True, 3, dtype="float64")
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
    assert [getattr(layer, name) for name in names] == [I, H, 2, False, True, 0.25, True, 3]
    assert layer.dtype == "float64"
    assert layer.device == "cpu"
    assert fastrnn.RNN(I, H, nonlinearity="relu").nonlinearity == "relu"


def test_numpy_numbers_are_accepted_as_sizes_and_dropout():
    layer = fastrnn.GRU(np.int64(I), np.uint8(H), np.int32(2), dropout=np.float32(0.5))
    assert layer(normal(T, B, I, dtype="float32"))[0].shape == (T, B, H)
    assert type(layer.input_size) is int
    assert type(layer.dropout) is float


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("float32", "float32"), ("float64", "float64"), (np.float32, "float32"), (np.dtype("f8"), "float64")],
)
def test_dtype_forms(dtype, name):
    layer = fastrnn.RNN(I, H, dtype=dtype)
    assert layer.dtype == name
    assert layer(normal(T, B, I, dtype=name))[0].dtype == name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_weights_are_uniform_from_the_seed(dtype):
    layer = fastrnn.LSTM(60, 100, 2, dtype=dtype, seed=3)
    values = np.concatenate([a.ravel() for a in layer.parameters.values()])
    assert values.min() >= -0.1
    assert values.max() <= 0.1
    quarters = np.histogram(values, 4, (-0.1, 0.1))[0] / values.size
    assert_allclose(quarters, 0.25, atol=0.01)
    again, other = fastrnn.LSTM(60, 100, 2, dtype=dtype, seed=3), fastrnn.LSTM(60, 100, 2, dtype=dtype, seed=4)
    for name, array in layer.parameters.items():
        assert_array_equal(array, again.parameters[name])
        assert not np.array_equal(array, other.parameters[name])


def test_dropout_with_one_layer_warns_at_the_callers_line():
    with pytest.warns(UserWarning, match="lstm: dropout=0.5 has no effect with num_layers=1") as record:
        fastrnn.LSTM(I, H, dropout=0.5)
    assert record[0].filename == __file__


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (fastrnn.LSTM(4, 5), "LSTM(4, 5)"),
        (fastrnn.LSTM(4, 5, 2, proj_size=3, dropout=0.5), "LSTM(4, 5, proj_size=3, num_layers=2, dropout=0.5)"),
        (fastrnn.GRU(4, 5, bias=False, batch_first=True), "GRU(4, 5, bias=False, batch_first=True)"),
        (fastrnn.RNN(4, 5, bidirectional=True), "RNN(4, 5, bidirectional=True)"),
        (fastrnn.RNN(4, 5, nonlinearity="relu", dtype="float64"), "RNN(4, 5, nonlinearity='relu', dtype='float64')"),
    ],
)
def test_repr(layer, text):
    assert repr(layer) == text


# ---------------------------------------------------------------------------------------------------------------------
# Calls and layouts
# ---------------------------------------------------------------------------------------------------------------------


@cells
@pytest.mark.parametrize("bidirectional", [False, True])
def test_shapes_and_the_two_ways_to_call(cell, bidirectional):
    layer = make(cell, 2, bidirectional=bidirectional)
    x, state, D = normal(T, B, I), None, 1 + bidirectional
    y, state_n = layer(x)
    assert y.shape == (T, B, D * H)
    assert [s.shape for s in pair(state_n)] == [(2 * D, B, H)] * (2 if cell == "lstm" else 1)
    assert isinstance(state_n, tuple) == (cell == "lstm")
    y_train, state_train, tape = layer.forward(x, state)
    assert_allclose(y_train, y, atol=1e-14)
    for a, b in zip(pair(state_train), pair(state_n), strict=True):
        assert_allclose(a, b, atol=1e-14)
    dx, dstate_0 = layer.backward(tape, np.ones_like(y))
    assert dx.shape == x.shape
    assert [s.shape for s in pair(dstate_0)] == [s.shape for s in pair(state_n)]


@cells
def test_a_zero_state_is_the_default(cell):
    layer, x = make(cell), normal(T, B, I)
    zeros = np.zeros((1, B, H))
    state = (zeros, zeros) if cell == "lstm" else zeros
    assert_same(train(layer, x), train(layer, x, state), atol=0)
    if cell == "lstm":
        assert_same(train(layer, x, [None, zeros + 0.5]), train(layer, x, (zeros, zeros + 0.5)), atol=0)


@cells
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}], ids=str)
def test_batch_first_is_the_transpose(cell, options):
    first, second = make(cell, 2, batch_first=True, **options), make(cell, 2, **options)
    x, state = normal(B, T, I), random_state(first, B)
    dy, dstate = normal(B, T, H * (1 + first.bidirectional)), random_state(first, B, seed=5)
    lengths = [T, 1, 0]
    got = train(first, x, state, dy, dstate, lengths=lengths)
    expected = train(second, x.transpose(1, 0, 2), state, dy.transpose(1, 0, 2), dstate, lengths=lengths)
    assert got["y"].shape == (B, T, H * (1 + first.bidirectional))
    assert got["dx"].shape == x.shape
    for name in ("y", "dx"):
        expected[name] = expected[name].transpose(1, 0, 2)
    assert_same(got, expected)
    if not first.bidirectional:
        resets = np.random.default_rng(0).random((B, T)) < 0.3
        assert_allclose(
            first(x, state, resets=resets)[0],
            second(x.transpose(1, 0, 2), state, resets=resets.T)[0].transpose(1, 0, 2),
            atol=1e-14,
        )


@cells
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_unbatched_is_a_batch_of_one(cell, batch_first, bidirectional):
    layer = make(cell, 2, bidirectional=bidirectional, batch_first=batch_first)
    plain = make(cell, 2, bidirectional=bidirectional)
    D = 1 + bidirectional
    x, state = normal(T, I), random_state(layer)
    dy, dstate = normal(T, D * H), random_state(layer, seed=5)
    resets = None if bidirectional else np.arange(T) % 3 == 1

    def batched(state):
        return tuple(s[:, None] for s in state) if cell == "lstm" else state[:, None]

    got = train(layer, x, state, dy, dstate, resets=resets)
    expected = train(
        plain, x[:, None], batched(state), dy[:, None], batched(dstate),
        resets=None if resets is None else resets[:, None],
    )  # fmt: skip
    assert got["y"].shape == (T, D * H)
    assert got["dx"].shape == (T, I)
    assert got["h_n"].shape == got["dh_0"].shape == (2 * D, H)
    for name in expected.keys() - {f"d{name}" for name in layer.grads}:
        expected[name] = expected[name][:, 0]
    assert_same(got, expected)


@cells
@pytest.mark.parametrize(("steps", "batch"), [(0, B), (T, 0), (0, 0)])
def test_no_steps_or_no_rows(cell, steps, batch):
    layer = make(cell, 2)
    x, state, dstate = normal(steps, batch, I), random_state(layer, batch), random_state(layer, batch, seed=5)
    results = train(layer, x, state, dstate=dstate, lengths=[steps] * batch, resets=np.ones((steps, batch), bool))
    assert results["y"].shape == (steps, batch, H)
    assert results["dx"].shape == (steps, batch, I)
    assert results["h_n"].shape == results["dh_0"].shape == (2, batch, H)
    if steps == 0:  # the state passes through, and so does its gradient
        assert_array_equal(results["h_n"], pair(state)[0])
        assert_array_equal(results["dh_0"], pair(dstate)[0])
    assert all(not results[f"d{name}"].any() for name in layer.grads)
    assert layer(x, state)[0].shape == (steps, batch, H)


def fortran(a):
    return np.asfortranarray(a)


def reversed_in_time(a):
    return a[::-1].copy()[::-1]


def misaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = np.frombuffer(raw.data, a.dtype, a.size, offset=1).reshape(a.shape)
    view[...] = a
    return view


def padded(a):
    return np.concatenate([a, a], axis=-1)[..., : a.shape[-1]]


def read_only(a):
    a = a.copy()
    a.setflags(write=False)
    return a


@pytest.mark.parametrize("layout", [fortran, reversed_in_time, misaligned, padded, read_only])
@pytest.mark.parametrize("batch_first", [False, True])
def test_any_memory_layout_gives_the_same(layout, batch_first):
    layer = make("lstm", 2, batch_first=batch_first)
    shape = (B, T) if batch_first else (T, B)
    x, dy, resets = normal(*shape, I), normal(*shape, H, seed=2), normal(*shape, seed=3) > 1
    state, dstate = random_state(layer, B), random_state(layer, B, seed=5)
    expected = train(layer, x, state, dy, dstate, resets=resets)
    state, dstate = tuple(map(layout, state)), tuple(map(layout, dstate))
    got = train(layer, layout(x), state, layout(dy), dstate, resets=layout(resets))
    assert_same(got, expected, atol=0)


def test_a_memmap_is_an_array(tmp_path):
    layer, x = make("gru"), normal(T, B, I)
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float64, "r", shape=x.shape)
    assert_same(train(layer, mapped), train(layer, x), atol=0)


@pytest.mark.parametrize("kind", [list, tuple, *map(np.dtype, "bBhHiIlLqQ")], ids=str)
def test_lengths_may_be_any_integers(kind):
    layer, x = make("gru"), normal(T, B, I)
    given = kind([T, 0, 2]) if isinstance(kind, type) else np.array([T, 0, 2], kind)
    assert_array_equal(layer(x, lengths=given)[0], layer(x, lengths=np.array([T, 0, 2]))[0])
    strided = np.array([T, 9, 0, 9, 2, 9])[::2]
    assert_array_equal(layer(x, lengths=strided)[0], layer(x, lengths=[T, 0, 2])[0])


@pytest.mark.parametrize("given", [np.array([T, 0, 2]), np.array([T, 0, 2], np.uint64), [T, 0, 2]], ids=repr)
def test_lengths_are_copied_before_they_are_checked(given):
    copied = check_lengths(make()._spec, given, T, B, False)
    given[1] = 100
    assert_array_equal(copied, [T, 0, 2])
    assert copied.dtype == np.int64
    assert copied.flags.owndata
    assert copied.flags.carray


def test_lengths_written_by_another_thread():
    layer, x, stop = make("gru"), normal(T, B, I), threading.Event()
    lengths = np.array([T, 0, 2])
    rows = np.array([0, 1, 2])
    stream, messages = layer.stream(B), set()

    def write():
        while not stop.is_set():
            lengths[1] = rows[1] = 10**12
            lengths[1] = rows[1] = 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            for call in (lambda: layer(x, lengths=lengths), lambda: stream.select(rows)):
                try:
                    call()
                except ValueError as error:
                    messages.add(str(error))
    finally:
        stop.set()
        writer.join()
    assert all(m.endswith(f"got {10**12} at index 1") for m in messages)  # the check's words, none of the core's


@cells
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_is_never_used(cell, bidirectional):
    layer = make(cell, 2, bidirectional=bidirectional)
    lengths = [2, 0, T]
    x, dy, state = normal(T, B, I), normal(T, B, H * (1 + bidirectional)), random_state(layer, B)
    clean = train(layer, x, state, dy, lengths=lengths)
    for b, length in enumerate(lengths):
        x[length:, b], dy[length:, b] = np.nan, np.nan
        assert not clean["y"][length:, b].any()
        assert not clean["dx"][length:, b].any()
    assert_same(train(layer, x, state, dy, lengths=lengths), clean, atol=0)
    for end, start in zip((clean["h_n"], clean.get("c_n")), pair(state), strict=False):
        assert_array_equal(end[:, 1], start[:, 1])  # an empty row's final state is its initial one


@cells
def test_a_reset_replaces_whatever_stood_there(cell):
    layer = make(cell, 2)
    x, resets = normal(T, B, I), np.zeros((T, B), bool)
    resets[0, 0] = resets[3, 1] = True
    state = random_state(layer, B)
    broken = tuple(s.copy() for s in pair(state))
    for s in broken:
        s[:, 0] = np.nan
    broken = broken if cell == "lstm" else broken[0]
    results = train(layer, x, broken, resets=resets)
    assert all(np.isfinite(a).all() for a in results.values())
    assert not results["dh_0"][:, 0].any()
    assert results["dh_0"][:, 1:].any()
    alone = layer(x[3:, 1:2])[0]
    assert_allclose(results["y"][3:, 1:2], alone, atol=1e-14)


# ---------------------------------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------------------------------


def test_dropout_acts_in_forward_only_and_between_layers_only():
    layer, plain = make("gru", 2, dropout=0.5), make("gru", 2)
    x = normal(T, B, I)
    assert_array_equal(layer(x)[0], plain(x)[0])
    assert not np.allclose(layer.forward(x)[0], plain(x)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        single = make("gru", dropout=0.5)
    assert_allclose(single.forward(x)[0], single(x)[0], atol=1e-14)


def test_the_same_seed_gives_the_same_masks():
    layer, x = make("lstm", 3, dropout=0.4), normal(T, B, I)
    first, again, other = (train(layer, x, dropout_seed=seed) for seed in (5, np.int64(5), 6))
    assert_same(first, again, atol=0)
    assert not np.allclose(first["y"], other["y"])
    last = layer.forward(x, dropout_seed=2**64 - 1)[2]
    assert last.dropout_seed == 2**64 - 1


def test_without_a_seed_the_layers_generator_gives_one():
    layers = [make("rnn_tanh", 2, dropout=0.5, seed=seed) for seed in (0, 0, 1)]
    x = normal(T, B, I)
    seeds = [[layer.forward(x)[2].dropout_seed for _ in range(3)] for layer in layers]
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 6
    # The tape tells the seed, with which the pass can be repeated.
    y, _, tape = layers[0].forward(x)
    assert_array_equal(layers[0].forward(x, dropout_seed=tape.dropout_seed)[0], y)
    assert make("gru", 2).forward(x, dropout_seed=3)[2].dropout_seed is None


def test_dropping_all_leaves_the_biases():
    layer, x = make("gru", 2, dropout=1.0), normal(T, B, I)
    results = train(layer, x)
    assert not results["dx"].any()
    assert not results["dweight_ih_l0"].any()
    rows = results["y"]
    assert_allclose(rows, rows[:, :1].repeat(B, 1), atol=1e-14)
