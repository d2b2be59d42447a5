"""What models compute around the recurrent layer, on the arrays of any library with the Python array API standard.

NumPy's arrays go to the kernels instead: see ``nn``. Sums are matrix products, so that they have one order and no
library needs a scatter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_MOST_ELEMENTS = 2**25  # of a matrix rows x V made on the way


def namespace(array: Any) -> Any:
    """The functions for an array, by the names of the standard."""
    try:
        from array_api_compat import array_namespace
    except ImportError:
        raise RuntimeError(
            "models on a GPU need array-api-compat, which is not installed: pip install 'fastrnn[cuda]'"
        ) from None
    return array_namespace(array)


def take_rows(weight: Any, ids: Any) -> Any:
    """weight[ids] (N, E); ids (N,)."""
    return namespace(weight).take(weight, ids, axis=0)


def add_rows(grad: Any, ids: Any, dy: Any) -> None:
    """grad[ids] += dy, each id as often as it occurs; grad (V, E), ids (N,), dy (N, E)."""
    for part in _parts(ids.shape[0], grad.shape[0]):
        grad += _is_symbol(ids[part], grad.shape[0], dy.dtype).T @ dy[part, :]


def cross_entropy(
    x: Any, weight: Any, bias: Any, targets: Any, scale: float, dx: Any = None, dweight: Any = None, dbias: Any = None
) -> Any:
    """-log softmax(x weightᵀ + bias)[target] of each row, (N,); 0 where the target is negative.

    x (N, I), weight (V, I), bias (V,), targets (N,). Given dx (N, I), it is overwritten with the gradient of ``scale``
    times their sum, and those by weight and bias are added to dweight and dbias.
    """
    xp = namespace(x)
    nats = xp.zeros_like(x[:, 0])
    for part in _parts(targets.shape[0], weight.shape[0]):
        logits = x[part, :] @ weight.T + bias
        counted = xp.astype(targets[part] >= 0, x.dtype)
        is_target = _is_symbol(targets[part], weight.shape[0], x.dtype)
        top = xp.max(logits, axis=1, keepdims=True)
        powers = xp.exp(logits - top)
        sums = xp.sum(powers, axis=1, keepdims=True)
        of_target = xp.sum(xp.where(is_target > 0, logits, xp.zeros_like(logits)), axis=1)
        nats[part] = (xp.log(sums[:, 0]) + top[:, 0] - of_target) * counted
        if dx is not None:
            dlogits = (powers / sums - is_target) * (scale * counted)[:, None]
            dx[part, :] = dlogits @ weight
            dweight += dlogits.T @ x[part, :]
            dbias += xp.sum(dlogits, axis=0)
    return nats


def _is_symbol(ids: Any, symbols: int, dtype: Any) -> Any:
    """(N, V): 1 where the column is the row's id, else 0."""
    xp = namespace(ids)
    return xp.astype(ids[:, None] == xp.arange(symbols)[None, :], dtype)


def _parts(rows: int, symbols: int) -> Iterator[slice]:
    step = max(1, _MOST_ELEMENTS // symbols)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
