"""What is seen inside a model, shown: the page, the figures and the command."""

from __future__ import annotations

import argparse
import html.parser
import json
import sys

import numpy as np
import pytest

from fastrnn import cli
from fastrnn.models import LanguageModel, figures, gradients, inspection
from fastrnn.models.inspect_command import add_inspect, inspect
from fastrnn.models.window_model import WindowModel
from inspected import PROSE, built

# -- HTML --------------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Checks that every element is closed where it should be, and collects what tests ask for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.seen, self.text, self.headings, self.classes = [], set(), "", [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen |= {tag} | {name for name, _ in attrs}
        if tag != "meta":
            self.open.append((tag, dict(attrs).get("id")))
        if ("div", "text") in self.open and tag == "span":
            self.classes.append(dict(attrs)["class"].split())

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if ("div", "text") in self.open:
            self.text += data
        if self.open and self.open[-1][0] in ("title", "h1"):
            self.headings.append(data)


@pytest.mark.parametrize("text", ["</script><b>&amp;\"'<!-- \r\n\t\n  x", "</div>{title}&#13;\r", PROSE, "\n"])
@pytest.mark.parametrize("level", ["char", "word"])
def test_page_holds_the_text_and_nothing_foreign(text, level):
    heat_map = inspection.unit_heat_map(built(text + " a", level=level), text, 3)
    page = Page(figures.heat_map_html(heat_map, title="<i>&"))
    assert page.text == "".join(heat_map.tokens)
    assert level == "word" or page.text == text
    assert page.headings == ["<i>&"] * 2
    assert page.seen.isdisjoint({"script", "link", "img", "iframe", "src", "href", "style-src", "onclick", "b", "i"})


def test_colours_of_the_page():
    heat_map = inspection.HeatMap(list("abc\nd"), np.array([-0.5, 0.0, 0.25, 0.5, -0.01]), 0, 1, "h")
    html_page = figures.heat_map_html(heat_map)
    page = Page(html_page)
    assert page.classes == [["n10"], ["p0"], ["p5"], ["p10", "br"], ["p0"]]
    assert page.headings[0] == "h of unit 1 in layer 0"
    assert ".n10 { background: rgb(0 114 178 / 0.70); }" in html_page
    assert "-0.50 <span" in html_page
    assert "</span> +0.50" in html_page
    flat = inspection.HeatMap(["a"], np.zeros(1), 0, 1, "h")
    assert flat.limit == 1.0
    assert Page(figures.heat_map_html(flat)).classes == [["p0"]]


# -- figures -----------------------------------------------------------------------------------------------------------


def test_figures_show_the_numbers():
    pytest.importorskip("matplotlib")
    models = {cell.upper(): built(cell=cell, layers=2) for cell in ("rnn", "gru", "lstm")}
    flows = {name: gradients.gradient_flow(model, PROSE, 8) for name, model in models.items()}
    figure = figures.gradient_flow_figure(flows)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(lines)[:3] == ["RNN, layer 0: h", "RNN, layer 1: h", "GRU, layer 0: h"]
    np.testing.assert_array_equal(lines["LSTM, layer 1: c"].get_ydata(), flows["LSTM"].quartiles("c")[1, 1])
    np.testing.assert_array_equal(lines["LSTM, layer 1: c"].get_xdata(), np.arange(1, 9))
    assert figure.axes[0].get_yscale() == "log"

    runs = {name: [gradients.gradient_norms(m, PROSE, 4, clip=c) for c in (None, 0.3)] for name, m in models.items()}
    figure = figures.gradient_norms_figure(runs)
    assert [axes.get_title() for axes in figure.axes] == list(runs)
    free, before, after = figure.axes[2].get_lines()
    np.testing.assert_array_equal(free.get_ydata(), runs["LSTM"][0].norms)
    np.testing.assert_array_equal(before.get_ydata(), runs["LSTM"][1].norms)
    np.testing.assert_array_equal(after.get_ydata(), runs["LSTM"][1].clipped)

    gates = inspection.gate_saturation(models["GRU"], PROSE)
    figure = figures.gate_saturation_figure(gates)
    assert [axes.get_title() for axes in figure.axes] == ["reset gate r", "update gate z", "candidate n"]
    points = figure.axes[1].get_lines()[2]
    np.testing.assert_array_equal(points.get_xdata(), 100 * gates[4].high)
    np.testing.assert_array_equal(points.get_ydata(), 100 * gates[4].low)

    history = gradients.ClippingHistory(np.array([1, 2]), np.array([0.5, 0.25]), np.array([3.0, 2.0]))
    share, norm = figures.clipping_figure(history).axes
    assert share.get_lines()[0].get_ydata().tolist() == [50.0, 25.0]
    assert norm.get_lines()[0].get_ydata().tolist() == [3.0, 2.0]

    heat_map = inspection.HeatMap(["ab", "\n", "$c", "defgh"], np.array([-0.5, 0.0, 0.25, 0.5]), 0, 1, "h")
    figure = figures.heat_map_figure(heat_map, width=4, lines=3)
    grid = figure.axes[0].get_images()[0].get_array().filled(9.0)
    assert grid.tolist() == [[-0.5, -0.5, 0.0, 9.0], [0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 0.5, 9.0]]
    assert "".join(text.get_text() for text in figure.axes[0].texts) == "ab¶$cdefgh"
    figure.canvas.draw()  # a lone dollar is no formula


