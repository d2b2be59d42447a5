"""``fastrnn lm inspect``: everything that ``inspection`` and ``gradients`` find in a model, as files and as tables."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import check_real, check_size
from ..output import as_text
from . import figures
from .gradients import ClippingHistory, GradientFlow, GradientNorms, clipping_history, gradient_flow, gradient_norms
from .inspection import Saturation, Unit, best_units, gate_saturation, unit_heat_map, vocabulary_of
from .kinds import load_best
from .options import read_text
from .predicates import PREDICATES

if TYPE_CHECKING:
    from .language_model import LanguageModel

_LABELS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "rnn_relu": "ReLU RNN"}


def inspect(
    model: LanguageModel,
    text: str,
    out: str | os.PathLike[str],
    *,
    layer: int | None = None,
    unit: int | None = None,
    predicate: str = "line_position",
    steps: int = 200,
    tokens: int = 2000,
    training_steps: int = 20,
    lr: float = 1.0,
    clip: float | None = None,
    label: str | None = None,
    beside: Mapping[str, LanguageModel] | None = None,
) -> str:
    """Look into a model, write what is there to a folder, and return a summary in plain text.

    Files: ``inspection.json`` with all numbers; ``unit.html``, the heat map of one unit; and, where matplotlib is
    installed, ``gradient-flow.png``, ``gradient-norms.png``, ``gate-saturation.png``, ``unit.png``, and
    ``clipping.png`` of a model that was trained. Gradients are those of the models ``beside`` it, too.

    Args:
        model: a ``LanguageModel`` with a vocabulary.
        text: of at least ``steps`` + 1 tokens.
        out: the folder, made if missing.
        layer: of the unit; None looks for the unit in all layers, or takes the last layer for a given ``unit``.
        unit: of the heat map; None takes the one that best follows the predicate.
        predicate: a name of ``predicates.PREDICATES``.
        steps: how far back gradients are followed.
        tokens: how many of the text are read for gates, units and heat map.
        training_steps: how many SGD steps copies of each model take, with and without clipping; 0 takes none.
        lr: learning rate of these steps > 0.
        clip: largest norm of the gradient in the run with clipping; None takes half the median norm of the model's run
            without, or half that of its first step if it is less, so that it bites; 0 leaves the run with clipping out.
        label: what tables and figures call the model; None: its cell.
        beside: models to compare with, each with a label of its own; their vocabularies may be others.

    Raises:
        TypeError, ValueError: naming the argument. OSError: the folder cannot be written.
    """
    where = "inspect"
    tokens = check_size(where, "tokens", tokens)
    training_steps = check_size(where, "training_steps", training_steps, low=0)
    lr = check_real(where, "lr", lr, above=True)
    clip = None if clip is None else check_real(where, "clip", clip)
    others = dict(beside or {})
    for each in (model, *others.values()):
        vocabulary_of(where, each)
    label = _LABELS[model.cell] if label is None else label
    if label in others:
        raise ValueError(f"{where}: beside must have other labels than that of the model, got {label!r}")
    models = {label: model, **others}
    if unit is not None:
        unit = check_size(where, "unit", unit, 0, model.outputs - 1)
    flows = {name: gradient_flow(each, text, steps) for name, each in models.items()}
    start = "".join(vocabulary_of(where, model).pieces(text)[:tokens])
    units = best_units(model, start, predicate, layer)
    if unit is None:
        shown = unit_heat_map(model, start, units[0].unit, units[0].layer)
    else:
        shown = unit_heat_map(model, start, unit, -1 if layer is None else layer)
    gates = gate_saturation(model, start)
    clipping = clipping_history(model)
    runs = {name: _runs(each, text, training_steps, lr, clip) for name, each in models.items() if training_steps}

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "models": {name: each.config for name, each in models.items()},
        "tokens": len(shown.tokens),
        "gradient_flow": {name: flow.to_dict() for name, flow in flows.items()},
        "lr": lr,
        "gradient_norms": {name: [run.to_dict() for run in each] for name, each in runs.items()},
        "gate_saturation": [gate.to_dict() for gate in gates],
        "clipping": clipping.to_dict(),
        "predicate": predicate,
        "units": [vars(each) for each in units],
        "heat_map": shown.to_dict(),
    }
    (folder / "inspection.json").write_text(json.dumps(data, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "unit.html").write_text(figures.heat_map_html(shown), encoding="utf-8", newline="")
    written = ["inspection.json", "unit.html"]
    drawn: dict[str, Callable[[], Any]] = {
        "gradient-flow": lambda: figures.gradient_flow_figure(flows),
        "gate-saturation": lambda: figures.gate_saturation_figure(gates),
        "unit": lambda: figures.heat_map_figure(shown),
    }
    if runs:
        drawn["gradient-norms"] = lambda: figures.gradient_norms_figure(runs)
    if len(clipping.epoch):
        drawn["clipping"] = lambda: figures.clipping_figure(clipping)
    note = ""
    try:
        figures.new_figure(1.0, 1.0)
    except RuntimeError as error:  # no matplotlib
        drawn, note = {}, f"; {error}"
    for name, draw in drawn.items():
        figures.save(draw(), folder / f"{name}.png")
        written.append(f"{name}.png")
    return "\n".join(
        [
            *_flow_lines(flows, steps),
            *_gate_lines(gates),
            *_run_lines(runs, lr, clip),
            *_clipping_lines(clipping),
            *_unit_lines(predicate, units),
            f"{folder}: {', '.join(written)}{note}",
        ]
    )


def _runs(model: LanguageModel, text: str, steps: int, lr: float, clip: float | None) -> list[GradientNorms]:
    """Without and with clipping; without alone for a ``clip`` of 0, or where norms, none or 0, give no default."""
    free = gradient_norms(model, text, steps, lr=lr)
    if clip is None and len(free.norms):
        # The norms of a run that explodes say nothing of what is large; its first one does.
        clip = 0.5 * min(float(np.median(free.norms)), float(free.norms[0]))
    return [free, gradient_norms(model, text, steps, lr=lr, clip=clip)] if clip else [free]


# -- the summary -------------------------------------------------------------------------------------------------------


def _flow_lines(flows: Mapping[str, GradientFlow], last: int) -> Iterator[str]:
    places = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if k < last] + [last]
    yield "Gradient of the last token's loss by the state some steps before: median norm of the windows"
    rows = []
    for name, flow in flows.items():
        for layer in range(flow.norms["h"].shape[0]):
            for state in flow.norms:
                median = flow.quartiles(state)[1, layer]
                rows.append([name, str(layer), state, *(f"{median[k - 1]:.1e}" for k in places)])
    yield as_text((["model", "layer", "state", *map(str, places)], rows))
    yield ""


def _gate_lines(gates: list[Saturation]) -> Iterator[str]:
    yield "Gates: the share of the time near their ends, mean over the units"
    rows = []
    for gate in gates:
        low, high = gate.thresholds
        ends = f"{gate.low.mean():.1%}", f"at most {low:g}", f"{gate.high.mean():.1%}", f"above {high:g}"
        rows.append([str(gate.layer), gate.name, *ends])
    yield as_text((["layer", "gate", "low", "", "high", ""], rows))
    yield ""


def _run_lines(runs: Mapping[str, Sequence[GradientNorms]], lr: float, clip: float | None) -> Iterator[str]:
    if not runs:
        return
    yield f"Training copies on this text by SGD at a rate of {lr:g}: norm of the gradient, before clipping"
    if clip is None:
        yield "Clipped to half the median norm of the run without clipping, or half its first norm if that is less"
    rows = []
    for name, run in ((name, run) for name, each in runs.items() for run in each):
        norms = (
            [f"{norm:.2g}" for norm in (run.norms[0], run.norms.max(), run.norms[-1])] if len(run.norms) else ["-"] * 3
        )
        limit = "none" if run.clip is None else f"{run.clip:.3g}"
        rows.append([name, limit, str(len(run.norms)), *norms, "diverged" if run.diverged else ""])
    yield as_text((["model", "clip", "steps", "first", "largest", "last", ""], rows))
    yield ""


def _clipping_lines(clipping: ClippingHistory) -> Iterator[str]:
    if len(clipping.epoch):
        first, last = clipping.clipped[0], clipping.clipped[-1]
        yield f"Clipped steps while it was trained: {first:.1%} in the first epoch, {last:.1%} in the last"
        yield ""


def _unit_lines(predicate: str, units: list[Unit]) -> Iterator[str]:
    yield f"Units that follow {predicate}"
    rows = [[str(each.layer), str(each.unit), f"{each.correlation:+.3f}"] for each in units]
    yield as_text((["layer", "unit", "correlation"], rows))
    yield ""


# -- the command -------------------------------------------------------------------------------------------------------


def _inspect(args: argparse.Namespace) -> None:
    folders = [args.model, *args.beside]
    models: list[Any] = [load_best(folder) for folder in folders]
    for folder, each in zip(folders, models, strict=True):
        vocabulary_of(f"inspect: {folder}", each)
    labels = _labels(models, folders)
    summary = inspect(
        models[0],
        read_text(args.file),
        args.out or Path(args.model, "inspection"),
        layer=args.layer,
        unit=args.unit,
        predicate=args.predicate,
        steps=args.steps,
        tokens=args.tokens,
        training_steps=args.training_steps,
        lr=args.lr,
        clip=args.clip,
        label=labels[0],
        beside=dict(zip(labels[1:], models[1:], strict=True)),
    )
    print(summary)


def _labels(models: list[Any], folders: list[str]) -> list[str]:
    """The cell, and where models share it the folder's name, or its path where they share that too."""
    labels = cells = [_LABELS[model.cell] for model in models]
    for names in ([Path(folder).resolve().name for folder in folders], folders):
        labels = [
            f"{cell} ({name})" if labels.count(label) > 1 else label
            for label, cell, name in zip(labels, cells, names, strict=True)
        ]
    if repeated := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise ValueError(f"inspect: --beside must name other models than DIR, each once, got {repeated} again")
    return labels


