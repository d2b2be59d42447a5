"""A whole model's recurrent layers, there and back."""

from __future__ import annotations

import functools
import warnings
from typing import Any, TypeVar

import torch
from torch import nn

from .cells import GRUCell, LSTMCell, RNNCell
from .cpu import hold_memory, release_memory
from .layers import GRU, LSTM, RNN, OnKernels
from .paths import obstacle

Module = TypeVar("Module", bound=nn.Module)

_SERVING = {"layer": "torch", "composite": "torch's single operations"}
_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: RNN,
    nn.GRU: GRU,
    nn.LSTM: LSTM,
    nn.RNNCell: RNNCell,
    nn.GRUCell: GRUCell,
    nn.LSTMCell: LSTMCell,
}


def accelerate(module: Module) -> Module:
    """Makes every nn.RNN, nn.GRU and nn.LSTM in a model, and their cells, run on fastrnn's kernels; returns the model.

    The layers stay the same objects with the same Parameters, hooks and names; only their class becomes that of
    ``fastrnn.torch``. Optimizers, checkpoints and wrappers go on as before. Subclasses of torch's layers, whose own
    code might go round the kernels, are left alone, which a warning tells. A second time it does nothing.

    Example:
        >>> import torch, fastrnn.torch
        >>> fastrnn.torch.accelerate(torch.nn.GRU(2, 3))
        GRU(2, 3)
    """
    left = []
    for name, layer in module.named_modules():
        if (new := _counterpart(layer, _REPLACEMENTS)) is not None:
            layer.__class__ = new
            hold_memory(layer)
        elif isinstance(layer, tuple(_REPLACEMENTS)):
            left.append(f"{name or 'the module itself'} ({type(layer).__name__})")
    if left:
        warnings.warn(f"accelerate: subclasses of torch's layers are left alone: {', '.join(left)}", stacklevel=2)
    return module


def restore(module: Module) -> Module:
    """Turns the layers of ``fastrnn.torch`` in a model into torch.nn's and returns the model: undoes ``accelerate``."""
    originals = {new: old for old, new in _REPLACEMENTS.items()}
    for layer in module.modules():
        if (new := _counterpart(layer, originals)) is not None:
            layer.__class__ = new
            release_memory(layer)
    return module


def _counterpart(layer: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> Any:
    """The class that a layer's class stands for; None: none."""
    own = type(layer)
    if own in classes or not nn.utils.parametrize.is_parametrized(layer):
        return classes.get(own)
    # A parametrized layer has a class of its own, which torch has derived from the layer's.
    base = own.__bases__[0]
    if base not in classes:
        return None
    attributes = {name: value for name, value in vars(own).items() if name not in ("__dict__", "__weakref__")}
    return type(own.__name__, (classes[base],), attributes)


def explain(module: nn.Module, *inputs: Any, **kwargs: Any) -> str:
    """Calls the model and tells, a line for each call of a recurrent layer, what it ran on and why.

    The model is called once, without gradients and as it is: in training mode its statistics move on. Torch's generator
    is put back afterwards. Told is what a call records for autograd, or under ``no_grad`` what one without does.

    Example:
        >>> import torch, fastrnn.torch
        >>> model = torch.nn.Sequential(fastrnn.torch.GRU(2, 3))
        >>> print(fastrnn.torch.explain(model, torch.ones(4, 1, 2)))
        0: GRU(2, 3): fastrnn's kernels
        >>> print(fastrnn.torch.explain(model.bfloat16(), torch.ones(4, 1, 2).bfloat16()))
        0: GRU(2, 3): torch, because there is no kernel for torch.bfloat16
    """
    lines: list[str] = []
    recording = torch.is_grad_enabled()

    def note(name: str, layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        if not isinstance(layer, OnKernels):
            path = "torch, because accelerate has not been called on it"
        else:
            given = dict(zip(("input", "hx"), args, strict=False)) | options
            values = {name: given.get(name) for name in ("input", "hx", "lengths", "resets")}
            found = obstacle(layer, layer._weights(), **values, recording=recording)
            path = "fastrnn's kernels" if found is None else f"{_SERVING[found.serves]}, because {found.reason}"
        lines.append(f"{name or 'the module itself'}: {layer}: {path}")

    hooks = [
        layer.register_forward_pre_hook(functools.partial(note, name), with_kwargs=True)
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.RNNBase, nn.RNNCellBase))
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(*inputs, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return "\n".join(lines)
