"""Figures of training, of attention, and of what ``inspection`` and ``gradients`` find; a heat map as a page of HTML.

A figure is a ``matplotlib.figure.Figure``, made without pyplot: no window, no global state; ``save`` writes it.
``draw_*`` draw into axes of your own. They need matplotlib (``pip install 'fastrnn[plot]'``); the page needs nothing.
"""

from __future__ import annotations

import html
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .gradients import ClippingHistory, GradientFlow, GradientNorms
from .inspection import HeatMap, Saturation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .translation import Translation

# Okabe & Ito's colours, which colour-blind people can tell apart.
_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_NEGATIVE, _POSITIVE = (0, 114, 178), (213, 94, 0)
_STRENGTH = 0.7  # of the colour at the ends of the scale: text stays readable on it, in the dark too
_LEVELS = 10  # of each sign on the page
_END = "<eos>"  # of a source
_LONGEST = 30  # characters of a token beside an axis
_HIGHEST = 1e100  # perplexity that is drawn: near the end of the numbers logarithmic axes overflow
_NAMES = {
    "i": "input gate i", "f": "forget gate f", "g": "candidate g", "o": "output gate o",
    "r": "reset gate r", "z": "update gate z", "n": "candidate n", "h": "output h",
}  # fmt: skip


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError("figures need matplotlib: pip install 'fastrnn[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to a file, of the kind that its ending tells."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font need not have every character of a text
        figure.savefig(path, dpi=120)


# -- training ----------------------------------------------------------------------------------------------------------


def learning_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """What ``fit`` recorded after each epoch, of several runs, by what the legend calls them.

    A panel each for loss and perplexity, in training (dashed) and on ``valid``, and for every other figure on
    ``valid`` that the records have, such as ``valid_bleu``.

    Raises:
        ValueError: there is no record.

    Example:
        >>> from fastrnn.models import LanguageModel, figures
        >>> model, text = LanguageModel(embedding=8, hidden=16, seed=1), "hello world. " * 20
        >>> history = model.fit(text, text, epochs=2, batch_size=4, progress=False)
        >>> figure = figures.learning_curves({"LSTM": history})
    """
    keys = dict.fromkeys(key for history in histories.values() for record in history for key in record)
    trained = [name for name in ("loss", "perplexity") if name in keys]
    names = dict.fromkeys([*trained, *(key.removeprefix("valid_") for key in keys if key.startswith("valid_"))])
    if not names:
        raise ValueError("learning_curves: histories must have at least one record, got none")
    figure = new_figure(0.6 + 3.6 * len(names), 3.8)
    from matplotlib.ticker import LogFormatter

    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for color, (run, history) in zip(_COLORS * len(histories), histories.items(), strict=False):
            for key, style, where in ((name, "o--", "training"), (f"valid_{name}", "o-", "valid")):
                values = {record["epoch"]: min(record[key], _HIGHEST) for record in history if key in record}
                if values:
                    label = f"{run}: {where}"
                    axes.plot(*zip(*values.items(), strict=True), style, color=color, markersize=3, label=label)
        _count_along_x(axes, "epoch")
        axes.set_ylabel("loss (nats per token)" if name == "loss" else name, parse_math=False)
        axes.grid(alpha=0.3)
        if name == "perplexity":
            axes.set_yscale("log")
            axes.yaxis.set(major_formatter=LogFormatter(), minor_formatter=LogFormatter())  # 20, not 2 x 10^1
        for text in axes.legend(fontsize="small").get_texts():
            text.set_parse_math(False)
    return figure


# -- attention ---------------------------------------------------------------------------------------------------------


def attention_map(translation: Translation) -> Figure:
    """How much each token of an output, from top to bottom, was read from each of its source and the source's end.

    Raises:
        ValueError: nothing was read: the model has no attention, or the output no token.

    Example:
        >>> import fastrnn
        >>> from fastrnn.models import figures
        >>> model = fastrnn.Seq2Seq(embedding=8, hidden=16, seed=1)
        >>> model.build((["a b c"], ["A B C"]))
        >>> figure = figures.attention_map(model.translations(["c a"])[0][0])
    """
    weights = translation.attention
    if weights is None or not len(weights):
        got = "none" if weights is None else "that of an empty output"
        raise ValueError(f"attention_map: translation must have attention, got {got}")
    sides = [_label(token) for token in (*translation.source, _END)], [_label(token) for token in translation.tokens]
    side = min(0.3, 20.0 / max(map(len, sides)))  # of a cell, in inches
    margin = 0.09 * max(map(len, (label for labels in sides for label in labels))) + 0.5
    figure = new_figure(side * len(sides[0]) + margin + 1.0, side * len(sides[1]) + margin)
    axes = figure.subplots()
    image = axes.imshow(weights, "Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    size = min(9.0, 60.0 * side)  # points
    turned = 90 if max(map(len, sides[0])) > 1 else 0
    axes.set_xticks(range(len(sides[0])), sides[0], rotation=turned, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(sides[1])), sides[1], fontsize=size, parse_math=False)
    axes.xaxis.tick_top()
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def _label(token: str) -> str:
    """A token as people can see it."""
    shown = "".join(character if character.isprintable() else "\ufffd" for character in token.strip()) or "␣"
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


# -- gradients ---------------------------------------------------------------------------------------------------------


def gradient_flow_figure(flows: Mapping[str, GradientFlow]) -> Figure:
    """Gradients of several models against the distance from the loss, by what the legend calls them.

    Example:
        >>> from fastrnn.models import LanguageModel, figures, gradients
        >>> models = {cell: LanguageModel(cell=cell, embedding=8, hidden=16, seed=1) for cell in ("rnn", "lstm")}
        >>> text = "hello world. " * 10
        >>> vocabularies = [model.build(text) for model in models.values()]
        >>> flows = {name: gradients.gradient_flow(model, text, steps=50) for name, model in models.items()}
        >>> figure = figures.gradient_flow_figure(flows)
    """
    figure = new_figure(7.0, 4.5)
    axes = figure.subplots()
    draw_gradient_flow(axes, flows)
    axes.set_title("How far back the gradient reaches")
    return figure


def draw_gradient_flow(axes: Axes, flows: Mapping[str, GradientFlow]) -> None:
    """A line for each model, layer and state: the median over the windows, between the quartiles."""
    colors = iter(_COLORS * sum(flow.norms["h"].shape[0] for flow in flows.values()))
    for name, flow in flows.items():
        layers = flow.norms["h"].shape[0]
        for layer in range(layers):
            color = next(colors)
            for state in flow.norms:
                low, median, high = flow.quartiles(state)[:, layer]
                label = f"{name}, layer {layer}: {state}" if layers > 1 else f"{name}: {state}"
                style = "-" if state == "h" else "--"
                axes.plot(flow.steps_back, median, style, color=color, label=label, linewidth=1.6)
                axes.fill_between(flow.steps_back, low, high, color=color, alpha=0.15, linewidth=0)
    _logarithmic_along_y(axes)
    axes.set_xlabel("steps back from the last loss (tokens)")
    axes.set_ylabel("gradient norm (nats per unit of the state)")
    axes.grid(alpha=0.3)
    axes.legend(title="median and quartiles of windows", fontsize="small", title_fontsize="small")


def gradient_norms_figure(runs: Mapping[str, Sequence[GradientNorms]]) -> Figure:
    """A panel for each model, by its title, with its runs: say, one with and one without clipping.

    Example:
        >>> from fastrnn.models import LanguageModel, figures, gradients
        >>> model, text = LanguageModel(cell="rnn", embedding=8, hidden=16, seed=1), "hello world. " * 10
        >>> vocabulary = model.build(text)
        >>> runs = [gradients.gradient_norms(model, text, steps=20, clip=clip) for clip in (None, 1.0)]
        >>> figure = figures.gradient_norms_figure({"RNN": runs})
    """
    figure = new_figure(max(5.0, 3.5 * len(runs)), 3.8)
    panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for axes, (title, each) in zip(panels, runs.items(), strict=True):
        draw_gradient_norms(axes, each)
        axes.set_title(title)
        axes.label_outer()
    return figure


def draw_gradient_norms(axes: Axes, runs: Sequence[GradientNorms]) -> None:
    """A line for each run before clipping, a dotted one where clipping cuts it, a cross where the run diverged."""
    for color, run in zip(_COLORS * len(runs), runs, strict=False):
        steps = np.arange(1, len(run.norms) + 1)
        label = "without clipping" if run.clip is None else f"clipped to {run.clip:.3g}, before clipping"
        axes.plot(steps, run.norms, color=color, label=label, linewidth=1.2)
        if run.clip is not None:
            axes.plot(steps, run.clipped, ":", color=color, label="after clipping")
        if run.diverged and len(steps):
            axes.plot(steps[-1:], run.norms[-1:], "x", color=color, markersize=9, label="diverged")
    _logarithmic_along_y(axes)
    _count_along_x(axes, "training step")
    axes.set_ylabel("norm of the whole gradient (nats)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def clipping_figure(history: ClippingHistory) -> Figure:
    """The share of clipped steps in each epoch of the training; below it the gradient's norm, where it was recorded."""
    recorded = bool(np.isfinite(history.grad_norm).any())
    figure = new_figure(6.0, 5.0 if recorded else 3.2)
    panels = figure.subplots(1 + recorded, 1, squeeze=False, sharex=True)[:, 0]
    panels[0].plot(history.epoch, 100 * history.clipped, "o-", color=_COLORS[0], markersize=3)
    panels[0].set_ylim(-4, 104)
    panels[0].set_ylabel("clipped steps (%)")
    panels[0].set_title("Clipping during training")
    if recorded:
        panels[1].plot(history.epoch, history.grad_norm, "o-", color=_COLORS[1], markersize=3)
        panels[1].set_ylim(bottom=0)
        panels[1].set_ylabel("mean gradient norm (nats)")
    _count_along_x(panels[-1], "epoch")
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure


def _count_along_x(axes: Axes, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label)


def _logarithmic_along_y(axes: Axes) -> None:
    """Unless all that is drawn is 0, for which such a scale has no place."""
    if np.isfinite(axes.dataLim.minposy):
        axes.set_yscale("log")


# -- activations -------------------------------------------------------------------------------------------------------


def gate_saturation_figure(gates: Sequence[Saturation]) -> Figure:
    """A panel for each gate and a point for each unit, as Karpathy, Johnson and Fei-Fei (2015) draw them.

    To the right: units that are open much of the time. At the top: units that are closed much of the time. On the
    slanting line: always one or the other.

    Example:
        >>> from fastrnn.models import LanguageModel, figures, inspection
        >>> model, text = LanguageModel(embedding=8, hidden=16, seed=1), "hello world. "
        >>> vocabulary = model.build(text)
        >>> figure = figures.gate_saturation_figure(inspection.gate_saturation(model, text))
    """
    names = list(dict.fromkeys(gate.name for gate in gates))
    figure = new_figure(0.3 + 2.9 * len(names), 3.1)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        axes.plot([0, 100], [100, 0], color="#888888", linewidth=0.8, zorder=0)
        for gate in gates:
            if gate.name == name:
                color = _COLORS[(1 + gate.layer) % len(_COLORS)]
                axes.plot(
                    100 * gate.high, 100 * gate.low, "o", color=color, markersize=5, alpha=0.5, markeredgewidth=0,
                    clip_on=False, label=f"layer {gate.layer}",
                )  # fmt: skip
                low, high = gate.thresholds
        axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", title=_NAMES[name])
        axes.set_xlabel(f"time above {high:g} (%)")
        axes.set_ylabel(f"time at most {low:g} (%)")
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper right")
    return figure


def heat_map_figure(heat_map: HeatMap, width: int = 80, lines: int = 50) -> Figure:
    """The text, each character on the colour of what the unit held after its token.

    Lines are broken after ``width`` characters; beyond the first ``lines`` the text is left out.
    """
    rows: list[list[tuple[str, float]]] = [[]]
    for token, value in zip(heat_map.tokens, heat_map.values, strict=True):
        for character in token:
            if len(rows[-1]) == width:
                rows.append([])
            rows[-1].append((character, value))
            if character == "\n":
                rows.append([])
    rows = rows[:lines]
    width = max(map(len, rows))
    grid = np.full((len(rows), width), np.nan)
    for y, row in enumerate(rows):
        grid[y, : len(row)] = [value for _, value in row]

    cell_width, cell_height = 0.085, 0.17  # inches, for letters of 8 points
    height = cell_height * len(rows)
    figure = new_figure(cell_width * width + 1.5, max(height, 1.5) + 0.6)
    from matplotlib.colors import LinearSegmentedColormap

    axes = figure.subplots()
    ends = [_mixed(_NEGATIVE), (1.0, 1.0, 1.0), _mixed(_POSITIVE)]
    image = axes.imshow(
        grid, LinearSegmentedColormap.from_list("sign", ends), vmin=-heat_map.limit, vmax=heat_map.limit,
        aspect=cell_height / cell_width, interpolation="nearest",
    )  # fmt: skip
    for y, row in enumerate(rows):
        for x, (character, _) in enumerate(row):
            shown = "¶" if character == "\n" else character
            if shown.isprintable() and shown != " ":
                letter = axes.text(
                    x, y, shown, family="DejaVu Sans Mono", fontsize=8, ha="center", va="center_baseline",
                    color="#999999" if character == "\n" else "black", parse_math=False,
                )  # fmt: skip
                letter.set_in_layout(False)  # it lies inside the axes: measuring thousands would take long
    axes.set_axis_off()
    axes.set_title(heat_map.label, fontsize="medium", loc="left")
    figure.colorbar(image, ax=axes, shrink=min(1.0, 2.5 / height), aspect=15, anchor=(0.0, 1.0))
    return figure


def _mixed(color: tuple[int, int, int]) -> tuple[float, ...]:
    """The colour as strong as it gets, on white."""
    return tuple(1.0 - _STRENGTH * (1.0 - part / 255) for part in color)


# -- HTML --------------------------------------------------------------------------------------------------------------

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.2rem; }}
#text, #scale {{ font-family: ui-monospace, monospace; font-size: 15px; line-height: 1.6; }}
#text {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
#text .br::before {{ content: "\\00b6"; opacity: 0.4; }}
#scale span {{ padding: 0.2em 0.4em; }}
{levels}
</style>
</head>
<body>
<h1>{title}</h1>
<p id="scale">{low} {scale} {high}</p>
<p>The colour of a token is what the unit held once it had read it; point at one for the number.</p>
<div id="text">{text}</div>
</body>
</html>
"""


def heat_map_html(heat_map: HeatMap, title: str | None = None) -> str:
    """A page of HTML that needs nothing but itself: the text, each token on the colour of its value.

    Blue is negative, orange positive, as the scale above the text shows. The text of the element ``#text`` is that of
    the heat map, whatever markup it holds, with all its spaces and line breaks.

    Example:
        >>> from fastrnn.models import LanguageModel, figures, inspection
        >>> model = LanguageModel(embedding=8, hidden=16, seed=1)
        >>> vocabulary = model.build("hello world. ")
        >>> page = figures.heat_map_html(inspection.unit_heat_map(model, "hello <b>", unit=3))
        >>> "&lt;" in page, "<b>" in page
        (True, False)
    """
    levels = np.rint(heat_map.values / heat_map.limit * _LEVELS).astype(int)
    text = "".join(
        f'<span class="{_level(level)}{_line_break(token)}" title="{value:+.3f}">{_escaped(token)}</span>'
        for token, level, value in zip(heat_map.tokens, levels, heat_map.values, strict=True)
    )
    scale = range(-_LEVELS, _LEVELS + 1)
    return _PAGE.format(
        title=_escaped(heat_map.label if title is None else title),
        levels="\n".join(f".{_level(level)} {{ background: {_background(level)}; }}" for level in scale),
        low=f"{-heat_map.limit:.2f}",
        high=f"{heat_map.limit:+.2f}",
        scale="".join(f'<span class="{_level(level)}"></span>' for level in scale),
        text=text,
    )


def _level(level: int) -> str:
    return f"{'n' if level < 0 else 'p'}{abs(level)}"


def _line_break(token: str) -> str:
    return " br" if token.endswith("\n") else ""


def _background(level: int) -> str:
    red, green, blue = _NEGATIVE if level < 0 else _POSITIVE
    return f"rgb({red} {green} {blue} / {_STRENGTH * abs(level) / _LEVELS:.2f})"


def _escaped(text: str) -> str:
    # A parser would turn a bare carriage return into a line feed.
    return html.escape(text).replace("\r", "&#13;")
