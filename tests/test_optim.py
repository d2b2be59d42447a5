"""clip_grad_norm, SGD, Adam, AdamW and Average: the values against torch's or exact ones, and every refusal."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import fake_cupy
import fastrnn
from fastrnn import clip_grad_norm
from fastrnn.optim import SGD, Adam, AdamW, Average

SHAPES = {"w": (37, 11), "b": (5,), "scalar": (), "none": (0, 3), "large": (300, 70)}  # the last spans blocks


def arrays(seed: int, dtype: str) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    drawn = {name: np.array(rng.standard_normal(shape), dtype=dtype) for name, shape in SHAPES.items()}
    return [{"w": drawn["w"], "b": drawn["b"]}, {name: drawn[name] for name in ("scalar", "none", "large")}]


def flat(groups: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    return [array for group in groups for array in group.values()]


OPTIMIZERS = [
    (SGD, torch.optim.SGD, {}),
    (SGD, torch.optim.SGD, {"weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {"momentum": 0.9}),
    (SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (Adam, torch.optim.Adam, {}),
    (Adam, torch.optim.Adam, {"betas": (0.8, 0.95), "eps": 1e-3}),
    (Adam, torch.optim.Adam, {"weight_decay": 0.1}),
    (AdamW, torch.optim.AdamW, {}),
    (AdamW, torch.optim.AdamW, {"weight_decay": 0.1, "betas": (0.8, 0.95)}),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIMIZERS)
def test_trajectory_is_torchs(ours, theirs, options, dtype):
    params = arrays(0, dtype)
    tensors = [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in flat(params)]
    optimizer, other = ours(params, lr=0.05, **options), theirs(tensors, lr=0.05, **options)
    for step in range(12):
        if step == 6:
            optimizer.lr = other.param_groups[0]["lr"] = 0.01
        grads = arrays(step + 1, dtype)
        for tensor, grad in zip(tensors, flat(grads), strict=True):
            tensor.grad = torch.from_numpy(grad.copy())
        optimizer.step(grads)
        other.step()
    for array, tensor in zip(flat(params), tensors, strict=True):
        tolerance = 2e-6 if dtype == "float32" else 1e-13
        np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=tolerance, atol=tolerance)


def test_default_learning_rates_are_torchs():
    tensor = torch.nn.Parameter(torch.ones(1))
    for ours, theirs in ((SGD, torch.optim.SGD), (Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)):
        assert ours({"w": np.ones(1)}).lr == theirs([tensor]).param_groups[0]["lr"]


def test_updates_in_place_and_leaves_gradients_alone():
    params, grads = arrays(0, "float32"), arrays(1, "float32")
    before, kept = flat(params), copy.deepcopy(grads)
    for ours, options in (
        (SGD, {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
        (Adam, {"weight_decay": 0.1}),
    ):
        ours(params, lr=0.1, **options).step(grads)
    assert all(a is b for a, b in zip(before, flat(params), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(flat(kept), flat(grads), strict=True))


def test_takes_the_array_that_an_entry_holds_now():
    params, grads = {"w": np.zeros(3)}, {"w": np.ones(3)}
    optimizer = SGD(params, lr=1.0)
    old, params["w"] = params["w"], np.full(3, 5.0)
    optimizer.step(grads)
    assert np.array_equal(params["w"], [4, 4, 4])
    assert np.array_equal(old, [0, 0, 0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kind", "options"), [(SGD, {}), (SGD, {"momentum": 0.9, "weight_decay": 0.1}), (Adam, {"weight_decay": 0.1})]
)
def test_scaled_gradients(kind, options, dtype):
    one, other = arrays(0, dtype), arrays(0, dtype)
    given, scaled = arrays(1, dtype), arrays(1, dtype)
    for array in flat(scaled):
        array *= 0.25
    kept = copy.deepcopy(given)
    a, b = kind(one, lr=0.1, **options), kind(other, lr=0.1, **options)
    for _ in range(3):
        a.step(given, 0.25)  # a power of two: no other rounding
        b.step(scaled)
    for x, y in ((one, other), (given, kept)):
        assert all(np.array_equal(p, q) for p, q in zip(flat(x), flat(y), strict=True))
    with pytest.raises(ValueError, match=f"^{kind._name}: scale must be a finite number >= 0, got nan"):
        a.step(given, math.nan)


def test_norm_and_steps_do_not_depend_on_threads():
    before, seen = fastrnn.get_num_threads(), []
    for threads in (1, 2, 3):
        fastrnn.set_num_threads(threads)
        rng = np.random.default_rng(0)
        grads = {str(n): rng.standard_normal(n, dtype=np.float32) for n in (0, 1, 31, 32, 33, 16384, 16385, 200001)}
        exact = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads.values()))
        params = {name: g.copy() for name, g in grads.items()}
        norm = clip_grad_norm(grads, 1.0)
        Adam(params).step(grads)
        seen.append((norm, grads, params))
    fastrnn.set_num_threads(before)
    for norm, grads, params in seen:
        assert norm == seen[0][0] == pytest.approx(exact, rel=1e-12)
        for name in grads:
            assert np.array_equal(grads[name], seen[0][1][name])
            assert np.array_equal(params[name], seen[0][2][name])


def test_gradient_may_have_any_layout():
    params, grad = {"w": np.zeros((3, 4))}, np.arange(12.0).reshape(4, 3).T
    SGD(params, lr=1.0).step({"w": grad})
    assert np.array_equal(params["w"], -grad)


@pytest.mark.parametrize(("ours", "options"), [(SGD, {"momentum": 0.9}), (SGD, {}), (Adam, {"weight_decay": 0.01})])
def test_state_dict_continues_to_the_bit(ours, options):
    params = arrays(0, "float32")
    optimizer = ours(params, lr=0.1, **options)
    for step in range(3):
        optimizer.step(arrays(step, "float32"))
    state, copied = optimizer.state_dict(), copy.deepcopy(params)
    other = ours(copied, lr=0.5, **options)
    other.load_state_dict(state)
    assert other.lr == 0.1
    for step in range(3, 6):
        optimizer.step(arrays(step, "float32"))
        other.step(arrays(step, "float32"))
    assert all(np.array_equal(a, b) for a, b in zip(flat(params), flat(copied), strict=True))


def test_state_dict_holds_copies():
    params = {"w": np.zeros(3)}
    optimizer = Adam(params)
    state = optimizer.state_dict()
    optimizer.step({"w": np.ones(3)})
    assert state["step"] == 0
    assert not state["state"]["0.w.exp_avg"].any()


def test_load_state_dict_refuses_and_changes_nothing():
    def make():
        return Adam({"w": np.zeros(3)}, lr=0.1)

    good = make().state_dict()
    slots = good["state"]
    bad = {
        "adam: state must be a dict": (TypeError, [good]),
        "must have the keys .*, got": (ValueError, {key: good[key] for key in good if key != "eps"}),
        "must come from 'adam', got 'sgd'": (ValueError, good | {"optimizer": "sgd"}),
        r"step'\] must be an integer >= 0, got -1": (ValueError, good | {"step": -1}),
        "lr must be a finite number >= 0, got nan": (ValueError, good | {"lr": math.nan}),
        r"betas\[1\] must be below 1": (ValueError, good | {"betas": [0.9, 1.0]}),
        r"state\['state'\] must have the keys": (ValueError, good | {"state": {}}),
        r"must have shape \(3,\), got \(4,\)": (ValueError, good | {"state": {key: np.zeros(4) for key in slots}}),
        "must have dtype float64, got float32": (TypeError, good | {"state": {k: np.zeros(3, "f") for k in slots}}),
        "must be a NumPy array, got list": (TypeError, good | {"state": {key: [0] for key in slots}}),
    }
    for message, (kind, state) in bad.items():
        optimizer = make()
        with pytest.raises(kind, match=message):
            optimizer.load_state_dict(state)
        assert str(optimizer.state_dict()) == str(good)
    with pytest.raises(ValueError, match="sgd: state must hold the arrays"):
        SGD({"w": np.zeros(3)}).load_state_dict(SGD({"w": np.zeros(3)}, momentum=0.9).state_dict() | {"state": {}})


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda p: SGD(p, lr=-1), ValueError, "sgd: lr must be a finite number >= 0, got -1"),
        (lambda p: Adam(p, lr=math.inf), ValueError, "adam: lr must be a finite number >= 0, got inf"),
        (lambda p: Adam(p, lr="1"), TypeError, "adam: lr must be a number >= 0, got '1'"),
        (lambda p: Adam(p, lr=True), TypeError, "adam: lr must be a number >= 0, got True"),
        (lambda p: SGD(p, momentum=1.5), ValueError, "sgd: momentum must be a number between 0 and 1, got 1.5"),
        (lambda p: SGD(p, nesterov=True), ValueError, "sgd: nesterov needs momentum > 0, got 0.0"),
        (lambda p: SGD(p, momentum=0.9, nesterov=1), TypeError, "sgd: nesterov must be True or False, got 1"),
        (lambda p: SGD(p, weight_decay=-0.1), ValueError, "sgd: weight_decay must be a finite number >= 0, got -0.1"),
        (lambda p: Adam(p, betas=0.9), TypeError, "adam: betas must be a pair of numbers"),
        (lambda p: Adam(p, betas=(0.9, 1.0)), ValueError, r"adam: betas\[1\] must be below 1, got 1.0"),
        (lambda p: Adam(p, eps=math.nan), ValueError, "adam: eps must be a finite number >= 0, got nan"),
        (
            lambda p: Adam([p["w"]]),
            TypeError,
            "adam: params must be a dict of arrays or a list of such dicts, got list",
        ),
        (lambda p: SGD({"w": [1.0]}), TypeError, r"sgd: params\['w'\] must be a NumPy array, got list"),
        (lambda p: SGD({"w": np.ones(2, int)}), TypeError, "must have dtype float32 or float64, got <i8"),
        (lambda p: SGD({"w": np.ones(2, ">f8")}), TypeError, "must have dtype float32 or float64, got >f8"),
        (lambda p: SGD([p, {"w": p["w"]}]), ValueError, r"params\[1\]\['w'\] is an array that params already hold"),
        (lambda p: SGD({"w": np.ones((3, 4)).T}), ValueError, "must be C-contiguous, got strides"),
        (lambda p: SGD({"w": np.broadcast_to(1.0, 3)}), ValueError, "must be writeable, got a read-only array"),
    ],
)
def test_constructor_refuses(make, kind, message):
    with pytest.raises(kind, match=message):
        make({"w": np.zeros(3)})


def test_step_refuses_and_changes_nothing():
    params = {"a": np.zeros(3), "b": np.zeros(2)}
    optimizer = Adam(params, lr=1.0)
    cases = [
        ([np.ones(3)], TypeError, "grads must be a dict of arrays or a list"),
        ([{}, {}], ValueError, r"grads must be 1 dict\(s\) as params are, got 2"),
        ({"a": np.ones(3)}, ValueError, r"grads must have the names \['a', 'b'\], got \['a'\]"),
        ({"a": np.ones(3), "b": np.ones(3)}, ValueError, r"grads\['b'\] must have shape \(2,\), got \(3,\)"),
        ({"a": np.ones(3), "b": np.ones(2, "f")}, TypeError, r"grads\['b'\] must have dtype float64, got float32"),
        ({"a": np.ones(3), "b": [1, 1]}, TypeError, r"grads\['b'\] must be a NumPy array, got list"),
    ]
    for grads, kind, message in cases:
        with pytest.raises(kind, match=f"adam: {message}"):
            optimizer.step(grads)
    good = {"a": np.ones(3), "b": np.ones(2)}
    params["b"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"adam: params\['b'\] must have shape \(2,\), got \(3,\)"):
        optimizer.step(good)
    del params["b"]
    with pytest.raises(ValueError, match=r"adam: params must keep the names \['a', 'b'\], got \['a'\]"):
        optimizer.step(good)
    with pytest.raises(ValueError, match="adam: lr must be"):
        optimizer.lr = -1.0
    assert not params["a"].any()
    assert optimizer.state_dict()["step"] == 0
    assert optimizer.lr == 1.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 100.0, 1e6])
def test_clip_is_torchs(dtype, max_norm):
    grads = arrays(3, dtype)
    tensors = [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in flat(grads)]
    for tensor in tensors:
        tensor.grad = tensor.detach().clone()
    expected = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
    before = flat(grads)
    norm = clip_grad_norm(grads, max_norm)
    assert isinstance(norm, float)
    assert norm == pytest.approx(float(expected), rel=1e-6)
    for array, old, tensor in zip(flat(grads), before, tensors, strict=True):
        assert array is old
        np.testing.assert_allclose(array, tensor.grad.numpy(), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_clip_of_a_norm_that_is_not_finite_is_torchs(value):
    grads = {"w": np.array([1.0, value, -2.0])}
    tensor = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    tensor.grad = torch.from_numpy(grads["w"].copy())
    expected = float(torch.nn.utils.clip_grad_norm_([tensor], 1.0))
    np.testing.assert_equal(clip_grad_norm(grads, 1.0), expected)
    np.testing.assert_equal(grads["w"], tensor.grad.numpy())


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 3e38), ("float64", 1e308)])
def test_clip_does_not_overflow(dtype, largest):
    grads = [{"w": np.full(30_000, largest / 1e3, dtype)}, {"b": np.full(4, -largest / 1e3, dtype)}]
    expected = largest / 1e3 * math.sqrt(30_004)
    assert clip_grad_norm(grads, 1.0) == pytest.approx(expected, rel=1e-6)
    assert clip_grad_norm(grads, math.inf) == pytest.approx(1.0, rel=1e-5)


def test_clip_only_measures_without_a_limit():
    grads = {"w": np.array([3.0, 4.0]), "none": np.zeros(0)}
    assert clip_grad_norm(grads, math.inf) == 5.0
    assert grads["w"].tolist() == [3.0, 4.0]
    assert clip_grad_norm({}, 1.0) == 0.0
    assert clip_grad_norm([], 1.0) == 0.0


def test_clip_of_other_layouts_and_reproducible():
    base = np.random.default_rng(0).standard_normal((200, 300)).astype("f")
    norms = {clip_grad_norm({"w": base.copy().T}, math.inf) for _ in range(5)}
    assert len(norms) == 1
    view = base.copy()[::2, ::3]
    norm = clip_grad_norm({"w": view}, 1.0)
    assert norm == pytest.approx(float(np.linalg.norm(base[::2, ::3].astype(float))), rel=1e-7)
    assert float(np.linalg.norm(view)) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("grads", "max_norm", "kind", "message"),
    [
        ({"w": np.ones(3)}, -1.0, ValueError, "max_norm must be a finite number >= 0, got -1.0"),
        ({"w": np.ones(3)}, math.nan, ValueError, "max_norm must be a finite number >= 0, got nan"),
        ({"w": np.ones(3)}, None, TypeError, "max_norm must be a number >= 0, got None"),
        ([np.ones(3)], 1.0, TypeError, "grads must be a dict of arrays or a list of such dicts, got list"),
        (np.ones(3), 1.0, TypeError, "grads must be a dict of arrays or a list of such dicts, got ndarray"),
        ({"w": [1.0]}, 1.0, TypeError, r"grads\['w'\] must be a NumPy array, got list"),
        (
            [{}, {"w": np.ones(3, "e")}],
            1.0,
            TypeError,
            r"grads\[1\]\['w'\] must have dtype float32 or float64, got <f2",
        ),
        ({"w": np.broadcast_to(1.0, 3)}, 1.0, ValueError, r"grads\['w'\] must be writeable, got a read-only array"),
    ],
)
def test_clip_refuses(grads, max_norm, kind, message):
    with pytest.raises(kind, match=f"^clip_grad_norm: {message}"):
        clip_grad_norm(grads, max_norm)


# -- Average -----------------------------------------------------------------------------------------------------------


def numbers(groups) -> list[np.ndarray]:
    """Copies, on the CPU."""
    return [np.array(array if isinstance(array, np.ndarray) else array.get()) for array in flat(groups)]


def all_equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("put", [np.array, fake_cupy.array], ids=["numpy", "cupy"])
def test_average_is_the_mean(put, dtype):
    values = [
        [{name: array for name, array in group.items() if array.ndim} for group in arrays(seed, dtype)]
        for seed in range(9)  # the stand-in for CuPy has no scalars
    ]
    params = [{name: put(array) for name, array in group.items()} for group in values[0]]
    own = flat(params)
    average = Average(params)
    for count, groups in enumerate(values, 1):
        for param, new in zip(own, flat(groups), strict=True):
            param[...] = put(new)
        average.update()
        assert average.count == count
        assert all_equal(numbers(params), flat(groups))
    average.swap()
    means = numbers(params)
    average.swap()
    assert all_equal(numbers(params), flat(values[-1]))
    assert all(a is b for a, b in zip(own, flat(params), strict=True))
    for i, mean in enumerate(means):
        every = np.array([flat(groups)[i] for groups in values], np.float64)
        # Each of the n updates rounds three numbers that are at most as large as twice the largest value.
        allowed = 3 * len(values) * np.finfo(dtype).eps * np.abs(every).max(initial=0.0)
        assert np.abs(mean - every.mean(axis=0)).max(initial=0.0) <= allowed


def test_average_of_one_value_is_that_value():
    params = arrays(0, "float32")
    average = Average(params)
    average.update()
    average.swap()
    assert all_equal(flat(params), flat(arrays(0, "float32")))


@pytest.mark.parametrize("swapped", [False, True])
def test_average_continues_to_the_bit(swapped):
    def later(params: list[dict[str, np.ndarray]], average: Average) -> list[np.ndarray]:
        if swapped:
            average.swap()
        for seed in (5, 6):
            for param, new in zip(flat(params), flat(arrays(seed, "float32")), strict=True):
                param += new
            average.update()
        average.swap()
        return flat(params)

    params = arrays(0, "float32")
    average = Average(params)
    average.update()
    for param in flat(params):
        param *= 3
    average.update()
    if swapped:
        average.swap()
    copied, state = copy.deepcopy(params), average.state_dict()
    other = Average(copied)
    other.load_state_dict(state)
    assert other.count == 2
    assert all_equal(later(params, average), later(copied, other))


def test_average_refuses():
    params = {"w": np.zeros(3)}
    average = Average(params)
    with pytest.raises(RuntimeError, match=r"^average: swap needs a mean: call update first"):
        average.swap()
    good = average.state_dict()
    for message, kind, state in (
        ("state must have the keys", ValueError, good | {"lr": 1.0}),
        ("state must come from 'average', got 'adam'", ValueError, good | {"optimizer": "adam"}),
        (r"state\['state'\]\['0.w.mean'\] must have shape", ValueError, good | {"state": {"0.w.mean": np.zeros(4)}}),
    ):
        with pytest.raises(kind, match=f"^average: {message}"):
            average.load_state_dict(state)
    params["w"] = np.zeros(4)
    with pytest.raises(ValueError, match=r"^average: params\['w'\] must have shape \(3,\), got \(4,\)"):
        average.update()
    with pytest.raises(TypeError, match=r"^average: params must be a dict of arrays or a list of such"):
        Average(np.zeros(3))
    with pytest.raises(TypeError, match=r"^average: params\['w'\] must have dtype float32 or float64, got <i8"):
        Average({"w": np.zeros(3, int)})
