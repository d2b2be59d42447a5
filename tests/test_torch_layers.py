"""fastrnn.torch's layers beside torch.nn's: same weights, same calls, same results and gradients."""

import copy
import gc
import io
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence  # noqa: E402
from torch.testing._internal.two_tensor import TwoTensor  # noqa: E402

import fastrnn  # noqa: E402
import fastrnn.torch as fast  # noqa: E402
from fastrnn import _core  # noqa: E402
from fastrnn.torch import composite, kernel  # noqa: E402
from fastrnn.torch.paths import obstacle  # noqa: E402

from torch_pairs import assert_close, pair, results, tensors  # noqa: E402 isort: skip

CELLS = ("LSTM", "GRU", "RNN")
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    # torch's own, where torch.func and torch.compile call torch
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def draw_state(cell, layer, batch):
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    dtype = layer.weight_hh_l0.dtype
    h = torch.randn(rows, *batch, layer.proj_size or layer.hidden_size, dtype=dtype)
    return (h, torch.randn(rows, *batch, layer.hidden_size, dtype=dtype)) if cell == "LSTM" else h


@st.composite
def cases(draw):
    cell = draw(st.sampled_from(CELLS))
    hidden = draw(st.integers(1, 35))
    options = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
        "dtype": draw(st.sampled_from((torch.float32, torch.float64))),
    }
    if cell == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(("tanh", "relu")))
    if cell == "LSTM" and hidden > 1:
        options["proj_size"] = draw(st.integers(0, hidden - 1))
    return {
        "cell": cell,
        "sizes": (draw(st.integers(1, 20)), hidden),
        "options": options,
        "T": draw(st.integers(1, 9)),
        "B": draw(st.integers(1, 9)),
        "kind": draw(st.sampled_from(("padded", "unbatched", "packed", "sorted", "lengths"))),
        "hx": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


@settings(max_examples=150, deadline=None)
@given(cases())
def test_results_and_gradients_are_those_of_torch(case):
    theirs, mine = pair(case["cell"], *case["sizes"], seed=case["seed"], **case["options"])
    T, B, first, kind = case["T"], case["B"], mine.batch_first, case["kind"]
    x = torch.randn((B, T, mine.input_size) if first else (T, B, mine.input_size), dtype=mine.weight_hh_l0.dtype)
    if kind == "unbatched":
        x = x.select(0 if first else 1, 0)
    hx = draw_state(case["cell"], mine, () if kind == "unbatched" else (B,)) if case["hx"] else None
    lengths = torch.randint(1, T + 1, (B,))
    lengths[0] = T
    if kind == "sorted":
        lengths = lengths.sort(descending=True).values

    def packed(layer):
        def call(x, hx):
            pack = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=kind == "sorted")
            assert layer is theirs or obstacle(layer, layer._weights(), pack, hx) is None
            return layer(pack, hx)

        return call

    def padded(layer):
        def call(x, hx):
            y, states = packed(layer)(x, hx)
            return nn.utils.rnn.pad_packed_sequence(y, batch_first=first)[0], states

        return call

    if kind == "lengths":
        calls = (lambda x, hx: mine(x, hx, lengths=lengths)), padded(theirs)
    elif kind in ("packed", "sorted"):
        calls = packed(mine), packed(theirs)
    else:
        calls = None, None
        assert obstacle(mine, mine._weights(), x, hx) is None
    assert_close(results(mine, x, hx, calls[0]), results(theirs, x, hx, calls[1]), T * B)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_resets_start_anew(cell, batch_first):
    theirs, mine = pair(cell, 3, 17, num_layers=2, dtype=torch.float64)
    mine.batch_first = batch_first
    x = torch.randn(8, 2, 3, dtype=torch.float64, requires_grad=True)
    resets = torch.zeros(8, 2, dtype=torch.bool)
    resets[3, 1] = resets[6, 0] = True
    y, _ = mine(*((x.transpose(0, 1),) if batch_first else (x,)), resets=resets.t() if batch_first else resets)
    y = y.transpose(0, 1) if batch_first else y
    parts = [
        torch.cat([theirs(x[a:b, i : i + 1])[0] for a, b in ends])
        for i, ends in enumerate([[(0, 6), (6, 8)], [(0, 3), (3, 8)]])
    ]
    expected = torch.cat(parts, 1)
    assert_close([y], [expected])
    assert_close(torch.autograd.grad(y.pow(2).sum(), x), torch.autograd.grad(expected.pow(2).sum(), x), 16)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"lengths": True, "bidirectional": True}, {"resets": True}, {"packed": True}])
