"""The ladder of language models on words: Kneser-Ney, a window, RNN, GRU and LSTM on the same text, in one table.

    python benchmarks/lm/ladder.py --data DIR --out DIR --json FILE            # hours on 2 cores
    python benchmarks/lm/ladder.py ngram lstm --data DIR --out DIR --json FILE

--data is a folder with wikitext-2/{train,valid,test}.txt; benchmarks/README.md tells where these are from. Each model
has a folder in --out, from which a run that was stopped goes on; what is trained stays so, n-grams are counted anew.
--json holds the rungs so far after each of them, beside those that it held of other models; what was not trained again
stays there as it was. The neural models have the sizes and the training of recipes.py's wikitext2, but for the rate.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes import RECIPES

import fastrnn
from fastrnn.bench import machine
from fastrnn.models import ladder
from fastrnn.output import check_writable, print_table, write_json

RECIPE = RECIPES["wikitext2"]
ORDER = 5
OPTIONS = RECIPE.model | {"order": ORDER, "window": 4, "k": 0.001}
#: Where the LSTM's rate, 20, is too high.
RATES = {"window": 5.0, "rnn": 5.0, "gru": 5.0}
SETTING = {"source": "WikiText-2, words", "model": OPTIONS, "training": RECIPE.training, "rates": RATES}
HOW = ("threads", "commit", "machine")  # of each rung beside its figures


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
    if args.json:
        try:
            check_writable(args.json)  # better known now than after the first model
            read(args.json)
        except (ValueError, OSError) as error:
            parser.error(f"argument --json: {error}")
    for rungs, orders in ladder.run(names, OPTIONS, **RECIPE.texts(args.data), training=training, out=args.out):
        if args.json:
            write_json(args.json, merged(read(args.json), rungs, orders))
    print_table("", ladder.table(rungs))
    if orders:
        print_table("", ladder.orders_table(orders))


def read(path: Path) -> dict[str, Any]:
    """What other runs have written, if they were of the same models and training."""
    if not path.exists():
        return SETTING | {"rungs": [], "orders": []}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON: {error}") from None
    fields = {"rungs", "orders"}
    if not isinstance(record, dict) or not fields <= record.keys():
        raise ValueError(f"{path} must hold rungs and orders; choose another file")
    for key, value in SETTING.items():
        if record.get(key) != value:
            raise ValueError(f"{path} must have {key} {value!r}, got {record.get(key)!r}; choose another file")
    for rung in record["rungs"]:
        if missing := {"name", "seconds", *HOW} - rung.keys():
            raise ValueError(f"{path} must tell of each rung its {', '.join(HOW)}, got none for {min(missing)}")
    return record


def merged(before: dict[str, Any], rungs: Iterable[ladder.Rung], orders: list[ladder.Order]) -> dict[str, Any]:
    """The file with these rungs in it; one whose training took what it took in the file was not trained again."""
    how = dict(zip(HOW, (fastrnn.get_num_threads(), machine.commit(), machine.describe()), strict=True))
    of = {rung["name"]: rung for rung in before["rungs"]}
    new = ladder.document(rungs, orders)
    for rung in new["rungs"]:
        old = of.get(rung["name"])
        if old is None or old["seconds"] != rung["seconds"]:
            of[rung["name"]] = rung | how
    names = ladder.names_of(ladder.MODELS, ORDER)
    return SETTING | {
        "rungs": [of[name] for name in names if name in of],
        "orders": new["orders"] if len(new["orders"]) >= len(before["orders"]) else before["orders"],
    }


if __name__ == "__main__":
    main()
