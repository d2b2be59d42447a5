"""One time step at a time, with weights packed once."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from . import _core
from .checks import check_size
from .functional import State
from .spec import MAX_COUNT, Spec
from .validation import Array, check_array, check_integers, check_states, contiguous

_ndarray = np.ndarray


class Stream:
    """A layer stepping through time with its state kept inside; made by ``layer.stream(batch_size)``.

    It works on a snapshot of the weights: later changes of the layer do not reach it. Stepping T times equals one call
    of the layer over T steps, up to rounding. For audio in real time, acting in reinforcement learning, generation of
    text. A stream belongs to one thread at a time.

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
            self._stream = _core.Stream(spec.problem, weights, batch_size, _core.get_num_threads())
        except MemoryError:
            self._refuse(batch_size)

    def _check_allocatable(self, batch_size: int) -> None:
        spec = self._spec
        elements = spec.num_layers * (spec.state_size + spec.hidden_size) + spec.input_size
        spec.check_allocatable("states", batch_size * elements * spec.dtype.itemsize, f"batch_size={batch_size}")
        if batch_size > MAX_COUNT:
            raise ValueError(f"{spec.label}: batch_size must be at most {MAX_COUNT}, got {batch_size}")

    def _refuse(self, batch_size: int) -> NoReturn:
        """In the place of a MemoryError."""
        raise ValueError(f"{self._spec.label}: batch_size={batch_size} cannot be allocated: no memory left") from None

    @property
    def batch_size(self) -> int:
        """The number of rows stepped together."""
        return self._stream.batch_size

    def step(self, x_t: Array, out: Array | None = None) -> Array:
        """One step: x_t (B, I) -> y_t (B, H), the last layer's output; the state moves on.

        Args:
            x_t: (B, input_size) of the layer's dtype; copied where not contiguous.
            out: C-contiguous (B, H) to write y_t into, apart from x_t; without it a new array is returned.

        Raises:
            ValueError, TypeError: an array of another shape, dtype or layout. The state has not moved.
        """
        spec, batch = self._spec, self._stream.batch_size
        if type(x_t) is not _ndarray or x_t.dtype != spec.dtype:
            x_t = check_array(spec.label, "x_t", x_t, spec.dtype)
        if x_t.shape != (batch, spec.input_size):
            raise ValueError(
                f"{spec.label}: x_t must have shape (B={batch}, input_size={spec.input_size}), got {x_t.shape}"
            )
        x_t = contiguous(x_t)
        if out is None:
            out = np.empty((batch, spec.state_size), spec.dtype)
        else:
            self._check_out(out, x_t)
        self._stream.step(x_t, out)
        return out

    def _check_out(self, out: Any, x_t: Array) -> None:
        spec = self._spec
        if type(out) is not _ndarray:
            raise TypeError(f"{spec.label}: out must be a numpy array, got {type(out).__name__}")
        if out.dtype != spec.dtype:
            check_array(spec.label, "out", out, spec.dtype)
        shape = (len(x_t), spec.state_size)
        if out.shape != shape:
            raise ValueError(f"{spec.label}: out must have shape (B={shape[0]}, {shape[1]}), got {out.shape}")
        flags = out.flags
        if not (flags.c_contiguous and flags.aligned and flags.writeable):
            raise ValueError(f"{spec.label}: out must be C-contiguous, aligned and writeable, got {_layout(out)}")
        if np.may_share_memory(out, x_t):
            raise ValueError(f"{spec.label}: out must not share memory with x_t, got arrays that overlap")

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
        new = np.zeros if zero else np.empty
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
            self._refuse(len(rows))

    def _check_rows(self, rows: Any) -> Array:
        batch = self.batch_size
        return check_integers(self._spec.label, "rows", rows, 0, batch - 1, f"batch_size-1={batch - 1}")

    def __repr__(self) -> str:
        spec = self._spec
        return f"<Stream of {spec.label} ({spec.input_size}, {spec.hidden_size}), batch_size={self.batch_size}>"


def _layout(array: Array) -> str:
    return f"strides {array.strides}" + ("" if array.flags.writeable else ", read-only")
