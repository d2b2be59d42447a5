"""Recurrent layers one above the other for the models: in one call for all, or with skip connections around each.

``make_stack`` gives one or the other. Both are used in the same way and have the same weights under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import _core
from ..arrays import HOST
from ..checks import check_choice, check_flag, check_probability, check_size
from ..functional import State, run_backward, run_forward
from ..layers import GRU, LSTM, RNN, _Recurrent
from ..locks import ForkLock
from ..spec import Spec, spec_from_weights
from ..stream import Stream
from ..validation import (
    Array,
    check_index,
    check_input,
    check_lengths,
    check_resets,
    check_states,
    gather,
    in_layout,
    time_major,
)
from . import array_api
from .nn import Dropout


class _Residual(_Recurrent):
    """What ResidualLSTM, ResidualGRU and ResidualRNN have in common: a call for each layer, and the sums."""

    _takes_index = False  # what goes past the first layer is a vector for every step

    def __call__(
        self,
        x: Array,
        state: State = None,
        *,
        lengths: Any = None,
        resets: Array | None = None,
        index: Array | None = None,
    ) -> tuple[Array, State]:
        y, state, _ = self._run(x, state, lengths, resets, index, None, training=False)
        return y, state

    def forward(
        self,
        x: Array,
        state: State = None,
        *,
        lengths: Any = None,
        resets: Array | None = None,
        index: Array | None = None,
        dropout_seed: int | None = None,
    ) -> tuple[Array, State, Any]:
        """As ``forward`` of the plain layers; the tape is a ``ResidualTape``. An ``index`` saves nothing here."""
        return self._run(x, state, lengths, resets, index, dropout_seed, training=True)

    def _run(
        self,
        x: Array,
        state: State,
        lengths: Any,
        resets: Array | None,
        index: Array | None,
        dropout_seed: int | None,
        training: bool,
    ) -> tuple[Array, State, ResidualTape]:
        # All that may be wrong is found before a dropout seed is drawn.
        spec, weights = self._spec, gather(self._spec, "parameters", self._parameters)
        inputs = 0
        if index is not None:
            x, index, unbatched = check_index(spec, x, index, self._batch_first)
            inputs, x = len(x), in_layout(x[index], unbatched, self._batch_first)
        x = spec.arrays.check(spec.label, "x", x, spec.dtype)
        time_major, unbatched = check_input(spec, x, self._batch_first)
        steps, batch, _ = time_major.shape
        check_states(spec, state, ("state", "h_0", "c_0"), batch, unbatched)
        if lengths is not None:
            lengths = check_lengths(spec, lengths, steps, batch, unbatched)
        if resets is not None:
            check_resets(spec, resets, steps, batch, unbatched, self._batch_first)
        if dropout_seed is not None:
            dropout_seed = check_size(spec.label, "dropout_seed", dropout_seed, 0, 2**64 - 1)
        if not training or not self._dropout or spec.num_layers == 1:
            dropout_seed = None
        elif dropout_seed is None:
            dropout_seed = int(self._rng.integers(0, 2**64, dtype=np.uint64))
        rng = None if dropout_seed is None else np.random.default_rng(dropout_seed)

        drop = Dropout(self._dropout, spec.arrays)
        tape = ResidualTape(
            [], [], self._inside(lengths, steps), batch, unbatched, self._owner, dropout_seed, index, inputs
        )
        states, y = [], x
        with spec.arrays.current():
            for layer, (own_spec, own) in enumerate(self._each(weights)):
                below, (dropped, mask) = y, drop.forward(y, rng if layer else None)
                y, state_n, own_tape = run_forward(
                    own_spec, own, dropped, _part(spec, state, layer), lengths, resets, self._batch_first,
                    training=training, owner=self._owner, memory=self._memory,
                )  # fmt: skip
                y = self._with_skip(layer, y, below, tape.inside)
                states.append(state_n)
                tape.layers.append(own_tape)
                tape.masks.append(mask)
            return y, _joined(spec, states), tape

    def backward(
        self, tape: Any, dy: Array | None, dstate: State = None, *, need_dx: bool = True, retain: bool = False
    ) -> tuple[Array | None, State]:
        """As ``backward`` of the plain layers, for a tape of this layer's ``forward``."""
        spec = self._spec
        if not isinstance(tape, ResidualTape):
            raise TypeError(
                f"{spec.label}: tape must be the ResidualTape that forward returned, got {type(tape).__name__}"
            )
        if tape.owner is not self._owner:
            raise ValueError(f"{spec.label}: tape must be one of this layer's, got one of another forward: {tape!r}")
        need_dx = check_flag(spec.label, "need_dx", need_dx)
        check_states(spec, dstate, ("dstate", "dh_n", "dc_n"), tape.batch, tape.unbatched)
        grads = list(self._each(self._own_grads(spec, [])))

        above = None if dy is None else spec.arrays.check(spec.label, "dy", dy, spec.dtype)
        dstates: list[State] = []
        with spec.arrays.current():
            for layer in reversed(range(spec.num_layers)):
                # The uppermost layer finds out whether dy is as it should be and the tape has not been consumed.
                dx, dstate_0, _ = run_backward(
                    tape.layers[layer], above, _part(spec, dstate, layer), lambda *_, own=grads[layer][1]: own,
                    need_dx or layer > 0, retain, self._memory,
                )  # fmt: skip
                dstates.insert(0, dstate_0)
                if dx is not None:
                    dx = Dropout.backward(tape.masks[layer], dx)
                    dx = dx if above is None else self._with_skip(layer, dx, above, tape.inside)
                above = dx
            return self._of_inputs(tape, above), _joined(spec, dstates)

    def _of_inputs(self, tape: ResidualTape, dx: Array | None) -> Array | None:
        """The gradient of x as it was given."""
        if tape.index is None or dx is None:
            return dx
        rows, sums = time_major(dx, tape.unbatched, self._batch_first), np.zeros((tape.inputs, dx.shape[-1]), dx.dtype)
        _core.add_rows(sums, tape.index.reshape(-1), np.ascontiguousarray(rows).reshape(-1, dx.shape[-1]))
        return sums

    def stream(self, batch_size: int = 1) -> Any:
        """As ``stream`` of the plain layers: a ``ResidualStream``."""
        weights = gather(self._spec, "parameters", self._parameters)
        return ResidualStream(self._spec, [Stream(spec, own, batch_size) for spec, own in self._each(weights)])

    def _each(self, arrays: list[Array]) -> Iterator[tuple[Spec, list[Array]]]:
        """Weights or gradients layer by layer, each with the Spec of a single layer."""
        spec = self._spec
        count = len(arrays) // spec.num_layers
        for start in range(0, len(arrays), count):
            own = arrays[start : start + count]
            yield spec_from_weights(spec.cell, dict(zip(spec.names, own, strict=False))), own

    def _with_skip(self, layer: int, through: Any, past: Any, inside: Any) -> Any:
        """The sum of what goes through a layer and what goes past it, if anything does: values and gradients alike."""
        if layer:
            return through + past  # which is zero past a row's end, or read by nobody there
        if not _is_connected(self._spec):
            return through
        if inside is not None:
            xp = np if self._spec.arrays is HOST else array_api.namespace(past)
            past = xp.where(inside, past, xp.zeros_like(past))
        return through + past

    def _inside(self, lengths: Any, steps: int) -> Any:
        """Which places of x are those of a row, in the layout of x; None where all are, or where nobody asks."""
        if lengths is None or not _is_connected(self._spec):
            return None
        with self._spec.arrays.current():
            if isinstance(lengths, np.ndarray):
                inside = self._spec.arrays.upload(np.arange(steps)[:, None, None] < lengths[None, :, None])
            else:
                inside = array_api.namespace(lengths).arange(steps)[:, None, None] < lengths[None, :, None]
            return inside.swapaxes(0, 1) if self._batch_first else inside


