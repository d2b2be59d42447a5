"""The scripts in benchmarks/seq2seq: the pairs that they read, their recipes, and their models in PyTorch."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

FOLDER = "seq2seq"
TINY = {"embedding": 6, "hidden": 6}


@pytest.fixture
def shrink(script, monkeypatch):
    """Makes a recipe's model tiny, and its training short."""

    def shrink(name, model=None, training=None):
        recipes = script("recipes")
        recipe = recipes.RECIPES[name]
        recipe = dataclasses.replace(
            recipe, model=recipe.model | TINY | (model or {}), training=recipe.training | (training or {})
        )
        monkeypatch.setitem(recipes.RECIPES, name, recipe)
        return recipe

    return shrink


@pytest.fixture
def texts(tmp_path):
    """Captions and a dictionary, as --data holds them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "multi30k"
    folder.mkdir()
    for name, count in (("train", 90), ("val", 5), ("test_2016_flickr", 7)):
        for language in ("de", "en"):
            lines = (" ".join(rng.choice([*f"abcd{language}"], rng.integers(1, 9))) for _ in range(count))
            (folder / f"{name}.lc.norm.tok.{language}").write_text("\n".join(lines) + "\n")
    folder = tmp_path / "cmudict"
    folder.mkdir()
    words = ["".join(rng.choice([*"abcde"], rng.integers(2, 7))) for _ in range(60)]
    entries = [f"{word} {' '.join(letter.upper() + '1' for letter in word)}\n" for word in dict.fromkeys(words)]
    (folder / "cmudict.dict").write_text("".join(entries))
    return tmp_path


def test_cmudict(script, tmp_path):
    lines = [f"w{i} W{i % 3}\n" for i in range(23)]
    lines[1] = "'em AH0 M # short, for them\n'em(2) EH1 M\n"
    lines[22] = "aalborg AO1 L B AO0 R G # place, danish\naalborg(2) AA1 L B AA0 R G\naalborg(13) B\n"
    (tmp_path / "cmudict").mkdir()
    (tmp_path / "cmudict" / "cmudict.dict").write_text("".join(lines))
    parts = script("data").cmudict(tmp_path)
    assert parts["valid"] == (["w0", "w20"], ["W", "W"])
    sources, targets = parts["test"]
    assert sources == ["'em", "'em", "w2", "w21", "aalborg", "aalborg", "aalborg"]
    assert targets == ["AH M", "EH M", "W", "W", "AO L B AO R G", "AA L B AA R G", "B"]
    assert parts["train"] == ([f"w{i}" for i in range(3, 20)], ["W"] * 17)


def test_multi30k(script, texts):
    parts = script("data").multi30k(texts)
    assert {name: (len(source), len(target)) for name, (source, target) in parts.items()} == {
        "train": (90, 90), "valid": (5, 5), "test": (7, 7),
    }  # fmt: skip
    assert set(" ".join(parts["test"][0])) <= set("abcde ")
    assert set(" ".join(parts["test"][1])) <= set("abcden ")


def test_a_recipe_goes_on_and_is_judged(script, shrink, texts, run_main, steps, tmp_path):
    recipes, out, file = script("recipes"), tmp_path / "out", tmp_path / "figures.json"

    def run(*args):
        status, _, shown = run_main(recipes, "g2p-64", "--data", texts, "--out", out, *args)
        return status, shown

    recipe = shrink("g2p-64", training={"epochs": 2, "batch_size": 9})
    pairs = recipe.pairs(texts)
    recipes.Seq2Seq(**recipe.model).fit(
        pairs["train"], pairs["valid"], **recipe.training | {"seconds": 1e-9}, checkpoint=out, progress=False
    )
    status, shown = run("--json", file)
    assert status == 0
    figures = json.loads(file.read_text())
    assert [record["epoch"] for record in figures["history"]] == [1, 2]
    assert len(steps) == 2 * -(-len(pairs["train"][0]) // 9)  # none was taken twice
    assert figures["model"] == recipes.Seq2Seq(**recipe.model).config
    assert figures["pairs"] == {"train": len(pairs["train"][0]), "valid": 3, "test": 6}
    assert [(each["beam"], each["unknown"]) for each in figures["outputs"]] == [(1, "keep"), (5, "keep")]
    error = figures["outputs"][0]["error"]
    assert figures["judged"] == {"figure": "error", "most": 0.396, "got": error, "met": error <= 0.396}
    assert f"error {error:.4g}, asked for at most 0.396" in shown

    again = file.read_text()
    assert run("--json", file)[0] == 0  # nothing is left to train
    assert json.loads(file.read_text())["history"] == json.loads(again)["history"]
    shrink("g2p-64", model={"hidden": 7})
    status, shown = run()
    assert status == 2
    assert f"{out} holds another model" in shown


def test_beams_are_asked_to_help(script):
    recipes = script("recipes")
    outputs = [{"beam": beam, "bleu": bleu} for beam, bleu in ((1, 30.0), (5, 29.5))]
    judged = recipes.judge(recipes.RECIPES["multi30k-attention"], outputs)
    assert judged == {"figure": "bleu", "least": 28.3, "got": 30.0, "met": True, "beam": 29.5, "beam_met": False}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("g2p-512", {}),
        ("multi30k-plain", {}),
        ("multi30k-attention", {}),
        ("multi30k-attention", {"cell": "lstm", "layers": 2}),
    ],
)
def test_plain_models_of_torch_are_the_same(torch, script, shrink, texts, name, model):
    baseline = script("torch_baseline")
    recipe, trained = shrink(name, model, {"batch_size": 4, "lr": 1e-2}), texts / name / "best"
    if not model:
        saved = baseline.Seq2Seq(**recipe.model | {"seed": 2})
        saved.build(recipe.pairs(texts)["train"])
        saved.save(trained)
    row = baseline.measure(name, texts, texts, seconds=0.0, sentences=6)  # which compares losses and outputs
    assert row["batch"] == 4
    assert row["trained"] == trained.exists()
    assert row["training"]["turns"] >= 5
    for figures in row["decoding"].values():
        assert figures["sentences"] == 6
        assert figures["equal"] == 1.0


def test_what_differs_has_no_speed(torch, script, shrink, texts, run_main, monkeypatch):
    baseline, plain = script("torch_baseline"), script("plain")
    shrink("g2p-512", training={"batch_size": 4})
    load = plain.Plain.load

    def wrong(self, weights):
        load(self, weights)
        with torch.no_grad():
            self.output.weight.neg_()

    monkeypatch.setattr(plain.Plain, "load", wrong)
    status, _, shown = run_main(baseline, "--data", texts, "--shapes", "g2p-512", "--seconds", "0")
    assert status == 2
    assert "losses of step 1 must differ by at most" in shown
    model, pairs = baseline.make_trainer("g2p-512", texts).model, baseline.RECIPES["g2p-512"].pairs(texts)["test"]
    for beam in (1, 5):
        with pytest.raises(ValueError, match=r"outputs for '.+' must be the same, or as near as"):
            baseline.measure_decoding(model, pairs[0], beam, seconds=0.0)


def test_shares_of_a_step(torch, script, shrink, texts):
    profile = script("step_profile")
    shrink("multi30k-attention", training={"batch_size": 4})
    row = profile.shares("multi30k-attention", texts, seconds=0.0)
    assert row["steps"] >= 5
    assert list(row["shares"]) == [*profile.PARTS, "rest"]
    assert sum(row["shares"].values()) == pytest.approx(1.0, abs=1e-4 * len(row["shares"]))  # each is rounded
    assert all(0.0 < share < 1.0 for share in row["shares"].values())
