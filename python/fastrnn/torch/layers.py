"""RNN, GRU and LSTM with torch.nn's interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import composite, cpu, kernel
from .call import Sequences, Stack, plain
from .paths import autocast_dtype, cell_of, obstacle


class OnKernels(nn.Module):
    """A layer or cell of torch.nn's, in everything that it holds; one becomes the other by its class."""

    _original: type[nn.Module]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # torch's own constructor: its errors, its draws from the generator, its attributes.
        overridden = type(self).reset_parameters is not self._original.reset_parameters  # type: ignore[attr-defined]
        state = torch.random.get_rng_state() if overridden else None
        self.__dict__.update(self._original(*args, **kwargs).__dict__)
        if state is not None:  # a user's subclass draws its weights itself
            torch.random.set_rng_state(state)
            self.reset_parameters()  # type: ignore[operator]
        self._hold_memory()

    def _hold_memory(self) -> None:
        if not torch.compiler.is_compiling():
            cpu.hold_memory(self)

    def _weights(self) -> list[Tensor]:
        # By name: parametrizations and functional_call put others in the place of the parameters.
        own = self._parameters
        return [own[name] if name in own else getattr(self, name) for name in self._weight_names()]  # type: ignore[misc]

    def _weight_names(self) -> Sequence[str]:
        raise NotImplementedError


class _Recurrent(OnKernels, nn.RNNBase):
    """What the three share."""

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Runs the layers over a sequence, as torch.nn's namesake does.

        Args:
            input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) without a batch, or a PackedSequence.
            hx: the initial state (L*D, B, H), for LSTM a pair of h and c; None: zeros. Unbatched without B.
            lengths: int64 (B,), the number of steps of each row, in any order; past its end y is zero and the final
                state that of the row's last step. Not with a PackedSequence. On a GPU they are not checked: what is
                less than 0 counts as 0, what is more than T as T.
            resets: bool (T, B), or (B, T) with ``batch_first``: where True the state is zeroed before step t. Neither
                with a PackedSequence nor with ``bidirectional``.

        Returns:
            (output, h_n), for LSTM (output, (h_n, c_n)).

        Raises:
            What torch.nn's layer raises; ValueError and TypeError for lengths and resets.
        """
        self._hold_memory()
        packed = isinstance(input, PackedSequence)
        _check_extras(self, input, lengths, resets)
        weights = self._weights()
        found = obstacle(self, weights, input, hx, lengths, resets)
        if found is not None and found.serves == "layer":
            return self._original.forward(self, input, hx)
        call = kernel.run if found is None else composite.run
        states: list[Tensor | None] = [None, None]
        if hx is not None:
            states = list(hx) if self.mode == "LSTM" else [hx, None]
        unbatched = not packed and input.dim() == 2
        if packed:
            x, batch_sizes, sorted_indices, unsorted_indices = input
            lengths = _lengths_of(batch_sizes)
            if sorted_indices is not None:
                states = [None if s is None else s.index_select(1, sorted_indices) for s in states]
        elif unbatched:
            x = input.unsqueeze(1)
            states = [None if s is None else s.unsqueeze(1) for s in states]
            resets = None if resets is None else resets.unsqueeze(1)
        else:
            x = input.transpose(0, 1) if self.batch_first else input
            resets = None if resets is None else resets.transpose(0, 1) if self.batch_first else resets

        dropout = self.dropout if self.training and self.num_layers > 1 else 0.0
        # Like the masks that torch would draw, the seed follows torch.manual_seed.
        seed = torch.randint(2**63 - 1, (), device="cpu") if dropout > 0 and call is kernel.run else None
        dtype = autocast_dtype(x)

        def ready(tensor: Tensor) -> Tensor:
            return plain(tensor) if call is kernel.run else tensor

        def cast(tensor: Tensor) -> Tensor:
            return ready(tensor if dtype is None else tensor.to(dtype))

        given = Sequences(
            cast(x),
            None if states[0] is None else cast(states[0]),
            None if states[1] is None else cast(states[1]),
            None if lengths is None else ready(lengths),
            None if resets is None else ready(resets),
            packed,
            dropout,
            seed,
        )
        y, h_n, c_n = call(self._stack(), given, [cast(w) for w in weights])

        if packed:
            if unsorted_indices is not None:
                h_n = h_n.index_select(1, unsorted_indices)
                c_n = None if c_n is None else c_n.index_select(1, unsorted_indices)
            return self._outputs(PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), h_n, c_n)
        if unbatched:
            y, h_n = y.squeeze(1), h_n.squeeze(1)
            c_n = None if c_n is None else c_n.squeeze(1)
        elif self.batch_first:
            y = y.transpose(0, 1)
        return self._outputs(y, h_n, c_n)

    def _outputs(self, y: Any, h_n: Tensor, c_n: Tensor | None) -> tuple[Any, Any]:
        return y, (h_n if c_n is None else (h_n, c_n))

    def _stack(self) -> Stack:
        return Stack(cell_of(self), self.num_layers, self.bidirectional, self.bias)

    def _weight_names(self) -> Sequence[str]:
        return self._flat_weights_names


class RNN(_Recurrent):
    """torch.nn.RNN on fastrnn's kernels; see there for arguments, weights and shapes.

    Takes ``lengths`` and ``resets`` besides, see ``forward``. It is an nn.RNNBase but not an nn.RNN.

    Example:
        >>> import torch, fastrnn.torch
        >>> rnn = fastrnn.torch.RNN(8, 16, nonlinearity="relu")
        >>> y, h_n = rnn(torch.ones(5, 3, 8))
        >>> y.shape, h_n.shape
        (torch.Size([5, 3, 16]), torch.Size([1, 3, 16]))
    """

    _original = nn.RNN


class GRU(_Recurrent):
    """torch.nn.GRU on fastrnn's kernels; see there for arguments, weights and shapes.

    Takes ``lengths`` and ``resets`` besides, see ``forward``. It is an nn.RNNBase but not an nn.GRU.

    Example:
        >>> import torch, fastrnn.torch
        >>> gru = fastrnn.torch.GRU(8, 16, batch_first=True, bidirectional=True)
        >>> y, h_n = gru(torch.ones(3, 5, 8), lengths=torch.tensor([5, 1, 2]))
        >>> y.shape, h_n.shape
        (torch.Size([3, 5, 32]), torch.Size([2, 3, 16]))
    """

    _original = nn.GRU


class LSTM(_Recurrent):
    """torch.nn.LSTM on fastrnn's kernels; see there for arguments, weights and shapes.

    Takes ``lengths`` and ``resets`` besides, see ``forward``. It is an nn.RNNBase but not an nn.LSTM.

    Example:
        >>> import torch, fastrnn.torch
        >>> lstm = fastrnn.torch.LSTM(8, 16, num_layers=2, dropout=0.5)
        >>> y, (h_n, c_n) = lstm(torch.ones(5, 3, 8))
        >>> y.shape, c_n.shape
        (torch.Size([5, 3, 16]), torch.Size([2, 3, 16]))
    """

    _original = nn.LSTM
    # What torch.nn.LSTM.forward calls on itself.
    get_expected_cell_size: Any = nn.LSTM.get_expected_cell_size
    check_forward_args: Any = nn.LSTM.check_forward_args
    permute_hidden: Any = nn.LSTM.permute_hidden


def _lengths_of(batch_sizes: Tensor) -> Tensor:
    """Steps of each row, longest first, of a PackedSequence's batch sizes."""
    rows = torch.arange(int(batch_sizes[0]), device=batch_sizes.device)
    return (batch_sizes[:, None] > rows).sum(0)


