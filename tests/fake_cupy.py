"""A stand-in for CuPy where there is no GPU: as much of its interface as fastrnn uses, in NumPy's memory.

What would read a GPU's memory from the host raises, but for ``get``; streams, the order of their work and the devices
of arrays are recorded. ``Elsewhere`` stands for any other library that exchanges arrays by DLPack.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import sys
import types

import numpy as np

DEVICES = 2


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    def __init__(self, values, device=None):
        self._values = values
        self.device = cuda.Device(cuda.Device().id if device is None else device)

    def _like(self, values):
        return ndarray(values, self.device.id) if isinstance(values, np.ndarray) else values

    dtype = property(lambda self: self._values.dtype)
    shape = property(lambda self: self._values.shape)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    nbytes = property(lambda self: self._values.nbytes)
    strides = property(lambda self: self._values.strides)
    T = property(lambda self: self._like(self._values.T))

    @property
    def flags(self):
        return types.SimpleNamespace(c_contiguous=self._values.flags.c_contiguous)

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self._values.ctypes.data)

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "data": (self.data.ptr, False), "version": 3}

    def __dlpack__(self, **options):
        raise AssertionError("to be taken by from_dlpack of a fake")

    def __dlpack_device__(self):
        return 2, self.device.id

    def __len__(self):
        return len(self._values)

    def __getitem__(self, key):
        return self._like(self._values[_plain(key)])

    def __setitem__(self, key, value):
        self._on_its_device()
        assert not isinstance(value, np.ndarray), "CuPy takes no NumPy array here"
        self._values[_plain(key)] = _plain(value)

    def __array__(self, *_, **__):
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __bool__(self):
        raise AssertionError("reads the GPU's memory")

    __int__ = __index__ = __bool__

    def __float__(self):
        if not cuda.may_wait:
            raise AssertionError("reads the GPU's memory")
        return float(self._values)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        assert method == "__call__"
        self._on_its_device()
        results = None if out is None else tuple(map(_plain, out))
        assert not any(isinstance(value, np.ndarray) for value in (*inputs, *(out or ())))
        values = ufunc(*map(_plain, inputs), out=results, **options)
        return self._like(np.asarray(values)) if out is None else out[0]

    def __array_function__(self, function, kinds, args, options):
        assert function in (np.zeros_like, np.empty_like)
        return self._like(function(*map(_plain, args), **options))

    def sum(self, **options):
        return self._like(np.asarray(self._values.sum(**options)))

    def max(self):
        return self._like(np.asarray(self._values.max()))

    def reshape(self, *shape):
        return self._like(self._values.reshape(*shape))

    def swapaxes(self, *axes):
        return self._like(self._values.swapaxes(*axes))

    def astype(self, dtype, copy=True):
        return self._like(self._values.astype(dtype, copy=copy))

    def copy(self, order="C"):
        self._on_its_device()
        return self._like(self._values.copy(order))

    def get(self):
        if cuda.get_current_stream().capturing:
            raise AssertionError("waits while a graph is captured")
        return self._values.copy()

    def _on_its_device(self):
        assert cuda.Device().id == self.device.id, "a kernel on an array of another device"


def _plain(value):
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value._values if isinstance(value, ndarray) else value


class _Standard:
    """The functions of the array API standard on these arrays, by NumPy's, whose memory theirs is."""

    _numpys = types.MappingProxyType({"astype": lambda array, dtype: array.astype(dtype)})

    def __getattr__(self, name):
        function = self._numpys.get(name) or getattr(np, name)

        def call(*args, **options):
            arrays = [value for value in (*args, *options.values()) if isinstance(value, ndarray)]
            assert not any(isinstance(value, np.ndarray) for value in args), "CuPy takes no NumPy array here"
            for array in arrays:
                array._on_its_device()
            return ndarray(np.asarray(function(*map(_plain, args), **options)))

        return call


STANDARD = _Standard()


class _Stream:
    capturing = False

    def __init__(self, ptr=0, device_id=-1):
        self.ptr, self.device_id = ptr, device_id

    @contextlib.contextmanager
    def __call__(self):
        before, cuda.current = cuda.current, self
        try:
            yield self
        finally:
            cuda.current = before

    def is_capturing(self):
        return self.capturing

    def record(self, event=None):
        event.stream = self.ptr
        return event

    def wait_event(self, event):
        cuda.waits.append((self.ptr, event.stream))


class _Device:
    index = 0
    mem_info = 2**40, 2**40  # free and total

    def __init__(self, index=None):
        self.id = _Device.index if index is None else index

    def __enter__(self):
        self._before, _Device.index = _Device.index, self.id
        return self

    def __exit__(self, *_):
        _Device.index = self._before


class _Event:
    def __init__(self, disable_timing=False):
        self.stream = None


class _RuntimeError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


cuda = types.SimpleNamespace(
    Device=_Device,
    Stream=_Stream,
    ExternalStream=_Stream,
    Event=_Event,
    current=_Stream(),
    waits=[],  # (waiting, awaited) handles
    allocations_left=None,
    may_wait=False,
    get_current_stream=lambda: cuda.current,
    runtime=types.SimpleNamespace(getDeviceCount=lambda: DEVICES, CUDARuntimeError=_RuntimeError),
)


def empty(shape, dtype="float64"):
    if cuda.allocations_left is not None:
        if not cuda.allocations_left:
            raise OutOfMemoryError("Out of memory allocating 1 bytes")
        cuda.allocations_left -= 1
    values = np.empty(shape, dtype)
    values.view(np.uint8).reshape(-1)[:] = 0xFF if values.size else 0  # NaN in every dtype
    return ndarray(values)


def array(values, dtype=None, order="C"):
    made = empty(np.shape(values), np.asarray(_plain(values)).dtype if dtype is None else dtype)
    made._values[...] = _plain(values)
    return made


def from_dlpack(value):
    if isinstance(value, Elsewhere):
        value.log.append(("to cupy", cuda.current.ptr, _Device.index))
        return ndarray(value.values, value.device_id)
    if isinstance(value, ndarray):
        return value
    import torch

    return ndarray(torch.Tensor.numpy(value), 0)


class Elsewhere:
    """An array of a library that knows nothing of CuPy but DLPack."""

    log: list = []  # noqa: RUF012

    def __init__(self, values, device_id=0, kind=2):
        self.values, self.device_id, self.kind = values, device_id, kind

    def __dlpack__(self, *, stream=None, **_):
        raise AssertionError("to be taken by from_dlpack of a fake")

    def __dlpack_device__(self):
        return self.kind, self.device_id

    def __array_namespace__(self):
        return types.SimpleNamespace(from_dlpack=Elsewhere._import)

    @staticmethod
    def _import(array):
        Elsewhere.log.append(("from cupy", cuda.current.ptr, _Device.index))
        return Elsewhere(array._values, array.device.id)


def module():
    """What ``import cupy`` shall give."""
    found = types.ModuleType("cupy")
    found.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    found.__version__ = "0"
    names = ("ndarray", "cuda", "empty", "array", "from_dlpack")
    for name in names:
        setattr(found, name, getattr(sys.modules[__name__], name))
    ndarray.__module__ = "cupy"
    return found
