"""Who is measured. A peer gets weights and data, and then does one call at a time.

This module is imported by the parent too, which only wants names: everything heavy is imported by the constructors.
"""

from __future__ import annotations

import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .shapes import CELLS, GATES, Shape, flops

Array = NDArray[Any]
Arrays = dict[str, Array]

#: NumPy takes no part in rows with more operations than this in a call: it would take most of the run's time.
NUMPY_FLOPS = 1e9


class Peer(ABC):
    """One library with one layer. `call` gives the functions to time, `results` what they compute."""

    needs: ClassVar[tuple[str, ...]] = ()  # the modules without which it is left out
    modes: ClassVar[tuple[str, ...]] = ("infer", "train")
    processes: ClassVar[int] = 1  # how many are measured; the best counts
    most_flops: ClassVar[float] = math.inf
    pauses: ClassVar[bool] = False  # whether single steps are also timed with pauses between them

    @abstractmethod
    def __init__(self, cell: str, shape: Shape, data: Mapping[str, Array], threads: int) -> None:
        """Takes x (T, B, I), dy (T, B, H) and the weights, under torch's names, from data."""

    @abstractmethod
    def call(self, mode: str) -> Callable[[], object]:
        """The function that does one call of this mode; "paused" is one of inference."""

    @abstractmethod
    def results(self, mode: str) -> Arrays:
        """y; for training also dx and, as "d" + name, the weights' gradients."""


def weights_of(data: Mapping[str, Array]) -> Arrays:
    return {name: array for name, array in data.items() if name not in ("x", "dy")}


class Fastrnn(Peer):
    """Single steps go through a stream, as in a program that has one step at a time.

    It has as many processes as torch: with fewer, a slow spell of the machine would count against it alone.
    """

    processes = 3
    pauses = True

    def __init__(self, cell: str, shape: Shape, data: Mapping[str, Array], threads: int) -> None:
        import fastrnn

        fastrnn.set_num_threads(threads)
        layers: dict[str, Any] = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}
        self._layer = layers[cell](shape.input_size, shape.hidden_size, shape.num_layers)
        self._layer.load_state_dict(weights_of(data))
        self._x, self._dy = data["x"], data["dy"]

    def call(self, mode: str) -> Callable[[], object]:
        layer, x, dy = self._layer, self._x, self._dy
        if mode == "train":

            def train() -> object:
                y, _, tape = layer.forward(x)
                return y, layer.backward(tape, dy)

            return train
        if len(x) > 1:
            return lambda: layer(x)
        stream, x_t, out = layer.stream(x.shape[1]), x[0], np.empty_like(self._dy[0])
        return lambda: stream.step(x_t, out)

    def results(self, mode: str) -> Arrays:
        layer, x = self._layer, self._x
        if mode == "infer":
            return {"y": layer.stream(x.shape[1]).step(x[0])[None] if len(x) == 1 else layer(x)[0]}
        layer.zero_grad()
        y, _, tape = layer.forward(x)
        dx, _ = layer.backward(tape, self._dy)
        return {"y": y, "dx": dx} | {f"d{name}": gradient for name, gradient in layer.grads.items()}


