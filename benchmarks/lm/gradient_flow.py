"""How far back the gradient reaches in RNN, GRU and LSTM of the same size on the same text, and what clipping does.

    python benchmarks/lm/gradient_flow.py --data DIR [--json FILE] [--plot PNG]      # 3 minutes on 2 cores

--data is a folder with tinyshakespeare/input.txt; benchmarks/README.md tells where it is from. Each model learns from
the first 90 %. Before that and after, on the rest: the gradient of the last token's loss by the states of the 200
steps before it. Then fresh models take some steps of SGD, with and without clipping. Nothing here depends on the
speed of the machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image  # a dependency of matplotlib

from fastrnn.bench import machine
from fastrnn.models import LanguageModel, figures, gradients
from fastrnn.models.gradients import GradientFlow, GradientNorms

CELLS = {"RNN (tanh)": "rnn", "GRU": "gru", "LSTM": "lstm"}
MODEL = {"embedding": 32, "hidden": 128, "layers": 1, "seed": 1}
TRAINING = {"batch_size": 32, "bptt": 128, "optimizer": "adam", "lr": 3e-3, "clip": 1.0}
FLOW = {"steps": 200, "windows": 64}
STEPS = {"steps": 150, "lr": 2.0, "batch_size": 16, "bptt": 100}
CLIPS = (None, 0.25)


def measured(cell: str, train: str, held_out: str, epochs: int) -> dict[str, Any]:
    model = LanguageModel(cell=cell, **MODEL)
    model.build(train)
    runs = [gradients.gradient_norms(model, train, clip=clip, **STEPS) for clip in CLIPS]
    before = gradients.gradient_flow(model, held_out, **FLOW)
    model.fit(train, epochs=epochs, **TRAINING)
    return {
        "parameters": model.num_parameters,
        "loss": model.evaluate(held_out, batch_size=32)["loss"],
        "before": before,
        "after": gradients.gradient_flow(model, held_out, **FLOW),
        "runs": runs,
    }


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    figure = figures.new_figure(9.5, 7.5)
    flow_part, norms_part = figure.subfigures(2, 1, height_ratios=(1.2, 1.0))
    panels = flow_part.subplots(1, 2, sharey=True)
    for axes, when, title in zip(panels, ("before", "after"), ("before training", "after training"), strict=True):
        figures.draw_gradient_flow(axes, {name: result[when] for name, result in results.items()})
        axes.set_title(title)
        axes.label_outer()
    panels[1].get_legend().remove()
    flow_part.suptitle(
        f"Gradient of one token's loss by the state up to {FLOW['steps']} steps before, on text held out"
    )
    panels = norms_part.subplots(1, len(results), sharey=True)
    for axes, (name, result) in zip(panels, results.items(), strict=True):
        figures.draw_gradient_norms(axes, result["runs"])
        axes.set_title(name)
        axes.label_outer()
    norms_part.suptitle(f"Training a fresh model with SGD at a rate of {STEPS['lr']:g}")
    figure.savefig(path, dpi=80)
    with Image.open(path) as image:  # with a palette it takes a third of the bytes
        small = image.convert("RGB").quantize(64)
    small.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    text = (args.data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    cut = len(text) * 90 // 100
    results = {name: measured(cell, text[:cut], text[cut:], args.epochs) for name, cell in CELLS.items()}
    for name, result in results.items():
        for when in ("before", "after"):
            flow: GradientFlow = result[when]
            for state in flow.norms:
                median = flow.quartiles(state)[1, 0]
                reached = ", ".join(f"{k}: {median[k - 1]:.1e}" for k in (1, 10, 50, 100, FLOW["steps"]))
                print(f"{name} {when} training, {state}, by steps back: {reached}")
        run: GradientNorms
        for run in result["runs"]:
            print(f"{name} clip={run.clip}: largest norm {run.norms.max():.1f}, loss at the end {run.losses[-1]:.2f}")
    if args.json:
        numbers = {
            name: result
            | {"before": result["before"].to_dict(), "after": result["after"].to_dict()}
            | {"runs": [run.to_dict() for run in result["runs"]]}
            for name, result in results.items()
        }
        data = {
            "model": MODEL,
            "training": TRAINING | {"epochs": args.epochs},
            "flow": FLOW,
            "sgd": STEPS,
            "results": numbers,
            "machine": machine.describe(),
            "commit": machine.commit(),
        }
        args.json.write_text(json.dumps(data) + "\n", encoding="utf-8")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
