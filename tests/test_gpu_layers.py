"""Layers with device="cuda", on a GPU or emulated, against the reference."""

import copy
import pickle

import numpy as np
import pytest

import cuda_calls
import fastrnn
import gpu_arrays
import helpers
import test_readme
from cuda_calls import drawn, loaded, stored
from fastrnn import functional
from gpu_arrays import libraries_here
from helpers import Case, as_state, covering, named_gradients, named_state
from layering import LAYERS, pair

pytestmark = gpu_arrays.needs_kernels
#: What layers, whose weights are CuPy's, can hold.
OF_LAYERS = [number for number in cuda_calls.NUMBERS if number != "bfloat16" or gpu_arrays.HAS_BFLOAT16]


@pytest.fixture(scope="module", autouse=True)
def _installed():
    with gpu_arrays.installed():
        yield


@pytest.fixture(autouse=True)
def _order(request, monkeypatch):
    monkeypatch.setenv("FASTRNN_EMULATION_SEED", str(sum(map(ord, request.node.name))))


def possible(row):
    return not (row["bidirectional"] and row["resets"]) and row.get("proj_size", 0) < row["H"]


def cases():
    options = {
        "number": OF_LAYERS,
        "library": [library.name for library in libraries_here()],
        "T": (1, 4),
        "B": (1, 3),
        "H": (1, 6),
        "num_layers": (1, 2),
        "bidirectional": (False, True),
        "bias": (True, False),
        "state": (True, False),
        "dropout": (0.0, 0.3),
        "lengths": (False, True),
        "resets": (False, True),
    }
    for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        more = {"proj_size": (0, 3)} if cell == "lstm" else {}
        for row in covering(options | more, possible):
            number, library = row.pop("number"), row.pop("library")
            case = Case(cell, "float64" if number == "float64" else "float32", **row)
            yield pytest.param(library, number, case, id=f"{library}-{number}-{case}")


def library_named(name):
    return next(library for library in libraries_here() if library.name == name)


def layer_of(case, number, weights=None, **more):
    options = {"num_layers": case.num_layers, "bias": case.bias, "bidirectional": case.bidirectional}
    options |= {"dropout": case.dropout, "dtype": cuda_calls.NUMBERS[number], "device": "cuda:0"} | more
    if case.cell == "lstm":
        options["proj_size"] = case.proj_size
    layer = LAYERS[case.cell](case.I, case.H, **options)
    if weights is not None:
        layer.load_state_dict(weights)
    return layer


def arguments(case, data, number, library, host=False):
    """x, state, and lengths and resets, on the GPU or from the host."""

    def put(array):
        return library.put(stored(array, number))

    where = (lambda array: array) if host else library.put
    rows = {"lengths": data.lengths, "resets": data.resets}
    rows = {name: None if array is None else where(array) for name, array in rows.items()}
    return put(data.x), as_state([put(s) for s in data.state]) if case.state else None, rows


def values(y, state, number, library):
    def get(array):
        return loaded(library.get(array), number)

    return {"y": get(y), **{name: get(a) for name, a in named_state(state, "", "_n").items()}}


def gradients(case, data, number, library, backward, weights):
    def put(array):
        return library.put(stored(array, number))

    dx, dstate, dweights = backward(put(data.dy), as_state([put(s) for s in data.dstate]))
    named = named_gradients(dx, dstate, {})
    named = {name: loaded(library.get(a), number) for name, a in named.items()}
    return named | {f"d{name}": loaded(weights.get(dw), number) for name, dw in dweights.items()}


@pytest.fixture
def tf32(request, monkeypatch):
    def choose(number):
        monkeypatch.setattr(fastrnn.cuda, "allow_tf32", number == "tf32")

    return choose


