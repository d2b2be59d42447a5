"""Trains the sequence-to-sequence models that the literature has numbers for, and compares.

    python benchmarks/seq2seq/recipes.py g2p-64 --data DIR --out DIR

--data is a folder with cmudict/ for g2p-64, g2p-512 and g2p-attention, and multi30k/ for multi30k-plain and
multi30k-attention; benchmarks/README.md tells where these are from, and how long the recipes take. A run that was
stopped goes on from --out. With --json FILE the figures are written there at the end. sacrebleu is needed for multi30k.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from data import Pairs, cmudict, multi30k

import fastrnn
from fastrnn.bench import machine
from fastrnn.models import metrics
from fastrnn.models.seq2seq import Seq2Seq

BEAMS = (1, 5)


@dataclass(frozen=True)
class Recipe:
    description: str
    source: str  # of what is asked for
    pairs: Callable[[Path], dict[str, Pairs]]
    model: dict[str, Any]
    training: dict[str, Any]
    metrics: tuple[str, ...]  # of outputs
    asked: tuple[str, str, float]  # figure of the greedy outputs for the test sources, "most" or "least", its bound
    unknown: tuple[str, ...] = ("keep",)  # ways to write unknown tokens
    beam_helps: bool = False  # the widest beam is asked to do better

    def figures_of(self, outputs: list[str], pairs: Pairs) -> dict[str, float]:
        return {name: _figure(name, outputs, *pairs) for name in self.metrics}


def _figure(name: str, outputs: list[str], sources: list[str], targets: list[str]) -> float:
    """One of ``models.metrics``, or "error", the share of different sources whose output is none of their targets."""
    if name == "error":
        return 1.0 - metrics.exact(outputs, targets, sources)
    return metrics.score(name, outputs, targets, sources, str.split)


_G2P = {"cell": "lstm", "src_level": "char", "tgt_level": "word", "layers": 2, "seed": 1}
_G2P_TRAINING = {"metric": "exact", "optimizer": "adam", "clip": 1.0, "schedule": "cosine", "warmup": 200}
_G2P_SOURCE = (
    "the tool g2p-seq2seq of the CMU Sphinx project, 2 LSTM layers: word error on CMUdict without stress (whose words "
    "it parted in its own way)"
)
_CAPTIONS = {"level": "word", "min_frequency": 2, "embedding": 256, "hidden": 512, "dropout": 0.5, "seed": 1}
_CAPTIONS_TRAINING = {
    "epochs": 10, "batch_size": 128, "metric": "bleu", "optimizer": "adam", "lr": 1e-3, "clip": 1.0,
}  # fmt: skip

RECIPES = {
    "g2p-64": Recipe(
        "spelling to phonemes, 2 x 64 LSTM without attention, which reads the word from its end",
        _G2P_SOURCE,
        cmudict,
        _G2P | {"embedding": 64, "hidden": 64, "dropout": 0.1, "attention": "none", "reverse": True},
        _G2P_TRAINING | {"epochs": 40, "batch_size": 128, "lr": 4e-3, "label_smoothing": 0.1},
        ("error",),
        ("error", "most", 0.396),
    ),
    "g2p-512": Recipe(
        "spelling to phonemes, 2 x 512 LSTM without attention, which reads the word from its end",
        _G2P_SOURCE,
        cmudict,
        _G2P | {"embedding": 128, "hidden": 512, "dropout": 0.3, "attention": "none", "reverse": True},
        _G2P_TRAINING | {"epochs": 12, "batch_size": 128, "lr": 1e-3, "label_smoothing": 0.1},
        ("error",),
        ("error", "most", 0.311),
    ),
    "g2p-attention": Recipe(
        "spelling to phonemes, 2 x 256 LSTM, bidirectional encoder, attention",
        "an aim of this project",
        cmudict,
        _G2P | {"embedding": 128, "hidden": 256, "dropout": 0.3, "attention": "general", "bidirectional": True},
        _G2P_TRAINING | {"epochs": 12, "batch_size": 128, "lr": 2e-3, "label_smoothing": 0.1},
        ("error",),
        ("error", "most", 0.28),
    ),
    "multi30k-plain": Recipe(
        "German to English, 2 x 512 LSTM without attention, which reads the caption from its end",
        "the first of Ben Trevett's PyTorch tutorials on sequence to sequence learning, 10 epochs",
        multi30k,
        _CAPTIONS | {"cell": "lstm", "layers": 2, "attention": "none", "reverse": True},
        _CAPTIONS_TRAINING,
        ("bleu", "exact"),
        ("bleu", "least", 13.8),
    ),
    # "general": beside "additive" a matrix product in the place of T x S x Q hyperbolic tangents a sentence; of the
    # kinds that Luong et al. tried where attention follows the decoder, as here, one of the two best.
    "multi30k-attention": Recipe(
        "German to English, 512 GRU, bidirectional encoder, attention",
        "the fourth of Ben Trevett's PyTorch tutorials on sequence to sequence learning, 10 epochs",
        multi30k,
        _CAPTIONS | {"cell": "gru", "layers": 1, "attention": "general", "bidirectional": True},
        _CAPTIONS_TRAINING,
        ("bleu", "exact"),
        ("bleu", "least", 28.3),
        unknown=("keep", "copy"),
        beam_helps=True,
    ),
}  # fmt: skip


def train(recipe: Recipe, pairs: dict[str, Pairs], out: Path) -> Seq2Seq:
    """The model with its history, from where the run in ``out`` stands; the best one is in ``out/best``."""
    model, begun = Seq2Seq(**recipe.model), (out / "model.json").exists()
    if begun:
        asked, model = model.config, Seq2Seq.load(out)
        if model.config != asked:
            raise ValueError(f"{out} holds another model, {model!r}: remove it, or choose another --out")
    model.fit(pairs["train"], pairs["valid"], **recipe.training, checkpoint=out, resume=begun)
    return model


def outputs_of(recipe: Recipe, model: Seq2Seq, pairs: Pairs) -> list[dict[str, Any]]:
    """The figures of what the model writes for the sources, greedily and with a beam."""
    found = []
    for unknown in recipe.unknown:
        for beam in BEAMS:
            begun = perf_counter()
            outputs = model.translate(pairs[0], beam, unknown=unknown)
            seconds = round(perf_counter() - begun, 2)
            found.append({"beam": beam, "unknown": unknown, "seconds": seconds, **recipe.figures_of(outputs, pairs)})
    return found


def judge(recipe: Recipe, outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """What was asked for, beside what it came to."""
    (name, way, bound), (greedy, beam) = recipe.asked, outputs[: len(BEAMS)]
    got = greedy[name]
    met = got <= bound if way == "most" else got >= bound
    judged = {"figure": name, way: bound, "got": got, "met": met}
    if recipe.beam_helps:
        judged |= {"beam": beam[name], "beam_met": beam[name] < got if way == "most" else beam[name] > got}
    return judged


def run(recipe: Recipe, pairs: dict[str, Pairs], out: Path) -> dict[str, Any]:
    model = train(recipe, pairs, out)
    best = Seq2Seq.load(out / "best")
    outputs = outputs_of(recipe, best, pairs["test"])
    return {
        "description": recipe.description,
        "source": recipe.source,
        "model": model.config,
        "training": recipe.training,
        "parameters": model.num_parameters,
        "symbols": {name: len(vocabulary) for name, vocabulary in model.vocabularies.items()},
        "pairs": {part: len(each[0]) for part, each in pairs.items()},
        "history": model.history,
        "results": {part: best.evaluate(pairs[part]) for part in ("valid", "test")},
        "outputs": outputs,
        "judged": judge(recipe, outputs),
    }


def show(figures: dict[str, Any]) -> None:
    for part, result in figures["results"].items():
        print(f"{part}: loss {result['loss']:.4f}, perplexity {result['perplexity']:.3f}, {result['tokens']:,} tokens")
    for each in figures["outputs"]:
        named = [f"{name} {each[name]:.4g}" for name in ("bleu", "exact", "error") if name in each]
        print(f"test, beam {each['beam']}, unknown={each['unknown']!r}: {', '.join(named)}")
    judged = figures["judged"]
    way = "most" if "most" in judged else "least"
    print(f"{judged['figure']} {judged['got']:.4g}, asked for at {way} {judged[way]}", file=sys.stderr)


def main() -> int:
    listed = "\n".join(f"  {name:19} {recipe.description}" for name, recipe in RECIPES.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nrecipes:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    recipe = RECIPES[args.recipe]
    try:
        figures = run(recipe, recipe.pairs(args.data), args.out)
    except (ValueError, OSError) as error:
        print(f"recipes.py: {error}", file=sys.stderr)
        return 2
    show(figures)
    if args.json:
        record = {
            "recipe": args.recipe,
            **figures,
            "threads": fastrnn.get_num_threads(),
            "machine": machine.describe(),
            "versions": machine.versions(("sacrebleu",)),
            "commit": machine.commit(),
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
