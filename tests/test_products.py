"""Products of arrays of several dimensions on the kernels."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fastrnn.models.products import add_outer, product


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3), (0, 3), (2, 0, 3), (3,)])
@pytest.mark.parametrize("columns", [0, 1, 7])
def test_as_numpy_has_them(shape, columns):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(shape), rng.standard_normal((6, 3 + columns))[::2, 3:]
    b = np.ascontiguousarray(b)
    assert_allclose(product(a, b), a @ b, rtol=0, atol=1e-14)
    assert_allclose(product(a, np.asfortranarray(b)), a @ b, rtol=0, atol=1e-14)


def test_halves_of_a_matrix_and_arrays_in_another_order():
    rng = np.random.default_rng(1)
    whole, x = rng.standard_normal((4, 9)), rng.standard_normal((2, 5, 6)).swapaxes(0, 1)
    assert_allclose(product(x, whole[:, 3:].T), x @ whole[:, 3:].T, rtol=0, atol=1e-14)
    gradient, dy = np.ones((4, 9)), rng.standard_normal((5, 2, 4))
    add_outer(gradient[:, 3:], dy, x)
    assert (gradient[:, :3] == 1).all()
    assert_allclose(gradient[:, 3:], 1 + np.einsum("tbo,tbi->oi", dy, x), rtol=0, atol=1e-13)
    add_outer(gradient, dy[:0], rng.standard_normal((0, 2, 9)))  # adds nothing
    assert_allclose(gradient[:, 3:], 1 + np.einsum("tbo,tbi->oi", dy, x), rtol=0, atol=1e-13)
