"""Trains the models that the literature has numbers for, and compares.

    python benchmarks/lm/recipes.py tinyshakespeare --data DIR --out DIR      # 10 minutes on 2 cores
    python benchmarks/lm/recipes.py wikitext2 --data DIR --out DIR            # hours
    python benchmarks/lm/recipes.py wikitext2-tied --data DIR --out DIR

--data is a folder with tinyshakespeare/input.txt and wikitext-2/{train,valid,test}.txt; benchmarks/README.md tells
where these are from. A run that was stopped goes on from --out, but tinyshakespeare, which the clock takes part in,
wants a folder of its own for each run. With --json FILE the figures are written there at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastrnn
from fastrnn.bench import machine
from fastrnn.models import LanguageModel


def shakespeare(data: Path) -> dict[str, str]:
    """The first 90 %, the next 5 % and the last 5 %."""
    text = (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    a, b = len(text) * 90 // 100, len(text) * 95 // 100
    return {"train": text[:a], "valid": text[a:b], "test": text[b:]}


def wikitext2(data: Path) -> dict[str, str]:
    parts = ("train", "valid", "test")
    return {part: (data / "wikitext-2" / f"{part}.txt").read_text(encoding="utf-8") for part in parts}


@dataclass(frozen=True)
class Recipe:
    texts: Callable[[Path], dict[str, str]]
    model: dict[str, Any]
    training: dict[str, Any]
    judged: tuple[str, str, float]  # part, figure, and what it should be at most
    source: str


# pytorch/examples, word_language_model, as of early 2017.
_WORDS = Recipe(
    wikitext2,
    {"level": "word", "embedding": 200, "hidden": 200, "layers": 2, "dropout": 0.2, "seed": 1111},
    {
        "epochs": 6, "batch_size": 20, "bptt": 35, "optimizer": "sgd", "lr": 20.0, "clip": 0.25, "schedule": "plateau",
    },
    ("test", "perplexity", 137.5),
    "the word language model among PyTorch's examples, 6 epochs",
)  # fmt: skip

FINISHED = "finished"  # file in the folder of a run that ended by itself

RECIPES = {
    "tinyshakespeare": Recipe(
        shakespeare,
        {"embedding": 64, "hidden": 512, "layers": 1, "dropout": 0.3, "seed": 1},
        {
            "epochs": 1000, "seconds": 570.0, "batch_size": 32, "bptt": 128, "optimizer": "adam", "lr": 3e-3,
            "clip": 1.0, "schedule": "cosine", "warmup": 50,
        },
        ("valid", "loss", 1.50),
        "a small model, 10 minutes on 2 cores",
    ),
    "wikitext2": _WORDS,
    "wikitext2-tied": Recipe(
        _WORDS.texts, _WORDS.model | {"tie": True}, _WORDS.training, ("test", "perplexity", 130.3), _WORDS.source
    ),
}  # fmt: skip


def run(recipe: Recipe, texts: dict[str, str], out: Path) -> dict[str, Any]:
    model, timed, finished = LanguageModel(**recipe.model), "seconds" in recipe.training, out / FINISHED
    begun = (out / "model.json").exists()
    if begun:
        asked, model = model.config, LanguageModel.load(out)
        if model.config != asked:
            raise ValueError(f"{out} holds another model, {model!r}: remove it, or choose another --out")
        if timed and not finished.exists():  # its rate follows the time
            raise ValueError(
                f"{out} holds a run against the clock that did not end by itself, which cannot be gone on with: "
                "remove it, or choose another --out"
            )
    if not (timed and begun):
        model.fit(texts["train"], texts["valid"], **recipe.training, checkpoint=out, resume=begun)
        finished.touch()
    best = LanguageModel.load(out / "best")
    return {
        "model": model.config,
        "training": recipe.training,
        "parameters": model.num_parameters,
        "symbols": len(model.vocabulary or ()),
        "history": model.history,
        "results": {part: best.evaluate(texts[part]) for part in ("valid", "test")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    recipe = RECIPES[args.recipe]
    try:
        figures = run(recipe, recipe.texts(args.data), args.out)
    except (ValueError, OSError) as error:
        print(f"recipes.py: {error}", file=sys.stderr)
        return 2
    part, name, most = recipe.judged
    figures |= {
        "recipe": args.recipe,
        "source": recipe.source,
        "judged": {"part": part, "figure": name, "most": most, "got": figures["results"][part][name]},
        "threads": fastrnn.get_num_threads(),
        "machine": machine.describe(),
        "commit": machine.commit(),
    }
    for each, result in figures["results"].items():
        print(f"{each}: loss {result['loss']:.4f}, perplexity {result['perplexity']:.2f}, {result['tokens']:,} tokens")
    print(f"{part} {name} {figures['judged']['got']:.4f}, asked for at most {most}", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
