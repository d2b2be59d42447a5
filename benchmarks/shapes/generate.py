"""One to many: first names of a first letter and a length, written letter by letter.

    python benchmarks/shapes/generate.py --data DIR --json FILE

--data is a folder with names/; benchmarks/README.md tells where it is from. A vector has a 1 in the place of the first
letter, and the length as a number. Of the different names, in the order of the file, every tenth is for "test" and the
one after it for "valid". For the vector of each test name the model draws a name, and takes the most probable one: it
obeys if both letter and length are right. Beside it: names drawn from those that it learned from, which obey by chance;
and the loss of the same model when all vectors are zero, so that it can learn names but not which.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from shared import Parts, firsts, main, train

from fastrnn.models import SequenceGenerator
from fastrnn.models.lines import read_lines

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MODEL = {
    "features": len(LETTERS) + 1, "level": "char", "cell": "lstm", "embedding": 32, "hidden": 128, "dropout": 0.1,
    "seed": 1,
}  # fmt: skip
TRAINING = {"epochs": 15, "batch_size": 128, "optimizer": "adam", "lr": 3e-3, "schedule": "cosine", "warmup": 100}


def vectors_of(names: list[str]) -> np.ndarray:
    vectors = np.zeros((len(names), len(LETTERS) + 1), np.float32)
    vectors[np.arange(len(names)), [LETTERS.index(name[0]) for name in names]] = 1.0
    vectors[:, -1] = [(len(name) - 6) / 2 for name in names]
    return vectors


def first_names(data: Path) -> Parts:
    names = list(dict.fromkeys(name for name in read_lines(data / "names" / "names.txt") if name))
    kept = {"test": names[::10], "valid": names[1::10]}
    kept["train"] = [name for number, name in enumerate(names) if number % 10 > 1]
    return {part: (vectors_of(lines), lines) for part, lines in kept.items()}


def figures_of(found: list[str], wanted: list[str], known: set[str]) -> dict[str, float]:
    """Shares of names: what is right about them, and how many the model did not learn from."""
    pairs = list(zip(found, wanted, strict=True))

    def share(held: list[bool]) -> float:
        return sum(held) / len(held)

    return {
        "letter": share([name[:1] == asked[0] for name, asked in pairs]),
        "length": share([len(name) == len(asked) for name, asked in pairs]),
        "obeys": share([name[:1] == asked[0] and len(name) == len(asked) for name, asked in pairs]),
        "new": share([name not in known for name in found]),
    }


def run(data: Path, epochs: int | None, lines: int | None) -> dict[str, Any]:
    parts = first_names(data)
    parts["train"] = firsts(parts["train"], lines)
    learned, (vectors, wanted) = parts["train"][1], parts["test"]
    model, blind = SequenceGenerator(**MODEL), SequenceGenerator(**MODEL)
    figures = train(model, parts, TRAINING, epochs)
    nothing: Parts = {part: (np.zeros_like(each), names) for part, (each, names) in parts.items()}
    train(blind, nothing, TRAINING, epochs)
    drawn, best = model.generate(vectors, temperature=1.0, seed=1), model.generate(vectors, beam=4)
    chance = np.random.default_rng(1).choice(learned, len(wanted)).tolist()
    known = set(learned)
    results = {
        "test": {
            **model.evaluate(parts["test"]),
            "drawn": figures_of(drawn, wanted, known),
            "most probable": figures_of(best, wanted, known),
            "baselines": {
                "drawn from the names learned from": figures_of(chance, wanted, known),
                "vectors of zeros": blind.evaluate(nothing["test"]),
            },
        }
    }
    shown = [first + "x" * (length - 1) for first in "amz" for length in (4, 7, 10)]
    names = model.generate(vectors_of(shown), temperature=0.7, seed=2)
    examples = {f"{asked[0]}, {len(asked)}": name for asked, name in zip(shown, names, strict=True)}
    return {**figures, "results": results, "examples": examples}


if __name__ == "__main__":
    sys.exit(main("generate", __doc__, run))
