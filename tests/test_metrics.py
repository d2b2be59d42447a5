"""Metrics of predicted sentences against their definitions, word by word."""

import math
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from errors import params, raised
from fastrnn.models.metrics import METRICS, bleu, chrf, edit_distance, exact, score, wer

TOLERANCE = 100 * np.finfo(np.float64).eps  # of a few dozen operations, some of them exp and log
WORDS = ["the", "cat", "sat", "on", "a", "mat", "."]
tokens = st.lists(st.sampled_from("abc"), max_size=9)
corpora = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=6)


def random_lines(count, least, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(least, 15))) for _ in range(count)]


def grams(line, n):
    return Counter(tuple(line[i : i + n]) for i in range(len(line) - n + 1))


def table_distance(a, b):
    """The table of Wagner and Fischer, cell by cell."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        above, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (one != other)))
    return row[-1]


# -- edit distance and word errors -------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(a=tokens, b=tokens)
@example(a=[], b=[])
@example(a=[], b=["a", "b"])
@example(a=["a", "b"], b=[])
def test_distance_against_the_table(a, b):
    assert edit_distance(a, b) == edit_distance(b, a) == table_distance(a, b)
    assert edit_distance(a, a) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_distance_of_long_sequences(size):
    """Longer than a machine word, of few symbols and of many; of tokens of any kind."""
    rng = np.random.default_rng(size)
    for _ in range(10):
        a, b = (rng.integers(0, size, rng.integers(0, 140)) for _ in range(2))
        expected = table_distance(a.tolist(), b.tolist())
        assert edit_distance(a, b) == edit_distance(tuple(map(str, a)), [str(token) for token in b]) == expected
        changed = a.copy()
        changed[::7] = size  # another token
        assert edit_distance(a, changed) == len(a[::7])


@given(corpus=corpora)
def test_word_error_rate(corpus):
    hypotheses, references = map(list, zip(*corpus, strict=True))
    length = sum(len(reference) for reference in references)
    if not length:
        message = f"wer: references must have at least 1 token, got 0 in {len(references)} lines"
        raised(lambda: wer(hypotheses, references), ValueError, message)
        return
    assert wer(hypotheses, references) == sum(table_distance(a, b) for a, b in corpus) / length
    assert wer(references, references) == 0


def test_word_error_rate_above_one():
    assert wer([["a", "b", "c"], []], [["d"], []]) == 3


# -- exact -------------------------------------------------------------------------------------------------------------


@given(corpus=st.lists(st.tuples(*[st.sampled_from("abcd")] * 3), min_size=1, max_size=12))
def test_exact(corpus):
    hypotheses, references, sources = zip(*corpus, strict=True)
    right = 0
    for source in set(sources):
        rows = [i for i, other in enumerate(sources) if other == source]
        right += any(references[i] == hypotheses[rows[0]] for i in rows)
    assert exact(hypotheses, references, sources) == right / len(set(sources))


def test_exact_takes_alternatives_once_and_the_first_hypothesis():
    assert exact(["x", "x", "x", "y"], ["u", "v", "x", "z"], ["1", "1", "1", "2"]) == 0.5
    assert exact(["x", "u"], ["u", "u"], ["1", "1"]) == 0
    assert exact(["u", "x"], ["v", "u"], ["1", "1"]) == 1


# -- BLEU and chrF -----------------------------------------------------------------------------------------------------


def bleu_by_definition(hypotheses, references):
    pairs = [(one.split(), other.split()) for one, other in zip(hypotheses, references, strict=True)]
    precisions = []
    for n in (1, 2, 3, 4):
        found = sum(sum((grams(one, n) & grams(other, n)).values()) for one, other in pairs)
        precisions.append(found / sum(sum(grams(one, n).values()) for one, _ in pairs))
    c, r = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    return 100 * min(1, math.exp(1 - r / c)) * math.prod(precisions) ** 0.25


def chrf_by_definition(hypotheses, references):
    pairs = [("".join(one.split()), "".join(other.split())) for one, other in zip(hypotheses, references, strict=True)]
    precision = recall = 0.0
    for n in range(1, 7):
        found = sum(sum((grams(one, n) & grams(other, n)).values()) for one, other in pairs)
        # Of what is compared with no n-gram at all, nothing counts.
        precision += found / sum(sum(grams(one, n).values()) for one, other in pairs if len(other) >= n) / 6
        recall += found / sum(sum(grams(other, n).values()) for _, other in pairs) / 6
    return 100 * 5 * precision * recall / (4 * precision + recall)


@pytest.mark.parametrize(("metric", "definition"), [(bleu, bleu_by_definition), (chrf, chrf_by_definition)])
@pytest.mark.parametrize(("least", "count"), [(1, 200), (8, 40)])
def test_sacrebleu_is_called_as_defined(metric, definition, least, count):
    """Hypotheses as long as their references, shorter (a penalty) and longer ones."""
    pytest.importorskip("sacrebleu")
    references = random_lines(count, least, 1)
    hypotheses = [line.replace("the", "a") for line in references]
    for lines in (hypotheses, [line.rpartition(" ")[0] for line in hypotheses], [line + " ." for line in hypotheses]):
        got = metric(lines, references)
        assert 0 < got < 100
        assert got == pytest.approx(definition(lines, references), rel=TOLERANCE)
    assert metric(tuple(references), references) == pytest.approx(100, rel=TOLERANCE)
    assert metric(references, references) <= 100


@pytest.mark.parametrize("metric", [bleu, chrf])
def test_nothing_in_common(metric):
    pytest.importorskip("sacrebleu")
    assert metric(["", ""], ["a b c d e", "f"]) == 0
    assert metric(["x y z", ""], ["a b c d e", "f"]) == 0


def test_bleu_takes_words_as_they_are(caplog):
    """No tokenisation of its own, and no word about full stops that stand alone."""
    pytest.importorskip("sacrebleu")
    lines = ["a b c d e ."] * 200
    assert bleu([line.replace(" .", ".") for line in lines], lines) < bleu(lines, lines)
    assert not caplog.records


@pytest.mark.parametrize("metric", [bleu, chrf])
def test_without_the_library(metric, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    message = f"{metric.__name__}: sacrebleu is not installed: pip install 'fastrnn[text]'"
    raised(lambda: metric(["a"], ["a"]), RuntimeError, message)
    raised(lambda: score(metric.__name__, ["a"], ["a"], ["a"], str.split), RuntimeError, message)


# -- all ---------------------------------------------------------------------------------------------------------------


def test_score_is_each_metric():
    hypotheses, references = ["a b a b", "c d e", "c d"], ["a b a b", "c d", "c d e"]
    sources = ["1", "2", "2"]
    assert score("exact", hypotheses, references, sources, str.split) == exact(hypotheses, references, sources) == 1
    assert score("wer", hypotheses, references, sources, str.split) == 2 / 9
    assert score("wer", hypotheses, references, sources, list) == 4 / 15
    pytest.importorskip("sacrebleu")
    assert score("bleu", hypotheses, references, sources, str.split) == bleu(hypotheses, references) > 0
    assert score("chrf", hypotheses, references, sources, str.split) == chrf(hypotheses, references) > 0


@pytest.mark.parametrize("metric", METRICS)
def test_better_is_better(metric):
    if metric in ("bleu", "chrf"):
        pytest.importorskip("sacrebleu")
    references = random_lines(20, 5, 2)
    better, worse = (
        score(metric, [*references[:n], *["x"] * (20 - n)], references, references, str.split) for n in (15, 5)
    )
    assert (better > worse) is METRICS[metric]
    assert better != worse


@pytest.mark.parametrize(
    ("call", "error", "message"),
    params(
        [
            *(
                (
                    lambda metric=metric: metric(["a", "b"], ["a"]),
                    ValueError,
                    f"{metric.__name__}: hypotheses and references must be equally many, at least 1, got 2 and 1",
                )
                for metric in (bleu, chrf, wer)
            ),
            *(
                (
                    lambda metric=metric: metric([], []),
                    ValueError,
                    f"{metric.__name__}: hypotheses and references must be equally many, at least 1, got 0 and 0",
                )
                for metric in (bleu, chrf, wer)
            ),
            (
                lambda: exact(["a"], ["a"], ["a", "b"]),
                ValueError,
                "exact: hypotheses, references and sources must be equally many, at least 1, got 1, 1 and 2",
            ),
            (
                lambda: exact([], [], []),
                ValueError,
                "exact: hypotheses, references and sources must be equally many, at least 1, got 0, 0 and 0",
            ),
            (
                lambda: score("bleu", ["a"], ["a"], [], str.split),
                ValueError,
                "score: hypotheses, references and sources must be equally many, at least 1, got 1, 1 and 0",
            ),
            (
                lambda: score("rouge", ["a"], ["a"], ["a"], str.split),
                ValueError,
                "score: metric must be one of 'bleu', 'chrf', 'wer', 'exact', got 'rouge'",
            ),
            (
                lambda: score("wer", "a b", ["a", "b", "c"], ["a", "b", "c"], str.split),
                TypeError,
                "score: hypotheses must be a list, got text: 'a b'",
            ),
            (lambda: bleu(["abc"], "a"), TypeError, "bleu: references must be a list, got text: 'a'"),
            (lambda: wer([[]], [[]]), ValueError, "wer: references must have at least 1 token, got 0 in 1 lines"),
        ]
    ),
)
def test_refusals(call, error, message):
    raised(call, error, message)
