"""Search over the outputs of many sentences, against all outputs that there are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fastrnn.models.decoding import log_softmax
from fastrnn.models.search import Ranking, search

END = 1


class Table:
    """Rows whose next token depends on all before it, by numbers drawn for each sentence and prefix."""

    def __init__(self, symbols, sentences, seed=0, attention=0):
        self.symbols, self.seed, self.attention = symbols, seed, attention
        self.rows = [(sentence, ()) for sentence in range(sentences)]
        self.weights = None
        self.steps, self.end = 0, END

    def logits(self, sentence, prefix):
        return np.random.default_rng([self.seed, sentence, *prefix]).normal(0, 1.5, self.symbols).astype(np.float32)

    def read(self, sentence, prefix):
        weights = np.random.default_rng([self.seed + 1, sentence, *prefix]).random(self.attention)
        return weights / weights.sum()

    def step(self, tokens):
        self.steps += 1
        first = all(prefix == () for _, prefix in self.rows)
        self.rows = [
            (sentence, (*prefix, int(token))) for (sentence, prefix), token in zip(self.rows, tokens, strict=True)
        ]
        assert not first or (tokens == self.end).all()
        if self.attention:
            self.weights = np.array([self.read(*row) for row in self.rows])
        return np.array([self.logits(*row) for row in self.rows])

    def best(self, tokens, count, never):
        log_p = log_softmax(self.step(tokens))
        log_p[:, never] = -np.inf
        ids = np.argsort(-log_p, axis=1, kind="stable")[:, :count]
        return ids, np.take_along_axis(log_p, ids, axis=1)

    def select(self, rows):
        self.rows = [self.rows[row] for row in rows]
        sentences = [sentence for sentence, _ in self.rows]
        assert sentences == sorted(sentences)
        assert len({sentences.count(each) for each in sentences}) <= 1

    def log_p(self, sentence, tokens):
        """Of the tokens, in which an end stands last or not at all, whatever others may not be written."""
        total, prefix = 0.0, (END,)
        for token in tokens:
            logits = self.logits(sentence, prefix).astype(np.float64)
            total += logits[token] - np.log(np.exp(logits).sum())
            prefix = (*prefix, token)
        return total

    def outputs(self, sentence, limit, never=()):
        """All that there are: (tokens with their end, log p)."""
        others = [token for token in range(self.symbols) if token != END and token not in never]
        for length in range(limit):
            for tokens in itertools.product(others, repeat=length):
                yield (*tokens, END), self.log_p(sentence, (*tokens, END))
        for tokens in itertools.product(others, repeat=limit):
            yield tokens, self.log_p(sentence, tokens)


def find(table, limits, end=END, **options):
    return search("t", table, end, limits, np.full(len(limits), table.attention or 0), **options)


def without_end(tokens):
    return [token for token in tokens if token != END]


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_as_wide_as_all_finds_the_best(seed, penalty):
    limits, symbols = np.array([3, 1, 2]), 4
    found = find(Table(symbols, 3, seed), limits, beam=200, n_best=3, ranking=Ranking(length_penalty=penalty))
    for sentence, limit in enumerate(limits):
        table = Table(symbols, 3, seed)
        ranked = sorted(
            ((log_p / len(tokens) ** penalty, tokens, log_p) for tokens, log_p in table.outputs(sentence, limit)),
            key=lambda each: -each[0],
        )
        assert [each.tokens.tolist() for each in found[sentence]] == [without_end(each[1]) for each in ranked[:3]]
        for each, (score, _, log_p) in zip(found[sentence], ranked, strict=False):
            assert each.score == pytest.approx(score, rel=1e-5)
            assert each.log_p == pytest.approx(log_p, rel=1e-5)
            assert each.attention is None


def plain_beam(table, sentence, limit, beam, n_best, ranking, never):
    """One sentence, all its continuations sorted at each length: (tokens, score), best first."""
    live, finished = [((), 0.0)], []
    for length in range(1, limit + 1):
        found = []
        for tokens, log_p in live:
            logits = table.logits(sentence, (END, *tokens)).astype(np.float64)
            each = log_p + logits - np.log(np.exp(logits).sum())
            found += [((*tokens, token), each[token]) for token in range(table.symbols) if token not in never]
        found.sort(key=lambda one: -one[1])
        going_on = [one for one in found if one[0][-1] != END][:beam]
        if length == limit:  # those that end there, and those that are cut off, down to the last of these
            ended = found[: found.index(going_on[-1]) + 1] if len(going_on) == beam else found
        else:
            ended = [one for one in found[:beam] if one[0][-1] == END]
        for tokens, log_p in ended:
            written = without_end(tokens)
            read = [table.read(sentence, (END, *written[:i])) for i in range(len(written))] if table.attention else None
            score = log_p / length**ranking.length_penalty
            if ranking.coverage_penalty and read is not None:
                paid = np.sum(read, axis=0) if read else np.zeros(table.attention)
                score += ranking.coverage_penalty * np.log(np.clip(paid, 1e-30, 1.0)).sum()
            finished.append((written, score))
        finished.sort(key=lambda one: -one[1])
        if not going_on or len(finished) >= beam:
            break
        best = going_on[0][1] / limit**ranking.length_penalty
        if len(finished) >= n_best and finished[n_best - 1][1] >= best:
            break
        live = going_on
    return finished[:n_best]


@pytest.mark.parametrize("seed", range(40))
def test_a_beam_is_as_the_rules_say(seed):
    rng = np.random.default_rng([99, seed])
    symbols, sentences, beam, attention = rng.integers((2, 1, 1, 0), (7, 6, 7, 4)).tolist()
    n_best, limits = int(rng.integers(1, beam + 1)), rng.integers(0, 8, sentences)
    others = [token for token in range(symbols) if token != END]
    never = rng.choice(others, int(rng.integers(0, len(others))), replace=False)
    ranking = Ranking(float(rng.choice([0.0, 0.7, 1.0])), float(rng.choice([0.0, 0.4])))

    def table():
        return Table(symbols, sentences, seed, attention)

    found = find(table(), limits, beam=beam, n_best=n_best, ranking=ranking, never=never)
    for sentence, (limit, got) in enumerate(zip(limits, found, strict=True)):
        if beam == 1:  # nothing goes on beside the one that ends
            want = [(each.tokens.tolist(), each.score) for each in got]
            assert len(got) == min(limit, 1)
        else:
            want = plain_beam(table(), sentence, limit, beam, n_best, ranking, never)
        assert [each.tokens.tolist() for each in got] == [tokens for tokens, _ in want]
        assert [each.score for each in got] == pytest.approx([score for _, score in want], rel=1e-4)
        assert len({tuple(each.tokens) for each in got}) == len(got) <= n_best


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_many_sentences_are_as_each_alone(beam):
    rng = np.random.default_rng(beam)
    limits = rng.integers(1, 9, 12)
    together = find(Table(7, 12), limits, beam=beam, n_best=beam)
    for sentence, limit in enumerate(limits):
        table = Table(7, 12)
        table.rows = [(sentence, ())]
        (alone,) = find(table, np.array([limit]), beam=beam, n_best=beam)
        assert [each.tokens.tolist() for each in alone] == [each.tokens.tolist() for each in together[sentence]]
        assert [each.score for each in alone] == pytest.approx([each.score for each in together[sentence]], rel=1e-6)
        assert len(alone) <= beam
        assert len({tuple(each.tokens) for each in alone}) == len(alone)
        assert all(len(each.tokens) <= limit for each in alone)


@pytest.mark.parametrize("never", [(), (0,), (0, 3)])
def test_greedy(never):
    limits = np.array([6, 2, 9, 4])
    found = find(Table(5, 4), limits, never=np.array(never, int))
    for sentence, limit in enumerate(limits):
        table, tokens = Table(5, 4), []
        while len(tokens) < limit and (not tokens or tokens[-1] != END):
            logits = table.logits(sentence, (END, *tokens))
            logits[list(never)] = -np.inf
            tokens.append(int(logits.argmax()))
        (only,) = found[sentence]
        assert only.tokens.tolist() == without_end(tokens)
        assert only.log_p == pytest.approx(table.log_p(sentence, tokens), rel=1e-5)
        assert only.score == pytest.approx(only.log_p / len(tokens), rel=1e-6)


def test_attention_and_coverage():
    ranking, limits = Ranking(length_penalty=0.5, coverage_penalty=0.3), np.array([4, 3])
    found = find(Table(5, 2, attention=3), limits, beam=3, n_best=3, ranking=ranking)
    for sentence, each in enumerate(found):
        for one in each:
            tokens, table = one.tokens.tolist(), Table(5, 2, attention=3)
            want = [table.read(sentence, (END, *tokens[:i])) for i in range(len(tokens))]
            np.testing.assert_allclose(one.attention, np.reshape(want, (-1, 3)))
            length = len(tokens) + (
                len(tokens) < limits[sentence]
                or not math.isclose(table.log_p(sentence, tokens), one.log_p, rel_tol=1e-5)
            )
            coverage = np.log(np.minimum(one.attention.sum(axis=0), 1.0)).sum() if tokens else 3 * math.log(1e-30)
            assert one.score == pytest.approx(one.log_p / length**0.5 + 0.3 * coverage, rel=1e-5)
        scores = [one.score for one in each]
        assert scores == sorted(scores, reverse=True)


def test_draws_in_the_place_of_a_search():
    drawn = []

    def draw(logits):
        drawn.append(len(logits))
        return np.full(len(logits), 2 if len(drawn) < 3 else END)

    found = find(Table(4, 2), np.array([9, 2]), draw=draw)
    assert [each[0].tokens.tolist() for each in found] == [[2, 2], [2, 2]]
    assert drawn == [2, 2, 1]
    table = Table(4, 2)
    assert found[0][0].log_p == pytest.approx(table.log_p(0, (2, 2, END)), rel=1e-5)
    assert found[1][0].log_p == pytest.approx(table.log_p(1, (2, 2)), rel=1e-5)


def test_a_search_ends_when_nothing_better_can_come():
    class Sure(Table):
        def logits(self, sentence, prefix):
            return np.array([0.0, 9.0, 0.0, 0.0], np.float32) if len(prefix) > 1 else super().logits(sentence, prefix)

    table = Sure(4, 1)
    find(table, np.array([500]), beam=2, ranking=Ranking(length_penalty=0.0))
    assert table.steps < 6


def test_tokens_that_cannot_be_are_not_written():
    """Where fewer tokens than the beam has places can go on, there are fewer outputs."""

    class Narrow(Table):
        def logits(self, sentence, prefix):
            logits = super().logits(sentence, prefix)
            logits[3:] = -np.inf
            return logits

    found = find(Narrow(6, 2), np.array([2, 3]), beam=60, n_best=60)
    assert [len(each) for each in found] == [7, 15]
    for each in found:
        assert all(set(one.tokens) <= {0, 2} for one in each)
        assert np.exp([one.log_p for one in each]).sum() == pytest.approx(1.0, rel=1e-5)  # all that there are


def test_of_equal_tokens_the_first():
    class Equal(Table):
        def logits(self, sentence, prefix):
            return np.array([1.0, 3.0, 2.0, 2.0, 0.0], np.float32)

    for beam in (1, 2, 3):
        (found,) = find(Equal(5, 1), np.array([2]), beam=beam, n_best=beam)
        assert [each.tokens.tolist() for each in found] == [[], [2], [3]][:beam]


@pytest.mark.parametrize("beam", [1, 3])
def test_the_end_is_the_only_symbol(beam):
    table = Table(1, 3)
    table.end = 0
    table.logits = lambda sentence, prefix: np.zeros(1, np.float32)
    found = find(table, np.array([1, 5, 0]), end=0, beam=beam, n_best=beam)
    assert [[(len(one.tokens), one.log_p) for one in each] for each in found] == [[(0, 0.0)], [(0, 0.0)], []]


@pytest.mark.parametrize("penalty", [0.0, 0.4, 1.0])
def test_nothing_that_goes_on_ranks_above_its_bound(penalty):
    rng, ranking = np.random.default_rng(0), Ranking(penalty, 0.5)
    for limit in range(1, 9):
        log_p = -np.cumsum(rng.exponential(1.0, limit))
        for length in range(1, limit + 1):
            read = rng.dirichlet(np.ones(3), length)
            assert ranking.score(log_p[length - 1], length, read) <= ranking.bound(log_p[0], limit) + 1e-12
    assert ranking.score(-2.0, 4, None) == -2.0 / 4**penalty


def test_nothing_to_write():
    assert find(Table(4, 0), np.empty(0, np.int64)) == []
    assert find(Table(4, 2), np.array([0, 0])) == [[], []]
    found = find(Table(4, 3), np.array([2, 0, 2]), beam=2)
    assert [len(each) for each in found] == [1, 0, 1]


def test_weights_that_are_no_numbers():
    for value in (np.nan, np.inf, -np.inf):
        table = Table(4, 1)
        table.logits = lambda sentence, prefix, value=value: np.full(4, value, np.float32)
        with pytest.raises(FloatingPointError, match="t: the model's outputs are not finite; check its weights"):
            find(table, np.array([3]), beam=2)
