"""A text with something to follow in it, and a model of its characters, for the tests that look inside."""

from __future__ import annotations

import pytest

from fastrnn.models import LanguageModel

#: Every kind of layer: the cell by its name in the reference, and options of the model.
KERNELS = {
    "rnn": ("rnn_tanh", {"cell": "rnn"}),
    "rnn_relu": ("rnn_relu", {"cell": "rnn_relu"}),
    "gru": ("gru", {"cell": "gru"}),
    "lstm": ("lstm", {"cell": "lstm"}),
    "lstm with projection": ("lstm", {"cell": "lstm", "proj_size": 3}),
}
kernels = pytest.mark.parametrize(("kernel", "options"), KERNELS.values(), ids=KERNELS)
PROSE = 'He said "no" (twice).\nThen, on 3 May, "WHY NOT?" (she asked (him)).\n\n' * 12


def built(text=PROSE, **options) -> LanguageModel:
    model = LanguageModel(**{"embedding": 4, "hidden": 5, "seed": 2, "dtype": "float64", **options})
    model.build(text)
    return model