def add_inspect(
    add: Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser],
    count: Callable[[str], int],
    natural: Callable[[str], int],
) -> None:
    """Adds ``inspect``: add(name, run, help) makes its parser; count and natural take integers >= 1 and >= 0."""
    parser = add("inspect", _inspect, "look inside a recurrent model: gradients, gates, units")
    parser.add_argument("file", type=Path, metavar="FILE", help="text in UTF-8")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the files go (default: inspection in the model's)"
    )
    parser.add_argument("--layer", type=natural, metavar="N", help="of the unit, from 0 (default: any)")
    parser.add_argument(
        "--unit", type=natural, metavar="N", help="to show, from 0 (default: the best for the predicate)"
    )
    parser.add_argument(
        "--predicate", choices=tuple(PREDICATES), default="line_position", help="(default: line_position)"
    )
    parser.add_argument("--steps", type=count, default=200, metavar="N", help="that gradients are followed back (200)")
    parser.add_argument("--tokens", type=count, default=2000, metavar="N", help="read for gates and units (2000)")
    parser.add_argument(
        "--training-steps", type=natural, default=20, metavar="N",
        help="of copies, with and without clipping; 0: none (20)",
    )  # fmt: skip
    parser.add_argument("--lr", type=float, default=1.0, metavar="X", help="learning rate of these steps (1)")
    parser.add_argument(
        "--clip", type=float, metavar="X",
        help="largest norm of their gradients; 0: any (default: half the median norm of the steps without clipping, or "
        "half the first if that is less)",
    )  # fmt: skip
    parser.add_argument(
        "--beside", nargs="+", action="extend", default=[], metavar="DIR",
        help="folders of more models, to compare gradients; comes after FILE",
    )  # fmt: skip
