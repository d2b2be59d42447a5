"""A tiny language model and its text, shared by the tests of LanguageModel."""

from __future__ import annotations

import numpy as np
import pytest

from fastrnn.models import LanguageModel, WindowModel
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
    return Options.checked("t", **{"optimizer": "sgd"} | options)


def poison(model):
    model.parameters[0]["weight"][...] = np.nan


def check_gradients(model: LanguageModel | WindowModel) -> None:
    """Of the second of two steps, in float64, against finite differences, of each weight."""
    model.build("abcdef")
    ids = np.random.default_rng(0).integers(0, len(model.vocabulary), (6, 3)).astype(np.int32)
    _, state = model.loss_and_grads(ids[:1], ids[1:2], None, np.random.default_rng(4))

    def loss() -> float:
        return model.loss_and_grads(ids[:-1], ids[1:], state, np.random.default_rng(5))[0]

    model.zero_grad()
    loss()
    analytic = [{name: grad.copy() for name, grad in group.items()} for group in model.grads]
    step, checked = 1e-5, 0
    for params, grads in zip(model.parameters, analytic, strict=True):
        for name, param in params.items():
            for index in np.ndindex(param.shape):
                kept = param[index]
                param[index] = kept + step
                above = loss()
                param[index] = kept - step
                below = loss()
                param[index] = kept
                assert (above - below) / (2 * step) == pytest.approx(grads[name][index], rel=1e-6, abs=1e-9), name
                checked += 1
    assert checked == model.num_parameters
