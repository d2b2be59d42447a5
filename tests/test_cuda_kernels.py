"""The CUDA kernels, on a GPU or emulated, against the reference: every cell and dtype; odd sizes; edges."""

import dataclasses
import os

import numpy as np
import pytest

import cuda_calls
import helpers
from cuda_calls import NUMBERS, Call, drawn
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


@pytest.fixture(params=["general", "one_sm"])
def path(request, monkeypatch):
    monkeypatch.setenv("FASTRNN_CUDA_PATH", request.param)
    return request.param


def paths(case, number):
    """Of forward and backward."""
    return Call(device, case, helpers.draw(case), number).paths


def possible(row):
    proj_size = row.get("proj_size", 0)
    if row["path"] == "one_sm" and (proj_size or row["H"] % 2):
        return False
    sums = row["T"] * row["B"] * row["H"] * row["num_layers"] * (1 + row["bidirectional"])
    return not (row["bidirectional"] and row["resets"]) and proj_size < row["H"] and sums <= row["most_sums"]


def cases(cell, number):
    """Any two values of any two options meet in some case."""
    options = {
        "path": ("general", "one_sm"),
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
    for row in covering(options, possible):
        row.pop("most_sums")
        yield row.pop("path"), Case(cell, dtype, **row)


COVERING = [
    pytest.param(path, number, case, id=f"{path}-{number}-{case}")
    for number in NUMBERS
    for cell in CELLS
    for path, case in cases(cell, number)
]


@pytest.mark.parametrize(("path", "number", "case"), COVERING)
def test_equals_the_reference(path, number, case, monkeypatch):
    monkeypatch.setenv("FASTRNN_CUDA_PATH", path)
    assert paths(case, number) == (path, path)
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


@pytest.mark.parametrize("H", [64, 66, 128])
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("cell", CELLS[:3])
def test_whole_blocks_and_slices_equal_the_reference(cell, number, H, monkeypatch):
    monkeypatch.setenv("FASTRNN_CUDA_PATH", "one_sm")
    case = Case(cell, "float64" if number == "float64" else "float32", T=2, B=9, I=5, H=H)
    if H <= 64 or number not in ("float32", "float64"):
        assert paths(case, number) == ("one_sm", "one_sm")
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


@pytest.mark.parametrize("number", ["float32", "bfloat16"])
@pytest.mark.parametrize("kilobytes", [48, 64, 100])
@pytest.mark.skipif(not isinstance(device, cuda_calls.Emulation), reason="a GPU's shared memory is what it is")
def test_where_a_block_has_no_room_the_general_path_serves(number, kilobytes, monkeypatch):
    monkeypatch.setenv("FASTRNN_CUDA_PATH", "one_sm")
    case = Case("lstm", "float32", T=3, B=2, I=3, H=128 if number == "bfloat16" else 64)
    assert paths(case, number) == ("one_sm", "one_sm")
    monkeypatch.setenv("FASTRNN_EMULATION_SHARED", str(kilobytes << 10))
    assert kilobytes > 48 or "general" in paths(case, number)
    data, expected, allowed = drawn(case, number)
    helpers.assert_within(cuda_calls.run(device, case, data, number), expected, allowed)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.skipif(not isinstance(device, cuda_calls.Emulation), reason="places arrays by hand")
def test_arrays_need_no_more_than_their_dtypes_alignment(number, path):
    """Copies of 16 bytes and the pairs of the one-SM path ask for more where there is more."""

    class Offset(cuda_calls.Emulation):
        def put(self, array):
            if array.dtype == np.uint8:  # memory of the kernels' own
                return array.copy()
            buffer = np.empty(array.size + 1, array.dtype)
            buffer[1:] = array.ravel()
            return buffer[1:].reshape(array.shape)

    case = Case("gru", "float64" if number == "float64" else "float32", T=3, B=3, I=8, H=16, num_layers=2)
    data, expected, allowed = drawn(case, number)
    elsewhere = Offset(os.environ["FASTRNN_CUDA_EMULATED"])
    helpers.assert_within(cuda_calls.run(elsewhere, case, data, number), expected, allowed)


def test_the_path_that_suits_the_sizes():
    def of(T=100, B=4, H=64, cell="lstm", number="bfloat16", **options):
        return paths(Case(cell, "float32", T=T, B=B, I=2, H=H, **options), number)

    assert of() == of(H=2) == of(H=128) == of(B=1) == of(bidirectional=True) == ("one_sm", "one_sm")
    assert of(T=1) == of(H=130) == of(H=63) == of(proj_size=3) == ("general", "general")
    assert of(T=4, B=10**4, H=2) == ("general", "general")
    assert of(number="float32", H=128) == ("general", "general")


def test_environment_variables_of_unknown_values(monkeypatch):
    case = Case("gru", T=20, H=3)
    monkeypatch.setenv("FASTRNN_CUDA_GRAPHS", "no")
    with pytest.raises(ValueError, match="FASTRNN_CUDA_GRAPHS must be 'on' or 'off', got 'no'"):
        cuda_calls.run(device, case, helpers.draw(case), "float32")
    monkeypatch.setenv("FASTRNN_CUDA_PATH", "fastest")
    with pytest.raises(ValueError, match="FASTRNN_CUDA_PATH must be 'auto', 'general' or 'one_sm', got 'fastest'"):
        paths(case, "float32")


@pytest.mark.parametrize("cell", CELLS)
def test_the_order_of_threads_changes_no_bit(cell, path, monkeypatch):
    case = Case(cell, "float32", T=3, B=18, H=20, lengths=True)
    data = helpers.draw(case)
    results = []
    for seed in range(3):
        monkeypatch.setenv("FASTRNN_EMULATION_SEED", str(seed))
        results.append(cuda_calls.run(device, case, data, "float32"))
    for other in results[1:]:
        helpers.assert_same_bits(other, results[0])


class SamePlaces:
    """A device whose arrays stand where those of the round before stood."""

    def __init__(self, device):
        self._device, self._arrays, self._next = device, [], 0
        self.module, self.stream, self.get, self.address = device.module, device.stream, device.get, device.address

    def put(self, array):
        fresh = self._device.put(array)
        if self._next == len(self._arrays):
            self._arrays.append(fresh)
        self._next += 1
        place = self._arrays[self._next - 1]
        place[...] = fresh
        return place

    def rewind(self):
        self._next = 0


@pytest.mark.parametrize("graphs", ["on", "off"])
@pytest.mark.parametrize("cell", CELLS)
def test_calls_that_come_again(cell, graphs, monkeypatch):
    monkeypatch.setenv("FASTRNN_CUDA_GRAPHS", graphs)
    case = Case(cell, "float32", T=8, B=3, H=5, num_layers=2, lengths=True, resets=True)
    same, module = SamePlaces(device), device.module
    launches = []
    for seed in range(5):
        same.rewind()
        before = module.graph_launches()
        data = helpers.draw(case, seed)
        again = cuda_calls.run(same, case, data, "float32")
        launches.append(module.graph_launches() - before)
        helpers.assert_same_bits(again, cuda_calls.run(device, case, data, "float32"))
    assert launches == ([0, 0, 2, 2, 2] if graphs == "on" else [0] * 5)
    module.release_graphs()
    same.rewind()
    before = module.graph_launches()
    helpers.assert_same_bits(cuda_calls.run(same, case, data, "float32"), again)
    assert module.graph_launches() == before


@pytest.mark.skipif(not isinstance(device, cuda_calls.Emulation), reason="a GPU cannot be made to refuse a graph")
@pytest.mark.parametrize("fails", ["making", "launching"])
def test_without_graphs_calls_are_launched_one_by_one(fails, monkeypatch):
    """Out of memory for a graph is no error: a call does without."""
    case = Case("lstm", "float32", T=8, B=3, H=5, num_layers=2)
    same, module, data = SamePlaces(device), device.module, helpers.draw(case)
    expected = cuda_calls.run(device, case, data, "float32")
    module.release_graphs()
    before = module.graph_launches()
    monkeypatch.setenv("FASTRNN_EMULATION_GRAPHS_FAIL", fails)
    for _ in range(5):
        same.rewind()
        helpers.assert_same_bits(cuda_calls.run(same, case, data, "float32"), expected)
    assert module.graph_launches() == before
    monkeypatch.delenv("FASTRNN_EMULATION_GRAPHS_FAIL")
    for _ in range(5):
        same.rewind()
        helpers.assert_same_bits(cuda_calls.run(same, case, data, "float32"), expected)
    assert module.graph_launches() > before
    module.release_graphs()


def test_what_a_graph_setting_may_be(monkeypatch):
    monkeypatch.setenv("FASTRNN_CUDA_GRAPHS", "maybe")
    case = Case("gru", "float32", T=1, B=1, H=4)
    with pytest.raises(ValueError, match="FASTRNN_CUDA_GRAPHS must be 'on' or 'off', got 'maybe'"):
        cuda_calls.run(device, case, helpers.draw(case), "float32")


def test_dropout_is_another_every_time():
    case = Case("gru", "float32", T=8, B=3, H=5, num_layers=2, dropout=0.5)
    same, before = SamePlaces(device), device.module.graph_launches()
    data = helpers.draw(case)
    for seed in range(4):
        same.rewind()
        other = dataclasses.replace(data, dropout_seed=seed)
        helpers.assert_same_bits(
            cuda_calls.run(same, case, other, "float32"), cuda_calls.run(device, case, other, "float32")
        )
    assert device.module.graph_launches() == before


def test_backward_twice_gives_the_same(path):
    case = Case("gru", "float32", T=4, B=3, H=6, num_layers=2, bidirectional=True, dropout=0.4, lengths=True)
    data = helpers.draw(case)
    call = Call(device, case, data, "float32")
    call.forward()
    helpers.assert_same_bits(call.backward(), call.backward())


@pytest.mark.parametrize(("T", "B"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_to_do(cell, T, B, path):
    case = Case(cell, T=T, B=B, H=6, num_layers=2, bidirectional=True)
    data, expected, allowed = helpers.drawn(case)
    helpers.assert_within(cuda_calls.run(device, case, data, "float64"), expected, allowed)


@pytest.mark.parametrize("proj_size", [0, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_past_a_rows_end_is_read(cell, proj_size, path):
    if proj_size and cell != "lstm":
        pytest.skip("only an LSTM is projected")
    if proj_size and path == "one_sm":
        pytest.skip("what is projected takes the general path")
    case = Case(cell, "float32", T=4, B=5, H=6, num_layers=2, bidirectional=True, proj_size=proj_size, lengths=True)
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
def test_nan_stays_where_it_belongs(cell, path):
    case = Case(cell, "float32", T=3, B=18, H=6, lengths=True)
    data = helpers.draw(case)
    clean = cuda_calls.run(device, case, data, "float32")
    row = int(np.argmax(data.lengths))
    data.x[0, row] = np.nan
    got = cuda_calls.run(device, case, data, "float32")
    assert np.isnan(got["y"][0, row]).all()
    others = np.arange(case.B) != row
    for name in ("y", "dx", "dh_0"):
        assert np.array_equal(got[name][:, others], clean[name][:, others]), name