def test_the_composite_computes_what_the_kernels_do(cell, options):
    """Dropout too: with its seed the masks are the kernels' own."""
    layer = getattr(fast, cell)(4, 9, 2, bidirectional=options.get("bidirectional", False), dtype=torch.float64)
    x, lengths, resets = torch.randn(6, 5, 4, dtype=torch.float64), None, None
    if options.get("resets"):
        resets = torch.rand(6, 5) < 0.3
    if options.get("lengths") or options.get("packed"):
        lengths = torch.tensor([6, 4, 4, 1, 1])
    if options.get("packed"):
        x = pack_padded_sequence(x, lengths).data
    sequences = kernel.Sequences(
        x, None, None, lengths, resets, bool(options.get("packed")), 0.4, torch.tensor(2**62 + 5)
    )
    weights = list(layer.parameters())
    outputs = [run(layer._stack(), sequences, weights) for run in (composite.run, kernel.run)]
    assert_close(*(list(tensors(*values)) for values in outputs))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("extras", [{}, {"resets": True}, {"lengths": True, "bidirectional": True}])
def test_gradcheck_and_gradgradcheck(cell, extras):
    layer = getattr(fast, cell)(2, 3, 2, bidirectional=extras.get("bidirectional", False), dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    given = {}
    if "resets" in extras:
        given["resets"] = torch.tensor([[False, True], [True, False], [False, False]])
    if "lengths" in extras:
        given["lengths"] = torch.tensor([1, 3])
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    hx = draw_state(cell, layer, (2,))
    states = [t.requires_grad_() for t in tensors(hx)]

    def call(x, *others):
        state = others[: len(states)]
        weights = dict(zip(names, others[len(states) :], strict=True))
        state = tuple(state) if cell == "LSTM" else state[0]
        return tuple(tensors(torch.func.functional_call(layer, weights, (x, state), given)))

    inputs = (x, *states, *layer.parameters())
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_gradients_with_create_graph_are_those_without():
    layer = fast.GRU(3, 8, 2, dropout=0.5, dtype=torch.float64)
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    y, h_n = layer(x)
    inputs = (x, *layer.parameters())
    plain = torch.autograd.grad(y.sum() + h_n.pow(2).sum(), inputs, retain_graph=True)
    assert_close(torch.autograd.grad(y.sum() + h_n.pow(2).sum(), inputs, create_graph=True), plain, 20)


def test_a_retained_graph_gives_the_same_again():
    layer = fast.LSTM(3, 8, 2, dropout=0.5)
    x = torch.randn(5, 4, 3, requires_grad=True)
    y, _ = layer(x)
    first = torch.autograd.grad(y.sum(), (x, *layer.parameters()), retain_graph=True)
    layer(torch.randn(9, 4, 3))[0].sum().backward()  # the memory of another call in between
    second = torch.autograd.grad(y.sum(), (x, *layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), x)


def test_a_weight_changed_in_place_is_noticed():
    layer = fast.GRU(3, 4)
    y, _ = layer(torch.randn(5, 2, 3))
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("change", [torch.Tensor.relu_, lambda y: y.mul_(2).add_(1), lambda y: y[1:3].zero_()])
def test_outputs_changed_in_place(cell, change):
    """torch's LSTM refuses, its GRU and RNN do not."""
    grads = []
    x = torch.randn(5, 2, 3)
    for layer in pair(cell, 3, 4, num_layers=2):
        leaf = x.clone().requires_grad_()
        y, h_n = layer(leaf)
        change(y)
        if cell == "LSTM":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()
        else:
            (y.sum() + h_n.square().sum()).backward()
            grads.append([leaf.grad, *(w.grad for w in layer.parameters())])
    if grads:
        assert_close(*grads)


@pytest.mark.parametrize("cell", CELLS)
def test_outputs_changed_in_place_in_a_compiled_graph(cell):
    layer = getattr(fast, cell)(3, 4)

    def loss(x, in_place):
        y, _ = layer(x)
        y = y.mul_(2) if in_place else y * 2
        return y.square().sum()

    x = torch.randn(5, 2, 3)
    grads = []
    for compiled, in_place in ((True, True), (False, False)):
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        call = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
        call(leaf, in_place).backward()
        grads.append([leaf.grad, *(w.grad for w in layer.parameters())])
    assert_close(*grads, 20)


@pytest.mark.parametrize("cell", CELLS)
def test_outputs_are_freed_with_what_backward_needs(cell):
    layer = getattr(fast, cell)(3, 4)
    y, _ = layer(torch.randn(5, 2, 3))
    loss = y.square().sum()
    storage = StorageWeakRef(y.untyped_storage())
    del y
    assert not storage.expired()
    loss.backward()
    assert storage.expired()


def test_saved_tensors_may_be_moved():
    layer = fast.GRU(3, 4, 2, dropout=0.5)
    x = torch.randn(5, 2, 3)
    grads = []
    for hooks in (torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone), torch.enable_grad()):
        torch.manual_seed(0)
        layer.zero_grad()
        with hooks:
            layer(x)[0].sum().backward()
        grads.append([w.grad for w in layer.parameters()])
    assert_close(*grads)


