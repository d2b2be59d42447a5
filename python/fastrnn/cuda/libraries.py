"""Libraries that own arrays in a GPU's memory: CuPy, PyTorch, and whatever exchanges arrays by DLPack.

None of them is imported before an array of it has been seen, but for CuPy, which holds the weights of layers.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

_ON_CUDA = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged


class Dtype(NamedTuple):
    """A dtype that NumPy does not know."""

    name: str
    itemsize: int


class Library(ABC):
    """One library's arrays. An array's ``shape``, slices and ``swapaxes`` are the same in all of them."""

    #: As in ``HOMES``, and how messages call one of its arrays.
    name: str
    own: str

    @abstractmethod
    def device(self, array: Any) -> int | None:
        """The number of its GPU; None of what is not on one."""

    @abstractmethod
    def dtype(self, array: Any) -> str: ...

    @abstractmethod
    def address(self, array: Any) -> int: ...

    @abstractmethod
    def nbytes(self, array: Any) -> int: ...

    @abstractmethod
    def is_contiguous(self, array: Any) -> bool: ...

    @abstractmethod
    def copy(self, array: Any) -> Any:
        """C-contiguous."""

    @abstractmethod
    def converted(self, array: Any, dtype: str) -> Any:
        """The array itself, or its numbers in another dtype."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: str, index: int) -> Any: ...

    @abstractmethod
    def upload(self, array: np.ndarray, index: int) -> Any: ...

    @abstractmethod
    def download(self, array: Any) -> np.ndarray: ...

    @abstractmethod
    def memory(self, index: int) -> int:
        """Bytes that a GPU has in all."""

    @abstractmethod
    def on(self, index: int) -> contextlib.AbstractContextManager[int]:
        """Makes the device current; gives the handle of the library's current stream on it."""

    @abstractmethod
    def current(self) -> Any:
        """That stream itself, which lives as long as somebody holds it."""

    @abstractmethod
    def is_capturing(self) -> bool:
        """Whether that stream records a CUDA graph."""

    @abstractmethod
    def wait(self, waiting: int, awaited: int, index: int) -> None:
        """What comes next on one stream starts after what is now on another."""

    def adopted(self, value: Any) -> Any:
        """A number, or another library's array as one of this library."""
        return value

    def take(self, value: Any) -> Any:
        """An argument as an array that kernels can be given the address of."""
        return value

    def give(self, array: Any, like: Any) -> Any:
        """A result as the library of an argument has it."""
        return array


class CuPy(Library):
    name, own = "cupy", "a CuPy array"

    def __init__(self) -> None:
        self.xp = importlib.import_module("cupy")

    def device(self, array: Any) -> int | None:
        return int(array.device.id)

    def dtype(self, array: Any) -> str:
        return str(array.dtype.name)

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def nbytes(self, array: Any) -> int:
        return int(array.nbytes)

    def is_contiguous(self, array: Any) -> bool:
        return array.flags.c_contiguous and array.data.ptr % array.dtype.itemsize == 0

    def copy(self, array: Any) -> Any:
        self._refuse_capture()
        return array.copy(order="C")

    def converted(self, array: Any, dtype: str) -> Any:
        if self.dtype(array) != dtype:
            self._refuse_capture()
        return array.astype(dtype, copy=False)

    def empty(self, shape: tuple[int, ...], dtype: str, index: int) -> Any:
        with self.xp.cuda.Device(index):
            self._refuse_capture()
            return self.xp.empty(shape, numpy_dtype(dtype))

    def upload(self, array: np.ndarray, index: int) -> Any:
        with self.xp.cuda.Device(index):
            self._refuse_capture()
            return self.xp.array(array, order="C")

    def _refuse_capture(self) -> None:
        """A graph would go on using what goes back to CuPy's pool after the call."""
        if self.is_capturing():
            raise RuntimeError(
                "a call that takes memory from CuPy's pool cannot be captured in a CUDA graph, which would use it when "
                "it is another's; capture calls on PyTorch's tensors, in torch.cuda.graph, or stream.step(x_t, out=...)"
            )

    def download(self, array: Any) -> np.ndarray:
        return np.asarray(array.get())

    def memory(self, index: int) -> int:
        return int(self.xp.cuda.Device(index).mem_info[1])

    def adopted(self, value: Any) -> Any:
        return value if isinstance(value, (int, self.xp.ndarray)) else self.xp.from_dlpack(value)

    @contextlib.contextmanager
    def on(self, index: int) -> Iterator[int]:
        with self.xp.cuda.Device(index):
            stream = self.current()
            home = getattr(stream, "device_id", -1)  # -1: the default stream, which every device has
            if home not in (-1, index):
                raise ValueError(f"CuPy's current stream must be one of cuda:{index}, got one of cuda:{home}")
            yield int(stream.ptr)

    def current(self) -> Any:
        return self.xp.cuda.get_current_stream()

    def is_capturing(self) -> bool:
        return bool(self.current().is_capturing())

    def wait(self, waiting: int, awaited: int, index: int) -> None:
        streams = [self.xp.cuda.ExternalStream(handle, index) for handle in (waiting, awaited)]
        streams[0].wait_event(streams[1].record(self.xp.cuda.Event(disable_timing=True)))


