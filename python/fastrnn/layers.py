"""The layers ``RNN``, ``GRU`` and ``LSTM``: weights, gradients and options around ``functional``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import _core
from .arrays import HOST
from .checks import check_choice, check_flag, check_probability, check_size
from .functional import State, Tape, run_backward, run_forward
from .locks import ForkLock
from .spec import (
    Spec,
    check_device,
    check_dtype,
    check_generator,
    label_of,
    make_spec,
)
from .stream import Stream
from .validation import Array, check_grads, check_names, gather, weight_value


class _Recurrent:
    """What RNN, GRU and LSTM have in common: everything but their constructors and equations."""

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        dtype: Any,
        device: str,
        seed: Any,
    ) -> None:
        label = label_of(cell)
        input_size = check_size(label, "input_size", input_size)
        hidden_size = check_size(label, "hidden_size", hidden_size)
        num_layers = check_size(label, "num_layers", num_layers)
        proj_size = check_size(label, "proj_size", proj_size, low=0)
        if proj_size >= hidden_size:
            raise ValueError(f"{label}: proj_size must be smaller than hidden_size={hidden_size}, got {proj_size}")
        bias = check_flag(label, "bias", bias)
        self._batch_first = check_flag(label, "batch_first", batch_first)
        self._dropout = check_probability(label, "dropout", dropout)
        bidirectional = check_flag(label, "bidirectional", bidirectional)
        index = check_device(label, device)
        dtype = check_dtype(label, dtype, index)
        self._rng = check_generator(label, seed)
        self._spec = make_spec(
            cell, dtype, input_size, hidden_size, proj_size, num_layers, bidirectional, bias,
            None if index is None else ("cupy", index),
        )  # fmt: skip
        if self._dropout and num_layers == 1:
            warnings.warn(
                f"{label}: dropout={self._dropout} has no effect with num_layers=1: it acts between layers",
                UserWarning,
                stacklevel=3,
            )
        try:
            self._parameters = {name: self._draw_weight(shape) for name, shape in self._spec.shapes}
            self._grads = {name: self._spec.arrays.zeros(shape, dtype) for name, shape in self._spec.shapes}
        except MemoryError:
            raise ValueError(f"{label}: {self!r} cannot be allocated: no memory left for its weights") from None
        self._attach()

    def _attach(self) -> None:
        """What belongs to this object alone, never to a copy of it."""
        # Its lock is held by backward; a tape carries it to tell its layer.
        self._owner = ForkLock()
        # The lease under which _core caches this layer's workspaces.
        self._memory = _core.Memory()

    def _draw_weight(self, shape: tuple[int, ...]) -> Array:
        spec, bound = self._spec, self._spec.hidden_size**-0.5
        array = self._rng.random(shape, dtype=np.float64 if spec.dtype == np.float64 else np.float32)
        array *= 2 * bound
        array -= bound
        return spec.arrays.upload(array.astype(spec.dtype, copy=False))

    @property
    def input_size(self) -> int:
        return self._spec.input_size

    @property
    def hidden_size(self) -> int:
        return self._spec.hidden_size

    @property
    def num_layers(self) -> int:
        return self._spec.num_layers

    @property
    def bias(self) -> bool:
        return self._spec.bias

    @property
    def batch_first(self) -> bool:
        return self._batch_first

    @property
    def dropout(self) -> float:
        return self._dropout

    @property
    def bidirectional(self) -> bool:
        return self._spec.bidirectional

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._spec.dtype

    @property
    def device(self) -> str:
        return self._spec.arrays.device

    @property
    def parameters(self) -> dict[str, Array]:
        """The weights by name. Write into the arrays or replace entries at any time between calls."""
        return self._parameters

    @property
    def grads(self) -> dict[str, Array]:
        """The weights' gradients by name; ``backward`` adds to them."""
        return self._grads

    @property
    def _takes_index(self) -> bool:
        return self._spec.arrays is HOST

    def __call__(
        self,
        x: Array,
        state: State = None,
        *,
        lengths: Any = None,
        resets: Array | None = None,
        index: Array | None = None,
    ) -> tuple[Array, State]:
        """Inference: (y, state), with the arguments of ``forward``. No tape is kept, nothing is dropped."""
        y, state, _ = run_forward(
            self._spec, gather(self._spec, "parameters", self._parameters), x, state, lengths, resets,
            self._batch_first, memory=self._memory, index=index,
        )  # fmt: skip
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
    ) -> tuple[Array, State, Tape]:
        """Training: runs the sequence and keeps what ``backward`` needs.

        Args:
            x: (T, B, I), (B, T, I) with ``batch_first``, or (T, I) without a batch, of the layer's dtype. Copied once
                where not C-contiguous.
            state: h_0 (L*D, B, H), for LSTM a pair (h_0, c_0); None: zeros. Unbatched without B. With ``proj_size`` P
                the last axis of h_0 is P.
            lengths: integers (B,), 0 <= length <= T, in any order. Past a row's end nothing of x is used and y is
                zero; the reverse direction starts at the row's end. None: all T.
            resets: bool (T, B) or (B, T) with ``batch_first``, unbatched (T,). Where True the state is zeroed before
                step t. Not with ``bidirectional``.
            index: integers (T, B), (B, T) with ``batch_first`` or (T,), 0 <= index < U, past a row's end too: x is then
                (U, I), the distinct inputs, such as the embeddings of all characters, and step t of row b reads
                x[index[t, b]]. The results are those of x[index], the gradient of x is (U, I), and products with W_ih
                take U rows instead of T*B: worth it where U is well below. Of a large matrix give only the rows that
                are read: ``numpy.unique`` finds them, and the index (its inverse, which has to be of shape (T, B)). On
                the CPU.
            dropout_seed: fixes the dropout masks, 0 to 2**64 - 1; None draws one from the layer's generator.

        Returns:
            (y, state, tape): y (T, B, D*H), or (B, T, D*H) with ``batch_first``; the final state in the form of
            ``state``; the tape for one ``backward``. y and the state are read-only, as the tape uses them.

        Raises:
            ValueError, TypeError: an argument, or an entry of ``parameters``, that is not as described.
        """
        y, state, tape = run_forward(
            self._spec, gather(self._spec, "parameters", self._parameters), x, state, lengths, resets,
            self._batch_first, self._dropout, dropout_seed, True, self._rng, self._owner, self._memory, index,
        )  # fmt: skip
        assert tape is not None
        return y, state, tape

    def backward(
        self, tape: Tape, dy: Array | None, dstate: State = None, *, need_dx: bool = True, retain: bool = False
    ) -> tuple[Array | None, State]:
        """Backpropagation through time: adds the weights' gradients to ``grads``.

        Args:
            tape: from this layer's ``forward``; it serves one backward.
            dy: the gradient of y, of y's shape; None (zeros) only where ``dstate`` is given.
            dstate: the gradient of the final state, of its form; None, also for one of an LSTM's pair: zeros.
            need_dx: False saves the time for dx and returns None for it.
            retain: True keeps the tape usable for another backward.

        Returns:
            (dx, dstate_0): the gradients of x, in its shape, and of the initial state.

        Raises:
            ValueError, TypeError: an argument, or an entry of ``grads``, that is not as described; a tape that is
                consumed or of another layer. Then no gradient was added and the tape is as before.
        """
        label = self._spec.label
        if not isinstance(tape, Tape):
            raise TypeError(f"{label}: tape must be the Tape that forward returned, got {type(tape).__name__}")
        if tape._owner is not self._owner:
            raise ValueError(f"{label}: tape must be one of this layer's, got one of another forward: {tape!r}")
        dx, dstate_0, _ = run_backward(tape, dy, dstate, self._own_grads, need_dx, retain, self._memory)
        return dx, dstate_0

    def _own_grads(self, spec: Spec, weights: list[Array]) -> list[Array]:
        return check_grads(spec, self._grads, weights, self._parameters)

    def stream(self, batch_size: int = 1) -> Stream:
        """Packs the weights of this moment for one step at a time. Not with ``bidirectional``."""
        return Stream(self._spec, gather(self._spec, "parameters", self._parameters), batch_size)

    def zero_grad(self) -> None:
        """Sets all gradients to zero, in place."""
        with self._owner.lock:
            for array in self._own_grads(self._spec, []):
                self._spec.arrays.write(array, 0)

    def state_dict(self) -> dict[str, Array]:
        """Copies of the weights under torch's names."""
        found = gather(self._spec, "parameters", self._parameters)
        return dict(zip(self._spec.names, map(self._spec.arrays.copied, found), strict=True))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Writes weights into the existing arrays, converted to the layer's dtype.

        Args:
            state_dict: floating-point arrays or torch tensors under exactly the names of ``parameters``, such as
                ``state_dict()`` of this layer or of its torch.nn namesake.

        Raises:
            ValueError, TypeError: names are missing or unexpected, or a value does not fit. Nothing was changed.
        """
        spec = self._spec
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"{spec.label}: state_dict must be a mapping, got {type(state_dict).__name__}")
        check_names(spec, "state_dict", state_dict)
        # Copies, as the values may be views of the very arrays to be written.
        values = [weight_value(spec, name, shape, state_dict[name]) for name, shape in spec.shapes]
        targets = gather(spec, "parameters", self._parameters)
        for (name, _), target in zip(spec.shapes, targets, strict=True):
            if not spec.arrays.is_writeable(target):
                raise ValueError(f"{spec.label}: parameters[{name!r}] must be writeable, got a read-only array")
        uploaded = list(map(spec.arrays.upload, values))  # may fail, before anything is written
        for target, value in zip(targets, uploaded, strict=True):
            spec.arrays.write(target, value)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_owner"], state["_memory"]
        for name in ("_parameters", "_grads"):
            state[name] = _moved(state[name], self._spec.arrays.download)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in ("_parameters", "_grads"):
            self.__dict__[name] = _moved(state[name], self._spec.arrays.upload)
        self._attach()

    def __copy__(self) -> _Recurrent:
        """Shares the arrays; everything else, such as the generator and what the dicts hold, is its own."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._attach()
        new._parameters, new._grads = self._parameters.copy(), self._grads.copy()
        new._rng = copy.deepcopy(self._rng)
        return new

    def __repr__(self) -> str:
        spec = self._spec
        options = {
            "proj_size": (spec.proj_size, 0),
            "num_layers": (spec.num_layers, 1),
            "nonlinearity": (spec.cell.removeprefix("rnn_"), "tanh" if spec.label == "rnn" else spec.cell),
            "bias": (spec.bias, True),
            "batch_first": (self._batch_first, False),
            "dropout": (self._dropout, 0.0),
            "bidirectional": (spec.bidirectional, False),
            "dtype": (spec.dtype.name, "float32"),
            "device": (spec.arrays.device, "cpu"),
        }
        given = "".join(f", {name}={value!r}" for name, (value, default) in options.items() if value != default)
        return f"{type(self).__name__}({spec.input_size}, {spec.hidden_size}{given})"


