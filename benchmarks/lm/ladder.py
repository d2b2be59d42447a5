"""The ladder of language models on words: Kneser-Ney, a window, RNN, GRU and LSTM on the same text, in one table.

    python benchmarks/lm/ladder.py --data DIR --out DIR --json FILE            # hours on 2 cores
    python benchmarks/lm/ladder.py ngram lstm --data DIR --out DIR --json FILE

--data is a folder with wikitext-2/{train,valid,test}.txt; benchmarks/README.md tells where these are from. Each model
has a folder in --out, from which a run that was stopped goes on; what is trained stays so, n-grams are counted anew.
--json holds the rungs so far after each of them, beside those that it held of other models. The neural models have the
sizes and the training of recipes.py's wikitext2, but for the rate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from recipes import RECIPES

import fastrnn
from fastrnn.bench import machine
from fastrnn.models import ladder
from fastrnn.output import print_table

RECIPE = RECIPES["wikitext2"]
ORDER = 5
OPTIONS = RECIPE.model | {"order": ORDER, "window": 4, "k": 0.001}
#: Where the LSTM's rate, 20, is too high.
RATES = {"window": 5.0, "rnn": 5.0, "gru": 5.0}
SETTING = {"source": "WikiText-2, words", "training": RECIPE.training, "rates": RATES}


def training(name: str) -> dict[str, Any]:
    return RECIPE.training | {"lr": RATES.get(name, RECIPE.training["lr"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"some of {', '.join(ladder.MODELS)} (default: all)")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if unknown := set(args.models) - set(ladder.MODELS):
        parser.error(f"no model {sorted(unknown)[0]!r}")
    names = ladder.names_of(args.models or ladder.MODELS, ORDER)
    before = _read(args.json) if args.json and args.json.exists() else {"rungs": [], "orders": []}
    for rungs, orders in ladder.run(names, OPTIONS, **RECIPE.texts(args.data), training=training, out=args.out):
        if args.json:
            _write(args.json, before, ladder.document(rungs, orders))
    print_table("", ladder.table(rungs))
    if orders:
        print_table("", ladder.orders_table(orders))


def _read(path: Path) -> dict[str, Any]:
    """What was written before, if it is of the same training."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if differ := [key for key, value in SETTING.items() if record[key] != value]:
        raise SystemExit(f"{path} is of another {', '.join(differ)}; choose another file")
    return record


def _write(path: Path, before: dict[str, Any], figures: dict[str, Any]) -> None:
    how = {"threads": fastrnn.get_num_threads(), "commit": machine.commit(), "machine": machine.describe()}
    rungs = {rung["name"]: rung for rung in before["rungs"]} | {rung["name"]: rung | how for rung in figures["rungs"]}
    record = {
        **SETTING,
        "rungs": [rungs[name] for name in ladder.names_of(ladder.MODELS, ORDER) if name in rungs],
        "orders": figures["orders"] or before["orders"],
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
