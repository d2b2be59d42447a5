"""A tiny language model and its text, shared by the tests of LanguageModel."""

from __future__ import annotations

import numpy as np

from fastrnn.models import LanguageModel
from fastrnn.models.schedules import Options

TEXT = "hello world, how are you? well, well. " * 12
QUICK = {"batch_size": 4, "bptt": 16, "lr": 0.02, "progress": False}
STEPS = 8  # of an epoch of TEXT with QUICK
SGD = QUICK | {"optimizer": "sgd", "lr": 3.0, "momentum": 0.5}


def tiny(**options) -> LanguageModel:
    return LanguageModel(**{"embedding": 6, "hidden": 12, "seed": 3, **options})


def tiny_trained() -> LanguageModel:
    model = tiny(layers=2, dropout=0.1)
    model.fit(TEXT, epochs=4, **QUICK)
    return model


def weights_equal(a: LanguageModel, b: LanguageModel) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


class Reporter:
    """Keeps the messages, and calls ``after`` with the number of each step."""

    def __init__(self, after=lambda step: None):
        self.messages, self.done, self._after = [], 0, after

    def start(self, total, title):
        pass

    def update(self, done, figures):
        self.done = done
        self._after(done)

    def message(self, text):
        self.messages.append(text)

    def close(self):
        pass


def options_of(**options) -> Options:
    return Options.checked("t", **{"batch_size": 4, "bptt": 16, "optimizer": "sgd"} | options)


def poison(model):
    model.parameters[0]["weight"][...] = np.nan
