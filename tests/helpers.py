"""What the tests of the kernels and of the reference share: cases, data, tolerances, finite differences.

A `Case` says what is computed, `draw` makes its data, `run` computes every value and gradient of it with
`fastrnn.reference` or `fastrnn.functional`, and `tolerances` says how exact the results must be.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

import fastrnn
from fastrnn import _core, functional, reference

Arrays = dict[str, np.ndarray]

ISAS = tuple(_core.config()["isa_available"])


@contextmanager
def kernels(isa: str, threads: int | None = None) -> Iterator[None]:
    """Runs the block with the kernels of this ISA, and on at most so many threads."""
    before = _core.config()["isa"], fastrnn.get_num_threads()
    _core.set_isa(isa)
    fastrnn.set_num_threads(threads or before[1])
    try:
        yield
    finally:
        _core.set_isa(before[0])
        fastrnn.set_num_threads(before[1])


# The dtype in which the reference counts as exact when it judges a kernel of the given dtype.
EXACT = {"float32": np.float64, "float64": np.longdouble}


@dataclass(frozen=True)
class Case:
    """A layer and the shape of its data; `lengths` and `resets` say whether these are drawn.

    With `inputs` x has so many rows, and an index says which of them each step reads.
    """

    cell: str = "lstm"
    dtype: str = "float64"
    T: int = 5
    B: int = 3
    I: int = 4  # noqa: E741
    H: int = 5
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    proj_size: int = 0
    dropout: float = 0.0
    state: bool = True
    lengths: bool = False
    resets: bool = False
    inputs: int = 0

    @property
    def layer(self) -> dict[str, Any]:
        return {
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "bias": self.bias,
            "proj_size": self.proj_size,
        }

    @property
    def output(self) -> int:
        """The size of one direction's output."""
        return self.proj_size or self.H

    @property
    def state_shapes(self) -> list[tuple[int, int, int]]:
        count = self.num_layers * (1 + self.bidirectional)
        return [(count, self.B, n) for n in (self.output, self.H)[: reference.CELLS[self.cell].states]]

    def __str__(self) -> str:
        """Compact, for pytest: the shape, then what differs from the defaults."""
        shape = f"T{self.T},B{self.B},I{self.I},H{self.H},L{self.num_layers}"
        extras = [f"P{self.proj_size}"] * (self.proj_size > 0) + ["drop"] * (self.dropout > 0)
        extras += [name for name in ("bidirectional", "lengths", "resets") if getattr(self, name)]
        extras += [f"inputs{self.inputs}"] * (self.inputs > 0)
        extras += [f"no-{name}" for name in ("bias", "state") if not getattr(self, name)]
        return ",".join([self.cell, self.dtype, shape, *extras])


@dataclass(frozen=True)
class Data:
    """Values of a case, all in its dtype."""

    x: np.ndarray
    weights: Arrays
    state: tuple[np.ndarray, ...]
    dy: np.ndarray
    dstate: tuple[np.ndarray, ...]
    lengths: np.ndarray | None
    resets: np.ndarray | None
    index: np.ndarray | None = None
    dropout_seed: int = 0x9E3779B97F4A7C15


def draw(case: Case, seed: int = 0) -> Data:
    """Inputs and gradients N(0, 1), weights U(-1/sqrt(H), 1/sqrt(H)), lengths 0 to T, a reset at one step in four.

    A rectifier's gradient jumps at 0: data that brings a unit within rounding of it would compare nothing, and is drawn
    again.
    """
    rng = np.random.default_rng(seed)
    return _until_compared(case, lambda: _draw(case, rng))


def _until_compared(case: Case, make: Callable[[], Data]) -> Data:
    data = make()
    while case.cell == "rnn_relu" and near_zero(case, data, float(np.finfo(case.dtype).eps)):
        data = make()
    return data


def _draw(case: Case, rng: np.random.Generator) -> Data:
    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(case.dtype)

    shapes = reference.weight_shapes(case.cell, case.I, case.H, **case.layer)
    bound = case.H**-0.5
    lengths = rng.integers(0, case.T + 1, case.B)
    if case.B > 2:  # an empty and a full row are always among them
        lengths[rng.permutation(case.B)[:2]] = 0, case.T
    return Data(
        x=normal(case.inputs, case.I) if case.inputs else normal(case.T, case.B, case.I),
        weights={name: rng.uniform(-bound, bound, shape).astype(case.dtype) for name, shape in shapes.items()},
        state=tuple(normal(*shape) for shape in case.state_shapes),
        dy=normal(case.T, case.B, case.output * (1 + case.bidirectional)),
        dstate=tuple(normal(*shape) for shape in case.state_shapes),
        lengths=lengths if case.lengths else None,
        resets=rng.random((case.T, case.B)) < 0.25 if case.resets else None,
        index=rng.integers(0, case.inputs, (case.T, case.B)) if case.inputs else None,
    )


