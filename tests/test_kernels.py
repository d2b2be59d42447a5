"""The compiled kernels against the reference: every ISA, cell and dtype; sizes around the vector width; edges."""

from dataclasses import replace

import numpy as np
import pytest

import helpers
from fastrnn import _core, functional, reference
from helpers import ISAS, Case, covering, kernels

CELLS = tuple(reference.CELLS)
DTYPES = ("float32", "float64")
VECTOR_BYTES = {"avx512": 64, "avx2": 32}  # portable code, and any other ISA, uses 16


def width(isa, dtype):
    return VECTOR_BYTES.get(isa, 16) // np.dtype(dtype).itemsize


def possible(row):
    proj_size = row.get("proj_size", 0)
    return not (row.get("bidirectional") and row.get("resets")) and (proj_size == 0 or 0 < proj_size < row["H"])


def cases_around_the_width(isa, dtype, cell):
    """Any two values of any two options meet in some case."""
    w = width(isa, dtype)
    sizes = sorted({1, w - 1, w, w + 1, 2 * w + 3} - {0})
    options = {
        "T": (1, 2, 17),
        "B": (1, 2, 5, 7, 13),
        "I": (1, w, 2 * w + 5),
        "H": sizes,
        "num_layers": (1, 2, 3),
        "bidirectional": (False, True),
        "bias": (True, False),
        "state": (True, False),
        "dropout": (0.0, 0.3, 1.0),
        "lengths": (False, True),
        "resets": (False, True),
        "inputs": (0, 1, 7),
    }
    if cell == "lstm":
        options["proj_size"] = (0, *sorted({1} | {h - 1 for h in sizes} - {0}))
    return [Case(cell, dtype, **row) for row in covering(options, possible)]


AROUND_THE_WIDTH = [
    pytest.param(isa, case, id=f"{isa}-{case}")
    for isa in ISAS
    for dtype in DTYPES
    for cell in CELLS
    for case in cases_around_the_width(isa, dtype, cell)
]


@pytest.mark.parametrize(("isa", "case"), AROUND_THE_WIDTH)
def test_equals_the_reference(isa, case):
    data, expected, allowed = helpers.drawn(case)
    with kernels(isa):
        helpers.assert_within(helpers.run(functional, case, data), expected, allowed)
        if case.dropout == 0:  # without a tape the kernels keep less
            values, tape = helpers.run_forward(functional, case, data, training=False)
            assert tape is None
            helpers.assert_within(values, {name: expected[name] for name in values}, allowed)


