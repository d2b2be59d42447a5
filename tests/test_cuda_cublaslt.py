"""Products by cuBLASLt: emulated, by a fake that checks what it is asked (tests/cuda/emulation/cublaslt.cpp); on a GPU,
by the one that is found there."""

import ctypes
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import cuda_calls
import helpers
from cuda_calls import EPS, NUMBERS, Call
from fastrnn.cuda import cublaslt
from helpers import Case
from test_cuda_kernels import SamePlaces, drawn

device = cuda_calls.device()
EMULATED = isinstance(device, cuda_calls.Emulation)
WORKSPACE = 32 << 20
FAKE = Path(os.environ.get("FASTRNN_CUDA_EMULATED") or "none").with_name("libcublaslt_fake.so")
FAILURES = [
    "Create",
    "MatmulDescCreate",
    "MatmulDescSetAttribute",
    "MatrixLayoutCreate",
    "MatmulPreferenceCreate",
    "MatmulPreferenceSetAttribute",
    "MatmulAlgoGetHeuristic",
    "Matmul",
]

pytestmark = pytest.mark.skipif(
    device is None, reason="no CUDA device and no emulation of one: see tests/cuda_calls.py"
)
emulated = pytest.mark.skipif(not EMULATED, reason="asks the fake library")


def load(least_work=1):
    """cuBLASLt for all products from so many multiplications on."""
    if EMULATED:
        device.module.load_cublaslt(str(FAKE), resident=False, least_work=least_work)
        return
    used = cublaslt.choose(device.module)
    if used.version is None:
        pytest.skip(f"no cuBLASLt here: {used.text}")
    device.module.load_cublaslt(used.name, resident=False, least_work=least_work)


@pytest.fixture
def library():
    load()
    yield device.module
    device.module.unload_cublaslt()
    cublaslt.choose.cache_clear()  # for whoever comes next


def calls(what):
    fake = ctypes.CDLL(str(FAKE))
    fake.fake_count.restype = ctypes.c_int64
    return fake.fake_count(what.encode())


def dtype_of(number):
    return "float64" if number == "float64" else "float32"


