"""Layers whose x is a matrix of distinct inputs, and an index that says which of them each step reads.

The kernels' numbers are checked where all of them are (test_kernels.py, ``inputs`` of a case); here is what lies above.
"""

import sys

import numpy as np
import pytest

import fastrnn
from errors import BIG, F4, B, I, T, Tagged, floats, params, raised
from fastrnn import functional, spec
from fastrnn.models import LanguageModel, Seq2Seq, SequenceTagger
from fastrnn.models.nn import Dropout, Embedding
from fastrnn.models.stack import ResidualLSTM, make_stack
from helpers import largest

U, H = 5, 6
CELLS = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}


@pytest.fixture
def index():
    return np.random.default_rng(3).integers(0, U, (T, B))


def close(got, want, dtype="float64"):
    """Sums of at most some hundred numbers of about 1, in another order."""
    np.testing.assert_allclose(got, want, rtol=0, atol=1000 * np.finfo(dtype).eps)


def gradients(layer, x, dy, **options):
    layer.zero_grad()
    y, state, tape = layer.forward(x, **options)
    dx, dstate = layer.backward(tape, dy)
    return y, state, dx, dstate, {name: grad.copy() for name, grad in layer.grads.items()}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("unbatched", [False, True])
def test_is_what_x_of_the_index_is(index, cell, batch_first, unbatched):
    layer = CELLS[cell](I, H, 2, batch_first=batch_first, dtype="float64", seed=0)
    table = floats(U, I).astype(np.float64)
    index = index[:, 0] if unbatched else index.T if batch_first else index
    dy = np.random.default_rng(4).standard_normal((*index.shape, H))
    got, want = gradients(layer, table, dy, index=index), gradients(layer, table[index], dy)
    assert got[0].shape == want[0].shape
    dx = np.zeros_like(table)
    np.add.at(dx, index, want[2])
    close(got[0], want[0])
    close(got[2], dx)
    for mine, its in ((got[1], want[1]), (got[3], want[3])):
        for a, b in zip(mine, its, strict=True) if cell == "lstm" else [(mine, its)]:
            assert a.shape == b.shape
            close(a, b)
    for name, grad in want[4].items():
        close(got[4][name], grad)
    close(layer(table, index=index)[0], want[0])
    close(functional.forward("rnn_tanh" if cell == "rnn" else cell, table, layer.parameters, index=index,
                             batch_first=batch_first)[0], want[0])  # fmt: skip


@pytest.mark.parametrize("layout", [{}, {"batch_first": True}, {"unbatched": True}], ids=str)
def test_of_residual_layers(index, layout):
    lstm = ResidualLSTM(I, I, 3, dtype="float64", batch_first="batch_first" in layout, seed=0)
    table = floats(U, I).astype(np.float64)
    index = index[:, 0] if "unbatched" in layout else index.T if layout else index
    dy = np.random.default_rng(4).standard_normal((*index.shape, I))
    got, want = gradients(lstm, table, dy, index=index), gradients(lstm, table[index], dy)
    dx = np.zeros_like(table)
    np.add.at(dx, index, want[2])
    close(got[0], want[0])
    close(got[2], dx)
    assert lstm(table, index=index)[0].tobytes() == lstm(table[index])[0].tobytes()
    _, _, tape = lstm.forward(table, index=index)
    assert lstm.backward(tape, dy, need_dx=False)[0] is None
    message = "lstm: index must be integers, got dtype float64"
    raised(lambda: lstm.forward(table, index=index / 1), TypeError, message)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_the_index_may_be_of_any_integers_and_layout(index, kind):
    gru, table = fastrnn.GRU(I, H, seed=0), floats(U, I)
    want = gru(table, index=index)[0]
    assert gru(table, index=index.astype(kind))[0].tobytes() == want.tobytes()
    assert gru(table, index=np.asfortranarray(index.astype(kind)))[0].tobytes() == want.tobytes()
    assert (
        gru(np.asfortranarray(table), index=np.repeat(index, 2, 1).astype(kind)[:, ::2])[0].tobytes() == want.tobytes()
    )


def test_a_later_change_of_the_index_changes_nothing(index):
    lstm, table, dy = fastrnn.LSTM(I, H, seed=0), floats(U, I), floats(T, B, H)
    want = gradients(lstm, table, dy, index=index)[2]
    given = index.astype(np.int32)  # which would need no copy
    _, _, tape = lstm.forward(table, index=given)
    given[...] = 0
    assert lstm.backward(tape, dy)[0].tobytes() == want.tobytes()


