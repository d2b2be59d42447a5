"""Texts in files, which may be larger than memory: read in pieces, kept as token ids on disk."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..checks import check_size
from . import checkpoint
from .vocabulary import Vocabulary, between_words, leading

_PIECE = 1 << 20  # bytes
_HEADER = 512  # bytes


@dataclass(frozen=True)
class FilePart(os.PathLike[str]):
    """Bytes ``begin`` to ``end`` of a regular file, as a text of their own."""

    path: Path
    begin: int
    end: int

    def __fspath__(self) -> str:
        return os.fspath(self.path)


def hold_out(path: Path, size: int = _PIECE) -> tuple[FilePart, FilePart]:
    """The text of a regular file but for its last tenth, and that, where ``parting`` has it.

    The file is read twice, about ``size`` bytes at a time; errors as of ``read_pieces``.
    """
    length = sum(map(len, read_pieces(path, size)))
    near, cut = parting(length)
    at = bytes_at = 0
    line = end = 0  # in bytes
    for piece in _decoded(path, size):
        if at <= cut <= at + len(piece):
            end = bytes_at + len(piece[: cut - at].encode())
        if found := piece.rfind("\n", max(0, near - at), max(0, cut - at)) + 1:
            line = bytes_at + len(piece[:found].encode())
        at, bytes_at = at + len(piece), bytes_at + len(piece.encode())
    return FilePart(path, 0, line or end), FilePart(path, line or end, bytes_at)


def parting(length: int) -> tuple[int, int]:
    """Where a text of so many characters is parted to hold out its last tenth.

    After the last line break between the two numbers, at the second if there is none: a word or a verse in two is
    neither.
    """
    cut = length - length // 10
    return cut - length // 100, cut


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Callable[[int], bytes]]:
    """What reads so many bytes, or those that are left."""
    with Path(path).open("rb") as file:
        if not isinstance(path, FilePart):
            yield file.read
            return
        file.seek(path.begin)
        yield lambda size: file.read(min(size, path.end - file.tell()))


def read_pieces(path: str | os.PathLike[str], size: int = _PIECE) -> Iterator[str]:
    """The text of a UTF-8 file, in pieces of about ``size`` bytes.

    No word lies in two pieces, so that their ids, one after another, are those of the whole text at every level. A
    piece is longer where ``size`` bytes hold no whitespace. Characters are as in the file: line breaks too.

    Raises:
        ValueError: one line, when the file is empty or no UTF-8. OSError: when it cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from fastrnn.models.tokens import read_pieces
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "verse.txt")
        ...     _ = path.write_text("row your boat\\n")
        ...     list(read_pieces(path, size=6))
        ['row', ' your', ' boat\\n']
    """
    empty = True
    for piece in between_words(_decoded(path, check_size("read_pieces", "size", size))):
        empty = False
        yield piece
    if empty:
        raise ValueError(f"{os.fspath(path)} is empty: it must hold text in UTF-8")


def _decoded(path: str | os.PathLike[str], size: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _opened(path) as read:
        block, count = None, path.begin if isinstance(path, FilePart) else 0
        while block != b"":
            begin = count - len(decoder.getstate()[0])  # of a character that the last block ended in
            block = read(size)
            count += len(block)
            try:
                yield decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                wrong = f"byte {begin + error.start} is 0x{error.object[error.start]:02x}"
                raise ValueError(f"{os.fspath(path)} is not UTF-8 text: {wrong}; convert it to UTF-8") from None


def check_regular(where: str, name: str, path: str | os.PathLike[str]) -> None:
    """A text that is read more than once must be in a file that can be: a pipe or a terminal gives it once only."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{where}: {name} must be a regular file, as it is read more than once, got {os.fspath(path)}")