# Tiles of every height (rows of the batch) and every width (blocks of units, of the input, of the projection).
LARGER = [
    {"T": 3, "B": 9, "I": 300, "H": 130},
    {"T": 2, "B": 70, "I": 17, "H": 33},
    {"T": 3, "B": 33, "I": 5, "H": 67, "num_layers": 2, "bidirectional": True, "lengths": True},
    {"T": 4, "B": 22, "I": 40, "H": 100, "num_layers": 2, "resets": True, "dropout": 0.3},
    {"T": 2, "B": 1500, "I": 3, "H": 20},
    {"T": 5, "B": 40, "I": 70, "H": 130, "inputs": 33},
    {"T": 30, "B": 33, "I": 12, "H": 67, "inputs": 600, "num_layers": 2, "bidirectional": True, "lengths": True},
]
# Few rows, for which weights are not packed: with rows of weights that end within a vector and at its end.
FEW = [
    {"T": 1, "B": 1, "I": 150, "H": 130},
    {"T": 1, "B": 13, "I": 256, "H": 192},
    {"T": 2, "B": 3, "I": 5000, "H": 33},
    {"T": 5, "B": 4, "I": 320, "H": 128, "num_layers": 2, "bidirectional": True, "lengths": True},
    {"T": 9, "B": 2, "I": 128, "H": 200, "num_layers": 2, "resets": True, "dropout": 0.3},
    {"T": 5, "B": 4, "I": 320, "H": 128, "inputs": 9, "bidirectional": True, "lengths": True},
]
FEW_PROJECTED = [
    {"T": 2, "B": 7, "I": 256, "H": 130, "proj_size": 67, "num_layers": 2, "lengths": True},
    {"T": 3, "B": 5, "I": 200, "H": 192, "proj_size": 128, "bidirectional": True},
]
PROJECTED = [
    {"T": 3, "B": 19, "I": 30, "H": 130, "proj_size": 67, "num_layers": 2, "lengths": True},
    {"T": 3, "B": 5, "I": 3, "H": 70, "proj_size": 35, "num_layers": 2, "bidirectional": True},
    {"T": 6, "B": 19, "I": 30, "H": 130, "proj_size": 67, "inputs": 21, "resets": True},
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_larger_shapes_equal_the_reference(isa, dtype, cell):
    for options in LARGER + FEW + (PROJECTED + FEW_PROJECTED if cell == "lstm" else []):
        case = Case(cell, dtype, **options)
        data, expected, allowed = helpers.drawn(case)
        for threads in (1, 2):
            with kernels(isa, threads):
                helpers.assert_within(helpers.run(functional, case, data), expected, allowed)


# Panels of weights longer than a share of the cache: products go through them in pieces that are added up. Where that
# begins depends on the width of a vector.
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", ["input", "input, rows split", "gradient of the input", "state", "state, lengths"])
def test_products_in_pieces_equal_the_reference(isa, cell, sizes):
    lanes = width(isa, "float32")
    many = 14000 // lanes
    if sizes.startswith("state") and cell != "rnn_tanh" and lanes < 16:
        many = 3000 // lanes  # the recurrent weights would be too large; backward's pieces are shorter
    case = {
        "input": Case(cell, "float32", T=2, B=25, I=many, H=61, bidirectional=True),
        "input, rows split": Case(cell, "float32", T=3, B=18, I=many, H=61),
        "gradient of the input": Case(cell, "float32", T=7, B=20, I=70, H=3000 // lanes + 5, bidirectional=True),
        "state": Case(cell, "float32", T=2, B=25, I=5, H=many),
        "state, lengths": Case(cell, "float32", T=4, B=30, I=5, H=many, lengths=True),
    }[sizes]
    data, expected, allowed = helpers.drawn(case)
    for threads in (1, 2):
        with kernels(isa, threads):
            helpers.assert_within(helpers.run(functional, case, data), expected, allowed)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(3000, 64), (1000, 1000)], ids=str)
def test_long_sums_keep_their_accuracy(cell, sizes):
    # One chain of thousands of additions would err more than NumPy's products, which add up block by block.
    case = Case(cell, "float32", T=2, B=7, I=sizes[0], H=sizes[1])
    data = helpers.draw(case)
    expected = helpers.exact(case, data)
    allowed = helpers.tolerances(case, data, expected)
    for isa in ISAS:
        with kernels(isa):
            helpers.assert_within(helpers.run(functional, case, data), expected, allowed)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 14, 15, 16, 17])
def test_every_batch_size_equals_the_reference(isa, batch):
    for cell in CELLS:
        case = Case(cell, "float32", T=2, B=batch, I=3, H=2 * width(isa, "float32") + 3)
        data, expected, allowed = helpers.drawn(case)
        with kernels(isa):
            helpers.assert_within(helpers.run(functional, case, data), expected, allowed)


