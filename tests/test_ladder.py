"""The ladder of language models, and ``fastrnn lm`` on each of its rungs."""

import json
import re

import numpy as np
import pytest

from fastrnn.cli import main
from fastrnn.models import NgramLanguageModel, WindowModel, kinds, ladder, run

VERSE = "row row row your boat\ngently down the stream\nmerrily merrily merrily merrily\nlife is but a dream\n"
SIZES = ["--hidden", "8", "--embedding", "5"]
TRAINING = ["--batch-size", "4", "--bptt", "8", "--epochs", "2"]
SMALL = [*SIZES, *TRAINING, "--seed", "1"]


@pytest.fixture
def folder(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, text in (("train", VERSE * 20), ("valid", VERSE[30:] * 2), ("test", "row your dream\n" * 4)):
        (texts / f"{name}.txt").write_text(text, encoding="utf-8")
    return texts


def climb(data, *options):
    return main(["lm", "ladder", "--data", str(data), *SMALL, *options])


def test_all_rungs(folder, tmp_path, capsys):
    out, figures = tmp_path / "out", tmp_path / "ladder.json"
    assert climb(folder, "--order", "3", "--out", str(out), "--json", str(figures)) == 0
    shown = capsys.readouterr().out
    document = json.loads(figures.read_text())
    names = ["1-gram", "3-gram add_k", "3-gram stupid_backoff", "3-gram kneser_ney", "window", "rnn", "gru", "lstm"]
    assert [rung["name"] for rung in document["rungs"]] == names
    for rung in document["rungs"]:
        model = kinds.load_best(out / rung["name"].replace(" ", "-"))
        assert (rung["parameters"], rung["bytes"]) == (model.num_parameters, model.nbytes)
        assert re.search(rf"^{rung['name']} .* {model.num_parameters:,} ", shown, re.MULTILINE)
        for part in ("valid", "test"):
            expected = model.evaluate(folder / f"{part}.txt")["perplexity"] if model.normalized else None
            assert rung[f"{part}_perplexity"] == expected
        assert rung["tokens_per_second"] > 0
        assert rung["seconds"] > 0
    ngrams = kinds.load(out / "3-gram-kneser_ney").ngrams
    ids = kinds.load(out / "lstm").vocabulary.encode((folder / "test.txt").read_text())
    assert [order["entries"] for order in document["orders"]] == list(ngrams.entries)
    assert [order["bytes"] for order in document["orders"]] == list(ngrams.nbytes)
    assert [order["unseen"] for order in document["orders"]] == list(ngrams.unseen(ids))


def test_what_is_trained_stays_so(folder, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--models", "window", "--out", str(out)]
    assert climb(folder, *options) == 0
    first = capsys.readouterr().out
    assert climb(folder, *options) == 0
    assert capsys.readouterr().out == first
    assert climb(folder, *options, "--epochs", "3") == 0
    assert len(WindowModel.load(out / "window").history) == 3
    for more in (["--hidden", "9"], ["--seed", "77"]):
        assert climb(folder, *options, *more) == 2
        assert f"{out / 'window'} holds another model: WindowModel(" in capsys.readouterr().err
    unseeded = ["--data", str(folder), *SIZES, *TRAINING, *options, "--epochs", "4"]
    assert main(["lm", "ladder", *unseeded]) == 0
    model = WindowModel.load(out / "window")
    assert (len(model.history), model.seed) == (4, 1)


@pytest.mark.parametrize("as_files", [False, True])
def test_ngrams_are_those_of_the_text(as_files, folder, tmp_path, capsys):
    """And not of another one that the folder was made with."""

    def figures(data, out, models):
        path = tmp_path / "figures.json"
        options = [*SIZES, *TRAINING] if "window" in models else []
        options += ["--order", "3", "--models", models, "--out", str(tmp_path / out), "--json", str(path)]
        assert main(["lm", "ladder", "--data", str(data), *options]) == 0
        document = json.loads(path.read_text())
        timed = ("tokens_per_second", "seconds")
        rungs = [{name: rung[name] for name in rung if name not in timed} for rung in document["rungs"]]
        return rungs[:4], document["orders"]

    other = tmp_path / "other"
    if as_files:
        other.mkdir()
        for name in ("train", "valid", "test"):
            (other / f"{name}.txt").write_text("she sells sea shells\n" * 30, encoding="utf-8")
    else:
        other.write_text("she sells sea shells\n" * 30, encoding="utf-8")
    figures(folder, "out", "ngram,window")
    assert figures(other, "out", "ngram") == figures(other, "fresh", "ngram")
    assert kinds.load(tmp_path / "out" / "3-gram-add_k").vocabulary.to_dict() == (
        kinds.load(tmp_path / "fresh" / "3-gram-add_k").vocabulary.to_dict()
    )
    assert climb(other, "--models", "window", "--out", str(tmp_path / "out"), "--seed", "2") == 2
    assert "holds another model" in capsys.readouterr().err
    seed = str(WindowModel.load(tmp_path / "out" / "window").seed)
    assert climb(other, "--models", "window", "--out", str(tmp_path / "out"), "--seed", seed) == 2
    assert "resume needs the same train text" in capsys.readouterr().err


def test_of_a_single_file_the_last_tenth_is_held_out(tmp_path, capsys):
    path = tmp_path / "verse.txt"
    path.write_text(VERSE * 20, encoding="utf-8")
    assert main(["lm", "ladder", "--data", str(path), "--models", "ngram", "--order", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-5] for line in lines[1:4]] == ["-"] * 3  # no text to test on
    assert [line.split()[0] for line in lines if line.endswith("%")] == ["1", "2"]


def test_names_of_rungs():
    assert ladder.names_of(["window", "ngram"], 2) == [
        "window", "1-gram", "2-gram add_k", "2-gram stupid_backoff", "2-gram kneser_ney",
    ]  # fmt: skip
    assert ladder.names_of(["ngram"], 1) == ["1-gram add_k", "1-gram stupid_backoff", "1-gram kneser_ney"]
    model = ladder.make("2-gram add_k", {"level": "word", "order": 9, "smoothing": "kneser_ney", "k": 0.5, "hidden": 3})
    assert isinstance(model, NgramLanguageModel)
    assert (model.level, model.order, model.smoothing, model.k) == ("word", 2, "add_k", 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--models", "lstm,mgu"],
            "argument --models: must be some of ngram,window,rnn,rnn_relu,gru,lstm, got 'lstm,mgu'",
        ),
        (["--smoothing", "laplace"], "argument --smoothing: invalid choice: 'laplace'"),
        (["--smoothing", "add_k"], "--smoothing is not for lm ladder, which shows all of them"),
        (["--json", "."], "Is a directory"),
        (["--vocab-size", "5"], "vocab_size must be an integer >= 257, got 5"),
        (["--data", "nothing"], "No such file or directory: 'nothing'"),
        (["--layers", "2"], "--layers is not for --models window"),
    ],
)
def test_ladder_refuses(folder, capsys, options, message):
    try:
        status = climb(folder, "--models", "window", *options)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert len(error.splitlines()) == 1