class LSTM(_Recurrent):
    """Long short-term memory over whole sequences, stacked and in both directions if wanted.

    For each layer and step, with sigmoid s and elementwise product *::

        i = s(W_ii x + b_ii + W_hi h + b_hi)        input gate
        f = s(W_if x + b_if + W_hf h + b_hf)        forget gate
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)     candidate
        o = s(W_io x + b_io + W_ho h + b_ho)        output gate
        c' = f * c + i * g
        h' = o * tanh(c')                           with proj_size: h' = W_hr (o * tanh(c'))

    Weights per layer k, gates stacked as i f g o (``_reverse`` appended for the reverse direction): ``weight_ih_lk``
    (4*H, I), above the first layer (4*H, D*P); ``weight_hh_lk`` (4*H, P); ``bias_ih_lk``, ``bias_hh_lk`` (4*H,);
    ``weight_hr_lk`` (P, H) with ``proj_size`` P, which is H elsewhere. They start as U(-1/sqrt(H), 1/sqrt(H)).

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L; layer k > 0 reads the output of layer k-1.
        bias: whether the biases exist.
        batch_first: x and y are (B, T, .) instead of (T, B, .); states are (L*D, B, .) in any case.
        dropout: the share of units zeroed between layers, in ``forward`` only.
        bidirectional: D = 2 instead of 1; y holds both directions side by side.
        proj_size: P < H, the size of h and y; 0: no projection.
        dtype: "float32" or "float64", on a GPU also "float16" or "bfloat16".
        device: "cpu", "cuda" (the GPU that is current in CuPy) or "cuda:N". On a GPU weights and gradients are CuPy's
            arrays; x, states and their gradients may be of CuPy, PyTorch or another library with DLPack, and results
            are of the library that x is of.
        seed: starts the generator of weights and dropout seeds; None takes entropy from the system.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong type, sizes that cannot be allocated.
        RuntimeError: a GPU that is not available, naming what is missing.

    Sources: Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000; projection: Sak, Senior &
    Beaufays 2014; dropout between layers: Zaremba, Sutskever & Vinyals 2014.

    Example:
        >>> import numpy as np, fastrnn
        >>> lstm = fastrnn.LSTM(3, 5, num_layers=2, seed=0)
        >>> x = np.ones((4, 2, 3), np.float32)
        >>> y, (h_n, c_n), tape = lstm.forward(x)
        >>> dx, (dh_0, dc_0) = lstm.backward(tape, np.ones_like(y))
        >>> y.shape, h_n.shape, dx.shape
        ((4, 2, 5), (2, 2, 5), (4, 2, 3))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: Any = "float32",
        device: str = "cpu",
        seed: Any = None,
    ) -> None:
        super().__init__(
            "lstm", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
            dtype, device, seed,
        )  # fmt: skip

    @property
    def proj_size(self) -> int:
        return self._spec.proj_size


class GRU(_Recurrent):
    """Gated recurrent units over whole sequences, stacked and in both directions if wanted.

    For each layer and step, with sigmoid s and elementwise product *; the reset gate acts after the product::

        r = s(W_ir x + b_ir + W_hr h + b_hr)            reset gate
        z = s(W_iz x + b_iz + W_hz h + b_hz)            update gate
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))   candidate
        h' = (1 - z) * n + z * h

    Weights per layer k, gates stacked as r z n (``_reverse`` appended for the reverse direction): ``weight_ih_lk``
    (3*H, I), above the first layer (3*H, D*H); ``weight_hh_lk`` (3*H, H); ``bias_ih_lk``, ``bias_hh_lk`` (3*H,).

    Arguments, initial weights and errors are those of ``LSTM``, without ``proj_size``. The state is one array h.

    Source: Cho et al. 2014.

    Example:
        >>> import numpy as np, fastrnn
        >>> gru = fastrnn.GRU(3, 5, bidirectional=True, seed=0)
        >>> y, h_n = gru(np.ones((4, 2, 3), np.float32), lengths=[4, 1])
        >>> y.shape, h_n.shape, float(abs(y[1:, 1]).max())
        ((4, 2, 10), (2, 2, 5), 0.0)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        device: str = "cpu",
        seed: Any = None,
    ) -> None:
        super().__init__(
            "gru", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0,
            dtype, device, seed,
        )  # fmt: skip


