"""Vocabularies: text to integers and back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

UNKNOWN = 0  # the id of every symbol that training did not see
REPLACEMENT = "\ufffd"  # what that id is shown as


class CharVocabulary:
    """One id for each character (Unicode code point) of a text, and id 0 for all others.

    Ids follow code points, so that the same set of characters always gives the same vocabulary.

    Example:
        >>> from fastrnn.models import CharVocabulary
        >>> vocabulary = CharVocabulary.of_text("banana")
        >>> vocabulary.encode("nab?")
        array([3, 1, 2, 0], dtype=int32)
        >>> vocabulary.decode([3, 1, 2, 0])
        'nab�'
    """

    level = "char"

    def __init__(self, symbols: Iterable[str]) -> None:
        symbols = list(symbols)
        if not all(isinstance(symbol, str) and len(symbol) == 1 for symbol in symbols):
            raise ValueError("CharVocabulary: symbols must be single characters")
        if not symbols or any(a >= b for a, b in itertools.pairwise(symbols)):
            raise ValueError("CharVocabulary: symbols must be at least one character, each once, in code point order")
        self._symbols = symbols
        self._codes = _code_points("".join(symbols))

    @classmethod
    def of_text(cls, text: str) -> CharVocabulary:
        """The vocabulary of all characters of ``text``."""
        return cls(sorted(set(text)))

    def __len__(self) -> int:
        return len(self._symbols) + 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharVocabulary) and self._symbols == other._symbols

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._symbols

    @property
    def symbols(self) -> list[str]:
        """The symbols of ids 1, 2, ... (a copy)."""
        return list(self._symbols)

    def encode(self, text: str) -> np.ndarray:
        """int32 ids, one for each character."""
        codes = _code_points(text)
        places = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        return np.where(self._codes[places] == codes, places + 1, UNKNOWN).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; the unknown id becomes U+FFFD."""
        table = [REPLACEMENT, *self._symbols]
        return "".join(table[i] for i in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"level": self.level, "symbols": "".join(self._symbols)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CharVocabulary:
        """Inverse of ``to_dict``; a ValueError for anything it does not write."""
        if not isinstance(data, Mapping) or set(data) != {"level", "symbols"} or data["level"] != cls.level:
            raise ValueError("CharVocabulary: expected the keys level='char' and symbols")
        if not isinstance(data["symbols"], str):
            raise ValueError("CharVocabulary: symbols must be text")
        return cls(data["symbols"])


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
