"""``fastrnn lm inspect``: everything that ``inspection`` and ``gradients`` find in a model, as files and as tables."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import check_size
from . import figures
from .gradients import ClippingHistory, GradientFlow, GradientNorms, clipping_history, gradient_flow, gradient_norms
from .inspection import Saturation, Unit, best_units, encode, gate_saturation, tokens_of, unit_heat_map, vocabulary_of
from .kinds import load_best
from .options import read_text
from .predicates import PREDICATES

if TYPE_CHECKING:
    from .language_model import LanguageModel

_CLIP = 1.0  # of the run with clipping


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
) -> str:
    """Look into a model, write what is there to a folder, and return a summary in plain text.

    Files: ``inspection.json`` with all numbers; ``unit.html``, the heat map of one unit; and, where matplotlib is
    installed, ``gradient-flow.png``, ``gradient-norms.png``, ``gate-saturation.png``, ``unit.png``, and
    ``clipping.png`` of a model that was trained.

    Args:
        model: a ``LanguageModel`` with a vocabulary.
        text: of at least ``steps`` + 1 tokens.
        out: the folder, made if missing.
        layer: of the unit; None looks for the unit in all layers, or takes the last layer for a given ``unit``.
        unit: of the heat map; None takes the one that best follows the predicate.
        predicate: a name of ``predicates.PREDICATES``.
        steps: how far back gradients are followed.
        tokens: how many of the text are read for gates, units and heat map.
        training_steps: how many SGD steps copies of the model take, with and without clipping; 0 takes none.

    Raises:
        TypeError, ValueError: naming the argument. OSError: the folder cannot be written.
    """
    where = "inspect"
    tokens = check_size(where, "tokens", tokens)
    training_steps = check_size(where, "training_steps", training_steps, low=0)
    vocabulary = vocabulary_of(where, model)
    if unit is not None:
        unit = check_size(where, "unit", unit, 0, model.hidden - 1)
    flow = gradient_flow(model, text, steps)
    encode(where, model, text)
    start = "".join(tokens_of(vocabulary, text)[:tokens])
    units = best_units(model, start, predicate, layer)
    if unit is None:
        shown = unit_heat_map(model, start, units[0].unit, units[0].layer)
    else:
        shown = unit_heat_map(model, start, unit, -1 if layer is None else layer)
    gates = gate_saturation(model, start)
    clipping = clipping_history(model)
    runs = [gradient_norms(model, text, training_steps, clip=clip) for clip in (None, _CLIP) if training_steps]

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "model": model.config,
        "tokens": len(shown.tokens),
        "gradient_flow": flow.to_dict(),
        "gradient_norms": [run.to_dict() for run in runs],
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
        "gradient-flow": lambda: figures.gradient_flow_figure({model.cell.upper(): flow}),
        "gate-saturation": lambda: figures.gate_saturation_figure(gates),
        "unit": lambda: figures.heat_map_figure(shown),
    }
    if runs:
        drawn["gradient-norms"] = lambda: figures.gradient_norms_figure({model.cell.upper(): runs})
    if len(clipping.epoch):
        drawn["clipping"] = lambda: figures.clipping_figure(clipping)
    note = ""
    try:
        figures.new_figure(1.0, 1.0)
    except RuntimeError as error:  # no matplotlib
        drawn, note = {}, f"; {error}"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font need not have every character of the text
        for name, draw in drawn.items():
            draw().savefig(folder / f"{name}.png", dpi=120)
            written.append(f"{name}.png")
    return "\n".join(
        [
            *_flow_lines(flow),
            *_gate_lines(gates),
            *_run_lines(runs),
            *_clipping_lines(clipping),
            *_unit_lines(predicate, units),
            f"{folder}: {', '.join(written)}{note}",
        ]
    )


# -- the summary -------------------------------------------------------------------------------------------------------


def _table(*rows: Sequence[str]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    yield ""


def _flow_lines(flow: GradientFlow) -> Iterator[str]:
    last = len(flow.steps_back)
    places = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if k < last] + [last]
    yield "Gradient of the last token's loss by the state some steps before: median norm of the windows"
    rows = [["layer", "state", *map(str, places)]]
    for layer in range(flow.norms["h"].shape[0]):
        for state in flow.norms:
            median = flow.quartiles(state)[1, layer]
            rows.append([str(layer), state, *(f"{median[k - 1]:.1e}" for k in places)])
    yield from _table(*rows)


def _gate_lines(gates: list[Saturation]) -> Iterator[str]:
    yield "Gates: the share of the time near their ends, mean over the units"
    rows = [["layer", "gate", "low", "", "high", ""]]
    for gate in gates:
        low, high = gate.thresholds
        ends = f"{gate.low.mean():.1%}", f"below {low:g}", f"{gate.high.mean():.1%}", f"above {high:g}"
        rows.append([str(gate.layer), gate.name, *ends])
    yield from _table(*rows)


def _run_lines(runs: list[GradientNorms]) -> Iterator[str]:
    if not runs:
        return
    yield "Training a copy on this text: norm of the gradient, before clipping"
    rows = [["clip", "steps", "first", "largest", "last", ""]]
    for run in runs:
        norms = (
            [f"{norm:.2g}" for norm in (run.norms[0], run.norms.max(), run.norms[-1])] if len(run.norms) else ["-"] * 3
        )
        clip = "none" if run.clip is None else f"{run.clip:g}"
        rows.append([clip, str(len(run.norms)), *norms, "diverged" if run.diverged else ""])
    yield from _table(*rows)


def _clipping_lines(clipping: ClippingHistory) -> Iterator[str]:
    if len(clipping.epoch):
        first, last = clipping.clipped[0], clipping.clipped[-1]
        yield f"Clipped steps while it was trained: {first:.1%} in the first epoch, {last:.1%} in the last"
        yield ""


def _unit_lines(predicate: str, units: list[Unit]) -> Iterator[str]:
    yield f"Units that follow {predicate}"
    rows = [[str(each.layer), str(each.unit), f"{each.correlation:+.3f}"] for each in units]
    yield from _table(["layer", "unit", "correlation"], *rows)


# -- the command -------------------------------------------------------------------------------------------------------


def _inspect(args: argparse.Namespace) -> None:
    model: Any = load_best(args.model)
    summary = inspect(
        model,
        read_text(args.file),
        args.out or Path(args.model, "inspection"),
        layer=args.layer,
        unit=args.unit,
        predicate=args.predicate,
        steps=args.steps,
        tokens=args.tokens,
        training_steps=args.training_steps,
    )
    print(summary)


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
