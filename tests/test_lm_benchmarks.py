"""The scripts in benchmarks/lm: their recipes, the ladder's file, and the model in PyTorch."""

from __future__ import annotations

import dataclasses
import json
import math

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
def run(script, texts, run_main):
    """Runs a script on the texts; its status, and what it shows on standard error."""

    def run(name, *args):
        status, _, shown = run_main(script(name), *args, "--data", texts)
        return status, shown

    return run


def shrunk(recipe, **model):
    return dataclasses.replace(recipe, model=recipe.model | TINY | model, training=recipe.training | SHORT)


def test_a_recipe_goes_on_and_is_judged(script, run, texts, steps, monkeypatch, tmp_path):
    recipes, out, file = script("recipes"), tmp_path / "out", tmp_path / "figures.json"
    recipe = shrunk(recipes.RECIPES["wikitext2-tied"], embedding=6)
    monkeypatch.setitem(recipes.RECIPES, "wikitext2-tied", recipe)
    parts = recipe.texts(texts)
    recipes.LanguageModel(**recipe.model).fit(
        parts["train"], parts["valid"], **recipe.training | {"seconds": 1e-9}, checkpoint=out, progress=False
    )
    assert len(steps) == 1
    options = ("recipes", "wikitext2-tied", "--out", out)
    status, shown = run(*options, "--json", file)
    assert status == 0
    figures = json.loads(file.read_text())
    assert [record["epoch"] for record in figures["history"]] == [1, 2]
    assert len(steps) == 2 * -(-(660 // 4 - 1) // 7)  # of 4 streams, 7 words at a time; none was taken twice
    assert figures["model"] == recipes.LanguageModel(**recipe.model).config
    assert figures["symbols"] == 10  # with <eos>
    tokens = {part: result["tokens"] for part, result in figures["results"].items()}
    assert tokens == {"valid": 98, "test": 87}  # all but the first
    perplexity = figures["results"]["test"]["perplexity"]
    assert figures["judged"] == {"part": "test", "figure": "perplexity", "most": 130.3, "got": perplexity}
    assert f"test perplexity {perplexity:.4f}, asked for at most 130.3" in shown

    assert run(*options, "--json", file)[0] == 0  # nothing is left to train
    assert json.loads(file.read_text())["history"] == figures["history"]
    monkeypatch.setitem(recipes.RECIPES, "wikitext2-tied", shrunk(recipe, embedding=7, hidden=7))
    status, shown = run(*options)
    assert status == 2
    assert f"{out} holds another model" in shown


def test_a_recipe_against_the_clock(script, run, monkeypatch, tmp_path):
    recipes, out = script("recipes"), tmp_path / "out"
    monkeypatch.setitem(recipes.RECIPES, "tinyshakespeare", shrunk(recipes.RECIPES["tinyshakespeare"]))
    options = ("recipes", "tinyshakespeare", "--out", out)
    assert run(*options)[0] == 0
    log = (out / "log.csv").read_text()
    assert run(*options)[0] == 0  # which is judged again
    assert (out / "log.csv").read_text() == log
    (out / recipes.FINISHED).unlink()
    status, shown = run(*options)
    assert status == 2
    assert f"{out} holds a run against the clock that did not end by itself" in shown


@pytest.fixture
def climb(script, monkeypatch):
    """ladder.py with tiny models and a short training."""
    climb = script("ladder")
    recipe = shrunk(climb.RECIPE)
    options = climb.OPTIONS | TINY
    for name, value in {
        "RECIPE": recipe,
        "OPTIONS": options,
        "SETTING": climb.SETTING | {"model": options, "training": recipe.training},
    }.items():
        monkeypatch.setattr(climb, name, value)
    return climb


def test_the_ladder_grows_in_its_file(climb, run, monkeypatch, tmp_path):
    file, ngrams = tmp_path / "ladder.json", [f"5-gram {kind}" for kind in ("add_k", "stupid_backoff", "kneser_ney")]

    def climbed(commit, threads, *models):
        monkeypatch.setattr(climb.machine, "commit", lambda: commit)
        monkeypatch.setattr(climb.fastrnn, "get_num_threads", lambda: threads)
        run("ladder", *models, "--out", tmp_path / "out", "--json", file)
        figures = json.loads(file.read_text())
        assert [order["order"] for order in figures["orders"]] == [1, 2, 3, 4, 5]
        return {rung["name"]: rung for rung in figures["rungs"]}

    first = climbed("one", 1, "rnn", "ngram")
    assert list(first) == ["1-gram", *ngrams, "rnn"]
    assert {(rung["commit"], rung["threads"]) for rung in first.values()} == {("one", 1)}
    second = climbed(None, 2, "window", "rnn")
    assert list(second) == ["1-gram", *ngrams, "window", "rnn"]
    assert (second["window"]["commit"], second["window"]["threads"]) == (None, 2)
    assert {name: second[name] for name in first} == first  # the RNN was not trained again
    third = climbed("three", 3, "ngram")
    assert {name: rung["commit"] for name, rung in third.items()} == {
        **dict.fromkeys(["1-gram", *ngrams], "three"), "window": None, "rnn": "one",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": {}}, "must have rates {'window': 5.0"),
        ({"model": None}, "must have model {'level': 'word'"),
        ("", "must be JSON: Expecting value"),
        ("[]", "must hold rungs and orders; choose another file"),
        ('{"rungs": []}', "must hold rungs and orders; choose another file"),
        ({"rungs": [{"name": "rnn", "seconds": 1.0, "commit": "a", "machine": {}}]}, "got none for threads"),
    ],
)
def test_a_file_of_another_ladder(climb, run, capsys, tmp_path, change, message):
    file = tmp_path / "ladder.json"
    text = change if isinstance(change, str) else json.dumps(climb.SETTING | {"rungs": [], "orders": []} | change)
    file.write_text(text)
    with pytest.raises(SystemExit) as raised:
        run("ladder", "rnn", "--out", tmp_path / "out", "--json", file)
    assert raised.value.code == 2
    shown = capsys.readouterr().err
    assert f"argument --json: {file} must " in shown
    assert message in shown
    assert file.read_text() == text
    assert not (tmp_path / "out").exists()


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
    pytest.importorskip("matplotlib")
    flow = script("gradient_flow")
    monkeypatch.setattr(flow, "MODEL", flow.MODEL | TINY)
    monkeypatch.setattr(flow, "TRAINING", flow.TRAINING | {"batch_size": 4, "bptt": 9})
    monkeypatch.setattr(flow, "FLOW", {"steps": 100, "windows": 2})
    monkeypatch.setattr(flow, "STEPS", {"steps": 4, "lr": 1.0, "batch_size": 3, "bptt": 8})
    file, picture = tmp_path / "flow.json", tmp_path / "flow.png"
    run("gradient_flow", "--epochs", "1", "--json", file, "--plot", picture)
    results = json.loads(file.read_text())["results"]
    assert list(results) == list(flow.CELLS)
    for name, result in results.items():
        for when in ("before", "after"):
            norms = result[when]["norms"]
            assert list(norms) == (["h", "c"] if name == "LSTM" else ["h"])
            for quartiles in norms.values():
                assert np.shape(quartiles["median"]) == (1, 100)
                assert np.all(np.isfinite(quartiles["median"]))
        assert result["before"]["norms"] != result["after"]["norms"]
        assert [one["clip"] for one in result["runs"]] == [None, 0.25]
        assert [len(one["norms"]) for one in result["runs"]] == [4, 4]
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
