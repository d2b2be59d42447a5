"""Seeing inside a recurrent language model: what its units hold, what its gates do, which unit follows what.

Everything here reads a model; its weights, gradients and generators stay as they are. Layers and units count from 0, as
in the names of the weights. ``gradients`` has what is about gradients, ``figures`` draws what these functions return,
and ``fastrnn lm inspect`` does all at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import functional, reference
from ..checks import check_choice, check_size
from .predicates import PREDICATES, Predicate

if TYPE_CHECKING:
    from .language_model import LanguageModel
    from .vocabulary import Vocabulary

#: What the layers call the cells of the models.
KERNELS = {"lstm": "lstm", "gru": "gru", "rnn": "rnn_tanh", "rnn_relu": "rnn_relu"}
_SIGMOID, _TANH, _RELU = (0.1, 0.9), (-0.9, 0.9), (0.0, 0.0)  # low is at most the first, high above the second
#: The gates that the reference's cells keep of a step, in their order, and their ends; an RNN has none, and keeps h.
_KEPT = {
    "lstm": {"i": _SIGMOID, "f": _SIGMOID, "g": _TANH, "o": _SIGMOID},
    "gru": {"r": _SIGMOID, "z": _SIGMOID, "n": _TANH},
    "rnn": {"h": _TANH},
    "rnn_relu": {"h": _RELU},
}
_TRACED = {"lstm": ("h", "c", *_KEPT["lstm"]), "gru": ("h", *_KEPT["gru"]), "rnn": ("h",), "rnn_relu": ("h",)}
_CHUNK = 256  # tokens a pass: bounds the memory, changes no value

# -- activations -------------------------------------------------------------------------------------------------------


def activations(model: LanguageModel, text: str, layer: int = -1, of: str = "h") -> np.ndarray:
    """What the units of a layer hold after each token of a text that is read from a zero state.

    Args:
        model: a ``LanguageModel`` with a vocabulary.
        text: of at least one token.
        layer: from 0; negative ones count from the last.
        of: "h", of an LSTM also "c" or a gate "i", "f", "g", "o", of a GRU a gate "r", "z", "n".

    Returns:
        (T, H) of the model's dtype; row t has read tokens 0 ... t. With a projection h has proj_size columns.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> import fastrnn
        >>> from fastrnn.models import inspection
        >>> model = fastrnn.LanguageModel(embedding=8, hidden=16, layers=2, seed=1)
        >>> vocabulary = model.build("hello world. ")
        >>> inspection.activations(model, "hello", layer=0, of="c").shape
        (5, 16)
    """
    ids, layer = _checked("activations", model, text, layer, of)
    return _activations(model, ids, layer, of)


def _activations(model: LanguageModel, ids: np.ndarray, layer: int, of: str) -> np.ndarray:
    return np.concatenate([layers[layer][of] for layers in _traces(model, ids)])


@dataclass(frozen=True)
class Saturation:
    """The share of a text over which each unit of a gate was at its lower and at its upper end; (H,) each."""

    layer: int
    name: str
    thresholds: tuple[float, float]  # low is at most the first, high above the second
    low: np.ndarray
    high: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        ends = {"low": rounded(self.low), "high": rounded(self.high), "thresholds": list(self.thresholds)}
        return asdict(self) | ends


def gate_saturation(model: LanguageModel, text: str) -> list[Saturation]:
    """How often each gate is closed (at most 0.1) and open (above 0.9), for each layer, gate and unit.

    LSTM: i, f, o; GRU: r, z. The candidates g and n, and h of an RNN with tanh, lie between -1 and 1: there the ends
    are at most -0.9 and above 0.9. A saturated unit passes next to no gradient to what it was computed from; a forget
    gate that is open keeps its cell, and its gradient, over many steps. A rectifier is off at 0, where it passes no
    gradient, and else on.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Karpathy, Johnson, Fei-Fei, "Visualizing and understanding recurrent networks", 2015.

    Example:
        >>> import fastrnn
        >>> from fastrnn.models import inspection
        >>> model = fastrnn.LanguageModel(embedding=8, hidden=16, seed=1)
        >>> vocabulary = model.build("hello world. ")
        >>> [gate.name for gate in inspection.gate_saturation(model, "hello world. ")]
        ['i', 'f', 'g', 'o']
    """
    ids = encode("gate_saturation", model, text)
    kept = _KEPT[model.cell]
    counts = np.zeros((model.layers, len(kept), 2, model.hidden))
    for layers in _traces(model, ids):
        for layer, values in enumerate(layers):
            for place, (name, (low, high)) in enumerate(kept.items()):
                counts[layer, place] += (values[name] <= low).sum(axis=0), (values[name] > high).sum(axis=0)
    return [
        Saturation(layer, name, ends, *(counts[layer, place] / len(ids)))
        for layer in range(model.layers)
        for place, (name, ends) in enumerate(kept.items())
    ]


@dataclass(frozen=True)
class HeatMap:
    """A text and what one unit held after each of its tokens."""

    tokens: list[str]  # the text in pieces
    values: np.ndarray  # (T,)
    layer: int
    unit: int
    of: str

    @property
    def limit(self) -> float:
        """The largest absolute value, at the ends of the colour scale; 1 where all are 0."""
        return float(np.abs(self.values).max(initial=0.0)) or 1.0

    @property
    def label(self) -> str:
        return f"{self.of} of unit {self.unit} in layer {self.layer}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"values": rounded(self.values)}


def unit_heat_map(model: LanguageModel, text: str, unit: int, layer: int = -1, of: str = "h") -> HeatMap:
    """The tokens of a text, each with what a unit holds once it is read; ``layer`` and ``of`` as for ``activations``.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Karpathy, Johnson, Fei-Fei, "Visualizing and understanding recurrent networks", 2015.

    Example:
        >>> import fastrnn
        >>> from fastrnn.models import inspection
        >>> model = fastrnn.LanguageModel(embedding=8, hidden=16, seed=1)
        >>> vocabulary = model.build("hello world. ")
        >>> inspection.unit_heat_map(model, "hello", unit=3).tokens
        ['h', 'e', 'l', 'l', 'o']
    """
    where = "unit_heat_map"
    ids, layer = _checked(where, model, text, layer, of)
    unit = check_size(where, "unit", unit, 0, _size(model, of) - 1)
    values = _activations(model, ids, layer, of)[:, unit].copy()
    return HeatMap(vocabulary_of(where, model).pieces(text), values, layer, unit, of)


# -- units that follow a predicate -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    layer: int
    unit: int
    correlation: float


def best_units(
    model: LanguageModel,
    text: str,
    predicate: str | Predicate,
    layer: int | None = None,
    *,
    of: str = "h",
    top: int = 5,
) -> list[Unit]:
    """The units whose activation after each token best follows a predicate of the tokens.

    Judged by Pearson's correlation, which for a predicate of truth values is the point-biserial one. Units come in the
    order of its absolute value; below 0, a unit is low where the predicate holds.

    Args:
        model: a ``LanguageModel`` with a vocabulary.
        text: long enough that the predicate has more than one value in it.
        predicate: a name of ``PREDICATES``, or a function of the list of tokens that gives a truth value or a finite
            number for each.
        layer: only this one; None: all.
        of: as for ``activations``.
        top: at most that many units.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Karpathy, Johnson, Fei-Fei, "Visualizing and understanding recurrent networks", 2015, found such units by
    eye.

    Example:
        >>> import fastrnn
        >>> from fastrnn.models import inspection
        >>> model = fastrnn.LanguageModel(embedding=8, hidden=16, seed=1)
        >>> vocabulary = model.build("hello world. ")
        >>> vowel = lambda tokens: [token in "aeiou" for token in tokens]
        >>> units = inspection.best_units(model, "hello world. " * 5, vowel, top=2)
        >>> len(units), abs(units[0].correlation) >= abs(units[1].correlation)
        (2, True)
    """
    where = "best_units"
    ids, only = _checked(where, model, text, -1 if layer is None else layer, of)
    chosen = range(model.layers) if layer is None else [only]
    top = check_size(where, "top", top)
    wanted = _evaluated(where, predicate, vocabulary_of(where, model).pieces(text))
    wanted = wanted - wanted.mean()
    size = _size(model, of)
    first = np.zeros((len(chosen), size))
    sums, squares, products = np.zeros_like(first), np.zeros_like(first), np.zeros_like(first)
    start = 0
    for layers in _traces(model, ids):
        values = np.stack([layers[i][of] for i in chosen]).astype(np.float64)
        if start == 0:
            first = values[:, 0].copy()
        values -= first[:, None]  # a unit that never moves then has a variance of exactly 0
        sums += values.sum(axis=1)
        squares += (values * values).sum(axis=1)
        products += wanted[start : start + values.shape[1]] @ values
        start += values.shape[1]
    variance = squares - sums * sums / len(ids)
    moving = variance > len(ids) * np.finfo(float).eps * squares
    scale = np.sqrt(np.where(moving, variance, 1.0) * (wanted @ wanted))
    correlation = np.where(moving, products / scale, 0.0)
    order = np.argsort(-np.abs(correlation), axis=None, kind="stable")[:top]
    return [Unit(chosen[i], j, float(correlation[i, j])) for i, j in (divmod(int(place), size) for place in order)]


def _evaluated(where: str, predicate: Any, tokens: list[str]) -> np.ndarray:
    """Float64 (T,) of more than one value."""
    if isinstance(predicate, str):
        label = f"predicate {check_choice(where, 'predicate', predicate, PREDICATES)!r}"
        predicate = PREDICATES[predicate]
    elif callable(predicate):
        label = "predicate"
    else:
        raise TypeError(f"{where}: predicate must be a name or a function of the tokens, got {predicate!r}")
    given = np.asarray(predicate(tokens))
    if given.shape != (len(tokens),) or given.dtype.kind not in "biuf" or not np.isfinite(given).all():
        raise ValueError(
            f"{where}: {label} must give a truth value or finite number for each of {len(tokens)} tokens, "
            f"got {given.dtype} {given.shape}"
        )
    values = given.astype(np.float64)
    if (values == values[0]).all():
        raise ValueError(f"{where}: {label} is {given[0]} at all {len(tokens)} tokens: nothing follows or leaves it")
    return values


# -- shared ------------------------------------------------------------------------------------------------------------


def _traces(model: LanguageModel, ids: np.ndarray) -> Iterator[list[dict[str, np.ndarray]]]:
    """For one chunk of the text after the other what each layer computes: (t, units) by the names of ``_TRACED``.

    The kernels give h; all gates follow from it at once, by the reference's equations.
    """
    cell = reference.CELLS[KERNELS[model.cell]]
    weights = [_weights_of(model, layer) for layer in range(model.layers)]
    zeros = [np.zeros((1, 1, _size(model, of)), model.dtype) for of in ("h", "c")[: cell.states]]
    states = [as_state(zeros)] * model.layers
    for start in range(0, len(ids), _CHUNK):
        x = model.embed.forward(ids[start : start + _CHUNK, None])
        layers = []
        for layer, own in enumerate(weights):
            before = [part[0] for part in as_parts(states[layer])]
            y, states[layer], _ = functional.forward(KERNELS[model.cell], x, own, states[layer], training=False)
            h_prev = np.concatenate([before[0], y[:-1, 0]])
            x_gates = x[:, 0] @ own["weight_ih_l0"].T + own["bias_ih_l0"]
            h_gates = h_prev @ own["weight_hh_l0"].T + own["bias_hh_l0"]
            # Of the cell's equations only the gates are used, which do not see c: that before the chunk will do.
            _, kept = cell.forward(x_gates, h_gates, (h_prev, *before[1:]))
            values = dict(zip(_KEPT[model.cell], kept, strict=False)) | {"h": y[:, 0]}
            if model.cell == "lstm":
                values["c"] = np.empty_like(values["g"])
                c = before[1][0]
                for t, (i, f, g) in enumerate(zip(values["i"], values["f"], values["g"], strict=True)):
                    values["c"][t] = c = f * c + i * g
            layers.append(values)
            x = y + x if model.skip and x.shape == y.shape else y
        yield layers


def _size(model: LanguageModel, of: str) -> int:
    """How many units h, c or a gate has: a projection makes h smaller."""
    return model.outputs if of == "h" else model.hidden


def _weights_of(model: LanguageModel, layer: int) -> dict[str, np.ndarray]:
    """The weights of one layer of the stack, as a stack of its own names them."""
    suffix = f"_l{layer}"
    return {
        name.removesuffix(suffix) + "_l0": array
        for name, array in model.recurrent.parameters.items()
        if name.endswith(suffix)
    }


def as_parts(state: Any) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def as_state(parts: list[np.ndarray]) -> Any:
    return parts[0] if len(parts) == 1 else tuple(parts)


def vocabulary_of(where: str, model: Any) -> Vocabulary:
    if getattr(model, "recurrent", None) is None:
        raise ValueError(f"{where}: model must have a recurrent layer; {type(model).__name__} has no recurrent layer")
    if model.recurrent.device != "cpu":
        raise ValueError(f"{where}: model must be on the CPU, got one on {model.recurrent.device!r}")
    if model.vocabulary is None:
        raise RuntimeError(f"{where}: the model has no vocabulary yet: call fit (or build) first")
    return model.vocabulary


def encode(where: str, model: Any, text: Any, least: int = 1) -> np.ndarray:
    vocabulary = vocabulary_of(where, model)
    if not isinstance(text, str):
        raise TypeError(f"{where}: text must be a str, got {type(text).__name__}")
    ids = vocabulary.encode(text)
    if len(ids) < least:
        raise ValueError(f"{where}: text must have at least {least} {vocabulary.unit}, got {len(ids)}")
    return ids


def _checked(where: str, model: Any, text: Any, layer: Any, of: Any) -> tuple[np.ndarray, int]:
    """The ids of the text, and the layer from 0."""
    ids = encode(where, model, text)
    layer = check_size(where, "layer", layer, -model.layers, model.layers - 1) % model.layers
    check_choice(where, "of", of, _TRACED[model.cell])
    return ids, layer


def rounded(array: np.ndarray) -> Any:
    """For JSON: lists of numbers of five digits, None for what is not finite."""
    if array.ndim > 0:
        return [rounded(each) for each in array]
    if array.dtype.kind == "i":
        return int(array)
    return float(f"{array:.5g}") if np.isfinite(array) else None
