"""Figures of attention and of training."""

import sys

import numpy as np
import pytest

from fastrnn.models import figures
from fastrnn.models.translation import Translation


def translation(source, tokens, attention):
    return Translation("", tokens, source, -1.0, -1.0, attention)


def drawn(draw, rng):
    """An attention map of random weights between tokens of all kinds."""
    source = ["the", " ", "$x^$", "$", "a\tb", "\ud800", "_", "w" * 99, "漢"]
    weights = rng.dirichlet(np.ones(len(source) + 1), 3).astype(np.float32)
    return draw(translation(source, ["$y", "\\frac", ""], weights)), weights


def test_attention_map(tmp_path):
    pytest.importorskip("matplotlib")
    figure, weights = drawn(figures.attention_map, np.random.default_rng(1))
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.get_images()[0].get_array(), weights)
    assert axes.get_images()[0].get_clim() == (0.0, 1.0)
    seen = ["the", "␣", "$x^$", "$", "a\ufffdb", "\ufffd", "_", "w" * 29 + "…", "漢", "<eos>"]
    assert [label.get_text() for label in axes.get_xticklabels()] == seen
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$y", "\\frac", "␣"]
    figures.save(figure, tmp_path / "attention.png")  # "$x^$" is no formula, and a sign that the font lacks no warning
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("tokens", "source"), [(1, 0), (300, 2), (1, 300), (40, 40)])
def test_attention_map_of_any_size(tokens, source):
    pytest.importorskip("matplotlib")
    weights = np.full((tokens, source + 1), 1 / (source + 1))
    figure = figures.attention_map(translation(["word"] * source, ["x"] * tokens, weights))
    figure.canvas.draw()
    assert max(figure.get_size_inches()) < 25
    assert len(figure.axes[0].get_xticklabels()) == source + 1
    assert len(figure.axes[0].get_yticklabels()) == tokens


@pytest.mark.parametrize(("weights", "got"), [(None, "none"), (np.empty((0, 2)), "that of an empty output")])
def test_attention_map_needs_attention(weights, got):
    with pytest.raises(ValueError, match=f"^attention_map: translation must have attention, got {got}$"):
        figures.attention_map(translation(["a"], [], weights))


def curves(axes):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}


def test_learning_curves(tmp_path):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(2)
    names = ("loss", "perplexity", "valid_loss", "valid_perplexity", "valid_bleu", "lr", "steps")
    first = [{"epoch": epoch, **dict(zip(names, rng.random(len(names)), strict=True))} for epoch in (1, 2, 3)]
    del first[1]["valid_bleu"]
    second = [{"epoch": 1, "loss": 700.0, "perplexity": 1e304, "valid_$wer": 0.5}]
    figure = figures.learning_curves({"a_$x^$": first, "b": second})
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats per token)", "perplexity", "bleu", "$wer"]
    assert figure.axes[1].get_yscale() == "log"
    loss, perplexity, bleu, wer = map(curves, figure.axes)
    assert loss == {
        "a_$x^$: training": [(record["epoch"], record["loss"]) for record in first],
        "a_$x^$: valid": [(record["epoch"], record["valid_loss"]) for record in first],
        "b: training": [(1, 700.0)],
    }
    assert perplexity["a_$x^$: valid"] == [(record["epoch"], record["valid_perplexity"]) for record in first]
    assert perplexity["b: training"] == [(1, 1e100)]
    assert bleu == {"a_$x^$: valid": [(1, first[0]["valid_bleu"]), (3, first[2]["valid_bleu"])]}
    assert wer == {"b: valid": [(1, 0.5)]}
    styles = {line.get_label(): line.get_linestyle() for line in figure.axes[0].get_lines()}
    assert (styles["a_$x^$: training"], styles["a_$x^$: valid"]) == ("--", "-")
    figures.save(figure, tmp_path / "curves.svg")
    assert b"<svg" in (tmp_path / "curves.svg").read_bytes()


@pytest.mark.parametrize("histories", [{}, {"a": []}])
def test_learning_curves_need_records(histories):
    with pytest.raises(ValueError, match=r"^learning_curves: histories must have at least one record, got none$"):
        figures.learning_curves(histories)


def test_figures_name_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (
        lambda: drawn(figures.attention_map, np.random.default_rng(3)),
        lambda: figures.learning_curves({"a": [{"epoch": 1, "loss": 1.0}]}),
    ):
        with pytest.raises(RuntimeError, match=r"^figures need matplotlib: pip install 'fastrnn\[plot\]'$"):
            draw()