def _check_extras(layer: nn.RNNBase, input: Any, lengths: Any, resets: Any) -> None:
    if lengths is None and resets is None:
        return
    name = type(layer).__name__
    if isinstance(input, PackedSequence):
        what = "lengths" if lengths is not None else "resets"
        raise ValueError(f"{name}: {what} cannot be used with a PackedSequence, which has lengths of its own")
    if input.dim() not in (2, 3):
        return  # torch's own error
    axes = (
        {"T": input.shape[0]}
        if input.dim() == 2
        else dict(zip("BT" if layer.batch_first else "TB", input.shape, strict=False))
    )
    if lengths is not None:
        if "B" not in axes:
            raise ValueError(f"{name}: lengths need a batch; here the input {tuple(input.shape)} is unbatched")
        if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64:
            got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
            raise TypeError(f"{name}: lengths must be an int64 tensor, got {got}")
        if lengths.shape != (axes["B"],):
            raise ValueError(f"{name}: lengths must have shape (B={axes['B']},), got {tuple(lengths.shape)}")
        if (
            not torch.compiler.is_compiling()
            and lengths.is_cpu  # others would have to be waited for: the kernels stop at T
            and lengths.numel()
            and not 0 <= int(lengths.min()) <= int(lengths.max()) <= axes["T"]
        ):
            raise ValueError(f"{name}: lengths must be between 0 and T={axes['T']}, got {lengths.tolist()}")
    if resets is not None:
        if layer.bidirectional:
            raise ValueError(f"{name}: resets cannot be used with bidirectional=True")
        if not isinstance(resets, Tensor) or resets.dtype != torch.bool:
            got = resets.dtype if isinstance(resets, Tensor) else type(resets).__name__
            raise TypeError(f"{name}: resets must be a bool tensor, got {got}")
        if resets.shape != tuple(axes.values()):
            expected = ", ".join(f"{axis}={n}" for axis, n in axes.items())
            raise ValueError(f"{name}: resets must have shape ({expected}), got {tuple(resets.shape)}")
