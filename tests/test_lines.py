"""Lines of files and streams, whatever their bytes; sentences in flat arrays against lists of them."""

import io
import os
import re
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from errors import params, raised
from fastrnn.models.lines import Sentences, check_aligned, iterate_lines, read_lines

BOM = b"\xef\xbb\xbf"
PARTS = [b"a", b"\n", b"\r", b"\r\n", b" ", b"\x0b", b"\x0c", b"\x1c", b"\x00", BOM, b"\xff"]
PARTS += [part.encode() for part in ("\x85", "\u2028", "\u2029", "é", "中", "𝄞")] + [b"\xe4\xb8", b"\xed\xa0\x80"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file that each example of a test writes anew."""
    return tmp_path_factory.mktemp("texts") / "text.txt"


def restated(content):
    """The lines of a file, or the number of the first one that is no UTF-8; None for an empty one."""
    content = content[len(BOM) :] if content.startswith(BOM) else content
    if not content:
        return None
    lines = content.split(b"\n")
    ended, last = lines[:-1], lines[-1:]
    lines = [line[:-1] if line.endswith(b"\r") else line for line in ended] + [line for line in last if line]
    for i, line in enumerate(lines):
        try:
            lines[i] = line.decode("utf-8")
        except UnicodeDecodeError:
            return i + 1
    return lines


@settings(max_examples=300)
@given(content=st.lists(st.sampled_from(PARTS)).map(b"".join) | st.binary())
@example(content=b"")
@example(content=BOM)
@example(content=BOM + b"\n")
@example(content=BOM + BOM + b"a\n" + BOM + b"b")
@example(content=b"a\r")
@example(content=b"a\r\r\n\r")
@example(content=b"\n\n")
@example(content="a\x85b\u2028c\x0bd\x0ce\rf\n".encode())
@example(content="a\n中".encode()[:-1])
@example(content=b"a\n\xff\n\xff")
def test_lines_of_any_bytes(path, content):
    path.write_bytes(content)
    expected = restated(content)
    if isinstance(expected, list):
        assert read_lines(path) == read_lines(os.fspath(path)) == expected
        return
    message = "is empty: " if expected is None else rf"is not UTF-8 text: line {expected} has a byte 0x[0-9a-f]{{2}}; "
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} {message}") as caught:
        read_lines(path)
    assert "\n" not in str(caught.value)


def test_errors_of_reading(path):
    path.write_bytes(b"a\r\nb\nc \xe4\xb8 d\n")
    raised(
        lambda: read_lines(path),
        ValueError,
        f"{path} is not UTF-8 text: line 3 has a byte 0xe4; convert it to UTF-8",
    )
    path.write_bytes(b"")
    raised(lambda: read_lines(path), ValueError, f"{path} is empty: it must hold text in UTF-8")
    assert list(iterate_lines(io.BytesIO(), "standard input")) == []  # for a filter nothing is no error
    with pytest.raises(FileNotFoundError):
        read_lines(path.with_name("none.txt"))


def test_a_stream_is_not_read_ahead():
    """Each line comes as soon as it is there, and those before an error do, too."""
    stream = io.BytesIO("one\r\n\nzwei ü\n".encode() + b"a\xffb\nc\n")
    lines = iterate_lines(stream, "standard input")
    assert stream.tell() == 0
    for line, end in (("one", 5), ("", 6), ("zwei ü", 14)):
        assert next(lines) == line
        assert stream.tell() == end
    raised(
        lambda: next(lines),
        ValueError,
        "standard input is not UTF-8 text: line 4 has a byte 0xff; convert it to UTF-8",
    )
    assert stream.tell() == 18


def test_aligned():
    check_aligned("fit", ["a", "b"], ("c", "d"), ("source", "target"))
    check_aligned("fit", [], [], ("source", "target"))
    raised(
        lambda: check_aligned("fit", ["a", "b"], ["c"], ("train.de", "train.en")),
        ValueError,
        "fit: train.de and train.en must have equally many lines, got 2 and 1",
    )


# -- sentences ---------------------------------------------------------------------------------------------------------

lists = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6), max_size=8)


def sentences_of(rows):
    return Sentences.of(np.array(row, np.int32) for row in rows)


@given(rows=lists)
@example(rows=[])
@example(rows=[[]])
@example(rows=[[], [1], [], []])
def test_sentences_are_the_sequences(rows):
    sentences = sentences_of(rows)
    assert len(sentences) == len(rows)
    assert [row.tolist() for row in sentences] == rows
    assert [sentences[i - len(rows)].tolist() for i in range(len(rows))] == rows
    assert sentences.ids.tolist() == [token for row in rows for token in row]
    assert sentences.lengths.tolist() == [len(row) for row in rows]
    assert sentences.offsets.tolist() == [sum(map(len, rows[:i])) for i in range(len(rows) + 1)]
    assert (sentences.ids.dtype, sentences.lengths.dtype, sentences.offsets.dtype) == (np.int32, np.int64, np.int64)
    for i in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            sentences[i]


def test_sentences_are_copies_that_nobody_changes():
    row = np.arange(6, dtype=np.int32)[::2]
    sentences = Sentences.of([row])
    row[:] = 7
    assert sentences[0].tolist() == [0, 2, 4]
    assert np.shares_memory(sentences[0], sentences.ids)
    for array in (sentences.ids, sentences.lengths, sentences.offsets, sentences[0]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7


def test_checksum():
    rows = [[1, 2], [3], [], [-1]]
    ids, lengths = np.array([1, 2, 3, -1], np.int32), np.array([2, 1, 0, 1], np.int64)
    assert sentences_of(rows).crc() == zlib.crc32(ids.tobytes() + lengths.tobytes())
    others = [[[1], [2, 3], [], [-1]], [[1, 2], [3], [-1]], [[1, 2], [3], [], [-2]], [[1, 2], [3], [-1], []], []]
    assert len({sentences_of(other).crc() for other in [rows, *others]}) == 1 + len(others)


@given(data=st.data(), rows=lists)
def test_batches_against_columns_one_by_one(data, rows):
    sentences = sentences_of(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10) if rows else st.just([]))
    ids, lengths = sentences.batch(np.array(chosen, np.int64))
    expected = np.zeros((max((len(rows[i]) for i in chosen), default=0), len(chosen)), np.int32)
    for b, i in enumerate(chosen):
        expected[: len(rows[i]), b] = rows[i]
    assert (ids.dtype, lengths.dtype, ids.shape) == (np.int32, np.int64, expected.shape)
    assert ids.flags.c_contiguous
    assert_array_equal(ids, expected)
    assert lengths.tolist() == [len(rows[i]) for i in chosen]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    params(
        [
            (
                lambda s: Sentences.of([s[0], np.zeros(2)]),
                TypeError,
                "Sentences.of: sequences must be int32 arrays of shape (L,), got float64 of shape (2,) at index 1",
            ),
            (
                lambda s: Sentences.of([np.zeros((1, 2), np.int32)]),
                TypeError,
                "Sentences.of: sequences must be int32 arrays of shape (L,), got int32 of shape (1, 2) at index 0",
            ),
            (
                lambda s: Sentences.of([[1, 2]]),
                TypeError,
                "Sentences.of: sequences must be int32 arrays of shape (L,), got list at index 0",
            ),
            (
                lambda s: s.batch(np.array([0, 2])),
                ValueError,
                "Sentences.batch: rows must be between 0 and n-1=1, got 2 at index 1",
            ),
            (
                lambda s: s.batch(np.array([-1])),
                ValueError,
                "Sentences.batch: rows must be between 0 and n-1=1, got -1 at index 0",
            ),
            (
                lambda s: s.batch(np.array([True, False])),
                TypeError,
                "Sentences.batch: rows must be integers, got dtype bool",
            ),
            (
                lambda s: s.batch(np.zeros((1, 1), np.int64)),
                ValueError,
                "Sentences.batch: rows must have one dimension, got shape (1, 1)",
            ),
        ]
    ),
)
def test_refusals(call, error, message):
    raised(lambda: call(sentences_of([[1, 2], [3]])), error, message)
