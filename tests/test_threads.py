"""Thread counts, concurrent calls and fork: the results never depend on who else is running."""

import os
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import fastrnn
import helpers
from fastrnn import _core, functional, reference
from helpers import ISAS, Case, kernels

CELLS = tuple(reference.CELLS)

# Large enough that the kernels think more than one thread worth its while.
SHAPES = [
    {"T": 12, "B": 16, "I": 96, "H": 160},
    {"T": 9, "B": 33, "I": 40, "H": 130, "num_layers": 2, "bidirectional": True, "lengths": True, "dropout": 0.3},
    {"T": 9, "B": 24, "I": 200, "H": 131, "num_layers": 2, "resets": True, "lengths": True},
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", SHAPES, ids=["plain", "bidirectional", "resets"])
def test_any_number_of_threads_gives_the_result_and_each_its_bits(isa, cell, options):
    case = Case(cell, "float32", **options)
    data, expected, allowed = helpers.drawn(case)
    for threads in (1, 2, 3, 4):
        with kernels(isa, threads):
            check_result_and_bits(case, data, expected, allowed)


@pytest.mark.parametrize("option", ["lengths", "resets"])
def test_a_projection_on_any_number_of_threads(option):
    case = Case("lstm", "float32", T=9, B=16, I=50, H=130, proj_size=70, num_layers=2, **{option: True})
    data, expected, allowed = helpers.drawn(case)
    for isa in ISAS:
        for threads in (1, 2, 3, 4):
            with kernels(isa, threads):
                check_result_and_bits(case, data, expected, allowed)


def check_result_and_bits(case, data, expected, allowed):
    first = helpers.run(functional, case, data)
    helpers.assert_within(first, expected, allowed)
    helpers.assert_same_bits(helpers.run(functional, case, data), first)
    if case.dropout == 0:  # without a tape the kernels keep less
        untaped, _ = helpers.run_forward(functional, case, data, training=False)
        helpers.assert_within(untaped, {name: expected[name] for name in untaped}, allowed)


# Several chunks of time (see test_kernels); the last is shorter.
CHUNKED = [
    Case("lstm", "float32", T=600, B=8, I=16, H=64),
    Case("gru", "float32", T=600, B=8, I=16, H=64),
    Case("rnn_tanh", "float32", T=600, B=24, I=16, H=64),
    Case("lstm", "float32", T=600, B=8, I=16, H=64, proj_size=48),
]


@pytest.mark.parametrize("threads", [2, 3, 4])
@pytest.mark.parametrize("case", CHUNKED, ids=str)
def test_gradients_over_several_chunks_repeat_to_the_bit_with_and_without_dx(case, threads):
    data, expected, allowed = helpers.drawn(case)
    with kernels(ISAS[0], threads):
        values, tape = helpers.run_forward(functional, case, data)
        first = helpers.run_backward(functional, data, tape, retain=True)
        helpers.assert_within(values | first, expected, allowed)
        without_dx = {name: a for name, a in first.items() if name != "dx"}
        for _ in range(15):
            helpers.assert_same_bits(
                helpers.run_backward(functional, data, tape, need_dx=False, retain=True), without_dx
            )
            helpers.assert_same_bits(helpers.run_backward(functional, data, tape, retain=True), first)


# Rows enough for the threads to split the batch, in uneven shares, and several chunks of time.
SPLIT = [
    Case("lstm", "float32", T=24, B=203, I=9, H=35, num_layers=2),
    Case("gru", "float32", T=24, B=203, I=9, H=35, num_layers=2),
    Case("rnn_tanh", "float32", T=20, B=445, I=9, H=70, num_layers=2),
    Case("rnn_relu", "float64", T=20, B=445, I=9, H=35),  # so many float32 numbers would meet its kink
]


@pytest.mark.parametrize("option", ["bidirectional", "resets"])
@pytest.mark.parametrize("case", SPLIT, ids=str)
def test_threads_that_split_the_batch_give_the_result(case, option):
    case = replace(case, **{option: True})
    data, expected, allowed = helpers.drawn(case)
    for isa, threads in [(ISAS[0], 2), *((isa, 3) for isa in ISAS)]:
        with kernels(isa, threads):
            values, tape = helpers.run_forward(functional, case, data)
            helpers.assert_within(values | helpers.run_backward(functional, data, tape), expected, allowed)
            helpers.assert_same_bits(helpers.run_forward(functional, case, data)[0], values)
            untaped, _ = helpers.run_forward(functional, case, data, training=False)
            helpers.assert_within(untaped, {name: expected[name] for name in untaped}, allowed)


def test_the_number_of_threads_is_told_and_checked():
    before = fastrnn.get_num_threads()
    assert before >= 1
    try:
        fastrnn.set_num_threads(3)
        assert fastrnn.get_num_threads() == 3
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="set_num_threads"):
                fastrnn.set_num_threads(wrong)
        with pytest.raises(TypeError, match="set_num_threads"):
            fastrnn.set_num_threads(1.5)
        assert fastrnn.get_num_threads() == 3
    finally:
        fastrnn.set_num_threads(before)


