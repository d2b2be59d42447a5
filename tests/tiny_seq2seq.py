"""A tiny sequence-to-sequence model and its pairs, shared by the tests of Seq2Seq."""

from __future__ import annotations

from fastrnn.models import Seq2Seq

WORDS = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four", "fünf": "five"}
SOURCE = [f"{a} {b}" for a in WORDS for b in WORDS] + list(WORDS) + [""]
TARGET = [" ".join(WORDS[word] for word in line.split()) for line in SOURCE]
PAIRS = (SOURCE, TARGET)
RUN = {"batch_size": 8, "lr": 0.02, "progress": False}


def tiny(**options) -> Seq2Seq:
    return Seq2Seq(**{"embedding": 12, "hidden": 24, "seed": 1} | options)