def encode_pieces(pieces: Iterable[str], vocabulary: Vocabulary) -> tuple[np.ndarray, int]:
    """The ids of a text that comes in pieces, int32 (N,), and how many characters it has after its first token.

    The ids are mapped from a file without a name in the folder for temporary files (TMPDIR), which goes with them.

    Args:
        pieces: they hold whole words, as those of ``read_pieces`` and ``between_words``; each is needed once.

    Raises:
        ValueError: the text is none for this vocabulary. OSError: the file cannot be written.

    Example:
        >>> from fastrnn.models import WordVocabulary
        >>> from fastrnn.models.tokens import encode_pieces
        >>> ids, characters = encode_pieces(["row", " your", " boat\\n"], WordVocabulary.of_text("your boat"))
        >>> ids.tolist(), characters
        ([0, 3, 2, 1], 11)
    """
    characters = 0
    folder = Path(tempfile.gettempdir())
    with tempfile.TemporaryFile(dir=folder) as file:
        for piece in pieces:
            before = file.tell()
            with checkpoint.naming(folder):
                file.write(vocabulary.encode(piece).tobytes())
                file.flush()
            characters += len(piece) if before else len(piece) - leading(vocabulary, piece)
        return (np.memmap(file, np.int32, "r") if file.tell() else np.empty(0, np.int32)), characters


def tokenize_file(
    path: str | os.PathLike[str], vocabulary: Vocabulary, target: str | os.PathLike[str], *, size: int = _PIECE
) -> np.ndarray:
    """The ids of the text in a file, int32 (N,), from the file ``target``, which is made unless it holds them already.

    Args:
        path: UTF-8 text.
        target: where the ids go. The SHA-256 of the text and of the vocabulary stand in it, and a checksum of the ids:
            it serves again as long as all three are right, wherever the text lies by then, and is made anew otherwise.
        size: about how many bytes of the text are in memory at a time.

    Returns a read-only ``numpy.memmap``; of a text without ids an empty array.

    Raises:
        ValueError: one line, when the file is empty or no UTF-8, is ``target`` or no regular file, as it is read twice.
            OSError: when one cannot be read or written. ``target`` is then as it was.

    Example:
        >>> import pathlib, tempfile
        >>> from fastrnn.models import WordVocabulary
        >>> from fastrnn.models.tokens import read_pieces, tokenize_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "verse.txt")
        ...     _ = path.write_text("row row your boat\\n")
        ...     vocabulary = WordVocabulary.of_pieces(read_pieces(path))
        ...     tokenize_file(path, vocabulary, pathlib.Path(folder, "verse.ids")).tolist()
        [2, 2, 4, 3, 1]
    """
    target = Path(target)
    check_regular("tokenize_file", "path", path)
    if target.exists() and target.samefile(path):
        raise ValueError(f"tokenize_file: target must be another file than path, got {target} for both")
    text = hashlib.sha256()
    with _opened(path) as read:
        while block := read(size):
            text.update(block)
    symbols = hashlib.sha256(json.dumps(vocabulary.to_dict()).encode())
    key = {"text": text.hexdigest(), "vocabulary": symbols.hexdigest()}

    def save(file: BinaryIO) -> None:
        file.seek(_HEADER)
        length, checksum = 0, 0
        for piece in read_pieces(path, size):
            ids = vocabulary.encode(piece).tobytes()
            file.write(ids)
            length, checksum = length + len(ids), zlib.crc32(ids, checksum)
        file.seek(0)
        file.write(_header(key, length, checksum))

    if not _holds(target, key):
        target.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.replace_file(target, save)
    if target.stat().st_size == _HEADER:  # nothing to map
        return np.empty(0, np.int32)
    return np.memmap(target, np.int32, "r", _HEADER)


def _holds(target: Path, key: dict[str, str]) -> bool:
    try:
        file = target.open("rb")
    except FileNotFoundError:
        return False
    with file:
        header = file.read(_HEADER)
        length, checksum = 0, 0
        while block := file.read(_PIECE):
            length, checksum = length + len(block), zlib.crc32(block, checksum)
    return header == _header(key, length, checksum)


def _header(key: dict[str, str], length: int, checksum: int) -> bytes:
    header = {"format": "fastrnn.tokens", "version": 1, **key, "bytes": length, "crc32": checksum}
    return json.dumps(header).encode().ljust(_HEADER)
