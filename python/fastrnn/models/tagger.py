"""Many to many: recurrent layers read a line, and a softmax layer says a tag of each of its tokens."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .encoder_decoder import _spread, _taken
from .labelling_model import LabellingModel
from .lines import Sentences
from .pairs import Lines
from .pairs_model import MAX_LENGTH


class SequenceTagger(LabellingModel):
    """Says a tag of each token of a line.

    In both directions, each tag is predicted from the token, all before it and all after it; from the last layer's
    outputs of both directions side by side::

        y_1 ... y_n = encoder(dropout(E[x_1])) ... encoder(dropout(E[x_n]))
        p(tag_t | x) = softmax(W dropout(y_t) + b)

    Args: those of ``SequenceClassifier``.

    Raises:
        TypeError, ValueError: naming the argument.

    ``fit``, ``evaluate`` and ``score`` take pairs (lines, tags), two lists or two paths of files: a line of tags has as
    many words as its line has tokens. An empty line has none. The tags that there are, ``labels``, are those of the
    first pairs given to ``fit`` (or ``build``). ``evaluate`` gives ``accuracy``, the share of tags that are right,
    beside the loss.

    Sources: Graves, Schmidhuber, "Framewise phoneme classification with bidirectional LSTM and other neural network
    architectures", 2005; Huang, Xu, Yu, "Bidirectional LSTM-CRF models for sequence tagging", 2015, of which this is
    the one without the CRF: tags are predicted independently of each other.

    Example:
        >>> from fastrnn.models import SequenceTagger
        >>> lines = ["the cat saw the dog", "a dog ran", "the dog saw a cat", "a cat ran"] * 4
        >>> tags = ["DET NOUN VERB DET NOUN", "DET NOUN VERB", "DET NOUN VERB DET NOUN", "DET NOUN VERB"] * 4
        >>> model = SequenceTagger(embedding=8, hidden=8, seed=1)
        >>> history = model.fit((lines, tags), epochs=10, batch_size=4, lr=0.02, progress=False)
        >>> model.tag(["the dog ran", ""])
        [['DET', 'NOUN', 'VERB'], []]
    """

    _format = "fastrnn.SequenceTagger"
    _NEED = "one tag for each of the {count} tokens of its source"

    def _counts(self, source: Sentences) -> np.ndarray:
        return source.lengths - 1  # the end has none

    def _features(self, memory: np.ndarray, lengths: np.ndarray, places: np.ndarray) -> np.ndarray:
        return _taken(memory, places)

    def _features_backward(
        self, d: np.ndarray, shape: tuple[int, ...], lengths: np.ndarray, places: np.ndarray
    ) -> np.ndarray:
        return _spread(d, places, shape[:2])

    def _answers(self, sources: Any, beam: int, batch_size: int) -> list[str]:
        return [" ".join(tags) for tags in self.tag(sources, batch_size=batch_size, max_length=sys.maxsize)]

    def tag(self, lines: Lines, *, batch_size: int = 64, max_length: int = MAX_LENGTH) -> list[list[str]]:
        """The most probable tag of each token of each line; arguments and errors as for
        ``SequenceClassifier.probabilities``."""
        count, batches = self._logits("tag", lines, batch_size, max_length)
        labels = self.labels
        found: list[list[str]] = [[] for _ in range(count)]
        for rows, logits in batches:
            for row, label in zip(rows.tolist(), logits.argmax(axis=1).tolist(), strict=True):
                found[row].append(labels[label])
        return found