def test_rows_that_nothing_reads_have_no_gradient(index):
    lstm, dy = fastrnn.LSTM(I, H, seed=0), floats(T, B, H)
    dx = gradients(lstm, floats(U + 3, I), dy, index=index)[2]
    assert not dx[U:].any()
    assert dx[:U].any(axis=1).all()
    lengths = [0] * B
    y, _, tape = lstm.forward(floats(U, I), index=index, lengths=lengths)
    dx, _ = lstm.backward(tape, np.ones_like(y))
    assert not dx.any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_nothing_reads_may_be_anything(index, value):
    lstm, dy = fastrnn.LSTM(I, H, seed=0), floats(T, B, H)
    table = floats(U + 2, I)
    clean = gradients(lstm, table, dy, index=index)
    table[U:] = value
    got = gradients(lstm, table, dy, index=index)
    assert got[0].tobytes() == clean[0].tobytes()
    assert got[2].tobytes() == clean[2].tobytes()
    for name, grad in clean[4].items():
        assert got[4][name].tobytes() == grad.tobytes(), name
    lstm.parameters["weight_ih_l0"][0, 0] = value
    assert not gradients(lstm, table, dy, index=index)[2][U:].any()


def test_an_x_that_cannot_be_allocated(monkeypatch):
    lstm, x = fastrnn.LSTM(I, 64), np.broadcast_to(F4(0), (400_000, I))
    monkeypatch.setattr(spec, "_memory_limit", lambda: 1 << 26)
    message = r"a call with x of U=400000, index of T=1, B=1, input_size=4 cannot be allocated: results need \d+ bytes"
    with pytest.raises(ValueError, match=f"^lstm: {message}, available are 67108864$"):
        lstm(x, index=np.zeros((1, 1), int))
    monkeypatch.setattr(spec, "_memory_limit", lambda: sys.maxsize)
    many = np.broadcast_to(F4(0), (2**31, I))
    raised(
        lambda: lstm(many, index=np.zeros(1, int)),
        ValueError,
        "lstm: x must have at most U=2147483647 rows, got 2147483648",
    )


def test_without_the_gradient_of_x(index):
    lstm, table, dy = fastrnn.LSTM(I, H, seed=0), floats(U, I), floats(T, B, H)
    want = gradients(lstm, table, dy, index=index)[4]
    lstm.zero_grad()
    _, _, tape = lstm.forward(table, index=index)
    assert lstm.backward(tape, dy, need_dx=False)[0] is None
    for name, grad in want.items():
        assert lstm.grads[name].tobytes() == grad.tobytes()


@pytest.mark.parametrize(("steps", "batch", "rows"), [(0, 3, 0), (4, 0, 0), (0, 3, 2), (0, 0, 0)])
def test_no_steps_or_no_rows(steps, batch, rows):
    lstm = fastrnn.LSTM(I, H, seed=0)
    lstm.grads["weight_ih_l0"][...] = 1
    y, _, tape = lstm.forward(floats(rows, I), index=np.zeros((steps, batch), int))
    dx, _ = lstm.backward(tape, np.ones_like(y))
    assert y.shape == (steps, batch, H)
    assert dx.shape == (rows, I)
    assert not dx.any()
    assert (lstm.grads["weight_ih_l0"] == 1).all()


ERRORS = [
    (
        lambda m, i: m(floats(T, B, I), index=i),
        ValueError,
        "lstm: x must have shape (U, input_size=4) with index, got (6, 3, 4)",
    ),
    (
        lambda m, i: m(floats(U, I + 1), index=i),
        ValueError,
        "lstm: x must have shape (U, input_size=4) with index, got (5, 5)",
    ),
    (
        lambda m, i: m(floats(U, I).astype(float), index=i),
        TypeError,
        "lstm: x must have dtype float32, got float64",
    ),
    (
        lambda m, i: m(floats(U, I), index=i + 2),
        ValueError,
        "lstm: index must be at least 0 and below U=5, the rows of x, got 6 at t=0, b=0",
    ),
    (
        lambda m, i: m(floats(U, I), index=np.array([0, 1, -1])),
        ValueError,
        "lstm: index must be at least 0 and below U=5, the rows of x, got -1 at t=2",
    ),
    (
        lambda m, i: m(floats(U, I), index=np.array([[0], [-1]]), lengths=[1]),  # past a row's end, too
        ValueError,
        "lstm: index must be at least 0 and below U=5, the rows of x, got -1 at t=1, b=0",
    ),
    (
        lambda m, i: m(floats(0, I), index=0 * i),
        ValueError,
        "lstm: index must be at least 0 and below U=0, the rows of x, got 0 at t=0, b=0",
    ),
    (
        lambda m, i: m(floats(U, I), index=np.array([[2**40]])),
        ValueError,
        f"lstm: index must be at least 0 and below U=5, the rows of x, got {2**40} at t=0, b=0",
    ),
    (
        lambda m, i: m(floats(U, I), index=i[None]),
        ValueError,
        "lstm: index must have shape (T, B) or, without a batch, (T,), got (1, 6, 3)",
    ),
    (
        lambda m, i: fastrnn.GRU(I, H, batch_first=True)(floats(U, I), index=np.array(1)),
        ValueError,
        "gru: index must have shape (B, T) or, without a batch, (T,), got ()",
    ),
    (lambda m, i: m(floats(U, I), index=i / 1), TypeError, "lstm: index must be integers, got dtype float64"),
    (lambda m, i: m(floats(U, I), index=i > 1), TypeError, "lstm: index must be integers, got dtype bool"),
    (lambda m, i: m(floats(U, I), index=[[1]]), TypeError, "lstm: index must be an array of integers, got list"),
    (
        lambda m, i: m(floats(U, I), index=i.view(Tagged)),
        TypeError,
        "lstm: index must be an array of integers, got Tagged; pass numpy.asarray(...) of it",
    ),
    (
        lambda m, i: m(floats(U, I), index=i.astype(np.dtype(np.int32).newbyteorder())),
        TypeError,
        f"lstm: index must have native byte order, got dtype {BIG.replace('f', 'i')!r}",
    ),
    (
        lambda m, i: m(floats(U, I), index=i, resets=np.zeros((B, T), bool)),
        ValueError,
        "lstm: resets must have shape (T=6, B=3), got (3, 6)",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), params(ERRORS))
