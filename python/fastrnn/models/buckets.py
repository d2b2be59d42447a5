"""Batches of examples of about the same length, in an order that each epoch draws anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..checks import check_size
from ..validation import check_integers

_MOST = np.iinfo(np.int32).max  # tokens of an example: their products with batch sizes are far from overflow


class Buckets:
    """Batches of n examples, so that little of each batch is padding.

    The examples are sorted by length, ties in an order drawn anew each epoch, and cut into consecutive batches: each
    takes as many of the next examples as ``batch_size`` and ``max_tokens`` allow. The order of the batches is drawn
    each epoch, too. An epoch has every example once. As nothing but ties moves between the batches, all epochs have
    the same number of them, ``len(buckets)``. What an epoch draws depends on ``seed`` and its number alone: a run goes
    on from anywhere.

    Args:
        lengths: integers (n,), n >= 1, tokens of each example, >= 0.
        batch_size: examples of a batch at most.
        max_tokens: how large the number of examples times the longest of their lengths may be; an example that is
            longer has a batch of its own. None sets no limit.
        seed: integer >= 0, or a ``SeedSequence``, which is not changed.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Morishita, Oda, Neubig, Yoshino, Sudoh, Nakamura, "An empirical study of mini-batch creation strategies for
    neural machine translation", 2017.

    Example:
        >>> from fastrnn.models.buckets import Buckets
        >>> lengths = [4, 1, 2, 9, 2]
        >>> buckets = Buckets(lengths, batch_size=2, max_tokens=8, seed=1)
        >>> len(buckets)
        3
        >>> sorted([lengths[i] for i in buckets.rows(epoch=0, index=batch)] for batch in range(3))
        [[1, 2], [2, 4], [9]]
    """

    def __init__(
        self, lengths: Any, *, batch_size: int, max_tokens: int | None, seed: int | np.random.SeedSequence
    ) -> None:
        where = "Buckets"
        self._lengths = check_integers(where, "lengths", lengths, 0, _MOST, "2^31-1")
        if not len(self._lengths):
            raise ValueError(f"{where}: lengths must have at least 1 example, got 0")
        self.batch_size = check_size(where, "batch_size", batch_size)
        self.max_tokens = None if max_tokens is None else check_size(where, "max_tokens", max_tokens)
        if not isinstance(seed, np.random.SeedSequence):
            seed = np.random.SeedSequence(check_size(where, "seed", seed, low=0))
        self._seed = seed
        self._bounds = bounds_of(np.sort(self._lengths), self.batch_size, self.max_tokens)
        self._drawn: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def rows(self, epoch: int, index: int) -> np.ndarray:
        """The numbers of the examples in batch ``index`` of an epoch, int64, shortest example first.

        The order of the last epoch asked for is kept, so that the next of its batches costs next to nothing.
        """
        epoch = check_size("Buckets.rows", "epoch", epoch, low=0)
        index = check_size("Buckets.rows", "index", index, low=0, high=len(self) - 1)
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, *self._draw(epoch))
        _, examples, batches = self._drawn
        batch = batches[index]
        return examples[self._bounds[batch] : self._bounds[batch + 1]].copy()

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The sorted examples (n,), and the order of the batches that they are cut into."""
        seed = self._seed  # the next line is its child number `epoch`, without a trace of it in the parent
        seed = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, epoch), pool_size=seed.pool_size)
        rng = np.random.default_rng(seed)
        shuffled = rng.permutation(len(self._lengths)).astype(np.int64, copy=False)
        examples = shuffled[np.argsort(self._lengths[shuffled], kind="stable")]
        return examples, rng.permutation(len(self))


def bounds_of(lengths: np.ndarray, batch_size: int, max_tokens: int | None) -> list[int]:
    """Where the batches of sorted examples begin, and where the last one ends."""
    bounds = [0]
    while (begin := bounds[-1]) < len(lengths):
        count = min(batch_size, len(lengths) - begin)
        if max_tokens is not None:
            if shortest := int(lengths[begin]):
                count = min(count, max_tokens // shortest)
            longest = lengths[begin : begin + count]  # of the first 1, 2, ... examples
            fits = np.arange(1, count + 1) * longest <= max_tokens
            count = max(1, int(np.count_nonzero(fits)))  # the products rise: those that fit come first
        bounds.append(begin + count)
    return bounds


class Examples:
    """What a ``training.Trainer`` learns from, but for ``step``: the batches of ``Buckets``, each of which begins anew.

    Args:
        take: makes a batch, whatever ``loss_and_grads`` of the model takes first, from example numbers, int64 (b,).
        lengths: integers (n,), of each example, for its bucket.
        tokens: integers (n,), how many tokens each example predicts, >= 0.
        batch_size, max_tokens, seed: as in ``Buckets``.
        fingerprint: integers that tell these examples from others.
        what: what errors call the examples, such as "train pairs".
        extra_options: what else a run needs to be the same to go on (JSON).

    Attributes:
        options: ``batch_size``, ``max_tokens`` and ``extra_options`` (JSON).
        length: positions of an epoch, one for each batch.
        stride: by how many positions a step goes on, 1.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> from fastrnn.models.buckets import Examples
        >>> examples = Examples(
        ...     lambda rows: rows, [3, 1, 3], [4, 2, 4], batch_size=2, max_tokens=None, seed=1, fingerprint=[3],
        ...     what="train pairs",
        ... )
        >>> examples.length, examples.tokens_before(epoch=0, position=2)
        (2, 10)
    """

    stride = 1

    def __init__(
        self,
        take: Callable[[np.ndarray], Any],
        lengths: Any,
        tokens: Any,
        *,
        batch_size: int,
        max_tokens: int | None,
        seed: int | np.random.SeedSequence,
        fingerprint: list[int],
        what: str,
        extra_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._take = take
        self._buckets = Buckets(lengths, batch_size=batch_size, max_tokens=max_tokens, seed=seed)
        self._tokens = check_integers("Examples", "tokens", tokens, 0, _MOST, "2^31-1")
        if len(self._tokens) != len(lengths):
            raise ValueError(
                f"Examples: tokens must have one number for each of the {len(lengths)} lengths, got {len(self._tokens)}"
            )
        buckets = self._buckets
        self.options = {"batch_size": buckets.batch_size, "max_tokens": buckets.max_tokens, **(extra_options or {})}
        self.fingerprint, self.what, self.length = fingerprint, what, len(buckets)

    def batch(self, epoch: int, position: int) -> Any:
        """The batch at a position of an epoch (from 0), as ``take`` makes it."""
        return self._take(self._buckets.rows(epoch, position))

    def tokens_before(self, epoch: int, position: int) -> int:
        """How many tokens the batches of an epoch before a position predict, or all of them at ``length``."""
        position = check_size("Examples.tokens_before", "position", position, low=0, high=self.length)
        return sum(self.count(epoch, before) for before in range(position))

    def count(self, epoch: int, position: int) -> int:
        """How many tokens the batch at a position predicts."""
        return int(self._tokens[self._buckets.rows(epoch, position)].sum())
