"""Texts of which every line is a sentence: read from files and streams, kept as ids in a few flat arrays."""

from __future__ import annotations

import codecs
import os
import zlib
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..validation import check_integers


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a UTF-8 file, without their ends.

    A line ends in ``\\n`` or ``\\r\\n`` and nowhere else: not at a lone ``\\r`` or a Unicode separator, at which
    ``str.splitlines`` cuts, too, so that line i of one file stays beside line i of its translation. The last line
    needs no end. A byte order mark at the beginning of the file is not part of its text.

    Raises:
        ValueError: one line, when the file is empty or no UTF-8. OSError: when it cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from fastrnn.models.lines import read_lines
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "verses.txt")
        ...     _ = path.write_bytes(b"row your boat\\r\\n\\ngently")
        ...     read_lines(path)
        ['row your boat', '', 'gently']
    """
    with Path(path).open("rb") as file:
        lines = list(iterate_lines(file, os.fspath(path)))
    if not lines:
        raise ValueError(f"{path} is empty: it must hold text in UTF-8")
    return lines


def iterate_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines of a stream as ``read_lines`` gives them, each as soon as it is there: nothing is read ahead.

    Args:
        stream: open for reading bytes, such as ``sys.stdin.buffer``.
        name: what errors call it.

    Raises:
        ValueError: one line, when a line is reached that is no UTF-8.

    Example:
        >>> import io
        >>> from fastrnn.models.lines import iterate_lines
        >>> list(iterate_lines(io.BytesIO(b"row\\nyour boat\\n"), "standard input"))
        ['row', 'your boat']
    """
    for number, line in enumerate(iter(stream.readline, b""), 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
            if not line:
                return
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name} is not UTF-8 text: line {number} has a byte 0x{line[error.start]:02x}; convert it to UTF-8"
            ) from None
        yield text[:-1].removesuffix("\r") if text.endswith("\n") else text


def check_aligned(where: str, source: Sized, target: Sized, names: tuple[str, str]) -> None:
    """Line i of ``source`` belongs to line i of ``target``: a ValueError unless both have equally many.

    Args:
        where: the call that errors name.
        names: the two files, or arguments, for the error.
    """
    if len(source) != len(target):
        raise ValueError(
            f"{where}: {names[0]} and {names[1]} must have equally many lines, got {len(source)} and {len(target)}"
        )


class Sentences:
    """Many sequences of token ids in one array: a sentence takes four bytes a token and two numbers.

    Made by ``Sentences.of``. ``len(sentences)`` is their count n, ``sentences[i]`` is sentence i, a read-only view.

    Attributes:
        ids: int32, those of all sentences one after another, read-only.
        offsets: int64 (n + 1,): sentence i is ``ids[offsets[i]:offsets[i + 1]]``.
        lengths: int64 (n,), tokens of each.

    Example:
        >>> import numpy as np
        >>> from fastrnn.models.lines import Sentences
        >>> sentences = Sentences.of(np.array(ids, np.int32) for ids in ([3, 1, 4], [], [1, 5]))
        >>> len(sentences), sentences[2]
        (3, array([1, 5], dtype=int32))
        >>> ids, lengths = sentences.batch(np.array([2, 0]))
        >>> ids.T
        array([[1, 5, 0],
               [3, 1, 4]], dtype=int32)
        >>> lengths
        array([2, 3])
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        self.ids, self.lengths = ids, lengths
        self.offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        for array in (self.ids, self.lengths, self.offsets):
            array.flags.writeable = False  # they belong together

    @classmethod
    def of(cls, sequences: Iterable[np.ndarray]) -> Sentences:
        """All of ``sequences``, int32 arrays (L,), L >= 0, which are read one at a time and copied.

        Raises:
            TypeError: for anything else among them, naming its index.
        """
        ids, lengths = bytearray(), []
        for i, sequence in enumerate(sequences):
            if not isinstance(sequence, np.ndarray) or sequence.dtype != np.int32 or sequence.ndim != 1:
                array = isinstance(sequence, np.ndarray)
                got = f"{sequence.dtype} of shape {sequence.shape}" if array else type(sequence).__name__
                raise TypeError(f"Sentences.of: sequences must be int32 arrays of shape (L,), got {got} at index {i}")
            ids += sequence.tobytes()
            lengths.append(len(sequence))
        return cls(np.frombuffer(ids, np.int32), np.array(lengths, np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> np.ndarray:
        i = range(len(self))[i]
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def crc(self) -> int:
        """A checksum of ids and lengths: the CRC-32 of the ids' bytes and then those of the lengths."""
        return zlib.crc32(self.lengths.data, zlib.crc32(self.ids.data))

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sentences as the columns of one array.

        Args:
            rows: integers (B,), which sentences, each from 0 to n - 1; one may come more than once.

        Returns ids, int32 (T, B), C-contiguous, with T the longest length and 0 past the end of each, and lengths,
        int64 (B,).

        Raises:
            TypeError, ValueError: naming the argument.
        """
        count = len(self)
        rows = check_integers("Sentences.batch", "rows", rows, 0, count - 1, f"n-1={count - 1}")
        begins, lengths = self.offsets[rows], self.lengths[rows]
        steps = np.arange(lengths.max(initial=0))[:, None]
        inside = steps < lengths
        ids = np.zeros(inside.shape, np.int32)
        ids[inside] = self.ids[(begins + steps)[inside]]
        return ids, lengths
