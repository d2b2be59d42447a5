"""NgramModel: every smoothing against counts in dicts, sums to 1, state, refusals."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from errors import params, raised
from fastrnn.models import NgramModel

SMOOTHINGS = ("kneser_ney", "add_k", "stupid_backoff")
K, ALPHA = 0.3, 0.7
EPS = np.finfo(np.float64).eps
TEXTS = {  # name: (ids, V)
    "random": (np.random.default_rng(0).integers(0, 5, 300), 6),
    "skewed": (np.random.default_rng(1).geometric(0.35, 2000).clip(max=12) - 1, 12),
    "repeated": (np.tile([0, 1, 2, 1], 30), 4),
    "one id": (np.zeros(20, np.int64), 1),
    "one id of two": (np.ones(20, np.int32), 2),
    "single token": ([2], 3),
    "two tokens": ([1, 0], 3),
    "as long as order 3": ([1, 0, 1], 2),
}


def fitted(ids, vocab_size, order, smoothing):
    return NgramModel(order, smoothing, k=K, alpha=ALPHA).fit(ids, vocab_size)


class Reference:
    """The definitions, word by word, with tuples of ids and dicts."""

    def __init__(self, ids, vocab_size, order, smoothing):
        ids = [int(i) for i in ids]
        self.vocab_size, self.order, self.smoothing = vocab_size, order, smoothing
        grams = {n: [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)] for n in range(1, order + 1)}
        self.counts = {n: Counter(grams[n]) for n in grams}
        if smoothing == "kneser_ney":
            for n in range(1, order):
                before = defaultdict(set)
                for i, gram in enumerate(grams[n]):
                    before[gram].add(ids[i - 1] if i else "start")
                self.counts[n] = Counter({gram: len(tokens) for gram, tokens in before.items()})
        self.followers = defaultdict(dict)  # context -> token -> count
        for counts in self.counts.values():
            for gram, count in counts.items():
                self.followers[gram[:-1]][gram[-1]] = count
        self.discounts = {n: self.discount(Counter(counts.values())) for n, counts in self.counts.items()}

    @staticmethod
    def discount(n):
        if min(n[1], n[2], n[3], n[4]) > 0:
            y = n[1] / (n[1] + 2 * n[2])
            d = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
            if min(d) > 0:
                return d
        return [0.75] * 3

    def score(self, context, token):
        context = tuple(context[max(len(context) - self.order + 1, 0) :])
        followers = self.followers.get(context, {})
        count, total = followers.get(token, 0), sum(followers.values())
        if self.smoothing == "add_k":
            return (count + K) / (total + K * self.vocab_size)
        lower = self.score(context[1:], token) if context else 1 / self.vocab_size
        if self.smoothing == "stupid_backoff":
            return count / total if count else ALPHA * lower
        if not total:
            return lower
        d = self.discounts[len(context) + 1]
        left = sum(d[min(c, 3) - 1] for c in followers.values()) / total
        return (count - d[min(count, 3) - 1] if count else 0) / total + left * lower


def contexts_of(ids, vocab_size, order):
    """Contexts seen, partly seen, unseen, empty, and longer than any that counts."""
    rng = np.random.default_rng(7)
    drawn = [rng.integers(0, vocab_size, n) for n in range(order + 2) for _ in range(3)]
    starts = rng.integers(0, len(ids), 4)
    return [*drawn, *(np.asarray(ids[i : i + order - 1]) for i in starts), np.asarray(ids)]


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", range(1, 6))
@pytest.mark.parametrize("name", TEXTS)
def test_against_dicts(name, order, smoothing):
    ids, vocab_size = TEXTS[name]
    model, reference = fitted(ids, vocab_size, order, smoothing), Reference(ids, vocab_size, order, smoothing)
    assert model.entries == tuple(len(reference.counts[n]) for n in range(1, order + 1))
    # A few roundings for each order, of values at most 1 that are multiplied and added.
    rtol = 16 * order * EPS
    for context in contexts_of(ids, vocab_size, order):
        context = [int(i) for i in context]
        got = model.distribution(context)
        assert_allclose(got, [reference.score(context, token) for token in range(vocab_size)], rtol=rtol)
        if model.normalized:
            assert abs(got.sum() - 1) <= 16 * order * vocab_size * EPS
    other = [int(i) for i in np.random.default_rng(3).integers(0, vocab_size, 60)]
    for text in (ids, other, other[:1], []):
        expected = [math.log(reference.score(list(text[:i]), int(text[i]))) for i in range(1, len(text))]
        got = model.log_probs(text)
        assert (got.dtype, got.shape) == (np.float64, (len(expected),))
        assert_allclose(got, expected, rtol=rtol, atol=rtol)


def test_kneser_ney_counts_contexts_and_not_tokens():
    # 0 follows only 1, but often; 2 follows many tokens, each once: after an unseen context 2 is the likelier.
    ids = [1, 0] * 20 + [3, 2, 4, 2, 5, 2, 6, 2]
    model = NgramModel(2).fit(ids, 8)
    unseen = model.distribution([7])
    assert unseen[2] > unseen[0]
    unigrams = NgramModel(1).fit(ids, 8).distribution([7])
    assert unigrams[0] > unigrams[2]


def test_discounts_are_estimated_where_a_text_allows_it():
    discounts = [Reference(*TEXTS[name], 3, "kneser_ney").discounts.values() for name in ("skewed", "repeated")]
    assert any(d != [0.75] * 3 for d in discounts[0])
    assert all(d == [0.75] * 3 for d in discounts[1])


def test_unseen():
    model = NgramModel(3).fit([0, 1, 2, 0, 1, 3], 5)
    # Unigrams: 4 is new. Bigrams of the text: 01 12 24 40; trigrams: 012 124 240.
    assert model.unseen([0, 1, 2, 4, 0]) == (1 / 5, 2 / 4, 2 / 3)
    assert model.unseen([0, 1, 2, 0, 1, 3]) == (0.0, 0.0, 0.0)
    first, *others = model.unseen([4])
    assert first == 1.0
    assert np.isnan(others).all()
    assert np.isnan(model.unseen([])).all()


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.lists(st.integers(0, 3), max_size=12),
    st.integers(1, 5),
    st.sampled_from(SMOOTHINGS),
)
def test_properties(train, text, order, smoothing):
    model = fitted(train, 4, order, smoothing)
    log_probs = model.log_probs(text)
    distributions = [model.distribution(text[:i]) for i in range(len(text))]
    for i, distribution in enumerate(distributions):
        assert (distribution > 0).all()
        if model.normalized:
            assert abs(distribution.sum() - 1) <= 64 * order * EPS
        if i:
            assert log_probs[i - 1] == pytest.approx(math.log(distribution[text[i]]), rel=8 * EPS, abs=8 * EPS)

    again = fitted(np.array(train, np.uint8), 4, order, smoothing)
    config, arrays = model.state()
    loaded = NgramModel.from_state(json.loads(json.dumps(config)), {name: a.copy() for name, a in arrays.items()})
    for other in (again, loaded):
        assert repr(other) == repr(model)
        assert (other.entries, other.nbytes, other.vocab_size) == (model.entries, model.nbytes, 4)
        assert_array_equal(other.log_probs(text), log_probs)
        assert other.state()[0] == config
        for name, array in other.state()[1].items():
            assert_array_equal(array, arrays[name])
    # The n-grams come back from their numbers: the text's own grams are all known, in every order.
    assert all(share == 0.0 for share in model.unseen(train) if not math.isnan(share))


def test_fit_starts_anew():
    model = NgramModel(3).fit([0, 1, 2], 3).fit([1, 0, 1, 1], 2)
    assert model.vocab_size == 2
    assert_array_equal(model.log_probs([1, 1, 0]), NgramModel(3).fit([1, 0, 1, 1], 2).log_probs([1, 1, 0]))


def test_large_vocabulary_and_ids_of_any_integer_type():
    ids = np.array([2**31 - 2, 5, 2**31 - 2, 5, 0], np.uint64)
    model = NgramModel(3).fit(ids, 2**31 - 1)
    small = NgramModel(3).fit([2, 1, 2, 1, 0], 3)
    assert model.entries == small.entries
    assert model.unseen(ids[::-1]) == small.unseen([0, 1, 2, 1, 2])


def test_bytes_count_what_is_stored():
    model = NgramModel(3).fit(np.random.default_rng(0).integers(0, 9, 400), 9)
    _, arrays = model.state()
    for n, size in enumerate(model.nbytes, 1):
        assert size > arrays[f"keys_{n}"].nbytes + arrays[f"counts_{n}"].nbytes > 0


FITTED = NgramModel(2).fit([0, 1, 1], 2)
CONFIG, ARRAYS = FITTED.state()
INT8 = np.zeros(3, np.int8)
MANY = np.broadcast_to(np.int8(0), (2**31,))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    params(
        [
            (lambda: NgramModel(0), ValueError, "NgramModel: order must be an integer >= 1, got 0"),
            (lambda: NgramModel(2.0), TypeError, "NgramModel: order must be an integer >= 1, got 2.0"),
            (
                lambda: NgramModel(2, "laplace"),
                ValueError,
                "NgramModel: smoothing must be one of 'add_k', 'stupid_backoff', 'kneser_ney', got 'laplace'",
            ),
            (lambda: NgramModel(k=0.0), ValueError, "NgramModel: k must be a finite number > 0, got 0.0"),
            (lambda: NgramModel(alpha=0), ValueError, "NgramModel: alpha must be above 0 and at most 1, got 0"),
            (lambda: NgramModel(alpha=1.5), ValueError, "NgramModel: alpha must be a number between 0 and 1, got 1.5"),
            (
                lambda: NgramModel().fit([0], 0),
                ValueError,
                "NgramModel.fit: vocab_size must be an integer from 1 to 2147483647, got 0",
            ),
            (
                lambda: NgramModel().fit([], 2),
                ValueError,
                "NgramModel.fit: ids must have from 1 to 2147483647 elements, got 0",
            ),
            (
                lambda: NgramModel().fit(MANY, 2),
                ValueError,
                "NgramModel.fit: ids must have from 1 to 2147483647 elements, got 2147483648",
            ),
            (
                lambda: NgramModel().fit([0, 2], 2),
                ValueError,
                "NgramModel.fit: ids must lie from 0 to vocab_size - 1 = 1, got 2",
            ),
            (
                lambda: NgramModel().fit([0, -1], 2),
                ValueError,
                "NgramModel.fit: ids must lie from 0 to vocab_size - 1 = 1, got -1",
            ),
            (lambda: NgramModel().fit([0.0], 2), TypeError, "NgramModel.fit: ids must be integers, got float64"),
            (lambda: NgramModel().fit([True], 2), TypeError, "NgramModel.fit: ids must be integers, got bool"),
            (lambda: NgramModel().fit([[0]], 2), ValueError, "NgramModel.fit: ids must have shape (T,), got (1, 1)"),
            (
                lambda: FITTED.log_probs([2]),
                ValueError,
                "NgramModel.log_probs: ids must lie from 0 to vocab_size - 1 = 1, got 2",
            ),
            (
                lambda: FITTED.distribution([9, 0]),
                ValueError,
                "NgramModel.distribution: context must lie from 0 to vocab_size - 1 = 1, got 9",
            ),
            (lambda: FITTED.unseen(0), ValueError, "NgramModel.unseen: ids must have shape (T,), got ()"),
            (
                lambda: NgramModel().log_probs([0]),
                RuntimeError,
                "NgramModel.log_probs: nothing is counted yet: call fit first",
            ),
            (lambda: NgramModel().state(), RuntimeError, "NgramModel.state: nothing is counted yet: call fit first"),
            (
                lambda: NgramModel.from_state({"order": 2}, ARRAYS),
                ValueError,
                "NgramModel.from_state: config must have the keys "
                "['alpha', 'k', 'order', 'smoothing', 'vocab_size'], got ['order']",
            ),
            (
                lambda: NgramModel.from_state(CONFIG, {}),
                ValueError,
                "NgramModel.from_state: keys_1 must be an array int64 (entries,), got NoneType",
            ),
            (
                lambda: NgramModel.from_state(CONFIG, ARRAYS | {"counts_2": INT8}),
                ValueError,
                "NgramModel.from_state: counts_2 must be an array int32 (entries,), got int8 (3,)",
            ),
            (
                lambda: NgramModel.from_state(CONFIG, ARRAYS | {"counts_2": ARRAYS["counts_2"][:1]}),
                ValueError,
                "NgramModel.from_state: counts_2 must have the 2 elements of keys_2, got 1",
            ),
            (
                lambda: NgramModel.from_state(CONFIG, ARRAYS | {"keys_2": ARRAYS["keys_2"][::-1]}),
                ValueError,
                "NgramModel.from_state: keys_2 must ascend from 0 to 3 at most, each once",
            ),
            (
                lambda: NgramModel.from_state(CONFIG, ARRAYS | {"keys_2": ARRAYS["keys_2"] + 1}),
                ValueError,
                "NgramModel.from_state: keys_2 must ascend from 0 to 3 at most, each once",
            ),
            (
                lambda: NgramModel.from_state(CONFIG, ARRAYS | {"counts_1": ARRAYS["counts_1"] * 0}),
                ValueError,
                "NgramModel.from_state: counts_1 must be at least 1, got 0",
            ),
        ]
    ),
)
def test_refusals(call, error, message):
    raised(call, error, message)


def test_a_failed_fit_changes_nothing():
    model = NgramModel(2).fit([0, 1, 1], 2)
    with pytest.raises(ValueError, match="ids must lie"):
        model.fit([0, 5], 3)
    assert_array_equal(model.log_probs([0, 1, 1]), FITTED.log_probs([0, 1, 1]))
