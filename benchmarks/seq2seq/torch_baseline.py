"""Speed of sequence-to-sequence models beside the same models written plainly in PyTorch: training and decoding.

    python benchmarks/seq2seq/torch_baseline.py --data DIR --models DIR --json FILE        # all shapes; a quarter hour
    python benchmarks/seq2seq/torch_baseline.py --data DIR --shapes g2p-512 --seconds 10

--data as for recipes.py, whose models these are, without dropout; plain.py has them in PyTorch. --models is a folder
with the --out folders of trained recipes by their names: the weights for decoding. A model that is not there decodes
after the steps that were timed, and may write until the limits.

Both sides have the same weights, learn from the same batches and take turns. Where the losses of a step or outputs
differ by more than rounding explains, there is no speed to report, and the exit status is 2. In training there is a
third side: PyTorch without packed sequences, a model that reads what stands past the ends of sources, too. Speeds are
medians of steps, or of rounds over the sentences, with the interquartile range over the median; ratios are medians of
those of each turn. PyTorch's times are without making tensors of batches, ids of words and words of ids.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import plain
import torch
from recipes import BEAMS, RECIPES

import fastrnn
from fastrnn.bench import machine
from fastrnn.models.pairs_model import MAX_LENGTH, _Data, similar
from fastrnn.models.schedules import Options
from fastrnn.models.seq2seq import Seq2Seq
from fastrnn.models.training import Trainer

SHAPES = ("multi30k-plain", "multi30k-attention", "g2p-512")
CLIP = 1.0
ASKED = {"training": 1.4, "decoding": 3.0}  # times torch's speed
WARMUP = 3  # steps that find cold caches and make torch's buffers
TOGETHER = 64  # sentences that are decoded side by side


def speeds(times: dict[str, list[float]], unit: str, counts: list[int]) -> dict[str, Any]:
    """Of each side, from the seconds that it took for the same work in turns, ``counts`` tokens or sentences each."""
    result: dict[str, Any] = {"turns": len(counts)}
    for name, each in times.items():
        low, median, high = np.quantile(np.array(counts) / each, (0.25, 0.5, 0.75))
        result[name] = {f"{unit}_per_second": round(median, 1), "spread": round((high - low) / median, 3)}
        if name != "fastrnn":
            ratio = float(np.median(np.array(each) / times["fastrnn"]))
            result[name.replace("torch", "ratio")] = round(ratio, 3)
    return result


def make_trainer(name: str, data: Path, dropout: float = 0.0) -> Trainer:
    """That of a recipe's model before its first step."""
    recipe = RECIPES[name]
    model, pairs = Seq2Seq(**recipe.model | {"dropout": dropout}), recipe.pairs(data)["train"]
    model.build(pairs)
    source, target = model._ids("make_trainer", "pairs", pairs, pairs, MAX_LENGTH)
    batches = _Data(
        partial(model._batch, source, target), np.maximum(source.lengths, target.lengths), target.lengths,
        batch_size=recipe.training["batch_size"], max_tokens=None, seed=0, fingerprint=[], what="train pairs",
        extra_options={"label_smoothing": 0.0, "sampling": 0.0},
    )  # fmt: skip
    options = Options.checked("make_trainer", optimizer="adam", lr=recipe.training["lr"], clip=CLIP)
    return Trainer(model, batches, options, epochs=10**6)


def make_plain(model: Seq2Seq, packs: bool = True) -> plain.Plain:
    source, target = model.vocabularies["source"], model.vocabularies["target"]
    theirs = plain.Plain(model.config, len(source), len(target), int(target.encode("\n")[0]), packs)
    theirs.load(model.state_dict())
    return theirs


def rounding(model: Seq2Seq, steps: int, terms: int = 1) -> float:
    """How far float32 may take a loss or log p, in nats, over this many steps of the layers one after another.

    A sum of n terms is off by eps sqrt(n), and each step of a layer begins with what the one before it was off by;
    ``terms``: of the longest sum, if that is not in one of the weights.
    """
    longest = max(terms, *(array.shape[-1] for array in model.state_dict().values()))
    return float(np.finfo(np.float32).eps) * math.sqrt(longest) * steps


def measure_training(trainer: Trainer, seconds: float) -> dict[str, Any]:
    model, batches = trainer.model, trainer.data
    packed, padded = (plain.Trainer(make_plain(model, packs), trainer.options.lr, CLIP) for packs in (True, False))
    times: dict[str, list[float]] = {"fastrnn": [], "torch": [], "torch_padded": []}
    counts, worst, end = [], 0.0, perf_counter() + seconds
    while perf_counter() < end or trainer.steps < WARMUP + 5:
        batch = batches.batch(trainer.epoch, trainer.position)
        tensors, tokens = plain.Batch(batch), int(batch.target_lengths.sum())
        clock = [perf_counter()]
        own, _ = trainer.step(0.0)
        clock.append(perf_counter())
        loss = packed.step(tensors)
        clock.append(perf_counter())
        padded.step(tensors)
        clock.append(perf_counter())
        # Each update begins with what those before it were off by.
        bound = rounding(model, len(batch.source) + len(batch.inputs), tokens) * trainer.steps
        difference = abs(own - loss)
        if not difference <= bound:
            raise ValueError(
                f"losses of step {trainer.steps} must differ by at most {bound:.1e}, got {difference:.1e} at {loss:.4f}"
            )
        worst = max(worst, difference)
        if trainer.steps > WARMUP:
            for each, taken in zip(times.values(), np.diff(clock), strict=True):
                each.append(taken)
            counts.append(tokens)
        if trainer.at_end:
            break
    return speeds(times, "tokens", counts) | {"asked": ASKED["training"], "loss_difference": worst}


