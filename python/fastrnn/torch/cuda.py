"""The kernels on tensors in a GPU's memory.

Everything is enqueued on torch's current stream and nothing waits. torch's allocator owns all memory: what forward
keeps for backward is a tensor like others, which autograd saves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..cuda import extension, kernels
from ..cuda.libraries import on_torchs_stream
from .call import Sequences, Sizes, Stack, address, shapes_of

_absent = extension.absent  # why there are no kernels; looked up before compilers come by

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TAKES_PACKED = False
AUTOCASTS = True

_probed: dict[int, str | None] = {}  # by the number of the device


def declines(layer: Any, x: Tensor, packed: bool) -> str | None:
    """What keeps this part from a call whose tensors it could take."""
    if isinstance(layer, nn.RNNCellBase):
        return f"there is no kernel for single steps on device {x.device.type}"
    if not x.numel():
        return "there is nothing to compute"
    if (absent := _missing()) is not None:
        return absent
    if torch.compiler.is_compiling():
        return None
    if _is_capturing(x):
        if packed:
            return "packed rows cannot be captured in a CUDA graph"
        if layer.training and layer.dropout and layer.num_layers > 1:
            return "a captured CUDA graph would repeat the kernels' dropout masks"
        return None
    index = x.get_device()
    if index not in _probed:
        _probed[index] = _probe(x)
    return _probed[index]


def _missing() -> str | None:
    return "this PyTorch was built without CUDA" if torch.version.cuda is None else _absent


def _is_capturing(x: Tensor) -> bool:
    with torch.cuda.device(x.device):
        return torch.cuda.is_current_stream_capturing()


def _probe(x: Tensor) -> str | None:
    """Why nothing runs on the device of x: its generation, or a driver, that the kernels were not built for."""
    x, weight = x.new_zeros(1, 1, 1, dtype=torch.float32), x.new_zeros(1, 1, dtype=torch.float32)
    given = Sequences(x, None, None, None, None, False, 0.0, None)
    try:
        forward(Stack("rnn_tanh", 1, False, False), given, [weight, weight], False)
    except torch.cuda.OutOfMemoryError:  # may be over with the next call
        raise
    except RuntimeError as error:
        return f"the kernels do not run on this GPU: {error}"
    return None


def prepared(given: Sequences) -> Sequences:
    """The same with lengths and resets on the device of x."""
    return given._replace(lengths=beside(given.x, given.lengths), resets=beside(given.x, given.resets))


def beside(x: Tensor, tensor: Tensor | None) -> Tensor | None:
    """The tensor on the device of x."""
    if tensor is None or tensor.device == x.device:
        return tensor
    if not torch.compiler.is_compiling() and _is_capturing(x):  # the graph would read memory that is gone by then
        what = "lengths and resets must be on the GPU while a CUDA graph is captured"
        raise RuntimeError(f"fastrnn: {what}, got some on device {tensor.device}")
    # What is pinned would be read later, when its owner may have changed it; what is not is copied away at once.
    return tensor.to(x.device, non_blocking=not tensor.is_pinned())


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[int]:
    """Launches go to this tensor's device, and to the stream given here."""
    return on_torchs_stream(x.device)


def output_to_save(stack: Stack, y: Tensor, kept: Tensor) -> Tensor:
    return y  # as with cuDNN, whoever changes it in place hears of it in backward


def bytes_kept(stack: Stack, sizes: Sizes, dtype: torch.dtype) -> int:
    rows, problem = sizes.seq_len * sizes.batch, _problem(stack, dtype, *map(int, sizes.of_layer))  # type: ignore[operator]
    # Sizes may be symbols of a compiler.
    return sum(
        (rows * per_row + sizes.batch * per_sequence + 255) // 256 * 256
        for per_row, per_sequence in extension.module.reserve_parts(problem)
    )


def _problem(stack: Stack, dtype: torch.dtype, input_size: int, hidden_size: int, state_size: int) -> Any:
    proj_size = 0 if state_size == hidden_size else state_size
    name = str(dtype).removeprefix("torch.")
    return kernels.Problem(stack.cell, name, input_size, hidden_size, proj_size, *stack[1:])


class _Call:
    """What forward and backward of a call share."""

    def __init__(self, stack: Stack, given: Sequences, weights: Sequence[Tensor], training: bool) -> None:
        self.x, self.weights = given.x, weights
        self.sizes = Sizes(stack, *shapes_of(given, weights))
        self.problem = _problem(stack, given.x.dtype, *self.sizes.of_layer)
        self.extent = (self.sizes.seq_len, self.sizes.batch)
        self.options = extension.module.Options(
            address(given.lengths),
            address(given.resets),
            given.dropout,
            0 if given.seed is None else int(given.seed),
            given.x.dtype == torch.float32 and _allow_tf32(),
        )
        self.reserve, *self._workspaces = extension.sizes(self.problem, *self.extent, given.dropout, training)

    def bytes(self, count: int) -> Tensor:
        return self.x.new_empty(count, dtype=torch.uint8)

    def workspace(self, backward: bool) -> Tensor:
        return self.bytes(self._workspaces[backward])


def _allow_tf32() -> bool:
    """As torch decides for its own recurrent layers. The public switches raise or hide each other in some versions."""
    getter = getattr(torch._C, "_get_fp32_precision_getter", None)  # from torch 2.9 on
    return bool(torch._C._get_cudnn_allow_tf32() if getter is None else getter("cuda", "rnn") == "tf32")


def forward(
    stack: Stack, given: Sequences, weights: Sequence[Tensor], training: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """y, h_n, c_n (LSTM), and what training keeps."""
    call, x = _Call(stack, given, weights, training), given.x
    y, h_n = x.new_empty(call.sizes.y), x.new_empty(call.sizes.h)
    c_n = x.new_empty(call.sizes.c) if stack.cell == "lstm" else None
    kept = call.bytes(call.reserve) if training else None
    workspace = call.workspace(backward=False)
    with _on_device_of(x) as stream:
        extension.module.forward(
            call.problem,
            *call.extent,
            x.data_ptr(),
            address(given.h_0),
            address(given.c_0),
            [w.data_ptr() for w in weights],
            call.options,
            (y.data_ptr(), h_n.data_ptr(), address(c_n)),
            address(kept),
            workspace.data_ptr(),
            stream,
        )
    return y, h_n, c_n, kept


def backward(
    stack: Stack,
    given: Sequences,
    weights: Sequence[Tensor],
    y: Tensor,
    kept: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    needs: Sequence[bool],
    need_dweights: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]:
    call, x, lstm = _Call(stack, given, weights, training=True), given.x, stack.cell == "lstm"
    dx, dh_0, dc_0, dweights = call.sizes.new_gradients(x, weights, needs, need_dweights)
    workspace = call.workspace(backward=True)
    with _on_device_of(x) as stream:
        extension.module.backward(
            call.problem,
            *call.extent,
            x.data_ptr(),
            y.data_ptr(),
            [w.data_ptr() for w in weights],
            call.options,
            address(dy),
            address(dh_n),
            address(dc_n) if lstm else None,
            (address(dx), address(dh_0), address(dc_0)),
            list(map(address, dweights)),
            kept.data_ptr(),
            workspace.data_ptr(),
            stream,
            False,
        )
    return dx, dh_0, dc_0, dweights
