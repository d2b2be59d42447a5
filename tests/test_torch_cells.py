"""fastrnn.torch's cells beside torch.nn's: same weights, same calls, same results and gradients."""

import copy
import io
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import fastrnn.torch as fast  # noqa: E402
from fastrnn import _core  # noqa: E402
from fastrnn.torch import cells, paths  # noqa: E402
from fastrnn.torch.paths import obstacle  # noqa: E402

import torch_pairs  # noqa: E402 isort: skip
from torch_pairs import assert_close, pair, results, tensors  # noqa: E402 isort: skip

CELLS = ("LSTMCell", "GRUCell", "RNNCell")
QUICKER_ON_TORCH = paths.quicker_on_torch
pytestmark = torch_pairs.IGNORED


@pytest.fixture(scope="module", autouse=True)
def _every_step_on_the_kernels():
    with pytest.MonkeyPatch.context() as patch:
        for module in (cells, paths):
            patch.setattr(module, "quicker_on_torch", lambda *_: None)
        yield


@pytest.fixture
def steps_where_they_are_quicker(monkeypatch):
    for module in (cells, paths):
        monkeypatch.setattr(module, "quicker_on_torch", QUICKER_ON_TORCH)


@st.composite
def cases(draw):
    return {
        "cell": draw(st.sampled_from(CELLS)),
        "sizes": (draw(st.integers(1, 40)), draw(st.integers(1, 40))),
        "batch": draw(st.sampled_from(((), (0,), (1,), (2,), (7,), (33,), (130,), (500,)))),
        "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from((torch.float32, torch.float64))),
        "hx": draw(st.booleans()),
        "gradients": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


def draw_inputs(case):
    x = torch.randn(*case["batch"], case["sizes"][0], dtype=case["dtype"])
    states = [torch.randn(*case["batch"], case["sizes"][1], dtype=case["dtype"]) for _ in range(2)]
    if not case["hx"]:
        return x, None
    return x, tuple(states) if case["cell"] == "LSTMCell" else states[0]


@settings(max_examples=150, deadline=None)
@given(cases())
def test_results_and_gradients_are_those_of_torch(case):
    torch.manual_seed(case["seed"])
    x, hx = draw_inputs(case)
    theirs, mine = pair(case["cell"], *case["sizes"], bias=case["bias"], dtype=case["dtype"], seed=case["seed"])
    if case["gradients"]:
        assert_close(results(mine, x, hx), results(theirs, x, hx), 1 + x.shape[0] if x.dim() == 2 else 1)
    else:
        with torch.no_grad():
            assert_close(list(tensors(mine(x, hx))), list(tensors(theirs(x, hx))))


@pytest.mark.usefixtures("steps_where_they_are_quicker")
@pytest.mark.parametrize("cell", CELLS)
def test_small_steps_run_on_torch(cell):
    theirs, mine = pair(cell, 180, 200)
    x, h = torch.randn(40, 180), torch.randn(40, 200)
    hx = (h, h) if cell == "LSTMCell" else h

    def reason(n):
        first = (h[:n], h[:n]) if cell == "LSTMCell" else h[:n]
        found = obstacle(mine, mine._weights(), x[:n], first)
        return found and found.reason

    assert_close(list(tensors(mine(x, hx))), list(tensors(theirs(x, hx))), 10)
    assert reason(40) == ("a plain step that records gradients is quicker there" if cell == "RNNCell" else None)
    with torch.no_grad():
        assert reason(40) is None
        assert reason(1) == "so small a step is quicker there"
        for n in (1, 40):
            outputs = [list(tensors(layer(x[:n]))) for layer in (mine, theirs)]
            assert_close(*outputs, 10)


@pytest.mark.parametrize("cell", CELLS)
def test_a_loop_over_time(cell):
    theirs, mine = pair(cell, 5, 9, dtype=torch.float64)
    x = torch.randn(12, 3, 5, dtype=torch.float64)

    def loop(layer):
        def call(x, _):
            state, outputs = None, []
            for x_t in x:
                state = layer(x_t, state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            return torch.stack(outputs)

        return call

    assert_close(results(mine, x, call=loop(mine)), results(theirs, x, call=loop(theirs)), 50)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch", [(), (4,)])
def test_gradcheck_and_gradgradcheck(cell, batch):
    layer = getattr(fast, cell)(3, 5, dtype=torch.float64)
    count = 2 if cell == "LSTMCell" else 1
    inputs = [torch.randn(*batch, n, dtype=torch.float64, requires_grad=True) for n in (3, *(5 for _ in range(count)))]

    def call(x, *states_and_weights):
        states, weights = states_and_weights[:count], states_and_weights[count:]
        parameters = dict(zip(dict(layer.named_parameters()), weights, strict=True))
        return torch.func.functional_call(layer, parameters, (x, states if count == 2 else states[0]))

    everything = (*inputs, *(w.detach().clone().requires_grad_() for w in layer.parameters()))
    assert torch.autograd.gradcheck(call, everything)
    assert torch.autograd.gradgradcheck(call, everything)


@pytest.mark.parametrize("cell", ["LSTMCell", "GRUCell"])  # torch's RNNCell refuses
def test_states_may_be_changed_in_place(cell):
    theirs, mine = pair(cell, 3, 5)
    x = torch.randn(2, 3)
    grads = []
    for layer in (theirs, mine):
        outputs = list(tensors(layer(x)))
        outputs[0].mul_(2)
        sum(y.sum() for y in outputs).backward()
        grads.append([w.grad for w in layer.parameters()])
    assert_close(*grads, 4)


@pytest.mark.parametrize("cell", CELLS)
def test_only_what_is_asked_for_is_computed(cell, monkeypatch):
    calls = []
    backward = _core.backward
    monkeypatch.setattr(_core, "backward", lambda *args: calls.append(args) or backward(*args))
    layer = getattr(fast, cell)(3, 5)
    x = torch.randn(2, 3)
    layer.weight_hh.requires_grad_(False)
    next(tensors(layer(x))).sum().backward()
    (args,) = calls
    assert args[8] is False  # dx
    assert [dw is None for dw in args[9]] == [False, True, False, False]
    assert args[12] == (None, None, None)  # dx, dh_0, dc_0
    assert layer.weight_hh.grad is None
    with torch.no_grad():
        layer(x)
    assert len(calls) == 1


@pytest.mark.parametrize("cell", CELLS)
def test_modules_are_torchs(cell):
    theirs, mine = pair(cell, 3, 8)
    assert repr(mine) == repr(theirs)
    assert isinstance(mine, nn.RNNCellBase)
    assert not isinstance(mine, (nn.LSTMCell, nn.GRUCell, nn.RNNCell))
    for a, b in zip(mine.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(4, 3)
    file = io.BytesIO()
    torch.save(mine, file)
    file.seek(0)
    for other in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine)), torch.load(file, weights_only=False)):
        assert type(other) is type(mine)
        assert all(torch.equal(a, b) for a, b in zip(results(other, x), results(mine, x), strict=True))


