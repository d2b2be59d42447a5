"""``_cuda`` with the functions of ``_core``, on arrays in a GPU's memory.

Results are arrays of the library that x is of, and everything runs on its current stream; where weights or others are
of another library, the streams of the two wait for each other. All memory is the libraries': what forward keeps for
backward is an array like others. Nothing here waits for the GPU or reads from it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import extension
from .libraries import index_of, of_array


@functools.lru_cache(maxsize=1024)
def Problem(
    cell: str,
    dtype: str,
    input_size: int,
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
) -> Any:
    """One recurrent stack as the kernels know it."""
    return extension.module.Problem(cell, dtype, input_size, hidden_size, proj_size, num_layers, bidirectional, bias)


def is_input(problem: Any, x: Any) -> bool:
    return False  # as the next two: found out in Python


def gather(problem: Any, mapping: Any, names: Any) -> None:
    return None


def gather_gradients(problem: Any, gradients: Any, names: Any, weights: Any, parameters: Any) -> None:
    return None


class _Call:
    """What forward and backward of a call share: its library, its options and the sizes of what the kernels need."""

    def __init__(
        self, problem: Any, x: Any, lengths: Any, resets: Any, dropout: float, dropout_seed: int, training: bool
    ) -> None:
        self.library = of_array(x)
        self.index, self.problem, self.extent = index_of(x), problem, tuple(x.shape[:2])
        self._rows = [self._uploaded("lengths", lengths), self._uploaded("resets", resets)]  # kept alive
        tf32 = problem.dtype == "float32" and bool(sys.modules[__package__].allow_tf32)
        self.options = extension.module.Options(*map(_address, self._rows), dropout, dropout_seed, tf32)
        self.reserve, *self.workspaces = extension.sizes(problem, *self.extent, dropout, training)

    def _uploaded(self, name: str, array: Any) -> Any:
        if not isinstance(array, np.ndarray):
            return array
        with self.library.on(self.index):
            if self.library.is_capturing():
                raise RuntimeError(f"{name} must be on the GPU while a CUDA graph is captured, got a NumPy array")
            return self.library.upload(array, self.index)

    def empty(self, *shape: int) -> Any:
        return self.library.empty(shape, self.problem.dtype, self.index)

    def bytes(self, count: int) -> Any:
        # At least one, because arrays of nothing have no address, by which kernels know that they train.
        return self.library.empty((max(count, 1),), "uint8", self.index)

    def states(self, batch: int) -> tuple[Any, Any]:
        """h and, for an LSTM, c, (L*D, B, P) and (L*D, B, H), to be written."""
        p = self.problem
        count = p.num_layers * p.directions
        h = self.empty(count, batch, p.state_size)
        return h, self.empty(count, batch, p.hidden_size) if p.cell == "lstm" else None

    @contextlib.contextmanager
    def stream(self, arrays: Sequence[Any]) -> Iterator[int]:
        """Of the first array's library; it and the streams of the libraries of the others wait for each other."""
        first, *others = dict.fromkeys(of_array(array) for array in arrays if array is not None)
        with contextlib.ExitStack() as stack:
            theirs = [(library, stack.enter_context(library.on(self.index))) for library in others]
            mine = stack.enter_context(first.on(self.index))
            apart = [(library, handle) for library, handle in theirs if handle != mine]
            if apart and first.is_capturing():
                names = " and ".join(library.name for library, _ in apart)
                raise RuntimeError(f"the stream that captures a CUDA graph must be the current one of {names} too")
            with _waiting(mine, apart, self.index):
                yield mine

    def forward(
        self, x: Any, h_0: Any, c_0: Any, weights: Sequence[Any], out: Sequence[Any], reserve: Any, workspace: Any
    ) -> None:
        with self.stream([x, h_0, c_0, *self._rows, *weights, *out]) as stream:
            extension.module.forward(
                self.problem, *self.extent, _address(x), _address(h_0), _address(c_0), list(map(_address, weights)),
                self.options, tuple(map(_address, out)), _address(reserve), _address(workspace), stream,
            )  # fmt: skip


@contextlib.contextmanager
def _waiting(stream: int, others: Sequence[tuple[Any, int]], index: int) -> Iterator[None]:
    """A stream waits for others, each with the library that it is of, and they for it, also if kernels fail."""
    for library, handle in others:
        library.wait(stream, handle, index)
    try:
        yield
    finally:
        for library, handle in others:
            library.wait(handle, stream, index)


