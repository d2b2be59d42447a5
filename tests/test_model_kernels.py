"""What language models compute beside the layers, against plain NumPy: every ISA and dtype; tails, edges."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastrnn import _core
from helpers import ISAS, kernels

NAMES = ("nats", "dx", "dweight", "dbias")
DTYPES = ("float32", "float64")
isas = pytest.mark.parametrize("isa", ISAS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def losses(x, weight, bias, targets, scale):
    """nats and the gradient of the logits by the definition, in the arrays' own dtype."""
    counts, rows, place = targets >= 0, np.arange(len(targets)), np.maximum(targets, 0)
    logits = x @ weight.T + bias
    top = logits.max(axis=1, keepdims=True)
    powers = np.exp(logits - top)
    total = powers.sum(axis=1, keepdims=True)
    nats = np.log(total[:, 0]) + (top[:, 0] - logits[rows, place])
    dlogits = powers / total
    dlogits[rows, place] -= 1
    dlogits *= scale
    nats[~counts], dlogits[~counts] = 0, 0
    return nats, dlogits


def plain(x, weight, bias, targets, scale):
    nats, dlogits = losses(x, weight, bias, targets, scale)
    return nats, dlogits @ weight, dlogits.T @ x, dlogits.sum(axis=0)


def sizes(x, weight, bias, targets, scale):
    """The largest sum of absolute terms that a number of each result is made of: what rounding errors grow with."""
    dlogits = np.abs(losses(x, weight, bias, targets, scale)[1])
    x, weight, bias = np.abs(x), np.abs(weight), np.abs(bias)
    return [term.max() for term in (x @ weight.T + bias, dlogits @ weight, dlogits.T @ x, dlogits.sum(axis=0))]


def draw(rng, N, I, V, dtype, ignored=0.1):  # noqa: E741
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((N, I), (V, I), (V,))]
    targets = rng.integers(0, V, N).astype(np.int32)
    targets[rng.random(N) < ignored] = -1
    return *arrays, targets


def fused(x, weight, bias, targets, scale=1.0, threads=2, **options):
    """The same by the kernels."""
    dx, dweight, dbias = (np.full_like(array, np.nan) for array in (x, weight, bias))
    options = {"accumulate": False} | options
    nats = _core.cross_entropy(x, weight, bias, targets, scale, dx, dweight, dbias, _core.Memory(), threads, **options)
    return nats, dx, dweight, dbias


@isas
@dtypes
def test_as_defined(isa, dtype):
    rng = np.random.default_rng(0)
    eps = np.finfo(dtype).eps
    with kernels(isa):
        for i in range(60):
            N, I, V = (int(n) for n in rng.integers(1, (90, 70, (20, 300, 900)[i % 3])))  # noqa: E741
            data = draw(rng, N, I, V, dtype)
            threads, logit_bytes = int(rng.integers(1, 5)), int(rng.choice([1, 1 << 27]))
            got = fused(*data, 1 / N, threads=threads, logit_bytes=logit_bytes)
            wide = [array.astype(np.longdouble) for array in data[:3]]
            own, exact = plain(*data, 1 / N), plain(*wide, data[3], 1 / N)
            for name, a, b, c, size in zip(NAMES, got, own, exact, sizes(*wide, data[3], 1 / N), strict=True):
                allowed = 2 * np.abs(b - c).max() + 8 * eps * size
                assert np.abs(a - c).max() <= allowed, (name, N, I, V, threads)


@isas
@dtypes
def test_threads_that_split_the_rows(isa, dtype):
    # So many rows for each symbol that every thread has gradients of all weights of its own.
    rng = np.random.default_rng(6)
    with kernels(isa):
        for i in range(12):
            N, I, V = int(rng.integers(600, 1500)), int(rng.integers(1, 40)), int(rng.integers(1, 50))  # noqa: E741
            data = draw(rng, N, I, V, dtype)
            of_logits, *of_gradients = sizes(*(array.astype(np.longdouble) for array in data[:3]), data[3], 1 / N)
            alone = fused(*data, 1 / N, threads=1)
            data[0][data[3] < 0] = np.nan  # what is ignored is ignored
            threads, wanted, accumulate = int(rng.integers(2, 5)), rng.random(3) < 0.7, i % 2 == 0
            before = [1.0 if accumulate and k else np.nan for k in range(3)]  # dx is always written anew
            out = [
                np.full_like(*given) if want else None for *given, want in zip(data[:3], before, wanted, strict=True)
            ]
            nats = _core.cross_entropy(*data, 1 / N, *out, None, threads, accumulate, int(rng.choice([1, 1 << 27])))
            np.testing.assert_allclose(nats, alone[0], rtol=0, atol=16 * np.finfo(dtype).eps * of_logits)
            for k, (got, want, size) in enumerate(zip(out, alone[1:], of_gradients, strict=True)):
                if got is not None:
                    # Sums of N terms in another order, with a 1 among them but for dx.
                    atol = 2 * np.sqrt(N) * np.finfo(dtype).eps * (size + 1)
                    np.testing.assert_allclose(got - (accumulate and k > 0), want, rtol=0, atol=atol)


