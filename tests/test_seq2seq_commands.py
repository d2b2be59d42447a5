"""``fastrnn seq2seq``: from two text files to a model, its figures and its folder; errors are one line."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest

from fastrnn import Seq2Seq
from fastrnn.cli import main
from fastrnn.models import LanguageModel, seq2seq_commands
from model_files import edit
from seq2seq_runs import SMALL, ask, held_out, refused, run, train, trained_model, write, write_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def trained(texts, tmp_path_factory):
    return trained_model(texts, tmp_path_factory.mktemp("trained") / "model")


# -- train -------------------------------------------------------------------------------------------------------------


def test_training_prints_the_model_and_the_best_figures(texts, tmp_path, capsys):
    assert train(texts, tmp_path / "m", *held_out(texts), "--metric", "exact", "--epochs", "3") == 0
    out, err = capsys.readouterr()
    latest, best = Seq2Seq.load(tmp_path / "m"), Seq2Seq.load(tmp_path / "m" / "best")
    figures = best.evaluate((texts / "valid.src", texts / "valid.tgt"), metrics=["exact"])
    assert out.splitlines() == [
        f"{latest}: 6 and 6 symbols, {latest.num_parameters:,} weights",
        f"valid: exact {figures['exact']:.4g}, loss {figures['loss']:.4f} nats per token, perplexity "
        f"{figures['perplexity']:.2f}, {figures['tokens']} tokens",
    ]
    assert [line.split(":")[0] for line in err.splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    with (tmp_path / "m" / "log.csv").open() as file:
        assert max(float(row["valid_exact"]) for row in csv.DictReader(file)) == figures["exact"]


def test_nothing_is_held_out_unless_it_is_given(texts, tmp_path, capsys):
    assert train(texts, tmp_path / "m") == 0
    assert "valid" not in "".join(capsys.readouterr())
    assert not (tmp_path / "m" / "best").exists()
    assert not any(name.startswith("valid") for record in Seq2Seq.load(tmp_path / "m").history for name in record)


def test_options_reach_model_and_run(texts, tmp_path, monkeypatch):
    options = "--src-level char --tgt-level word --cell rnn_relu --attention additive --layers 2 --dropout 0.25 "
    options += "--tie --hidden 9 --bidirectional --input-feeding --reverse --skip --min-frequency 2 --vocab-size 300"
    options = [*options.split(), "--seed", "3", "--threads", "2"]
    run_options = "--batch-size 5 --max-tokens 40 --label-smoothing 0.125 --sampling 0.5 --metric wer --optimizer sgd "
    run_options += "--lr 0.125 --clip 0 --schedule zaremba --warmup 2 --decay 0.25 --decay-after 1 --average 1 "
    run_options += "--momentum 0.5 --weight-decay 0.0625 --patience 3 --seconds 900 --sample-every 9 --max-length 30"
    paths = ["--src", texts / "train.src", "--tgt", texts / "train.tgt", *held_out(texts), "--out", tmp_path / "m"]
    threads = []  # instead of setting them for all tests
    monkeypatch.setattr(seq2seq_commands, "set_num_threads", threads.append)
    assert run("train", *paths, *options, *run_options.split(), "--epochs", 2) == 0
    assert threads == [2]
    model = Seq2Seq.load(tmp_path / "m")
    assert model.config == {
        "src_level": "char", "tgt_level": "word", "cell": "rnn_relu", "embedding": 9, "hidden": 9, "layers": 2,
        "dropout": 0.25, "attention": "additive", "bidirectional": True, "tie": True, "seed": 3, "input_feeding": True,
        "reverse": True, "skip": True, "min_frequency": 2, "vocab_size": 300, "dtype": "float32",
    }  # fmt: skip
    assert model._training.data["options"] == {
        "batch_size": 5, "max_tokens": 40, "label_smoothing": 0.125, "sampling": 0.5, "metric": "wer", "epochs": 2,
        "max_length": 30,
        "optimizer": "sgd", "lr": 0.125, "momentum": 0.5, "weight_decay": 0.0625, "clip": None, "schedule": "zaremba",
        "warmup": 2, "decay": 0.25, "decay_after": 1, "average": 1,
    }  # fmt: skip


def test_one_level_for_both_sides(texts, tmp_path):
    for options, levels in (
        (["--level", "char"], ("char", "char")),
        (["--level", "char", "--src-level", "word"], ("word", "char")),
        ([], ("word", "word")),
    ):
        out = tmp_path / "-".join(["m", *levels])
        assert train(texts, out, "--epochs", "1", *options) == 0
        model = Seq2Seq.load(out)
        assert (model.src_level, model.tgt_level) == levels
        assert (model.embedding, model.hidden) == (10, 20)


def test_resume_takes_the_options_and_gives_the_run_that_was_not_interrupted(texts, tmp_path, capsys):
    options = ["--label-smoothing", "0.1", "--max-tokens", "30", "--schedule", "zaremba", "--decay-after", "1"]
    options += ["--metric", "wer", "--dropout", "0.2"]
    files = ["--src", texts / "train.src", "--tgt", texts / "train.tgt", *held_out(texts)]
    assert train(texts, tmp_path / "once", *held_out(texts), *options, "--epochs", "4") == 0
    assert train(texts, tmp_path / "twice", *held_out(texts), *options, "--epochs", "2") == 0
    capsys.readouterr()
    assert run("train", *files, "--out", tmp_path / "twice", "--resume", "--epochs", "4") == 0
    out, err = capsys.readouterr()
    assert "valid: wer " in out
    assert [line.split(":")[0] for line in err.splitlines()] == ["epoch 3/4", "epoch 4/4"]
    once, twice = (Seq2Seq.load(tmp_path / name).state_dict() for name in ("once", "twice"))
    assert all(np.array_equal(once[name], twice[name]) for name in once)
    assert run("train", *files, "--out", tmp_path / "twice", "--resume") == 0  # nothing is left to do
    out, err = capsys.readouterr()
    assert "valid: wer " in out
    assert err == ""
    refused(capsys, "twice holds another model: --hidden must be 20, got 21", "train", *files, "--out",
            tmp_path / "twice", "--resume", "--hidden", 21)  # fmt: skip
    refused(capsys, "--src-level must be word, got char", "train", *files, "--out",
            tmp_path / "twice", "--resume", "--level", "char")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("train.tgt", ["A"] * 59, "train.src and {}/train.tgt must have equally many lines, got 60 and 59"),
        ("valid.src", ["a"] * 10, "valid.src and {}/valid.tgt must have equally many lines, got 10 and 9"),
        ("train.src", [*["a"] * 59, "a " * 21], "{}/train.src: line 60 has 21 tokens, more than max_length=20"),
        ("valid.tgt", [*["a"] * 8, "a " * 21], "{}/valid.tgt: line 9 has 21 tokens, more than max_length=20"),
        ("train.tgt", [], "{}/train.tgt is empty"),
        ("valid.src", [], "{}/valid.src is empty"),
        ("train.src", b"a\n\xff\n", "{}/train.src is not UTF-8 text: line 2 has a byte 0xff"),
        ("valid.tgt", b"a\nb\n\xe4", "{}/valid.tgt is not UTF-8 text: line 3 has a byte 0xe4"),
        ("train.src", None, "No such file or directory: '{}/train.src'"),
        ("valid.tgt", None, "No such file or directory: '{}/valid.tgt'"),
    ],
)
def test_bad_texts(texts, tmp_path, capsys, name, lines, message):
    for path in texts.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / name).unlink()
    if lines is not None:
        write(tmp_path / name, lines) if isinstance(lines, list) else (tmp_path / name).write_bytes(lines)
    assert train(tmp_path, tmp_path / "m", *held_out(tmp_path), "--max-length", 20) == 2
    err = capsys.readouterr().err
    assert message.format(tmp_path) in err
    assert err.count("\n") == 1
    assert not (tmp_path / "m" / "model.json").exists()


def test_bad_options(texts, trained, tmp_path, capsys):
    files = ["train", "--src", texts / "train.src", "--tgt", texts / "train.tgt", "--out", tmp_path / "m", *SMALL]
    for options, message in (
        (held_out(texts)[:2], "--valid-src and --valid-tgt belong together, got --valid-src alone"),
        (held_out(texts)[2:], "--valid-src and --valid-tgt belong together, got --valid-tgt alone"),
        (["--tie", "--embedding", "7"], "tie needs embedding == hidden, got embedding=7 and hidden=20"),
        (["--level", "char", "--min-frequency", "1000"], "min_frequency=1000 leaves no symbol of the source lines"),
        (["--level", "word", "--min-frequency", "1000"], "min_frequency=1000 leaves no symbol of the source lines"),
        (["--resume"], "holds no saved model"),
        (["--out", trained], "holds a model already: go on with --resume, or choose another --out"),
    ):
        refused(capsys, message, *files, *options)
    for options, message in (
        (["--metric", "wer"], "Seq2Seq.fit: metric='wer' needs valid pairs"),
        (["--patience", "2"], "Seq2Seq.fit: patience needs valid pairs"),
        (["--label-smoothing", "1"], "Seq2Seq.fit: label_smoothing must be below 1, got 1.0"),
    ):
        assert run(*files, *options) == 2
        assert message in capsys.readouterr().err
    for options, message in (
        (["--epochs", "0"], "argument --epochs: must be an integer >= 1, got '0'"),
        (["--cell", "tree"], "argument --cell: invalid choice: 'tree'"),
        (["--metric", "ter"], "argument --metric: invalid choice: 'ter'"),
        (["--attention", "self"], "argument --attention: invalid choice: 'self'"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(*files, *options)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_a_missing_library_shows_before_training(texts, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert train(texts, tmp_path / "m", *held_out(texts), "--metric", "bleu") == 2
    assert capsys.readouterr().err == "fastrnn: bleu: sacrebleu is not installed: pip install 'fastrnn[text]'\n"
    assert not (tmp_path / "m").exists()


# -- eval --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["bleu", "chrf", "wer", "exact"])
def test_eval(texts, trained, capsys, metric):
    if metric in ("bleu", "chrf"):
        pytest.importorskip("sacrebleu")
    files = texts / "valid.src", texts / "valid.tgt"
    figures = Seq2Seq.load(trained / "best").evaluate(files, metrics=[metric], beam=3)
    call = ("eval", trained, "--src", files[0], "--tgt", files[1], "--metric", metric, "--beam", 3)
    assert run(*call, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == [metric, "lines", "loss", "perplexity", "tokens"]
    assert result == figures | {"lines": 9}
    assert run(*call) == 0
    assert capsys.readouterr().out == (
        f"{files[0]}: {metric} {figures[metric]:.4g}, loss {figures['loss']:.4f} nats per token, "
        f"perplexity {figures['perplexity']:.2f}, 9 lines, {figures['tokens']} tokens\n"
    )


def test_eval_refuses(texts, trained, tmp_path, capsys):
    call = ("eval", trained, "--metric", "wer", "--src", texts / "valid.src")
    short = write(tmp_path / "short", ["A"] * 8)
    long = write(tmp_path / "long", [*["A"] * 8, "A A A"])
    refused(capsys, f"valid.src and {short} must have equally many lines, got 9 and 8", *call, "--tgt", short)
    message = f"{long}: line 9 has 3 tokens, more than max_length=2"
    call = ("eval", trained, "--metric", "wer", "--src", long)
    refused(capsys, message, *call, "--tgt", long, "--max-length", 2)
    blank = write(tmp_path / "blank", [""] * 9)
    refused(capsys, "wer: references must have at least 1 token, got 0 in 9 lines", *call, "--tgt", blank)


# -- folders -----------------------------------------------------------------------------------------------------------


def calls(folder, texts, tmp_path):
    files = "--src", texts / "valid.src", "--tgt", texts / "valid.tgt"
    yield "translate", folder
    yield "eval", folder, *files, "--metric", "exact"
    yield "inspect", folder, "--out", tmp_path / "figures"
    yield "train", *files, "--out", folder, "--resume"


def test_each_kind_of_model_has_its_commands(texts, trained, tmp_path, capsys, monkeypatch):
    model = LanguageModel(embedding=3, hidden=4, seed=1)
    model.build("abc\n")
    model.save(tmp_path / "lm")
    ask(monkeypatch, "a\n")
    for call in calls(tmp_path / "lm", texts, tmp_path):
        refused(capsys, f"Seq2Seq.load: {tmp_path / 'lm'}/model.json is not a fastrnn.Seq2Seq", *call)
    for call in calls(tmp_path / "none", texts, tmp_path):
        refused(capsys, f"Seq2Seq.load: {tmp_path / 'none'} holds no saved model", *call)
    assert main(["lm", "eval", str(trained), str(texts / "valid.src")]) == 2
    err = capsys.readouterr().err
    assert "got 'fastrnn.Seq2Seq'" in err
    assert err.count("\n") == 1


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: cut(folder / "model.json"), "model.json is damaged: not JSON"),
        (lambda folder: cut(next(folder.glob("weights-*"))), "truncated or changed"),
        (lambda folder: next(folder.glob("weights-*")).unlink(), "is missing"),
        (
            lambda folder: (folder / "model.json").write_text(
                (folder / "model.json").read_text().replace('"hidden": 20', '"hidden": 21')
            ),
            "model.json is damaged: truncated, or changed by hand",
        ),
        (lambda folder: edit(folder, lambda data: data["config"].update(hidden=21)), "must have shape"),
        (lambda folder: edit(folder, lambda data: data["target"].update(symbols="A")), "must have shape"),
        (
            lambda folder: edit(folder, lambda data: data["source"].update(level="char", symbols="\na")),
            "must be of level 'word'",
        ),
    ],
)
def test_damaged_models(texts, trained, tmp_path, capsys, monkeypatch, damage, message):
    folder = tmp_path / "m"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("best"))
    damage(folder)
    ask(monkeypatch, "a\n")
    for call in calls(folder, texts, tmp_path):
        refused(capsys, message, *call)


@pytest.mark.parametrize("state", [None, [], {"options": []}, {"options": None, "epochs": 1}])
def test_a_damaged_training_state(texts, trained, tmp_path, capsys, state):
    folder = tmp_path / "m"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("best"))
    edit(folder, lambda data: data.update(training=state))
    assert train(texts, folder, "--resume", "--bidirectional") == 2
    assert "the training state is damaged: " in capsys.readouterr().err


# -- inspect -----------------------------------------------------------------------------------------------------------


def test_inspect(trained, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "a" / "b"
    assert run("inspect", trained, "--line", "ä b $x$", "--out", out, "--beam", 2) == 0
    assert capsys.readouterr() == (f"{out}/attention.png\n{out}/learning-curves.png\n", "")
    assert {path.name for path in out.iterdir()} == {"attention.png", "learning-curves.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.iterdir())
    assert run("inspect", trained, "--out", tmp_path / "c") == 0
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["learning-curves.png"]


def test_inspect_draws_what_there_is(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    model = Seq2Seq(embedding=4, hidden=5, attention="none", seed=1)
    model.fit((["a b"], ["A B"]), epochs=1, progress=False)
    model.save(tmp_path / "none")
    assert run("inspect", tmp_path / "none", "--line", "a", "--out", tmp_path / "figures") == 0
    assert capsys.readouterr().out == f"{tmp_path}/figures/learning-curves.png\n"
    model.history = []
    model.save(tmp_path / "none")
    refused(capsys, "has nothing to show", "inspect", tmp_path / "none", "--line", "a", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_inspect_refuses(trained, tmp_path, capsys, monkeypatch):
    out = "--out", tmp_path / "figures"
    for line, message in (
        (" ", "the output for --line ' ' is empty"),
        ("a\nb", "line 1 holds a line break"),
        ("a b c d", "--line has 4 tokens, more than --max-length 3"),
    ):
        refused(capsys, message, "inspect", trained, "--line", line, "--max-length", 3, *out)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(capsys, "figures need matplotlib: pip install 'fastrnn[plot]'", "inspect", trained, "--line", "b", *out)
    assert not (tmp_path / "figures").exists()
