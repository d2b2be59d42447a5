"""Bad input on GPUs: each message, and that nothing has changed after it."""

import itertools
import pickle
import sys
import types

import numpy as np
import pytest

import fake_cupy
import fastrnn
import gpu_arrays
from errors import params, raised
from fastrnn import config, functional, spec
from fastrnn.cuda import extension, libraries
from gpu_arrays import CuPys, emulated_only

pytestmark = gpu_arrays.needs_kernels
T, B, I, H = 3, 2, 4, 5  # noqa: E741


@pytest.fixture(scope="module", autouse=True)
def _installed():
    with gpu_arrays.installed():
        yield


def put(*shape, dtype=np.float32):
    return CuPys().put(np.ones(shape, dtype))


def elsewhere(*shape):
    """On the second device."""
    with sys.modules["cupy"].cuda.Device(1):
        return put(*shape)


@pytest.fixture
def e():
    layer = fastrnn.LSTM(I, H, 2, dropout=0.5, device="cuda:0", seed=0)
    y, _, tape = layer.forward(put(T, B, I))
    layer.backward(tape, y)  # gradients that would show a change
    y, _, tape = layer.forward(put(T, B, I))
    return types.SimpleNamespace(layer=layer, y=y, tape=tape, x=put(T, B, I))


def snapshot(layer):
    arrays = [*layer.parameters.values(), *layer.grads.values()]
    return [a.get().tobytes() for a in arrays], layer._rng.bit_generator.state


class DLPackAlone:
    __dlpack__ = __dlpack_device__ = None


AN_ARRAY = "an array on cuda:0, of CuPy, PyTorch or another library with DLPack and __array_namespace__"
CALLS = [
    (lambda e: e.layer(np.ones((T, B, I), np.float32)), TypeError, f"lstm: x must be {AN_ARRAY}, got numpy.ndarray"),
    (lambda e: e.layer([[1.0]]), TypeError, f"lstm: x must be {AN_ARRAY}, got list"),
    (
        lambda e: e.layer(DLPackAlone()),
        TypeError,
        f"lstm: x must be {AN_ARRAY}, got DLPackAlone, which has DLPack but no __array_namespace__",
    ),
    (lambda e: e.layer(put(T, B, 3)), ValueError, "lstm: x must have shape (T, B, input_size=4), got (3, 2, 3)"),
    (lambda e: e.layer(put(T, B, I, dtype="float64")), TypeError, "lstm: x must have dtype float32, got float64"),
    (lambda e: e.layer(put(T, B, I, dtype="int32")), TypeError, "lstm: x must have dtype float32, got int32"),
    (lambda e: e.layer(e.x, put(2, B, H)), TypeError, "lstm: state must be a pair (h_0, c_0), got ndarray"),
    (
        lambda e: e.layer(e.x, (put(2, B, H), put(2, B, 1))),
        ValueError,
        "lstm: c_0 must have shape (num_layers=2, B=2, hidden_size=5), got (2, 2, 1)",
    ),
    (
        lambda e: e.layer(e.x, (np.ones((2, B, H), np.float32), None)),
        TypeError,
        f"lstm: h_0 must be {AN_ARRAY}, got numpy.ndarray",
    ),
    (lambda e: e.layer(e.x, lengths=[1, 4]), ValueError, "lstm: lengths must be between 0 and T=3, got 4 at index 1"),
    (lambda e: e.layer(e.x, lengths=put(3)), TypeError, "lstm: lengths must be integers, got dtype float32"),
    (
        lambda e: e.layer(e.x, lengths=put(3, dtype="int64")),
        ValueError,
        "lstm: lengths must have shape (B=2,), got (3,)",
    ),
    (
        lambda e: e.layer(e.x, lengths=put(2, 1, dtype="int64")),
        ValueError,
        "lstm: lengths must have one dimension, got shape (2, 1)",
    ),
    (lambda e: e.layer(e.x, resets=put(T, B)), TypeError, "lstm: resets must have dtype bool, got float32"),
    (
        lambda e: e.layer(e.x, resets=put(T, 1, dtype=bool)),
        ValueError,
        "lstm: resets must have shape (T=3, B=2), got (3, 1)",
    ),
    (
        lambda e: e.layer.backward(e.tape, put(T, B, I)),
        ValueError,
        "lstm: dy must have y's shape (T=3, B=2, 5), got (3, 2, 4)",
    ),
    (
        lambda e: e.layer.backward(e.tape, np.ones((T, B, H), np.float32)),
        TypeError,
        f"lstm: dy must be {AN_ARRAY}, got numpy.ndarray",
    ),
    (
        lambda e: e.layer.load_state_dict(dict.fromkeys(e.layer.parameters, 0)),
        TypeError,
        "lstm: state_dict['weight_ih_l0'] must be a numpy array or a torch tensor, got int",
    ),
    (
        lambda e: fastrnn.LSTM(I, H, 2)(e.x),
        TypeError,
        "lstm: x must be a numpy array, got cupy.ndarray",
    ),
    (
        lambda e: fastrnn.LSTM(I, H, device="cuda", dtype="int8"),
        ValueError,
        "lstm: dtype must be 'float32', 'float64', 'float16' or 'bfloat16', got 'int8'",
    ),
    (
        lambda e: functional.forward(
            "gru", e.x, {"weight_ih_l0": put(15, I, dtype="int64"), "weight_hh_l0": put(15, H)}
        ),
        TypeError,
        "gru: weights['weight_ih_l0'] must have dtype float32, float64, float16 or bfloat16, got int64",
    ),
    (
        lambda e: fastrnn.optim.SGD(e.layer.parameters).step({name: g.get() for name, g in e.layer.grads.items()}),
        TypeError,
        "sgd: grads['weight_ih_l0'] must be an array on cuda:0, got one on the CPU",
    ),
    (
        lambda e: fastrnn.optim.SGD({"w": put(2, dtype="float16")}),
        TypeError,
        "sgd: params['w'] must have dtype float32 or float64, got <f2",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), params(CALLS))