@isas
def test_gradients_are_those_of_the_loss(isa):
    """Finite differences in float64."""
    rng = np.random.default_rng(1)
    x, weight, bias, targets = draw(rng, 5, 4, 7, "float64")
    with kernels(isa):
        _, *gradients = fused(x, weight, bias, targets, 0.5)
        for array, gradient in zip((x, weight, bias), gradients, strict=True):
            direction = rng.standard_normal(array.shape)
            before, sums = array.copy(), []
            for sign in (1, -1):
                array[...] = before + sign * 1e-6 * direction
                sums.append(0.5 * fused(x, weight, bias, targets)[0].sum())
            array[...] = before
            assert (sums[0] - sums[1]) / 2e-6 == pytest.approx((gradient * direction).sum(), rel=1e-7, abs=1e-9)


@dtypes
def test_adds_or_writes_what_is_wanted(dtype):
    rng = np.random.default_rng(2)
    data = draw(rng, 200, 33, 50, dtype)
    expected = fused(*data)
    for logit_bytes in (1, 1 << 27):  # several passes over the rows, and one
        for keep in range(8):
            out = [np.ones_like(array) if keep >> i & 1 else None for i, array in enumerate(data[:3])]
            nats = _core.cross_entropy(*data, 1.0, *out, None, 2, True, logit_bytes)
            eps, (_, *of_gradients) = np.finfo(dtype).eps, sizes(*data, 1.0)
            np.testing.assert_array_equal(nats, expected[0])
            for i, (got, want) in enumerate(zip(out, expected[1:], strict=True)):
                if got is not None:
                    atol = 8 * eps * of_gradients[i]
                    np.testing.assert_allclose(got - (i > 0), want, rtol=0, atol=atol)
    without = _core.cross_entropy(data[0], data[1], None, data[3], 1.0, None, None, None, None)
    zero = _core.cross_entropy(data[0], data[1], 0 * data[2], data[3], 1.0, None, None, None, None)
    np.testing.assert_array_equal(without, zero)


def test_the_same_bits_again():
    rng = np.random.default_rng(3)
    data = draw(rng, 300, 40, 700, "float32")
    for threads in (1, 2, 3):
        for a, b in zip(fused(*data, threads=threads), fused(*data, threads=threads), strict=True):
            np.testing.assert_array_equal(a, b)


