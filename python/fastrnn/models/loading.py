"""Any model from its folder."""

from __future__ import annotations

import os
from typing import Any

from . import kinds
from .classifier import SequenceClassifier
from .generator import SequenceGenerator
from .model import Model
from .seq2seq import Seq2Seq
from .tagger import SequenceTagger


def load(folder: str | os.PathLike[str], device: str = "cpu") -> Any:
    """The model that ``save`` of any class of ``fastrnn.models`` wrote.

    Raises:
        FileNotFoundError, ValueError: one line that names the file, when it is missing, damaged or of no known kind.

    Example:
        >>> import tempfile
        >>> from fastrnn.models import SequenceTagger, load
        >>> model = SequenceTagger(embedding=4, hidden=4)
        >>> model.build((["a cat"], ["DET NOUN"]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(folder)
        ...     type(load(folder)).__name__
        'SequenceTagger'
    """
    others: tuple[type[Model], ...] = (Seq2Seq, SequenceClassifier, SequenceTagger, SequenceGenerator)
    return kinds.load_one_of((*others, *kinds.CLASSES), folder, device)