def near_zero(case: Case, data: Data, eps: float) -> bool:
    """Whether a sum that enters a rectifier is smaller than its rounding error may be in a dtype of this eps."""
    _, tape = run_forward(reference, case, data)
    sums = [np.ones(1)]
    for index, (_, w, steps) in enumerate(tape.scans):
        x = tape.inputs[index // tape.directions]
        biases = 0 if w.b_ih is None else w.b_ih + w.b_hh
        sums += [(x[s.t] @ w.w_ih.T + s.h_prev @ w.w_hh.T + biases)[s.active].ravel() for s in steps]
    magnitudes = np.abs(np.concatenate(sums))
    if not case.bias:  # what was dropped or never came is an exact zero, on which all agree
        magnitudes = magnitudes[magnitudes > 0]
    return bool(magnitudes.min(initial=np.inf) < 8 * eps * magnitudes.max(initial=0.0))


def as_state(arrays: Sequence[np.ndarray]) -> Any:
    """h, or the pair of h and c."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def named_state(state: Any, prefix: str, suffix: str) -> Arrays:
    arrays = state if isinstance(state, tuple) else (state,)
    return {f"{prefix}{name}{suffix}": array for name, array in zip("hc", arrays, strict=False)}


def run_forward(module: ModuleType, case: Case, data: Data, **kwargs: Any) -> tuple[Arrays, Any]:
    """-> y, h_n and c_n by name, and the tape. `module` is `reference` or `functional`; the latter reads the layer off
    its weights. The reference knows no index."""
    x = data.x
    if module is reference:
        kwargs |= case.layer
        x = x if data.index is None else x[data.index]
    elif data.index is not None:
        kwargs["index"] = data.index
    y, state, tape = module.forward(
        case.cell,
        x,
        data.weights,
        as_state(data.state) if case.state else None,
        lengths=data.lengths,
        resets=data.resets,
        dropout=case.dropout,
        dropout_seed=data.dropout_seed,
        **kwargs,
    )
    return {"y": y, **named_state(state, "", "_n")}, tape


def run_backward(module: ModuleType, data: Data, tape: Any, **kwargs: Any) -> Arrays:
    """-> dx, dh_0 and dc_0, and the gradients of the weights, by name."""
    dx, dstate, dweights = module.backward(tape, data.dy, as_state(data.dstate), **kwargs)
    if module is reference and data.index is not None:
        rows, dx = dx, np.zeros(data.x.shape, dx.dtype)
        np.add.at(dx, data.index, rows)
    return named_gradients(dx, dstate, dweights)


def named_gradients(dx: np.ndarray | None, dstate: Any, dweights: Arrays) -> Arrays:
    named = named_state(dstate, "d", "_0") | {f"d{name}": dw for name, dw in dweights.items()}
    return named if dx is None else {"dx": dx, **named}


def layer_of(case: Case, data: Data) -> Any:
    """The layer object of a case, with the data's weights."""
    options = {"num_layers": case.num_layers, "bias": case.bias, "bidirectional": case.bidirectional}
    options |= {"dropout": case.dropout, "dtype": case.dtype}
    if case.cell == "lstm":
        layer = fastrnn.LSTM(case.I, case.H, proj_size=case.proj_size, **options)
    elif case.cell == "gru":
        layer = fastrnn.GRU(case.I, case.H, **options)
    else:
        layer = fastrnn.RNN(case.I, case.H, nonlinearity=case.cell.removeprefix("rnn_"), **options)
    layer.load_state_dict(data.weights)
    return layer


def run(module: ModuleType, case: Case, data: Data, **kwargs: Any) -> Arrays:
    """Every value and gradient of a case, by name."""
    values, tape = run_forward(module, case, data, **kwargs)
    return values | run_backward(module, data, tape)


def run_on(isa: str, case: Case, data: Data) -> Arrays:
    """`run` with the kernels of an ISA."""
    with kernels(isa):
        return run(functional, case, data)


def exact(case: Case, data: Data) -> Arrays:
    """The reference's results, in a dtype wider than the case's."""
    return run(reference, case, data, dtype=EXACT[case.dtype])


@cache
def drawn(case: Case, seed: int = 0) -> tuple[Data, Arrays, dict[str, float]]:
    """Data of a case, its exact results and the tolerances; kept, because every ISA is held against the same ones."""
    data = draw(case, seed)
    expected = exact(case, data)
    return data, expected, tolerances(case, data, expected)


def pieces_alone(module: ModuleType, case: Case, data: Data) -> Arrays:
    """What `run` gives, without lengths, resets or a batch: each row is cut at its end and before its resets, and each
    piece run alone; the gradients of the weights are summed."""
    rows = [_row_alone(module, case, data, b) for b in range(case.B)]
    return {
        name: sum(row[name] for row in rows)
        if is_of_weight(name)
        else np.concatenate([row[name] for row in rows], axis=1)
        for name in rows[0]
    }


def _row_alone(module: ModuleType, case: Case, data: Data, b: int) -> Arrays:
    end = case.T if data.lengths is None else int(data.lengths[b])
    cuts = [] if data.resets is None else [int(t) for t in np.flatnonzero(data.resets[:end, b])]
    single = replace(case, B=1, state=True, lengths=False, resets=False)
    given = [s[:, b : b + 1] if case.state else np.zeros_like(s[:, b : b + 1]) for s in data.state]
    zeros = tuple(np.zeros_like(s) for s in given)
    # From the last piece to the first, because the gradient of a state flows that way; a reset stops it.
    parts: list[Arrays] = []
    dstate = tuple(s[:, b : b + 1] for s in data.dstate)
    for first, last in reversed(list(zip([0, *cuts], [*cuts, end], strict=True))):
        piece = replace(
            data,
            x=data.x[first:last, b : b + 1],
            dy=data.dy[first:last, b : b + 1],
            state=zeros if first in cuts else tuple(given),
            dstate=dstate,
            lengths=None,
            resets=None,
        )
        parts.insert(0, run(module, single, piece))
        dstate = zeros
    rest = case.T - end
    results = {}
    for name in parts[0]:
        if name in ("y", "dx"):
            padding = np.zeros((rest, 1, parts[0][name].shape[2]), parts[0][name].dtype)
            results[name] = np.concatenate([*(part[name] for part in parts), padding])
        elif name.endswith("_n"):
            results[name] = parts[-1][name]
        elif name.endswith("_0"):
            results[name] = parts[0][name]
        else:
            results[name] = sum(part[name] for part in parts)
    return results


# ---------------------------------------------------------------------------------------------------------------------
# Tolerances
# ---------------------------------------------------------------------------------------------------------------------


def largest(a: np.ndarray) -> float:
    return float(np.max(np.abs(a), initial=0.0))


_MANY = 64  # numbers, of which the largest error tells something


def tolerances(case: Case, data: Data, expected: Arrays) -> dict[str, float]:
    """The error allowed to each result: 2 x the largest error of a plain loop in the same dtype + 8 eps max|expected|.

    The plain loop is the reference itself, run in the dtype of the case. A small layer has so few numbers in an array
    that their largest error means nothing (the only one may happen to be exact): there it is taken over several draws,
    with as many activations in all as a step of a layer that is not small has, and over all values, all gradients of
    data or all gradients of weights.
    """
    few = case.output < 16 or case.B * case.output < _MANY
    activations = case.output * (case.T * case.B if data.lengths is None else int(data.lengths.sum()))
    errors = dict.fromkeys(expected, 0.0)
    for other in range(max(4, -(-_MANY // activations)) if few and activations else 1):
        if other:
            data = _drawn_anew(case, data, np.random.default_rng(other))
        precise = exact(case, data) if other else expected
        plain = run(reference, case, data, dtype=case.dtype)
        errors = {name: max(error, largest(plain[name] - precise[name])) for name, error in errors.items()}
    if few:
        errors = {name: max(errors[other] for other in errors if _family(other) == _family(name)) for name in errors}
    eps = float(np.finfo(case.dtype).eps)
    return {name: 2 * error + 8 * eps * largest(expected[name]) for name, error in errors.items()}


def _drawn_anew(case: Case, data: Data, rng: np.random.Generator) -> Data:
    """All but the weights, and what says which steps there are."""

    def make() -> Data:
        fresh = _draw(case, rng)
        return replace(data, x=fresh.x, state=fresh.state, dy=fresh.dy, dstate=fresh.dstate)

    return _until_compared(case, make)


def _family(name: str) -> str:
    return "weights" if is_of_weight(name) else "data" if name.startswith("d") else "values"


def is_of_weight(name: str) -> bool:
    return "weight" in name or "bias" in name


def assert_within(got: Arrays, expected: Arrays, allowed: Mapping[str, float]) -> None:
    """Every result has its shape and lies within its tolerance; what is NaN in one must be NaN in the other."""
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert got[name].shape == want.shape, f"{name}: shape {got[name].shape}, expected {want.shape}"
        assert np.array_equal(np.isnan(got[name]), np.isnan(want)), f"{name}: NaN in other places than expected"
        error = np.zeros(want.shape, want.dtype)
        differ = (got[name] != want) & ~np.isnan(want)  # infinities are equal or not, without a difference
        np.abs(np.subtract(got[name], want, where=differ, out=error), out=error)
        if largest(error) > allowed[name]:
            at = np.unravel_index(np.argmax(error), error.shape)
            raise AssertionError(
                f"{name}{[int(i) for i in at]}: {got[name][at]!r}, expected {want[at]!r}: "
                f"off by {error[at]:.3g}, allowed {allowed[name]:.3g}"
            )


def assert_same_bits(got: Arrays, expected: Arrays) -> None:
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert got[name].dtype == want.dtype
        assert got[name].tobytes() == want.tobytes(), f"{name}: bits differ by up to {largest(got[name] - want)}"


def doubled(allowed: Mapping[str, float]) -> dict[str, float]:
    """For two results of a kernel, each of which may err by so much."""
    return {name: 2 * value for name, value in allowed.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Finite differences
# ---------------------------------------------------------------------------------------------------------------------


def assert_gradients(module: ModuleType, case: Case, data: Data, **kwargs: Any) -> None:
    """Each gradient against central differences of `sum(y * dy) + sum(state * dstate)` along a random direction.

    The difference over 2h errs by four times as much as the one over h, so that their distance bounds the latter's
    truncation; each of y's and the states' numbers is trusted to 8 eps of the largest, as in `tolerances`.
    """
    values, tape = run_forward(module, case, data, **kwargs)
    gradients = run_backward(module, data, tape)
    factors = {"y": data.dy, **named_state(as_state(data.dstate), "", "_n")}
    if data.lengths is not None:  # y is zero past a row's end, and dy is not read there
        ended = np.arange(case.T)[:, None] >= data.lengths
        factors["y"] = np.where(ended[:, :, None], 0, data.dy)
    dtype = values["y"].dtype
    eps = np.finfo(dtype).eps
    step = eps ** (1 / 3)
    rounding = 8 * eps * sum(largest(values[name]) * np.sum(np.abs(factor)) for name, factor in factors.items())

    def loss(moved: Data) -> Any:
        values, _ = run_forward(module, case, moved, **kwargs)
        return sum(np.sum(values[name] * factor) for name, factor in factors.items())

    arguments = {"x": data.x, **data.weights}
    if case.state:
        arguments |= named_state(as_state(data.state), "", "_0")
    rng = np.random.default_rng(1)
    for name, argument in arguments.items():
        direction = rng.choice([-1.0, 1.0], argument.shape).astype(dtype)

        def slope(h: Any, name: str = name, argument: np.ndarray = argument, v: np.ndarray = direction) -> Any:
            ahead, behind = (loss(_with(data, name, argument + k * v)) for k in (h, -h))
            return (ahead - behind) / (2 * h)

        measured, coarse = slope(step), slope(2 * step)
        derived = np.sum(gradients[f"d{name}"] * direction)
        allowed = abs(coarse - measured) + rounding / step + 8 * eps * np.sum(np.abs(gradients[f"d{name}"]))
        assert abs(measured - derived) <= allowed, f"d{name}: {derived}, differences give {measured} +- {allowed:.3g}"
        assert allowed <= 1e-3 * max(1, np.sqrt(argument.size)), f"d{name}: the differences say nothing ({allowed:.3g})"


def _with(data: Data, name: str, value: np.ndarray) -> Data:
    if name == "x":
        return replace(data, x=value)
    if name in ("h_0", "c_0"):
        index = "hc".index(name[0])
        return replace(data, state=(*data.state[:index], value, *data.state[index + 1 :]))
    return replace(data, weights=data.weights | {name: value})


# ---------------------------------------------------------------------------------------------------------------------
# Choosing cases
# ---------------------------------------------------------------------------------------------------------------------


def covering(
    options: Mapping[str, Sequence[Any]], allowed: Callable[[dict[str, Any]], bool] = lambda row: True, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows such that any two values of two options meet in at least one row, unless `allowed` refuses them together.

    Greedy: each row starts from a pair that has not met yet and is completed, out of some random completions, by the
    one in which most other such pairs meet.
    """
    rng = np.random.default_rng(seed)
    names = list(options)

    def pairs(row: Mapping[str, Any]) -> set[tuple[str, Any, str, Any]]:
        return {(a, row[a], b, row[b]) for a, b in itertools.combinations(names, 2)}

    def completions(fixed: Mapping[str, Any], count: int) -> Iterable[dict[str, Any]]:
        for _ in range(count):
            row = {name: values[rng.integers(len(values))] for name, values in options.items()} | fixed
            if allowed(row):
                yield row

    waiting = [(a, u, b, v) for a, b in itertools.combinations(names, 2) for u in options[a] for v in options[b]]
    rows, met = [], set()
    for a, u, b, v in waiting:
        if (a, u, b, v) not in met:
            candidates = list(completions({a: u, b: v}, 50))
            if candidates:
                rows.append(max(candidates, key=lambda row: len(pairs(row) - met)))
                met |= pairs(rows[-1])
    return rows