def test_ignored_rows_count_for_nothing_whatever_they_hold():
    rng = np.random.default_rng(4)
    x, weight, bias, targets = draw(rng, 40, 9, 21, "float32", ignored=0.5)
    expected = fused(x, weight, bias, targets)
    x[targets < 0] = np.nan
    for got, want in zip(fused(x, weight, bias, targets), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    nats, dx, dweight, dbias = fused(x, weight, bias, np.full_like(targets, -1))
    assert not any(array.any() for array in (nats, dx, dweight, dbias))


@isas
def test_large_logits_and_nan(isa):
    x = np.eye(5, dtype=np.float32)
    weight = np.array(
        [[1e30, -5e3, 0, np.nan, np.inf], [0, -5e3, 1, 0, 0], [-1e30, -5e3, 2, 0, 0]], np.float32
    )  # logits[r] = weight[:, r]: times 0 its NaN and infinity would reach every row
    with kernels(isa):
        for value in (1e10, 1e20):
            same = np.full((3, 1), value, np.float32)
            nats = _core.cross_entropy(x[:1, :1], same, None, np.ones(1, np.int32), 1.0, None, None, None, None)
            assert nats[0] == pytest.approx(math.log(3), rel=1e-7)
        for top in (50.0, 1e5):  # 1 + e^-30
            nearly = np.array([[top], [top - 30]])
            nats = _core.cross_entropy(
                np.ones((1, 1)), nearly, None, np.zeros(1, np.int32), 1.0, None, None, None, None
            )
            assert nats[0] == pytest.approx(math.exp(-30), rel=3e-3)
        for r, target, want in ((0, 0, 0.0), (1, 1, math.log(3)), (2, 2, math.log(math.exp(-2) + math.exp(-1) + 1))):
            one = np.ascontiguousarray(weight[:, r : r + 1])
            nats = _core.cross_entropy(x[:1, :1], one, None, np.array([target], np.int32), 1.0, None, None, None, None)
            assert nats[0] == pytest.approx(want, rel=1e-6)
        for r in (3, 4):
            one = np.ascontiguousarray(weight[:, r : r + 1])
            assert np.isnan(
                _core.cross_entropy(x[:1, :1], one, None, np.ones(1, np.int32), 1.0, None, None, None, None)
            ).all()


@isas
@dtypes
def test_top_symbols(isa, dtype):
    """In the order of the exact logits, but for those that rounding may exchange."""
    rng = np.random.default_rng(7)
    eps = np.finfo(dtype).eps
    with kernels(isa):
        for i in range(80):
            N, I, V = (int(n) for n in rng.integers(1, (90, 70, (20, 300, 900)[i % 3])))  # noqa: E741
            x, weight, bias, _ = draw(rng, N, I, V, dtype)
            never = rng.choice(V, int(rng.integers(0, min(V, 9))), replace=False).astype(np.int32)
            count, threads = int(rng.integers(1, min(V, 12) + 1)), int(rng.integers(1, 5))
            top = _core.TopSymbols(weight, bias if i % 4 else None, int(rng.choice([1, N])), None, threads)
            exact = x.astype(np.longdouble) @ weight.T.astype(np.longdouble) + (bias if i % 4 else 0)
            size = (np.abs(x) @ np.abs(weight).T).max() + np.abs(bias).max()
            allowed = 8 * eps * float(size)
            log_p = exact - np.log(np.exp(exact - exact.max()).sum(axis=1, keepdims=True)) - exact.max()
            log_p[:, never] = -np.inf
            want = -np.sort(-log_p, axis=1)[:, :count]
            for _ in range(2):  # packed weights are there for good
                ids, got = top.find(x, count, never)
                assert ids.shape == got.shape == (N, count)
                chosen = np.arange(count) < V - len(never)
                assert (got[:, ~chosen] == -np.inf).all()
                assert not ids[:, ~chosen].any()
                assert np.abs(got[:, chosen] - want[:, chosen]).max(initial=0) <= allowed
                of_ids = np.take_along_axis(log_p, ids, axis=1)
                assert np.abs(got[:, chosen] - of_ids[:, chosen]).max(initial=0) <= allowed
                assert all(len(set(row)) == chosen.sum() for row in ids[:, chosen].tolist())


@isas
def test_more_rows_than_are_taken_at_a_time(isa):
    rng = np.random.default_rng(11)
    x, weight, bias, targets = draw(rng, 2500, 5, 37, "float64")
    log_p = -np.array(losses(x, weight, bias, np.zeros(len(x), int), 1.0)[0])[:, None]  # of symbol 0
    log_p = log_p + (x @ weight.T + bias) - (x @ weight[0] + bias[0])[:, None]
    want = np.argsort(-log_p, axis=1)[:, :5]
    with kernels(isa):
        for threads in (1, 2, 3):
            for rows in (1, len(x)):
                ids, got = _core.TopSymbols(weight, bias, rows, None, threads).find(x, 5, np.empty(0, np.int32))
                np.testing.assert_array_equal(ids, want)
                np.testing.assert_allclose(got, np.take_along_axis(log_p, want, axis=1), rtol=0, atol=1e-12)
            nats = _core.cross_entropy(x, weight, bias, targets, 1.0, None, None, None, None, threads)
            np.testing.assert_allclose(nats, losses(x, weight, bias, targets, 1.0)[0], rtol=0, atol=1e-12)


def test_a_searcher_keeps_its_arrays_and_serves_several_threads():
    rng = np.random.default_rng(12)
    weight, bias = rng.standard_normal((900, 40), dtype=np.float32), rng.standard_normal(900, dtype=np.float32)
    none = np.empty(0, np.int32)
    inputs = [rng.standard_normal((n, 40), dtype=np.float32) for n in (1, 40, 90)]
    want = [_core.TopSymbols(weight.copy(), bias.copy(), len(x), None).find(x, 4, none)[0] for x in inputs]
    for rows in (1, 50):
        searcher = _core.TopSymbols(weight.copy(), bias.copy(), rows, None)  # the only one to hold them
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda x, top=searcher: top.find(x, 4, none)[0], inputs * 20))
        for got, ids in zip(found, want * 20, strict=True):
            np.testing.assert_array_equal(got, ids)