# The kernels work through time in chunks of at least 512 rows (of T * B), as many as fill a cache: these cross some.
LONG = [
    {"T": 700, "B": 3, "I": 2, "H": 5},
    {"T": 150, "B": 31, "I": 3, "H": 130},
    {"T": 150, "B": 31, "I": 3, "H": 130, "resets": True},
    {"T": 300, "B": 31, "I": 3, "H": 130, "lengths": True, "resets": True},
    {"T": 300, "B": 31, "I": 3, "H": 130, "lengths": True, "bidirectional": True},
    {"T": 1000, "B": 1, "I": 3, "H": 130},
    {"T": 150, "B": 31, "I": 3, "H": 130, "inputs": 40},
    {"T": 150, "B": 31, "I": 3, "H": 130, "inputs": 700},
    {"T": 300, "B": 31, "I": 3, "H": 130, "inputs": 1, "lengths": True, "bidirectional": True},
    {"T": 1000, "B": 31, "I": 3, "H": 5, "inputs": 2},  # many sums of many numbers
]
LONG_PROJECTED = [
    {"T": 150, "B": 31, "I": 3, "H": 130, "proj_size": 33},
    {"T": 150, "B": 31, "I": 3, "H": 130, "proj_size": 33, "lengths": True, "bidirectional": True},
]
# The rectifier, whose loop is that of rnn_tanh, would meet its kink somewhere in so many numbers.
LONG_CASES = [Case(cell, "float32", **options) for options in LONG for cell in ("lstm", "gru", "rnn_tanh")]
LONG_CASES += [Case("lstm", "float32", **options) for options in LONG_PROJECTED]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", LONG_CASES, ids=str)
def test_long_sequences_equal_the_reference(isa, case):
    data, expected, allowed = helpers.drawn(case)
    with kernels(isa, threads=2):
        values, tape = helpers.run_forward(functional, case, data)
        whole = helpers.run_backward(functional, data, tape, retain=True)
        helpers.assert_within(values | whole, expected, allowed)
        without_dx = helpers.run_backward(functional, data, tape, need_dx=False)
        helpers.assert_same_bits(without_dx, {name: a for name, a in whole.items() if name != "dx"})


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "lengths": True}, {"resets": True}, {"lengths": True}])
@pytest.mark.parametrize("shape", [{"T": 0, "B": 3}, {"T": 4, "B": 0}, {"T": 0, "B": 0}], ids=["T=0", "B=0", "T=B=0"])
def test_nothing_to_do_passes_the_state_and_its_gradient(isa, dtype, cell, options, shape):
    case = Case(cell, dtype, num_layers=2, **options, **shape)
    data = helpers.draw(case)
    got = helpers.run_on(isa, case, data)
    helpers.assert_same_bits(got, helpers.run(reference, case, data, dtype=dtype))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", CELLS)
def test_all_rows_empty(isa, cell):
    case = Case(cell, "float32", lengths=True, num_layers=2, bidirectional=True)
    data = helpers.draw(case)
    data.lengths[:] = 0
    data.x[:] = data.dy[:] = np.nan
    got = helpers.run_on(isa, case, data)
    helpers.assert_same_bits(got, helpers.run(reference, case, data, dtype="float32"))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_arrays_may_begin_at_any_element(isa, dtype, cell):
    case = Case(cell, dtype, T=3, B=7, I=19, H=21, num_layers=2)
    data = helpers.draw(case)

    def shifted(array):
        return np.concatenate([array.ravel()[:1], array.ravel()])[1:].reshape(array.shape)

    moved = replace(
        data,
        x=shifted(data.x),
        weights={name: shifted(w) for name, w in data.weights.items()},
        state=tuple(map(shifted, data.state)),
        dy=shifted(data.dy),
        dstate=tuple(map(shifted, data.dstate)),
    )
    with kernels(isa):
        helpers.assert_same_bits(helpers.run(functional, case, moved), helpers.run(functional, case, data))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", CELLS)