def test_messages_and_nothing_changed(e, call, error, message):
    before = snapshot(e.layer)
    raised(lambda: call(e), error, message)
    assert snapshot(e.layer) == before
    e.layer.backward(e.tape, e.y)  # the tape is as before, and the kernels are usable


@emulated_only
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.layer(elsewhere(T, B, I)), "lstm: x must be an array on cuda:0, got one on cuda:1"),
        (lambda e: e.layer(e.x, (elsewhere(2, B, H), None)), "lstm: h_0 must be an array on cuda:0, got one on cuda:1"),
        (lambda e: e.layer(e.x, lengths=elsewhere(B)), "lstm: lengths must be an array on cuda:0, got one on cuda:1"),
        (
            lambda e: e.layer.backward(e.tape, elsewhere(T, B, H)),
            "lstm: dy must be an array on cuda:0, got one on cuda:1",
        ),
        (
            lambda e: e.layer(fake_cupy.Elsewhere(np.ones((T, B, I)), kind=1)),
            "lstm: x must be an array on cuda:0, got one on the CPU",
        ),
    ],
)
def test_arrays_on_another_device(e, call, message):
    before = snapshot(e.layer)
    raised(lambda: call(e), ValueError, message)
    assert snapshot(e.layer) == before


@emulated_only
def test_a_stream_of_another_device(e):
    before = snapshot(e.layer)
    with fake_cupy.cuda.Stream(0x77, device_id=1)():
        for call in (lambda: e.layer(e.x), lambda: e.layer.backward(e.tape, e.y)):
            raised(call, ValueError, "CuPy's current stream must be one of cuda:0, got one of cuda:1")
    assert snapshot(e.layer) == before


