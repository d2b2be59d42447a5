"""The pairs of lines that the scripts here learn from, in parts: "train", "valid" and "test".

benchmarks/README.md tells where the texts are from.
"""

from __future__ import annotations

import re
from pathlib import Path

from fastrnn.models.lines import read_lines

Pairs = tuple[list[str], list[str]]  # source and target

_VARIANT = re.compile(r"\(\d+\)$")  # the number of a word's second, third, ... pronunciation
_STRESS = re.compile(r"\d")


def cmudict(data: Path) -> dict[str, Pairs]:
    """Words, read by character, and their pronunciations without stress, a phoneme being a word.

    A word has one pair for each pronunciation. Of every 20 different words, in the order of the file, the first is for
    "valid" and the next two are for "test".
    """
    parts: dict[str, Pairs] = {part: ([], []) for part in ("train", "valid", "test")}
    numbers: dict[str, int] = {}
    for line in read_lines(data / "cmudict" / "cmudict.dict"):
        entry, phonemes = line.partition("#")[0].split(maxsplit=1)
        word = _VARIANT.sub("", entry)
        place = numbers.setdefault(word, len(numbers)) % 20
        source, target = parts["valid" if place == 0 else "test" if place <= 2 else "train"]
        source.append(word)
        target.append(_STRESS.sub("", phonemes).strip())
    return parts


def multi30k(data: Path) -> dict[str, Pairs]:
    """Captions of pictures, German and English, as they were published in words and lower case."""
    names = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
    return {part: (_read(data, name, "de"), _read(data, name, "en")) for part, name in names.items()}


def _read(data: Path, name: str, language: str) -> list[str]:
    return read_lines(data / "multi30k" / f"{name}.lc.norm.tok.{language}")
