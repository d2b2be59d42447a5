"""RNNCell, GRUCell and LSTMCell with torch.nn's interface: one step of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import kernel
from .call import Sequences, Stack, plain
from .layers import OnKernels
from .paths import cell_of, obstacle, quicker_on_torch


class _RecurrentCell(OnKernels, nn.RNNCellBase):
    """What the three share."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Runs one step, as torch.nn's namesake does.

        Args:
            input: (B, I), or (I,) without a batch.
            hx: the state (B, H), for LSTMCell a pair of h and c; None: zeros. Unbatched without B.

        Returns:
            The new state: h, for LSTMCell (h, c).

        Raises:
            What torch.nn's cell raises.
        """
        if isinstance(input, Tensor) and quicker_on_torch(self, input, torch.is_grad_enabled()):  # before all else
            return self._original.forward(self, input, hx)
        self._hold_memory()
        weights = self._weights()
        if obstacle(self, weights, input, hx) is not None:
            return self._original.forward(self, input, hx)
        h, c = (None, None) if hx is None else hx if isinstance(self, LSTMCell) else (hx, None)
        unbatched = input.dim() == 1
        if unbatched:
            input, h, c = (None if t is None else t.unsqueeze(0) for t in (input, h, c))
        given = Sequences(
            plain(input), None if h is None else plain(h), None if c is None else plain(c), None, None, False, 0.0, None
        )
        _, h, c = kernel.run(Stack(cell_of(self), 1, False, self.bias), given, [plain(w) for w in weights])
        if unbatched:
            h, c = h.squeeze(0), c if c is None else c.squeeze(0)
        return (h, c) if isinstance(self, LSTMCell) else h

    def _weight_names(self) -> Sequence[str]:
        return ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]


class RNNCell(_RecurrentCell):
    """torch.nn.RNNCell on fastrnn's kernels; see there for arguments, weights and shapes.

    It is an nn.RNNCellBase but not an nn.RNNCell. A step that records gradients, or is small (2 million
    multiplications), runs on torch, which is quicker there.

    Example:
        >>> import torch, fastrnn.torch
        >>> cell = fastrnn.torch.RNNCell(8, 16, nonlinearity="relu")
        >>> cell(torch.ones(3, 8)).shape
        torch.Size([3, 16])
    """

    _original = nn.RNNCell


class GRUCell(_RecurrentCell):
    """torch.nn.GRUCell on fastrnn's kernels; see there for arguments, weights and shapes.

    It is an nn.RNNCellBase but not an nn.GRUCell. A small step (600 thousand multiplications) runs on torch, which is
    quicker there.

    Example:
        >>> import torch, fastrnn.torch
        >>> cell, h = fastrnn.torch.GRUCell(8, 16), None
        >>> for x in torch.ones(5, 3, 8):
        ...     h = cell(x, h)
        >>> h.shape
        torch.Size([3, 16])
    """

    _original = nn.GRUCell


class LSTMCell(_RecurrentCell):
    """torch.nn.LSTMCell on fastrnn's kernels; see there for arguments, weights and shapes.

    It is an nn.RNNCellBase but not an nn.LSTMCell. A small step (600 thousand multiplications) runs on torch, which is
    quicker there.

    Example:
        >>> import torch, fastrnn.torch
        >>> cell = fastrnn.torch.LSTMCell(8, 16)
        >>> h, c = cell(torch.ones(3, 8))
        >>> h.shape, c.shape
        (torch.Size([3, 16]), torch.Size([3, 16]))
    """

    _original = nn.LSTMCell
