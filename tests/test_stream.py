"""Streams: steps equal to the layer's, state, reset, select."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from layering import B, H, I, T, cells, in_threads, make, normal, pair, random_state


@cells
@pytest.mark.parametrize("batch", [0, 1, B])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_stream_equals_the_layer(cell, batch, dtype):
    layer = make(cell, 2, dtype=dtype, **({"proj_size": 3} if cell == "lstm" else {}))
    x, state = normal(T, batch, I, dtype=dtype), random_state(layer, batch)
    y, state_n = layer(x, state)
    stream = layer.stream(batch_size=batch)
    stream.state = state
    atol = 1e-6 if dtype == "float32" else 1e-14
    out = np.empty_like(y[0])
    for t in range(T):
        if t % 2:
            assert stream.step(x[t], out=out) is out
            y_t = out
        else:
            y_t = stream.step(np.asfortranarray(x[t]))
        assert y_t.shape == (batch, y.shape[2])
        assert y_t.dtype == dtype
        assert_allclose(y_t, y[t], atol=atol)
    assert isinstance(stream.state, tuple) == (cell == "lstm")
    for got, expected in zip(pair(stream.state), pair(state_n), strict=True):
        assert_allclose(got, expected, atol=atol)


def test_a_stream_starts_at_zero_with_one_row():
    layer, x = make("lstm"), normal(1, I)
    stream = layer.stream()
    assert stream.batch_size == 1
    assert not any(s.any() for s in stream.state)
    assert_allclose(stream.step(x), layer(x[None])[0][0], atol=1e-14)


def test_a_stream_is_a_snapshot_of_the_weights():
    layer, x = make("gru"), normal(B, I)
    stream, again = layer.stream(B), layer.stream(B)
    expected = stream.step(x)
    for a in layer.parameters.values():
        a[...] = 0
    assert_array_equal(again.step(x), expected)
    assert not layer.stream(B).step(x).any()


def test_a_streams_state_is_copied_both_ways():
    layer = make("lstm")
    stream, state = layer.stream(B), random_state(layer, B)
    stream.state = state
    read = stream.state
    for a in (*state, *read):
        a[...] = 7
    assert not any((s == 7).any() for s in stream.state)
    stream.state = (state[0], None)
    assert (stream.state[0] == 7).all()
    assert not stream.state[1].any()
    stream.state = None
    assert not any(s.any() for s in stream.state)


@cells
@pytest.mark.parametrize("rows", [[0, 2], np.array([2, 0], np.int8), (2, 0, 2), [], None], ids=str)
def test_reset_of_a_stream(cell, rows):
    layer = make(cell, 2)
    stream, state = layer.stream(B), random_state(layer, B)
    stream.state = state
    stream.reset(rows)
    expected = [s.copy() for s in pair(state)]
    for s in expected:
        s[:, slice(None) if rows is None else np.array(rows, int)] = 0
    for got, want in zip(pair(stream.state), expected, strict=True):
        assert_array_equal(got, want)


@cells
@pytest.mark.parametrize("rows", [[2, 0], [1, 1, 1, 0, 2], [0, 1, 2], [], np.array([2], np.uint8)], ids=str)
def test_select_of_a_stream(cell, rows):
    layer = make(cell, 2)
    stream, state = layer.stream(B), random_state(layer, B)
    stream.state = state
    stream.select(rows)
    rows = np.array(rows, int)
    assert stream.batch_size == len(rows)
    selected = [s[:, rows] for s in pair(state)]
    for got, want in zip(pair(stream.state), selected, strict=True):
        assert_array_equal(got, want)
    x = normal(len(rows), I)
    y, _ = layer(x[None], tuple(selected) if cell == "lstm" else selected[0])
    assert_allclose(stream.step(x), y[0], atol=1e-14)


def test_a_stream_outlives_its_layer():
    stream = make("lstm").stream(B)
    assert stream.step(normal(B, I)).shape == (B, H)
    assert repr(stream) == "<Stream of lstm (4, 5), batch_size=3>"


def test_a_stream_survives_misuse_from_two_threads():
    layer = make("lstm")
    stream, x = layer.stream(B), normal(B, I)

    def work(i):
        for _ in range(200):
            if i:
                stream.select([0, 1, 2])
                stream.reset([1])
            else:
                assert stream.step(x).shape == (B, H)

    assert in_threads(2, work) == [None, None]


def test_selects_of_two_threads_leave_a_stream_in_order():
    layer = make("gru")
    stream = layer.stream(B)

    def work(i):
        for _ in range(200):
            stream.select([0] * (i + 2))

    assert in_threads(2, work) == [None, None]
    batch = stream.batch_size
    assert batch in (2, 3)
    assert stream.step(normal(batch, I)).shape == (batch, H)
    assert stream.state.shape == (1, batch, H)
