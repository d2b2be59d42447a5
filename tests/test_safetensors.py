"""The safetensors format: what is written comes back, the library agrees, and nothing damaged is read."""

from __future__ import annotations

import contextlib
import io
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from fastrnn.models import safetensors

DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
LAYOUTS = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "reversed": lambda a: a[::-1] if a.ndim else a,
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "one number": lambda a: np.broadcast_to(a.reshape(-1)[0], a.shape) if a.size else a,
}


@st.composite
def arrays(draw):
    """Of any kind, with any bits: NaN and infinity too."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    size = int(np.prod(shape))
    raw = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).bytes(size * dtype.itemsize)
    bits = np.frombuffer(raw, np.uint8)
    if dtype.kind == "b":
        bits = bits & 1
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](bits.view(dtype).reshape(shape))


NAMES = st.text('ab.é"\\\n\0\U0001f600', max_size=8)
DICTS = st.dictionaries(NAMES, arrays(), max_size=5)


def saved(state):
    file = io.BytesIO()
    safetensors.save(file, state)
    return file.getvalue()


def load(content):
    return safetensors.load(io.BytesIO(content))


def parts(content):
    """The header as a dict and the data behind it."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def joined(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def assert_equal(got, expected):
    """To the bit, in this machine's byte order."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        native = array.astype(array.dtype.newbyteorder("="))
        assert got[name].dtype == native.dtype
        assert got[name].shape == native.shape
        assert got[name].tobytes() == native.tobytes()


# -- round trips -------------------------------------------------------------------------------------------------------


@given(DICTS)
def test_round_trip(state):
    content = saved(state)
    loaded = load(content)
    assert_equal(loaded, state)
    assert all(a.flags.writeable and a.flags.c_contiguous and a.dtype.isnative for a in loaded.values())
    assert saved(loaded) == content
    header, _ = parts(content)
    assert int.from_bytes(content[:8], "little") % 8 == 0
    for name, entry in header.items():
        assert entry["data_offsets"][0] % state[name].itemsize == 0


@given(DICTS)
def test_the_library_reads_what_is_written(state):
    library = pytest.importorskip("safetensors.numpy")
    assert_equal(library.load(saved(state)), state)


@given(DICTS, st.none() | st.dictionaries(NAMES, NAMES, max_size=2))
def test_what_the_library_writes_is_read(state, metadata):
    library = pytest.importorskip("safetensors.numpy")
    plain = {name: np.array(array, array.dtype.newbyteorder("="), order="C") for name, array in state.items()}
    # With empty metadata and no arrays, the library (0.8) writes what it cannot read itself.
    assert_equal(load(library.save(plain, metadata or None)), state)


def test_the_bytes_of_a_file():
    content = saved({"b": np.array([1, -1], np.int32), "a": np.float64(1)})
    header = b'{"a":{"dtype":"F64","shape":[],"data_offsets":[0,8]},'
    header += b'"b":{"dtype":"I32","shape":[2],"data_offsets":[8,16]}}'
    header += b" " * (-len(header) % 8)
    assert content == joined(header, bytes.fromhex("000000000000f03f 01000000 ffffffff"))
    assert saved({}) == joined(b"{}      ")
    assert load(saved({})) == {}


def test_saving_takes_no_second_copy():
    class Sink:
        def write(self, data):
            pass

    state = {"a": np.zeros((1000, 300), np.float32), "b": np.zeros(1000)}
    tracemalloc.start()
    try:
        safetensors.save(Sink(), state)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < state["a"].nbytes / 4


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.array([None]), np.array(["a"]), np.zeros(1, "c16"), np.zeros(1, "i4,f4")])
def test_save_refuses_other_dtypes(value):
    file = io.BytesIO()
    with pytest.raises(TypeError, match=r"^safetensors\.save: 'x' must have a dtype of float64, .*, bool") as caught:
        safetensors.save(file, {"a": np.zeros(2), "x": value})
    assert str(caught.value).endswith(f"got {value.dtype}")
    assert file.getvalue() == b""


@pytest.mark.parametrize(
    ("name", "message"), [("__metadata__", "must have another name than '__metadata__'"), ("\ud800", "surrogates")]
)
def test_save_refuses_names_that_the_format_has_not(name, message):
    file = io.BytesIO()
    with pytest.raises(ValueError, match=message):
        safetensors.save(file, {name: np.zeros(2)})
    assert file.getvalue() == b""


def refused(content, message=None):
    with pytest.raises(ValueError, match=message) as caught:
        load(content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


SMALL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros((0, 4)), "one": np.array(True)}


def test_a_file_that_is_cut_or_longer_is_refused():
    content = saved(SMALL)
    for length in range(len(content)):
        refused(content[:length])
    refused(content + b"\0", "its arrays have 25 bytes, the file 26 for them")
    refused(b"", "its header has 0 bytes, the file 0")


@pytest.mark.parametrize("length", [0, 1, 7, 2**31, 100_000_001, 2**63, 2**64 - 1])
def test_another_header_length_is_refused(length):
    refused(length.to_bytes(8, "little") + saved(SMALL)[8:], "its header")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b" {}", b"{}x", b"\xff", b'{"\xff": 1}', b'{"a": nul}', b"\xef\xbb\xbf{}",
     "{}".encode("utf-16"), b'{"a":' * 100_000, b'{"a": {}, "a": {}}', b'{"__metadata__": {"a": "", "a": ""}}',
     b'{"a": {"dtype": "U8", "dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'],
)  # fmt: skip
def test_a_header_that_is_no_json_object_is_refused(text):
    refused(joined(text), "its header is not a JSON object")


def entry(dtype="F32", shape=(2, 3), data_offsets=(0, 24), **other):
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets, **other}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "must have dtype, shape and data_offsets"),
        ([], "must have dtype, shape and data_offsets"),
        ({"dtype": "F32", "shape": [2, 3]}, "must have dtype, shape and data_offsets"),
        (entry(strides=[3, 1]), "must have dtype, shape and data_offsets"),
        (entry(dtype="F33"), "must have a dtype of F64, F32, .*, got 'F33'"),
        (entry(dtype="BF16", shape=(12,)), "must have a dtype of"),
        (entry(dtype=["F32"]), "must have a dtype of"),
        (entry(dtype="F" * 10_000), "must have a dtype of"),
        (entry(shape=None), "must have the shape of an array, got None"),
        (entry(shape=6), "must have the shape of an array"),
        (entry(shape=(-2, -3)), "must have the shape of an array"),
        (entry(shape=(2.0, 3)), "must have the shape of an array"),
        (entry(shape=(True, 6)), "must have the shape of an array"),
        (entry(shape=("2", 3)), "must have the shape of an array"),
        (entry(shape=(6,) + (1,) * 32), "must have the shape of an array"),
        (entry(shape=(1,) * 100_000), "must have the shape of an array"),
        (entry(shape=(2**61,)), "must have the shape of an array"),
        (entry(shape=(0, 2**61), data_offsets=(0, 0)), "must have the shape of an array"),
        (entry(shape=(0, 2**100), data_offsets=(0, 0)), "must have the shape of an array"),
        (entry(shape=(2**32, 2**32)), "must have the shape of an array"),  # 0 elements modulo 2^64
        (entry(shape=(2**40,)), "must have data_offsets 4398046511104 bytes apart"),
        (entry(shape=(2, 2)), "must have data_offsets 16 bytes apart"),
        (entry(dtype="F64"), "must have data_offsets 48 bytes apart"),
        (entry(data_offsets=None), "must have data_offsets 24 bytes apart, got None"),
        (entry(data_offsets=(24,)), "must have data_offsets 24 bytes apart"),
        (entry(data_offsets=(0, 24, 48)), "must have data_offsets 24 bytes apart"),
        (entry(data_offsets=(24, 0)), "must have data_offsets 24 bytes apart"),
        (entry(data_offsets=(-24, 0)), "must have data_offsets 24 bytes apart"),
        (entry(data_offsets=(0.0, 24.0)), "must have data_offsets 24 bytes apart"),
        (entry(data_offsets=(8, 32)), "must begin at byte 0 of the data, got 8"),
        (entry(data_offsets=(2**70, 2**70 + 24)), "must begin at byte 0 of the data"),
        (entry(shape=(1, 3), data_offsets=(0, 12)), "its arrays have 12 bytes, the file 24 for them"),
        (entry(shape=(4, 3), data_offsets=(0, 48)), "its arrays have 48 bytes, the file 24 for them"),
    ],
)
def test_a_damaged_entry_is_refused(value, message):
    assert load(joined({"a": entry()}, bytes(24)))["a"].shape == (2, 3)
    refused(joined({"a": value}, bytes(24)), message)


@pytest.mark.parametrize("begin", [0, 4, 20, 25, 28])
def test_arrays_that_overlap_or_leave_a_gap_are_refused(begin):
    header = {"a": entry(), "b": entry(shape=(6,), data_offsets=(24, 48))}
    assert load(joined(header, bytes(48))).keys() == {"a", "b"}
    header["b"] = entry(shape=(6,), data_offsets=(begin, begin + 24))
    refused(joined(header, bytes(max(begin + 24, 24))), f"array 'b' must begin at byte 24 of the data, got {begin}")


def test_a_changed_byte_of_the_header_is_refused_or_as_the_library_reads_it():
    library = pytest.importorskip("safetensors.numpy")
    content = saved({"ab": np.arange(10, dtype=np.uint8), "c": np.zeros((3, 0), np.int8)})
    read = 0
    for place in range(len(content) - 10):
        for byte in range(256):
            changed = content[:place] + bytes([byte]) + content[place + 1 :]
            with contextlib.suppress(ValueError):
                loaded = load(changed)
                assert_equal(library.load(changed), loaded)
                read += 1
    assert read > len(content) - 10  # other names, U8 as I8


@given(st.binary(max_size=80))
def test_any_bytes_are_refused(content):
    refused(content)
    refused(joined(b'{"a":' + content))
