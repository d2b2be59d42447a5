"""What the scripts here share: their arguments, training, and the record that they write."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastrnn
from fastrnn.bench import machine
from fastrnn.models.pairs_model import PairsModel

Pairs = tuple[Any, list[str]]
Parts = dict[str, Pairs]  # "train", "valid" and "test"


def train(model: PairsModel, parts: Parts, training: dict[str, Any], epochs: int | None) -> dict[str, Any]:
    """Trains a model, and gives what there is to tell of it."""
    training = training | ({} if epochs is None else {"epochs": epochs})
    model.fit(parts["train"], parts["valid"], **training)
    return {
        "model": model.config,
        "training": training,
        "parameters": model.num_parameters,
        "pairs": {part: len(lines) for part, (_, lines) in parts.items()},
        "history": model.history,
    }


def main(name: str, about: str, run: Callable[[Path, int | None, int | None], dict[str, Any]]) -> int:
    """The command: run(data, epochs, lines) gives the figures, "results" among them."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--epochs", type=int, help="other than those of the script")
    parser.add_argument("--lines", type=int, help="learn from the first so many lines only")
    args = parser.parse_args()
    try:
        figures = run(args.data, args.epochs, args.lines)
    except (ValueError, OSError) as error:
        print(f"{name}.py: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures["results"], indent=1))
    if args.json:
        record = {
            "script": name,
            **figures,
            "threads": fastrnn.get_num_threads(),
            "machine": machine.describe(),
            "versions": machine.versions(()),
            "commit": machine.commit(),
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def firsts(pairs: Pairs, lines: int | None) -> Pairs:
    """The first so many, or all."""
    return pairs[0][:lines], pairs[1][:lines]