def test_only_what_is_asked_for_is_computed(monkeypatch):
    calls = []
    backward = _core.backward
    monkeypatch.setattr(_core, "backward", lambda *args: calls.append(args) or backward(*args))
    theirs, mine = pair("LSTM", 3, 8, 2)
    x = torch.randn(5, 4, 3)
    mine.weight_ih_l0.requires_grad_(False)
    mine.bias_hh_l1.requires_grad_(False)
    for layer in (mine, theirs):
        layer(x)[0].pow(2).sum().backward()
    need_dx, dweights = calls[0][8:10]
    assert not need_dx
    assert [dw is None for dw in dweights] == [not w.requires_grad for w in mine.parameters()]
    assert mine.weight_ih_l0.grad is None
    wanted = [(a.grad, b.grad) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True) if a.requires_grad]
    assert_close(*zip(*wanted, strict=True), 20)


@pytest.mark.parametrize("cell", CELLS)
def test_frozen_layers_give_dx(cell):
    theirs, mine = pair(cell, 3, 20, 2, bidirectional=True)
    grads = []
    for layer in (mine, theirs):
        layer.requires_grad_(False)
        x = torch.linspace(-1, 1, 60).reshape(5, 4, 3).requires_grad_()
        layer(x)[0].pow(2).sum().backward()
        grads.append(x.grad)
    assert_close(grads[:1], grads[1:], 20)


@pytest.mark.parametrize("no_tape", [torch.no_grad, torch.inference_mode])
def test_no_tape_without_gradients(no_tape, monkeypatch):
    kept = []
    forward = _core.forward
    monkeypatch.setattr(_core, "forward", lambda *args: kept.append(args[9]) or forward(*args))
    layer = fast.GRU(3, 4)
    with no_tape():
        y, h_n = layer(torch.randn(2, 3, 3))
    assert not y.requires_grad
    assert not h_n.requires_grad
    assert kept == [False]


@pytest.mark.parametrize("cell", CELLS)
def test_inference_mode_wins_over_enable_grad(cell):
    layer = getattr(fast, cell)(3, 4)
    x = torch.randn(5, 2, 3)
    with torch.inference_mode(), torch.enable_grad():
        y, _ = layer(x)
    assert y.is_inference()
    assert y.grad_fn is None