def test_parts_of_the_gradient_may_be_left_out(isa, cell):
    case = Case(cell, "float32", num_layers=2)
    data = helpers.draw(case)
    with kernels(isa):
        _, tape = helpers.run_forward(functional, case, data)
        whole = helpers.run_backward(functional, data, tape, retain=True)

        dx, dstate, dweights = functional.backward(
            tape, data.dy, helpers.as_state(data.dstate), need_dx=False, retain=True
        )
        assert dx is None
        helpers.assert_same_bits(
            helpers.named_gradients(None, dstate, dweights), {name: a for name, a in whole.items() if name != "dx"}
        )

        zeros = helpers.as_state([np.zeros_like(s) for s in data.dstate])
        for partial, full in [
            ((data.dy, None), (data.dy, zeros)),
            ((None, helpers.as_state(data.dstate)), (np.zeros_like(data.dy), helpers.as_state(data.dstate))),
        ]:
            a, b = (functional.backward(tape, *arguments, retain=True) for arguments in (partial, full))
            helpers.assert_same_bits(helpers.named_gradients(*a), helpers.named_gradients(*b))


# ---------------------------------------------------------------------------------------------------------------------
# Finite differences, end to end
# ---------------------------------------------------------------------------------------------------------------------

DIFFERENCES = [
    {"H": 9, "B": 2},
    {"num_layers": 3, "bias": False},
    {"bidirectional": True, "num_layers": 2, "lengths": True, "dropout": 0.4},
    {"resets": True, "lengths": True, "num_layers": 2, "B": 6},
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", DIFFERENCES, ids=lambda options: ",".join(options))
def test_gradients_match_finite_differences(isa, cell, options):
    case = Case(cell, "float64", **options)
    with kernels(isa):
        helpers.assert_gradients(functional, case, helpers.draw(case))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("proj_size", [1, 4])
def test_gradients_of_a_projection_match_finite_differences(isa, proj_size):
    case = Case("lstm", "float64", proj_size=proj_size, num_layers=2, bidirectional=True, lengths=True, dropout=0.4)
    with kernels(isa):
        helpers.assert_gradients(functional, case, helpers.draw(case))


# ---------------------------------------------------------------------------------------------------------------------
# One step at a time
# ---------------------------------------------------------------------------------------------------------------------


def cases_of_streams(dtype, cell):
    options = {
        "B": (1, 2, 7, 13),
        "I": (1, 8, 37),
        "H": (1, 4, 16, 35),
        "num_layers": (1, 3),
        "bias": (True, False),
        "state": (True, False),
    }
    if cell == "lstm":
        options["proj_size"] = (0, 1, 15)
    return [Case(cell, dtype, T=4, resets=True, **row) for row in covering(options, possible)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_streams_equal_the_reference(isa, dtype, cell):
    for case in cases_of_streams(dtype, cell):
        data, expected, allowed = helpers.drawn(case)
        with kernels(isa):
            stream = helpers.layer_of(case, data).stream(case.B)
            if case.state:
                stream.state = helpers.as_state(data.state)
            y = []
            for x_t, reset in zip(data.x, data.resets, strict=True):
                stream.reset(np.flatnonzero(reset))
                y.append(stream.step(x_t))
            got = {"y": np.stack(y), **helpers.named_state(stream.state, "", "_n")}
        helpers.assert_within(got, {name: expected[name] for name in got}, allowed)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", CELLS)
def test_streams_select_rows(isa, cell):
    case = Case(cell, "float32", T=6, B=4, num_layers=2)
    rows = np.array([3, 0, 0, 2, 3])
    data = helpers.draw(case)
    second = replace(data, x=data.x[3:, rows], state=tuple(np.zeros((2, 5, s.shape[2]), s.dtype) for s in data.state))
    with kernels(isa):
        layer = helpers.layer_of(case, data)
        stream = layer.stream(4)
        for x_t in data.x[:3]:
            stream.step(x_t)
        state = stream.state
        stream.select(rows)
        assert stream.batch_size == 5
        chosen = helpers.as_state([s[:, rows] for s in (state if isinstance(state, tuple) else (state,))])
        helpers.assert_same_bits(helpers.named_state(stream.state, "", ""), helpers.named_state(chosen, "", ""))
        other = layer.stream(5)
        other.state = chosen
        for x_t in second.x:
            np.testing.assert_array_equal(stream.step(x_t), other.step(x_t))


# ---------------------------------------------------------------------------------------------------------------------
# _core itself: what the Python layers rely on
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"lengths": True, "bidirectional": True}, {"resets": True}])
def test_a_reserve_serves_any_number_of_backwards_and_gradients_accumulate(isa, cell, options):
    case = Case(cell, "float32", T=9, B=7, H=19, num_layers=2, dropout=0.3, **options)
    data = helpers.draw(case)
    weights = list(data.weights.values())
    problem = _core.Problem(cell, "float32", case.I, case.H, 0, 2, case.bidirectional, True)
    y = np.full_like(data.dy, np.nan)
    h_n, c_n = (np.full_like(s, np.nan) for s in (data.state * 2)[:2])
    h_0, c_0 = (*data.state, None)[:2]
    dh_n, dc_n = (*data.dstate, None)[:2]
    c_n = c_n if cell == "lstm" else None

    def backward(dweights):
        dx, dh_0 = np.full_like(data.x, np.nan), np.full_like(h_n, np.nan)
        dc_0 = None if c_n is None else np.full_like(c_n, np.nan)
        out = (dx, dh_0, dc_0)
        _core.backward(problem, reserve, data.x, y, weights, data.dy, dh_n, dc_n, True, dweights, memory, 2, out)
        return {"dx": dx, "dh_0": dh_0} | ({} if dc_0 is None else {"dc_0": dc_0})

    with kernels(isa):
        memory = _core.Memory()
        options = (data.lengths, data.resets, 0.3, data.dropout_seed, True, memory, 2, (y, h_n, c_n))
        reserve = _core.forward(problem, data.x, h_0, c_0, weights, *options)[3]
        assert reserve.nbytes > 0
        once, twice = ([np.zeros_like(w) for w in weights] for _ in range(2))
        first = backward(once)
        # Another pass through the same memory in between must not reach into the reserve.
        _core.forward(problem, data.x + 1, None, None, weights, None, None, 0.0, 0, False, memory, 2)
        second = backward(twice)
        helpers.assert_same_bits(second, first)
        for a, b in zip(twice, once, strict=True):
            assert a.tobytes() == b.tobytes()
        backward(twice)
        for a, b in zip(twice, once, strict=True):
            np.testing.assert_allclose(a, 2 * b, rtol=0, atol=8 * np.finfo(np.float32).eps * helpers.largest(b))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", CELLS)