def unaligned(array):
    """The same numbers one byte further."""
    bytes_ = np.empty(array.nbytes + 1, np.uint8)
    view = bytes_[1:].view(array.dtype).reshape(array.shape)
    view[...] = array.get()
    return fake_cupy.ndarray(view)


@emulated_only
def test_misaligned_views(e):
    """Arguments are copied; a weight cannot be, as it is read again by backward, and is named."""
    before = snapshot(e.layer)
    assert np.array_equal(e.layer(unaligned(e.x))[0].get(), e.layer(e.x)[0].get())
    for what, arrays in (("parameters", e.layer.parameters), ("grads", e.layer.grads)):
        kept = arrays["bias_hh_l1"]
        arrays["bias_hh_l1"] = unaligned(kept)
        call = (lambda: e.layer(e.x)) if what == "parameters" else (lambda: e.layer.backward(e.tape, e.y))
        raised(
            call,
            ValueError,
            f"lstm: {what}['bias_hh_l1'] must be C-contiguous and aligned, got strides (4,)",
        )
        arrays["bias_hh_l1"] = kept
    assert snapshot(e.layer) == before


@emulated_only
def test_out_of_memory_passes_through(e):
    """At whichever allocation it comes."""
    before = snapshot(e.layer)

    def dropped():
        y, _, _ = e.layer.forward(e.x, lengths=[3, 1])
        return y

    for call in (dropped, lambda: e.layer.backward(e.tape, e.y, retain=True), lambda: e.layer.stream(3)):
        failures = 0
        while True:
            fake_cupy.cuda.allocations_left = failures
            try:
                call()
            except MemoryError as error:
                seen = str(error)
            else:
                break
            finally:
                fake_cupy.cuda.allocations_left = None
            assert "Out of memory allocating" in seen
            assert snapshot(e.layer) == before
            failures += 1
        assert failures >= 4
        before = snapshot(e.layer)


@emulated_only
def test_what_a_gpu_holds_is_measured_by_its_memory(monkeypatch):
    monkeypatch.setattr(spec, "_memory_limit", lambda: 1)
    layer = fastrnn.GRU(I, 7, device="cuda")
    layer.stream(B)
    monkeypatch.setattr(fake_cupy._Device, "mem_info", (0, 100))
    message = r"^gru: batch_size=2 cannot be allocated: states need \d+ bytes, available are 100$"
    with pytest.raises(ValueError, match=message):
        layer.stream(B)
    with pytest.raises(ValueError, match=r"^gru: .*hidden_size=11.* cannot be allocated: weights and gradients need"):
        fastrnn.GRU(I, 11, device="cuda")


@emulated_only
def test_a_stream_that_finds_no_memory_for_a_batch_is_as_before(e):
    stream = e.layer.stream(2)
    stream.step(e.x[0])
    before = [s.get() for s in stream.state]
    for allocations in itertools.count():
        fake_cupy.cuda.allocations_left = allocations
        try:
            stream.select([1, 0, 1])
            break
        except MemoryError:
            pass
        finally:
            fake_cupy.cuda.allocations_left = None
        assert stream.batch_size == 2
        assert all(np.array_equal(s.get(), b) for s, b in zip(stream.state, before, strict=True))
        stream.step(e.x[1])
        stream.state = tuple(map(CuPys().put, before))
    assert allocations >= 5
    assert stream.batch_size == 3
    assert all(np.array_equal(s.get(), b[:, [1, 0, 1]]) for s, b in zip(stream.state, before, strict=True))


def test_gradients_share_memory_with_nothing(e):
    e.layer.grads["bias_hh_l0"] = e.layer.parameters["bias_hh_l0"]
    with pytest.raises(ValueError, match=r"grads\['bias_hh_l0'\] must have memory of its own"):
        e.layer.backward(e.tape, e.y)
    e.layer.grads["bias_hh_l0"] = e.layer.grads["bias_ih_l0"]
    with pytest.raises(ValueError, match="must have memory of its own"):
        e.layer.zero_grad()


