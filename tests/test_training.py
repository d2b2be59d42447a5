"""What lasts between calls: tapes, gradients, weights, copies, threads, memory."""

import copy
import gc
import os
import pickle
import signal
import threading
import warnings
import weakref

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrnn
from fastrnn import _core, functional
from layering import B, H, I, T, assert_same, cells, in_threads, make, normal, random_state, train

# ---------------------------------------------------------------------------------------------------------------------
# Tapes and gradients
# ---------------------------------------------------------------------------------------------------------------------


def test_several_tapes_in_any_order():
    layer = make("lstm", 2, dropout=0.3)
    inputs = [normal(steps, B, I, seed=steps) for steps in (3, 7, 5)]
    expected = [train(layer, x, dropout_seed=i) for i, x in enumerate(inputs)]
    passes = [layer.forward(x, dropout_seed=i) for i, x in enumerate(inputs)]
    total = dict.fromkeys(layer.grads, 0.0)
    for i in (1, 2, 0):
        y, _, tape = passes[i]
        dx, _ = layer.backward(tape, normal(*y.shape, seed=7))
        assert_array_equal(dx, expected[i]["dx"])
        total = {name: g + expected[i][f"d{name}"] for name, g in total.items()}
        assert tape.consumed
    for name, g in layer.grads.items():  # gradients are added up
        assert_allclose(g, total[name], atol=1e-13)


def test_retain_keeps_the_tape():
    layer, x = make("gru", 2), normal(T, B, I)
    expected = train(layer, x)
    y, _, tape = layer.forward(x)
    dy = normal(*y.shape, seed=7)
    for _ in range(2):
        assert_array_equal(layer.backward(tape, dy, retain=True)[0], expected["dx"])
    assert not tape.consumed
    layer.backward(tape, dy)
    for name, g in layer.grads.items():
        assert_allclose(g, 3 * expected[f"d{name}"], rtol=1e-13)


def test_outputs_of_forward_are_read_only():
    for options in ({}, {"batch_first": True}):
        layer = make("lstm", **options)
        for x in (normal(T, B, I), normal(T, I)):
            y, (h_n, c_n), _ = layer.forward(x)
            assert not any(a.flags.writeable for a in (y, h_n, c_n))
            with pytest.raises(ValueError, match="read-only"):
                y[0] = 1


def test_a_tape_lets_go_of_what_it_keeps():
    layer = make("lstm")

    def forward():
        x = normal(T, B, I)
        return weakref.ref(x), layer.forward(x)

    x, (y, _, tape) = forward()
    assert x() is not None
    assert tape.nbytes > 0
    layer.backward(tape, np.ones_like(y))
    assert x() is None
    assert tape.nbytes == 0
    assert tape.consumed
    x, (y, _, tape) = forward()
    del tape
    assert x() is None


def test_the_tape_keeps_the_weights_of_its_forward():
    layer, x = make("gru", 2), normal(T, B, I)
    expected = train(layer, x)
    y, _, tape = layer.forward(x)
    for name, a in layer.parameters.items():
        layer.parameters[name] = a + 1
    assert_array_equal(layer.backward(tape, normal(*y.shape, seed=7))[0], expected["dx"])


def test_dx_is_optional():
    layer, x = make("lstm", 2), normal(T, B, I)
    expected = train(layer, x)
    y, _, tape = layer.forward(x)
    dx, (dh_0, _) = layer.backward(tape, normal(*y.shape, seed=7), need_dx=False)
    assert dx is None
    assert_allclose(dh_0, expected["dh_0"], atol=1e-14)
    for name, g in layer.grads.items():
        assert_allclose(g, expected[f"d{name}"], atol=1e-14)


def test_missing_gradients_are_zeros():
    layer, x = make("lstm", 2), normal(T, B, I)
    dh, dc = random_state(layer, B, seed=5)
    zeros = np.zeros((T, B, H))

    def gradients(dy, dstate):
        _, _, tape = layer.forward(x)
        dx, (dh_0, dc_0) = layer.backward(tape, dy, dstate)
        results = {"dx": dx, "dh_0": dh_0, "dc_0": dc_0} | {name: g.copy() for name, g in layer.grads.items()}
        layer.zero_grad()
        return results

    assert_same(gradients(None, (dh, dc)), gradients(zeros, (dh, dc)))
    assert_same(gradients(None, (dh, None)), gradients(zeros, (dh, 0 * dc)))
    assert_same(gradients(None, (None, dc)), gradients(zeros, (0 * dh, dc)))
    assert_same(gradients(zeros + 1, None), gradients(zeros + 1, (0 * dh, 0 * dc)))