WRONG = {
    "features": lambda hx: (torch.randn(4, 2), hx),
    "dimensions": lambda hx: (torch.randn(1, 4, 3), hx),
    "dtype": lambda hx: (torch.randn(4, 3).double(), hx),
    "batch": lambda hx: (torch.randn(5, 3), hx),
    "state": lambda hx: (torch.randn(4, 3), torch.randn(4, 7)),
    "state in a tuple": lambda hx: (torch.randn(4, 3), (hx,)),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("cell", CELLS)
def test_calls_are_refused_as_torch_refuses_them(cell, wrong):
    theirs, mine = pair(cell, 3, 8)
    h, c = torch.randn(2, 4, 8)
    inputs = WRONG[wrong]((h, c) if cell == "LSTMCell" else h)
    with pytest.raises(Exception) as expected:  # noqa: PT011 - the one below is compared with it
        theirs(*inputs)
    with pytest.raises(type(expected.value)) as got:
        mine(*inputs)
    assert str(got.value) == str(expected.value)


def test_an_unknown_nonlinearity():
    layers = pair("RNNCell", 3, 8, nonlinearity="sin")
    for layer in layers:
        with pytest.raises(RuntimeError, match="Unknown nonlinearity: sin"):
            layer(torch.randn(2, 3))


def test_other_dtypes_and_transforms_run_on_torch():
    theirs, mine = pair("GRUCell", 3, 8, dtype=torch.bfloat16)
    x = torch.randn(4, 3).bfloat16()
    assert torch.equal(mine(x), theirs(x))
    theirs, mine = pair("GRUCell", 3, 8)
    xs = torch.randn(5, 4, 3)
    assert_close([torch.func.vmap(mine)(xs)], [torch.func.vmap(theirs)(xs)])
    y, dy = (torch.func.jvp(layer, (xs[0],), (xs[1],)) for layer in (mine, theirs))
    assert_close(y, dy)


@pytest.mark.parametrize("cell", CELLS)
def test_compiled_in_one_graph(cell):
    layer = getattr(fast, cell)(5, 7)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, h, c = torch.randn(4, 5), torch.randn(4, 7), torch.randn(4, 7)
    hx = (h, c) if cell == "LSTMCell" else h
    for got, expected in zip(
        results(layer, x, hx, call=lambda *args: compiled(*args)), results(layer, x, hx), strict=True
    ):
        assert torch.equal(got, expected)
    with torch.no_grad():
        assert_close(list(tensors(compiled(x, hx))), list(tensors(layer(x, hx))))


@pytest.mark.usefixtures("steps_where_they_are_quicker")
def test_accelerate_and_restore():
    model = nn.ModuleList([nn.LSTMCell(2, 3), nn.GRUCell(2, 3), nn.RNNCell(2, 3)])
    parameters = list(model.parameters())
    fast.accelerate(model)
    assert [type(cell) for cell in model] == [fast.LSTMCell, fast.GRUCell, fast.RNNCell]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    model.forward = lambda x: [cell(x) for cell in model]
    assert fast.explain(model, torch.randn(15000, 2)).splitlines() == [
        "0: LSTMCell(2, 3): fastrnn's kernels",
        "1: GRUCell(2, 3): fastrnn's kernels",
        "2: RNNCell(2, 3): torch, because a plain step that records gradients is quicker there",
    ]
    with torch.no_grad():
        lines = fast.explain(model, torch.randn(1, 2)).splitlines()
    assert [line.split(": ")[2] for line in lines] == ["torch, because so small a step is quicker there"] * 3
    fast.restore(model)
    assert [type(cell) for cell in model] == [nn.LSTMCell, nn.GRUCell, nn.RNNCell]