class RNN(_Recurrent):
    """Simple recurrent networks over whole sequences, stacked and in both directions if wanted.

    For each layer and step::

        h' = tanh(W_ih x + b_ih + W_hh h + b_hh)        with nonlinearity="relu": max(0, .) in the place of tanh

    Weights per layer k (``_reverse`` appended for the reverse direction): ``weight_ih_lk`` (H, I), above the first
    layer (H, D*H); ``weight_hh_lk`` (H, H); ``bias_ih_lk``, ``bias_hh_lk`` (H,).

    Arguments, initial weights and errors are those of ``LSTM``, with ``nonlinearity`` ("tanh" or "relu") in fourth
    place and without ``proj_size``. The state is one array h.

    Source: Elman 1990.

    Example:
        >>> import numpy as np, fastrnn
        >>> rnn = fastrnn.RNN(3, 5, nonlinearity="relu", seed=0)
        >>> y, h_n = rnn(np.ones((4, 3), np.float32))
        >>> y.shape, h_n.shape
        ((4, 5), (1, 5))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        device: str = "cpu",
        seed: Any = None,
    ) -> None:
        nonlinearity = check_choice("rnn", "nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(
            f"rnn_{nonlinearity}", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0,
            dtype, device, seed,
        )  # fmt: skip

    @property
    def nonlinearity(self) -> str:
        return self._spec.cell.removeprefix("rnn_")


def _moved(arrays: dict[str, Any], move: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: move(array) for name, array in arrays.items()}
