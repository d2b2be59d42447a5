"""Batches of like lengths: what every epoch has, what differs between epochs, what a run that goes on needs."""

import copy
import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from errors import params, raised
from fastrnn.models.buckets import Buckets, Examples

LENGTHS = np.random.default_rng(0).integers(0, 12, 100)
limits = {"batch_size": st.integers(1, 10), "max_tokens": st.none() | st.integers(1, 60)}


def buckets_of(lengths=LENGTHS, *, batch_size=8, max_tokens=40, seed=1):
    return Buckets(lengths, batch_size=batch_size, max_tokens=max_tokens, seed=seed)


def epoch_of(buckets, epoch):
    return [buckets.rows(epoch, index).tolist() for index in range(len(buckets))]


def cut(lengths, batch_size, max_tokens):
    """The lengths in each batch, from the shortest on, one example at a time."""
    batches = []
    for length in sorted(lengths):
        batch = [*batches[-1], length] if batches else []
        if not batch or len(batch) > batch_size or (max_tokens is not None and len(batch) * length > max_tokens):
            batches.append([length])
        else:
            batches[-1] = batch
    return batches


@given(lengths=st.lists(st.integers(0, 30) | st.sampled_from([0, 5]), min_size=1, max_size=60), **limits)
@example(lengths=[0] * 9, batch_size=4, max_tokens=1)
@example(lengths=[0, 0, 0, 7, 7], batch_size=100, max_tokens=2)
@example(lengths=[2**31 - 1] * 5, batch_size=4, max_tokens=2**33)
@example(lengths=[3, 1, 2], batch_size=2**62, max_tokens=2**62)
@example(lengths=[3, 1, 2], batch_size=1, max_tokens=None)
def test_every_epoch(lengths, batch_size, max_tokens):
    buckets = buckets_of(lengths, batch_size=batch_size, max_tokens=max_tokens)
    expected = cut(lengths, batch_size, max_tokens)
    assert len(buckets) == len(expected)
    for epoch in (0, 1, 7):
        batches = epoch_of(buckets, epoch)
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        assert sorted([lengths[row] for row in batch] for batch in batches) == sorted(expected)
        for batch in batches:
            longest = max(lengths[row] for row in batch)
            assert 1 <= len(batch) <= batch_size
            assert max_tokens is None or len(batch) == 1 or len(batch) * longest <= max_tokens


def test_same_bits_for_the_same_seed_and_epoch():
    """Whatever was asked for before, and for a seed in either form."""
    seed = np.random.SeedSequence(1)
    forward, other = buckets_of(), buckets_of(seed=seed)
    first = [epoch_of(forward, epoch) for epoch in range(4)]
    for epoch in (2, 0, 3, 3, 1):
        assert epoch_of(other, epoch) == epoch_of(buckets_of(), epoch) == first[epoch]
    for index in range(len(other)):  # between epochs
        for epoch in (3, 1):
            assert other.rows(epoch, index).tolist() == first[epoch][index]
    assert seed.n_children_spawned == 0


