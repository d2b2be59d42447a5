"""Whose arrays come and go, and on which streams. What is looked up in the stand-ins is emulated only."""

import contextlib
import types
import weakref

import numpy as np
import pytest

import fake_cupy
import fastrnn
import gpu_arrays
from fastrnn import functional
from fastrnn.cuda import extension, libraries
from gpu_arrays import CuPys, Others, Torchs, emulated_only, libraries_here

pytestmark = gpu_arrays.needs_kernels


@pytest.fixture(scope="module", autouse=True)
def _installed():
    with gpu_arrays.installed():
        yield


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture
def streams(monkeypatch):
    """Handles of the streams that kernels were launched on, and the device that was current."""
    seen, module = [], extension.module

    def recorded(function):
        def call(*args):
            accumulate = args[-1:] if isinstance(args[-1], bool) else ()
            handle = args[len(args) - len(accumulate) - 1]
            seen.append((handle, fake_cupy.cuda.Device().id))
            return function(*args[: len(args) - len(accumulate) - 1], 0, *accumulate)  # the emulation has no other

        return call

    stand_in = types.SimpleNamespace(Options=module.Options, sizes=module.sizes, Problem=module.Problem)
    stand_in.forward, stand_in.backward = recorded(module.forward), recorded(module.backward)
    monkeypatch.setattr(extension, "module", stand_in)
    monkeypatch.setattr(fake_cupy.cuda, "waits", [])
    return seen


def run(layer, library, **kwargs):
    x = library.put(floats(3, 2, 4))
    y, h_n, tape = layer.forward(x, **kwargs)
    dx, dh_0 = layer.backward(tape, library.put(floats(3, 2, 5)))
    return [library.get(a) for a in (y, h_n, dx, dh_0)]


def test_every_librarys_arrays_give_the_same():
    layer = fastrnn.GRU(4, 5, device="cuda", seed=0)
    first, *others = [run(layer, library) for library in libraries_here()]
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@emulated_only
def test_kernels_run_on_cupys_current_stream(streams):
    layer = fastrnn.GRU(4, 5, device="cuda", seed=0)
    with fake_cupy.cuda.Stream(0x77)():
        run(layer, CuPys())
    run(layer, CuPys())
    assert streams == [(0x77, 0), (0x77, 0), (0, 0), (0, 0)]
    assert fake_cupy.cuda.waits == []


