"""What a recurrent stack is: its cell, sizes and dtype, and the weights that follow from them.

A ``Spec`` is made once per combination and shared; it is what every check and every call into ``_core`` starts from.
Device, dtype and seed are checked here too; plain arguments in ``checks``, the arrays of a call in ``validation``.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from . import _core, config
from .arrays import HOST, Arrays, type_name

#: Rows of w_ih and w_hh per hidden unit.
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}

#: Values per hidden unit and step that forward keeps for backward: gates, h's part of n in a GRU, c of an LSTM.
_KEPT = {"lstm": 5, "gru": 4, "rnn_tanh": 1, "rnn_relu": 1}
#: The most time steps and rows of a batch that ``_core`` counts.
MAX_COUNT = 2**31 - 1
_SURELY_FITS = 2**20  # elements, as all the arrays of a small call

_CPU_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "float64": np.dtype(np.float64)}
_CUDA_DTYPES = ("float16", "bfloat16")
# What Python and NumPy spend on an array besides its elements; matters only for absurd numbers of layers.
_BYTES_PER_ARRAY = 512


class Spec:
    """One recurrent stack on one device: immutable, cheap to share; made by ``make_spec``.

    ``shapes`` lists (name, shape) of every weight in the order in which ``_core`` takes them. ``label`` is how error
    messages call the cell. ``kernels`` are what computes, ``_core`` or what has its functions; ``arrays`` theirs.
    """

    __slots__ = (
        "_kept_size",
        "_most_elements",
        "_state_elements",
        "arrays",
        "bias",
        "bidirectional",
        "cell",
        "directions",
        "dtype",
        "has_c",
        "hidden_size",
        "input_size",
        "kernels",
        "label",
        "names",
        "num_layers",
        "num_states",
        "output_size",
        "problem",
        "proj_size",
        "shapes",
        "state_size",
    )  # fmt: skip

    def __init__(
        self,
        cell: str,
        dtype: np.dtype[Any],
        input_size: int,
        hidden_size: int,
        proj_size: int,
        num_layers: int,
        bidirectional: bool,
        bias: bool,
    ) -> None:
        self.cell = cell
        self.label = label_of(cell)
        self.dtype = dtype
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.proj_size = proj_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.bias = bias
        self.directions = 2 if bidirectional else 1
        self.state_size = proj_size or hidden_size
        self.output_size = self.directions * self.state_size
        self.num_states = num_layers * self.directions
        self.has_c = cell == "lstm"
        self._kept_size = self._kept_elements()
        self._state_elements = self.num_states * (self.state_size + (hidden_size if self.has_c else 0))
        self._most_elements = max(self.output_size + self._kept_size + input_size, self._state_elements)
        self.kernels, self.arrays = self._device()
        self.check_allocatable("weights and gradients", 2 * self._weight_bytes(), hint=self._sizes())
        self.shapes = tuple(self._weight_shapes())
        self.names = tuple(name for name, _ in self.shapes)
        self.problem = self.kernels.Problem(
            cell, dtype.name, input_size, hidden_size, proj_size, num_layers, bidirectional, bias
        )

    def _device(self) -> tuple[Any, Arrays]:
        return _core, HOST

    def __reduce__(self) -> tuple[Any, ...]:
        return make_spec, (
            self.cell, self.dtype, self.input_size, self.hidden_size, self.proj_size, self.num_layers,
            self.bidirectional, self.bias,
        )  # fmt: skip

    def check_allocatable(self, what: str, size: int, hint: str) -> None:
        """Refuses ``size`` bytes before anything is allocated: where memory is overcommitted, asking would succeed and
        using it would end the process."""
        limit = self._memory()
        if size > limit:
            raise ValueError(
                f"{self.label}: {hint} cannot be allocated: {what} need {size} bytes, available are {limit}"
            )

    def _memory(self) -> int:
        """The most bytes that could ever be allocated."""
        return _memory_limit()

    def check_call(
        self, seq_len: int, batch: int, x: np.ndarray, lengths: np.ndarray | None, training: bool, inputs: int | None
    ) -> None:
        """Refuses more steps and rows than can be counted or of which memory could never hold what the call makes.

        That is y, the states, a copy of x where one is needed and, training, the kept activations; a little less than
        what is allocated in the end, which has room for padding and workspaces.
        """
        rows = seq_len * batch
        if (rows + seq_len + batch + (inputs or 0)) * self._most_elements <= _SURELY_FITS:
            return
        elements = rows * self.output_size + batch * self._state_elements
        if training:
            elements += rows * self._kept_size
        if inputs is not None:  # each one's part of the first layer's gates
            elements += inputs * GATES[self.cell] * self.hidden_size
        if not x.flags.c_contiguous:
            elements += x.size
        size = elements * self.dtype.itemsize
        if seq_len > MAX_COUNT or batch > MAX_COUNT:
            raise ValueError(f"{self.label}: x must have T and B of at most {MAX_COUNT}, got T={seq_len}, B={batch}")
        if inputs is not None and inputs > MAX_COUNT:
            raise ValueError(f"{self.label}: x must have at most U={MAX_COUNT} rows, got {inputs}")
        if size > _memory_limit():
            if training and lengths is not None:  # steps past a row's end are not kept
                size -= (rows - int(lengths.sum())) * self._kept_size * self.dtype.itemsize
            self.check_allocatable("results", size, self.describe_call(seq_len, batch, inputs))

    def describe_call(self, seq_len: int, batch: int, inputs: int | None) -> str:
        of_index = "" if inputs is None else f"U={inputs}, index of "
        return f"a call with x of {of_index}T={seq_len}, B={batch}, input_size={self.input_size}"

    def refuse(self, what: str) -> None:
        """In the place of a MemoryError."""
        raise ValueError(f"{self.label}: {what} cannot be allocated: no memory left") from None

    def _kept_elements(self) -> int:
        # With a projection, what it projects is kept too; y of the last layer is the caller's.
        per_layer = (_KEPT[self.cell] + bool(self.proj_size)) * self.hidden_size * self.directions
        return self.num_layers * per_layer + (self.num_layers - 1) * self.output_size

    def _sizes(self) -> str:
        sizes = f"input_size={self.input_size}, hidden_size={self.hidden_size}, num_layers={self.num_layers}"
        return sizes + (f", proj_size={self.proj_size}" if self.proj_size else "")

    def _weight_bytes(self) -> int:
        # In closed form: num_layers itself may be absurd.
        gates = GATES[self.cell]
        shared = gates * self.hidden_size * self.state_size + self.proj_size * self.hidden_size
        if self.bias:
            shared += 2 * gates * self.hidden_size
        inputs = self.input_size + (self.num_layers - 1) * self.output_size
        elements = self.directions * (self.num_layers * shared + gates * self.hidden_size * inputs)
        arrays = self.num_states * (2 + 2 * self.bias + bool(self.proj_size))
        return elements * self.dtype.itemsize + arrays * _BYTES_PER_ARRAY

    def _weight_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        rows = GATES[self.cell] * self.hidden_size
        for layer in range(self.num_layers):
            inputs = self.output_size if layer else self.input_size
            for suffix in (f"l{layer}", f"l{layer}_reverse")[: self.directions]:
                yield f"weight_ih_{suffix}", (rows, inputs)
                yield f"weight_hh_{suffix}", (rows, self.state_size)
                if self.bias:
                    yield f"bias_ih_{suffix}", (rows,)
                    yield f"bias_hh_{suffix}", (rows,)
                if self.proj_size:
                    yield f"weight_hr_{suffix}", (self.proj_size, self.hidden_size)


@functools.lru_cache(maxsize=128)
def make_spec(
    cell: str,
    dtype: np.dtype[Any],
    input_size: int,
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    place: tuple[str, int] | None = None,
) -> Spec:
    """The Spec of checked arguments; the same object for the same ones. place: the library that holds the weights on a
    GPU, and its number."""
    if place is not None:
        from .cuda.spec import DeviceSpec

        return DeviceSpec(place, cell, dtype, input_size, hidden_size, proj_size, num_layers, bidirectional, bias)
    return Spec(cell, dtype, input_size, hidden_size, proj_size, num_layers, bidirectional, bias)


def spec_from_weights(cell: str, weights: Mapping[str, np.ndarray]) -> Spec:
    """Reads the whole stack off a mapping of weights. Only what the sizes are read from is checked here."""
    if not isinstance(cell, str) or cell not in GATES:
        raise ValueError(f"cell must be one of {', '.join(map(repr, GATES))}, got {cell!r}")
    label = label_of(cell)
    if not isinstance(weights, Mapping):
        raise TypeError(f"{label}: weights must be a mapping of names to arrays, got {type(weights).__name__}")
    proj = cell == "lstm" and "weight_hr_l0" in weights
    gates = GATES[cell]
    for name in ("weight_ih_l0", "weight_hh_l0") + ("weight_hr_l0",) * proj:
        if name not in weights:
            raise ValueError(f"{label}: weights must hold {name!r}, got only {sorted(map(str, weights))}")
        w = weights[name]
        if not isinstance(w, np.ndarray) and _place_of(w) is None:
            raise TypeError(f"{label}: weights[{name!r}] must be a numpy array, got {type_name(w)}")
        if w.ndim != 2 or 0 in w.shape or (name != "weight_hr_l0" and w.shape[0] % gates):
            rows = "proj_size" if name == "weight_hr_l0" else f"{gates}*hidden_size" if gates > 1 else "hidden_size"
            raise ValueError(
                f"{label}: weights[{name!r}] must be a matrix with {rows} rows, got shape {tuple(w.shape)}"
            )
    w_ih, w_hh = weights["weight_ih_l0"], weights["weight_hh_l0"]
    place = _place_of(w_ih)
    if place is not None:
        from .cuda.spec import dtype_of_weight

        dtype = dtype_of_weight(label, "weights['weight_ih_l0']", w_ih)
    elif w_ih.dtype not in _CPU_DTYPES.values():
        raise TypeError(
            f"{label}: weights['weight_ih_l0'] must have dtype float32 or float64 (native), got {w_ih.dtype.str!r}"
        )
    else:
        dtype = w_ih.dtype
    hidden_size = w_hh.shape[0] // gates
    proj_size = weights["weight_hr_l0"].shape[0] if proj else 0
    if proj_size >= hidden_size:
        raise ValueError(
            f"{label}: weights['weight_hr_l0'] must have fewer than hidden_size={hidden_size} rows, got {proj_size}"
        )
    num_layers = 1
    while f"weight_ih_l{num_layers}" in weights:
        num_layers += 1
    return make_spec(
        cell, dtype, w_ih.shape[1], hidden_size, proj_size, num_layers,
        "weight_ih_l0_reverse" in weights, "bias_ih_l0" in weights, place,
    )  # fmt: skip


def _place_of(array: Any) -> tuple[str, int] | None:
    """Whose array it is, and on which GPU; None where it is on none, or cannot hold weights."""
    if isinstance(array, np.ndarray):
        return None
    from .cuda.spec import place_of

    return place_of(array)


def label_of(cell: str) -> str:
    """What error messages call a cell: "rnn" for both of its kinds."""
    return cell.partition("_")[0]


def check_device(label: str, device: Any) -> int | None:
    """None for "cpu", else the number of a GPU, which is there, with all that layers need on it."""
    if not isinstance(device, str):
        raise TypeError(f"{label}: device must be a string, 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    kind, colon, index = device.partition(":")
    if kind == "cuda" and (not colon or (index.isascii() and index.isdigit())):
        missing = config.missing_for_cuda()
        if not missing:
            from .cuda.spec import find_device

            found, missing = find_device(int(index) if colon else None)
            if not missing:
                return found
        raise RuntimeError(f"{label}: device {device!r} is not available: {'; '.join(missing)}")
    if device != "cpu":
        raise ValueError(f"{label}: device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    return None


def device_arrays(label: str, device: Any) -> Arrays:
    """The arrays of a ``device`` argument."""
    index = check_device(label, device)
    if index is None:
        return HOST
    from .cuda.arrays import on_device

    return on_device("cupy", index)


def check_dtype(label: str, dtype: Any, index: int | None = None) -> Any:
    """A dtype by name, NumPy type or np.dtype: float32 or float64, on a GPU also float16 or bfloat16."""
    expected = "'float32' or 'float64'" if index is None else "'float32', 'float64', 'float16' or 'bfloat16'"
    if isinstance(dtype, str) and dtype in _CUDA_DTYPES:
        name = dtype  # NumPy itself does not know bfloat16
    else:
        try:
            if dtype is None:  # would mean float64 to NumPy
                raise TypeError
            name = str(np.dtype(dtype).name)
        except (TypeError, ValueError):
            kind = ValueError if isinstance(dtype, str) else TypeError
            raise kind(f"{label}: dtype must be {expected}, got {dtype!r}") from None
        if name in _CPU_DTYPES and not np.dtype(dtype).isnative:
            raise ValueError(f"{label}: dtype must have native byte order, got {dtype!r}")
    if name in _CPU_DTYPES:
        return _CPU_DTYPES[name]
    if name not in _CUDA_DTYPES:
        raise ValueError(f"{label}: dtype must be {expected}, got {dtype!r}")
    if index is None:
        raise ValueError(f"{label}: dtype {name} is for CUDA only; on the CPU it must be 'float32' or 'float64'")
    from .cuda.spec import half_dtype

    return half_dtype(label, name)


def check_generator(label: str, seed: Any) -> np.random.Generator:
    try:
        if isinstance(seed, (bool, np.bool_)):
            raise TypeError
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{label}: seed must be None, an integer >= 0 or what numpy.random.default_rng takes, got {seed!r}"
        ) from None


@functools.cache
def _memory_limit() -> int:
    """Bytes that this process could ever have: of the machine, the container, the address space."""
    limit = sys.maxsize
    if hasattr(os, "sysconf"):
        try:
            physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            limit = min(limit, physical) if physical > 0 else limit
        except (ValueError, OSError):
            pass
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as file:
                text = file.read().strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdigit() and int(text) > 0:
            limit = min(limit, int(text))
    return limit
