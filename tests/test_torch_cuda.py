"""fastrnn.torch on GPUs: the layers on the CUDA kernels, on a GPU or emulated, beside torch.nn's.

Emulated (see cuda_calls.py), the part for GPUs serves tensors on the CPU instead of the one for CPUs.
"""

import contextlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

import fastrnn.torch as fast  # noqa: E402
from fastrnn.cuda import extension, kernels  # noqa: E402
from fastrnn.torch import composite, cuda, devices, kernel  # noqa: E402
from fastrnn.torch.call import Sequences, Sizes, Stack, shapes_of  # noqa: E402
from fastrnn.torch.paths import obstacle  # noqa: E402

import cuda_calls  # noqa: E402 isort: skip
import torch_pairs  # noqa: E402 isort: skip
from torch_pairs import assert_close, pair, results, tensors  # noqa: E402 isort: skip

device = cuda_calls.device()
EMULATED = isinstance(device, cuda_calls.Emulation)
DEVICE = "cpu" if EMULATED else "cuda"
CELLS = ("LSTM", "GRU", "RNN")
pytestmark = [
    *torch_pairs.IGNORED,
    pytest.mark.skipif(device is None, reason="no CUDA device and no emulation of one: see tests/cuda_calls.py"),
]
on_a_gpu = pytest.mark.skipif(EMULATED, reason="needs a GPU")

if EMULATED:  # what holds on the CPU holds here
    from test_torch_layers import (  # noqa: F401
        test_a_retained_graph_gives_the_same_again,
        test_a_weight_changed_in_place_is_noticed,
        test_dropout_follows_torchs_generator,
        test_frozen_layers_give_dx,
        test_gradients_with_create_graph_are_those_without,
        test_misaligned_tensors_are_copied,
        test_outputs_are_freed_with_what_backward_needs,
        test_resets_start_anew,
        test_results_and_gradients_are_those_of_torch,
        test_saved_tensors_may_be_moved,
        test_the_composite_computes_what_the_kernels_do,
        test_weights_that_are_computed_get_gradients,
    )


@pytest.fixture(scope="module", autouse=True)
def _emulated():
    with pytest.MonkeyPatch.context() as patch:
        if EMULATED:
            patch.setattr(extension, "module", device.module)
            patch.setenv("FASTRNN_CUBLASLT", "off")  # which would take addresses for those of a GPU
            patch.setattr(cuda, "_missing", lambda: None)
            patch.setattr(cuda, "_on_device_of", lambda x: contextlib.nullcontext(device.stream))
            patch.setattr(cuda, "_is_capturing", lambda x: False)
            patch.setattr(cuda, "_probed", {})
            patch.setitem(devices.DEVICES, "cpu", cuda)
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        kernels.Problem.cache_clear()
        yield
    kernels.Problem.cache_clear()


def put(*layers):
    return [layer.to(DEVICE) for layer in layers]


def randn(*shape, **options):
    return torch.randn(*shape, **options).to(DEVICE)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(cell, dtype):
    """Beside float64 with the same numbers. Errors in eps: rounding of the layer's output of 2 x 5 steps, in gradients
    of sums over 20 rows besides."""
    theirs, mine = pair(cell, 12, 20, num_layers=2, bidirectional=True)
    mine.to(dtype)
    theirs.load_state_dict(mine.double().state_dict())
    theirs.double()
    (mine,) = put(mine.to(dtype))
    x = torch.randn(5, 4, 12).to(dtype)
    assert obstacle(mine, mine._weights(), x.to(DEVICE)) is None
    expected = results(theirs, x.double())
    for got, want in zip(results(mine, x.to(DEVICE)), expected, strict=True):
        assert got.dtype == dtype
        error = float((got.cpu().double() - want).abs().max())
        assert error <= 32 * torch.finfo(dtype).eps * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_rows(cell, enforce_sorted):
    theirs, mine = put(*pair(cell, 3, 17, 2, bidirectional=True, dtype=torch.float64))
    lengths = torch.tensor([7, 5, 5, 1] if enforce_sorted else [5, 1, 7, 5])
    grads = []
    x = randn(7, 4, 3, dtype=torch.float64)
    for layer in (mine, theirs):
        leaf = x.clone().requires_grad_()
        packed = pack_padded_sequence(leaf, lengths, enforce_sorted=enforce_sorted)
        assert layer is theirs or obstacle(layer, layer._weights(), packed) is None
        y, states = layer(packed)
        padded, got = pad_packed_sequence(y)
        assert torch.equal(got, lengths)
        values = [padded, *tensors(states)]
        loss = sum(v.square().sum() for v in values)
        grads.append([*values, *torch.autograd.grad(loss, (leaf, *layer.parameters()))])
    assert_close(*grads, 28)