class Torch(Peer):
    """torch.nn on the CPU. Its speed differs from process to process, by where its memory lies: the best counts."""

    needs = ("torch",)
    processes = 3
    pauses = True

    def __init__(self, cell: str, shape: Shape, data: Mapping[str, Array], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        layers: dict[str, Any] = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
        self._torch = torch
        self._layer = layers[cell](shape.input_size, shape.hidden_size, shape.num_layers)
        self._layer.load_state_dict({name: torch.from_numpy(array) for name, array in weights_of(data).items()})
        self._x, self._dy = torch.from_numpy(data["x"]), torch.from_numpy(data["dy"])

    def call(self, mode: str) -> Callable[[], object]:
        torch, layer, x, dy = self._torch, self._layer, self._x, self._dy
        if mode == "train":
            leaf = x.clone().requires_grad_()

            def train() -> object:
                leaf.grad = None
                y, _ = layer(leaf)
                y.backward(dy)
                return y

            return train

        state = None

        def infer() -> object:
            with torch.inference_mode():
                return layer(x)

        def step() -> None:
            nonlocal state
            with torch.inference_mode():
                _, state = layer(x, state)

        return step if len(x) == 1 else infer

    def results(self, mode: str) -> Arrays:
        layer = self._layer
        if mode == "infer":
            with self._torch.inference_mode():
                return {"y": layer(self._x)[0].numpy()}
        layer.zero_grad(set_to_none=True)
        leaf = self._x.clone().requires_grad_()
        y, _ = layer(leaf)
        y.backward(self._dy)
        gradients = {f"d{name}": parameter.grad.numpy() for name, parameter in layer.named_parameters()}
        dx: Any = leaf.grad
        return {"y": y.detach().numpy(), "dx": dx.numpy()} | gradients


class _Onnx(Peer):
    """What the runtimes of ONNX models share. They start each call from zeros, also with single steps."""

    modes = ("infer",)
    _infer: Callable[[], Array]

    def call(self, mode: str) -> Callable[[], object]:
        return self._infer

    def results(self, mode: str) -> Arrays:
        return {"y": np.array(self._infer())}


class OnnxRuntime(_Onnx):
    needs = ("onnx", "onnxruntime")

    def __init__(self, cell: str, shape: Shape, data: Mapping[str, Array], threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        model = onnx_model(cell, shape, weights_of(data))
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = {"x": data["x"]}
        self._infer = lambda: session.run(None, feed)[0]


class OpenVino(_Onnx):
    needs = ("onnx", "openvino")

    def __init__(self, cell: str, shape: Shape, data: Mapping[str, Array], threads: int) -> None:
        import openvino

        core = openvino.Core()
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # on some CPUs it would take bfloat16
        }
        model = core.compile_model(core.read_model(onnx_model(cell, shape, weights_of(data))), "CPU", options)
        request = model.create_infer_request()
        x = data["x"]  # the tensor does not own it
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

        def infer() -> Array:
            request.infer()
            return request.get_output_tensor().data.reshape((*x.shape[:2], shape.hidden_size))

        self._infer = infer


class Numpy(Peer):
    """`fastrnn.reference` in float32: what one writes without a library."""

    most_flops = NUMPY_FLOPS

    def __init__(self, cell: str, shape: Shape, data: Mapping[str, Array], threads: int) -> None:
        self._args = CELLS[cell], data, shape.num_layers, np.float32

    def call(self, mode: str) -> Callable[[], object]:
        return lambda: reference_results(*self._args, mode)

    def results(self, mode: str) -> Arrays:
        return reference_results(*self._args, mode)


PEERS: dict[str, type[Peer]] = {
    "fastrnn": Fastrnn,
    "torch": Torch,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "numpy": Numpy,
}


def reference_results(cell: str, data: Mapping[str, Array], num_layers: int, dtype: Any, mode: str) -> Arrays:
    """What a peer's `results` should be, computed by `fastrnn.reference` in this dtype."""
    from .. import reference

    y, _, tape = reference.forward(cell, data["x"], weights_of(data), num_layers=num_layers, dtype=dtype)
    if mode == "infer":
        return {"y": y}
    dx, _, gradients = reference.backward(tape, data["dy"])
    assert dx is not None
    return {"y": y, "dx": dx} | {f"d{name}": gradient for name, gradient in gradients.items()}


def missing_modules(name: str) -> list[str]:
    """What must be installed before this peer can take part."""
    return [module for module in PEERS[name].needs if not _found(module)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # loaded in an unusual way, without a spec
        return False


def takes_part(name: str, cell: str, shape: Shape, mode: str) -> bool:
    """Whether the peer has this mode and can do it in a reasonable time."""
    peer = PEERS[name]
    return mode in peer.modes and flops(cell, shape, mode) <= peer.most_flops


# ---------------------------------------------------------------------------------------------------------------------
# The ONNX model: one node per layer, with x (T, B, I) and y (T, B, H) as everywhere here.
# ---------------------------------------------------------------------------------------------------------------------

#: The place of each ONNX gate among fastrnn's: i o f c of i f g o, and z r h of r z n.
_ONNX_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


def onnx_model(cell: str, shape: Shape, weights: Mapping[str, Array]) -> bytes:
    """The stack as a serialized ONNX model with input x and output y of fixed sizes."""
    from onnx import TensorProto, checker, helper, numpy_helper

    T, B, I, H = shape.seq_len, shape.batch, shape.input_size, shape.hidden_size  # noqa: E741

    def in_onnx_order(array: Array) -> Array:
        gates = array.reshape(GATES[cell], H, *array.shape[1:])
        return np.ascontiguousarray(gates[list(_ONNX_GATES[cell])].reshape(array.shape)[None])  # of one direction

    nodes, constants, below = [], [numpy_helper.from_array(np.array([1]), "axes")], "x"
    # The reset gate of a GRU acts after the recurrent product, as in torch.
    options: dict[str, Any] = {"hidden_size": H} | ({"linear_before_reset": 1} if cell == "gru" else {})
    for layer in range(shape.num_layers):
        w_ih, w_hh, b_ih, b_hh = (
            in_onnx_order(weights[f"{kind}_l{layer}"]) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        arrays = {"W": w_ih, "R": w_hh, "B": np.concatenate([b_ih, b_hh], axis=1)}
        constants += [numpy_helper.from_array(array, f"{name}{layer}") for name, array in arrays.items()]
        above = "y" if layer == shape.num_layers - 1 else f"y{layer}"
        inputs = [below, *(f"{name}{layer}" for name in arrays)]
        nodes.append(helper.make_node(cell.upper(), inputs, [f"directions{layer}"], **options))
        nodes.append(helper.make_node("Squeeze", [f"directions{layer}", "axes"], [above]))  # (T, 1, B, H) -> (T, B, H)
        below = above
    graph = helper.make_graph(
        nodes,
        cell,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [T, B, I])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [T, B, H])],
        constants,
    )
    # An old version of the format, which every runtime of the last years reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()
