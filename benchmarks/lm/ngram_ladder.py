"""The n-gram models on a text of words: perplexity, time, entries, bytes, and what of the test text was never seen.

    python benchmarks/lm/ngram_ladder.py --data DIR [--json FILE]

--data is a folder with wikitext-2/{train,valid,test}.txt; benchmarks/README.md tells where these are from. Words stand
between spaces, the end of a line is the word <eos>, and the vocabulary is that of the training text. add_k takes the k
that gives the valid text its lowest perplexity.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.bench import machine
from fastrnn.models import NgramModel

ORDERS = range(1, 6)
KS = (1.0, 0.1, 0.01, 0.001, 0.0001, 0.00001)


def words(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").replace("\n", " <eos> ").split()


def perplexity(model: NgramModel, ids: np.ndarray) -> float:
    return math.exp(-model.log_probs(ids).mean())


def measured(order: int, smoothing: str, ids: dict[str, np.ndarray], vocab_size: int, k: float = 1.0) -> dict[str, Any]:
    start = time.perf_counter()
    model = NgramModel(order, smoothing, k=k).fit(ids["train"], vocab_size)
    trained = time.perf_counter()
    test = perplexity(model, ids["test"])
    tested = time.perf_counter()
    return {
        "order": order,
        "smoothing": smoothing,
        "valid_perplexity": perplexity(model, ids["valid"]),
        "test_perplexity": test,
        "fit_seconds": trained - start,
        "test_seconds": tested - trained,
        "entries": model.entries,
        "bytes": model.nbytes,
        "unseen_in_test": model.unseen(ids["test"]),
    }


def best_add_k(order: int, ids: dict[str, np.ndarray], vocab_size: int) -> dict[str, Any]:
    rows = [measured(order, "add_k", ids, vocab_size, k) | {"k": k} for k in KS]
    return min(rows, key=lambda row: row["valid_perplexity"])


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", required=True)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(args)

    paths = {name: options.data / "wikitext-2" / f"{name}.txt" for name in ("train", "valid", "test")}
    texts = {name: words(path) for name, path in paths.items()}
    vocabulary = {word: i for i, word in enumerate(sorted(set(texts["train"])))}
    ids = {name: np.array([vocabulary[word] for word in text]) for name, text in texts.items()}
    document: dict[str, Any] = {
        "machine": machine.describe(),
        "commit": machine.commit(),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths.values()},
        "tokens": {name: len(text) for name, text in texts.items()},
        "vocabulary": len(vocabulary),
        "models": [],
    }
    print("order  smoothing        test ppl  valid ppl  fit s  test s    entries     bytes  unseen in test")
    for order in ORDERS:
        for row in (measured(order, "kneser_ney", ids, len(vocabulary)), best_add_k(order, ids, len(vocabulary))):
            document["models"].append(row)
            name = row["smoothing"] + (f" {row['k']:g}" if "k" in row else "")
            print(
                f"{order:5}  {name:12} {row['test_perplexity']:12.1f} {row['valid_perplexity']:10.1f} "
                f"{row['fit_seconds']:6.2f} {row['test_seconds']:7.2f} {row['entries'][-1]:10} {row['bytes'][-1]:9} "
                f"{row['unseen_in_test'][-1]:15.1%}",
                flush=True,
            )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