def test_errors(index, call, error, message):
    index[0, 0] = 4
    lstm = fastrnn.LSTM(I, H, seed=0)
    raised(lambda: call(lstm, index), error, message)
    raised(lambda: call(lstm.forward, index), error, message)


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("symbols", "ids", "rows"),
    [
        (5, np.arange(10) % 5, 5),  # all of a small vocabulary
        (6, np.arange(8) % 2, 2),  # those that there are, of a larger one
        (99, np.arange(8) % 7, None),  # nearly all different
    ],
)
def test_embeddings_are_read_once_where_that_pays(symbols, ids, rows):
    embed = Embedding(symbols, 3, np.dtype("float64"), np.random.default_rng(0))
    ids = ids.astype(np.int32).reshape(2, -1)
    read = embed.read(ids, make_stack("gru", 3, 4))
    assert ("index" in read.options) == (rows is not None)
    x = read.x if rows is None else read.x[read.options["index"]]
    np.testing.assert_array_equal(x, embed.forward(ids))
    assert len(read.x) == (rows or len(ids))

    dx = np.random.default_rng(1).standard_normal(read.x.shape)
    embed.read_backward(read, dx)
    want = np.zeros_like(embed.parameters["weight"])
    np.add.at(want, read.ids, dx)
    np.testing.assert_array_equal(embed.grads["weight"], want)


def test_dropout_and_skips_need_a_vector_for_each_step():
    embed, ids = Embedding(2, 4, np.dtype("float32"), np.random.default_rng(0)), np.zeros((8, 1), np.int32)
    rng, plain, residual = np.random.default_rng(0), make_stack("gru", 4, 4), make_stack("gru", 4, 4, skip=True)
    assert not embed.read(ids, plain, Dropout(0.5), rng).options
    assert not embed.read(ids, residual).options
    assert embed.read(ids, plain, Dropout(0.5)).options
    assert embed.read(ids, plain, Dropout(0.0), rng).options


@pytest.mark.parametrize("make", [LanguageModel, SequenceTagger, Seq2Seq])
@pytest.mark.parametrize("cell", CELLS)
def test_models_learn_the_same_in_both_ways(monkeypatch, make, cell):
    def run():
        model = make(level="char", cell=cell, embedding=7, hidden=19, layers=2, dtype="float64", seed=1)
        text = "what goes in once comes out often. " * 8
        data = text if make is LanguageModel else (["abba", "ba"] * 9, ["X Y Y X", "Y X"] * 9)
        options = {"bptt": 9} if make is LanguageModel else {}
        history = model.fit(data, epochs=2, batch_size=4, progress=False, **options)
        if make is LanguageModel:
            texts.append(model.generate("what goes in once", max_new_tokens=20, temperature=0))
        return model, [record["loss"] for record in history]

    texts: list[str] = []
    model, losses = run()
    monkeypatch.setattr("fastrnn.layers._Recurrent._takes_index", False)
    plain, its = run()
    np.testing.assert_allclose(losses, its, rtol=1e-9)
    for name, weight in model.state_dict().items():
        assert largest(weight - plain.state_dict()[name]) < 1e-9, name
    assert len(set(texts)) <= 1
