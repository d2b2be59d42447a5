"""A text with something to follow in it, and a model of its characters, for the tests that look inside."""

from __future__ import annotations

from fastrnn.models import LanguageModel

CELLS = ("rnn", "gru", "lstm")
KERNELS = {"rnn": "rnn_tanh", "gru": "gru", "lstm": "lstm"}
PROSE = 'He said "no" (twice).\nThen, on 3 May, "WHY NOT?" (she asked (him)).\n\n' * 12


def built(text=PROSE, **options) -> LanguageModel:
    model = LanguageModel(**{"embedding": 4, "hidden": 5, "seed": 2, "dtype": "float64", **options})
    model.build(text)
    return model