# ---------------------------------------------------------------------------------------------------------------------
# Many Python threads
# ---------------------------------------------------------------------------------------------------------------------

BUSY = Case("lstm", "float32", T=6, B=8, I=64, H=128, num_layers=2)


def train_once(layer, case, data):
    """Everything but the gradients of the weights."""
    y, state, tape = layer.forward(data.x, helpers.as_state(data.state))
    dx, dstate = layer.backward(tape, data.dy, helpers.as_state(data.dstate))
    return {"y": y, "dx": dx, **helpers.named_state(state, "", "_n"), **helpers.named_state(dstate, "d", "_0")}


@pytest.mark.parametrize("threads", [1, 2])
def test_python_threads_on_different_layers_get_the_serial_bits(threads):
    cases = [replace(BUSY, cell=CELLS[i % len(CELLS)], B=3 + i) for i in range(6)]
    data = [helpers.draw(case, i) for i, case in enumerate(cases)]
    with kernels(ISAS[0], threads), ThreadPoolExecutor(6) as pool:
        expected = [helpers.run(functional, case, d) for case, d in zip(cases, data, strict=True)]

        def work(i):
            for _ in range(15):
                helpers.assert_same_bits(helpers.run(functional, cases[i], data[i]), expected[i])

        list(pool.map(work, range(6)))


@pytest.mark.parametrize("threads", [1, 2])
def test_python_threads_on_one_layer_get_the_serial_bits(threads):
    data = [helpers.draw(BUSY, i) for i in range(4)]
    rounds = 10
    with kernels(ISAS[0], threads), ThreadPoolExecutor(4) as pool:
        layer = helpers.layer_of(BUSY, data[0])
        expected = [train_once(layer, BUSY, d) for d in data]
        once = {name: grad.copy() for name, grad in layer.grads.items()}
        layer.zero_grad()

        def work(i):
            for _ in range(rounds):
                helpers.assert_same_bits(train_once(layer, BUSY, data[i]), expected[i])
                y, _ = layer(data[i].x, helpers.as_state(data[i].state))
                assert y.tobytes() == expected[i]["y"].tobytes()

        list(pool.map(work, range(4)))
    for name, grad in layer.grads.items():  # no addition was lost; their order is free
        allowed = rounds * len(data) * float(np.finfo(np.float32).eps) * helpers.largest(grad)
        np.testing.assert_allclose(grad, rounds * once[name], rtol=0, atol=allowed)


