"""``fastrnn lm``: from a text file to a model and back; what is wrong is said in one line."""

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fastrnn.cli import main
from fastrnn.models import LanguageModel
from fastrnn.models.options import read_data, read_text
from tiny_model import poison

VERSE = "row row row your boat\ngently down the stream\nmerrily merrily merrily merrily\nlife is but a dream\n"
SMALL = ["--hidden", "12", "--embedding", "6", "--batch-size", "4", "--bptt", "8", "--seed", "1"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "verse.txt"
    path.write_text(VERSE * 20, encoding="utf-8")
    return path


def train(data, out, *options):
    return main(["lm", "train", "--data", str(data), "--out", str(out), *SMALL, *options])


def test_from_text_to_text(data, tmp_path, capsys):
    out = tmp_path / "model"
    assert train(data, out, "--epochs", "3", "--lr", "0.02") == 0
    shown = capsys.readouterr().out
    assert "LanguageModel(level='char', cell='lstm'" in shown
    assert "valid: loss" in shown
    with (out / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["valid_loss"]) < float(rows[0]["valid_loss"])

    assert main(["lm", "eval", str(out), str(data), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() == {"loss", "perplexity", "tokens", "bits_per_character"}
    assert result["tokens"] == len(VERSE) * 20 - 1
    assert result == LanguageModel.load(out / "best").evaluate(data.read_text())

    assert main(["lm", "score", str(out), str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == result["tokens"]
    assert sum(float(line.split("\t")[0]) for line in lines) / len(lines) == pytest.approx(-result["loss"], abs=1e-4)
    assert lines[0].endswith("'o'")

    texts = []
    for _ in range(2):
        assert main(["lm", "generate", str(out), "--prompt", "row", "--tokens", "9", "--seed", "4"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("row")
    assert len(texts[0]) == 3 + 9 + 1


@pytest.fixture(scope="module")
def verses(tmp_path_factory):
    """A trained model and its folder."""
    model = LanguageModel(embedding=6, hidden=12, seed=1)
    model.fit(VERSE * 20, epochs=3, batch_size=4, bptt=8, lr=0.02, progress=False)
    folder = tmp_path_factory.mktemp("verses")
    model.save(folder)
    return model, folder


@pytest.mark.parametrize("command", [["eval"], ["eval", "--json"], ["score"]])
def test_a_model_of_nan_has_no_figures(verses, data, tmp_path, capsys, command):
    model = LanguageModel.load(verses[1])
    poison(model)
    model.save(tmp_path / "nan")
    name, *options = command
    assert main(["lm", name, str(tmp_path / "nan"), str(data), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastrnn: LanguageModel.")
    assert err.count("\n") == 1


def generate(folder, *options):
    return main(["lm", "generate", str(folder), "--prompt", "row", "--tokens", "60", *options])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--temperature", "0", "--repetition-penalty", "1.5"], {"temperature": 0, "repetition_penalty": 1.5}),
        (["--seed", "2", "--stop", "rr", "--stop", "\n"], {"seed": 2, "stop": ["rr", "\n"]}),
        (["--beam", "3", "--stop", "str"], {"beam_size": 3, "stop": "str"}),
    ],
)
def test_generate_options(verses, capsys, options, expected):
    model, folder = verses
    assert generate(folder, *options) == 0
    assert capsys.readouterr().out == "row" + model.generate("row", 60, **expected) + "\n"


def test_generate_prints_tokens_as_they_come(verses, monkeypatch):
    model, folder = verses
    shown = []
    monkeypatch.setattr(sys, "stdout", stdout := io.StringIO())
    monkeypatch.setattr(stdout, "flush", lambda: shown.append(stdout.getvalue()))
    assert generate(folder, "--seed", "1") == 0
    text = "row" + model.generate("row", 60, seed=1)
    assert shown[:-1] == [text[:end] for end in range(3, 64)]
    assert shown[-1] == text + "\n"


def test_generate_refuses(verses, capsys):
    _, folder = verses
    for options, message in (
        (["--beam", "2", "--top-k", "3"], "beam search has no top_k, got top_k=3 and beam_size=2"),
        (["--stop", ""], "stop must not be empty, got ['']"),
    ):
        assert generate(folder, *options) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.count("\n") == 1


def test_words(data, tmp_path, capsys):
    out = tmp_path / "model"
    assert train(data, out, "--level", "word", "--epochs", "20", "--lr", "0.05", "--min-frequency", "2") == 0
    assert main(["lm", "eval", str(out), str(data), "--json"]) == 0
    capsys.readouterr()
    assert main(["lm", "generate", str(out), "--prompt", "gently down", "--tokens", "6", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "gently down the stream\nmerrily merrily merrily\n"


def test_a_folder_with_a_test_text(tmp_path, capsys):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(VERSE * (8 if name == "train" else 2), encoding="utf-8")
    assert train(tmp_path, tmp_path / "model", "--epochs", "1") == 0
    shown = capsys.readouterr().out
    assert "valid: loss" in shown
    assert "test: loss" in shown
    assert f"{2 * len(VERSE) - 1} tokens" in shown


def test_resume_gives_the_run_that_was_not_interrupted(data, tmp_path, capsys):
    assert train(data, tmp_path / "once", "--epochs", "4", "--schedule", "plateau") == 0
    assert train(data, tmp_path / "twice", "--epochs", "2", "--schedule", "plateau") == 0
    assert train(data, tmp_path / "twice", "--epochs", "4", "--schedule", "plateau", "--resume") == 0
    capsys.readouterr()
    results = []
    for name in ("once", "twice"):
        assert main(["lm", "eval", str(tmp_path / name), str(data), "--json"]) == 0
        results.append(capsys.readouterr().out)
    assert results[0] == results[1]


def test_plateau_and_the_best_model(data, tmp_path):
    """At such a rate the loss rises again and again: the rate falls, and the best model is not the last."""
    out = tmp_path / "model"
    assert train(data, out, "--epochs", "8", "--optimizer", "sgd", "--lr", "60", "--schedule", "plateau") == 0
    with (out / "log.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    best, rate = math.inf, 60.0
    for row in rows:
        assert row["lr"] == rate
        if row["valid_loss"] >= best:
            rate /= 4
        best = min(best, row["valid_loss"])
    assert rate < 60.0
    _, valid, _ = read_data(data)
    losses = {name: LanguageModel.load(out / name).evaluate(valid, batch_size=4)["loss"] for name in (".", "best")}
    assert losses["best"] == pytest.approx(best, rel=1e-6)
    assert losses["."] == pytest.approx(rows[-1]["valid_loss"], rel=1e-6)


@pytest.mark.parametrize("level", ["char", "word"])
def test_a_large_file_is_mapped_like_those_of_a_folder(tmp_path, monkeypatch, level):
    """Its two parts are read from where they stand, and never as a whole."""
    text = tmp_path / "text"
    text.write_text(VERSE * 20, encoding="utf-8")
    monkeypatch.setattr("fastrnn.models.options._IN_MEMORY", 0)
    parts = read_data(text)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, part in zip(("train", "valid"), parts, strict=False):
        (folder / f"{name}.txt").write_text(read_text(part), encoding="utf-8")
    for data in (text, folder):
        assert train(data, tmp_path / f"of-{data.name}", "--level", level, "--epochs", "2") == 0
    models = [LanguageModel.load(tmp_path / f"of-{data.name}") for data in (text, folder)]
    for name, array in models[0].state_dict().items():
        assert np.array_equal(array, models[1].state_dict()[name])
    assert (tmp_path / "of-text" / "tokens" / "train.ids").exists()
    assert train(text, tmp_path / "of-text", "--resume", "--epochs", "3") == 0


def test_averaging_decay_and_samples(data, tmp_path, capsys):
    options = ["--optimizer", "sgd", "--lr", "4", "--schedule", "zaremba", "--decay", "0.5", "--decay-after", "1"]
    options += ["--average", "2", "--sample-every", "40"]
    assert train(data, tmp_path / "once", "--epochs", "4", *options) == 0
    shown = capsys.readouterr().err
    steps = LanguageModel.load(tmp_path / "once").history[-1]["steps"]
    titles = [line for line in shown.splitlines() if line.endswith(" writes:")]
    assert titles == [f"step {step} writes:" for step in range(40, steps + 1, 40)]
    assert len(titles) > 1
    assert train(data, tmp_path / "twice", "--epochs", "3", *options) == 0
    assert train(data, tmp_path / "twice", "--epochs", "4", "--resume", *options) == 0
    once, twice = (LanguageModel.load(tmp_path / name) for name in ("once", "twice"))
    assert [record["lr"] for record in once.history] == [4.0, 2.0, 1.0, 0.5]
    assert once.evaluate(VERSE) == twice.evaluate(VERSE)
    assert train(data, tmp_path / "twice", "--epochs", "5", "--resume", "--average", "3") == 2
    assert "resume needs the same average=2, got 3" in capsys.readouterr().err


def test_patience(data, tmp_path, capsys):
    """At such a rate the first epoch is the best one, or soon another."""
    out = tmp_path / "model"
    options = ["--optimizer", "sgd", "--lr", "60", "--epochs", "99999", "--average", "plateau"]
    assert train(data, out, "--patience", "2", *options) == 0
    assert "stopped: no lower loss on valid in 2 epochs\n" in capsys.readouterr().err
    losses = [record["valid_loss"] for record in LanguageModel.load(out).history]
    assert losses.index(min(losses)) == len(losses) - 3


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_leaves_a_model_to_go_on_with(data, tmp_path):
    out = tmp_path / "model"
    command = [
        sys.executable,
        "-m",
        "fastrnn",
        "lm",
        "train",
        "--data",
        data,
        "--out",
        out,
        *SMALL,
        "--epochs",
        "99999",
    ]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (out / "log.csv").exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    model = LanguageModel.load(out)
    steps = model.history[-1]["steps"]
    assert steps > 0
    assert "valid_loss" in model.history[-1]
    epochs = model.history[-1]["epoch"] + 1
    assert train(data, out, "--epochs", str(epochs), "--resume") == 0
    assert LanguageModel.load(out).history[-1]["steps"] > steps


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"abc \xff def", "is not UTF-8 text: byte 4 is 0xff"),
        (b"abc", "train must have at least 5 characters (batch_size + 1), got 3"),
        (None, "No such file or directory"),
    ],
)
def test_bad_text(tmp_path, capsys, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert train(path, tmp_path / "model") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_bad_models_and_options(data, tmp_path, capsys):
    assert main(["lm", "eval", str(tmp_path), str(data)]) == 2
    assert "holds no saved model" in capsys.readouterr().err
    assert train(data, tmp_path / "model", "--tie") == 2
    assert "tie needs embedding == hidden" in capsys.readouterr().err
    assert train(data, tmp_path / "model", "--resume") == 2
    assert "holds no saved model" in capsys.readouterr().err
    assert train(data, tmp_path / "model", "--epochs", "1") == 0
    assert train(data, tmp_path / "model", "--epochs", "1") == 2
    assert "holds a model already" in capsys.readouterr().err
    for options, message in (
        (["--epochs", "0"], "argument --epochs: must be an integer >= 1, got '0'"),
        (["--lr", "x"], "argument --lr: must be a number > 0, got 'x'"),
        (["--dropout", "-1"], "argument --dropout: must be a number >= 0, got '-1'"),
        (["--average", "0"], "argument --average: must be 'plateau' or an integer >= 1, got '0'"),
        (["--average", "swa"], "argument --average: must be 'plateau' or an integer >= 1, got 'swa'"),
        (["--patience", "0"], "argument --patience: must be an integer >= 1, got '0'"),
    ):
        with pytest.raises(SystemExit) as ended:
            train(data, tmp_path / "other", *options)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