@pytest.mark.parametrize("norms", [(0.0, 0.0), (0.0, 3.0), (3.0, 0.0)])
def test_gradients_of_0_are_drawn(tmp_path, norms):
    pytest.importorskip("matplotlib")
    runs = {
        str(i): [gradients.GradientNorms("rnn", None, np.array([norm, 0.0]), np.ones(2), False)]
        for i, norm in enumerate(norms)
    }
    flows = {
        str(i): gradients.GradientFlow("rnn", "last", {"h": np.full((1, 4, 2), norm)}) for i, norm in enumerate(norms)
    }
    for i, figure in enumerate((figures.gradient_norms_figure(runs), figures.gradient_flow_figure(flows))):
        assert {axes.get_yscale() for axes in figure.axes} == {"log" if any(norms) else "linear"}
        figures.save(figure, tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def without_figures(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.mark.usefixtures("without_figures")
def test_figures_name_what_they_need(tmp_path):
    flow = gradients.gradient_flow(built(), PROSE, 3)
    with pytest.raises(RuntimeError, match=r"figures need matplotlib: pip install 'fastrnn\[plot\]'"):
        figures.gradient_flow_figure({"LSTM": flow})
    summary = inspect(built(), PROSE, tmp_path, steps=9)
    assert summary.endswith("inspection.json, unit.html; figures need matplotlib: pip install 'fastrnn[plot]'")
    assert {path.name for path in tmp_path.iterdir()} == {"inspection.json", "unit.html"}


# -- the command -------------------------------------------------------------------------------------------------------


def run(*argv) -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()

    def add(name, function, help):
        own = commands.add_parser(name, help=help)
        own.add_argument("model")
        own.set_defaults(run=function)
        return own

    add_inspect(add, cli._number(int, 1), cli._number(int, 0))
    args = parser.parse_args(["inspect", *map(str, argv)])
    args.run(args)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    model = LanguageModel(embedding=4, hidden=5, layers=2, seed=1)
    model.fit(PROSE, epochs=2, batch_size=4, bptt=16, progress=False)
    model.save(folder / "model")
    (folder / "text.txt").write_bytes(PROSE.encode())
    return folder


def not_a_number(constant):
    raise AssertionError(constant)


def test_command(saved, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    model = LanguageModel.load(saved / "model")
    out = tmp_path / "a" / "b"
    options = ("--predicate", "inside_quotes", "--steps", 30, "--tokens", 150, "--training-steps", 3)
    run(saved / "model", saved / "text.txt", "--out", out, *options)
    shown = capsys.readouterr().out
    names = {"gradient-flow", "gradient-norms", "gate-saturation", "unit", "clipping"}
    assert {path.name for path in out.iterdir()} == {"inspection.json", "unit.html", *(f"{name}.png" for name in names)}
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)
    data = json.loads((out / "inspection.json").read_text(), parse_constant=not_a_number)
    assert data["models"] == {"LSTM": model.config}
    assert data["gradient_flow"] == {"LSTM": gradients.gradient_flow(model, PROSE, 30).to_dict()}
    assert data["gate_saturation"] == [gate.to_dict() for gate in inspection.gate_saturation(model, PROSE[:150])]
    free, clipped = data["gradient_norms"]["LSTM"]
    assert data["lr"] == 1.0
    assert clipped["clip"] == pytest.approx(min(free["norms"][0], np.median(free["norms"])) / 2, rel=1e-4)
    assert free["norms"][0] == clipped["norms"][0]
    assert free["norms"][1:] != clipped["norms"][1:]
    units = inspection.best_units(model, PROSE[:150], "inside_quotes")
    assert data["units"] == [vars(each) for each in units]
    assert (data["heat_map"]["layer"], data["heat_map"]["unit"]) == (units[0].layer, units[0].unit)
    assert Page((out / "unit.html").read_text()).text == PROSE[:150]
    for part in (
        f"{units[0].correlation:+.3f}",
        "Units that follow inside_quotes",
        "model  layer  state",
        "SGD at a rate of 1:",
        "Clipped to half the median norm of the run without clipping, or half its first norm if that is less",
        "Clipped steps",
        "30",
    ):
        assert part in shown


def test_command_shows_the_unit_that_is_asked_for(saved, tmp_path):
    options = ("--unit", 4, "--layer", 0, "--tokens", 40, "--steps", 5, "--training-steps", 0)
    run(saved / "model", saved / "text.txt", "--out", tmp_path, *options)
    data = json.loads((tmp_path / "inspection.json").read_text())
    assert (data["heat_map"]["layer"], data["heat_map"]["unit"]) == (0, 4)
    assert {each["layer"] for each in data["units"]} == {0}
    assert data["gradient_norms"] == {}
    assert Page((tmp_path / "unit.html").read_text()).text == PROSE[:40]
    assert not (tmp_path / "gradient-norms.png").exists()


@pytest.mark.usefixtures("without_figures")
def test_command_takes_rate_and_clip(saved, tmp_path, capsys):
    options = ("--steps", 5, "--training-steps", 4, "--lr", 0.5, "--clip", 0.01)
    run(saved / "model", saved / "text.txt", "--out", tmp_path, *options)
    data, model = json.loads((tmp_path / "inspection.json").read_text()), LanguageModel.load(saved / "model")
    want = [gradients.gradient_norms(model, PROSE, 4, lr=0.5, clip=clip).to_dict() for clip in (None, 0.01)]
    assert data["gradient_norms"] == {"LSTM": want}
    shown = capsys.readouterr().out
    assert "SGD at a rate of 0.5:" in shown
    assert "half the median" not in shown
    run(saved / "model", saved / "text.txt", "--out", tmp_path, *options[:-1], 0)  # as in training: any norm
    data = json.loads((tmp_path / "inspection.json").read_text())
    assert data["gradient_norms"] == {"LSTM": want[:1]}
    assert "half the median" not in capsys.readouterr().out


@pytest.mark.usefixtures("without_figures")
def test_clipping_stops_what_explodes(tmp_path):
    model = built(cell="rnn_relu", dtype="float32", seed=0, hidden=16)
    model.recurrent.parameters["weight_hh_l0"] *= 1.5
    summary = inspect(model, PROSE, tmp_path, steps=5, lr=30.0)
    free, clipped = json.loads((tmp_path / "inspection.json").read_text())["gradient_norms"]["ReLU RNN"]
    assert free["diverged"]
    assert "diverged\n" in summary
    assert max(free["norms"]) > 1e3 * max(clipped["norms"])
    assert not clipped["diverged"]
    assert len(clipped["norms"]) == 20
    assert clipped["clip"] < clipped["norms"][0] == free["norms"][0]


def test_models_side_by_side(saved, tmp_path, capsys, monkeypatch):
    models = {
        "a/gru": built(PROSE + "more symbols", cell="gru", hidden=7),
        "a/lstm": built(level="word", layers=2, hidden=6, proj_size=3),
        "b/lstm": built(),
        "b/relu": built(cell="rnn_relu"),
    }
    for name, model in models.items():
        model.save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    options = ("--out", "out", "--steps", 9, "--training-steps", 3)
    run(saved / "model", saved / "text.txt", *options, "--beside", "a/gru", "a/lstm", "b/lstm", "--beside", "b/relu")
    data = json.loads((tmp_path / "out" / "inspection.json").read_text(), parse_constant=not_a_number)
    labels = ["LSTM (model)", "GRU", "LSTM (a/lstm)", "LSTM (b/lstm)", "ReLU RNN"]
    for part in ("models", "gradient_flow", "gradient_norms"):
        assert list(data[part]) == labels
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    states = [4, 1, 4, 2, 1]  # of all layers
    for label, model, count in zip(labels[1:], models.values(), states[1:], strict=True):
        assert data["models"][label] == model.config
        assert data["gradient_flow"][label] == gradients.gradient_flow(model, PROSE, 9).to_dict()
        free, clipped = data["gradient_norms"][label]
        assert free == gradients.gradient_norms(model, PROSE, 3).to_dict()
        assert clipped["clip"] == pytest.approx(min(free["norms"][0], np.median(free["norms"])) / 2, rel=1e-4)
        assert rows.count(label) == count + 2
    first = LanguageModel.load(saved / "model")
    assert data["gate_saturation"] == [gate.to_dict() for gate in inspection.gate_saturation(first, PROSE)]


@pytest.mark.parametrize(("bias", "norms", "shown"), [((-3e38, 3e38), [], "diverged"), ((0.0, 1e3), [0.0, 0.0], "0")])
def test_runs_that_no_clip_can_be_taken_from(tmp_path, bias, norms, shown):
    model = built("ab", dtype="float32")
    model.output.parameters["bias"][1:] = bias
    text = "ab" * 30 if not norms else "b" * 60  # impossible, or certain
    summary = inspect(model, text, tmp_path, steps=5, training_steps=2)
    (run,) = json.loads((tmp_path / "inspection.json").read_text())["gradient_norms"]["LSTM"]
    assert run["norms"] == norms
    assert f"{shown}\n" in summary


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lr", 0), "inspect: lr must be a finite number > 0, got 0"),
        (("--clip", "nan"), "inspect: clip must be a finite number >= 0, got nan"),
        (("--clip", -1), "inspect: clip must be a finite number >= 0, got -1"),
        (("--unit", 5), "inspect: unit must be an integer from 0 to 4, got 5"),
        (("--layer", 2), "layer must be an integer from -2 to 1, got 2"),
        (("--steps", len(PROSE)), f"text must have at least {len(PROSE) + 1} characters, got {len(PROSE)}"),
        (("--tokens", 1), "'line_position' is 1 at all 1 tokens"),
    ],
)
def test_command_refuses(saved, tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        run(saved / "model", saved / "text.txt", "--out", tmp_path / "out", *options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_command_refuses_a_model_without_a_recurrent_layer(saved, tmp_path):
    model = WindowModel(level="char", window=2, embedding=3, hidden=4, seed=1)
    model.build(PROSE)
    model.save(tmp_path / "window")
    for folders in ([tmp_path / "window"], [saved / "model", "--beside", tmp_path / "window"]):
        with pytest.raises(ValueError, match="window: model must have a recurrent layer; WindowModel has no recurrent"):
            run(folders[0], saved / "text.txt", *folders[1:])
    with pytest.raises(ValueError, match="inspect: model must have a recurrent layer; WindowModel"):
        inspect(built(), PROSE, tmp_path / "out", beside={"window": model})
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_figures")
def test_models_beside_need_labels_of_their_own(saved, tmp_path):
    with pytest.raises(ValueError, match=r"--beside must name other models than DIR, each once, got .*model again"):
        run(saved / "model", saved / "text.txt", "--beside", saved / "model")
    with pytest.raises(ValueError, match="inspect: beside must have other labels than that of the model, got 'LSTM'"):
        inspect(built(), PROSE, tmp_path / "out", beside={"LSTM": built()})
    inspect(built(), PROSE, tmp_path / "out", steps=3, training_steps=0, label="one", beside={"LSTM": built()})
    data = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert list(data["gradient_flow"]) == ["one", "LSTM"]
