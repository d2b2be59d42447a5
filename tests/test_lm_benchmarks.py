"""The scripts in benchmarks/lm: their recipes, the ladder's file, and the model in PyTorch."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = "lm"
TINY = {"embedding": 5, "hidden": 6}
SHORT = {"epochs": 2, "batch_size": 4, "bptt": 7}


@pytest.fixture
def texts(tmp_path):
    """Words and characters, as --data holds them."""
    rng = np.random.default_rng(0)
    (tmp_path / "wikitext-2").mkdir()
    for name, count in (("train", 600), ("valid", 90), ("test", 80)):
        lines = rng.choice([*"abcdefgh", "<unk>"], (count // 10, 10))
        text = "\n".join(" ".join(line) for line in lines) + "\n"
        (tmp_path / "wikitext-2" / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "tinyshakespeare").mkdir()
    text = "".join(rng.choice([*"abc \n"], 3000))
    (tmp_path / "tinyshakespeare" / "input.txt").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(script, texts, monkeypatch, capsys):
    """Runs a script on the texts; its status, and what it shows on standard error."""

    def run(name, *args):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *args, "--data", str(texts)])
        return script(name).main(), capsys.readouterr().err

    return run


def shrunk(recipe):
    training = recipe.training | SHORT
    return dataclasses.replace(recipe, model=recipe.model | TINY, training=training)


def test_a_recipe_goes_on_and_is_judged(script, run, texts, monkeypatch, tmp_path):
    recipes, out, file = script("recipes"), tmp_path / "out", tmp_path / "figures.json"
    recipe = shrunk(recipes.RECIPES["wikitext2-tied"])
    recipe = dataclasses.replace(recipe, model=recipe.model | {"embedding": 6})
    monkeypatch.setitem(recipes.RECIPES, "wikitext2-tied", recipe)
    parts = recipe.texts(texts)
    recipes.LanguageModel(**recipe.model).fit(
        parts["train"], parts["valid"], **recipe.training | {"seconds": 1e-9}, checkpoint=out, progress=False
    )
    options = ("recipes", "wikitext2-tied", "--out", str(out))
    status, shown = run(*options, "--json", str(file))
    assert status == 0
    figures = json.loads(file.read_text())
    assert [record["epoch"] for record in figures["history"]] == [1, 2]
    assert figures["model"] == recipes.LanguageModel(**recipe.model).config
    assert figures["symbols"] == 10  # with <eos>
    tokens = {part: result["tokens"] for part, result in figures["results"].items()}
    assert tokens == {"valid": 98, "test": 87}  # all but the first
    perplexity = figures["results"]["test"]["perplexity"]
    assert figures["judged"] == {"part": "test", "figure": "perplexity", "most": 130.3, "got": perplexity}
    assert f"test perplexity {perplexity:.4f}, asked for at most 130.3" in shown

    assert run(*options, "--json", str(file))[0] == 0  # nothing is left to train
    assert json.loads(file.read_text())["history"] == figures["history"]
    recipe.model["hidden"] = recipe.model["embedding"] = 7
    status, shown = run(*options)
    assert status == 2
    assert f"{out} holds another model" in shown


def test_a_recipe_against_the_clock(script, run, monkeypatch, tmp_path):
    recipes, out = script("recipes"), tmp_path / "out"
    recipe = shrunk(recipes.RECIPES["tinyshakespeare"])
    monkeypatch.setitem(recipes.RECIPES, "tinyshakespeare", recipe)
    options = ("recipes", "tinyshakespeare", "--out", str(out))
    assert run(*options)[0] == 0
    log = (out / "log.csv").read_text()
    assert run(*options)[0] == 0  # which is judged again
    assert (out / "log.csv").read_text() == log
    (out / recipes.FINISHED).unlink()
    status, shown = run(*options)
    assert status == 2
    assert f"{out} holds a run against the clock that did not end by itself" in shown


def test_the_ladder_grows_in_its_file(script, run, monkeypatch, tmp_path):
    climb, out, file = script("ladder"), tmp_path / "out", tmp_path / "ladder.json"
    monkeypatch.setattr(climb, "RECIPE", shrunk(climb.RECIPE))
    monkeypatch.setattr(climb, "OPTIONS", climb.OPTIONS | TINY)
    monkeypatch.setattr(climb, "SETTING", climb.SETTING | {"training": climb.RECIPE.training})
    for models, commit in ((["rnn", "ngram"], "first"), (["window"], None), (["rnn"], "third")):
        monkeypatch.setattr(climb.machine, "commit", lambda commit=commit: commit)
        run("ladder", *models, "--out", str(out), "--json", str(file))
    figures = json.loads(file.read_text())
    assert {rung["name"]: rung["commit"] for rung in figures["rungs"]} == {
        "1-gram": "first", "5-gram add_k": "first", "5-gram stupid_backoff": "first", "5-gram kneser_ney": "first",
        "window": None, "rnn": "third",
    }  # fmt: skip
    assert [order["order"] for order in figures["orders"]] == [1, 2, 3, 4, 5]

    spec = importlib.util.spec_from_file_location("table", Path(climb.__file__).parent.parent / "table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    lines = table.make_ladder_tables(figures)["rungs"].splitlines()
    assert [line.split(" | ")[-1] for line in lines[2:]] == [*["first |"] * 4, "- |", "third |"]

    before = file.read_text()
    monkeypatch.setattr(climb, "SETTING", climb.SETTING | {"rates": {}})
    with pytest.raises(SystemExit, match=r"ladder\.json is of another rates; choose another file"):
        run("ladder", "rnn", "--out", str(out), "--json", str(file))
    assert file.read_text() == before


def small_shape(baseline, name):
    symbols = {"word": 10, "char": 6}[baseline.SHAPES[name].level]
    return dataclasses.replace(baseline.SHAPES[name], symbols=symbols, hidden=6, batch=4, bptt=7)


@pytest.mark.parametrize("name", ["words-200", "words-650", "chars-lstm", "chars-gru"])
def test_the_plain_model_of_torch_is_the_same(torch, script, texts, monkeypatch, name):
    baseline = script("torch_baseline")
    shape = small_shape(baseline, name)
    row = baseline.measure(shape, texts, seconds=0.0)
    steps = baseline.TURN
    # A sum of n terms is off by eps sqrt(n); each step of a layer, and each update, begins with what was off before.
    bound = float(np.finfo(np.float32).eps) * math.sqrt(shape.batch * shape.bptt) * shape.bptt * steps
    assert row["loss_difference"] <= bound
    assert row["steps"] == steps - 1
    assert row["ratio"] == pytest.approx(row["torch"]["ms"] / row["fastrnn"]["ms"], abs=1e-3)

    load = baseline.Plain.load_state_dict
    monkeypatch.setattr(
        baseline.Plain, "load_state_dict", lambda self, state: load(self, {k: 0.9 * v for k, v in state.items()})
    )
    assert baseline.measure(shape, texts, seconds=0.0)["loss_difference"] > bound


def test_another_text_has_other_symbols(torch, script, texts):
    baseline = script("torch_baseline")
    with pytest.raises(ValueError, match=r"must have 33,278 symbols, got 10"):
        baseline.measure(baseline.SHAPES["words-200"], texts, seconds=0.0)


def test_shares_of_a_step(torch, script, texts):
    baseline, profile = script("torch_baseline"), script("step_profile")
    row = profile.shares(small_shape(baseline, "words-200"), texts, dropout=0.3, seconds=0.0)
    assert row["steps"] >= 5
    shares = row["shares"]
    assert list(shares) == [*profile.PARTS, "rest"]
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-4 * len(shares))  # each is rounded
    assert all(0 < share < 1 for share in shares.values())


def test_gradient_flow(script, run, texts, monkeypatch, tmp_path):
    pytest.importorskip("PIL")
    flow = script("gradient_flow")
    monkeypatch.setattr(flow, "MODEL", flow.MODEL | TINY)
    monkeypatch.setattr(flow, "TRAINING", flow.TRAINING | {"batch_size": 4, "bptt": 9})
    monkeypatch.setattr(flow, "FLOW", {"steps": 100, "windows": 2})
    monkeypatch.setattr(flow, "STEPS", {"steps": 4, "lr": 1.0, "batch_size": 3, "bptt": 8})
    file, picture = tmp_path / "flow.json", tmp_path / "flow.png"
    run("gradient_flow", "--epochs", "1", "--json", str(file), "--plot", str(picture))
    results = json.loads(file.read_text())["results"]
    assert list(results) == list(flow.CELLS)
    for name, result in results.items():
        for when in ("before", "after"):
            norms = result[when]["norms"]
            assert list(norms) == (["h", "c"] if name == "LSTM" else ["h"])
            for quartiles in norms.values():
                assert np.shape(quartiles["median"]) == (1, 100)
                assert np.all(np.asarray(quartiles["median"]) >= quartiles["lower_quartile"])
        assert [one["clip"] for one in result["runs"]] == [None, 0.25]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_ngram_ladder(script, texts, capsys, tmp_path):
    file = tmp_path / "new" / "ngrams.json"
    assert script("ngram_ladder").main(["--data", str(texts), "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert figures["vocabulary"] == 10
    assert figures["tokens"] == {"train": 660, "valid": 99, "test": 88}
    rows = {(row["smoothing"], row["order"]): row for row in figures["models"]}
    assert rows.keys() == {(smoothing, order) for smoothing in ("kneser_ney", "add_k") for order in range(1, 6)}
    # Nothing foretells words drawn at random: no model is much better than one for which all of them are alike.
    assert all(row["test_perplexity"] > 9.0 for row in rows.values())
    assert rows["kneser_ney", 1]["test_perplexity"] < 11.0
    assert len(capsys.readouterr().out.splitlines()) == 11