def test_packed_rows_by_address_give_what_lengths_give(isa, cell):
    case = Case(cell, "float64", T=9, B=7, H=19, num_layers=2, bidirectional=True, lengths=True, dropout=0.3)
    data = helpers.draw(case)
    lengths = np.sort(data.lengths)[::-1].copy()
    lengths[0] = case.T
    running = np.arange(case.T)[:, None] < lengths
    weights = list(data.weights.values())
    problem = _core.Problem(cell, "float64", case.I, case.H, 0, 2, True, True)
    options = (lengths, None, 0.3, 5, True, None, 2)
    lstm = cell == "lstm"

    def addresses(*arrays):
        return tuple(None if a is None else a.ctypes.data for a in arrays)

    with kernels(isa):
        y, h_n, c_n, reserve = _core.forward(problem, data.x, None, None, weights, *options)
        wanted = [np.zeros_like(w) for w in weights]
        gradients = (data.dy, None, None, True, wanted, None, 2)
        dx, dh_0, dc_0 = _core.backward(problem, reserve, data.x, y, weights, *gradients)

        x, dy = data.x[running], data.dy[running]
        results = np.full_like(dy, np.nan), np.full_like(h_n, np.nan), np.full_like(c_n, np.nan) if lstm else None
        pointers = list(addresses(*weights))
        sequence = (x.ctypes.data, case.T, case.B, True)
        *_, kept = _core.forward(problem, sequence, None, None, pointers, *options, addresses(*results))
        assert memoryview(kept).nbytes == kept.nbytes == reserve.nbytes
        got = [np.zeros_like(w) for w in weights]
        grads = np.full_like(x, np.nan), np.full_like(h_n, np.nan), np.full_like(c_n, np.nan) if lstm else None
        gradients = (dy.ctypes.data, None, None, True, list(addresses(*got)), None, 2, addresses(*grads))
        _core.backward(problem, kept, x.ctypes.data, results[0].ctypes.data, pointers, *gradients)
    assert results[0].tobytes() == y[running].tobytes()
    assert grads[0].tobytes() == dx[running].tobytes()
    for a, b in zip((*results[1:], *grads[1:], *got), (h_n, c_n, dh_0, dc_0, *wanted), strict=True):
        assert (a is None and b is None) or a.tobytes() == b.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("cell", "proj_size"), [(cell, 0) for cell in CELLS] + [("lstm", 4)])
