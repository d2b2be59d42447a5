"""Recurrent stacks as functions: validate once, allocate, one call into ``_core`` for all layers, directions and steps.

``forward`` and ``backward`` take the weights as a mapping; the layer classes go through ``run_forward`` and
``run_backward`` with weights of their own. Equations, shapes and weight names stand at the layer classes.

    >>> import numpy as np, fastrnn
    >>> from fastrnn import functional
    >>> weights = fastrnn.GRU(3, 5, seed=0).state_dict()
    >>> x = np.ones((4, 2, 3), np.float32)
    >>> y, h_n, tape = functional.forward("gru", x, weights)
    >>> dx, dh_0, dweights = functional.backward(tape, np.ones_like(y))
    >>> dx.shape, dh_0.shape, dweights["weight_hh_l0"].shape
    ((4, 2, 3), (1, 2, 5), (15, 5))
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from . import _core
from .arrays import HOST
from .checks import check_flag, check_probability, check_size
from .locks import ForkLock
from .spec import Spec, spec_from_weights
from .validation import (
    Array,
    check_index,
    check_input,
    check_lengths,
    check_output_grad,
    check_resets,
    check_states,
    gather,
    in_layout,
)

State = Any  # h of RNN and GRU, the pair (h, c) of LSTM


# What backward needs of its forward: the reserve, x, y and the weights, as ``_core`` saw them.
_Saved = tuple[_core.Reserve, Array, Array, list[Array]]


class Tape:
    """What one forward pass kept for its backward pass.

    It refers to x and the weights of that pass, which must stay unchanged until backward has run, and holds the memory
    of the kept activations, which is freed when the tape is consumed or dropped.
    """

    __slots__ = ("_batch_first", "_given", "_owner", "_saved", "_spec", "_unbatched", "dropout_seed")

    def __init__(
        self,
        spec: Spec,
        saved: _Saved,
        unbatched: bool,
        batch_first: bool,
        dropout_seed: int | None,
        owner: ForkLock,
    ) -> None:
        self._spec = spec
        self._saved: _Saved | None = saved
        self._unbatched = unbatched
        self._batch_first = batch_first
        # x as it was given to a GPU's layer: of the library that gradients are handed back to.
        self._given: Any = None
        # A layer's tapes share the layer's, which also tells whose they are.
        self._owner = owner
        #: The seed of the dropout masks; None where nothing was dropped.
        self.dropout_seed = dropout_seed

    @property
    def consumed(self) -> bool:
        """Whether backward has used this tape up."""
        return self._saved is None

    @property
    def nbytes(self) -> int:
        """Bytes of kept activations, without x, y and the weights."""
        saved = self._saved
        return saved[0].nbytes if saved else 0

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        # For copy, deepcopy and pickle alike.
        raise TypeError(
            f"{self._spec.label}: a Tape cannot be copied or pickled: it serves one backward, in the process of its "
            "forward; call forward again instead"
        )

    def __repr__(self) -> str:
        return f"<Tape of {self._spec.cell}, {'consumed' if self.consumed else f'{self.nbytes} bytes'}>"


def forward(
    cell: str,
    x: Array,
    weights: Mapping[str, Array],
    state: State = None,
    *,
    lengths: Any = None,
    resets: Array | None = None,
    index: Array | None = None,
    dropout: float = 0.0,
    dropout_seed: int | None = None,
    batch_first: bool = False,
    training: bool = True,
) -> tuple[Array, State, Tape | None]:
    """Runs a stack over a sequence.

    The number of layers, directions, biases, the projection, the sizes and the dtype are read off ``weights``.

    Args:
        cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        x: (T, B, I), (B, T, I) with ``batch_first``, or (T, I) without a batch; dtype of the weights.
        weights: arrays under torch's names, C-contiguous, float32 or float64, on a GPU also float16 or bfloat16. They
            are not copied, and tell the device: NumPy's for the CPU, CuPy's or PyTorch's on a GPU.
        state: h_0 (L*D, B, H), for "lstm" a pair (h_0, c_0); None: zeros. Unbatched without B.
        lengths: integers (B,), the number of steps of each row; None: all T.
        resets: bool (T, B) or (B, T) with ``batch_first``: zeroes the state before step t where True.
        index: integers (T, B), (B, T) with ``batch_first`` or (T,): x is then (U, I), and step t of row b reads
            x[index[t, b]]; see ``LSTM.forward``. On the CPU.
        dropout: the share of units dropped between layers, 0 to 1.
        dropout_seed: fixes the masks; None draws one, which the tape tells.
        training: False keeps no tape and drops nothing.

    Returns:
        (y, state, tape): y (T, B, D*H) in x's layout and the final state in the layout of ``state``, read-only when
        training; the tape, None unless training.

    Raises:
        ValueError, TypeError: an argument that is not as described.
    """
    spec = spec_from_weights(cell, weights)
    return run_forward(
        spec,
        gather(spec, "weights", weights),
        x,
        state,
        lengths,
        resets,
        check_flag(spec.label, "batch_first", batch_first),
        check_probability(spec.label, "dropout", dropout),
        dropout_seed,
        check_flag(spec.label, "training", training),
        index=index,
    )


def backward(
    tape: Tape, dy: Array | None, dstate: State = None, *, need_dx: bool = True, retain: bool = False
) -> tuple[Array | None, State, dict[str, Array]]:
    """The gradients of ``forward``, by backpropagation through time.

    Args:
        tape: of a forward pass, not used before.
        dy: the gradient of y, of y's shape; None (zeros) only where ``dstate`` is given.
        dstate: the gradient of the final state, of its form; None, also for one of an LSTM's pair: zeros.
        need_dx: False saves the time for dx and returns None for it.
        retain: True keeps the tape usable for another backward.

    Returns:
        (dx, dstate_0, dweights): the gradients of x, of the initial state and, by name, of the weights.

    Raises:
        ValueError, TypeError: an argument that is not as described, or a consumed tape. The tape stays usable.
    """

    def zeros(spec: Spec, _: list[Array]) -> list[Array]:
        return [spec.arrays.zeros(shape, spec.dtype) for _, shape in spec.shapes]

    if not isinstance(tape, Tape):
        raise TypeError(f"backward: tape must be a Tape made by forward, got {type(tape).__name__}")
    dx, dstate_0, dweights = run_backward(tape, dy, dstate, zeros, need_dx, retain)
    return dx, dstate_0, {name: dw for (name, _), dw in zip(tape._spec.shapes, dweights, strict=True)}


def run_forward(
    spec: Spec,
    weights: list[Array],
    x: Any,
    state: Any,
    lengths: Any,
    resets: Any,
    batch_first: bool,
    dropout: float = 0.0,
    dropout_seed: Any = None,
    training: bool = False,
    rng: np.random.Generator | None = None,
    owner: ForkLock | None = None,
    memory: _core.Memory | None = None,
    index: Any = None,
) -> tuple[Array, State, Tape | None]:
    """``forward`` with spec, weights and options checked. rng gives the dropout seed where one is needed and none was
    given; it, owner and memory belong to the layer that calls. After an error rng is as before."""
    given = x
    unbatched, ready = False, index is None and not batch_first and spec.kernels.is_input(spec.problem, x)
    if index is not None:
        x, index, unbatched = check_index(spec, x, index, batch_first)
    elif not ready:
        x, unbatched = check_input(spec, x, batch_first)
    seq_len, batch = x.shape[:2] if index is None else index.shape
    inputs = None if index is None else len(x)
    if lengths is not None:
        lengths = check_lengths(spec, lengths, seq_len, batch, unbatched)
    spec.check_call(seq_len, batch, x, lengths, training, inputs)
    h_0 = c_0 = None
    if state is not None:
        h_0, c_0 = check_states(spec, state, ("state", "h_0", "c_0"), batch, unbatched)
    if resets is not None:
        resets = check_resets(spec, resets, seq_len, batch, unbatched, batch_first)
    if dropout_seed is not None:
        dropout_seed = check_size(spec.label, "dropout_seed", dropout_seed, 0, 2**64 - 1)

    rng_state = None
    try:
        if not ready:
            x = spec.arrays.contiguous(x)
        if not training or not dropout or spec.num_layers == 1:
            dropout, dropout_seed = 0.0, None
        elif dropout_seed is None:
            if rng is None:
                dropout_seed = secrets.randbits(64)
            else:
                rng_state = rng.bit_generator.state
                dropout_seed = int(rng.integers(0, 2**64, dtype=np.uint64))
        y, h_n, c_n, reserve = spec.kernels.forward(
            spec.problem, x, h_0, c_0, weights, lengths, resets, dropout, dropout_seed or 0, training, memory,
            **({} if index is None else {"index": index}),
        )  # fmt: skip
    except BaseException as error:
        if rng is not None and rng_state is not None:
            rng.bit_generator.state = rng_state
        if isinstance(error, MemoryError):
            spec.refuse(spec.describe_call(seq_len, batch, inputs))
        raise
    tape = None
    if training:
        assert reserve is not None
        tape = Tape(spec, (reserve, x, y, weights), unbatched, batch_first, dropout_seed, owner or ForkLock())
    if unbatched or batch_first:
        y = in_layout(y, unbatched, batch_first)
        h_n, c_n = _states_in_layout(h_n, c_n, unbatched)
    if spec.arrays is not HOST:
        y, h_n, c_n = (spec.arrays.give(given, array) for array in (y, h_n, c_n))
        if tape is not None:
            tape._given = given
    return y, (h_n if c_n is None else (h_n, c_n)), tape


def run_backward(
    tape: Tape,
    dy: Any,
    dstate: Any,
    get_dweights: Callable[[Spec, list[Array]], list[Array]],
    need_dx: bool,
    retain: bool,
    memory: _core.Memory | None = None,
) -> tuple[Array | None, State, list[Array]]:
    """``backward`` for a Tape. get_dweights(spec, weights) gives, checked, the arrays to add the weights' gradients to.

    The lock is held throughout: of two calls with one tape the second finds it consumed, and the gradients of one layer
    are added to by one call at a time.
    """
    spec, unbatched, batch_first = tape._spec, tape._unbatched, tape._batch_first
    need_dx = check_flag(spec.label, "need_dx", need_dx)
    retain = check_flag(spec.label, "retain", retain)
    with tape._owner.lock:
        saved = tape._saved
        if saved is None:
            raise ValueError(f"{spec.label}: tape has been consumed by an earlier backward; each serves one")
        reserve, x, y, weights = saved
        seq_len, batch, _ = y.shape
        dh_n, dc_n = check_states(spec, dstate, ("dstate", "dh_n", "dc_n"), batch, unbatched)
        if dy is not None:
            dy = check_output_grad(spec, dy, seq_len, batch, unbatched, batch_first)
        elif dh_n is None and dc_n is None:
            raise ValueError(f"{spec.label}: dy may be None only where dstate is given, got None for both")
        dweights = get_dweights(spec, weights)

        try:
            dx, dh_0, dc_0 = spec.kernels.backward(
                spec.problem, reserve, x, y, weights, dy, dh_n, dc_n, need_dx, dweights, memory
            )
        except MemoryError:
            spec.refuse(spec.describe_call(seq_len, batch, len(x) if x.ndim == 2 else None))
            raise
        if not retain:
            tape._saved = None
    if unbatched or batch_first:
        if dx is not None and x.ndim == 3:  # x with an index is no sequence
            dx = in_layout(dx, unbatched, batch_first)
        dh_0, dc_0 = _states_in_layout(dh_0, dc_0, unbatched)
    if spec.arrays is not HOST:
        dx, dh_0, dc_0 = (spec.arrays.give(tape._given, array) for array in (dx, dh_0, dc_0))
    return dx, (dh_0 if dc_0 is None else (dh_0, dc_0)), dweights


def _states_in_layout(h: Array, c: Array | None, unbatched: bool) -> tuple[Array, Array | None]:
    if not unbatched:
        return h, c
    return h[:, 0], None if c is None else c[:, 0]
