"""One time step at a time, with weights packed once."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core
from .arrays import HOST, type_name
from .checks import check_size
from .functional import State
from .spec import MAX_COUNT, Spec
from .validation import Array, check_integers, check_states, strides_of

_ndarray = np.ndarray


class Stream:
    """A layer stepping through time with its state kept inside; made by ``layer.stream(batch_size)``.

    It works on a snapshot of the weights: later changes of the layer do not reach it. Stepping T times equals one call
    of the layer over T steps, up to rounding. For audio in real time, acting in reinforcement learning, generation of
    text. A stream belongs to one thread at a time. On a GPU a step is one call of the kernels, on memory that it keeps.

        >>> import numpy as np, fastrnn
        >>> gru = fastrnn.GRU(3, 5, seed=0)
        >>> stream = gru.stream(batch_size=2)
        >>> y_t = stream.step(np.ones((2, 3), np.float32))
        >>> y_t.shape, stream.state.shape
        ((2, 5), (1, 2, 5))
    """

    def __init__(self, spec: Spec, weights: list[Array], batch_size: Any) -> None:
        """For layers: spec and weights are checked."""
        if spec.bidirectional:
            raise ValueError(f"{spec.label}: a stream cannot be made of a layer with bidirectional=True")
        batch_size = check_size(spec.label, "batch_size", batch_size, low=0)
        self._spec = spec
        self._check_allocatable(batch_size)
        try:
            self._stream = spec.kernels.Stream(spec.problem, weights, batch_size, _core.get_num_threads())
        except MemoryError:
            spec.refuse(f"batch_size={batch_size}")
            raise

    def _check_allocatable(self, batch_size: int) -> None:
        spec = self._spec
        elements = spec.num_layers * (spec.state_size + spec.hidden_size) + spec.input_size
        spec.check_allocatable("states", batch_size * elements * spec.dtype.itemsize, f"batch_size={batch_size}")
        if batch_size > MAX_COUNT:
            raise ValueError(f"{spec.label}: batch_size must be at most {MAX_COUNT}, got {batch_size}")

    @property
    def batch_size(self) -> int:
        """The number of rows stepped together."""
        return self._stream.batch_size

    def step(self, x_t: Array, out: Array | None = None) -> Array:
        """One step: x_t (B, I) -> y_t (B, H), the last layer's output; the state moves on.

        Args:
            x_t: (B, input_size) of the layer's dtype; copied where not contiguous.
            out: C-contiguous (B, H) to write y_t into, apart from x_t, on a GPU CuPy's; without it a new array is
                returned.

        Raises:
            ValueError, TypeError: an array of another shape, dtype or layout. The state has not moved.
        """
        spec, batch, arrays, given = self._spec, self._stream.batch_size, self._spec.arrays, x_t
        if type(x_t) is not _ndarray or x_t.dtype != spec.dtype or arrays is not HOST:
            x_t = arrays.check(spec.label, "x_t", x_t, spec.dtype)
        if x_t.shape != (batch, spec.input_size):
            raise ValueError(
                f"{spec.label}: x_t must have shape (B={batch}, input_size={spec.input_size}), got {tuple(x_t.shape)}"
            )
        x_t = arrays.contiguous(x_t)
        if out is None:
            out = arrays.empty((batch, spec.state_size), spec.dtype, x_t)
        else:
            self._check_out(out, x_t)
        self._stream.step(x_t, out)
        return out if arrays is HOST else arrays.give(given, out)

    def _check_out(self, out: Any, x_t: Array) -> None:
        spec, arrays = self._spec, self._spec.arrays
        shape = (len(x_t), spec.state_size)
        if not arrays.fits(out, spec.dtype, shape):
            if not arrays.owns(out):
                raise TypeError(f"{spec.label}: out must be {arrays.own}, got {type_name(out)}")
            arrays.check(spec.label, "out", out, spec.dtype)
            if out.shape != shape:
                found = tuple(out.shape)
                raise ValueError(f"{spec.label}: out must have shape (B={shape[0]}, {shape[1]}), got {found}")
        elif arrays.is_writeable(out):
            if _overlap(arrays.span(out), arrays.span(x_t)):
                raise ValueError(f"{spec.label}: out must not share memory with x_t, got arrays that overlap")
            return
        layout = f"strides {strides_of(out)}" + ("" if arrays.is_writeable(out) else ", read-only")
        raise ValueError(f"{spec.label}: out must be C-contiguous, aligned and writeable, got {layout}")

    @property
    def state(self) -> State:
        """A copy of the state: h (L, B, H), for LSTM the pair (h, c). Setting it copies too; None sets zeros."""
        h, c = self._empty_state()
        self._stream.get_state(h, c)
        return h if c is None else (h, c)

    @state.setter
    def state(self, state: State) -> None:
        h, c = check_states(self._spec, state, ("state", "h", "c"), self.batch_size, unbatched=False)
        zero_h, zero_c = self._empty_state(zero=True)
        self._stream.set_state(zero_h if h is None else h, zero_c if c is None else c)

    def _empty_state(self, zero: bool = False) -> tuple[Array, Array | None]:
        spec, batch = self._spec, self.batch_size
        new = spec.arrays.zeros if zero else spec.arrays.empty
        h = new((spec.num_layers, batch, spec.state_size), spec.dtype)
        return h, new((spec.num_layers, batch, spec.hidden_size), spec.dtype) if spec.has_c else None

    def reset(self, rows: Any = None) -> None:
        """Zeroes the state of these rows (a list or array of indices 0 <= row < B), of all where None."""
        self._stream.reset(None if rows is None else self._check_rows(rows))

    def select(self, rows: Any) -> None:
        """Keeps these rows in this order, repeats allowed: the batch size becomes len(rows). For beam search."""
        rows = self._check_rows(rows)
        self._check_allocatable(len(rows))
        try:
            self._stream.select(rows)
        except MemoryError:
            self._spec.refuse(f"batch_size={len(rows)}")
            raise

    def _check_rows(self, rows: Any) -> Array:
        batch = self.batch_size
        return check_integers(self._spec.label, "rows", rows, 0, batch - 1, f"batch_size-1={batch - 1}")

    def __repr__(self) -> str:
        spec = self._spec
        return f"<Stream of {spec.label} ({spec.input_size}, {spec.hidden_size}), batch_size={self.batch_size}>"


def _overlap(one: Any, other: Any) -> bool:
    """Two of ``Arrays.span``."""
    return one[0] < other[0] + other[1] and other[0] < one[0] + one[1]