def test_weights_are_of_one_library(e):
    torch = pytest.importorskip("torch")
    e.layer.parameters["bias_hh_l0"] = gpu_arrays.Torchs().put(np.ones(20, np.float32))
    assert isinstance(e.layer.parameters["bias_hh_l0"], torch.Tensor)
    raised(lambda: e.layer(e.x), TypeError, "lstm: parameters['bias_hh_l0'] must be a CuPy array, got Tensor")


@emulated_only
@pytest.mark.parametrize("what", ["extension", "driver", "cupy", "broken cupy", "gpu", "number"])
def test_what_is_missing_is_named(what, monkeypatch):
    device = "cuda:7" if what == "number" else "cuda"
    if what == "extension":
        monkeypatch.setattr(extension, "module", None)
        monkeypatch.setattr(extension, "absent", expected := "this fastrnn was built without CUDA")
    elif what == "driver":
        monkeypatch.setattr(config, "cuda_driver", lambda: None)
        expected = "no NVIDIA driver found on this machine"
    elif what == "cupy":
        monkeypatch.setattr(config.importlib.util, "find_spec", lambda name: None)
        expected = "CuPy is not installed, which holds a layer's weights: pip install 'fastrnn[cuda]'"
    elif what == "broken cupy":

        def broken():
            raise ImportError("libcublas.so.13: cannot open")

        monkeypatch.setattr("fastrnn.cuda.spec.cupy", broken)  # first: its import takes the other's
        monkeypatch.setattr(libraries, "cupy", broken)
        expected = "CuPy, which holds a layer's weights, cannot be imported: libcublas.so.13: cannot open"
    elif what == "gpu":

        def none():
            raise fake_cupy.cuda.runtime.CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

        monkeypatch.setattr(fake_cupy.cuda.runtime, "getDeviceCount", none)
        expected = "CuPy finds no GPU: cudaErrorNoDevice: no CUDA-capable device is detected"
    else:
        expected = "CuPy finds 2 GPUs, numbered from 0"
    raised(
        lambda: fastrnn.GRU(I, H, device=device), RuntimeError, f"gru: device {device!r} is not available: {expected}"
    )


@emulated_only
def test_what_is_missing_is_named_to_functions_and_pickles_too(e, monkeypatch):
    weights, pickled = e.layer.state_dict(), pickle.dumps(e.layer)
    monkeypatch.setattr(extension, "absent", "this fastrnn was built without CUDA")
    spec.make_spec.cache_clear()
    message = "lstm: device 'cuda:0' is not available: this fastrnn was built without CUDA"
    for call in (lambda: functional.forward("lstm", e.x, weights), lambda: pickle.loads(pickled)):
        raised(call, RuntimeError, message)
    monkeypatch.setattr(extension, "absent", None)
    monkeypatch.setitem(sys.modules, "cupy", None)
    libraries.cupy.cache_clear()
    with pytest.raises(RuntimeError, match=r"^lstm: device 'cuda:0' is not available: CuPy, which holds .* cannot be"):
        pickle.loads(pickled)
    libraries._libraries.pop(fake_cupy.Elsewhere, None)
    with pytest.raises(RuntimeError, match="arrays of fake_cupy on GPUs pass through CuPy, which cannot be imported"):
        libraries.library_of(fake_cupy.Elsewhere(np.ones(2)))
    gpu_arrays.forget()


@emulated_only
def test_bfloat16_without_a_cupy_that_has_it(monkeypatch):
    def missing(name):
        raise ImportError("No module named 'ml_dtypes'")

    monkeypatch.setattr("fastrnn.cuda.spec.numpy_dtype", missing)
    with pytest.raises(ValueError, match=r"^gru: dtype bfloat16 needs a CuPy that has it \(14"):
        fastrnn.GRU(I, H, device="cuda", dtype="bfloat16")
