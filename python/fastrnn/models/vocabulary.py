"""Vocabularies: text to integers and back.

All have the same methods. ``of_text`` makes one, ``encode`` and ``decode`` go there and back, ``to_dict`` and
``vocabulary_from_dict`` keep it with a model. Id 0 stands for whatever the text behind the vocabulary did not hold.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

UNKNOWN = 0  # the id of every symbol that training did not see
REPLACEMENT = "\ufffd"  # what that id is shown as among characters
_UNK, _EOS = "<unk>", "<eos>"


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

    level, unit = "char", "characters"

    def __init__(self, symbols: Iterable[str]) -> None:
        symbols = list(symbols)
        if not all(isinstance(symbol, str) and len(symbol) == 1 for symbol in symbols):
            raise ValueError("CharVocabulary: symbols must be single characters")
        if not symbols or any(a >= b for a, b in itertools.pairwise(symbols)):
            raise ValueError("CharVocabulary: symbols must be at least one character, each once, in code point order")
        self._symbols = symbols
        self._codes = _code_points("".join(symbols))

    @classmethod
    def of_text(cls, text: str, min_frequency: int = 1) -> CharVocabulary:
        """The vocabulary of all characters of ``text`` that occur ``min_frequency`` times or more."""
        return cls(sorted(symbol for symbol, count in Counter(text).items() if count >= min_frequency))

    def __len__(self) -> int:
        return len(self._symbols) + 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharVocabulary) and self._symbols == other._symbols

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._symbols

    @staticmethod
    def count(text: str) -> int:
        """How many ids a text has."""
        return len(text)

    @property
    def start(self) -> int:
        """The id that a text begins after: of the line break, or of the first symbol without one."""
        return 1 + (self._symbols.index("\n") if "\n" in self._symbols else 0)

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
        return cls(_checked_symbols(cls, data))


class WordVocabulary:
    """One id for each word of a text, words being what whitespace separates; ``<eos>`` ends every line.

    Id 0 is ``<unk>``, the word that stands for all others; where the text holds that very word, it is the same. Then
    comes ``<eos>``, then the words, most frequent first (equally frequent ones in code point order), so that the same
    text always gives the same vocabulary. A line without words is a lone ``<eos>``.

    Example:
        >>> from fastrnn.models import WordVocabulary
        >>> vocabulary = WordVocabulary.of_text("the cat saw the dog\\nthe end\\n")
        >>> vocabulary.encode("the dog saw a cat\\n")
        array([2, 4, 6, 0, 3, 1], dtype=int32)
        >>> vocabulary.decode([2, 4, 6, 0, 3, 1])
        'the dog saw <unk> cat\\n'
    """

    level, unit = "word", "words"
    start = 1  # <eos>

    def __init__(self, words: Iterable[str]) -> None:
        self._words = [_UNK, _EOS, *words]
        self._ids = {word: i for i, word in enumerate(self._words)}
        if len(self._ids) < len(self._words):
            raise ValueError(f"WordVocabulary: words must be different from each other, from {_UNK} and from {_EOS}")
        if not all(isinstance(word, str) and word.split() == [word] for word in self._words):
            raise ValueError("WordVocabulary: words must be text without whitespace")

    @classmethod
    def of_text(cls, text: str, min_frequency: int = 1) -> WordVocabulary:
        """The vocabulary of all words of ``text`` that occur ``min_frequency`` times or more."""
        counts = Counter(text.split())
        for special in (_UNK, _EOS):
            counts.pop(special, None)
        kept = [(-count, word) for word, count in counts.items() if count >= min_frequency]
        return cls(word for _, word in sorted(kept))

    def __len__(self) -> int:
        return len(self._words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordVocabulary) and self._words == other._words

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    @staticmethod
    def count(text: str) -> int:
        """How many ids a text has, those of the line breaks among them."""
        return len(text.split()) + text.count("\n")

    @property
    def symbols(self) -> list[str]:
        """The words of ids 1, 2, ... (a copy)."""
        return self._words[1:]

    def encode(self, text: str) -> np.ndarray:
        """int32 ids: those of each line's words and its ``<eos>``, which a last line without line break has not."""
        ids: list[int] = []
        lines = text.split("\n")
        for i, line in enumerate(lines):
            ids += [self._ids.get(word, UNKNOWN) for word in line.split()]
            if i + 1 < len(lines):
                ids.append(1)
        return np.array(ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: words with spaces between them, a line break for each ``<eos>``."""
        parts: list[str] = []
        for i in ids:
            if i == 1:
                parts.append("\n")
            else:
                if parts and parts[-1] != "\n":
                    parts.append(" ")
                parts.append(self._words[i])
        return "".join(parts)

    def to_dict(self) -> dict[str, Any]:
        return {"level": self.level, "symbols": " ".join(self._words[2:])}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WordVocabulary:
        """Inverse of ``to_dict``; a ValueError for anything it does not write."""
        return cls(_checked_symbols(cls, data).split())


Vocabulary = CharVocabulary | WordVocabulary
VOCABULARIES: dict[str, type[CharVocabulary] | type[WordVocabulary]] = {
    vocabulary.level: vocabulary for vocabulary in (CharVocabulary, WordVocabulary)
}


def vocabulary_from_dict(data: Any) -> Vocabulary:
    """What ``to_dict`` of any vocabulary made; a ValueError for anything else."""
    level = data.get("level") if isinstance(data, Mapping) else None
    if level not in VOCABULARIES:
        raise ValueError(f"vocabulary must have a level of {sorted(VOCABULARIES)}, got {level!r}")
    return VOCABULARIES[level].from_dict(data)


def _checked_symbols(cls: type[Vocabulary], data: Any) -> str:
    if not isinstance(data, Mapping) or set(data) != {"level", "symbols"} or data["level"] != cls.level:
        raise ValueError(f"{cls.__name__}: expected the keys level={cls.level!r} and symbols")
    if not isinstance(data["symbols"], str):
        raise ValueError(f"{cls.__name__}: symbols must be text")
    return data["symbols"]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
