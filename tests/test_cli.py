"""The ``fastrnn`` command as a process: output, exit status, and one line for bad input."""

from __future__ import annotations

import builtins
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import fastrnn
from fastrnn import cli, demo, reference


def run(*args: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fastrnn", *args]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, **options)


def test_info():
    result = run("info")
    assert result.returncode == 0
    assert result.stderr == ""
    assert fastrnn.__version__ in result.stdout
    assert fastrnn.show_config("dicts")["isa"]["in_use"] in result.stdout


def test_info_json():
    result = run("info", "--json")
    assert result.returncode == 0
    assert result.stderr == ""
    shown = json.loads(result.stdout)
    assert shown["version"] == fastrnn.__version__
    assert shown["isa"] == fastrnn.show_config("dicts")["isa"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "fastrnn: the following arguments are required: COMMAND (see fastrnn --help)"),
        (["nothing"], "fastrnn: argument COMMAND: invalid choice: 'nothing'"),
        (["info", "--yaml"], "fastrnn: unrecognized arguments: --yaml (see fastrnn --help)"),
        (["demo", "--seconds", "x"], "fastrnn demo: argument --seconds: "),
        (["demo", "--seconds", "0"], "fastrnn demo: argument --seconds: must be a number > 0, got '0'"),
        (["demo", "--seconds", "nan"], "fastrnn demo: argument --seconds: must be a number > 0, got 'nan'"),
        (["demo", "--seed", "-1"], "fastrnn demo: argument --seed: must be an integer >= 0, got '-1'"),
        (["demo", "--seed", "1.5"], "fastrnn demo: argument --seed: "),
    ],
)
def test_bad_arguments_are_one_line(args, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_bad_arguments_in_a_process():
    result = run("demo", "--seconds", "-5")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1


def test_help_lists_the_commands(capsys):
    for args in (["--help"], ["demo", "--help"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(args)
        assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "demo" in out
    assert "info" in out
    assert "--seconds" in out


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("lstm: x must\nfit"), 2, "fastrnn: lstm: x must fit\n"),
        (FileNotFoundError(2, "No such file", "a"), 2, "fastrnn: [Errno 2] No such file: 'a'\n"),
        (MemoryError(), 2, "fastrnn: MemoryError\n"),
        (FloatingPointError("step 1"), 2, "fastrnn: step 1\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_failures_are_one_line(monkeypatch, capsys, error, status, line):
    def fail(*args):
        raise error

    monkeypatch.setattr(demo, "run", fail)
    assert cli.main(["demo"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err == line


def test_reader_that_goes_away():
    command = f"{sys.executable} -m fastrnn info --json | head -c 1"
    result = subprocess.run(command, shell=True, capture_output=True, encoding="utf-8", timeout=300)
    assert result.stdout == "{"
    assert result.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c():
    command = [sys.executable, "-m", "fastrnn", "demo"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it may be ignored here, as under nohup
    )  # fmt: skip
    assert process.stdout.readline().startswith("text: ")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_demo():
    # An encoding that lacks the text's quotation marks must not end the run.
    result = run("demo", "--seconds", "1", "--seed", "3", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0, result.stderr
    figures = re.findall(r"perplexity per held-out character.*?: ([\d.]+)", result.stdout)
    assert len(figures) == 2
    assert float(figures[1]) < float(figures[0])
    assert "The model writes" in result.stdout
    assert "Traceback" not in result.stderr
    assert "epoch 1/" in result.stderr
    rows = re.findall(r"^(fastrnn|NumPy|torch).* ([\d.]+)x +([\d.e-]+)$", result.stdout, re.MULTILINE)
    assert [row[0] for row in rows][:2] == ["fastrnn", "NumPy"]
    assert rows[0][1] == "1.0"
    assert all(float(error) < 1e-5 for *_, error in rows)


def test_demo_text_is_prose_and_each_paragraph_once():
    source, paragraphs = demo.english_text()
    text = " ".join(paragraphs)
    assert "pydoc_data" in source
    assert len(text) > 100_000
    assert len(set(paragraphs)) == len(paragraphs)
    assert text.count(" the ") > 1000
    assert ">>>" not in text


def test_demo_text_without_pydoc_data(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    source, paragraphs = demo.english_text()
    assert "docstrings" in source
    assert sum(map(len, paragraphs)) > 10_000
    monkeypatch.setattr(builtins, "vars", lambda _: {})
    with pytest.raises(ValueError, match="has no documentation to learn from"):
        demo.english_text()


def test_plain_lstm_is_the_reference():
    rng = np.random.default_rng(0)
    weights = {name: rng.uniform(-1, 1, shape) for name, shape in reference.weight_shapes("lstm", 5, 3).items()}
    x, dy = rng.standard_normal((7, 2, 5)), rng.standard_normal((7, 2, 3))
    y, _, tape = reference.forward("lstm", x, weights)
    dx, _, dweights = reference.backward(tape, dy)
    ours = demo.plain_lstm(x, dy, *weights.values())
    for a, b in zip(ours, [y, dx, *(dweights[name] for name in weights)], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)
