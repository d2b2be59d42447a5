"""Calls of ``fastrnn seq2seq`` on small texts, for its tests."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np

from fastrnn import Seq2Seq
from fastrnn.cli import main

WORDS = ["ä", "b", "c", "ddd"]
SMALL = ["--hidden", "20", "--embedding", "10", "--batch-size", "8", "--lr", "0.02", "--seed", "1", "--epochs", "2"]


def write(path, lines) -> Path:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def write_texts(folder) -> Path:
    """The folder, then with train.src, train.tgt, valid.src, valid.tgt."""
    for seed, (name, count) in enumerate((("train", 60), ("valid", 9))):
        rng = np.random.default_rng(seed)
        source = [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(count)]
        write(folder / f"{name}.src", source)
        write(folder / f"{name}.tgt", [line.upper() for line in source])
    return folder


def run(*argv) -> int:
    return main(["seq2seq", *map(str, argv)])


def train(texts, out, *options) -> int:
    return run("train", "--src", texts / "train.src", "--tgt", texts / "train.tgt", "--out", out, *SMALL, *options)


def held_out(texts):
    return "--valid-src", texts / "valid.src", "--valid-tgt", texts / "valid.tgt"


def trained_model(texts, out) -> Path:
    """The folder of a model whose latest weights are of no use beside the best ones."""
    assert train(texts, out, *held_out(texts), "--epochs", 12, "--metric", "wer", "--bidirectional") == 0
    latest = Seq2Seq.load(out)
    latest.load_state_dict({name: np.zeros_like(array) for name, array in latest.state_dict().items()})
    latest.save(out)
    return out


def ask(monkeypatch, text) -> None:
    """This is on standard input."""
    data = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def refused(capsys, message, *argv, output="") -> None:
    assert run(*argv) == 2
    out, err = capsys.readouterr()
    assert out == output
    assert message in err
    assert err.count("\n") == 1