class Torch(Library):
    name, own = "torch", "a PyTorch tensor"

    def __init__(self) -> None:
        self.torch = importlib.import_module("torch")

    def device(self, array: Any) -> int | None:
        return int(array.get_device()) if array.is_cuda else None

    def dtype(self, array: Any) -> str:
        return str(array.dtype).removeprefix("torch.")

    def address(self, array: Any) -> int:
        return int(array.data_ptr())

    def nbytes(self, array: Any) -> int:
        return int(array.numel() * array.element_size())

    def is_contiguous(self, array: Any) -> bool:
        return array.is_contiguous() and not array.is_neg() and array.data_ptr() % array.element_size() == 0

    def copy(self, array: Any) -> Any:
        return array.resolve_neg().clone(memory_format=self.torch.contiguous_format)

    def converted(self, array: Any, dtype: str) -> Any:
        return array.to(getattr(self.torch, dtype))

    def empty(self, shape: tuple[int, ...], dtype: str, index: int) -> Any:
        return self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=self._place(index))

    def upload(self, array: np.ndarray, index: int) -> Any:
        # torch wants to write into what it is given.
        tensor = self.torch.from_numpy(array if array.flags.writeable else array.copy())
        # What is pinned would be read later, when its owner may have changed it; what is not is copied away at once.
        return tensor.to(self._place(index), non_blocking=not tensor.is_pinned())

    def download(self, array: Any) -> np.ndarray:
        return np.asarray(array.cpu().numpy())

    def memory(self, index: int) -> int:
        return int(self.torch.cuda.mem_get_info(self._place(index))[1])

    def on(self, index: int) -> contextlib.AbstractContextManager[int]:
        return on_torchs_stream(self._place(index))

    def current(self) -> Any:
        return self.torch.cuda.current_stream()

    def is_capturing(self) -> bool:
        return bool(self.torch.cuda.is_current_stream_capturing())

    def wait(self, waiting: int, awaited: int, index: int) -> None:
        self._stream(waiting, index).wait_event(self._stream(awaited, index).record_event())

    def _stream(self, handle: int, index: int) -> Any:
        cuda, place = self.torch.cuda, self._place(index)
        # To ExternalStream 0 is no handle, and gives a stream of torch's pool.
        return cuda.ExternalStream(handle, place) if handle else cuda.default_stream(place)

    def take(self, value: Any) -> Any:
        return value.detach()

    def _place(self, index: int) -> Any:
        return self.torch.device("cuda", index)


class Exchanged(CuPy):
    """Any other library's: arrays come and go by DLPack, which sees to the order of streams both ways. In between they
    are CuPy's, whose current stream is the one that the producer is told."""

    name = "other"

    def __init__(self, kind: type) -> None:
        try:
            super().__init__()
        except ImportError as error:
            name = kind.__module__.partition(".")[0]
            raise RuntimeError(
                f"arrays of {name} on GPUs pass through CuPy, which cannot be imported: {error}"
            ) from None

    def take(self, value: Any) -> Any:
        kind, index = value.__dlpack_device__()
        if kind not in _ON_CUDA:
            return value
        with self.xp.cuda.Device(index):
            return self.xp.from_dlpack(value)

    def give(self, array: Any, like: Any) -> Any:
        with self.on(index_of(array)):
            return like.__array_namespace__().from_dlpack(array)

    def device(self, array: Any) -> int | None:
        return super().device(array) if isinstance(array, self.xp.ndarray) else None


@functools.cache
def cupy() -> CuPy:
    return CuPy()


@functools.cache
def torch() -> Torch:
    return Torch()


_libraries: dict[type, Library | None] = {}  # by the type of arrays


def _find(kind: type) -> Library | None:
    modules = {base.__module__.partition(".")[0] for base in kind.__mro__}
    if "cupy" in modules and hasattr(kind, "__cuda_array_interface__"):
        return cupy()
    if "torch" in modules and hasattr(kind, "data_ptr"):
        return torch()
    if issubclass(kind, np.ndarray) or not all(
        hasattr(kind, method) for method in ("__dlpack__", "__dlpack_device__", "__array_namespace__")
    ):
        return None
    return Exchanged(kind)


#: Those that can hold weights.
HOMES = {"cupy": cupy, "torch": torch}


def library_of(value: Any) -> Library | None:
    """None of what is no array that could be on a GPU."""
    kind = type(value)
    if kind not in _libraries:
        _libraries[kind] = _find(kind)
    return _libraries[kind]


@contextlib.contextmanager
def on_torchs_stream(device: Any) -> Iterator[int]:
    """Makes a device of torch's the current one; gives the handle of torch's stream there."""
    cuda = importlib.import_module("torch").cuda
    with cuda.device(device):
        yield cuda.current_stream().cuda_stream


def numpy_dtype(name: str) -> Any:
    """As NumPy and CuPy call it."""
    if name != "bfloat16":
        return np.dtype(name)
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16)


def of_array(array: Any) -> Library:
    """The library of what has been through ``check``."""
    library = library_of(array)
    assert library is not None
    return library


def index_of(array: Any) -> int:
    """The number of its GPU."""
    index = of_array(array).device(array)
    assert index is not None
    return index