class ResidualLSTM(_Residual, LSTM):
    """An LSTM that adds to each layer's output what the layer has read.

    With layers f_1 ... f_L, each with weights and state of its own::

        y_1 = f_1(x) + x                            without "+ x" where input_size differs from y_1's
        y_k = f_k(dropout(y_(k-1))) + y_(k-1)       k > 1

    The sums are of y alone: a state is what its layer handed on to itself. In both directions y and the sums have both
    directions side by side. Past a row's end (``lengths``) y is zero, whatever x holds there. Gradients take the way
    past each layer as well as the one through it, so that deep stacks can be trained.

    Arguments, weights, states, methods and errors are those of ``fastrnn.LSTM``; with the same ``seed`` the weights
    have the same numbers. What differs: dropout masks are NumPy's, made of ``dropout_seed``; x and what else is given
    on a GPU must be CuPy's; a step of a stream takes no ``out``.

    Sources: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", 2016; in stacked LSTMs: Wu et al.,
    "Google's neural machine translation system", 2016.

    Example:
        >>> import numpy as np
        >>> from fastrnn.models.stack import ResidualLSTM
        >>> lstm = ResidualLSTM(5, 5, num_layers=4, seed=0)
        >>> x = np.ones((4, 2, 5), np.float32)
        >>> y, (h_n, c_n), tape = lstm.forward(x)
        >>> dx, (dh_0, dc_0) = lstm.backward(tape, np.ones_like(y))
        >>> y.shape, h_n.shape, dx.shape
        ((4, 2, 5), (4, 2, 5), (4, 2, 5))
        >>> bool(np.allclose(y[-1], x[-1] + h_n.sum(axis=0)))
        True
    """


