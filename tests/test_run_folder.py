"""What a training run leaves in its folder, and what it takes for its own there."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil

import numpy as np
import pytest

from fastrnn.cli import main
from fastrnn.models import LanguageModel, NgramLanguageModel, checkpoint, kinds
from tiny_model import QUICK, SGD, TEXT, Reporter, tiny, weights_equal

OTHER = "the quick brown fox jumps over the lazy dog. " * 12


def log_of(folder):
    with (folder / "log.csv").open(newline="") as file:
        return [row["epoch"] for row in csv.DictReader(file)]


# -- the best model ----------------------------------------------------------------------------------------------------


def test_another_model_saved_over_a_run_has_no_best(tmp_path):
    trained, other = tiny(), tiny(hidden=5)
    trained.fit(TEXT, TEXT, epochs=2, checkpoint=tmp_path, **QUICK)
    trained.save(tmp_path)
    assert kinds.load_best(tmp_path).history == LanguageModel.load(tmp_path / "best").history
    other.build(OTHER)
    other.save(tmp_path)
    assert weights_equal(kinds.load_best(tmp_path), other)
    other.fit(TEXT, epochs=1, checkpoint=tmp_path, **QUICK)
    assert not (tmp_path / "best").exists()
    trained.save(tmp_path / "best")
    NgramLanguageModel(order=2).fit(OTHER, checkpoint=tmp_path, progress=False)
    assert not (tmp_path / "best").exists()


def test_a_best_model_beside_one_of_another_run_does_not_count(tmp_path, monkeypatch):
    trained, other = tiny(), tiny(seed=4)
    trained.fit(TEXT, TEXT, epochs=1, checkpoint=tmp_path, **QUICK)
    other.fit(TEXT, epochs=1, **QUICK)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_remove_archives", killed)  # right after the model has taken the other's place
    with pytest.raises(KeyboardInterrupt):
        other.save(tmp_path)
    assert weights_equal(kinds.load_best(tmp_path), other)
    assert weights_equal(LanguageModel.load(tmp_path / "best"), trained)  # a save touches no other folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-40],
        lambda text: "[]",
        lambda text: "",
        lambda text: text.replace('"run": "', '"run": "x'),
        lambda text: text.replace('"seed": 3', '"seed": 4'),
    ],
)
def test_a_damaged_best_model_is_told_and_kept(tmp_path, capsys, damage):
    """It is not taken for one of another run: the latest would stand for it, and its weights would go."""
    folder = tmp_path / "run"
    model = tiny()
    model.fit(TEXT, TEXT, epochs=2, checkpoint=folder, **QUICK)
    best = folder / "best"
    before = sorted(best.iterdir())
    (best / "model.json").write_text(damage((best / "model.json").read_text()))
    told = f"load: {best / 'model.json'} is damaged: "
    with pytest.raises(ValueError, match=re.escape(told)):
        kinds.load_best(folder)
    (tmp_path / "text").write_text(TEXT)
    assert main(["lm", "eval", str(folder), str(tmp_path / "text")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fastrnn: {told}")
    assert error.endswith(f"; without {best}, what is in {folder} counts\n")
    model.save(folder)
    checkpoint.remove_best_of_others(folder)
    assert sorted(best.iterdir()) == before
    shutil.rmtree(best)
    assert weights_equal(kinds.load_best(folder), model)


def test_a_damaged_latest_model_names_the_best(tmp_path):
    tiny().fit(TEXT, TEXT, epochs=2, checkpoint=tmp_path, **QUICK)
    (weights,) = tmp_path.glob("weights-*")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=re.escape(f"the best model of a run is in {tmp_path / 'best'}")):
        LanguageModel.load(tmp_path)


def test_ngrams_in_the_place_of_a_run(tmp_path):
    tiny().fit(TEXT, TEXT, epochs=1, checkpoint=tmp_path, **QUICK)
    NgramLanguageModel(order=2).fit(OTHER, checkpoint=tmp_path, progress=False)
    assert isinstance(kinds.load_best(tmp_path), NgramLanguageModel)


def test_a_run_that_diverges_at_once_leaves_the_model_that_was_there(tmp_path):
    trained = tiny()
    trained.fit(TEXT, TEXT, epochs=2, checkpoint=tmp_path, **QUICK)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with pytest.raises(FloatingPointError) as caught:
        tiny().fit(TEXT, TEXT, epochs=2, checkpoint=tmp_path, **SGD | {"lr": 1e39, "clip": None})
    assert "checkpoint" not in str(caught.value)  # of this run there is none
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before
    assert weights_equal(LanguageModel.load(tmp_path), trained)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """Not even where no loss shows them: of a symbol that comes last in the text only."""
    text = TEXT + "!"
    model = tiny()
    model.fit(text, epochs=1, checkpoint=tmp_path, **QUICK)
    row = model.vocabulary.encode("!")[0]

    def poison(step):
        model.parameters[0]["weight"][row] = np.nan

    message = r"the weights are not finite: try a lower lr \(now 0\.02\) or clip \(now 1\.0\); the last good checkpoint"
    with pytest.raises(FloatingPointError, match=rf"^LanguageModel\.fit: after step 16 \(epoch 2\) {message}"):
        model.fit(text, epochs=2, checkpoint=tmp_path, resume=True, **QUICK | {"progress": Reporter(poison)})
    kept = LanguageModel.load(tmp_path)
    assert len(kept.history) == 1
    assert all(np.isfinite(array).all() for array in kept.state_dict().values())
    with pytest.raises(ValueError, match="resume needs a model with training state"):
        model.fit(text, epochs=2, resume=True, **QUICK)


# -- resume ------------------------------------------------------------------------------------------------------------


def test_resume_wants_the_same_valid_text(tmp_path):
    model = tiny()
    model.fit(TEXT, TEXT, epochs=1, checkpoint=tmp_path, **QUICK)
    message = "^LanguageModel.fit: resume needs the same valid, whose figures tell which epoch was best, got another$"
    with pytest.raises(ValueError, match=message):
        model.fit(TEXT, TEXT[:-1], epochs=2, resume=True, **QUICK)
    with pytest.raises(ValueError, match="got none"):
        model.fit(TEXT, epochs=2, resume=True, **QUICK)
    model = tiny()
    model.fit(TEXT, epochs=1, **QUICK)
    model.fit(TEXT, TEXT, epochs=2, resume=True, **QUICK)  # nothing to compare with


def test_a_finished_run_writes_the_record_that_its_log_lacks(tmp_path):
    model = tiny()
    model.fit(TEXT, epochs=2, checkpoint=tmp_path, **QUICK)
    rows = (tmp_path / "log.csv").read_text().splitlines(keepends=True)
    (tmp_path / "log.csv").write_text("".join(rows[:-1]))  # killed after the model was written
    LanguageModel.load(tmp_path).fit(TEXT, epochs=2, checkpoint=tmp_path, resume=True, **QUICK)
    assert log_of(tmp_path) == ["1", "2"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder in which not even root can make a file")
def test_a_folder_in_which_nothing_can_be_made_fails_first():
    for model in (tiny(), NgramLanguageModel(order=2)):
        steps = Reporter(lambda done: pytest.fail("a step was taken"))
        with pytest.raises(OSError, match="/proc/self"):
            model.fit(TEXT, checkpoint="/proc/self", progress=steps)


def test_a_finished_run_leaves_another_folder_alone(tmp_path):
    model = tiny()
    model.fit(TEXT, epochs=2, **QUICK)
    tiny(seed=4).fit(TEXT, epochs=3, checkpoint=tmp_path, **QUICK)
    assert model.fit(TEXT, epochs=2, checkpoint=tmp_path, resume=True, **QUICK) == model.history
    assert log_of(tmp_path) == ["1", "2", "3"]


def test_an_unreadable_folder_loses_nothing(tmp_path, monkeypatch):
    model = tiny()
    model.fit(TEXT, TEXT, epochs=1, checkpoint=tmp_path, **QUICK)

    def fail(*args):
        raise OSError("Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_read_index", fail)
        with pytest.raises(OSError, match="Input/output error"):
            model.fit(TEXT, TEXT, epochs=2, checkpoint=tmp_path, resume=True, **QUICK)
    assert weights_equal(kinds.load_best(tmp_path), LanguageModel.load(tmp_path / "best"))


def test_a_config_without_its_checksum_is_refused(tmp_path):
    tiny().fit(TEXT, epochs=1, checkpoint=tmp_path, **QUICK)
    data = json.loads((tmp_path / "model.json").read_text())
    del data["sha256"]
    (tmp_path / "model.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"model\.json is damaged: truncated, or changed by hand"):
        LanguageModel.load(tmp_path)


# -- reports -----------------------------------------------------------------------------------------------------------


class Gone(io.StringIO):
    """A stream that can no longer be written to."""

    def write(self, text):
        raise OSError("Input/output error")


@pytest.mark.parametrize("terminal", [False, True])
def test_reports_that_nobody_reads_end_no_run(tmp_path, monkeypatch, terminal):
    whole, model, stream = tiny(), tiny(), Gone()
    whole.fit(TEXT, TEXT, epochs=3, **QUICK)
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stderr", stream)
    model.fit(TEXT, TEXT, epochs=3, checkpoint=tmp_path, **QUICK | {"progress": True})
    assert weights_equal(model, whole)
    assert log_of(tmp_path) == ["1", "2", "3"]
    assert len(os.listdir(tmp_path / "best")) == 2


def test_an_error_of_ones_own_reporter_is_not_hidden():
    def fail(step):
        raise FileNotFoundError("mine")

    with pytest.raises(FileNotFoundError, match="mine"):
        tiny().fit(TEXT, **QUICK | {"progress": Reporter(fail)})
