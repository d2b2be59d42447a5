"""Runs fastrnn.torch's layers on the inputs that torch ships for testing torch.nn's, and compares both.

A program of its own, because importing torch's test tools changes settings of the process. Prints how many inputs of
each layer gave the same outputs and gradients.
"""

import warnings

warnings.simplefilter("ignore")

import torch  # noqa: E402
from torch.testing._internal.common_modules import module_db  # noqa: E402

import fastrnn.torch  # noqa: E402
from fastrnn.torch import cells, paths  # noqa: E402
from fastrnn.torch.paths import obstacle  # noqa: E402

cells.quicker_on_torch = paths.quicker_on_torch = lambda *_: None  # small steps too


def tensors(values):
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from tensors(value)
        elif isinstance(value, torch.Tensor):
            yield value


def run(layer, args, options):
    outputs = list(tensors([layer(*args, **options)]))
    leaves = [t for t in tensors([args, list(options.values()), list(layer.parameters())]) if t.requires_grad]
    loss = sum((y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum() for y in outputs)
    return outputs + list(torch.autograd.grad(loss, leaves))


for name in ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"):
    info = next(info for info in module_db if info.module_cls is getattr(torch.nn, name))
    count = 0
    for training in (False, True):
        for inputs in info.module_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=True, training=training
        ):
            made, given = inputs.constructor_input, inputs.forward_input
            layers = []
            for module in (torch.nn, fastrnn.torch):
                torch.manual_seed(0)
                options = {"dtype": torch.float64} | made.kwargs
                layers.append(getattr(module, name)(*made.args, **options).train(training))
            assert obstacle(layers[1], layers[1]._weights(), *given.args, **given.kwargs) is None
            expected, got = (run(layer, given.args, given.kwargs) for layer in layers)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
            count += 1
    print(name, count)