# ---------------------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------------------


@cells
def test_every_call_uses_the_weights_of_its_moment(cell):
    layer, other = make(cell, 2), make(cell, 2, seed=9)
    x = normal(T, B, I)
    before, expected = train(layer, x), train(other, x)
    for i, (name, a) in enumerate(other.parameters.items()):
        if i % 2:
            layer.parameters[name] = a.copy()
        else:
            layer.parameters[name][...] = a
    assert_same(train(layer, x), expected, atol=0)
    assert not np.allclose(before["y"], expected["y"])
    layer.grads["weight_hh_l1"] = np.ones_like(layer.grads["weight_hh_l1"])
    y, _, tape = layer.forward(x)
    layer.backward(tape, normal(*y.shape, seed=7))
    assert_allclose(layer.grads["weight_hh_l1"], expected["dweight_hh_l1"] + 1, atol=1e-13)


def test_weights_may_be_views_of_one_buffer():
    layer, expected = make("lstm", 2), make("lstm", 2)
    size = sum(a.size for a in layer.parameters.values())
    buffers, start = (np.zeros(size), np.zeros(size)), 0
    for name, a in layer.parameters.items():
        for buffer, arrays in zip(buffers, (layer.parameters, layer.grads), strict=True):
            view = buffer[start : start + a.size].reshape(a.shape)
            view[...] = arrays[name]
            arrays[name] = view
        start += a.size
    x = normal(T, B, I)
    assert_same(train(layer, x), train(expected, x), atol=0)


def test_state_dict_is_a_copy_and_loads_back():
    layer, other = make("lstm", 2), make("lstm", 2, seed=9)
    state = layer.state_dict()
    arrays = dict(other.parameters)
    assert list(state) == list(layer.parameters)
    state["bias_hh_l0"][...] += 1
    assert not np.array_equal(state["bias_hh_l0"], layer.parameters["bias_hh_l0"])
    other.load_state_dict(state)
    for name, a in other.parameters.items():
        assert a is arrays[name]  # written into, not replaced
        assert_array_equal(a, state[name])
        assert not np.shares_memory(a, state[name])


@pytest.mark.parametrize("given", ["float16", "float32", "float64", "longdouble", ">f4"])
def test_loading_converts_between_floating_dtypes(given):
    layer = make("gru", dtype="float32")
    state = {name: a.astype(given) for name, a in make("gru", seed=9).state_dict().items()}
    layer.load_state_dict(state)
    for name, a in layer.parameters.items():
        assert a.dtype == "float32"
        assert_array_equal(a, state[name].astype("float32"))


def test_loading_values_that_are_the_layers_own():
    layer = fastrnn.RNN(H, H, 3, bias=False, dtype="float64", seed=0)
    before, names = layer.state_dict(), list(layer.parameters)
    rotated = dict(zip(names, [layer.parameters[name] for name in names[2:] + names[:2]], strict=True))
    layer.load_state_dict(rotated)
    for name, source in zip(names, names[2:] + names[:2], strict=True):
        assert_array_equal(layer.parameters[name], before[source])


def test_zero_grad_is_in_place():
    layer = make("lstm")
    arrays = dict(layer.grads)
    y, _, tape = layer.forward(normal(T, B, I))
    layer.backward(tape, np.ones_like(y))
    assert any(g.any() for g in layer.grads.values())
    layer.zero_grad()
    assert all(layer.grads[name] is a and not a.any() for name, a in arrays.items())


# ---------------------------------------------------------------------------------------------------------------------
# Pickle and copy
# ---------------------------------------------------------------------------------------------------------------------


def pickled(layer):
    return pickle.loads(pickle.dumps(layer))


@cells
@pytest.mark.parametrize("duplicate", [pickled, copy.copy, copy.deepcopy])
def test_a_copy_goes_on_exactly_as_the_original(cell, duplicate):
    layer = make(cell, 2, dropout=0.5, batch_first=True)
    x = normal(B, T, I)
    layer.forward(x)  # moves the generator
    y, _, tape = layer.forward(x)
    layer.backward(tape, np.ones_like(y))
    twin = duplicate(layer)
    assert type(twin) is type(layer)
    assert repr(twin) == repr(layer)
    for ours, theirs in ((layer.parameters, twin.parameters), (layer.grads, twin.grads)):
        assert ours is not theirs
        assert list(ours) == list(theirs)
        for name, a in ours.items():
            assert_array_equal(a, theirs[name])
            assert (a is theirs[name]) == (duplicate is copy.copy)
    results = []
    for each in (layer, twin):
        each.zero_grad()
        results.append([train(each, x) for _ in range(2)])
    for a, b in zip(*results, strict=True):
        assert_same(a, b, atol=0)


