"""What models compute by the array API standard, which array-api-strict allows alone, against the kernels."""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import pytest

from fastrnn.models import LanguageModel, array_api
from fastrnn.models.nn import Dropout, Embedding, Output

pytest.importorskip("array_api_compat")


class Arrays:
    """``arrays.Arrays`` of a library, as far as models use it."""

    def __init__(self, name):
        self.xp = pytest.importorskip(name)

    def current(self):
        return contextlib.nullcontext()

    def upload(self, array):
        return self.xp.asarray(np.array(array))

    def download(self, array):
        return np.asarray(array)

    def zeros(self, shape, dtype):
        return self.xp.zeros(shape, dtype=getattr(self.xp, np.dtype(dtype).name))

    def empty(self, shape, dtype, like=None):
        return self.xp.full(shape, float("nan"), dtype=dtype)

    def write(self, array, value):
        array[...] = value


@pytest.fixture(params=["array_api_strict", "array_api_compat.numpy", "array_api_compat.torch"])
def arrays(request):
    return Arrays(request.param)


def pair(arrays, make, *sizes, dtype="float32"):
    """The same layer on the kernels and on these arrays."""
    return [make(*sizes, np.dtype(dtype), np.random.default_rng(1), **more) for more in ({}, {"arrays": arrays})]


def assert_same(got, expected, terms=1):
    """Up to the rounding of sums of so many terms."""
    got = np.asarray(got)
    assert got.dtype == expected.dtype
    bound = 4 * terms * np.finfo(expected.dtype).eps
    np.testing.assert_allclose(got, expected, rtol=bound, atol=bound * max(1.0, np.abs(expected).max(initial=0.0)))


@pytest.fixture(params=[1, 7, 2**25], ids="at most {} elements".format)
def _chunks(request, monkeypatch):
    monkeypatch.setattr(array_api, "_MOST_ELEMENTS", request.param)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(4, 6), (1, 1), (0, 3)])
def test_embedding(arrays, dtype, shape):
    ours, other = pair(arrays, Embedding, 9, 5, dtype=dtype)
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 9, shape)
    assert_same(other.forward(ids), ours.forward(ids))
    for _ in range(2):
        dy = rng.standard_normal((*shape, 5)).astype(dtype)
        ours.backward(ids, dy)
        other.backward(ids, arrays.upload(dy))
    assert_same(other.grads["weight"], ours.grads["weight"], ids.size + 1)
    other.zero_written_rows()
    assert not np.asarray(other.grads["weight"]).any()


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 13, 0])
@pytest.mark.parametrize("accumulate", [True, False])
def test_output(arrays, dtype, rows, accumulate):
    ours, other = pair(arrays, Output, 6, 11, dtype=dtype)
    rng = np.random.default_rng(3)
    for layer, array in ((ours, np.array), (other, arrays.upload)):
        layer.parameters["bias"][...] = array(np.linspace(-1, 40, 11, dtype=dtype))
    x = 50 * rng.standard_normal((rows, 6)).astype(dtype)  # logits so large that exp alone would overflow
    targets = rng.integers(-1, 11, rows).astype(np.int32)
    terms = 6 * 50
    assert_same(other.logits(arrays.upload(x)), ours.logits(x), terms)
    assert_same(other.nats(arrays.upload(x), targets), ours.nats(x, targets), terms)
    for _ in range(2):
        got, dx = other.loss(arrays.upload(x), targets, 0.25, accumulate)
        nats, expected = ours.loss(x, targets, 0.25, accumulate)
        assert_same(got, nats, terms)
        assert_same(dx, expected, terms)
    for name, grad in ours.grads.items():
        assert_same(other.grads[name], grad, terms * max(rows, 1))


def test_tied_output(arrays):
    (embedding, other_embedding), rng = pair(arrays, Embedding, 9, 5), np.random.default_rng(4)
    ours = Output(5, 9, np.dtype("f4"), rng, tied=embedding)
    other = Output(5, 9, np.dtype("f4"), rng, tied=other_embedding, arrays=arrays)
    x, targets = rng.standard_normal((4, 5), dtype=np.float32), np.array([1, 8, 1, 0], np.int32)
    ours.loss(x, targets, 1.0)
    other.loss(arrays.upload(x), targets, 1.0)
    assert set(other.parameters) == {"bias"}
    assert_same(other_embedding.grads["weight"], embedding.grads["weight"], 20)


def test_dropout_drops_the_same_units(arrays):
    x = np.ones((20, 5), np.float32)
    y, mask = Dropout(0.4).forward(x, np.random.default_rng(0))
    got, got_mask = Dropout(0.4, arrays).forward(arrays.upload(x), np.random.default_rng(0))
    assert_same(got, y)
    assert_same(Dropout.backward(got_mask, arrays.upload(x)), Dropout.backward(mask, x))


def test_without_array_api_compat(monkeypatch):
    monkeypatch.setitem(sys.modules, "array_api_compat", None)
    with pytest.raises(RuntimeError, match=r"models on a GPU need array-api-compat.*pip install 'fastrnn\[cuda\]'"):
        array_api.namespace(np.zeros(1))


class Between:
    """A layer on NumPy's arrays, for a model on others: they are copied at its border."""

    _takes_index = False

    def __init__(self, layer, arrays):
        self.layer, self.arrays = layer, arrays
        self.zero_grad = layer.zero_grad

    def __call__(self, x, state, **options):
        y, state = self.layer(np.asarray(x), state, **options)
        return self.arrays.upload(y), state

    def forward(self, x, state, **options):
        y, state, tape = self.layer.forward(np.asarray(x), state, **options)
        return self.arrays.upload(y), state, tape

    def backward(self, tape, dy):
        dx, dstate = self.layer.backward(tape, np.asarray(dy))
        return self.arrays.upload(dx), dstate


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("dropout", [0.0, [0.4, 0.0, 0.3]])
def test_language_model(arrays, tie, dropout):
    """All of it but the recurrent layer's own kernels: the loss, its gradients, and the evaluation of a text."""
    models = [
        LanguageModel(cell="gru", hidden=8, embedding=8, tie=tie, dropout=dropout, dtype="float64", seed=3)
        for _ in range(2)
    ]
    ours, other = models
    other._arrays = arrays
    for drop in (other._drop_embeddings, other._drop_outputs):
        drop._arrays = arrays
    for model in models:
        model.build("the quick brown fox")
    other.recurrent = Between(other.recurrent, arrays)
    symbols, states, rngs = len(ours.vocabulary), [None, None], [np.random.default_rng(5) for _ in models]
    ids = np.random.default_rng(4).integers(0, symbols, (2, 7, 3))
    for _ in range(2):
        losses = []
        for i, model in enumerate(models):
            loss, states[i] = model.loss_and_grads(*ids, states[i], rngs[i], accumulate=False)
            losses.append(loss)
        assert_same(losses[1], np.float64(losses[0]), 200)
        grads = [other.embed.grads, other.output.grads, other.recurrent.layer.grads]
        for got, expected in zip(grads, (ours.embed.grads, ours.output.grads, ours.recurrent.grads), strict=True):
            assert set(got) == set(expected)
            for name, grad in expected.items():
                assert_same(got[name], grad, 200)
    text = np.random.default_rng(6).integers(0, symbols, 50).astype(np.int32)
    for (got, valid), (nats, where) in zip(other._nats(text, 4), ours._nats(text, 4), strict=True):
        assert np.array_equal(valid, where)
        assert_same(got[valid], nats[where], 200)