@pytest.mark.parametrize(("library", "number", "case"), list(cases()))
@pytest.mark.filterwarnings("ignore:.*has no effect with num_layers=1")
def test_layers_equal_the_reference(library, number, case, tf32):
    tf32(number)
    library, cupy = library_named(library), gpu_arrays.CuPys()
    data, expected, allowed = drawn(case, number)
    layer = layer_of(case, number, data.weights)
    x, state, rows = arguments(case, data, number, library)
    y, state_n, tape = layer.forward(x, state, **rows, dropout_seed=data.dropout_seed)
    got = values(y, state_n, number, library)

    def backward(dy, dstate):
        return (*layer.backward(tape, dy, dstate), layer.grads)

    got |= gradients(case, data, number, library, backward, cupy)
    helpers.assert_within(got, expected, allowed)
    if case.dropout == 0:  # without a tape, and with lengths and resets brought by the layer
        x, state, rows = arguments(case, data, number, library, host=True)
        inferred = values(*layer(x, state, **rows), number, library)
        helpers.assert_within(inferred, {name: expected[name] for name in inferred}, allowed)


@pytest.mark.parametrize("number", cuda_calls.NUMBERS)
@pytest.mark.parametrize("library", [library.name for library in libraries_here()[:2]])
@pytest.mark.parametrize("cell", LAYERS)
def test_functions_equal_the_reference(cell, library, number, tf32):
    if library == "cupy" and number not in OF_LAYERS:
        pytest.skip("CuPy has bfloat16 from version 14 on, with ml_dtypes")
    tf32(number)
    library = library_named(library)
    relu = cell == "rnn_relu" and number not in ("float32", "float64")  # few draws stay clear of its jump
    case = Case(cell, "float64" if number == "float64" else "float32", T=1 if relu else 3, B=2, H=4, lengths=True)
    data, expected, allowed = drawn(case, number)
    weights = {name: library.put(stored(w, number)) for name, w in data.weights.items()}
    x, state, rows = arguments(case, data, number, library)
    y, state_n, tape = functional.forward(cell, x, weights, state, **rows)
    got = values(y, state_n, number, library)
    got |= gradients(case, data, number, library, lambda *given: functional.backward(tape, *given), library)
    helpers.assert_within(got, expected, allowed)


@pytest.mark.parametrize("cell", LAYERS)
def test_a_seed_gives_the_weights_and_dropout_of_the_cpu(cell):
    case = Case(cell, "float32", T=5, B=3, num_layers=3, dropout=0.5)
    layers = [layer_of(case, "float32", seed=3, device=device) for device in ("cpu", "cuda")]
    for name, w in layers[0].parameters.items():
        assert np.array_equal(layers[1].parameters[name].get(), w)
        assert not layers[1].grads[name].get().any()
    x = helpers.draw(case).x
    cpu, gpu = layers[0].forward(x), layers[1].forward(gpu_arrays.CuPys().put(x))
    assert gpu[2].dropout_seed == cpu[2].dropout_seed
    np.testing.assert_allclose(gpu[0].get(), cpu[0], atol=1e-6)  # unlike masks would differ by far more


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 4), (4, 4)], ids=["batch", "unbatched"])
def test_layouts_are_those_of_the_cpu(shape, batch_first):
    options = {"num_layers": 2, "batch_first": batch_first, "seed": 1}
    cpu, gpu = (fastrnn.LSTM(4, 5, device=device, **options) for device in ("cpu", "cuda"))
    cupy = gpu_arrays.CuPys()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*shape[:-1], 8), dtype=np.float32)
    resets = rng.random(shape[:-1]) < 0.3
    results = []
    for layer, give in ((cpu, lambda a: a), (gpu, cupy.put)):
        y, state, tape = layer.forward(give(x)[..., ::2], resets=give(resets))  # not contiguous: copied
        dy = np.ones(tuple(y.shape), np.float32)
        dx, dstate = layer.backward(tape, give(dy))
        results.append([y, *state, dx, *dstate])
    for got, want in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(got.get(), want, atol=1e-5)


