"""``fastrnn seq2seq translate``: a line for each line, at once."""

import os
import subprocess
import sys
import threading

import pytest

from fastrnn import Seq2Seq
from fastrnn.models import seq2seq_commands
from seq2seq_runs import ask, refused, run, trained_model, write_texts


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_model(write_texts(tmp_path_factory.mktemp("texts")), tmp_path_factory.mktemp("trained") / "model")


def test_an_answer_for_each_line(trained, monkeypatch, capsys):
    lines = ["ä b", "", "ddd ä zebra c", " \t ", "c", "b b b b b b"]
    best = Seq2Seq.load(trained / "best")
    for options, how in (((), {}), (("--beam", 3, "--length-penalty", 0.5), {"beam": 3, "length_penalty": 0.5})):
        ask(monkeypatch, "\ufeff" + "\n".join(lines))  # also: the end of the last line may be missing
        assert run("translate", trained, *options) == 0
        out, err = capsys.readouterr()
        assert out == "".join(best.translate([line], **how)[0] + "\n" for line in lines)
        assert err == ""
    answers = out.split("\n")
    assert [bool(answer) for answer in answers] == [True, False, True, False, True, True, False]
    assert answers[:-1] != Seq2Seq.load(trained).translate(lines)


def test_options_of_answers(trained, monkeypatch, capsys):
    threads = []  # instead of setting them for all tests
    monkeypatch.setattr(seq2seq_commands, "set_num_threads", threads.append)
    best, line = Seq2Seq.load(trained / "best"), "zebra b ddd c"
    for how in (
        {"unknown": "copy"},
        {"beam": 4, "coverage_penalty": 2.0, "max_ratio": 0.25},
        {"temperature": 1.5, "seed": 5, "top_k": 3},
        {"temperature": 2.0, "seed": 2, "top_p": 0.9},
    ):
        ask(monkeypatch, line)
        assert run("translate", trained, *(f"--{name.replace('_', '-')}={value}" for name, value in how.items())) == 0
        assert capsys.readouterr().out == best.translate([line], **how)[0] + "\n"
    ask(monkeypatch, f"{line}\n" * 4)
    assert run("translate", trained, "--temperature", 3, "--seed", 5, "--threads", 3) == 0
    assert threads == [3]
    answers = capsys.readouterr().out.splitlines()
    assert answers == [best.translate([line], temperature=3.0, seed=5 + i)[0] for i in range(4)]
    assert len(set(answers)) > 1


def test_the_best_answers_of_each_line(trained, monkeypatch, capsys):
    lines = ["ä b", "", "c"]
    ask(monkeypatch, "\n".join(lines))
    assert run("translate", trained, "--beam", 3, "--n-best", 2) == 0
    found = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    best = Seq2Seq.load(trained / "best")
    expected = [
        [str(number), f"{each.score:.4f}", each.text]
        for number, line in enumerate(lines, 1)
        for each in best.translations([line], 3, 2)[0]
    ]
    assert found == expected
    assert [number for number, _, _ in found] == ["1", "1", "2", "3", "3"]


def test_bad_input_comes_after_the_answers_before_it(trained, monkeypatch, capsys):
    first = Seq2Seq.load(trained / "best").translate(["ä b"])[0] + "\n"
    ask(monkeypatch, "ä b\n".encode() + b"b\xff\nc\n")
    message = "standard input is not UTF-8 text: line 2 has a byte 0xff"
    refused(capsys, message, "translate", trained, output=first)
    ask(monkeypatch, "ä b\nc c c c\nb\n")
    message = "standard input: line 2 has 4 tokens, more than --max-length 3"
    refused(capsys, message, "translate", trained, "--max-length", 3, output=first)


def test_no_input_gives_no_output(trained, monkeypatch, capsys):
    ask(monkeypatch, "")
    assert run("translate", trained) == 0
    assert capsys.readouterr() == ("", "")


def test_options_that_do_not_go_together_need_no_input(trained, monkeypatch, capsys):
    ask(monkeypatch, b"\xff")
    for options, message in (
        (["--n-best", 2], "n_best must be at most beam=1, got 2"),
        (["--seed", 2], "seed is for drawing, got seed=2 and temperature=0"),
        (["--temperature", 1, "--beam", 2], "temperature is for beam=1"),
        (["--length-penalty", 1.5], "length_penalty must be a number between 0 and 1, got 1.5"),
    ):
        refused(capsys, message, "translate", trained, *options)


@pytest.mark.parametrize("level", ["char", "bpe"])
def test_an_answer_is_one_line_whatever_the_model_writes(tmp_path, monkeypatch, capsys, level):
    if level == "bpe":
        pytest.importorskip("tokenizers")
    model = Seq2Seq(level, embedding=4, hidden=5, seed=1)
    model.build((["a b"] * 4, ["x\ry  "] * 4))  # of byte-pair tokens one is "  \n"
    vocabulary = model.vocabularies["target"]
    texts = [vocabulary.decode([i]) for i in range(len(vocabulary))]
    bias = next(part["bias"] for name, part in zip(model._parts(), model.parameters, strict=True) if name == "output")
    bias[...] = [1000.0 if "\r" in text or ("\n" in text and text != "\n") else 0.0 for text in texts]
    model.save(tmp_path / "m")
    ask(monkeypatch, "a\nb\n")
    assert run("translate", tmp_path / "m", "--temperature", 1, "--seed", 1) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 2
    assert "\r" not in out
    assert len(out) > 10


def test_a_partner_gets_each_answer_at_once(trained):
    """As another program has it that asks, and reads before it asks again; in UTF-8, whatever the locale."""
    command = [sys.executable, "-m", "fastrnn", "seq2seq", "translate", str(trained), "--threads", "1"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    watchdog = threading.Timer(120, process.kill)  # an answer that does not come would be waited for
    watchdog.start()
    best = Seq2Seq.load(trained / "best")
    lines = ["ä b", "", "ddd ä", "c"]
    for line in lines:
        process.stdin.write(f"{line}\r\n".encode())
        process.stdin.flush()
        assert process.stdout.readline() == (best.translate([line])[0] + "\n").encode()
    assert "Ä" in "".join(best.translate(lines))
    out, err = process.communicate()
    watchdog.cancel()
    assert (out, err, process.returncode) == (b"", b"", 0)
