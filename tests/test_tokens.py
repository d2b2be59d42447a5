"""Texts in files: read in pieces, ids on disk that serve again, memory that does not grow with the file."""

import importlib.util
import os
import random
import re
import tempfile
import tracemalloc
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastrnn.models import CharVocabulary, WordVocabulary
from fastrnn.models.commands import read_text
from fastrnn.models.options import read_data
from fastrnn.models.tokens import FilePart, encode_pieces, hold_out, read_pieces, tokenize_file
from fastrnn.models.vocabulary import VOCABULARIES, BpeVocabulary

VERSE = "row row\r\n  your böat\n\n中文☃  gently <unk> down\tthe stream\r"
needs_tokenizers = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="tokenizers is missing")
classes = [pytest.param(cls, marks=needs_tokenizers if cls is BpeVocabulary else ()) for cls in VOCABULARIES.values()]
levels = pytest.mark.parametrize("cls", classes)
names = st.sampled_from([b"a", b"\r\n", b" ", b"\n", "é".encode(), "中".encode(), "𝄞".encode(), b"\xff", b"\xe4\xb8"])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file that each example of a test writes anew."""
    return tmp_path_factory.mktemp("texts") / "text.txt"


def random_text(count, seed=1):
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdeé中", k=rng.randint(1, 9))) for _ in range(500)]
    return "".join(word + rng.choice([" ", " ", "\n", "\r\n\n"]) for word in rng.choices(words, k=count))


@contextmanager
def pipe(content):
    """The path of a pipe that holds this, little enough for its buffer."""
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    try:
        yield Path(f"/dev/fd/{reading}")
    finally:
        os.close(reading)


needs_pipes = pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="pipes have no path here")


def inode(path):
    """Another one for another file of the same name."""
    return path.stat().st_ino


@settings(max_examples=200, deadline=None)
@given(content=st.lists(names).map(b"".join) | st.binary(), size=st.integers(1, 12))
@example(content=b"", size=1)
@example(content="a中".encode()[:-1], size=2)
@example(content="中".encode()[:1] + b" a", size=1)
@example(content=b"\xef\xbb\xbfa\r\nb", size=3)
def test_pieces_make_up_what_read_text_reads(path, content, size):
    """The same text, or the very same error."""
    path.write_bytes(content)
    try:
        expected = read_text(path)
    except ValueError as error:
        with pytest.raises(ValueError, match=f"^{re.escape(str(error))}$"):
            list(read_pieces(path, size))
    else:
        pieces = list(read_pieces(path, size))
        assert "".join(pieces) == expected
        assert all(pieces)


@given(content=st.text(alphabet="aé€😀 \n\r", max_size=400), size=st.integers(1, 9))
@example(content="aé€😀\n" * 200, size=7)
def test_two_parts_of_a_file_make_up_its_text(path, content, size):
    path.write_bytes(content.encode())
    if not content:
        return
    parts = hold_out(path, size)
    assert [os.fspath(part) for part in parts] == [os.fspath(path)] * 2
    texts = ["".join(read_pieces(part, size)) if part.end > part.begin else "" for part in parts]
    assert "".join(texts) == content
    assert (*texts, None) == read_data(path)  # which reads so little as a whole


def test_a_file_parts_at_the_end_of_a_line(path):
    lines = [f"line {i}\n" for i in range(1000)]
    path.write_text("".join(lines), newline="")
    for part, expected in zip(hold_out(path), (lines[:901], lines[901:]), strict=True):
        assert "".join(read_pieces(part)) == "".join(expected)


def test_errors_of_a_part_name_the_file(path):
    path.write_bytes(b"abc\xffdef")
    with pytest.raises(ValueError, match=re.escape(f"{path} is not UTF-8 text: byte 3 is 0xff")):
        list(read_pieces(FilePart(path, 2, 7)))
    with pytest.raises(ValueError, match=re.escape(f"{path} is empty")):
        list(read_pieces(FilePart(path, 2, 2)))


def test_ids_of_a_part_serve_the_same_text_alone(path, tmp_path):
    path.write_text("row row row your boat gently")
    alone, target = tmp_path / "alone", tmp_path / "ids"
    alone.write_text(" row your boat")
    vocabulary = WordVocabulary.of_text("row your boat")
    ids = tokenize_file(FilePart(path, 7, 21), vocabulary, target)
    before = inode(target)
    assert np.array_equal(tokenize_file(alone, vocabulary, target), ids)
    assert inode(target) == before
    assert np.array_equal(ids, vocabulary.encode(" row your boat"))


def test_errors_of_reading(path):
    path.write_bytes(b"a b " * 1000 + b"\xff")
    with pytest.raises(ValueError, match=r"text\.txt is not UTF-8 text: byte 4000 is 0xff; convert it to UTF-8$"):
        list(read_pieces(os.fspath(path), 64))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"text\.txt is empty: it must hold text in UTF-8$"):
        list(read_pieces(path))
    with pytest.raises(FileNotFoundError):
        list(read_pieces(path.with_name("none.txt")))
    with pytest.raises(ValueError, match=r"^read_pieces: size must be an integer >= 1, got 0"):
        list(read_pieces(path, 0))


@needs_pipes
def test_pipes_are_read():
    with pipe(VERSE.encode() * 9) as path:
        assert "".join(read_pieces(path, 7)) == VERSE * 9
    with pipe(VERSE.encode()) as path:
        assert read_text(path) == VERSE
    with pipe(b"a b " * 1000 + b"\xff") as path, pytest.raises(ValueError, match=r"byte 4000 is 0xff"):
        list(read_pieces(path, 64))
    with pipe(b"") as path, pytest.raises(ValueError, match=r"is empty: it must hold text in UTF-8$"):
        list(read_pieces(path))


@needs_pipes
def test_what_is_read_twice_is_no_pipe(tmp_path):
    error = r"^tokenize_file: path must be a regular file, as it is read more than once, got /dev/fd/\d+$"
    with pipe(b"a b") as path, pytest.raises(ValueError, match=error):
        tokenize_file(path, WordVocabulary.of_text("a"), tmp_path / "ids")
    assert not (tmp_path / "ids").exists()


def test_pieces_have_about_the_size(path):
    path.write_text(random_text(20_000), encoding="utf-8")
    pieces = list(read_pieces(path, 1000))
    assert len(pieces) == pytest.approx(path.stat().st_size / 1000, abs=2)
    assert max(len(piece.encode()) for piece in pieces) < 1200
    path.write_text("é" * 5000, encoding="utf-8")
    assert list(read_pieces(path, 999)) == ["é" * 5000]


@levels
@settings(max_examples=30, deadline=None)
@given(text=st.lists(st.sampled_from([*VERSE, "row ", "\n "])).map("".join), size=st.integers(1, 40))
@example(text=VERSE * 3, size=7)
@example(text=" \n", size=1)
def test_ids_are_those_of_the_text(path, cls, text, size):
    vocabulary = cls.of_text(VERSE)
    target = path.with_name("ids")
    target.unlink(missing_ok=True)
    path.write_bytes(("." + text).encode())  # never empty, and its first symbol is unknown to two
    assert cls.of_pieces(read_pieces(path, size)) == cls.of_text("." + text)
    for _ in range(2):  # made, and found there
        ids = tokenize_file(path, vocabulary, target, size=size)
        assert ids.dtype == np.int32
        assert ids.ndim == 1
        np.testing.assert_array_equal(ids, vocabulary.encode("." + text))


@levels
@settings(max_examples=60, deadline=None)
@given(text=st.lists(st.sampled_from([*VERSE, "row ", "\n "])).map("".join), size=st.integers(1, 40))
@example(text=VERSE * 3, size=7)
@example(text="  \t  ", size=1)
@example(text="   the\n", size=9)
@example(text="☃ hi", size=40)
@example(text="supercalifragilistic cat", size=4)
def test_ids_of_pieces_and_the_characters_after_the_first(path, cls, text, size):
    vocabulary = cls.of_text("row your boat ")
    path.write_bytes(text.encode() or b" ")
    text = read_text(path)
    ids, characters = encode_pieces(read_pieces(path, size), vocabulary)
    assert ids.dtype == np.int32
    assert isinstance(ids, np.memmap) == (len(ids) > 0)
    np.testing.assert_array_equal(ids, vocabulary.encode(text))
    first = vocabulary.pieces(text)[:1]
    assert characters == (len(text) - len(first[0]) if first else 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk is full here")
def test_a_full_disk_has_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(tmp_path))
    full = partial(Path("/dev/full").open, "w+b", buffering=0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: full())
    with pytest.raises(OSError, match=f"No space left on device: '{re.escape(os.fspath(tmp_path))}'$"):
        encode_pieces(["a b"], WordVocabulary.of_text("a"))


def test_a_text_without_ids(tmp_path):
    path, target = tmp_path / "text.txt", tmp_path / "ids"
    path.write_text(" \t ")
    for _ in range(2):
        ids = tokenize_file(path, WordVocabulary.of_text("a"), target)
        assert ids.shape == (0,)
        assert ids.dtype == np.int32


@pytest.fixture
def made(tmp_path):
    """A text, a vocabulary, and the file of its ids."""
    path, target = tmp_path / "text.txt", tmp_path / "folder" / "ids"
    path.write_text(random_text(3000), encoding="utf-8")
    vocabulary = WordVocabulary.of_pieces(read_pieces(path), 2)
    ids = tokenize_file(path, vocabulary, os.fspath(target), size=5000)
    assert isinstance(ids, np.memmap)
    assert not ids.flags.writeable
    assert [entry.name for entry in target.parent.iterdir()] == ["ids"]
    return path, vocabulary, target


def test_ids_serve_again(made, monkeypatch):
    path, vocabulary, target = made
    expected = vocabulary.encode(read_text(path))
    first = inode(target)
    os.utime(path, ns=(0, 0))
    moved = path.rename(path.with_name("moved.txt"))
    copy = WordVocabulary.from_dict(vocabulary.to_dict())
    monkeypatch.setattr(WordVocabulary, "encode", None)
    np.testing.assert_array_equal(tokenize_file(moved, copy, target), expected)
    assert inode(target) == first


@pytest.mark.parametrize("change", ["text", "vocabulary", "level"])
def test_ids_of_something_else_are_made_anew(made, change):
    path, vocabulary, target = made
    before = path.stat()
    old, text = tokenize_file(path, vocabulary, target), read_text(path)
    kept = old.copy()
    if change == "text":
        text = text.replace("a", "b")  # of the same length and, below, the same time
        path.write_bytes(text.encode())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
    elif change == "vocabulary":
        vocabulary = WordVocabulary.of_text(text, 9)
    else:
        vocabulary = CharVocabulary.of_text(text)
    new = tokenize_file(path, vocabulary, target)
    np.testing.assert_array_equal(new, vocabulary.encode(text))
    assert not np.array_equal(new, kept)
    np.testing.assert_array_equal(old, kept)  # who has the old ones still has them


def truncate(data):
    return data[:-4]


def truncate_within_a_number(data):
    return data[:-1]


def flip_a_bit(data):
    return data[:-100] + bytes([data[-100] ^ 4]) + data[-99:]


def damage_the_header(data):
    return data.replace(b"crc32", b"crc64", 1)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        truncate_within_a_number,
        flip_a_bit,
        damage_the_header,
        lambda data: data + b"\0",
        lambda data: data + b"\0" * 4,
        lambda data: data[:100],
        lambda data: data[:512],
        lambda data: b"",
        lambda data: b"something else" * 1000,
    ],
)
def test_damaged_ids_are_made_anew(made, damage):
    path, vocabulary, target = made
    data = target.read_bytes()
    target.write_bytes(damage(data))
    first = inode(target)
    ids = tokenize_file(path, vocabulary, target)
    np.testing.assert_array_equal(ids, vocabulary.encode(read_text(path)))
    assert inode(target) != first
    assert target.read_bytes() == data


def test_a_failure_leaves_the_old_ids(made):
    path, vocabulary, target = made
    data = target.read_bytes()
    path.write_bytes(path.read_bytes() + b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8"):
        tokenize_file(path, vocabulary, target, size=5000)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        tokenize_file(path, vocabulary, target)
    assert target.read_bytes() == data
    assert [entry.name for entry in target.parent.iterdir()] == ["ids"]


def test_the_text_is_not_overwritten(made):
    path, vocabulary, target = made
    text = path.read_bytes()
    target.unlink()
    target.symlink_to(path)
    with pytest.raises(ValueError, match=r"^tokenize_file: target must be another file than path, got .*ids for both"):
        tokenize_file(path, vocabulary, target)
    assert path.read_bytes() == text


@levels
def test_memory_is_bounded_by_the_size_of_a_piece(tmp_path, cls):
    path, size = tmp_path / "text.txt", 1 << 12
    text = random_text(10_000)
    path.write_text(text * 12, encoding="utf-8")
    vocabulary = cls.of_text(text)
    tracemalloc.start()
    try:
        ids = tokenize_file(path, vocabulary, tmp_path / "ids", size=size)
        mapped, _ = encode_pieces(read_pieces(path, size), vocabulary)
        again = cls.of_pieces(read_pieces(path, size))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(again) > 0
    assert len(ids) > 10_000 * 12
    np.testing.assert_array_equal(mapped, ids)
    # A few objects for each character of a piece, and the new vocabulary; much less than the text, not to speak of ids.
    assert peak < 200 * size < path.stat().st_size
