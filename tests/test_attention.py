"""Attention against a plain loop, its gradients, and what stands past a row's end."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastrnn.models import attention
from fastrnn.models.attention import Attention

T, S, B = 4, 5, 3
LENGTHS = np.array([5, 1, 3])
EPS = np.finfo(np.float64).eps
kinds = pytest.mark.parametrize(
    ("kind", "query_size", "memory_size"), [("dot", 6, 6), ("general", 4, 6), ("additive", 4, 6)]
)


def drawn(query_size, memory_size, steps=T, seed=0):
    rng = np.random.default_rng(seed)
    memory = rng.standard_normal((S, B, memory_size))
    memory[np.arange(S)[:, None] >= LENGTHS] = 0.0  # as recurrent layers leave it
    return rng.standard_normal((steps, B, query_size)), memory


def score(attend, q, m):
    params = attend.parameters
    if attend.kind == "dot":
        return q @ m
    if attend.kind == "general":
        return q @ params["weight"] @ m
    return params["v"] @ np.tanh(params["weight_query"] @ q + params["weight"] @ m)


@kinds
def test_contexts_are_those_of_a_plain_loop(kind, query_size, memory_size):
    attend = Attention(kind, query_size, memory_size, np.dtype("float64"), np.random.default_rng(1))
    queries, memory = drawn(query_size, memory_size)
    contexts, tape = attend.forward(queries, attend.prepare(memory, LENGTHS))
    assert contexts.shape == (T, B, memory_size)
    for t in range(T):
        for b, length in enumerate(LENGTHS):
            powers = np.exp([score(attend, queries[t, b], memory[s, b]) for s in range(length)])
            weights = powers / powers.sum()
            assert_allclose(tape.weights[b, t, :length], weights, rtol=100 * EPS)
            assert_array_equal(tape.weights[b, t, length:], 0.0)
            assert_allclose(contexts[t, b], weights @ memory[:length, b], rtol=0, atol=100 * EPS)


@kinds
def test_what_stands_past_the_end_of_a_row(kind, query_size, memory_size):
    """It is read by nobody, to the bit, and gets no gradient; nor does a batch without rows."""
    attend = Attention(kind, query_size, memory_size, np.dtype("float32"), np.random.default_rng(1))
    queries, memory = (array.astype(np.float32) for array in drawn(query_size, memory_size))
    past = np.arange(S)[:, None] >= LENGTHS
    found = []
    for _ in range(2):
        prepared = attend.prepare(memory, LENGTHS)
        contexts, tape = attend.forward(queries, prepared)
        dprepared = prepared.zeros()
        attend.backward(tape, contexts, prepared, dprepared)
        assert_array_equal(dprepared.values[past.T], 0.0)
        assert_array_equal(dprepared.keys[past.T], 0.0)
        found.append([contexts, tape.weights, dprepared.values])
        memory[past] = 1e3
    for one, other in zip(*found, strict=True):
        assert_array_equal(one, other)
    none = attend.forward(queries[:, :0], attend.prepare(memory[:, :0], LENGTHS[:0]))[0]
    assert none.shape == (T, 0, memory_size)


@kinds
def test_initial_values(kind, query_size, memory_size):
    attend = Attention(kind, query_size, memory_size, np.dtype("float32"), np.random.default_rng(1))
    shapes = {"weight": (query_size, memory_size), "weight_query": (query_size, query_size), "v": (query_size,)}
    names = {"dot": [], "general": ["weight"], "additive": ["weight", "weight_query", "v"]}[kind]
    assert list(attend.parameters) == list(attend.grads) == names
    for name, array in attend.parameters.items():
        assert array.shape == shapes[name]
        assert array.dtype == np.float32
        assert 0.5 < np.abs(array).max() * shapes[name][-1] ** 0.5 <= 1.0
        assert not attend.grads[name].any()


@kinds
def test_gradients(kind, query_size, memory_size):
    """By finite differences along a random way for each array: queries, memory and parameters."""
    attend = Attention(kind, query_size, memory_size, np.dtype("float64"), np.random.default_rng(1))
    queries, memory = drawn(query_size, memory_size)
    rng = np.random.default_rng(2)
    slopes = rng.standard_normal((T, B, memory_size))

    def loss() -> float:
        return float((attend.forward(queries, attend.prepare(memory, LENGTHS))[0] * slopes).sum())

    prepared = attend.prepare(memory, LENGTHS)
    _, tape = attend.forward(queries, prepared)
    dprepared = prepared.zeros()
    dqueries = attend.backward(tape, slopes, prepared, dprepared)
    dmemory = attend.prepare_backward(prepared, dprepared)
    inside = (np.arange(S)[:, None] < LENGTHS)[:, :, None]
    arrays = {"queries": (queries, dqueries, 1.0), "memory": (memory, dmemory, inside)}
    arrays |= {name: (array, attend.grads[name], 1.0) for name, array in attend.parameters.items()}
    for name, (array, gradient, mask) in arrays.items():
        way, step, kept, losses = rng.standard_normal(array.shape) * mask, 1e-5, array.copy(), []
        for sign in (1.0, -1.0):
            array[...] = kept + sign * step * way
            losses.append(loss())
        array[...] = kept
        assert gradient.any(), name
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float((gradient * way).sum()), rel=1e-6), name


@kinds
def test_steps_one_at_a_time_add_up(kind, query_size, memory_size):
    """As with input feeding: one memory, several calls."""
    attend = Attention(kind, query_size, memory_size, np.dtype("float64"), np.random.default_rng(1))
    queries, memory = drawn(query_size, memory_size)
    slopes = np.random.default_rng(3).standard_normal((T, B, memory_size))
    found = []
    for cuts in ([slice(0, T)], [slice(t, t + 1) for t in range(T)]):
        attend.zero_grad()
        prepared = attend.prepare(memory, LENGTHS)
        dprepared = prepared.zeros()
        tapes = [attend.forward(queries[cut], prepared)[1] for cut in cuts]
        dqueries = [
            attend.backward(tape, slopes[cut], prepared, dprepared) for cut, tape in zip(cuts, tapes, strict=True)
        ]
        dmemory = attend.prepare_backward(prepared, dprepared)
        found.append([np.concatenate(dqueries), dmemory, *(grad.copy() for grad in attend.grads.values())])
    for whole, parts in zip(*found, strict=True):
        assert_allclose(parts, whole, rtol=0, atol=1e3 * EPS)


@pytest.mark.parametrize(("steps", "blocks"), [(0, B * T), (1, B * T), (3, B * 2), (T, B), (2 * T + 1, 2), (9 * T, 1)])
def test_additive_attention_in_blocks(monkeypatch, steps, blocks):
    """So many steps of all rows at a time, or fewer, are as all at once."""
    attend = Attention("additive", 4, 6, np.dtype("float64"), np.random.default_rng(1))
    queries, memory = drawn(4, 6)
    made, found = [], []
    monkeypatch.setattr(
        attention, "_tanh_of_sums", lambda *sums, real=attention._tanh_of_sums: made.append(real(*sums)) or made[-1]
    )
    for block in (attention._BLOCK, steps * S * 4):
        monkeypatch.setattr(attention, "_BLOCK", block)
        attend.zero_grad()
        made.clear()
        prepared = attend.prepare(memory, LENGTHS)
        contexts, tape = attend.forward(queries, prepared)
        dprepared = prepared.zeros()
        dqueries = attend.backward(tape, contexts, prepared, dprepared)
        dmemory = attend.prepare_backward(prepared, dprepared)
        found.append([contexts, dqueries, dmemory, *(grad.copy() for grad in attend.grads.values())])
    assert len(made) == 2 * blocks  # forward and back
    assert max(tanh.size for tanh in made) <= max(steps, 1) * S * 4
    for whole, parts in zip(*found, strict=True):
        assert_allclose(parts, whole, rtol=0, atol=1e3 * EPS)


def test_scores_of_any_size_and_single_precision():
    attend = Attention("dot", 6, 6, np.dtype("float32"), np.random.default_rng(1))
    queries, memory = (1e3 * array.astype(np.float32) for array in drawn(6, 6))
    contexts, tape = attend.forward(queries, attend.prepare(memory, LENGTHS))
    assert contexts.dtype == np.float32
    assert np.isfinite(contexts).all()
    assert_allclose(tape.weights.sum(axis=2), 1.0, rtol=S * np.finfo(np.float32).eps)


def test_rows_of_a_memory():
    attend = Attention("general", 4, 6, np.dtype("float64"), np.random.default_rng(1))
    queries, memory = drawn(4, 6)
    prepared, rows = attend.prepare(memory, LENGTHS), np.array([2, 0])
    contexts, _ = attend.read(queries.swapaxes(0, 1), prepared)
    assert_array_equal(attend.read(queries.swapaxes(0, 1)[rows], prepared[rows])[0], contexts[rows])


def test_dot_needs_one_size():
    with pytest.raises(ValueError, match="attention='dot' needs queries and memory of one size, got 4 and 6"):
        Attention("dot", 4, 6, np.dtype("float64"), np.random.default_rng(1))
