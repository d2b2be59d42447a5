"""Where fastrnn.torch's layers run: on torch where the kernels do not serve, in compiled graphs, in place of a model's
layers, in threads and processes."""

import gc
import subprocess
import sys
import threading
import warnings

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

import fastrnn  # noqa: E402
import fastrnn.torch as fast  # noqa: E402
from fastrnn import _core  # noqa: E402
from fastrnn.torch.paths import obstacle  # noqa: E402

import torch_pairs  # noqa: E402 isort: skip
from torch_pairs import assert_close, pair, results, tensors  # noqa: E402 isort: skip

CELLS = ("LSTM", "GRU", "RNN")
pytestmark = torch_pairs.IGNORED


# ---- where the kernels do not serve


def test_other_dtypes_run_on_torch():
    theirs, mine = pair("GRU", 3, 8, 2, dtype=torch.bfloat16)
    x = torch.randn(5, 4, 3).bfloat16()
    assert "bfloat16" in obstacle(mine, mine._weights(), x).reason
    assert all(torch.equal(a, b) for a, b in zip(results(mine, x), results(theirs, x), strict=True))
    y, h_n = mine(x, lengths=torch.tensor([5, 1, 2, 3]))
    assert y.dtype == h_n.dtype == torch.bfloat16
    assert not y[1:, 1].any()


@pytest.mark.parametrize("cell", CELLS)
def test_autocast_gives_what_torch_gives(cell):
    theirs, mine = pair(cell, 3, 8)
    x = torch.randn(5, 4, 3)

    def outcome(layer):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            try:
                return layer(x)[0]
            except RuntimeError as error:  # torch's own: on some CPUs oneDNN has no LSTM of bfloat16
                return str(error)

    y, expected = outcome(mine), outcome(theirs)
    if isinstance(expected, str):
        assert y == expected
        return
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)


def test_meta_tensors():
    layer = fast.LSTM(3, 8, 2, bidirectional=True, device="meta")
    y, (h_n, _) = layer(torch.randn(5, 4, 3, device="meta"))
    assert (y.shape, h_n.shape) == ((5, 4, 16), (4, 4, 8))


@pytest.mark.parametrize("cell", CELLS)
def test_transforms(cell):
    """Also those that torch's own layers do not know: compared with single calls and finite differences."""
    layer = getattr(fast, cell)(3, 8, 2, bidirectional=True, dtype=torch.float64)
    x, tangent, *batch = torch.randn(6, 5, 4, 3, dtype=torch.float64)

    def run(x):
        return layer(x)[0]

    y, dy = torch.func.jvp(run, (x,), (tangent,))
    assert_close([y], [run(x)])
    step = 1e-5
    torch.testing.assert_close(dy, (run(x + step * tangent) - run(x - step * tangent)) / (2 * step), rtol=0, atol=1e-9)
    with torch.autograd.forward_ad.dual_level():
        dual = run(torch.autograd.forward_ad.make_dual(x, tangent))
        assert_close(torch.autograd.forward_ad.unpack_dual(dual), (y, dy))
    assert_close([torch.func.vmap(run)(torch.stack(batch))], [torch.stack([run(x) for x in batch])])
    leaf = x.clone().requires_grad_()
    assert_close([torch.func.grad(lambda x: run(x).sum())(x)], torch.autograd.grad(run(leaf).sum(), leaf), 20)


def test_traced_calls_get_torchs_operators():
    layer = fast.GRU(3, 8)
    x = torch.randn(5, 4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out, and tracing sees the batch size as a constant
        traced = torch.jit.trace(layer, x)
    assert_close(traced(x), layer(x))


# ---- torch.compile and torch.export


@pytest.mark.parametrize(
    "make",
    [
        lambda: fast.LSTM(5, 7, 2, bidirectional=True),
        lambda: fast.GRU(5, 7, 2, dropout=0.5, batch_first=True),
        lambda: fast.RNN(5, 7, nonlinearity="relu", dtype=torch.float64),
    ],
    ids=["lstm", "gru", "rnn"],
)
def test_compiled_in_one_graph(make):
    layer = make()
    x = torch.randn(6, 4, 5, dtype=layer.weight_hh_l0.dtype)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    outcomes = []
    for call in (layer, compiled):
        torch.manual_seed(1)
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        y, states = call(leaf)
        y.pow(2).sum().backward()
        outcomes.append(
            [
                y.detach(),
                *(s.detach() for s in tensors(states)),
                leaf.grad,
                *(w.grad.clone() for w in layer.parameters()),
            ]
        )
    for got, expected in zip(*outcomes, strict=True):
        assert torch.equal(got, expected)


def test_compiled_with_lengths_and_resets():
    layer = fast.GRU(5, 7)
    x, lengths, resets = torch.randn(6, 4, 5), torch.tensor([6, 1, 0, 3]), torch.rand(6, 4) < 0.4
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = layer(x, lengths=lengths, resets=resets)
    for got, wanted in zip(compiled(x, lengths=lengths, resets=resets), expected, strict=True):
        assert torch.equal(got, wanted)


def test_exported():
    layer = fast.LSTM(5, 7, 2)
    x = torch.randn(6, 4, 5)
    exported = torch.export.export(layer, (x,))
    assert any("fastrnn" in str(node.target) for node in exported.graph.nodes)
    assert all(torch.equal(a, b) for a, b in zip(tensors(exported.module()(x)), tensors(layer(x)), strict=True))


# ---- accelerate, restore, explain


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.encoder = nn.LSTM(6, 9, num_layers=2, bidirectional=True, batch_first=True)
        self.output = nn.Linear(18, 4)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.encoder(packed)[0], batch_first=True)
        return self.output(y)


