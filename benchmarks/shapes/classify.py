"""Many to one: how many syllables an English word has, read letter by letter.

    python benchmarks/shapes/classify.py --data DIR --json FILE

--data is a folder with cmudict/; benchmarks/README.md tells where it is from. The syllables of a word are the vowels of
its first pronunciation in the dictionary. Of every 20 words, in the order of the dictionary, the first is for "valid"
and the next two are for "test": relatives of theirs, such as a plural, may be among those that are learned from. Beside
the model: the most frequent number, and a rule of thumb that counts groups of vowel letters.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from shared import Parts, firsts, main, train

from fastrnn.models import SequenceClassifier
from fastrnn.models.lines import read_lines

MOST = 7  # syllables that have a label of their own
MODEL = {"level": "char", "cell": "lstm", "embedding": 32, "hidden": 128, "dropout": 0.2, "seed": 1}
TRAINING = {"epochs": 8, "batch_size": 128, "optimizer": "adam", "lr": 3e-3, "schedule": "cosine", "warmup": 100}


def syllables(data: Path) -> Parts:
    """Words and how many syllables they have, "7" where they have more."""
    parts: Parts = {part: ([], []) for part in ("train", "valid", "test")}
    number = 0
    for line in read_lines(data / "cmudict" / "cmudict.dict"):
        word, phonemes = line.partition("#")[0].split(maxsplit=1)
        if word.endswith(")"):  # another pronunciation
            continue
        words, labels = parts["valid" if number % 20 == 0 else "test" if number % 20 <= 2 else "train"]
        number += 1
        words.append(word)
        labels.append(str(min(MOST, sum(phoneme[-1].isdigit() for phoneme in phonemes.split()))))  # digits: stress
    return parts


def by_rule(word: str) -> str:
    """Groups of vowel letters, without an e at the end that is silent; at least one."""
    groups = len(re.findall("[aeiouy]+", word))
    silent = word.endswith("e") and not re.search("[^aeiouy]le$", word)
    return str(min(MOST, max(1, groups - silent)))


def accuracy(found: list[str], labels: list[str]) -> float:
    return sum(map(str.__eq__, found, labels)) / len(labels)


def run(data: Path, epochs: int | None, lines: int | None) -> dict[str, Any]:
    parts = syllables(data)
    usual = Counter(parts["train"][1]).most_common(1)[0][0]
    model = SequenceClassifier(**MODEL)
    model.build(parts["train"])  # all labels, whatever is learned from
    figures = train(model, parts | {"train": firsts(parts["train"], lines)}, TRAINING, epochs)
    results: dict[str, Any] = {}
    for part in ("valid", "test"):
        words, labels = parts[part]
        results[part] = {
            **model.evaluate(parts[part]),
            "baselines": {
                "most frequent": accuracy([usual] * len(labels), labels),
                "rule": accuracy([by_rule(word) for word in words], labels),
            },
        }
    shown = ["rhythm", "business", "chocolate", "unbelievable", "recipe", "queue"]
    return {**figures, "results": results, "examples": dict(zip(shown, model.predict(shown), strict=True))}


if __name__ == "__main__":
    sys.exit(main("classify", __doc__, run))