class Reserve:
    """What forward keeps for backward, and the stream it ran on, to which its memory goes back."""

    def __init__(self, call: _Call) -> None:
        self.call = call
        self.array = call.bytes(call.reserve)
        with call.library.on(call.index) as self._handle:
            self._stream = call.library.current()  # kept alive

    @property
    def nbytes(self) -> int:
        return int(self.call.reserve)

    @contextlib.contextmanager
    def ready_on(self, stream: int) -> Iterator[None]:
        """Backward's stream, if another than forward's, waits for it; it reuses no memory before backward ends."""
        call = self.call
        apart = [] if stream == self._handle else [(call.library, self._handle)]
        if apart and call.library.is_capturing():
            raise RuntimeError("the stream that captures the CUDA graph of a backward must be that of its forward")
        with _waiting(stream, apart, call.index):
            yield


def forward(
    problem: Any,
    x: Any,
    h_0: Any,
    c_0: Any,
    weights: list[Any],
    lengths: Any,
    resets: Any,
    dropout: float,
    dropout_seed: int,
    training: bool,
    memory: Any,
) -> tuple[Any, Any, Any, Reserve | None]:
    """As ``_core.forward``."""
    call = _Call(problem, x, lengths, resets, dropout, dropout_seed, training)
    seq_len, batch = call.extent
    y = call.empty(seq_len, batch, problem.directions * problem.state_size)
    h_n, c_n = call.states(batch)
    reserve = Reserve(call) if training else None
    workspace = call.bytes(call.workspaces[0])
    call.forward(x, h_0, c_0, weights, (y, h_n, c_n), reserve and reserve.array, workspace)
    return y, h_n, c_n, reserve


def backward(
    problem: Any,
    reserve: Reserve,
    x: Any,
    y: Any,
    weights: list[Any],
    dy: Any,
    dh_n: Any,
    dc_n: Any,
    need_dx: bool,
    dweights: list[Any],
    memory: Any,
) -> tuple[Any, Any, Any]:
    """As ``_core.backward``. Whatever fails to be allocated does so before a gradient is touched."""
    call = reserve.call
    dx = call.empty(*x.shape) if need_dx else None
    dh_0, dc_0 = call.states(call.extent[1])
    workspace = call.bytes(call.workspaces[1])
    with call.stream([x, y, dy, dh_n, dc_n, *call._rows, *weights, *dweights]) as stream, reserve.ready_on(stream):
        extension.module.backward(
            problem, *call.extent, _address(x), _address(y), list(map(_address, weights)), call.options,
            _address(dy), _address(dh_n), _address(dc_n), tuple(map(_address, (dx, dh_0, dc_0))),
            list(map(_address, dweights)), _address(reserve.array), _address(workspace), stream,
        )  # fmt: skip
    return dx, dh_0, dc_0


class Stream:
    """As ``_core.Stream``: one step at a time with weights of its own, in memory that is asked for once."""

    def __init__(self, problem: Any, weights: list[Any], batch_size: int, threads: int) -> None:
        self._problem, self._library = problem, of_array(weights[0])
        self._index = index_of(weights[0])
        with self._library.on(self._index):
            self._weights = [self._library.copy(w) for w in weights]
        self._call, self._states, self._workspace = self._allocated(batch_size)
        self.reset(None)

    def _allocated(self, batch_size: int) -> tuple[_Call, tuple[Any, Any], Any]:
        like = self._library.empty((1, batch_size, self._problem.input_size), self._problem.dtype, self._index)
        call = _Call(self._problem, like, None, None, 0.0, 0, False)
        return call, call.states(batch_size), call.bytes(call.workspaces[0])

    @property
    def batch_size(self) -> int:
        return self._call.extent[1]

    def step(self, x: Any, y: Any) -> None:
        # In place, as a captured step has to be: kernels read a state before they write it.
        self._call.forward(x, *self._states, self._weights, (y, *self._states), None, self._workspace)

    def get_state(self, h: Any, c: Any) -> None:
        self._write((h, c), self._states)

    def set_state(self, h: Any, c: Any) -> None:
        self._write(self._states, (h, c))

    def reset(self, rows: np.ndarray | None) -> None:
        self._write(self._states, (0, 0), slice(None) if rows is None else self._uploaded(rows))

    def select(self, rows: np.ndarray) -> None:
        chosen = self._uploaded(rows)
        with self._library.on(self._index):
            kept = [None if state is None else state[:, chosen] for state in self._states]
        call, states, workspace = self._allocated(len(rows))
        self._write(states, kept)
        self._call, self._states, self._workspace = call, states, workspace  # nothing has failed

    def _uploaded(self, rows: np.ndarray) -> Any:
        return self._library.upload(rows, self._index)

    def _write(self, targets: Sequence[Any], sources: Sequence[Any], rows: Any = slice(None)) -> None:
        with self._library.on(self._index):
            for target, source in zip(targets, sources, strict=True):
                if target is not None:
                    target[:, rows] = self._library.adopted(source)


def _address(array: Any) -> int | None:
    return None if array is None else of_array(array).address(array)
