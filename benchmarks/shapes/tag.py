"""Many to many: which words of a sentence were written with capital letters, when all have lost them.

    python benchmarks/shapes/tag.py --data DIR --json FILE

--data is a folder with wikitext-2/; benchmarks/README.md tells where it is from. Its paragraphs are cut after full
stops, question and exclamation marks; headings are left out. A word's tag says how it was written: "lower" (signs,
numbers and the text's own <unk> too), "Capital", "UPPER" or "miXed". Beside the model: the most frequent tag of the
same word, at the beginning of sentences and elsewhere, among the words that the model learned from.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from shared import Parts, firsts, main, train

from fastrnn.models import SequenceTagger
from fastrnn.models.lines import read_lines

ENDS = {".", "?", "!"}
MODEL = {
    "level": "word", "cell": "lstm", "embedding": 64, "hidden": 128, "dropout": 0.3, "min_frequency": 2, "seed": 1,
}  # fmt: skip
TRAINING = {"epochs": 3, "batch_size": 64, "optimizer": "adam", "lr": 3e-3, "schedule": "cosine", "warmup": 100}


def sentences(path: Path) -> tuple[list[str], list[str]]:
    """In lower case, and the tags of their words."""
    lines: list[str] = []
    tags: list[str] = []
    for paragraph in read_lines(path):
        if not paragraph.strip() or paragraph.startswith(" ="):
            continue
        words: list[str] = []
        for word in [*paragraph.split(), None]:
            if word is not None:
                words.append(word)
            if words and (word is None or word in ENDS):
                lines.append(" ".join(word.lower() for word in words))
                tags.append(" ".join(map(tag_of, words)))
                words = []
    return lines, tags


def tag_of(word: str) -> str:
    """How a word was written."""
    if word == word.lower():
        return "lower"
    if word == word[0].upper() + word[1:].lower():
        return "Capital"
    return "UPPER" if word == word.upper() else "miXed"


def usual_tags(train: tuple[list[str], list[str]], lines: list[str]) -> list[list[str]]:
    """Of each word, the one that it has most often in ``train``, first in a sentence or not."""
    counts: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
    for line, tags in zip(*train, strict=True):
        for place, (word, tag) in enumerate(zip(line.split(), tags.split(), strict=True)):
            counts[word, place == 0][tag] += 1
    usual = {key: count.most_common(1)[0][0] for key, count in counts.items()}

    def tag(word: str, first: bool) -> str:
        return usual.get((word, first)) or ("Capital" if first and word != word.upper() else "lower")

    return [[tag(word, place == 0) for place, word in enumerate(line.split())] for line in lines]


def figures_of(found: list[list[str]], tags: list[str]) -> dict[str, float]:
    """The share of tags that are right, and of those other than "lower" precision, recall and F1."""
    pairs = [pair for got, line in zip(found, tags, strict=True) for pair in zip(got, line.split(), strict=True)]
    right = sum(got == wanted != "lower" for got, wanted in pairs)
    precision = right / max(1, sum(got != "lower" for got, _ in pairs))
    recall = right / max(1, sum(wanted != "lower" for _, wanted in pairs))
    return {
        "accuracy": sum(got == wanted for got, wanted in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(1e-9, precision + recall),
    }


def run(data: Path, epochs: int | None, lines: int | None) -> dict[str, Any]:
    parts: Parts = {part: sentences(data / "wikitext-2" / f"{part}.txt") for part in ("train", "valid", "test")}
    parts["train"] = firsts(parts["train"], lines)
    model = SequenceTagger(**MODEL)
    figures = train(model, parts, TRAINING, epochs)
    results: dict[str, Any] = {}
    for part in ("valid", "test"):
        words, tags = parts[part]
        results[part] = {
            **model.evaluate(parts[part]),
            **figures_of(model.tag(words), tags),
            "baselines": {"usual tag of the word": figures_of(usual_tags(parts["train"], words), tags)},
        }
    shown = ["the prime minister of india met the queen in new york .", "he took the new road to york in may ."]
    return {**figures, "results": results, "examples": dict(zip(shown, map(" ".join, model.tag(shown)), strict=True))}


if __name__ == "__main__":
    sys.exit(main("tag", __doc__, run))