@pytest.mark.parametrize("cell", CELLS)
def test_tensors_of_other_classes(cell):
    """Weights that are two tensors each, of which torch's dispatcher takes care."""
    theirs, mine = pair(cell, 3, 4)
    x = torch.randn(5, 2, 3)
    both = {name: TwoTensor(w.detach(), 2 * w.detach()) for name, w in mine.named_parameters()}
    y, _ = torch.func.functional_call(mine, both, (x,))
    for part, factor in ((y.a, 1), (y.b, 2)):
        scaled = {name: factor * w.detach() for name, w in theirs.named_parameters()}
        assert_close([part], [torch.func.functional_call(theirs, scaled, (x,))[0]])


def test_dropout_follows_torchs_generator():
    layer = fast.GRU(4, 64, 2, dropout=0.5)
    x = torch.randn(3, 5, 4)

    def run(seed):
        torch.manual_seed(seed)
        return layer(x)[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    layer.eval()
    assert torch.equal(run(1), run(2))
    theirs = nn.GRU(4, 64, 2, dropout=0.5).eval()
    theirs.load_state_dict(layer.state_dict())
    assert_close([run(1)], [theirs(x)[0]])


def test_weights_that_are_computed_get_gradients():
    theirs, mine = pair("LSTM", 3, 8)
    before = copy.deepcopy(theirs)
    for layer in (mine, theirs, before):
        nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    x = torch.randn(5, 4, 3)
    fast.accelerate(before)
    assert isinstance(before, fast.LSTM)
    assert_close(results(before, x), results(theirs, x), 20)
    assert isinstance(fast.restore(before), nn.LSTM)
    assert_close(results(before, x), results(theirs, x), 20)
    assert obstacle(mine, mine._weights(), x) is None
    assert_close(results(mine, x), results(theirs, x), 20)


def test_the_inputs_that_torch_ships():
    pytest.importorskip("expecttest")  # torch's test tools want it
    program = Path(__file__).with_name("torch_module_inputs.py")
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    counts = dict(line.split() for line in result.stdout.splitlines())
    assert counts.keys() == {*CELLS, *(f"{cell}Cell" for cell in CELLS)}
    assert all(int(count) > 0 for count in counts.values())


# ---- where the kernels do not serve


def test_other_dtypes_run_on_torch():
    theirs, mine = pair("GRU", 3, 8, 2, dtype=torch.bfloat16)
    x = torch.randn(5, 4, 3).bfloat16()
    assert "bfloat16" in obstacle(mine, mine._weights(), x).reason
    assert all(torch.equal(a, b) for a, b in zip(results(mine, x), results(theirs, x), strict=True))
    y, h_n = mine(x, lengths=torch.tensor([5, 1, 2, 3]))
    assert y.dtype == h_n.dtype == torch.bfloat16
    assert not y[1:, 1].any()


def test_autocast_gives_what_torch_gives():
    theirs, mine = pair("LSTM", 3, 8)
    x = torch.randn(5, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (y, _), (expected, _) = mine(x), theirs(x)
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


# ---- modules


@pytest.mark.parametrize("cell", CELLS)
def test_modules_are_torchs(cell):
    theirs, mine = pair(cell, 3, 8, 2, bidirectional=True)
    assert repr(mine) == repr(theirs)
    assert isinstance(mine, nn.RNNBase)
    assert not isinstance(mine, (nn.LSTM, nn.GRU, nn.RNN))
    for a, b in zip(mine.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(5, 4, 3)
    file = io.BytesIO()
    torch.save(mine, file)
    file.seek(0)
    copies = [copy.deepcopy(mine), pickle.loads(pickle.dumps(mine)), torch.load(file, weights_only=False)]
    for other in copies:
        assert type(other) is type(mine)
        assert all(torch.equal(a, b) for a, b in zip(results(other, x), results(mine, x), strict=True))
    mine.double()
    assert mine(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize("cell", CELLS)
def test_subclasses_draw_their_weights_themselves(cell):
    made = []
    for module in (nn, fast):

        class Mine(getattr(module, cell)):
            def reset_parameters(self):
                for weight in self.parameters():
                    nn.init.normal_(weight)

        torch.manual_seed(0)
        made.append([*Mine(3, 4).parameters(), torch.rand(1)])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((0, 3), {}),
        ((3, 4), {"proj_size": 4}),
        ((3, 4), {"num_layers": 0}),
        ((3, 4), {"dropout": 2.0}),
        ((3, 4), {"bias": 1}),
    ],
)
@pytest.mark.parametrize("cell", CELLS)
def test_constructors_refuse_what_torchs_refuse(cell, args, options):
    with pytest.raises(Exception) as expected:  # noqa: PT011 - the one below is compared with it
        getattr(nn, cell)(*args, **options)
    with pytest.raises(type(expected.value)) as got:
        getattr(fast, cell)(*args, **options)
    assert str(got.value) == str(expected.value)


WRONG = {
    "features": lambda hx: (torch.randn(5, 4, 2), hx),
    "dimensions": lambda hx: (torch.randn(5), hx),
    "dtype": lambda hx: (torch.randn(5, 4, 3).double(), hx),
    "state": lambda hx: (torch.randn(5, 2, 3), hx),
    "state in a tuple": lambda hx: (torch.randn(5, 4, 3), (hx,)),
    "state's dimensions": lambda hx: (torch.randn(5, 3), hx),
    "no steps": lambda hx: (torch.randn(0, 4, 3), hx),
    "packed": lambda hx: (pack_padded_sequence(torch.randn(5, 4, 2), torch.tensor([5, 4, 3, 2])), None),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("cell", CELLS)
def test_calls_are_refused_as_torch_refuses_them(cell, wrong):
    theirs, mine = pair(cell, 3, 8)
    inputs = WRONG[wrong](draw_state(cell, mine, (4,)))
    with pytest.raises(Exception) as expected:  # noqa: PT011 - the one below is compared with it
        theirs(*inputs)
    with pytest.raises(type(expected.value)) as got:
        mine(*inputs)
    assert str(got.value) == str(expected.value)


@pytest.mark.parametrize(
    "sizes", [([4, 4, 4], 2), ([1, 3], 4), ([3, 1, 2], 6), ([2, 0], 2)], ids=["too many", "rising", "uneven", "none"]
)
@pytest.mark.parametrize("cell", CELLS)
def test_packed_sequences_that_cannot_be_are_left_to_torch(cell, sizes):
    layer = getattr(fast, cell)(3, 8)
    packed = PackedSequence(torch.randn(sizes[1], 3), torch.tensor(sizes[0]))
    assert "shapes" in obstacle(layer, layer._weights(), packed).reason
    orders = PackedSequence(torch.randn(4, 3), torch.tensor([4]), torch.tensor([0]), torch.tensor([0]))
    assert "shapes" in obstacle(layer, layer._weights(), orders).reason


def test_operators_called_by_hand():
    layer = fast.GRU(3, 8)
    x = torch.randn(4, 5, 3).transpose(0, 1)
    weights = [w.detach() for w in layer.parameters()]
    got = torch.ops.fastrnn.forward("gru", 1, False, True, x, None, None, None, None, False, 0.0, None, weights, False)
    assert torch.equal(got[0], layer(x)[0])
    with pytest.raises(ValueError, match="x of 2 layers and directions must have 3 dimensions, got 2"):
        torch.ops.fastrnn.forward(
            "gru", 2, False, True, x[0], None, None, None, None, False, 0.0, None, weights * 2, False
        )
    with pytest.raises(ValueError, match="one row for each step, got 4 rows"):
        torch.ops.fastrnn.forward(
            "gru", 1, False, True, x[0], None, None, torch.tensor([3, 3]), None, True, 0.0, None, weights, False
        )


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_many_at_once(cell):
    layer = getattr(fast, cell)(2, 3, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    one_by_one, at_once = (
        torch.autograd.functional.jacobian(lambda x: layer(x)[0], x, vectorize=vectorize) for vectorize in (False, True)
    )
    assert_close([at_once], [one_by_one], 6)


def test_padding_reaches_no_gradient():
    layer = fast.GRU(3, 8, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    x[2:, 0] = torch.nan
    x.requires_grad_()
    y, _ = layer(x, lengths=torch.tensor([2, 9, 5, 9])[::2])
    inputs = (x, *layer.parameters())
    plain = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    assert all(g.isfinite().all() for g in plain)
    assert_close(torch.autograd.grad(y.sum(), inputs, create_graph=True), plain, 20)


def test_another_default_device():
    layer = fast.GRU(3, 8, 2, dropout=0.5)
    packed = pack_padded_sequence(torch.randn(5, 2, 3), torch.tensor([5, 1]))
    with torch.device("meta"):
        assert layer(packed)[1].device.type == "cpu"


def test_weights_of_another_shape_are_refused():
    theirs, mine = pair("GRU", 3, 8)
    for layer in (theirs, mine):
        layer.weight_hh_l0 = nn.Parameter(torch.zeros(24, 9))
    x = torch.randn(5, 4, 3)
    assert "shapes" in obstacle(mine, mine._weights(), x).reason
    for layer in (theirs, mine):
        with pytest.raises(RuntimeError):
            layer(x)


def test_views_of_many_kinds():
    """Not contiguous, broadcast, lazily negated: read as what they stand for."""
    theirs, mine = pair("GRU", 3, 8)
    numbers = torch.randn(4, 3, 5, dtype=torch.complex64)
    for x in (numbers.real.permute(2, 0, 1), numbers.real[:1, :, :1].permute(2, 0, 1).expand(5, 4, 3)):
        assert_close(results(mine, x), results(theirs, x), 20)
    x = numbers.conj().imag.permute(2, 0, 1)
    assert x.is_neg()
    assert_close([mine(x)[0]], [theirs(x)[0]])
    y = mine(numbers.real.permute(2, 0, 1))[0]
    grads = [
        torch.autograd.grad(y, mine.weight_hh_l0, dy, retain_graph=True)[0] for dy in (-torch.ones_like(y), negated(y))
    ]
    assert_close(grads[:1], grads[1:], 20)


def negated(like):
    """-1 in the shape of another tensor, by a bit that says so."""
    ones = torch.complex(torch.zeros_like(like), torch.ones_like(like)).detach()
    assert ones.conj().imag.is_neg()
    return ones.conj().imag


@pytest.mark.parametrize(
    ("extras", "error", "message"),
    [
        ({"lengths": [1, 2, 3, 4]}, TypeError, "lengths must be an int64 tensor, got list"),
        ({"lengths": torch.ones(4)}, TypeError, "lengths must be an int64 tensor, got torch.float32"),
        ({"lengths": torch.ones(3, dtype=torch.int64)}, ValueError, r"lengths must have shape \(B=4,\), got \(3,\)"),
        ({"lengths": torch.tensor([1, 6, 2, 2])}, ValueError, r"between 0 and T=5, got \[1, 6, 2, 2\]"),
        ({"resets": torch.ones(5, 4)}, TypeError, "resets must be a bool tensor, got torch.float32"),
        ({"resets": torch.ones(4, 5, dtype=torch.bool)}, ValueError, r"shape \(T=5, B=4\), got \(4, 5\)"),
    ],
)
def test_wrong_lengths_and_resets(extras, error, message):
    with pytest.raises(error, match=message):
        fast.GRU(3, 8)(torch.randn(5, 4, 3), **extras)


def test_lengths_and_resets_where_they_cannot_be():
    layer = fast.GRU(3, 8, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(5, 2, 3), torch.tensor([5, 1]))
    with pytest.raises(ValueError, match="lengths cannot be used with a PackedSequence"):
        layer(packed, lengths=torch.tensor([5, 1]))
    with pytest.raises(ValueError, match="lengths need a batch"):
        layer(torch.randn(5, 3), lengths=torch.tensor([5]))
    with pytest.raises(ValueError, match="resets cannot be used with bidirectional=True"):
        layer(torch.randn(5, 2, 3), resets=torch.zeros(5, 2, dtype=torch.bool))


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