class ResidualGRU(_Residual, GRU):
    """A GRU that adds to each layer's output what the layer has read: see ``ResidualLSTM`` and ``fastrnn.GRU``."""


class ResidualRNN(_Residual, RNN):
    """An RNN that adds to each layer's output what the layer has read: see ``ResidualLSTM`` and ``fastrnn.RNN``."""


@dataclass(eq=False, repr=False)
class ResidualTape:
    """What one forward pass kept for its backward pass: the layers' own tapes, and what stands between them."""

    layers: list[Any]
    masks: list[Any]  # of dropout, on what each layer read
    inside: Any  # which places of x are those of a row, where it matters
    batch: int
    unbatched: bool
    owner: ForkLock
    #: The seed of the dropout masks; None where nothing was dropped.
    dropout_seed: int | None
    index: Any  # int32 (T, B), where x was given with one, of so many rows
    inputs: int

    @property
    def consumed(self) -> bool:
        """Whether backward has used this tape up."""
        return any(tape.consumed for tape in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of kept activations, without inputs, outputs, masks and weights."""
        return sum(tape.nbytes for tape in self.layers)

    def __repr__(self) -> str:
        return f"<ResidualTape {self.layers!r}>"


class ResidualStream:
    """A residual layer one step at a time, with its state kept inside; see ``fastrnn.stream.Stream``."""

    def __init__(self, spec: Spec, streams: list[Stream]) -> None:
        self._spec, self._streams = spec, streams

    @property
    def batch_size(self) -> int:
        return self._streams[0].batch_size

    def step(self, x_t: Array) -> Array:
        """x_t (B, I) -> y_t (B, H); the state moves on."""
        y_t = x_t
        with self._spec.arrays.current():
            for layer, stream in enumerate(self._streams):
                below, y_t = y_t, stream.step(y_t)
                if layer or _is_connected(self._spec):
                    y_t += below
        return y_t

    @property
    def state(self) -> State:
        """A copy of the state: h (L, B, H), for LSTM the pair (h, c). Setting it copies too; None sets zeros."""
        return _joined(self._spec, [stream.state for stream in self._streams])

    @state.setter
    def state(self, state: State) -> None:
        check_states(self._spec, state, ("state", "h", "c"), self.batch_size, unbatched=False)
        for layer, stream in enumerate(self._streams):
            stream.state = _part(self._spec, state, layer)

    def reset(self, rows: Any = None) -> None:
        """Zeroes the state of these rows, of all where None."""
        for stream in self._streams:
            stream.reset(rows)

    def select(self, rows: Any) -> None:
        """Keeps these rows in this order, repeats allowed: the batch size becomes len(rows)."""
        for stream in self._streams:
            stream.select(rows)


#: The kinds of cell that models have.
CELLS: dict[str, Any] = {"lstm": LSTM, "gru": GRU, "rnn": RNN, "rnn_relu": partial(RNN, nonlinearity="relu")}
_RESIDUAL: dict[str, Any] = {
    "lstm": ResidualLSTM,
    "gru": ResidualGRU,
    "rnn": ResidualRNN,
    "rnn_relu": partial(ResidualRNN, nonlinearity="relu"),
}


def make_stack(
    cell: str,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    *,
    dropout: float = 0.0,
    bidirectional: bool = False,
    proj_size: int = 0,
    skip: bool = False,
    dtype: Any = "float32",
    device: str = "cpu",
    seed: Any = None,
) -> RNN | GRU | LSTM:
    """Recurrent layers one above the other, which read (T, B, I).

    Args:
        cell: "lstm", "gru", "rnn" (tanh) or "rnn_relu".
        dropout: probability between layers, in training only; with one layer there is nothing to drop.
        proj_size: for "lstm" only; 0 for none.
        skip: each layer adds what it reads to what it gives; see ``ResidualLSTM``.

    The others are those of the layers, such as ``fastrnn.LSTM``.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: for a device that is not there.

    Example:
        >>> from fastrnn.models.stack import make_stack
        >>> make_stack("gru", 4, 8, 2), make_stack("gru", 4, 8, 2, skip=True)
        (GRU(4, 8, num_layers=2), ResidualGRU(4, 8, num_layers=2))
    """
    where = "make_stack"
    cell = check_choice(where, "cell", cell, CELLS)
    kinds = _RESIDUAL if check_flag(where, "skip", skip) else CELLS
    num_layers = check_size(where, "num_layers", num_layers)
    dropout = check_probability(where, "dropout", dropout)
    options = {"proj_size": proj_size} if check_size(where, "proj_size", proj_size, low=0) else {}
    if options and cell != "lstm":
        raise ValueError(f"{where}: proj_size is for cell='lstm', got {proj_size=} and {cell=}")
    layer: RNN | GRU | LSTM = kinds[cell](
        input_size, hidden_size, num_layers, dropout=dropout if num_layers > 1 else 0.0, bidirectional=bidirectional,
        dtype=dtype, device=device, seed=seed, **options,
    )  # fmt: skip
    return layer


def _is_connected(spec: Spec) -> bool:
    """Whether x can be added to the first layer's output; above it the sizes are always equal."""
    return spec.input_size == spec.output_size


def _rows(spec: Spec, layer: int) -> slice:
    return slice(layer * spec.directions, (layer + 1) * spec.directions)


def _part(spec: Spec, state: State, layer: int) -> State:
    """One layer's part of a state, or of a pair of them."""
    if state is None:
        return None
    if isinstance(state, (tuple, list)):
        return tuple(_part(spec, each, layer) for each in state)
    return state[_rows(spec, layer)]


def _joined(spec: Spec, states: list[State]) -> State:
    """The layers' states as one, or as a pair of them."""
    if isinstance(states[0], tuple):
        return tuple(_joined(spec, list(each)) for each in zip(*states, strict=True))
    whole = spec.arrays.empty((spec.num_states, *states[0].shape[1:]), spec.dtype, states[0])
    for layer, state in enumerate(states):
        spec.arrays.write(whole[_rows(spec, layer)], state)
    return whole
