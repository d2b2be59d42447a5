"""The specification: every cell, option and gradient of fastrnn in plain NumPy.

This file is written to be read, not to be fast. Each cell states its equations once, as a step and as the gradient of
that step; one loop over time, shared by all cells, adds ``lengths``, ``resets``, directions and the projection; and
`forward` and `backward` stack layers with dropout between them. The kernels are tested against it.

Shapes: T steps, B rows of the batch, I input_size, H hidden_size, P proj_size (H where there is no projection),
L num_layers, D directions (1 or 2), G gates of the cell. Sequences are time-major ``(T, B, .)``, states ``(L*D, B, .)``
with the layer outside and the direction inside, weights as in PyTorch: ``weight_ih_l0 (G*H, I)``, ``weight_hh_l0 (G*H,
P)``, ``bias_ih_l0 (G*H,)``, ``bias_hh_l0 (G*H,)``, ``weight_hr_l0 (P, H)``, with ``_reverse`` appended for the reverse
direction. The rows of a weight are grouped by gate: **i f g o** for the LSTM, **r z n** for the GRU.

All arithmetic happens in one dtype that the caller names. float64 gives the reference values; float32 gives the error
that any straightforward float32 loop makes, by which the kernels are judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["CELLS", "Tape", "backward", "dropout_mask", "forward", "philox4x32", "weight_shapes"]

Array = NDArray[Any]
State = Array | tuple[Array, Array]

# ---------------------------------------------------------------------------------------------------------------------
# Cells. `forward` maps the two pre-activations and the previous state to the new state; `backward` maps the gradient of
# the new state to the gradients of the same three things. What is nonlinear in a cell stands here, and nothing else:
# the products with W_ih and W_hh belong to the time loop.
#
#   x_gates (B, G*H) = W_ih x_t + b_ih        h_gates (B, G*H) = W_hh h_{t-1} + b_hh        state = (h,) or (h, c)
# ---------------------------------------------------------------------------------------------------------------------


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), without overflow: the exponent is never positive, so that +-inf give exactly 1 and 0."""
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1 / (1 + e), e / (1 + e))