def test_one_tape_serves_backwards_from_several_threads():
    data = helpers.draw(BUSY)
    with kernels(ISAS[0], 2), ThreadPoolExecutor(4) as pool:
        _, tape = helpers.run_forward(functional, BUSY, data)
        expected = helpers.run_backward(functional, data, tape, retain=True)
        results = pool.map(lambda _: helpers.run_backward(functional, data, tape, retain=True), range(12))
        for got in results:
            helpers.assert_same_bits(got, expected)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_other_python_threads_run_during_a_call(direction):
    # Nobody but the call hands the interpreter over: not the loop below, because of the switch interval, and not
    # NumPy, because _core is called as it is. What the other thread then notes, it can only have noted meanwhile.
    T, B, H = 50, 16, 128
    problem = _core.Problem("gru", "float32", H, H, 0, 1, False, True)
    weights = [np.zeros(shape, np.float32) for shape in reference.weight_shapes("gru", H, H).values()]
    x = np.zeros((T, B, H), np.float32)
    options = (None, None, 0.0, 0, True, None, 1)
    y, _, _, reserve = _core.forward(problem, x, None, None, weights, *options)
    gradients = (y, None, None, True, [w.copy() for w in weights], None, 1)
    call = {
        "forward": lambda: _core.forward(problem, x, None, None, weights, *options),
        "backward": lambda: _core.backward(problem, reserve, x, y, weights, *gradients),
    }[direction]
    go, noted = threading.Event(), []
    other = threading.Thread(target=lambda: noted.append(go.wait()))
    other.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        go.set()
        calls = 0
        while not noted and calls < 1000:  # a busy machine may wake the other thread late
            call()
            calls += 1
        during = list(noted)
    finally:
        sys.setswitchinterval(before)
        other.join()
    assert during, f"no other thread ran during {calls} calls"


def test_results_do_not_depend_on_load():
    case = Case("gru", "float32", **SHAPES[1])
    data = helpers.draw(case)
    stop = threading.Event()
    loads = [threading.Thread(target=burn, args=(stop,)) for _ in range(3)]
    with kernels(ISAS[0], 2):
        expected = helpers.run(functional, case, data)
        try:
            for thread in loads:
                thread.start()
            for _ in range(20):
                helpers.assert_same_bits(helpers.run(functional, case, data), expected)
        finally:
            stop.set()
            for thread in loads:
                thread.join()


def burn(stop):
    """Keeps a core busy outside the GIL, mostly."""
    a = np.ones((300, 300))
    while not stop.is_set():
        a = np.tanh(a @ a)


# ---------------------------------------------------------------------------------------------------------------------
# fork
# ---------------------------------------------------------------------------------------------------------------------

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def in_child(work, seconds=60):
    """Runs work in a forked child; fails where it raises, crashes or hangs."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(seconds)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"


@fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_forked_child_gets_the_bits_of_its_parent(threads):
    case = Case("lstm", "float32", **SHAPES[0])
    data = helpers.draw(case)
    with kernels(ISAS[0], threads):
        expected = helpers.run(functional, case, data)

        def work():
            for _ in range(3):
                helpers.assert_same_bits(helpers.run(functional, case, data), expected)

        in_child(work)
        in_child(lambda: in_child(work))
        work()


@fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_other_threads_compute():
    data = helpers.draw(BUSY)
    stop = threading.Event()
    with kernels(ISAS[0], 2):
        expected = helpers.run(functional, BUSY, data)

        def compute():
            while not stop.is_set():
                helpers.run(functional, BUSY, data)

        thread = threading.Thread(target=compute)
        thread.start()
        try:
            for _ in range(5):
                in_child(lambda: helpers.assert_same_bits(helpers.run(functional, BUSY, data), expected))
        finally:
            stop.set()
            thread.join()


@fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_tape_and_a_stream_survive_fork():
    case = Case("gru", "float32", **SHAPES[0])
    data = helpers.draw(case)
    with kernels(ISAS[0], 2):
        _, tape = helpers.run_forward(functional, case, data)
        stream = helpers.layer_of(case, data).stream(case.B)
        stream.step(data.x[0])
        state = stream.state
        gradients = helpers.run_backward(functional, data, tape, retain=True)
        y = stream.step(data.x[1])

        def work():
            helpers.assert_same_bits(helpers.run_backward(functional, data, tape, retain=True), gradients)
            stream.state = state
            np.testing.assert_array_equal(stream.step(data.x[1]), y)

        in_child(work)
        work()
