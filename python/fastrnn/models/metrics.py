"""How good predicted sentences are, each beside the one that was hoped for.

BLEU and chrF are those of sacreBLEU (``pip install 'fastrnn[text]'``); the others need nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from ..checks import check_choice

#: Whether higher is better, by name.
METRICS: dict[str, bool] = {"bleu": True, "chrf": True, "wer": False, "exact": True}


def score(
    metric: str,
    hypotheses: Sequence[str],
    references: Sequence[str],
    sources: Sequence[str],
    tokens_of: Callable[[str], Sequence[Hashable]],
) -> float:
    """One of ``METRICS`` by name.

    Args:
        metric: "bleu", "chrf", "wer" or "exact".
        hypotheses, references, sources: n >= 1 lines each: predicted, hoped for, and what they were predicted from.
        tokens_of: the tokens of a line, for "wer", and for "exact", where blanks between them do not count.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: "bleu" and "chrf" without sacrebleu.

    Example:
        >>> from fastrnn.models.metrics import score
        >>> score("wer", ["a cat sat"], ["the cat sat down"], ["x"], str.split)
        0.5
    """
    check_choice("score", "metric", metric, METRICS)
    _check_counts("score", hypotheses=hypotheses, references=references, sources=sources)
    if metric in ("exact", "wer"):
        written, right = ([tuple(tokens_of(line)) for line in lines] for lines in (hypotheses, references))
        return exact(written, right, sources) if metric == "exact" else wer(written, right)
    return {"bleu": bleu, "chrf": chrf}[metric](hypotheses, references)


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of all lines together, 0..100, with one reference each: of words and their runs of up to four.

    With p_n the share of the hypotheses' n-grams that their references have, c the words of all hypotheses and r those
    of all references::

        BLEU = 100 min(1, exp(1 - r / c)) (p_1 p_2 p_3 p_4) ** (1 / 4)

    In the place of a p_n that is 0 comes sacreBLEU's exponential smoothing; where no hypothesis has four words BLEU is
    0. Words are what whitespace separates: the lines are taken as tokenised. The figure depends on how they were: only
    those of the same tokenisation compare.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: the library sacrebleu is missing.

    Sources: Papineni, Roukos, Ward, Zhu, "BLEU: a method for automatic evaluation of machine translation", 2002; Post,
    "A call for clarity in reporting BLEU scores", 2018 (sacreBLEU).

    Example:
        >>> from fastrnn.models.metrics import bleu
        >>> round(bleu(["the cat sat on a mat ."], ["the cat sat on the mat ."]), 2)
        48.89
    """
    _check_counts("bleu", hypotheses=hypotheses, references=references)
    result = _sacrebleu("bleu").corpus_bleu(hypotheses, [references], tokenize="none", force=True)
    return min(100.0, result.score)  # rounding goes beyond


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """chrF2 of all lines together, 0..100, with one reference each: of characters and their runs of up to six.

    With P the mean over n of the share of the hypotheses' character n-grams that their references have, and R the mean
    share of the references' that their hypotheses have::

        chrF2 = 100 (1 + 2**2) P R / (2**2 P + R)

    Whitespace does not count.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: the library sacrebleu is missing.

    Source: Popović, "chrF: character n-gram F-score for automatic MT evaluation", 2015.

    Example:
        >>> from fastrnn.models.metrics import chrf
        >>> round(chrf(["the cat sat on a mat ."], ["the cat sat on the mat ."]), 2)
        65.8
    """
    _check_counts("chrf", hypotheses=hypotheses, references=references)
    return min(100.0, _sacrebleu("chrf").corpus_chrf(hypotheses, [references]).score)


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The Levenshtein distance: how many tokens must be put in, left out or replaced to make ``b`` of ``a``, at least.

    The table of the distances D(i, j) between the first i tokens of ``a`` and the first j of ``b`` is computed a column
    at a time: neighbours in it differ by 1 at most, and the signs of these differences are the bits of integers.

    Sources: Levenshtein, "Binary codes capable of correcting deletions, insertions and reversals", 1966; Myers, "A fast
    bit-vector algorithm for approximate string matching based on dynamic programming", 1999; Hyyrö, "A bit-vector
    algorithm for computing Levenshtein and Damerau edit distances", 2003.

    Example:
        >>> from fastrnn.models.metrics import edit_distance
        >>> edit_distance("kitten", "sitting")
        3
    """
    if not len(a):
        return len(b)
    ones = (1 << len(a)) - 1
    last = 1 << (len(a) - 1)
    places: dict[Hashable, int] = {}  # bit i: a[i] is that token
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    distance = len(a)  # D(len(a), j)
    up, down = ones, 0  # bit i: D(i + 1, j) - D(i, j) is +1, is -1
    for token in b:
        equal = places.get(token, 0)
        level = (((equal & up) + up) ^ up) | equal | down  # bit i: D(i + 1, j + 1) is D(i, j)
        right_up = (down | ~(level | up)) & ones  # bit i: D(i + 1, j + 1) - D(i + 1, j) is +1
        right_down = up & level  # is -1
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = right_up << 1 | 1  # now bit i: of row i; D(0, j) is j
        right_down <<= 1
        up = (right_down | ~(level | right_up)) & ones
        down = right_up & level & ones
    return distance


def wer(hypotheses: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]]) -> float:
    """The word error rate, a share (0.25 is 25 %): edit distances of all lines, divided by the references' tokens.

    It is above 1 where the hypotheses have much that the references have not.

    Args:
        hypotheses, references: n >= 1 sequences of tokens each; with characters as tokens it is the character error
            rate.

    Raises:
        TypeError, ValueError: naming the argument; also when the references have no token at all.

    Example:
        >>> from fastrnn.models.metrics import wer
        >>> wer([["a", "cat", "sat"], ["yes"]], [["the", "cat", "sat"], ["yes"]])
        0.25
    """
    _check_counts("wer", hypotheses=hypotheses, references=references)
    tokens = sum(map(len, references))
    if not tokens:
        raise ValueError(f"wer: references must have at least 1 token, got 0 in {len(references)} lines")
    return sum(map(edit_distance, hypotheses, references)) / tokens


def exact(hypotheses: Sequence[Hashable], references: Sequence[Hashable], sources: Sequence[Hashable]) -> float:
    """The share of distinct sources, 0..1, whose hypothesis is one of their references.

    Lines with the same source are alternatives, such as the pronunciations of a word, and count once. Their hypotheses
    are the same where a model maps source to hypothesis; if they differ, the first one counts.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> from fastrnn.models.metrics import exact
        >>> exact(["r E d", "r E d", "k { t"], ["r i: d", "r E d", "k A: t"], ["read", "read", "cat"])
        0.5
    """
    _check_counts("exact", hypotheses=hypotheses, references=references, sources=sources)
    first: dict[Hashable, Hashable] = {}
    right: dict[Hashable, set[Hashable]] = {}
    for hypothesis, reference, source in zip(hypotheses, references, sources, strict=True):
        first.setdefault(source, hypothesis)
        right.setdefault(source, set()).add(reference)
    return sum(first[source] in right[source] for source in first) / len(first)


def _check_counts(where: str, **lists: Any) -> None:
    for name, values in lists.items():
        if isinstance(values, str):  # a sequence, too, but of characters
            raise TypeError(f"{where}: {name} must be a list, got text: {values[:20]!r}")
    counts = [len(values) for values in lists.values()]
    if counts[0] == 0 or len(set(counts)) > 1:
        names, got = (f"{', '.join(rest)} and {last}" for *rest, last in (lists, map(str, counts)))
        raise ValueError(f"{where}: {names} must be equally many, at least 1, got {got}")


def _sacrebleu(where: str) -> Any:
    try:
        import sacrebleu
    except ImportError:
        raise RuntimeError(f"{where}: sacrebleu is not installed: pip install 'fastrnn[text]'") from None
    return sacrebleu