def products_of(case):
    """How many a training step has: W_ih x; dx, the gradients of W_ih, W_hh, in two parts for a GRU, and W_hr."""
    return case.num_layers * (1 + case.bidirectional) * (4 + (case.cell == "gru") + bool(case.proj_size))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "options",
    [
        {"cell": "lstm", "T": 5, "B": 3, "I": 19, "H": 17, "num_layers": 2, "bidirectional": True, "lengths": True},
        {"cell": "lstm", "T": 4, "B": 3, "I": 8, "H": 10, "proj_size": 7, "num_layers": 2, "resets": True},
        {"cell": "gru", "T": 3, "B": 17, "I": 4, "H": 34, "num_layers": 2, "bias": False, "dropout": 0.3},
        {"cell": "gru", "T": 2, "B": 1, "I": 1, "H": 1, "bidirectional": True, "lengths": True},
        {"cell": "rnn_tanh", "T": 9, "B": 2, "I": 72, "H": 8, "bidirectional": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_equals_the_reference(options, number, library):
    options = dict(options)
    case = Case(options.pop("cell"), dtype_of(number), **options)
    data, expected, allowed = drawn(case, number)
    before = library.cublaslt_products()
    helpers.assert_within(cuda_calls.run(device, case, data, number), expected, allowed)
    taken = library.cublaslt_products() - before
    # What the real library has no algorithm for, the own kernel does.
    assert taken == products_of(case) if EMULATED else taken > 0
    if case.dropout == 0:
        values = Call(device, case, data, number, training=False).forward()
        helpers.assert_within(values, {name: expected[name] for name in values}, allowed)


@pytest.mark.parametrize("number", NUMBERS)
def test_weight_gradients_are_added_to_what_is_there(number, library):
    case = Case("gru", dtype_of(number), T=3, B=5, I=6, H=12)
    data, expected, allowed = drawn(case, number)
    call = Call(device, case, data, number)
    call.forward()
    rng = np.random.default_rng(0)
    kept = [cuda_calls.loaded(cuda_calls.stored(rng.standard_normal(w.shape), number), number)
            for w in data.weights.values()]  # fmt: skip
    got = call.backward([b.copy() for b in kept], need_dx=False)
    for name, b in zip(data.weights, kept, strict=True):
        want = expected[f"d{name}"] + b
        rounding = 2 * EPS[number] * helpers.largest(want)
        np.testing.assert_allclose(got[f"d{name}"], want, rtol=0, atol=allowed[f"d{name}"] + rounding)


@emulated
def test_only_tf32_rounds_float32s(library):
    case = Case("rnn_tanh", "float32", T=1, B=4, I=8, H=8, state=False)  # no product but that with x
    data, expected, allowed = helpers.drawn(case)
    y = {number: Call(device, case, data, number).forward()["y"] for number in ("float32", "tf32")}
    error = {number: helpers.largest(y[number] - expected["y"]) for number in y}
    assert error["float32"] <= allowed["y"]
    assert EPS["tf32"] / 64 < error["tf32"] < 8 * EPS["tf32"]


@emulated
@pytest.mark.parametrize("number", NUMBERS)
def test_arrays_need_no_more_than_their_dtypes_alignment(number, library):
    class Offset(cuda_calls.Emulation):
        def put(self, array):
            if array.dtype == np.uint8:  # memory of the kernels' own
                return array.copy()
            buffer = np.empty(array.size + 1, array.dtype)
            buffer[1:] = array.ravel()
            return buffer[1:].reshape(array.shape)

    case = Case("lstm", dtype_of(number), T=3, B=3, I=8, H=16, num_layers=2)
    data, expected, allowed = drawn(case, number)
    elsewhere = Offset(os.environ["FASTRNN_CUDA_EMULATED"])
    before = library.cublaslt_products()
    helpers.assert_within(cuda_calls.run(elsewhere, case, data, number), expected, allowed)
    assert library.cublaslt_products() - before == products_of(case)


@emulated
@pytest.mark.parametrize("told", ["find nothing", *(f"fail {function}" for function in FAILURES)])
def test_what_fails_is_done_by_the_own_kernel(told, library, monkeypatch):
    case = Case("gru", "float32", T=4, B=3, I=5, H=6, num_layers=2, bidirectional=True, lengths=True)
    data, same = helpers.draw(case), SamePlaces(device)
    library.unload_cublaslt()
    own = cuda_calls.run(device, case, data, "float32")
    load()
    monkeypatch.setenv("FASTRNN_FAKE_CUBLASLT", told)
    before, alive = library.cublaslt_products(), calls("alive")
    function = told.removeprefix("fail ") if told != "find nothing" else "MatmulAlgoGetHeuristic"
    called = calls(function)
    helpers.assert_same_bits(cuda_calls.run(same, case, data, "float32"), own)
    assert library.cublaslt_products() == before
    assert calls(function) > called
    called = calls(function)
    same.rewind()
    helpers.assert_same_bits(cuda_calls.run(same, case, data, "float32"), own)
    assert calls(function) == called  # what failed is not tried again
    if function != "Matmul":  # whose plans are gone too
        assert calls("alive") == alive


@emulated
def test_plans_are_made_once(library):
    case = Case("lstm", "float32", T=3, B=4, I=8, H=8)
    data, same = helpers.draw(case), SamePlaces(device)
    cuda_calls.run(same, case, data, "float32")
    created, asked, done = (calls(name) for name in ("Create", "MatmulAlgoGetHeuristic", "Matmul"))
    same.rewind()
    cuda_calls.run(same, case, data, "float32")
    assert (calls("Create"), calls("MatmulAlgoGetHeuristic")) == (created, asked)
    assert calls("Matmul") == done + products_of(case)


def test_small_products_and_workspaces(library):
    case = Case("lstm", "float32", T=3, B=4, I=8, H=8)
    data = helpers.draw(case)
    work = 3 * 4 * 4 * 8 * 8  # of every product
    with_it = Call(device, case, data, "float32").bytes
    load(least_work=work + 1)
    none, before = Call(device, case, data, "float32").bytes, library.cublaslt_products()
    cuda_calls.run(device, case, data, "float32")
    assert library.cublaslt_products() == before
    load(least_work=work)
    assert Call(device, case, data, "float32").bytes == with_it
    assert tuple(np.subtract(with_it, none)) == (0, WORKSPACE, WORKSPACE)
    library.unload_cublaslt()
    assert Call(device, case, data, "float32").bytes == none
    library.load_cublaslt(*((str(FAKE), False) if EMULATED else (cublaslt.choose(library).name, False)))
    assert Call(device, case, data, "float32").bytes == none  # unasked, too, this is a small one


@emulated
def test_nothing_past_a_workspaces_end_is_written(library):
    guard = 4096

    class Guarded(cuda_calls.Emulation):
        def __init__(self, path):
            super().__init__(path)
            self.guards = []

        def put(self, array):
            if array.dtype != np.uint8 or array.size < WORKSPACE:
                return super().put(array)
            space = np.empty(array.size + guard + 256, np.uint8)
            start = -space.ctypes.data % 256
            space[:] = 0xA5
            space[start : start + array.size] = array
            self.guards.append((space, start + array.size))
            return space[start : start + array.size]

    case = Case("gru", "float32", T=3, B=4, I=8, H=8, num_layers=2, bidirectional=True)
    guarded = Guarded(os.environ["FASTRNN_CUDA_EMULATED"])
    data, expected, allowed = helpers.drawn(case)
    helpers.assert_within(cuda_calls.run(guarded, case, data, "float32"), expected, allowed)
    assert len(guarded.guards) == 2
    for space, end in guarded.guards:
        assert (space[end:] == 0xA5).all()


def test_calls_that_come_again(library):
    case = Case("gru", "float32", T=16, B=3, I=5, H=5, lengths=True)
    same, launches = SamePlaces(device), []
    for seed in range(6):
        if seed == 4:  # what was recorded with another library is not for this one
            load()
        same.rewind()
        before, data = library.graph_launches(), helpers.draw(case, seed)
        again = cuda_calls.run(same, case, data, "float32")
        launches.append(library.graph_launches() - before)
        helpers.assert_same_bits(again, cuda_calls.run(device, case, data, "float32"))
    assert launches == [0, 0, 2, 2, 0, 0]


@emulated
def test_a_capture_that_is_the_first_use_goes_without(library, monkeypatch):
    case = Case("lstm", "float32", T=3, B=4, I=8, H=8)
    data, expected, allowed = helpers.drawn(case)
    monkeypatch.setenv("FASTRNN_EMULATION_CAPTURING", "1")
    before, created = library.cublaslt_products(), calls("Create")
    helpers.assert_within(cuda_calls.run(device, case, data, "float32"), expected, allowed)
    assert (library.cublaslt_products(), calls("Create")) == (before, created)
    monkeypatch.delenv("FASTRNN_EMULATION_CAPTURING")
    cuda_calls.run(device, case, data, "float32")
    monkeypatch.setenv("FASTRNN_EMULATION_CAPTURING", "1")
    before = library.cublaslt_products()
    helpers.assert_within(cuda_calls.run(device, case, data, "float32"), expected, allowed)
    assert library.cublaslt_products() - before == products_of(case)


def test_nothing_past_a_rows_end_is_read(library):
    case = Case("lstm", "float32", T=4, B=5, H=6, num_layers=2, bidirectional=True, lengths=True)
    data = helpers.draw(case)
    past = np.arange(case.T)[:, None] >= data.lengths
    assert past.any()
    clean = cuda_calls.run(device, case, data, "float32")
    data.x[past] = np.inf
    data.dy[past] = np.nan
    helpers.assert_same_bits(cuda_calls.run(device, case, data, "float32"), clean)
    data.weights["weight_ih_l0"][:] = np.nan
    got = cuda_calls.run(device, case, data, "float32")
    assert not got["y"][past].any()
    assert not got["dx"][past].any()


@pytest.mark.parametrize(("T", "B"), [(0, 3), (3, 0)])
def test_nothing_to_do(T, B, library):
    case = Case("lstm", T=T, B=B, H=6, num_layers=2, bidirectional=True)
    data, expected, allowed = helpers.drawn(case)
    helpers.assert_within(cuda_calls.run(device, case, data, "float64"), expected, allowed)


@emulated
def test_what_cannot_be_loaded(library, monkeypatch, tmp_path):
    module = device.module
    with pytest.raises(RuntimeError, match=r"^libnone\.so: cannot open shared object file: No such file"):
        module.load_cublaslt("libnone.so", False)
    elsewhere = shutil.copy(FAKE, tmp_path)
    with pytest.raises(RuntimeError, match=f"^{re.escape(elsewhere)}: "):
        module.load_cublaslt(elsewhere, True)
    module.load_cublaslt(elsewhere, False)
    module.load_cublaslt(elsewhere, True)
    with pytest.raises(RuntimeError, match=r": has no cublasLtGetVersion$"):
        module.load_cublaslt(os.environ["FASTRNN_CUDA_EMULATED"], True)
    for version in (10300, 140000):
        monkeypatch.setenv("FASTRNN_FAKE_CUBLASLT", f"version {version}")
        with pytest.raises(RuntimeError, match=rf"is version {version}, known are those of cuBLASLt 11 to 13$"):
            module.load_cublaslt(str(FAKE), False)
    for version in (111003, 120001, 131000):
        monkeypatch.setenv("FASTRNN_FAKE_CUBLASLT", f"version {version}")
        assert module.load_cublaslt(str(FAKE), True) == version