@isas
def test_of_equal_symbols_the_lower_come_first(isa):
    weight = np.random.default_rng(8).integers(-1, 2, (97, 3)).astype(np.float32)
    x = np.random.default_rng(9).integers(-2, 3, (70, 3)).astype(np.float32)
    want = np.argsort(-(x @ weight.T), axis=1, kind="stable")[:, :20]
    with kernels(isa):
        for threads in (1, 2, 3):
            for rows in (1, len(x)):
                found, _ = _core.TopSymbols(weight, None, rows, _core.Memory(), threads).find(
                    x, 20, np.empty(0, np.int32)
                )
                np.testing.assert_array_equal(found, want)


@isas
def test_top_symbols_of_nan_and_infinity(isa):
    weight = np.zeros((40, 2), np.float32)
    with kernels(isa):
        for value in (np.nan, np.inf, -np.inf):
            weight[17, 1] = value
            top = _core.TopSymbols(weight, None, 1, None)
            _, log_p = top.find(np.array([[1, 1], [1, 0]], np.float32), 3, np.empty(0, np.int32))
            assert np.isnan(log_p[1]).all()  # 0 times either
            assert np.isnan(log_p[0]).all() or value == -np.inf
            if value == -np.inf:
                assert log_p[0] == pytest.approx(-math.log(39), abs=1e-6)


def test_no_rows():
    assert [part.shape for part in _core.TopSymbols(np.ones((3, 2), "f"), None, 0, None).find(
        np.ones((0, 2), "f"), 2, np.empty(0, np.int32))] == [(0, 2), (0, 2)]  # fmt: skip
    weight, bias = np.ones((3, 2), "f"), np.ones(3, "f")
    nats, dx, dweight, dbias = fused(np.ones((0, 2), "f"), weight, bias, np.zeros(0, np.int32))
    assert nats.shape == (0,)
    assert dx.shape == (0, 2)
    assert not dweight.any()
    assert not dbias.any()


def test_what_is_wrong_is_refused():
    rng = np.random.default_rng(5)
    x, weight, bias, targets = draw(rng, 6, 4, 5, "float32", ignored=0)
    targets[2] = 5
    with pytest.raises(ValueError, match="targets out of range"):
        fused(x, weight, bias, targets)
    for bad in (
        (x[:, :3], weight, bias),
        (x, weight.astype("f8"), bias),
        (x, weight, bias[:4]),
        (x.T.copy().T, weight, bias),
    ):
        with pytest.raises(ValueError, match="_core: "):
            _core.cross_entropy(*bad, np.zeros(6, np.int32), 1.0, None, None, None, None)
    with pytest.raises(ValueError, match="targets"):
        _core.cross_entropy(x, weight, bias, np.zeros(6, np.int64), 1.0, None, None, None, None)
    none, top = np.empty(0, np.int32), _core.TopSymbols(weight, bias, 6, None)
    for arguments, what in (
        ((x, 0, none), "count out of range"),
        ((x, 6, none), "count out of range"),
        ((x, 1, np.array([5], np.int32)), "never out of range"),
        ((x, 1, np.array([-1], np.int32)), "never out of range"),
        ((x, 1, np.empty(0)), "never"),
        ((x[0], 1, none), "two dimensions"),
        ((x[:, :3], 1, none), "x"),
        ((x.astype("f8"), 1, none), "x"),
    ):
        with pytest.raises(ValueError, match=f"_core: .*{what}"):
            top.find(*arguments)
    for bad in ((weight[0], None), (weight, bias[:4]), (weight[:0], None), (weight.T, None)):
        with pytest.raises(ValueError, match="_core: "):
            _core.TopSymbols(*bad, 1, None)
    with pytest.raises(TypeError, match="weight must be an array"):
        _core.TopSymbols(None, None, 1, None)