class LSTM:
    """Long short-term memory with a forget gate (Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000).

    i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);  g = tanh(a_g)   with a = x_gates + h_gates
    c = f * c_prev + i * g
    h = o * tanh(c)
    """

    gates = 4
    states = 2

    @staticmethod
    def forward(x_gates: Array, h_gates: Array, prev: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        c_prev = prev[1]
        a_i, a_f, a_g, a_o = np.split(x_gates + h_gates, 4, axis=1)
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
        tanh_c = np.tanh(c := f * c_prev + i * g)
        return (o * tanh_c, c), (i, f, g, o, c_prev, tanh_c)

    @staticmethod
    def backward(saved: tuple[Array, ...], dnew: tuple[Array, ...]) -> tuple[Array, Array, tuple[Array | None, ...]]:
        i, f, g, o, c_prev, tanh_c = saved
        dh, dc = dnew
        do = dh * tanh_c  # h = o * tanh(c)
        dc = dc + dh * o * (1 - tanh_c**2)  # dc also arrives from step t+1;  tanh' = 1 - tanh^2
        di = dc * g  # c = f * c_prev + i * g
        dg = dc * i
        df = dc * c_prev
        dc_prev = dc * f
        da_i = di * i * (1 - i)  # sigmoid' = sigmoid * (1 - sigmoid)
        da_f = df * f * (1 - f)
        da_g = dg * (1 - g**2)
        da_o = do * o * (1 - o)
        da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
        return da, da, (None, dc_prev)  # a = x_gates + h_gates: both receive da;  h_prev acts through h_gates only


class GRU:
    """Gated recurrent unit (Cho et al. 2014) with the reset gate after the recurrent product, as in PyTorch and cuDNN.

    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = tanh(x_n + r * h_n)                  with h_n = W_hn h_prev + b_hn, the last third of h_gates
    h = (1 - z) * n + z * h_prev
    """

    gates = 3
    states = 1

    @staticmethod
    def forward(x_gates: Array, h_gates: Array, prev: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        (h_prev,) = prev
        x_r, x_z, x_n = np.split(x_gates, 3, axis=1)
        h_r, h_z, h_n = np.split(h_gates, 3, axis=1)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        n = np.tanh(x_n + r * h_n)
        return ((1 - z) * n + z * h_prev,), (r, z, n, h_n, h_prev)

    @staticmethod
    def backward(saved: tuple[Array, ...], dnew: tuple[Array, ...]) -> tuple[Array, Array, tuple[Array | None, ...]]:
        r, z, n, h_n, h_prev = saved
        (dh,) = dnew
        dz = dh * (h_prev - n)  # h = (1 - z) * n + z * h_prev
        dn = dh * (1 - z)
        dh_prev = dh * z
        da_n = dn * (1 - n**2)  # n = tanh(a_n), a_n = x_n + r * h_n
        dr = da_n * h_n
        dh_n = da_n * r
        da_r = dr * r * (1 - r)
        da_z = dz * z * (1 - z)
        return np.concatenate([da_r, da_z, da_n], axis=1), np.concatenate([da_r, da_z, dh_n], axis=1), (dh_prev,)


class RNNTanh:
    """Simple recurrent network (Elman 1990): h = tanh(x_gates + h_gates)."""

    gates = 1
    states = 1

    @staticmethod
    def forward(x_gates: Array, h_gates: Array, prev: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        h = np.tanh(x_gates + h_gates)
        return (h,), (h,)

    @staticmethod
    def backward(saved: tuple[Array, ...], dnew: tuple[Array, ...]) -> tuple[Array, Array, tuple[Array | None, ...]]:
        (h,), (dh,) = saved, dnew
        da = dh * (1 - h**2)  # tanh' = 1 - tanh^2
        return da, da, (None,)


class RNNRelu:
    """Simple recurrent network with a rectifier: h = max(x_gates + h_gates, 0), NaN staying NaN."""

    gates = 1
    states = 1

    @staticmethod
    def forward(x_gates: Array, h_gates: Array, prev: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        h = np.maximum(x_gates + h_gates, 0)
        return (h,), (h,)

    @staticmethod
    def backward(saved: tuple[Array, ...], dnew: tuple[Array, ...]) -> tuple[Array, Array, tuple[Array | None, ...]]:
        (h,), (dh,) = saved, dnew
        da = np.where(h <= 0, 0, dh)  # relu' = 1 where h > 0, and 0 elsewhere
        return da, da, (None,)


CELLS: dict[str, Any] = {"lstm": LSTM, "gru": GRU, "rnn_tanh": RNNTanh, "rnn_relu": RNNRelu}

# ---------------------------------------------------------------------------------------------------------------------
# The time loop: one direction of one layer.
#
# Two masks say what a row does at step t:
#   active (T, B)   t lies before the row's end; otherwise the row stands still: its state passes, y and dx are 0
#   carried (T, B)  active, and no reset here: the step sees the previous state; otherwise it sees zeros
# `np.where` rather than a product applies them, because what is masked may be NaN and must leave no trace.
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """The weights of one direction of one layer; biases and projection are None where the layer has none."""

    w_ih: Array  # (G*H, I)
    w_hh: Array  # (G*H, P)
    b_ih: Array | None = None  # (G*H,)
    b_hh: Array | None = None  # (G*H,)
    w_hr: Array | None = None  # (P, H)


@dataclass(frozen=True)
class Step:
    """What a step keeps for its gradient."""

    t: int
    active: Array  # (B,)
    carried: Array  # (B,)
    h_prev: Array  # (B, P), after reset
    cell_output: Array  # (B, H), before projection
    saved: tuple[Array, ...]  # the cell's own


def select(mask: Array, chosen: Array, otherwise: ArrayLike) -> Array:
    """Rows of `chosen` (B, N) where mask (B,) is true, those of `otherwise` elsewhere."""
    return np.where(mask[:, None], chosen, otherwise)


def scan_forward(
    cell: Any, w: Weights, x: Array, state: tuple[Array, ...], active: Array, carried: Array, reverse: bool
) -> tuple[Array, tuple[Array, ...], list[Step]]:
    """x (T, B, I) and the initial state -> y (T, B, P), the final state, and the steps in the order they were taken.

    In reverse, a row's steps run from its last one down to 0: the padding comes first, where the row stands still.
    """
    T, B, _ = x.shape
    y = np.zeros((T, B, w.w_hh.shape[1]), x.dtype)
    steps = []
    for t in reversed(range(T)) if reverse else range(T):
        prev = tuple(select(carried[t], s, 0) for s in state)
        x_gates = x[t] @ w.w_ih.T
        h_gates = prev[0] @ w.w_hh.T
        if w.b_ih is not None and w.b_hh is not None:
            x_gates = x_gates + w.b_ih
            h_gates = h_gates + w.b_hh
        (h, *rest), saved = cell.forward(x_gates, h_gates, prev)
        steps.append(Step(t, active[t], carried[t], prev[0], h, saved))
        if w.w_hr is not None:
            h = h @ w.w_hr.T  # Sak, Senior & Beaufays 2014: the state that recurs and is output is W_hr h
        y[t] = select(active[t], h, 0)
        state = tuple(select(active[t], new, old) for new, old in zip((h, *rest), state, strict=True))
    return y, state, steps


def scan_backward(
    cell: Any, w: Weights, x: Array, dy: Array, dstate: tuple[Array, ...], steps: Sequence[Step]
) -> tuple[Array, tuple[Array, ...], Weights]:
    """The transpose of `scan_forward`, step by step from its last: dx, the initial state's gradient, the weights'."""
    dx, dw_ih, dw_hh = np.zeros_like(x), np.zeros_like(w.w_ih), np.zeros_like(w.w_hh)
    db_ih, db_hh, dw_hr = (None if a is None else np.zeros_like(a) for a in (w.b_ih, w.b_hh, w.w_hr))
    for step in reversed(steps):
        t = step.t
        dh = dstate[0] + dy[t]  # h_t is the output at t and the state of the next step
        dh, *rest = (select(step.active, d, 0) for d in (dh, *dstate[1:]))
        if w.w_hr is not None:
            dw_hr += dh.T @ step.cell_output  # h = W_hr m, m the cell's output
            dh = dh @ w.w_hr
        dx_gates, dh_gates, direct = cell.backward(step.saved, (dh, *rest))
        dx[t] = select(step.active, dx_gates @ w.w_ih, 0)  # x_gates = W_ih x + b_ih
        dw_ih += dx_gates.T @ x[t]
        dw_hh += dh_gates.T @ step.h_prev  # h_gates = W_hh h_prev + b_hh
        if db_ih is not None and db_hh is not None:
            db_ih += dx_gates.sum(axis=0)
            db_hh += dh_gates.sum(axis=0)
        dh_prev = dh_gates @ w.w_hh
        if direct[0] is not None:
            dh_prev = dh_prev + direct[0]
        # A row that stood still passes its gradient on; one that was reset has cut it off.
        passed = (select(step.carried, d, 0) for d in (dh_prev, *direct[1:]))
        dstate = tuple(select(step.active, d, old) for d, old in zip(passed, dstate, strict=True))
    return dx, dstate, Weights(dw_ih, dw_hh, db_ih, db_hh, dw_hr)


# ---------------------------------------------------------------------------------------------------------------------
# Dropout between layers
# ---------------------------------------------------------------------------------------------------------------------


def philox4x32(counter: ArrayLike, key: tuple[int, int], rounds: int = 10) -> NDArray[np.uint32]:
    """Philox4x32, a counter-based generator: the same counter and key give the same four words, on any machine.

    Each of the rounds multiplies words 0 and 2 of the counter by constants, and mixes the high halves of the two
    products with words 1 and 3 and with the key, which grows by the golden ratio and by sqrt(3) - 1 (Salmon et al.,
    "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    Args:
        counter: (..., 4) integers below 2**32.
        key: two integers below 2**32.
        rounds: 10 in the published generator.

    Returns:
        (..., 4) uint32.

    Example:
        >>> [f"{word:08x}" for word in philox4x32([0, 0, 0, 0], (0, 0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, np.uint64), -1, 0)
    for r in range(rounds):
        k0 = np.uint64((key[0] + r * 0x9E3779B9) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + r * 0xBB67AE85) & 0xFFFFFFFF)
        p0 = c0 * np.uint64(0xD2511F53)  # 32 x 32 bits: fits in 64
        p1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & low, (p0 >> shift) ^ c3 ^ k1, p0 & low
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def dropout_mask(
    seed: int, p: float, T: int, B: int, units: int, layer: int, direction: int, directions: int
) -> NDArray[np.float64]:
    """What the output of one direction of one layer is multiplied by: 0, or 1/(1-p) where the unit is kept.

    Every (layer, direction, t, b, unit) has its own word of the generator, so that nothing need be stored and the order
    of the work does not matter: word ``unit % 4`` of Philox with the seed's halves as key and the counter
    ``(unit // 4, b, t, layer * directions + direction)``. The unit is dropped where the word is less than p * 2**32.

    Args:
        seed: 0 to 2**64 - 1.
        p: the probability of dropping, 0 to 1.
        T, B, units: the mask's shape; units is P.
        layer, direction: whose output is masked; direction is 1 for the reverse one.
        directions: 2 in a bidirectional layer, otherwise 1.

    Returns:
        (T, B, units) float64.

    Raises:
        ValueError: seed or p out of range.

    Example:
        >>> dropout_mask(7, 0.5, T=1, B=2, units=4, layer=0, direction=0, directions=1).shape
        (1, 2, 4)
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout_mask: p must be a probability between 0 and 1, got {p}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"dropout_mask: seed must be an integer from 0 to 2**64 - 1, got {seed}")
    counter = np.zeros((T, B, -(-units // 4), 4), np.uint64)
    counter[..., 0] = np.arange(counter.shape[2])
    counter[..., 1] = np.arange(B)[:, None]
    counter[..., 2] = np.arange(T)[:, None, None]
    counter[..., 3] = layer * directions + direction
    key = (int(seed) & 0xFFFFFFFF, int(seed) >> 32)
    words = philox4x32(counter, key).reshape(T, B, counter.shape[2] * 4)[:, :, :units]
    threshold = min(2**32, round(p * 2**32))  # Python rounds halves to even
    scale = 1 / (1 - p) if p < 1 else 0.0
    return np.where(words.astype(np.uint64) < np.uint64(threshold), 0.0, scale)


# ---------------------------------------------------------------------------------------------------------------------
# The whole stack
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tape:
    """What `forward` keeps for `backward`. It may be used any number of times."""

    cell: str
    directions: int
    weights: Mapping[str, Array]
    scans: Sequence[tuple[str, Weights, Sequence[Step]]]  # (suffix, weights, steps), in the order of the states
    inputs: Sequence[Array]  # the input of each layer, 0 past a row's end
    masks: Sequence[ArrayLike]  # what the output of each layer was multiplied by


def weight_shapes(
    cell: str,
    input_size: int,
    H: int,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    proj_size: int = 0,
) -> dict[str, tuple[int, ...]]:
    """The names of a stack's weights and their shapes, in PyTorch's order.

    Example:
        >>> weight_shapes("gru", 5, 2, bias=False)
        {'weight_ih_l0': (6, 5), 'weight_hh_l0': (6, 2)}
    """
    rows, P, directions = CELLS[cell].gates * H, proj_size or H, 1 + bidirectional
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, direction in np.ndindex(num_layers, directions):
        suffix = f"_l{layer}" + "_reverse" * direction
        shapes["weight_ih" + suffix] = (rows, P * directions if layer else input_size)
        shapes["weight_hh" + suffix] = (rows, P)
        if bias:
            shapes["bias_ih" + suffix] = shapes["bias_hh" + suffix] = (rows,)
        if proj_size:
            shapes["weight_hr" + suffix] = (P, H)
    return shapes


def forward(
    cell: str,
    x: ArrayLike,
    weights: Mapping[str, ArrayLike],
    state: Any = None,
    *,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    dropout: float = 0.0,
    dropout_seed: int = 0,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    proj_size: int = 0,
    dtype: DTypeLike = np.float64,
) -> tuple[Array, State, Tape]:
    """Run a stack of recurrent layers over a batch of sequences.

    Layer l reads the outputs of layer l-1, both directions side by side and multiplied by their dropout masks; its own
    steps follow the equations of the cell (`LSTM`, `GRU`, `RNNTanh`, `RNNRelu` in this module).

    Args:
        cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        x: (T, B, I).
        weights: arrays under PyTorch's names; see `weight_shapes`.
        state: the initial state, h (L*D, B, P), or for "lstm" a pair of h and c (L*D, B, H). None is zeros.
        lengths: (B,) integers, 0 to T: where each row ends. Nothing past a row's end is read; y is 0 there, the final
            state is that of the row's last step, and the reverse direction starts at the row's end. None is T for all.
        resets: (T, B) bool: where true, the state is zeroed before step t. Not with `bidirectional`.
        dropout: the probability of dropping a unit between two layers.
        dropout_seed: 0 to 2**64 - 1; see `dropout_mask`.
        num_layers, bidirectional, bias, proj_size: as in PyTorch; proj_size for "lstm" only.
        dtype: the dtype of every operation and result.

    Returns:
        y (T, B, D*P), the final state in the form of `state`, and the tape for `backward`.

    Raises:
        ValueError: an unknown cell; weights, states, lengths or resets that do not fit the sizes.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> shapes = weight_shapes("lstm", 3, 4)
        >>> weights = {name: rng.uniform(-0.5, 0.5, shape) for name, shape in shapes.items()}
        >>> y, (h_n, c_n), tape = forward("lstm", rng.standard_normal((5, 2, 3)), weights)
        >>> dx, (dh_0, dc_0), dweights = backward(tape, np.ones_like(y))
        >>> y.shape, h_n.shape, dx.shape, dweights["weight_hh_l0"].shape
        ((5, 2, 4), (1, 2, 4), (5, 2, 3), (16, 4))
    """
    if cell not in CELLS:
        raise ValueError(f"reference: cell must be one of {', '.join(CELLS)}, got {cell!r}")
    if resets is not None and bidirectional:
        raise ValueError(f"{cell}: resets cannot be used with bidirectional=True")
    definition, directions = CELLS[cell], 1 + bidirectional
    x = np.asarray(x, dtype)
    T, B, input_size = x.shape
    arrays = {name: np.asarray(w, dtype) for name, w in weights.items()}
    H = len(arrays.get("weight_ih_l0", ())) // definition.gates
    P = proj_size or H
    expected = weight_shapes(
        cell, input_size, H, num_layers=num_layers, bidirectional=bidirectional, bias=bias, proj_size=proj_size
    )
    if (got := {name: w.shape for name, w in arrays.items()}) != expected:
        raise ValueError(f"{cell}: weights must have the shapes {expected}, got {got}")

    state_shapes = [(num_layers * directions, B, size) for size in (P, H)[: definition.states]]
    states = _as_states(cell, "state", state, state_shapes, x.dtype)
    lengths = np.full(B, T) if lengths is None else np.asarray(lengths)
    if lengths.shape != (B,) or not np.all((lengths >= 0) & (lengths <= T)):
        raise ValueError(f"{cell}: lengths must have shape (B={B},) and values from 0 to T={T}, got {lengths}")
    resets = np.zeros((T, B), bool) if resets is None else np.asarray(resets)
    if resets.shape != (T, B) or resets.dtype != bool:
        raise ValueError(f"{cell}: resets must be bool of shape (T={T}, B={B}), got {resets.dtype} {resets.shape}")
    active = np.arange(T)[:, None] < lengths
    carried = active & ~resets

    scans, inputs, masks, finals = [], [], [], []
    below = np.where(active[:, :, None], x, 0)
    # Infinite inputs have limits (a gate of exactly 0 or 1), and NaN is allowed: neither deserves a warning here.
    with np.errstate(all="ignore"):
        for layer in range(num_layers):
            inputs.append(below)
            outputs, layer_masks = [], []
            for direction in range(directions):
                suffix = f"_l{layer}" + "_reverse" * direction
                names = ((field, kind + suffix) for field, kind in _KINDS.items())
                w = Weights(**{field: arrays[name] for field, name in names if name in arrays})
                initial = tuple(s[layer * directions + direction] for s in states)
                y, final, steps = scan_forward(definition, w, below, initial, active, carried, direction == 1)
                scans.append((suffix, w, steps))
                finals.append(final)
                if layer < num_layers - 1 and dropout != 0:
                    mask = dropout_mask(dropout_seed, dropout, T, B, P, layer, direction, directions)
                    layer_masks.append(mask.astype(x.dtype))
                outputs.append(y)
            masks.append(np.concatenate(layer_masks, axis=2) if layer_masks else 1)
            below = np.concatenate(outputs, axis=2) * masks[-1]

    tape = Tape(cell, directions, arrays, scans, inputs, masks)
    return below, _as_given(np.stack(kind) for kind in zip(*finals, strict=True)), tape


def backward(
    tape: Tape, dy: ArrayLike | None, dstate: Any = None, *, need_dx: bool = True
) -> tuple[Array | None, State, dict[str, Array]]:
    """The gradients of ``sum(y * dy) + sum(state * dstate)`` for the y and final state that `forward` returned.

    Args:
        tape: from `forward`.
        dy: (T, B, D*P), or None for zeros. Nothing past a row's end is read.
        dstate: in the form of the final state, or None for zeros.
        need_dx: whether to return dx.

    Returns:
        dx (T, B, I) or None, the gradient of the initial state, and those of the weights under the same names.

    Raises:
        ValueError: dy or dstate of another shape. `forward` has an example.
    """
    cell, directions = CELLS[tape.cell], tape.directions
    (T, B, _), dtype = tape.inputs[0].shape, tape.inputs[0].dtype
    rows, P = tape.weights["weight_hh_l0"].shape
    above = np.zeros((T, B, directions * P), dtype) if dy is None else np.asarray(dy, dtype)
    if above.shape != (T, B, directions * P):
        raise ValueError(f"{tape.cell}: dy must have shape {(T, B, directions * P)}, got {above.shape}")
    state_shapes = [(len(tape.scans), B, size) for size in (P, rows // cell.gates)[: cell.states]]
    dstates = _as_states(tape.cell, "dstate", dstate, state_shapes, dtype)

    dinitial: list[Any] = [None] * len(tape.scans)
    dweights: dict[str, Array] = {}
    with np.errstate(all="ignore"):
        for layer in reversed(range(len(tape.inputs))):
            x = tape.inputs[layer]
            d_output = above * tape.masks[layer]  # y = mask * output
            above = np.zeros_like(x)
            for direction in range(directions):
                index = layer * directions + direction
                suffix, w, steps = tape.scans[index]
                dy, dfinal = d_output[:, :, direction * P :][:, :, :P], tuple(d[index] for d in dstates)
                dx, dinitial[index], dw = scan_backward(cell, w, x, dy, dfinal, steps)
                above = above + dx  # both directions read the same input
                for field, kind in _KINDS.items():
                    if (gradient := getattr(dw, field)) is not None:
                        dweights[f"{kind}{suffix}"] = gradient
    dstate_0 = _as_given(np.stack(kind) for kind in zip(*dinitial, strict=True))
    return above if need_dx else None, dstate_0, {name: dweights[name] for name in tape.weights}


_KINDS = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh", "w_hr": "weight_hr"}


def _as_states(cell: str, name: str, state: Any, shapes: Sequence[tuple[int, ...]], dtype: DTypeLike) -> list[Array]:
    """h, or h and c, as a list; None, whole or in part, is zeros."""
    given = [None] * len(shapes) if state is None else [state] if len(shapes) == 1 else list(state)
    arrays = [
        np.zeros(shape, dtype) if s is None else np.asarray(s, dtype) for s, shape in zip(given, shapes, strict=True)
    ]
    if (got := [a.shape for a in arrays]) != list(shapes):
        raise ValueError(f"{cell}: {name} must have the shapes {list(shapes)}, got {got}")
    return arrays


def _as_given(states: Iterator[Array]) -> State:
    h, *rest = states
    return (h, rest[0]) if rest else h