def measure_decoding(model: Seq2Seq, lines: list[str], beam: int, seconds: float) -> dict[str, Any]:
    """On these sources."""
    theirs = make_plain(model)
    ids = model._sentences("measure_decoding", "lines", "source", lines, lines, MAX_LENGTH)
    limits = torch.from_numpy(2 * (ids.lengths - 1) + 10)  # as ``translate`` has it
    batches, alone = (
        [
            (rows, *(torch.from_numpy(np.array(each)) for each in ids.batch(rows)))
            for rows in similar(ids.lengths, together)
        ]
        for together in (TOGETHER, 1)
    )
    find: Callable[..., list[list[int]]] = plain.greedy if beam == 1 else partial(plain.beam_search, width=beam)

    def outputs(batches: Any = batches) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in lines]
        for rows, source, lengths in batches:
            for row, output in zip(rows, find(theirs, source, lengths, limits[rows]), strict=True):
                found[row] = output
        return found

    def translate() -> list[str]:
        return model.translate(lines, beam, unknown="keep", batch_size=TOGETHER)

    found = outputs()
    tokens, decoded = sum(map(len, found)), [model.vocabularies["target"].decode(output) for output in found]
    different = [i for i, (a, b) in enumerate(zip(translate(), decoded, strict=True)) if a != b]
    for rows, source, lengths in batches:
        if others := set(rows.tolist()).intersection(different):
            margins = plain.Margins(len(rows))
            find(theirs, source, lengths, limits[rows], margins=margins)
            for row, margin in zip(rows.tolist(), margins.smallest.tolist(), strict=True):
                bound = rounding(model, len(source) + int(limits[row]))
                if row in others and margin > bound:
                    raise ValueError(
                        f"outputs for {lines[row]!r} must be the same, or as near as {bound:.1e}, got {margin:.1e}"
                    )
    calls = {"fastrnn": translate, "torch": outputs, "torch_alone": partial(outputs, alone)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = perf_counter() + seconds
    while perf_counter() < end or len(times["torch"]) < 3:
        for name, call in calls.items():
            start = perf_counter()
            call()
            times[name].append(perf_counter() - start)
    return speeds(times, "sentences", [len(lines)] * len(times["torch"])) | {
        "asked": ASKED["decoding"],
        "sentences": len(lines),
        "tokens_per_sentence": round(tokens / len(lines), 1),
        "equal": 1.0 - len(different) / len(lines),
    }


def measure(name: str, data: Path, models: Path | None, seconds: float, sentences: int) -> dict[str, Any]:
    trainer = make_trainer(name, data)
    row = {"model": trainer.model.config, "batch": trainer.data.options["batch_size"]}
    row["training"] = measure_training(trainer, seconds)
    show(name, "training", row["training"], "tokens")
    model, trained = trainer.model, models is not None and (models / name / "best").exists()
    if trained:
        model = Seq2Seq.load(models / name / "best")
    lines = list(dict.fromkeys(RECIPES[name].pairs(data)["test"][0]))
    lines = lines[:: max(1, len(lines) // sentences)][:sentences]
    row["trained"], row["decoding"] = trained, {}
    for beam in BEAMS:
        row["decoding"][str(beam)] = figures = measure_decoding(model, lines, beam, seconds)
        show(name, f"beam {beam}", figures, "sentences")
    return row


def show(name: str, what: str, figures: dict[str, Any], unit: str) -> None:
    per_second = ", ".join(f"{each} {figures[each][f'{unit}_per_second']:,.1f}" for each in ("fastrnn", "torch"))
    agreement = (
        f"losses differ by {figures['loss_difference']:.1e}"
        if "loss_difference" in figures
        else f"{figures['equal']:.1%} of the outputs are equal, {figures['tokens_per_sentence']} tokens each"
    )
    ratio = f"{figures['ratio']:.2f} times (asked for {figures['asked']})"
    if "ratio_padded" in figures:
        ratio += f", {figures['ratio_padded']:.2f} times without packing"
    if "ratio_alone" in figures:
        ratio += f", {figures['ratio_alone']:.2f} times torch with one sentence at a time"
    print(f"{name:18} {what:8} {per_second} {unit}/s: {ratio}, {agreement}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, help="folder of trained models")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES, metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each shape and of training, greedy and beam")
    parser.add_argument("--sentences", type=int, default=256, help="of the test sources, which are decoded")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(fastrnn.get_num_threads())
    try:
        rows = {name: measure(name, args.data, args.models, args.seconds, args.sentences) for name in args.shapes}
    except (ValueError, OSError) as error:
        print(f"torch_baseline.py: {error}", file=sys.stderr)
        return 2
    if args.json:
        record = {
            "clip": CLIP,
            "threads": fastrnn.get_num_threads(),
            "machine": machine.describe(),
            "versions": machine.versions(("torch",)),
            "commit": machine.commit(),
            "seq2seq": rows,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
