"""The CUDA kernels, on a GPU or emulated, against the reference: every cell and dtype; odd sizes; edges."""

import itertools

import numpy as np
import pytest

import cuda_calls
import helpers
from cuda_calls import EPS, NUMBERS, Call
from helpers import Case, covering

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
device = cuda_calls.device()

pytestmark = pytest.mark.skipif(
    device is None, reason="no CUDA device and no emulation of one: see tests/cuda_calls.py"
)


@pytest.fixture(autouse=True)
def _order(request, monkeypatch):
    """Another order of threads and blocks for every test, the same in every run."""
    monkeypatch.setenv("FASTRNN_EMULATION_SEED", str(sum(map(ord, request.node.name))))


def possible(row):
    proj_size = row.get("proj_size", 0)
    sums = row["T"] * row["B"] * row["H"] * row["num_layers"] * (1 + row["bidirectional"])
    return not (row["bidirectional"] and row["resets"]) and proj_size < row["H"] and sums <= row["most_sums"]


def cases(cell, number):
    """Any two values of any two options meet in some case."""
    options = {
        "T": (1, 2, 5),
        "B": (1, 3, 17),
        "I": (1, 4, 19, 72),
        "H": (1, 8, 17, 34),
        "num_layers": (1, 2, 3),
        "bidirectional": (False, True),
        "bias": (True, False),
        "state": (True, False),
        "dropout": (0.0, 0.3),
        "lengths": (False, True),
        "resets": (False, True),
        # The rectifier's jump at 0 leaves few draws without a sum within the rounding errors of few bits.
        "most_sums": (24 if cell == "rnn_relu" and number not in ("float32", "float64") else 10**9,),
    }
    if cell == "lstm":
        options["proj_size"] = (0, 1, 7, 16)
    dtype = "float64" if number == "float64" else "float32"
    rows = [{k: v for k, v in row.items() if k != "most_sums"} for row in covering(options, possible)]
    return [Case(cell, dtype, **row) for row in rows]


def drawn(case, number):
    if number in ("float32", "float64"):
        return helpers.drawn(case)
    for seed in itertools.count():
        data = cuda_calls.rounded(helpers.draw(case, seed), number)
        if case.cell == "rnn_relu" and helpers.near_zero(case, data, EPS[number]):
            continue
        expected = helpers.exact(case, data)
        return data, expected, cuda_calls.tolerances(case, data, expected, EPS[number])


COVERING = [
    pytest.param(number, case, id=f"{number}-{case}")
    for number in NUMBERS
    for cell in CELLS
    for case in cases(cell, number)
]


@pytest.mark.parametrize(("number", "case"), COVERING)
def test_equals_the_reference(number, case):
    data, expected, allowed = drawn(case, number)
    helpers.assert_within(cuda_calls.run(device, case, data, number), expected, allowed)
    if case.dropout == 0:  # without training less is kept
        values = Call(device, case, data, number, training=False).forward()
        helpers.assert_within(values, {name: expected[name] for name in values}, allowed)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("cell", "proj_size"), [("lstm", 0), ("lstm", 30), ("gru", 0), ("rnn_tanh", 0)])
def test_several_blocks_and_stages_equal_the_reference(cell, proj_size, number):
    dtype = "float64" if number == "float64" else "float32"
    case = Case(cell, dtype, T=2, B=40, I=136, H=72, proj_size=proj_size, lengths=True)
    data, expected, allowed = drawn(case, number)
    helpers.assert_within(cuda_calls.run(device, case, data, number), expected, allowed)


@pytest.mark.parametrize("cell", CELLS)
def test_weight_gradients_are_added_to_what_is_there(cell):
    case = Case(cell, T=3, B=2, num_layers=2)
    data, expected, allowed = helpers.drawn(case)
    call = Call(device, case, data, "float64")
    call.forward()
    before = [np.random.default_rng(i).standard_normal(w.shape) for i, w in enumerate(data.weights.values())]
    got = call.backward([b.copy() for b in before], need_dx=False)
    assert "dx" not in got
    for name, b in zip(data.weights, before, strict=True):
        np.testing.assert_allclose(got[f"d{name}"] - b, expected[f"d{name}"], rtol=0, atol=allowed[f"d{name}"] + 1e-15)


@pytest.mark.parametrize("cell", CELLS)
def test_the_order_of_threads_changes_no_bit(cell, monkeypatch):
    case = Case(cell, "float32", T=3, B=18, H=20, lengths=True)
    data = helpers.draw(case)
    results = []
    for seed in range(3):
        monkeypatch.setenv("FASTRNN_EMULATION_SEED", str(seed))
        results.append(cuda_calls.run(device, case, data, "float32"))
    for other in results[1:]:
        helpers.assert_same_bits(other, results[0])


def test_backward_twice_gives_the_same():
    case = Case("gru", "float32", T=4, B=3, num_layers=2, bidirectional=True, dropout=0.4, lengths=True)
    data = helpers.draw(case)
    call = Call(device, case, data, "float32")
    call.forward()
    helpers.assert_same_bits(call.backward(), call.backward())


@pytest.mark.parametrize(("T", "B"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_to_do(cell, T, B):
    case = Case(cell, T=T, B=B, num_layers=2, bidirectional=True)
    data, expected, allowed = helpers.drawn(case)
    helpers.assert_within(cuda_calls.run(device, case, data, "float64"), expected, allowed)


@pytest.mark.parametrize("proj_size", [0, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_past_a_rows_end_is_read(cell, proj_size):
    if proj_size and cell != "lstm":
        pytest.skip("only an LSTM is projected")
    case = Case(cell, "float32", T=4, B=5, num_layers=2, bidirectional=True, proj_size=proj_size, lengths=True)
    data = helpers.draw(case)
    past = np.arange(case.T)[:, None] >= data.lengths
    assert past.any()
    clean = cuda_calls.run(device, case, data, "float32")
    data.x[past] = np.inf
    data.dy[past] = np.nan
    helpers.assert_same_bits(cuda_calls.run(device, case, data, "float32"), clean)
    # What comes of weights that are not numbers ends there too.
    data.weights["weight_ih_l0"][:] = np.nan
    got = cuda_calls.run(device, case, data, "float32")
    assert not got["y"][past].any()
    assert not got["dx"][past].any()


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_where_it_belongs(cell):
    case = Case(cell, "float32", T=3, B=18, lengths=True)
    data = helpers.draw(case)
    clean = cuda_calls.run(device, case, data, "float32")
    row = int(np.argmax(data.lengths))
    data.x[0, row] = np.nan
    got = cuda_calls.run(device, case, data, "float32")
    assert np.isnan(got["y"][0, row]).all()
    others = np.arange(case.B) != row
    for name in ("y", "dx", "dh_0"):
        assert np.array_equal(got[name][:, others], clean[name][:, others]), name
