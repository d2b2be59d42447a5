"""The ladder of language models on words: Kneser-Ney, a window, RNN, GRU and LSTM on the same text, in one table.

    python benchmarks/lm/ladder.py --data DIR --out DIR --json FILE            # hours on 2 cores
    python benchmarks/lm/ladder.py ngram lstm --data DIR --out DIR --json FILE

--data is a folder with wikitext-2/{train,valid,test}.txt; benchmarks/README.md tells where these are from. Each model
has a folder in --out, from which a run that was stopped goes on; what is trained stays so, n-grams are counted anew.
--json holds the rungs so far after each of them. The neural models have the sizes and the training of recipes.py's
wikitext2, but for the rate.
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
    for rungs, orders in ladder.run(names, OPTIONS, **RECIPE.texts(args.data), training=training, out=args.out):
        if args.json:
            _write(args.json, ladder.document(rungs, orders))
    print_table("", ladder.table(rungs))
    if orders:
        print_table("", ladder.orders_table(orders))


def _write(path: Path, figures: dict[str, Any]) -> None:
    record = {
        "source": "WikiText-2, words",
        "training": RECIPE.training,
        "rates": RATES,
        "threads": fastrnn.get_num_threads(),
        "machine": machine.describe(),
        "commit": machine.commit(),
        **figures,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
