"""Arrays in the safetensors format, from NumPy alone: the length of a header, the header, then the arrays' bytes.

The header is a JSON object of each array's name to ``dtype``, ``shape`` and ``data_offsets``, where its bytes begin and
end after the header. Numbers are little-endian, arrays C-contiguous and without gaps. Nothing in a file is code.

Source: https://huggingface.co/docs/safetensors; its library of the same name, which is not needed here, reads and
writes the same files.
"""

from __future__ import annotations

import io
import json
import math
import reprlib
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes, that of the library
_MOST_AXES = 32  # those of NumPy 1
_METADATA = "__metadata__"  # the one name in a header that is no array's


def save(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Write ``arrays``, of any shapes and strides, to ``file``.

    Raises:
        TypeError: a dtype that the format, or this table of it, has not. ValueError: a name that a file cannot hold.

    Example:
        >>> import io
        >>> import numpy as np
        >>> from fastrnn.models import safetensors
        >>> file = io.BytesIO()
        >>> safetensors.save(file, {"bias": np.arange(3, dtype=np.float32)})
        >>> safetensors.load(file)
        {'bias': array([0., 1., 2.], dtype=float32)}
    """
    # Larger items first: each array then begins at a multiple of its item size, and can be mapped as it lies there.
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    header, end = {}, 0
    for name, array in ordered:
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            listed = ", ".join(each.name for each in _NAMES)
            raise TypeError(f"safetensors.save: {name!r} must have a dtype of {listed}, got {array.dtype}")
        if name == _METADATA:
            raise ValueError(f"safetensors.save: an array must have another name than {name!r}")
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[dtype], "shape": array.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, array in ordered:
        file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)  # a copy only where it must be


def load(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays that ``file`` holds, of this machine's byte order; a one-line ValueError when it is damaged."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise ValueError(f"its header has {length} bytes, the file {size}")
    header = _header(file.read(length))
    entries = sorted((_entry(name, value) for name, value in header.items()), key=lambda entry: entry[:2])
    position = 0
    for begin, end, name, _, _ in entries:
        if begin != position:
            raise ValueError(f"array {name!r} must begin at byte {position} of the data, got {begin}")
        position = end
    if position != size - 8 - length:
        raise ValueError(f"its arrays have {position} bytes, the file {size - 8 - length} for them")
    return {
        # From its bytes to an array that can be written to.
        name: np.frombuffer(file.read(end - begin), dtype).reshape(shape).astype(dtype.newbyteorder("="))
        for begin, end, name, dtype, shape in entries
    }


def _header(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        if not text.startswith(b"{"):
            raise ValueError("no {")
        header: dict[str, Any] = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not a JSON object ({error})") from None
    header.pop(_METADATA, None)
    return header


def _entry(name: str, value: Any) -> tuple[int, int, str, np.dtype, list[int]]:
    """Begin, end, name, dtype and shape of an array, which fit each other."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"array {name!r} must have dtype, shape and data_offsets, got {reprlib.repr(value)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"array {name!r} must have a dtype of {', '.join(_DTYPES)}, got {reprlib.repr(dtype)}")
    itemsize = _DTYPES[dtype].itemsize
    # NumPy bounds the sizes of an empty array as if it were not empty.
    if not _sizes(shape, _MOST_AXES) or math.prod(max(each, 1) for each in shape) * itemsize > sys.maxsize:
        raise ValueError(f"array {name!r} must have the shape of an array, got {reprlib.repr(shape)}")
    nbytes = math.prod(shape) * itemsize
    if not _sizes(offsets, 2) or len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
        raise ValueError(f"array {name!r} must have data_offsets {nbytes} bytes apart, got {reprlib.repr(offsets)}")
    return offsets[0], offsets[1], name, _DTYPES[dtype], shape


def _sizes(value: Any, most: int) -> bool:
    """Whether JSON holds a list of integers >= 0, which booleans are not."""
    return isinstance(value, list) and len(value) <= most and all(type(each) is int and each >= 0 for each in value)
