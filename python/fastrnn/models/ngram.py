"""Language models that count: n-grams of token ids with add-k, stupid backoff or Kneser-Ney smoothing.

The n-grams of a text form a tree. An n-gram is numbered by its place among the sorted keys of its order, and its key is
(number of its first n - 1 tokens) * V + last token: one int64, whatever n. The n-grams that continue a context hence
lie side by side, and a whole text is looked up by one binary search per order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import check_choice, check_probability, check_real, check_size

Ids = Sequence[int] | np.ndarray
_UNSEEN = (
    -1
)  # the number of an n-gram that training did not see; no key is made from it, because it makes them negative
_MOST_TOKENS = 2**31 - 1  # counts are int32


class NgramModel:
    """Predicts each token of a text from the ``order - 1`` tokens before it, by counting.

    With ``c(u w)`` how often token ``w`` followed the context ``u``, ``c(u)`` its sum over ``w``, ``u'`` the context
    without its first token, and ``p(w | nothing shorter) = 1 / V``::

        add_k            p(w | u) = (c(u w) + k) / (c(u) + k V)
        stupid_backoff   s(w | u) = c(u w) / c(u)  where c(u w) > 0,  else  alpha s(w | u')
        kneser_ney       p(w | u) = (a(u w) - D(a(u w))) / a(u) + g(u) p(w | u')

    In Kneser-Ney ``a`` is ``c`` for the longest contexts. For the shorter ones ``a(u w)`` is the number of different
    tokens before ``u w``, where the start of the text counts as a token. ``g(u)``, the sum of ``D(a(u w)) / a(u)`` over
    ``w``, makes the sum 1; a context never seen has ``g(u) = 1``. The discounts ``D(1)``, ``D(2)`` and ``D(3 or more)``
    come from the ``n_j`` n-grams of this order with ``a = j``: ``D(j) = j - (j + 1) Y n_(j+1) / n_j`` with ``Y = n_1 /
    (n_1 + 2 n_2)``; where that has no value above 0 (small texts), all three are 0.75.

    At the start of a text the context is what there is of it. ``stupid_backoff`` gives scores, not probabilities: they
    do not sum to 1, and no perplexity follows from them (``normalized`` is False).

    Args:
        order: length of the longest n-grams, context and token; an integer >= 1.
        smoothing: "kneser_ney" (interpolated, modified), "add_k" or "stupid_backoff".
        k: what add_k adds to every count, above 0.
        alpha: factor of stupid_backoff for each token dropped from the context, above 0 and at most 1.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: for a call that needs ``fit`` before it.

    Sources: Chen, Goodman, "An empirical study of smoothing techniques for language modeling", 1998; Brants, Popat, Xu,
    Och, Dean, "Large language models in machine translation", 2007.

    Example:
        >>> from fastrnn.models import NgramModel
        >>> model = NgramModel(order=3).fit([0, 1, 2, 0, 1, 2, 0, 1], vocab_size=4)
        >>> model.entries
        (3, 3, 3)
        >>> int(model.distribution([0, 1]).argmax())
        2
        >>> model.log_probs([0, 1, 2]).shape
        (2,)
    """

    def __init__(self, order: int = 5, smoothing: str = "kneser_ney", *, k: float = 0.01, alpha: float = 0.4) -> None:
        where = "NgramModel"
        self.order = check_size(where, "order", order)
        self.smoothing = check_choice(where, "smoothing", smoothing, SMOOTHINGS)
        self.k = check_real(where, "k", k, above=True)
        self.alpha = check_probability(where, "alpha", alpha)
        if self.alpha == 0.0:
            raise ValueError(f"{where}: alpha must be above 0 and at most 1, got {alpha!r}")
        self.vocab_size: int | None = None
        self._levels: list[_Level] = []
        self._unigrams: np.ndarray | None = None  # once needed: the distribution after no token

    def __repr__(self) -> str:
        return f"NgramModel(order={self.order}, smoothing={self.smoothing!r}, k={self.k}, alpha={self.alpha})"

    @property
    def normalized(self) -> bool:
        """Whether ``log_probs`` and ``distribution`` give probabilities that sum to 1."""
        return self.smoothing != "stupid_backoff"

    @property
    def entries(self) -> tuple[int, ...]:
        """Different n-grams seen in training, of orders 1, 2, ..."""
        return tuple(len(level.keys) for level in self._fitted("entries"))

    @property
    def nbytes(self) -> tuple[int, ...]:
        """Bytes in memory, of orders 1, 2, ..."""
        return tuple(level.nbytes for level in self._fitted("nbytes"))

    def fit(self, ids: Ids, vocab_size: int) -> NgramModel:
        """Count the n-grams of a text, in place of what was counted before; returns the model.

        Args:
            ids: at least one integer from 0 to ``vocab_size`` - 1, (T,).
            vocab_size: V, the number of ids that may occur, in training or later.
        """
        where = "NgramModel.fit"
        vocab_size = check_size(where, "vocab_size", vocab_size, high=_MOST_TOKENS)
        tokens = _checked_ids(where, "ids", ids, vocab_size, least=1)
        counted = _count(tokens, self.order, vocab_size, continuations=self.smoothing == "kneser_ney")
        self._set(vocab_size, counted)
        return self

    def log_probs(self, ids: Ids) -> np.ndarray:
        """Natural logarithms of p(token | up to ``order - 1`` tokens before it), float64 (T - 1,).

        ``ids`` (T,) are integers below ``vocab_size``; the first of them is only context.
        """
        levels = self._fitted("log_probs")
        tokens = self._checked("log_probs", "ids", ids)
        scores = np.full(len(tokens), 1 / self._vocabulary)
        for n, (contexts, grams) in enumerate(self._numbers(tokens)):
            scores[n:] = self._smooth(levels[n], contexts, grams, scores[n:])
        return np.log(scores[1:])

    def distribution(self, context: Ids) -> np.ndarray:
        """p(w | context) of every token w, float64 (V,).

        The last ``order - 1`` of the ids in ``context`` count; it may be empty.
        """
        levels = self._fitted("distribution")
        recent = self._checked("distribution", "context", context)
        recent = recent[max(len(recent) - self.order + 1, 0) :]
        if self._unigrams is None:
            self._unigrams = np.full(self._vocabulary, 1 / self._vocabulary)
            self._extend(self._unigrams, levels[0], 0)
        scores = self._unigrams.copy()
        contexts = (grams[-1] for _, grams in self._numbers(recent) if len(grams))
        for level, number in zip(levels[1:], contexts, strict=False):  # a short context reaches the first orders only
            self._extend(scores, level, number)
        return scores

    def unseen(self, ids: Ids) -> tuple[float, ...]:
        """Of the n-grams of a text, repeats included, the share never seen in training, for orders 1, 2, ...

        NaN for an order longer than the text.
        """
        self._fitted("unseen")
        tokens = self._checked("unseen", "ids", ids)
        return tuple(
            float(np.mean(grams == _UNSEEN)) if len(grams) else float("nan") for _, grams in self._numbers(tokens)
        )

    # -- on disk -------------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """All that ``from_state`` needs: a configuration fit for JSON, and arrays ``keys_n``, ``counts_n``.

        The arrays are the model's own: copy them before changing them.
        """
        levels = self._fitted("state")
        names = ("order", "smoothing", "k", "alpha", "vocab_size")
        arrays = {
            f"{name}_{n}": getattr(level, name) for n, level in enumerate(levels, 1) for name in ("keys", "counts")
        }
        return {name: getattr(self, name) for name in names}, arrays

    @classmethod
    def from_state(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> NgramModel:
        """The model of which ``state`` gave ``config`` and ``arrays``; a ValueError for anything it does not give."""
        where = "NgramModel.from_state"
        expected = {"order", "smoothing", "k", "alpha", "vocab_size"}
        if set(config) != expected:
            raise ValueError(f"{where}: config must have the keys {sorted(expected)}, got {sorted(config)}")
        model = cls(config["order"], config["smoothing"], k=config["k"], alpha=config["alpha"])
        vocab_size = check_size(where, "vocab_size", config["vocab_size"], high=_MOST_TOKENS)
        counted, contexts = [], 1
        for n in range(1, model.order + 1):
            keys, counts = (_checked_array(where, arrays, f"{name}_{n}", t) for name, t in _STORED.items())
            if len(keys) != len(counts):
                raise ValueError(
                    f"{where}: counts_{n} must have the {len(keys)} elements of keys_{n}, got {len(counts)}"
                )
            limit = contexts * vocab_size
            if len(keys) and (keys[0] < 0 or keys[-1] >= limit or (np.diff(keys) <= 0).any()):
                raise ValueError(f"{where}: keys_{n} must ascend from 0 to {limit - 1} at most, each once")
            if (counts < 1).any():
                raise ValueError(f"{where}: counts_{n} must be at least 1, got {counts.min()}")
            counted.append((keys, counts))
            contexts = len(keys)
        model._set(vocab_size, counted)
        return model

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _set(self, vocab_size: int, counted: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        sizes = [1, *(len(keys) for keys, _ in counted)]
        self._levels = [
            _Level.of(keys, counts, size, vocab_size) for (keys, counts), size in zip(counted, sizes[:-1], strict=True)
        ]
        self.vocab_size = vocab_size
        self._unigrams = None

    def _fitted(self, call: str) -> list[_Level]:
        if not self._levels:
            raise RuntimeError(f"NgramModel.{call}: nothing is counted yet: call fit first")
        return self._levels

    @property
    def _vocabulary(self) -> int:
        assert self.vocab_size is not None  # set together with the levels
        return self.vocab_size

    def _checked(self, call: str, name: str, ids: Ids) -> np.ndarray:
        return _checked_ids(f"NgramModel.{call}", name, ids, self._vocabulary)

    def _numbers(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For n = 1, 2, ...: the numbers of the contexts of ids[n - 1:] and of the n-grams that end there."""
        ending = np.zeros(len(ids) + 1, np.int64)  # the empty n-gram, before every id and after the last one
        for n, level in enumerate(self._levels):
            contexts = ending[:-1]
            ending = level.find(contexts * self._vocabulary + ids[n:])
            yield contexts, ending

    def _extend(self, scores: np.ndarray, level: _Level, number: int) -> None:
        """Scores of all tokens (V,), in place, from those with a context shorter by one than the one of this number."""
        tokens, grams = level.continuations(number, self._vocabulary)
        context = np.array([number])
        seen = self._smooth(level, context, grams, scores[tokens])
        scores[:] = self._smooth(level, context, np.array([_UNSEEN]), scores)
        scores[tokens] = seen

    def _smooth(self, level: _Level, contexts: np.ndarray, grams: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Scores from those with a context shorter by one."""
        return SMOOTHINGS[self.smoothing](self, level, contexts, grams, lower)


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order. E of them follow C contexts, which are the (n - 1)-grams."""

    keys: np.ndarray  # (E,) int64, ascending: context * V + token
    counts: np.ndarray  # (E,) int32, at least 1
    totals: np.ndarray  # (C,) float64: sum of a context's counts
    discounts: np.ndarray  # (4,): of counts 0, 1, 2 and above
    backoffs: np.ndarray  # (C,) float64: what the discounts leave of 1 to the shorter context

    @classmethod
    def of(cls, keys: np.ndarray, counts: np.ndarray, contexts: int, vocab_size: int) -> _Level:
        owner = keys // vocab_size
        discounts = _discounts(counts)
        totals = np.bincount(owner, counts, contexts)
        taken = np.bincount(owner, discounts[np.minimum(counts, 3)], contexts)
        backoffs = np.divide(taken, totals, out=np.ones(contexts), where=totals > 0)
        return cls(keys, counts, totals, discounts, backoffs)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in vars(self).values())

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The n-grams of these keys."""
        if not len(self.keys):
            return np.full(len(keys), _UNSEEN)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, _UNSEEN)

    def continuations(self, context: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that followed this context, and their n-grams."""
        first, last = np.searchsorted(self.keys, [context * vocab_size, (context + 1) * vocab_size])
        return self.keys[first:last] - context * vocab_size, np.arange(first, last)

    def counted(self, grams: np.ndarray) -> np.ndarray:
        return _taken(self.counts, grams, 0)

    def shares(self, counts: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """Counts over the totals of their contexts; 0 for a context that nothing followed, where all counts are 0."""
        return counts / np.maximum(_taken(self.totals, contexts, 0.0), 1.0)


def _count(ids: np.ndarray, order: int, vocab_size: int, continuations: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Keys and counts of every order; with ``continuations`` all but the last order count the tokens before them."""
    counted: list[tuple[np.ndarray, np.ndarray]] = []
    ending = np.zeros(len(ids) + 1, np.int64)  # number of the n-gram that ends at each token where one fits
    for n in range(order):
        keys, first, grams, counts = np.unique(
            ending[:-1] * vocab_size + ids[n:], return_index=True, return_inverse=True, return_counts=True
        )
        if continuations and n:
            # Each different n-gram brings its last n - 1 tokens one token that stands before them.
            before = np.bincount(ending[1:][first], minlength=len(counted[-1][0]))
            before[ending[:1]] += 1  # the start of the text
            counted[-1] = counted[-1][0], before.astype(np.int32)
        counted.append((keys, counts.astype(np.int32)))
        ending = grams
    return counted


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Modified Kneser-Ney's D of counts 0, 1, 2 and above."""
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    if n[1:5].all():
        y = n[1] / (n[1] + 2 * n[2])
        j = np.arange(1, 4)
        discounts = j - (j + 1) * y * n[2:5] / n[1:4]
        if (discounts > 0).all():
            return np.concatenate([[0.0], discounts])
    return np.array([0.0, 0.75, 0.75, 0.75])


def _add_k(model: NgramModel, level: _Level, contexts: np.ndarray, grams: np.ndarray, lower: np.ndarray) -> np.ndarray:
    del lower
    return (level.counted(grams) + model.k) / (_taken(level.totals, contexts, 0.0) + model.k * model._vocabulary)


def _stupid_backoff(
    model: NgramModel, level: _Level, contexts: np.ndarray, grams: np.ndarray, lower: np.ndarray
) -> np.ndarray:
    shares = level.shares(level.counted(grams), contexts)
    return np.where(shares > 0, shares, model.alpha * lower)


def _kneser_ney(
    model: NgramModel, level: _Level, contexts: np.ndarray, grams: np.ndarray, lower: np.ndarray
) -> np.ndarray:
    del model
    counts = level.counted(grams)
    shares = level.shares(counts - level.discounts[np.minimum(counts, 3)], contexts)
    return shares + _taken(level.backoffs, contexts, 1.0) * lower


def _taken(values: np.ndarray, numbers: np.ndarray, otherwise: float) -> np.ndarray:
    """values[numbers], and ``otherwise`` for what is unseen."""
    if not len(values):
        return np.full(numbers.shape, otherwise, values.dtype)
    return np.where(numbers == _UNSEEN, np.array(otherwise, values.dtype), values[numbers])


_Smoothing = Callable[[NgramModel, _Level, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
SMOOTHINGS: dict[str, _Smoothing] = {"add_k": _add_k, "stupid_backoff": _stupid_backoff, "kneser_ney": _kneser_ney}
_STORED: dict[str, type[np.generic]] = {"keys": np.int64, "counts": np.int32}


def _checked_ids(where: str, name: str, ids: Any, vocab_size: int, least: int = 0) -> np.ndarray:
    """int64 (T,)."""
    try:
        array = np.asarray(ids)
    except ValueError:  # rows of several lengths
        raise TypeError(f"{where}: {name} must be integers of shape (T,), got {type(ids).__name__}") from None
    if array.ndim != 1:
        raise ValueError(f"{where}: {name} must have shape (T,), got {array.shape}")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{where}: {name} must be integers, got {array.dtype}")
    if not least <= len(array) <= _MOST_TOKENS:
        raise ValueError(f"{where}: {name} must have from {least} to {_MOST_TOKENS} elements, got {len(array)}")
    for bound in (array.min(), array.max()) if len(array) else ():
        if not 0 <= bound < vocab_size:
            raise ValueError(f"{where}: {name} must lie from 0 to vocab_size - 1 = {vocab_size - 1}, got {bound}")
    return array.astype(np.int64)


def _checked_array(where: str, arrays: Mapping[str, np.ndarray], name: str, dtype: type[np.generic]) -> np.ndarray:
    array = arrays.get(name)
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{where}: {name} must be an array {np.dtype(dtype)} (entries,), got {got}")
    return array