def test_a_child_of_a_seed_sequence_is_a_seed_of_its_own():
    parent = np.random.SeedSequence(1)
    children = parent.spawn(2)
    orders = [epoch_of(buckets_of(seed=seed), 0) for seed in (parent, *children)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert epoch_of(buckets_of(seed=copy.deepcopy(children[1])), 0) == orders[2]
    pooled = np.random.SeedSequence(1, pool_size=8)
    assert epoch_of(buckets_of(seed=pooled), 0) != orders[0]


def test_epochs_and_seeds_differ():
    """In the order of the batches, and in what examples of the same length are in one."""
    epochs = [epoch_of(buckets_of(seed=seed), epoch) for seed in (1, 2) for epoch in (0, 1)]
    for i, one in enumerate(epochs):
        for other in epochs[:i]:
            assert [LENGTHS[batch].tolist() for batch in one] != [LENGTHS[batch].tolist() for batch in other]
            assert sorted(map(sorted, one)) != sorted(map(sorted, other))


def test_ties_and_batches_are_drawn_evenly():
    """Of 3 equal examples, 2 a batch: each is the single one in a third of the epochs, which comes first in half."""
    buckets, epochs = buckets_of([5, 5, 5], batch_size=2, max_tokens=None), 2000
    single = np.zeros(3)
    first = 0
    for epoch in range(epochs):
        batches = epoch_of(buckets, epoch)
        single[next(batch[0] for batch in batches if len(batch) == 1)] += 1
        first += len(batches[0]) == 1
    for count, p in (*((count, 1 / 3) for count in single), (first, 1 / 2)):
        assert abs(count - epochs * p) < 5 * np.sqrt(epochs * p * (1 - p))  # five standard deviations


def test_rows_are_a_copy():
    buckets = buckets_of()
    rows = buckets.rows(0, 3)
    assert rows.dtype == np.int64
    expected = rows.copy()
    rows[:] = 0
    assert_array_equal(buckets.rows(0, 3), expected)


def test_lengths_are_a_copy():
    lengths = LENGTHS.copy()
    buckets = buckets_of(lengths)
    lengths[:] = 0
    assert epoch_of(buckets, 0) == epoch_of(buckets_of(), 0)


# -- examples ----------------------------------------------------------------------------------------------------------


def examples_of(tokens=LENGTHS + 1, **options):
    options = {"batch_size": 8, "max_tokens": 40, "seed": 1, "fingerprint": [100, 7], "what": "train pairs"} | options
    return Examples(lambda rows: {"rows": rows.tolist()}, LENGTHS, tokens, **options)


def test_batches():
    examples, buckets = examples_of(), buckets_of()
    for epoch in (0, 2):
        before = 0
        for position in range(examples.length):
            rows = buckets.rows(epoch, position)
            tokens = sum(LENGTHS[row] + 1 for row in rows)
            assert examples.batch(epoch, position) == {"rows": rows.tolist()}
            assert examples.tokens_before(epoch, position) == before
            assert examples.count(epoch, position) == tokens
            before += tokens
        assert examples.tokens_before(epoch, examples.length) == before == sum(LENGTHS + 1)


def test_what_a_run_is_told_apart_by():
    examples = examples_of()
    assert (examples.length, examples.stride) == (len(buckets_of()), 1)
    assert (examples.fingerprint, examples.what) == ([100, 7], "train pairs")
    assert examples.options == {"batch_size": 8, "max_tokens": 40}
    options = examples_of(batch_size=np.int64(8), max_tokens=None, extra_options={"smoothing": 0.1}).options
    assert json.dumps(options) == '{"batch_size": 8, "max_tokens": null, "smoothing": 0.1}'


@pytest.mark.parametrize(
    ("call", "error", "message"),
    params(
        [
            (lambda: buckets_of([]), ValueError, "Buckets: lengths must have at least 1 example, got 0"),
            (lambda: buckets_of(LENGTHS / 2), TypeError, "Buckets: lengths must be integers, got dtype float64"),
            (
                lambda: buckets_of([3, -1]),
                ValueError,
                "Buckets: lengths must be between 0 and 2^31-1, got -1 at index 1",
            ),
            (
                lambda: buckets_of(LENGTHS[None]),
                ValueError,
                "Buckets: lengths must have one dimension, got shape (1, 100)",
            ),
            (lambda: buckets_of(batch_size=0), ValueError, "Buckets: batch_size must be an integer >= 1, got 0"),
            (lambda: buckets_of(batch_size=2.0), TypeError, "Buckets: batch_size must be an integer >= 1, got 2.0"),
            (lambda: buckets_of(max_tokens=0), ValueError, "Buckets: max_tokens must be an integer >= 1, got 0"),
            (lambda: buckets_of(seed=-1), ValueError, "Buckets: seed must be an integer >= 0, got -1"),
            (lambda: buckets_of(seed=None), TypeError, "Buckets: seed must be an integer >= 0, got None"),
            (lambda: buckets_of().rows(-1, 0), ValueError, "Buckets.rows: epoch must be an integer >= 0, got -1"),
            (
                lambda: buckets_of([1, 2], batch_size=1).rows(0, 2),
                ValueError,
                "Buckets.rows: index must be an integer from 0 to 1, got 2",
            ),
            (
                lambda: examples_of(tokens=[1, 2]),
                ValueError,
                "Examples: tokens must have one number for each of the 100 lengths, got 2",
            ),
            (
                lambda: examples_of(tokens=LENGTHS - 20),
                ValueError,
                f"Examples: tokens must be between 0 and 2^31-1, got {LENGTHS[0] - 20} at index 0",
            ),
            (
                lambda: examples_of(batch_size=100, max_tokens=None).tokens_before(0, 2),
                ValueError,
                "Examples.tokens_before: position must be an integer from 0 to 1, got 2",
            ),
        ]
    ),
)
def test_refusals(call, error, message):
    raised(call, error, message)