@pytest.mark.parametrize(("T", "B"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_do(T, B):
    layer, cupy = fastrnn.GRU(4, 5, 2, bidirectional=True, device="cuda"), gpu_arrays.CuPys()
    h = np.random.default_rng(0).standard_normal((4, B, 5), dtype=np.float32)
    y, h_n, tape = layer.forward(cupy.put(np.zeros((T, B, 4), np.float32)), cupy.put(h))
    assert y.shape == (T, B, 10)
    assert np.array_equal(h_n.get(), h)
    dx, dh_0 = layer.backward(tape, y, cupy.put(h))
    assert dx.shape == (T, B, 4)
    assert np.array_equal(dh_0.get(), h)
    assert not any(g.get().any() for g in layer.grads.values())


def test_gradients_add_up_and_are_zeroed():
    layer, cupy = fastrnn.GRU(4, 5, device="cuda", seed=0), gpu_arrays.CuPys()
    x = cupy.put(np.random.default_rng(0).standard_normal((3, 2, 4), dtype=np.float32))
    once = None
    for _ in range(2):
        y, _, tape = layer.forward(x)
        layer.backward(tape, y)
        once = once or {name: g.get() for name, g in layer.grads.items()}
    for name, g in layer.grads.items():
        np.testing.assert_allclose(g.get(), 2 * once[name], rtol=1e-5, atol=1e-6)
    layer.zero_grad()
    assert not any(g.get().any() for g in layer.grads.values())
    with pytest.raises(ValueError, match="consumed"):
        layer.backward(tape, y)


@pytest.mark.parametrize("number", [number for number in OF_LAYERS if number != "tf32"])
def test_weights_are_saved_loaded_and_copied(number):
    layer = fastrnn.LSTM(4, 5, 2, dropout=0.5, device="cuda:0", dtype=number, seed=0)
    x = gpu_arrays.CuPys().put(stored(np.ones((3, 2, 4)), number))
    saved = layer.state_dict()
    copies = [pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), copy.copy(layer)]
    fresh = fastrnn.LSTM(4, 5, 2, dropout=0.5, device="cuda", dtype=number, seed=1)
    kept = dict(fresh.parameters)
    fresh.load_state_dict(saved)
    assert all(fresh.parameters[name] is w for name, w in kept.items())
    assert np.array_equal(fresh(x)[0].get(), layer(x)[0].get())
    y, _, tape = layer.forward(x)
    layer.backward(tape, y)
    for other in copies[:2]:
        assert other.device == "cuda:0"
        assert other.dtype == layer.dtype
        again, _, tape = other.forward(x)  # the next dropout too
        assert np.array_equal(again.get(), y.get())
        other.backward(tape, again)
        assert all(np.array_equal(g.get(), other.grads[name].get()) for name, g in layer.grads.items())
    assert copies[2].parameters == layer.parameters
    cpu = fastrnn.LSTM(4, 5, 2, seed=2)
    cpu.load_state_dict(saved)
    assert all(np.array_equal(w, saved[name].get().astype("float32")) for name, w in cpu.parameters.items())


def test_torchs_weights_are_loaded():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.GRU(4, 5, 2, bidirectional=True)
    layer = fastrnn.GRU(4, 5, 2, bidirectional=True, device="cuda")
    layer.load_state_dict(theirs.state_dict())
    assert all(np.array_equal(layer.parameters[n].get(), w.detach()) for n, w in theirs.named_parameters())


@pytest.mark.parametrize("library", [library.name for library in libraries_here()])
@pytest.mark.parametrize("cell", LAYERS)
def test_streams_step_as_the_layer(cell, library):
    library, case = library_named(library), Case(cell, "float32", T=4, B=3, num_layers=2)
    data, expected, allowed = drawn(case, "float32")
    layer = layer_of(case, "float32", data.weights)
    stream = layer.stream(3)
    stream.state = as_state([library.put(s) for s in data.state])
    out = library.put(np.full((3, 5), np.nan, np.float32)) if library.name == "cupy" else None
    for w in layer.parameters.values():
        w[...] = float("nan")  # a stream has copies
    y = [library.get(stream.step(library.put(x), out)).copy() for x in data.x]
    helpers.assert_within({"y": np.stack(y)}, {"y": expected["y"]}, allowed)
    got = {name: a.get() for name, a in named_state(stream.state, "", "_n").items()}
    helpers.assert_within(got, {name: expected[name] for name in got}, allowed)
    stream.select([2, 0, 2, 1])
    stream.reset([1])
    want = [got[name][:, [2, 0, 2, 1]] * np.array([1, 0, 1, 1])[:, None] for name in got]
    assert all(np.array_equal(a.get(), b) for a, b in zip(pair(stream.state), want, strict=True))
    assert stream.step(library.put(data.x[0][[2, 0, 2, 1]])).shape if library.name != "elsewhere" else True
    stream.reset()
    assert not any(s.get().any() for s in pair(stream.state))


@pytest.mark.parametrize("path", ["general", "one_sm"])
@pytest.mark.parametrize("cell", LAYERS)
def test_streams_step_in_place(cell, path, monkeypatch):
    """More than a tile of rows and units, in an order of the blocks that differs by test."""
    monkeypatch.setenv("FASTRNN_CUDA_PATH", path)
    case = Case(cell, "float64", T=3, B=19, H=33, num_layers=2)
    data, expected, allowed = drawn(case, "float64")
    cupy, stream = gpu_arrays.CuPys(), layer_of(case, "float64", data.weights).stream(case.B)
    stream.state = as_state([cupy.put(s) for s in data.state])
    got = {"y": np.stack([cupy.get(stream.step(cupy.put(x))) for x in data.x])}
    got |= {name: a.get() for name, a in named_state(stream.state, "", "_n").items()}
    helpers.assert_within(got, {name: expected[name] for name in got}, allowed)


@pytest.mark.parametrize("optimizer", [fastrnn.optim.SGD, fastrnn.optim.Adam])
def test_training_is_that_of_the_cpu(optimizer):
    cupy = gpu_arrays.CuPys()
    x = np.random.default_rng(0).standard_normal((4, 3, 4), dtype=np.float32)
    seen = []
    for device in ("cpu", "cuda"):
        layer = fastrnn.GRU(4, 5, device=device, seed=0)
        steps = optimizer(layer.parameters, lr=0.1, weight_decay=0.01)
        give = cupy.put if device == "cuda" else np.copy
        norms = []
        for _ in range(3):
            layer.zero_grad()
            y, _, tape = layer.forward(give(x))
            layer.backward(tape, y)
            with gpu_arrays.waiting():
                norms.append(fastrnn.clip_grad_norm(layer.grads, 0.5))
            steps.step(layer.grads)
        steps.load_state_dict(steps.state_dict())
        seen.append((norms, {n: cupy.get(w) if device == "cuda" else w for n, w in layer.parameters.items()}))
    np.testing.assert_allclose(seen[1][0], seen[0][0], rtol=1e-4)
    for name, w in seen[0][1].items():
        np.testing.assert_allclose(seen[1][1][name], w, atol=2e-4)


@pytest.mark.skipif(not test_readme.README.is_file(), reason="README.md is not beside the tests")
def test_readmes_example_runs():
    (block,) = test_readme.blocks("py")
    names = {"__name__": "readme"}
    exec(compile(block, str(test_readme.README), "exec"), names)
    y, h_n = fastrnn.GRU(8, 16, num_layers=2, seed=0)(names["x"].get(), lengths=[5, 2, 0, 3])
    np.testing.assert_allclose(names["y"].get(), y, atol=1e-5)
    np.testing.assert_allclose(names["h_n"].get(), h_n, atol=1e-5)