def test_training_options_need_a_model_of_weights(folder, tmp_path, capsys):
    options = ["lm", "ladder", "--data", str(folder), "--out", str(tmp_path / "out"), "--order", "2"]
    assert main([*options, "--models", "ngram", "--lr", "5", "--epochs", "3"]) == 2
    assert capsys.readouterr().err == "fastrnn: --epochs is not for --models ngram\n"
    assert not (tmp_path / "out").exists()
    assert main([*options, "--models", "ngram,window", *SIZES, *TRAINING]) == 0


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_train_eval_score_generate(kind, folder, tmp_path, capsys):
    out = tmp_path / kind
    options = [*(["--order", "3"] if kind == "ngram" else [*SIZES, *TRAINING]), "--level", "word", "--seed", "1"]
    assert main(["lm", "train", "--data", str(folder), "--out", str(out), "--model", kind, *options]) == 0
    assert "test: loss" in capsys.readouterr().out
    assert main(["lm", "eval", str(out), str(folder / "test.txt"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["perplexity"] == kinds.load_best(out).evaluate(folder / "test.txt")["perplexity"]
    assert main(["lm", "score", str(out), str(folder / "test.txt")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == result["tokens"]
    assert main(["lm", "generate", str(out), "--prompt", "row", "--tokens", "4", "--seed", "2"]) == 0
    assert capsys.readouterr().out.startswith("row")
    status = main(["lm", "inspect", str(out), str(folder / "train.txt"), "--steps", "5", "--training-steps", "0"])
    captured = capsys.readouterr()
    if kind in ("ngram", "window"):
        assert status == 2
        assert "recurrent" in captured.err
        assert len(captured.err.splitlines()) == 1
    else:
        assert status == 0
        assert (out / "inspection" / "unit.html").exists()


def test_a_ladder_stopped_within_its_first_epoch_goes_on(folder, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert climb(folder, "--models", "gru", "--out", str(whole)) == 0

    class Stopped(BaseException):
        pass

    def stop(self, log):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(run, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(run.Run, "_end_epoch", stop)
        with pytest.raises(Stopped):
            climb(folder, "--models", "gru", "--out", str(stopped))
    begun = kinds.load(stopped / "gru")
    assert begun.history == []
    assert begun._training.data["progress"]["steps"] > 0
    assert climb(folder, "--models", "gru", "--out", str(stopped)) == 0
    weights = [kinds.load(out / "gru").state_dict() for out in (whole, stopped)]
    for name, array in weights[0].items():
        assert np.array_equal(array, weights[1][name])


def test_resume_is_for_models_of_weights(folder, tmp_path, capsys):
    options = ["--data", str(folder), "--out", str(tmp_path / "m"), "--model", "ngram"]
    assert main(["lm", "train", *options]) == 0
    assert main(["lm", "train", *options, "--resume"]) == 2
    assert "--resume is for models of weights" in capsys.readouterr().err


def test_stupid_backoff_from_the_command_line(folder, tmp_path, capsys):
    out = tmp_path / "m"
    options = ["--model", "ngram", "--smoothing", "stupid_backoff", "--level", "word"]
    assert main(["lm", "train", "--data", str(folder), "--out", str(out), *options]) == 0
    assert "no perplexity: the scores of stupid_backoff sum to no probability" in capsys.readouterr().out
    assert main(["lm", "eval", str(out), str(folder / "test.txt")]) == 2
    assert "sum to no probability" in capsys.readouterr().err


def test_bpe_from_the_command_line(folder, tmp_path, capsys):
    pytest.importorskip("tokenizers")
    out = tmp_path / "m"
    options = ["--level", "bpe", "--vocab-size", "280", *SMALL]
    assert main(["lm", "train", "--data", str(folder), "--out", str(out), *options]) == 0
    assert ": 280 symbols" in capsys.readouterr().out
    assert (out / "tokens" / "train.ids").exists()
    assert main(["lm", "generate", str(out), "--prompt", "row r", "--tokens", "4", "--seed", "2"]) == 0
    assert capsys.readouterr().out.startswith("row r")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "window", "--tie"], "--tie is not for --model window"),
        (["--model", "lstm", "--order", "2"], "--order is not for --model lstm"),
        (["--model", "ngram", "--hidden", "9"], "--hidden is not for --model ngram"),
        (["--model", "ngram", "--epochs", "9"], "--epochs is not for --model ngram"),
        (["--model", "gru", "--proj-size", "4"], "proj_size is for cell='lstm', got proj_size=4 and cell='gru'"),
    ],
)
def test_options_of_other_models_are_refused(folder, tmp_path, capsys, options, message):
    assert main(["lm", "train", "--data", str(folder), "--out", str(tmp_path / "m"), *options]) == 2
    assert message in capsys.readouterr().err


def test_resume_takes_the_options_of_the_run(folder, tmp_path, capsys):
    out = tmp_path / "m"
    options = ["lm", "train", "--data", str(folder), "--out", str(out)]
    assert main([*options, *SMALL, "--schedule", "zaremba", "--decay-after", "1", "--clip", "0"]) == 0
    assert main([*options, "--resume", "--epochs", "3"]) == 0
    model = kinds.load(out)
    assert [record["lr"] for record in model.history] == [2e-3, 1e-3, 5e-4]
    assert model._training.data["options"]["clip"] is None
    capsys.readouterr()
    for more, message in (
        (["--hidden", "99"], "holds another model: --hidden must be 8, got 99"),
        (["--model", "gru"], "holds another model: --model must be lstm, got gru"),
        (["--level", "word"], "holds another model: --level must be char, got word"),
        (["--order", "2"], "holds another model: --order must be left out, got 2"),
        (["--batch-size", "5"], "resume needs the same batch_size=4, got 5"),
    ):
        assert main([*options, "--resume", *more]) == 2
        assert message in capsys.readouterr().err


def test_the_default_size_of_tied_vectors(folder, tmp_path, capsys):
    options = ["--data", str(folder), "--out", str(tmp_path / "m"), "--tie", "--hidden", "12", "--epochs", "1"]
    assert main(["lm", "train", *options]) == 0
    assert "embedding=12, hidden=12" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "ladder"])
@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_a_bad_text_is_told_before_anything_is_done(command, part, folder, tmp_path, capsys):
    (folder / f"{part}.txt").write_bytes(b"abc " * 400_000 + b"\xff")
    assert main(["lm", command, "--data", str(folder), "--out", str(tmp_path / "m"), *SMALL]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(f"{part}.txt is not UTF-8 text: byte 1600000 is 0xff; convert it to UTF-8\n")
    assert not (tmp_path / "m").exists()


def test_the_ladder_measures_the_best_weights(folder, tmp_path):
    """With or without a folder: the surer a model is of ab, the worse it finds a text with as many aa and bb."""
    (folder / "train.txt").write_text("ab" * 2000)
    (folder / "valid.txt").write_text("aabb" * 60)
    figures = []
    for i, options in enumerate(([], ["--out", str(tmp_path / "out")])):
        path = tmp_path / f"{i}.json"
        more = ["--models", "lstm", "--optimizer", "sgd", "--lr", "1", "--epochs", "2", "--json", str(path)]
        assert climb(folder, *more, *options) == 0
        figures.append(json.loads(path.read_text())["rungs"][0]["valid_perplexity"])
    assert figures[0] == figures[1]
    losses = [record["valid_loss"] for record in kinds.load(tmp_path / "out" / "lstm").history]
    assert losses.index(min(losses)) < len(losses) - 1
