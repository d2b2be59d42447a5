"""fastrnn.torch's layers beside torch.nn's: same weights, same calls, same results and gradients."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402
from torch.testing._internal.two_tensor import TwoTensor  # noqa: E402

import fastrnn.torch as fast  # noqa: E402
from fastrnn import _core  # noqa: E402
from fastrnn.torch import composite, devices, kernel  # noqa: E402
from fastrnn.torch.paths import obstacle  # noqa: E402

import torch_pairs  # noqa: E402 isort: skip
from torch_pairs import assert_close, pair, results, tensors, draw_state  # noqa: E402 isort: skip

CELLS = ("LSTM", "GRU", "RNN")
pytestmark = torch_pairs.IGNORED


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
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lengths": True, "bidirectional": True},
        {"resets": True},
        {"packed": True},
        {"lengths": True, "resets": True},
    ],
)
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


# ---- what the kernels are given


def test_misaligned_tensors_are_copied(monkeypatch):
    """Every tensor that comes from outside of a layer, a gradient and a call by hand."""

    def shifted(tensor):
        """The same one byte further."""
        plain = tensor.detach().cpu().contiguous()
        size = plain.numel() * plain.element_size()
        memory = bytearray(size + 1)
        moved = torch.frombuffer(memory, dtype=torch.uint8, offset=1)
        moved.copy_(plain.view(-1).view(torch.uint8))
        return torch.frombuffer(memory, dtype=plain.dtype, offset=1).view(plain.shape)

    layer = fast.LSTM(3, 4, 2)
    given = [torch.randn(5, 2, 3), torch.randn(2, 2, 4), torch.randn(2, 2, 4)]
    lengths, dy = torch.tensor([5, 2]), torch.randn(5, 2, 4)
    addresses, found = [], []
    for name in ("forward", "backward"):
        part = devices.part_for(given[0])
        original = getattr(part, name)

        def recorded(stack, given, weights, *rest, original=original):
            tensors = [*given[:5], *weights, *rest]
            addresses.extend(t.data_ptr() % t.element_size() for t in tensors if isinstance(t, torch.Tensor))
            return original(stack, given, weights, *rest)

        monkeypatch.setattr(part, name, recorded)
    for move in (torch.clone, shifted):
        with torch.no_grad():
            for w in layer.parameters():
                w.set_(move(w))
                w.grad = None
        x, *state = (move(t).requires_grad_() for t in given)
        assert bool(x.data_ptr() % 4) == (move is shifted)
        y, _ = layer(x, tuple(state), lengths=move(lengths))
        y.backward(move(dy))
        by_hand = torch.ops.fastrnn.forward(
            *layer._stack(), x.detach(), None, None, move(lengths), None, False, 0.0, None, layer._weights(), False
        )
        found.append([y, x.grad, *(s.grad for s in state), *(w.grad for w in layer.parameters()), by_hand[0]])
    assert addresses
    assert not any(addresses)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
