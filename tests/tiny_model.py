"""A tiny language model and its text, shared by the tests of LanguageModel."""

from __future__ import annotations

import numpy as np

from fastrnn.models import LanguageModel

TEXT = "hello world, how are you? well, well. " * 12
QUICK = {"batch_size": 4, "bptt": 16, "lr": 0.02, "progress": False}


def tiny(**options) -> LanguageModel:
    return LanguageModel(**{"embedding": 6, "hidden": 12, "seed": 3, **options})


def tiny_trained() -> LanguageModel:
    model = tiny(layers=2, dropout=0.1)
    model.fit(TEXT, epochs=4, **QUICK)
    return model


def weights_equal(a: LanguageModel, b: LanguageModel) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