def test_a_models_losses_go_the_same_way():
    losses = []
    for accelerated in (False, True):
        torch.manual_seed(0)
        model = Tagger()
        adam = torch.optim.Adam(model.parameters(), lr=0.01)
        if accelerated:
            fast.accelerate(model)
        losses.append([])
        for _ in range(50):
            tokens, lengths = torch.randint(20, (8, 7)), torch.randint(1, 8, (8,))
            lengths[3] = 7
            scores = model(tokens, lengths)
            targets = (tokens % 4).masked_fill(torch.arange(7) >= lengths[:, None], -100)
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < 0.5 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_accelerate_keeps_the_objects():
    model = Tagger()
    parameters, encoder, seen = list(model.parameters()), model.encoder, []
    encoder.register_forward_hook(lambda *_: seen.append(True))
    assert fast.accelerate(model) is model
    assert fast.accelerate(model) is model
    assert model.encoder is encoder
    assert type(encoder) is fast.LSTM
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    model(torch.randint(20, (2, 5)), torch.tensor([5, 2]))
    assert seen == [True]
    assert fast.restore(model) is model
    assert type(encoder) is nn.LSTM
    bare = nn.GRU(2, 3)
    assert type(fast.accelerate(bare)) is fast.GRU


def test_accelerate_leaves_subclasses_alone():
    class Mine(nn.LSTM):
        pass

    model = nn.Sequential(Mine(2, 3))
    with pytest.warns(UserWarning, match=r"left alone: 0 \(Mine\)"):
        fast.accelerate(model)
    assert type(model[0]) is Mine


def test_explain():
    model = nn.ModuleDict({"a": nn.GRU(2, 3), "b": fast.LSTM(2, 3)})
    model.forward = lambda x: (model["a"](x), model["b"](x), model["b"](x, lengths=torch.tensor([2])))
    x = torch.randn(4, 1, 2)
    state = torch.random.get_rng_state()
    lines = fast.explain(model, x).splitlines()
    assert torch.equal(state, torch.random.get_rng_state())
    assert lines == [
        "a: GRU(2, 3): torch, because accelerate has not been called on it",
        "b: LSTM(2, 3): fastrnn's kernels",
        "b: LSTM(2, 3): fastrnn's kernels",
    ]
    lines = fast.explain(model.bfloat16(), x.bfloat16()).splitlines()
    assert lines[1] == "b: LSTM(2, 3): torch, because there is no kernel for torch.bfloat16"
    assert lines[2] == "b: LSTM(2, 3): torch's single operations, because there is no kernel for torch.bfloat16"


def test_memory_goes_with_the_last_layer():
    gc.collect()  # layers of other tests may wait for it
    fastrnn.release_memory()
    layers = [fast.GRU(8, 64), fast.accelerate(nn.GRU(8, 64))]
    for layer in layers:
        layer(torch.randn(50, 8, 8))[0].sum().backward()
    assert _core.cached_bytes() > 0
    del layers[0]
    assert _core.cached_bytes() > 0
    layers.clear()
    del layer
    gc.collect()
    assert _core.cached_bytes() == 0


# ---- threads and processes


def test_two_threads_at_once():
    layer = fast.GRU(16, 64, 2)
    data = torch.randn(4, 20, 8, 16)
    expected = [results(layer, x)[:3] for x in data]
    failures = []

    def work(x, wanted):
        for _ in range(10):
            leaf = x.clone().requires_grad_()
            y, h_n = layer(leaf)
            numbers = torch.Generator().manual_seed(3)
            loss = sum((t * torch.randn(t.shape, generator=numbers)).sum() for t in (y, h_n))
            (dx,) = torch.autograd.grad(loss, leaf)
            if not all(torch.equal(a, b) for a, b in zip((y, h_n, dx), wanted, strict=True)):
                failures.append(x)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(data, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_no_more_threads_than_torch_may_use(monkeypatch):
    used = []
    forward = _core.forward
    monkeypatch.setattr(_core, "forward", lambda *args: used.append(args[11]) or forward(*args))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        fast.GRU(3, 4)(torch.randn(2, 3, 3))
    finally:
        torch.set_num_threads(before)
    assert used == [1]


THREADS = """
import os, torch, fastrnn, fastrnn.torch
from fastrnn import _core

def call():
    fastrnn.torch.GRU(64, 256)(torch.ones(20, 16, 64))
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
fastrnn.set_num_threads(2)
torch.ones(1000000).exp_()
before = len(os.listdir("/proc/self/task"))
shared = call()
_core.use_openmp(None)
own = call()
print(fastrnn.torch.openmp.share_threads(), shared - before, own - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_the_kernels_run_on_torchs_threads():
    result = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    available, shared, own = result.stdout.split()
    if available == "False":
        pytest.skip("this torch has no OpenMP that the kernels could share")
    assert (shared, own) == ("0", "1")


class InWorker(torch.utils.data.Dataset):
    def __init__(self, layer):
        self.layer = layer

    def __len__(self):
        return 4

    def __getitem__(self, i):
        with torch.no_grad():
            return self.layer(torch.full((5, 1, 16), float(i)))[1]


def test_in_a_forked_worker():
    layer = fast.GRU(16, 64)
    data = InWorker(layer)
    expected = [data[i] for i in range(4)]  # threads have run here before the fork
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="fork")
    assert all(torch.equal(a, b) for a, b in zip(loader, expected, strict=True))