@pytest.mark.parametrize("where", sorted({"cpu", DEVICE}))
def test_lengths_and_resets(where):
    torch.manual_seed(0)
    layer = fast.LSTM(4, 9, 2, dtype=torch.float64).to(DEVICE)
    x, lengths, resets = randn(6, 3, 4, dtype=torch.float64), torch.tensor([6, 0, 3]), torch.rand(6, 3) < 0.3
    given = Sequences(x, None, None, lengths.to(where), resets.to(where), False, 0.4, torch.tensor(2**62 + 5))
    weights = list(layer.parameters())
    outputs = [list(tensors(*run(layer._stack(), given, weights))) for run in (kernel.run, composite.run)]
    assert_close(*outputs)
    grads = [torch.autograd.grad(sum(v.square().sum() for v in values), weights) for values in outputs]
    assert_close(*grads, 18)


def test_lengths_out_of_range_end_with_the_sequence():
    layer = fast.GRU(4, 9, bidirectional=True, dtype=torch.float64).to(DEVICE)
    x = randn(3, 2, 4, dtype=torch.float64)

    def run(lengths):
        given = Sequences(x, None, None, torch.tensor(lengths, device=DEVICE), None, False, 0.0, None)
        return list(tensors(*kernel.run(layer._stack(), given, list(layer.parameters()))))

    assert all(torch.equal(a, b) for a, b in zip(run([-5, 99]), run([0, 3]), strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_autocast(cell):
    theirs, mine = put(*pair(cell, 6, 10))
    x = randn(5, 3, 6)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert obstacle(mine, mine._weights(), x) is None
        y, _ = mine(x)
        y, _ = mine(torch.cat([y.float()[..., :5], y.float()[..., :1]], -1))
        assert obstacle(mine.double(), mine._weights(), x) is not None
    mine.float()
    assert y.dtype == torch.bfloat16
    h, _ = theirs(x)
    h, _ = theirs(torch.cat([h[..., :5], h[..., :1]], -1))
    assert float((y.detach().float() - h.detach()).abs().max()) <= 32 * torch.finfo(torch.bfloat16).eps
    y.sum().backward()
    assert all(w.grad.dtype == torch.float32 for w in mine.parameters())


@pytest.mark.parametrize("cell", CELLS)
def test_outputs_changed_in_place_are_noticed(cell):
    layer = getattr(fast, cell)(3, 4).to(DEVICE)
    y, _ = layer(randn(5, 2, 3))
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_runs_on_torch():
    steps, layer = fast.LSTMCell(256, 512).to(DEVICE), fast.LSTM(4, 5).to(DEVICE)
    found = obstacle(steps, steps._weights(), randn(16, 256))
    assert found.reason == f"there is no kernel for single steps on device {DEVICE}"
    assert [t.shape for t in steps(randn(16, 256))] == [(16, 512)] * 2
    assert obstacle(layer, layer._weights(), randn(3, 0, 4)).reason == "there is nothing to compute"
    assert layer(randn(3, 0, 4))[0].shape == (3, 0, 5)


def test_without_kernels(monkeypatch):
    monkeypatch.setattr(cuda, "_missing", lambda: "this fastrnn was built without CUDA")
    layer, x = fast.GRU(4, 5).to(DEVICE), randn(3, 2, 4)
    assert obstacle(layer, layer._weights(), x) == ("this fastrnn was built without CUDA", "layer")
    assert layer(x)[0].shape == (3, 2, 5)


@pytest.mark.parametrize("seed", range(20))
def test_compilers_are_told_how_much_is_kept(seed):
    rng = np.random.default_rng(seed)
    cell = rng.choice(["lstm", "gru", "rnn_tanh"])
    stack = Stack(cell, *map(int, rng.integers(1, 4, 1)), bool(rng.integers(2)), True)
    dtype = cuda.DTYPES[rng.integers(4)]
    T, B, inputs, hidden = map(int, rng.integers(1, 40, 4))
    state_size = hidden if cell != "lstm" else int(rng.integers(1, hidden + 1))
    w_hh = torch.empty(composite.GATES[cell] * hidden, state_size)
    given = Sequences(torch.empty(T, B, inputs), None, None, None, None, False, 0.0, None)
    sizes = Sizes(stack, *shapes_of(given, [w_hh, w_hh]))
    problem = cuda._problem(stack, dtype, *sizes.of_layer)
    assert cuda.bytes_kept(stack, sizes, dtype) == device.module.sizes(problem, T, B, 0.0, True)[0]


def test_kernels_that_do_not_run_on_a_gpu(monkeypatch):
    def fail(*args):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(cuda, "_probed", {})
    monkeypatch.setattr(cuda, "forward", fail)
    layer, x = fast.GRU(4, 5).to(DEVICE), randn(3, 2, 4)
    for _ in range(2):
        found = obstacle(layer, layer._weights(), x)
        assert found == ("the kernels do not run on this GPU: no kernel image", "layer")
    assert layer(x)[0].shape == (3, 2, 5)


def test_a_probe_that_finds_no_memory_is_repeated(monkeypatch):
    forward = cuda.forward

    def fail(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda, "_probed", {})
    monkeypatch.setattr(cuda, "forward", fail)
    layer, x = fast.GRU(4, 5).to(DEVICE), randn(3, 2, 4)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        layer(x)
    monkeypatch.setattr(cuda, "forward", forward)
    assert obstacle(layer, layer._weights(), x) is None


def test_what_a_captured_graph_would_repeat(monkeypatch):
    monkeypatch.setattr(cuda, "_is_capturing", lambda x: True)
    layer, x = fast.GRU(4, 5, 2, dropout=0.5).to(DEVICE), randn(3, 2, 4)
    packed = pack_padded_sequence(x, torch.tensor([3, 2]))
    assert "packed rows" in obstacle(layer, layer._weights(), packed).reason
    assert "dropout masks" in obstacle(layer, layer._weights(), x).reason
    assert obstacle(layer.eval(), layer._weights(), x) is None
    with pytest.raises(RuntimeError, match="must be on the GPU while a CUDA graph is captured"):
        cuda.beside(torch.empty(3, device="meta"), torch.tensor([3, 2]))


@pytest.mark.parametrize("cell", CELLS)
def test_traced_in_one_graph(cell):
    layer = getattr(fast, cell)(8, 16, 2).to(DEVICE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = randn(6, 4, 8)
    assert_close(results(layer, x, call=lambda x, hx: compiled(x, hx)), results(layer, x), 24)


def test_operators_refuse_what_is_not_like_x():
    layer = fast.GRU(4, 5).to(DEVICE)
    x = randn(3, 2, 4)
    given = Sequences(x, None, None, None, None, False, 0.0, None)
    weights = list(layer.parameters())
    with pytest.raises(ValueError, match=r"must be like x, torch.float32 on device .*, got one of torch.float64"):
        torch.ops.fastrnn.forward(*layer._stack(), *given, [weights[0], weights[1].double(), *weights[2:]], False)
    with pytest.raises(ValueError, match="must be padded, got packed rows"):
        torch.ops.fastrnn.forward(*layer._stack(), *given._replace(packed=True), weights, False)


def test_tf32_is_torchs_choice(monkeypatch):
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        assert cuda._allow_tf32() == allowed
    if hasattr(torch.backends.cudnn.rnn, "fp32_precision"):
        monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
        assert not cuda._allow_tf32()


# ---- what only a GPU shows


@on_a_gpu
def test_in_a_cuda_graph():
    layer = fast.GRU(8, 32, 2).cuda()
    x = torch.randn(10, 4, 8, device="cuda")
    expected = results(layer, x)
    static = x.clone().requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            layer(static)[0].sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    layer.zero_grad()
    static.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _ = layer(static)
        y.sum().backward()
    with torch.no_grad():
        static.zero_()
    graph.replay()
    with torch.no_grad():
        static.copy_(x)
    graph.replay()
    assert torch.equal(y, expected[0])
    leaf = x.clone().requires_grad_()
    layer(leaf)[0].sum().backward()
    assert torch.equal(static.grad, leaf.grad)


@on_a_gpu
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(dynamic):
    layer = fast.LSTM(8, 32, 2).cuda()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for steps in (10, 7):
        x = torch.randn(steps, 4, 8, device="cuda")
        assert_close(results(layer, x, call=lambda x, hx: compiled(x, hx)), results(layer, x), 40)


@on_a_gpu
def test_devices_that_differ_are_torchs_to_refuse():
    layer = fast.GRU(4, 5).cuda()
    with pytest.raises(RuntimeError, match="device"):
        layer(torch.randn(3, 2, 4))