def part_of(rng, rows, columns, dtype, transposed):
    """A matrix that stands in a larger one, NaN around it, or the transpose of such a one."""
    if transposed:
        return part_of(rng, columns, rows, dtype, False).T
    below, right, left = rng.integers(0, 4, 3)
    whole = np.full((rows + below, left + columns + right), np.nan, dtype)
    part = whole[:rows, left : left + columns]
    part[...] = rng.standard_normal(part.shape)
    return part


@isas
@dtypes
def test_products(isa, dtype):
    rng = np.random.default_rng(10)
    eps = np.finfo(dtype).eps
    with kernels(isa):
        for i in range(150):
            M, K, N = (
                int(n)
                for n in rng.integers(
                    (0, 0, 0), [(12, 40, 90), (90, 70, 60), (70, 1300, 80), (200, 50, 6), (9, 1, 9)][i % 5]
                )
            )
            a = part_of(rng, M, K, dtype, i % 2)
            b = part_of(rng, K, N, dtype, i // 2 % 2)
            out, add, threads = part_of(rng, M, N, dtype, False), bool(rng.integers(2)), int(rng.integers(1, 5))
            frame = out.base.copy()
            want = a.astype(np.longdouble) @ b.astype(np.longdouble) + (out if add else 0)
            size = (np.abs(a) @ np.abs(b)).max(initial=1) + np.abs(out).max(initial=0)
            _core.product(a, b, out, add, threads)
            assert np.abs(out - want).max(initial=0) <= 8 * eps * size, (M, K, N, add, threads)
            out[...] = 0
            assert np.array_equal(np.isnan(out.base), np.isnan(frame))  # nothing around it was written


def test_products_that_are_refused():
    a, b, out = np.ones((2, 3), "f"), np.ones((3, 4), "f"), np.ones((2, 4), "f")
    for arguments, what in (
        ((a, b.T, out), "shapes"),
        ((a, b, out.T), "shapes"),
        ((a, b.astype("f8"), out), "b has another dtype"),
        ((a, b, np.ones((4, 2), "f").T), "out must be a matrix of whole rows"),
        ((a, np.ones((6, 8), "f")[::2, ::2], out), "b must be a matrix of whole rows or the transpose of one"),
        ((a, b[::-1], out), "b must be a matrix of whole rows or the transpose of one"),
        ((a, np.broadcast_to(np.ones(4, "f"), (3, 4)), out), "b must be a matrix of whole rows"),
        ((a, b[0], out), "b must have two dimensions"),
        ((a, np.frombuffer(b"\0" * 49, "i1")[1:].view("f").reshape(3, 4), out), "b is not aligned"),
    ):
        with pytest.raises(ValueError, match=f"_core: {what}"):
            _core.product(*arguments)
    with pytest.raises(TypeError, match="b must be an array"):
        _core.product(a, None, out)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        _core.product(a, b, out)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 40), (7, 200, 333), (300, 257, 4)])
@dtypes
def test_rows_by_their_numbers(shape, dtype):
    """What an embedding does: a gather, and a sum of each row's gradients in the order of its occurrences."""
    V, E, N = shape
    rng = np.random.default_rng(6)
    matrix, rows = rng.standard_normal((V, E)).astype(dtype), rng.standard_normal((N, E)).astype(dtype)
    ids = rng.integers(0, V, N).astype(np.int32)
    out = np.full_like(rows, np.nan)
    _core.take_rows(matrix, ids, out)
    np.testing.assert_array_equal(out, matrix[ids])
    expected = matrix.copy()
    np.add.at(expected, ids, rows)
    _core.add_rows(matrix, ids, rows)
    np.testing.assert_array_equal(matrix, expected)
    for bad in (-1, V):
        ids[-1] = bad
        with pytest.raises(ValueError, match="ids out of range"):
            _core.take_rows(matrix, ids, out)
        with pytest.raises(ValueError, match="ids out of range"):
            _core.add_rows(matrix, ids, rows)
    np.testing.assert_array_equal(matrix, expected)