@emulated_only
def test_kernels_run_on_torchs_stream_and_wait_for_the_weights(streams, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(libraries.Torch, "on", lambda self, index: contextlib.nullcontext(0x55))
    layer = fastrnn.GRU(4, 5, device="cuda", seed=0)
    with fake_cupy.cuda.Stream(0x77)():
        run(layer, Torchs())
    assert [handle for handle, _ in streams] == [0x55, 0x55]
    # Before each call torch's stream waits for CuPy's, on which the weights were written; after it the other way.
    assert [tuple(pair) for pair in fake_cupy.cuda.waits] == [(0x55, 0x77), (0x77, 0x55)] * 2


@emulated_only
def test_backward_and_forward_may_have_streams_of_their_own(streams, monkeypatch):
    layer, x = fastrnn.GRU(4, 5, device="cuda", seed=0), CuPys().put(floats(3, 2, 4))
    forwards = fake_cupy.cuda.Stream(0x77)
    with forwards():
        y, _, tape = layer.forward(x)
    with fake_cupy.cuda.Stream(0x88)():
        layer.backward(tape, y, retain=True)
    ordered = [(0x88, 0x77), (0x77, 0x88)]  # forward first; what it kept is free when backward is done
    assert fake_cupy.cuda.waits == ordered
    with forwards():
        layer.backward(tape, y, retain=True)
    assert fake_cupy.cuda.waits == ordered
    monkeypatch.setattr(fake_cupy.cuda.Stream, "capturing", True)
    monkeypatch.setattr(libraries.CuPy, "empty", lambda self, *args: y)  # which is refused before
    with pytest.raises(RuntimeError, match="the stream that captures the CUDA graph of a backward must be that of its"):
        layer.backward(tape, y)
    assert [handle for handle, _ in streams] == [0x77, 0x88, 0x77]
    reference = weakref.ref(forwards)
    del forwards
    assert reference() is not None  # CuPy destroys a stream with its object
    del tape
    assert reference() is None


@emulated_only
def test_backward_waits_for_the_library_of_lengths(streams, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(libraries.Torch, "on", lambda self, index: contextlib.nullcontext(0x55))
    layer = fastrnn.GRU(4, 5, device="cuda", seed=0)
    y, _, tape = layer.forward(CuPys().put(floats(3, 2, 4)), lengths=Torchs().put(np.array([3, 1])))
    fake_cupy.cuda.waits.clear()
    layer.backward(tape, y)
    assert [tuple(pair) for pair in fake_cupy.cuda.waits] == [(0, 0x55), (0x55, 0)]


@emulated_only
def test_streams_wait_for_kernels_that_fail_too(streams, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(libraries.Torch, "on", lambda self, index: contextlib.nullcontext(0x55))

    def fail(*args):
        raise RuntimeError("a launch failed")

    layer = fastrnn.GRU(4, 5, device="cuda", seed=0)
    monkeypatch.setattr(extension.module, "forward", fail)
    with pytest.raises(RuntimeError, match="a launch failed"):
        layer(Torchs().put(floats(3, 2, 4)))
    assert [tuple(pair) for pair in fake_cupy.cuda.waits] == [(0x55, 0), (0, 0x55)]


@emulated_only
def test_handle_0_is_torchs_default_stream():
    pytest.importorskip("torch")
    library = libraries.Torch()
    library.torch = types.SimpleNamespace(
        cuda=types.SimpleNamespace(
            default_stream=lambda device: ("default", device), ExternalStream=lambda *args: ("external", *args)
        )
    )
    place = library._place(0)
    assert library._stream(0, 0) == ("default", place)
    assert library._stream(0x55, 0) == ("external", 0x55, place)


@emulated_only
def test_a_graph_is_captured_on_one_stream(streams, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(libraries.Torch, "on", lambda self, index: contextlib.nullcontext(0x55))
    monkeypatch.setattr(libraries.Torch, "is_capturing", lambda self: True)
    layer = fastrnn.GRU(4, 5, device="cuda", seed=0)
    with fake_cupy.cuda.Stream(0x55)():
        run(layer, Torchs())
    with pytest.raises(
        RuntimeError, match=r"^the stream that captures a CUDA graph must be the current one of cupy too$"
    ):
        run(layer, Torchs())
    assert fake_cupy.cuda.waits == []
    assert len(streams) == 2


@emulated_only
def test_other_libraries_exchange_arrays_on_cupys_stream(streams, monkeypatch):
    monkeypatch.setattr(fake_cupy.Elsewhere, "log", [])
    layer = fastrnn.GRU(4, 5, device="cuda", seed=0)
    with fake_cupy.cuda.Stream(0x77)():
        run(layer, Others())
    assert [handle for handle, _ in streams] == [0x77, 0x77]
    inward, outward = ("to cupy", 0x77, 0), ("from cupy", 0x77, 0)
    assert fake_cupy.Elsewhere.log == [inward, outward, outward, inward, outward, outward]


@emulated_only
@pytest.mark.parametrize("current", [0, 1])
def test_everything_is_done_on_the_layers_device(streams, current):
    """Whichever is current: the stand-in refuses work on another device's array."""
    with fake_cupy.cuda.Device(1):
        x, dy = CuPys().put(floats(3, 2, 4)), CuPys().put(floats(3, 2, 10))[..., ::2]
    with fake_cupy.cuda.Device(current):
        assert fastrnn.GRU(4, 5, device="cuda").device == f"cuda:{current}"
        layer = fastrnn.GRU(4, 5, 2, device="cuda:1", seed=0)
        y, _, tape = layer.forward(x, lengths=[3, 1])
        dx, _ = layer.backward(tape, dy)
        layer.zero_grad()
        layer.load_state_dict(layer.state_dict())
        stream = layer.stream(2)
        out = stream.step(x[0])
        stream.select([1, 0])
        fastrnn.optim.Adam(layer.parameters).step(layer.grads)
        with gpu_arrays.waiting():
            fastrnn.clip_grad_norm(layer.grads, 1.0)
        arrays = [y, dx, out, *layer.parameters.values(), *layer.grads.values(), *layer.state_dict().values()]
        assert {a.device.id for a in arrays} == {1}
        assert {device for _, device in streams} == {1}


def test_lengths_on_the_gpu_are_taken_as_they_are():
    """Kernels bring those that are out of range into it."""
    layer, cupy = fastrnn.GRU(4, 5, bidirectional=True, device="cuda", seed=0), CuPys()
    x = cupy.put(floats(3, 2, 4))
    for dtype in (np.int64, np.int32):
        y, _ = layer(x, lengths=cupy.put(np.array([-5, 99], dtype)))
        assert np.array_equal(y.get(), layer(x, lengths=[0, 3])[0].get())


@emulated_only
def test_a_captured_graph_needs_its_rows_on_the_gpu(monkeypatch):
    """The stand-in refuses to read what is on the GPU in any case."""
    pytest.importorskip("torch")
    layer, torchs = fastrnn.GRU(4, 5, device="cuda", seed=0), Torchs()
    x, lengths, resets = (torchs.put(a) for a in (floats(3, 2, 4), np.array([3, 1]), np.zeros((3, 2), bool)))
    monkeypatch.setattr(libraries.Torch, "is_capturing", lambda self: True)
    monkeypatch.setattr(fake_cupy.cuda.Stream, "capturing", True)  # the same stream
    y, _, tape = layer.forward(x, lengths=lengths, resets=resets)
    layer.backward(tape, y)
    for rows in ({"lengths": [3, 1]}, {"resets": np.zeros((3, 2), bool)}):
        with pytest.raises(RuntimeError, match=r"must be on the GPU while a CUDA graph is captured, got a NumPy array"):
            layer(x, **rows)


@emulated_only
@pytest.mark.parametrize("library", [CuPys, Others])
def test_what_takes_memory_from_cupys_pool_is_not_captured(library, monkeypatch):
    layer, x = fastrnn.LSTM(4, 5, device="cuda", seed=0), library().put(floats(3, 2, 4))
    y, _, tape = layer.forward(x)
    stream, steps, out = layer.stream(3), CuPys().put(floats(2, 3, 8)), CuPys().put(floats(3, 5))
    x_t, (before, _) = CuPys().put(floats(3, 4)), stream.state
    monkeypatch.setattr(fake_cupy.cuda.Stream, "capturing", True)
    calls = [
        lambda: layer(x),
        lambda: layer.forward(x),
        lambda: layer.backward(tape, y),
        lambda: layer.stream(2),
        lambda: stream.step(x_t),
        lambda: stream.step(steps[0][:, ::2], out),
        lambda: stream.select([0]),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"from CuPy's pool cannot be captured .*; capture calls on PyTorch's"):
            call()
    monkeypatch.undo()
    assert not any(g.get().any() for g in layer.grads.values())
    assert np.array_equal(stream.state[0].get(), before.get())
    monkeypatch.setattr(fake_cupy.cuda.Stream, "capturing", True)
    assert stream.step(x_t, out) is out  # all that it needs besides is the stream's
    monkeypatch.undo()
    assert np.array_equal(stream.state[0].get()[0], out.get())
    layer.backward(tape, y)


@pytest.mark.parametrize("writeable", [True, False])
def test_torch_is_brought_rows_that_are_read_only(writeable):
    pytest.importorskip("torch")
    layer, x = fastrnn.GRU(4, 5, device="cuda", seed=0), Torchs().put(floats(3, 2, 4))
    resets = np.array([[0, 0], [1, 0], [0, 1]], bool)
    resets.flags.writeable = writeable
    y, _ = layer(x, resets=resets)
    assert np.array_equal(Torchs().get(y), CuPys().get(layer(CuPys().put(floats(3, 2, 4)), resets=resets)[0]))


def test_backward_takes_tf32_from_its_forward(monkeypatch):
    seen, module = [], extension.module

    class Recorded(types.SimpleNamespace):
        def Options(self, *args):
            seen.append(args[-1])
            return module.Options(*args)

    monkeypatch.setattr(
        extension,
        "module",
        Recorded(sizes=module.sizes, forward=module.forward, backward=module.backward, Problem=module.Problem),
    )
    for dtype in ("float32", "float64"):
        layer, cupy = fastrnn.GRU(4, 5, device="cuda", dtype=dtype, seed=0), CuPys()
        x = cupy.put(floats(3, 2, 4).astype(dtype))
        assert fastrnn.cuda.allow_tf32 is False
        monkeypatch.setattr(fastrnn.cuda, "allow_tf32", True)
        y, _, tape = layer.forward(x)
        monkeypatch.setattr(fastrnn.cuda, "allow_tf32", False)
        layer.backward(tape, y)
        layer(x)
    assert seen == [True, False, False, False]


@emulated_only
def test_a_step_of_a_stream_allocates_its_output_alone():
    layer, cupy = fastrnn.LSTM(4, 5, 2, device="cuda", seed=0), CuPys()
    stream, x = layer.stream(3), cupy.put(floats(3, 4))
    out = stream.step(x)
    fake_cupy.cuda.allocations_left = 1
    try:
        stream.step(x)
        fake_cupy.cuda.allocations_left = 0
        assert stream.step(x, out) is out
    finally:
        fake_cupy.cuda.allocations_left = None


@emulated_only
def test_steps_of_a_stream_have_the_same_arguments(streams, monkeypatch):
    """As a captured step needs, which is repeated with those it had."""
    seen, recorded = [], extension.module.forward
    monkeypatch.setattr(extension.module, "forward", lambda *args: (seen.append(args), recorded(*args)))
    layer, cupy = fastrnn.LSTM(4, 5, 2, device="cuda", seed=0), CuPys()
    stream, x, out = layer.stream(3), cupy.put(floats(3, 4)), cupy.put(floats(3, 5))
    for _ in range(3):
        stream.step(x, out)
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]


def test_functions_give_gradients_of_the_weights_library():
    library = libraries_here()[-2 if gpu_arrays.EMULATED else -1]
    weights = {name: library.put(w) for name, w in fastrnn.GRU(4, 5, seed=0).parameters.items()}
    x = libraries_here()[0].put(floats(3, 2, 4))
    y, _, tape = functional.forward("gru", x, weights)
    dx, _, dweights = functional.backward(tape, y)
    assert type(dx) is type(y) is type(x)
    assert all(type(dw) is type(weights[name]) for name, dw in dweights.items())
    cpu, _, tape = functional.forward("gru", floats(3, 2, 4), fastrnn.GRU(4, 5, seed=0).parameters)
    np.testing.assert_allclose(y.get(), cpu, atol=1e-6)
    for name, dw in functional.backward(tape, cpu)[2].items():
        np.testing.assert_allclose(library.get(dweights[name]), dw, atol=1e-5)