@pytest.mark.parametrize("duplicate", [pickled, copy.copy, copy.deepcopy])
def test_a_copy_is_another_layer_to_a_tape(duplicate):
    layer = make("gru")
    y, _, tape = layer.forward(normal(T, B, I))
    with pytest.raises(ValueError, match="gru: tape must be one of this layer's"):
        duplicate(layer).backward(tape, np.ones_like(y))


def test_copies_do_not_warn_again():
    with pytest.warns(UserWarning, match="no effect"):
        layer = fastrnn.GRU(I, H, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pickled(layer).dropout == 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Threads
# ---------------------------------------------------------------------------------------------------------------------
def test_calls_from_several_threads_give_the_serial_result():
    layer, count = make("lstm", 2, dropout=0.3), 8
    inputs = [normal(T + i, B, I, seed=i) for i in range(count)]
    expected = [train(layer, x, dropout_seed=i) for i, x in enumerate(inputs)]

    def work(i):
        y, _, tape = layer.forward(inputs[i], dropout_seed=i)
        return y, layer.backward(tape, normal(*y.shape, seed=7))[0], layer(inputs[i])[0]

    for (y, dx, inferred), want, x in zip(in_threads(count, work), expected, inputs, strict=True):
        assert_array_equal(y, want["y"])
        assert_array_equal(dx, want["dx"])
        assert_array_equal(inferred, layer(x)[0])
    for name, g in layer.grads.items():
        assert_allclose(g, sum(want[f"d{name}"] for want in expected), atol=1e-12)


@pytest.mark.parametrize("of_layer", [True, False])
def test_of_two_threads_with_one_tape_one_wins(of_layer):
    layer, x = make("gru", 2), normal(50, 8, I)
    expected = train(layer, x, dy=np.ones((50, 8, H)))
    for _ in range(20):
        if of_layer:
            y, _, tape = layer.forward(x)
            results = in_threads(2, lambda _, tape=tape, y=y: layer.backward(tape, np.ones_like(y))[0])
            assert_allclose(layer.grads["weight_hh_l1"], expected["dweight_hh_l1"], atol=1e-12)
            layer.zero_grad()
        else:
            y, _, tape = functional.forward("gru", x, layer.parameters)
            results = in_threads(2, lambda _, tape=tape, y=y: functional.backward(tape, np.ones_like(y))[0])
        errors = [r for r in results if isinstance(r, Exception)]
        assert len(errors) == 1
        assert isinstance(errors[0], ValueError)
        assert "consumed" in str(errors[0])
        (dx,) = (r for r in results if not isinstance(r, Exception))
        assert_array_equal(dx, expected["dx"])


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_during_backward_leaves_the_layer_usable():
    # Large enough that the other thread is in backward, and holds the layer's lock, nearly always.
    layer = fastrnn.LSTM(64, 64, seed=0)
    x, stop = normal(40, 16, 64, dtype="float32"), threading.Event()
    y, _, tape = layer.forward(x)

    def work():
        while not stop.is_set():
            layer.backward(tape, y, retain=True)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    signal.alarm(30)
                    layer.backward(tape, y, retain=True)
                    layer.zero_grad()
                    y, _, own = layer.forward(x)
                    layer.backward(own, y)
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        worker.join()


def test_workspaces_are_cached_for_live_layers_only():
    gc.collect()  # layers of other tests may wait for it
    fastrnn.release_memory()
    layer, x = make("lstm", dtype="float32"), normal(50, 8, I, dtype="float32")
    before = _core.cached_bytes()
    for _ in range(2):
        y, _, tape = layer.forward(x)
        layer.backward(tape, np.ones_like(y))
    assert _core.cached_bytes() > before
    fastrnn.release_memory()
    assert _core.cached_bytes() == 0
    y, _, tape = layer.forward(x)
    layer.backward(tape, np.ones_like(y))
    assert _core.cached_bytes() > 0
    del layer, tape
    assert _core.cached_bytes() <= before
