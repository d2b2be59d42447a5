"""Vocabularies: text to integers and back.

All have the same methods. ``of_text`` and ``of_pieces`` make one, ``encode`` and ``decode`` go there and back,
``pieces`` tells what of the text each id stands for, ``to_dict`` and ``vocabulary_from_dict`` keep it with a model.
Id 0 stands for whatever the text behind the vocabulary did not hold.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..checks import check_size

UNKNOWN = 0  # the id of every symbol that training did not see
REPLACEMENT = "\ufffd"  # what that id is shown as among characters
_UNK, _EOS = "<unk>", "<eos>"
# Or line break, with the blanks before it. Blanks that end the text are tried once only, not from each of them on.
_WORD = re.compile(r"(?<![^\S\n])[^\S\n]*(?:\n|\S+)")
_LAST_CUT = re.compile(r".+([ \t\r\n])\S", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_BLOCK = 1 << 14  # characters that a tokenizer gets at a time
_BATCH = 64  # blocks: bounds what the tokenizer keeps of each token beside its id
_LONGEST = 1024  # bytes of a word: the time that learning from one takes grows with their square


def between_words(blocks: Iterable[str]) -> Iterator[str]:
    """The text that ``blocks`` make up together, in pieces that no word lies in two of.

    Each piece but the first begins with whitespace that something else follows. There the rules of all vocabularies
    begin anew: the ids of the pieces, one after another, are those of the text. A piece is about as long as a block,
    and as long as it takes where there is no such place.
    """
    held: list[str] = []
    for block in blocks:
        if match := _LAST_CUT.match(block):
            cut = match.start(1)
            yield "".join([*held, block[:cut]])
            held, block = [], block[cut:]
        held.append(block)
    if rest := "".join(held):
        yield rest


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
        self._table = [REPLACEMENT, *symbols]
        self._codes = _code_points("".join(symbols))

    @classmethod
    def of_text(cls, text: str, min_frequency: int = 1) -> CharVocabulary:
        """The vocabulary of all characters of ``text`` that occur ``min_frequency`` times or more."""
        return cls.of_pieces((text,), min_frequency)

    @classmethod
    def of_pieces(cls, pieces: Iterable[str], min_frequency: int = 1) -> CharVocabulary:
        """That of the text which ``pieces`` make up together."""
        counts: Counter[str] = Counter()
        for piece in pieces:
            counts.update(piece)
        if counts and min_frequency > (most := max(counts.values())):
            raise ValueError(
                f"CharVocabulary: min_frequency must be at most {most}, the count of the most frequent character, "
                f"got {min_frequency}"
            )
        return cls(sorted(symbol for symbol, count in counts.items() if count >= min_frequency))

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

    def pieces(self, text: str) -> list[str]:
        """The characters of a text, unknown ones as they are: one for each id."""
        return list(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; the unknown id becomes U+FFFD."""
        return "".join(self._table[i] for i in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"level": self.level, "symbols": "".join(self._symbols)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CharVocabulary:
        """Inverse of ``to_dict``; a ValueError for anything it does not write."""
        return cls(_checked(cls, data, "symbols"))


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
        return cls.of_pieces((text,), min_frequency)

    @classmethod
    def of_pieces(cls, pieces: Iterable[str], min_frequency: int = 1) -> WordVocabulary:
        """That of the text which ``pieces`` make up together, wherever they are cut."""
        counts: Counter[str] = Counter()
        for piece in between_words(pieces):
            counts.update(piece.split())
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

    def pieces(self, text: str) -> list[str]:
        """The words and line breaks of a text, each with the blanks before it, unknown words as they are: one an id.

        Blanks that end the text are in none.
        """
        return _WORD.findall(text)

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
        return cls(_checked(cls, data, "symbols").split())


class BpeVocabulary:
    """One id for each token of a byte-level byte-pair encoding, which learns its tokens from a text.

    The tokens are at first the 256 bytes, as which UTF-8 writes every text. Again and again the two that stand side by
    side most often, within a word with the space before it, within a number or within a run of signs or whitespace,
    become one token more. So no text holds an unknown symbol, line breaks are as all else, and ``decode`` gives back
    what ``encode`` got. Id 0, ``<unk>``, never comes up. The same text always gives the same vocabulary.

    A text with lone surrogates, such as those that Python reads undecodable bytes as, is no Unicode text: a ValueError.

    Args:
        tokenizer: JSON that the tokenizers library reads and writes; of its content the tokens and merges count.

    Raises:
        ValueError: for any other JSON. RuntimeError: the library, which is an optional one, is missing.

    Sources: Sennrich, Haddow, Birch, "Neural machine translation of rare words with subword units", 2016; Radford et
    al., "Language models are unsupervised multitask learners", 2019 (bytes, and where words begin).

    Example:
        >>> from fastrnn.models.vocabulary import BpeVocabulary
        >>> vocabulary = BpeVocabulary.of_text("the cat saw the dog\\nthe end\\n", min_frequency=3)
        >>> vocabulary.symbols[256:]
        ['he', 'the']
        >>> ids = vocabulary.encode("the ☃")
        >>> len(ids), vocabulary.decode(ids)
        (5, 'the ☃')
    """

    level, unit = "bpe", "tokens"
    LEAST = 257  # size: <unk> and the bytes

    def __init__(self, tokenizer: str) -> None:
        library = _tokenizers()
        try:
            data = json.loads(tokenizer)["model"]
            model = library.models.BPE(data["vocab"], [(left, right) for left, right in data["merges"]])
        except Exception as error:  # the library raises just that
            raise ValueError(f"BpeVocabulary: tokenizer must be the JSON of a byte-level BPE, got {error!r}") from None
        self._tokens: list[str] = sorted(data["vocab"], key=data["vocab"].get)
        if [data["vocab"][token] for token in self._tokens] != list(range(len(self._tokens))):
            raise ValueError("BpeVocabulary: tokens must have the ids 0, 1, ..., each once")
        if self._tokens[:1] != [_UNK] or not set(library.pre_tokenizers.ByteLevel.alphabet()) <= set(self._tokens):
            raise ValueError(f"BpeVocabulary: tokens must be {_UNK}, all 256 bytes, and what they merge to")
        self._tokenizer = _byte_level(model)

    @classmethod
    def of_text(cls, text: str, min_frequency: int = 1, size: int = 8192) -> BpeVocabulary:
        """The vocabulary that ``text`` gives: ``size`` tokens at most, ``<unk>`` and the 256 bytes among them.

        Tokens that stand side by side less than ``min_frequency`` times do not become one.
        """
        return cls.of_pieces((text,), min_frequency, size)

    @classmethod
    def of_pieces(cls, pieces: Iterable[str], min_frequency: int = 1, size: int = 8192) -> BpeVocabulary:
        """That of the text which ``pieces`` make up together, wherever they are cut."""
        where, library = "BpeVocabulary", _tokenizers()
        trainer = library.trainers.BpeTrainer(
            vocab_size=check_size(where, "size", size, low=cls.LEAST),
            min_frequency=check_size(where, "min_frequency", min_frequency),
            special_tokens=[_UNK],
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer = _byte_level(library.models.BPE())
        tokenizer.train_from_iterator(_blocks(pieces), trainer)
        return cls(tokenizer.to_str())

    def __len__(self) -> int:
        return len(self._tokens)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BpeVocabulary) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, token: object) -> bool:
        return token in self._tokens

    @staticmethod
    def count(text: str) -> int:
        """How many ids a text has at most: its bytes. How many it has depends on the vocabulary."""
        return len(text.encode("utf-8", "surrogatepass"))

    @property
    def start(self) -> int:
        """The id that a text begins after: that of the line break."""
        return int(self.encode("\n")[0])

    @property
    def symbols(self) -> list[str]:
        """The tokens of ids 1, 2, ... (a copy), as the library writes them: a character for each byte."""
        return self._tokens[1:]

    def encode(self, text: str) -> np.ndarray:
        """int32 ids."""
        blocks = _blocks((text,))
        ids = [np.empty(0, np.int32)]
        while batch := list(itertools.islice(blocks, _BATCH)):
            ids += [np.array(encoding.ids, np.int32) for encoding in self._tokenizer.encode_batch_fast(batch)]
        return np.concatenate(ids)

    def pieces(self, text: str) -> list[str]:
        """The parts of a text that its ids stand for; a character belongs to the token with its last byte."""
        sizes = [len(self._tokens[i]) for i in self.encode(text)]  # a character of a token is a byte of the text
        data, decoder = text.encode(), codecs.getincrementaldecoder("utf-8")()
        ends = itertools.accumulate(sizes)
        return [decoder.decode(data[end - size : end]) for size, end in zip(sizes, ends, strict=True)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no whole character become U+FFFD."""
        return self._tokenizer.decoder.decode([self._tokens[i] for i in ids])

    def to_dict(self) -> dict[str, Any]:
        return {"level": self.level, "tokenizer": self._tokenizer.to_str()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BpeVocabulary:
        """Inverse of ``to_dict``; a ValueError for anything it does not write."""
        return cls(_checked(cls, data, "tokenizer"))


Vocabulary = CharVocabulary | WordVocabulary | BpeVocabulary
VOCABULARIES: dict[str, type[CharVocabulary] | type[WordVocabulary] | type[BpeVocabulary]] = {
    vocabulary.level: vocabulary for vocabulary in (CharVocabulary, WordVocabulary, BpeVocabulary)
}


def vocabulary_from_dict(data: Any) -> Vocabulary:
    """What ``to_dict`` of any vocabulary made; a ValueError for anything else."""
    level = data.get("level") if isinstance(data, Mapping) else None
    if level not in VOCABULARIES:
        raise ValueError(f"vocabulary must have a level of {sorted(VOCABULARIES)}, got {level!r}")
    return VOCABULARIES[level].from_dict(data)


def leading(vocabulary: Vocabulary, text: str) -> int:
    """How many characters of a text end with its first token, blanks before it included; all, where it has none."""
    count = 0
    for block in between_words(_short(text)):
        if parts := vocabulary.pieces(block):
            return count + len(parts[0])
        count += len(block)
    return count


def _checked(cls: type[Vocabulary], data: Any, key: str) -> str:
    """The text that ``to_dict`` has under ``key``."""
    if not isinstance(data, Mapping) or set(data) != {"level", key} or data["level"] != cls.level:
        raise ValueError(f"{cls.__name__}: expected the keys level={cls.level!r} and {key}")
    if not isinstance(data[key], str):
        raise ValueError(f"{cls.__name__}: {key} must be text")
    return data[key]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise RuntimeError("BpeVocabulary: tokenizers is not installed: pip install 'fastrnn[text]'") from None
    return tokenizers


def _byte_level(model: Any) -> Any:
    """The tokenizer around a BPE model."""
    library = _tokenizers()
    tokenizer = library.Tokenizer(model)
    words = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = library.pre_tokenizers.FixedLength(length=_LONGEST)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([words, parts])
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def _blocks(pieces: Iterable[str]) -> Iterator[str]:
    """A text in blocks that a tokenizer can work on side by side."""

    def short() -> Iterator[str]:
        for piece in pieces:
            if match := _SURROGATE.search(piece):
                raise ValueError(
                    "BpeVocabulary: text must be Unicode, "
                    f"got the lone surrogate U+{ord(match[0]):04X} as character {match.start()}"
                )
            yield from _short(piece)

    return between_words(short())


def _short(text: str) -> Iterator[str]:
    return (text[i : i + _BLOCK] for i in range(0, len(text), _BLOCK))
