"""The examples in the docstrings of the models' modules."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fastrnn.models

# Modules of which an example needs a library.
NEEDS = {"figures": "matplotlib", "metrics": "sacrebleu", "vocabulary": "tokenizers"}


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(fastrnn.models.__path__)])
def test_examples(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    failed, _ = doctest.testmod(importlib.import_module(f"fastrnn.models.{name}"))
    assert failed == 0