def test_gradients_that_are_not_wanted_change_no_others(isa, cell, proj_size):
    case = Case(cell, "float32", T=6, B=5, H=19, num_layers=2, proj_size=proj_size)
    data = helpers.draw(case)
    weights = list(data.weights.values())
    problem = _core.Problem(cell, "float32", case.I, case.H, proj_size, 2, False, True)
    with kernels(isa):
        y, _, _, reserve = _core.forward(problem, data.x, None, None, weights, None, None, 0.0, 0, True, None, 2)

        def backward(need_dx, dweights):
            return _core.backward(
                problem, reserve, data.x, y, weights, data.dy, None, None, need_dx, dweights, None, 2
            )[0]  # fmt: skip

        all_of_them = [np.zeros_like(w) for w in weights]
        dx = backward(True, all_of_them)
        for wanted in [set(), {len(weights) - 1}, *({i} for i in range(5)), {0, 3}]:
            some = [np.zeros_like(w) if i in wanted else None for i, w in enumerate(weights)]
            assert backward(True, some).tobytes() == dx.tobytes()
            for i in wanted:
                assert some[i].tobytes() == all_of_them[i].tobytes()
        assert backward(False, [None] * len(weights)) is None


def test_addresses_that_cannot_be():
    problem = _core.Problem("gru", "float32", 3, 4, 0, 1, False, True)
    weights = [np.zeros(shape, np.float32) for shape in ((12, 3), (12, 4), (12,), (12,))]
    x = np.zeros((5, 3), np.float32)
    lengths = np.array([1, 2], np.int64)
    with pytest.raises(ValueError, match="lengths"):  # packed rows that rise
        _core.forward(
            problem, (x.ctypes.data, 3, 2, True), None, None, weights, lengths, None, 0.0, 0, False, None
        )  # fmt: skip
    for sizes in ((-1, 2), (3, 2**31)):
        with pytest.raises(ValueError, match="steps or rows"):
            _core.forward(
                problem, (x.ctypes.data, *sizes, False), None, None, weights, None, None, 0.0, 0, False, None
            )  # fmt: skip
    with pytest.raises(ValueError, match="x is missing"):
        _core.forward(problem, (0, 5, 1, False), None, None, weights, None, None, 0.0, 0, False, None)


def test_a_problem_tells_its_sizes():
    problem = _core.Problem("lstm", "float64", 3, 5, 2, 4, True, False)
    told = {name: getattr(problem, name) for name in ("cell", "dtype", "input_size", "hidden_size", "proj_size")}
    assert told == {"cell": "lstm", "dtype": "float64", "input_size": 3, "hidden_size": 5, "proj_size": 2}
    assert (problem.num_layers, problem.bidirectional, problem.bias) == (4, True, False)
    assert (problem.directions, problem.state_size) == (2, 2)


def test_an_isa_that_is_missing_is_refused():
    before = _core.config()["isa"]
    with pytest.raises(ValueError, match="sse"):
        _core.set_isa("sse")
    assert _core.config()["isa"] == before
    for isa in _core.config()["isa_compiled"]:
        if isa not in ISAS:
            with pytest.raises(ValueError, match=isa):
                _core.set_isa(isa)
