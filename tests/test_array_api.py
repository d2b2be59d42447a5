"""What models compute on arrays that are not NumPy's: on array-api-strict's, which allow the standard alone."""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import pytest

from fastrnn.models import array_api
from fastrnn.models.nn import Dropout, Embedding, Output

xp = pytest.importorskip("array_api_strict")
pytest.importorskip("array_api_compat")


class Strict:
    """``arrays.Arrays``, as far as models use it."""

    device = "strict"

    def current(self):
        return contextlib.nullcontext()

    def upload(self, array):
        return xp.asarray(array)

    def download(self, array):
        return np.asarray(array)

    def zeros(self, shape, dtype):
        return xp.zeros(shape, dtype=getattr(xp, np.dtype(dtype).name))

    def empty(self, shape, dtype, like=None):
        return xp.full(shape, float("nan"), dtype=dtype)

    def write(self, array, value):
        array[...] = value


STRICT = Strict()


def pair(make, *sizes, dtype="float32", **options):
    """The same layer on NumPy's arrays and on strict ones."""
    return [
        make(*sizes, np.dtype(dtype), np.random.default_rng(1), **options, **more) for more in ({}, {"arrays": STRICT})
    ]


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
def test_embedding(dtype, shape):
    ours, strict = pair(Embedding, 9, 5, dtype=dtype)
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 9, shape)
    assert_same(strict.forward(ids), ours.forward(ids))
    for _ in range(2):
        dy = rng.standard_normal((*shape, 5)).astype(dtype)
        ours.backward(ids, dy)
        strict.backward(ids, xp.asarray(dy))
    assert_same(strict.grads["weight"], ours.grads["weight"], ids.size + 1)
    strict.zero_written_rows()
    assert not np.asarray(strict.grads["weight"]).any()


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 13, 0])
@pytest.mark.parametrize("accumulate", [True, False])
def test_output(dtype, rows, accumulate):
    ours, strict = pair(Output, 6, 11, dtype=dtype)
    rng = np.random.default_rng(3)
    for layer, array in ((ours, np.array), (strict, xp.asarray)):
        layer.parameters["bias"][...] = array(np.linspace(-1, 40, 11, dtype=dtype))
    x = 50 * rng.standard_normal((rows, 6)).astype(dtype)  # logits so large that exp alone would overflow
    targets = rng.integers(-1, 11, rows).astype(np.int32)
    terms = 6 * 50
    assert_same(strict.logits(xp.asarray(x)), ours.logits(x), terms)
    assert_same(strict.nats(xp.asarray(x), targets), ours.nats(x, targets), terms)
    for _ in range(2):
        got, dx = strict.loss(xp.asarray(x), targets, 0.25, accumulate)
        nats, expected = ours.loss(x, targets, 0.25, accumulate)
        assert_same(got, nats, terms)
        assert_same(dx, expected, terms)
    for name, grad in ours.grads.items():
        assert_same(strict.grads[name], grad, terms * max(rows, 1))


def test_tied_output():
    (embedding, strict_embedding), rng = pair(Embedding, 9, 5), np.random.default_rng(4)
    ours = Output(5, 9, np.dtype("f4"), rng, tied=embedding)
    strict = Output(5, 9, np.dtype("f4"), rng, tied=strict_embedding, arrays=STRICT)
    x, targets = rng.standard_normal((4, 5), dtype=np.float32), np.array([1, 8, 1, 0], np.int32)
    ours.loss(x, targets, 1.0)
    strict.loss(xp.asarray(x), targets, 1.0)
    assert set(strict.parameters) == {"bias"}
    assert_same(strict_embedding.grads["weight"], embedding.grads["weight"], 20)


def test_dropout_drops_the_same_units():
    x = np.ones((20, 5), np.float32)
    y, mask = Dropout(0.4).forward(x, np.random.default_rng(0))
    got, got_mask = Dropout(0.4, STRICT).forward(xp.asarray(x), np.random.default_rng(0))
    assert_same(got, y)
    assert_same(Dropout.backward(got_mask, xp.asarray(x)), Dropout.backward(mask, x))


def test_without_array_api_compat(monkeypatch):
    monkeypatch.setitem(sys.modules, "array_api_compat", None)
    with pytest.raises(RuntimeError, match=r"models on a GPU need array-api-compat.*pip install 'fastrnn\[cuda\]'"):
        array_api.namespace(xp.asarray([1.0]))
