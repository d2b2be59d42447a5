"""Many to one: recurrent layers read a line, and a softmax layer says its label."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .decoding import log_softmax
from .labelling_model import LabellingModel
from .lines import Sentences
from .pairs import Lines
from .pairs_model import MAX_LENGTH


class SequenceClassifier(LabellingModel):
    """Says a label of each line that it reads.

    The label is predicted from the last output y of the recurrent layers; in both directions, each ends at the other
    end of the line, and the two are side by side::

        y = the last output of encoder(dropout(E[x]))
        p(label | x) = softmax(W dropout(y) + b)

    Args:
        level: what a token of a line is: "word", what whitespace separates; "char", a character; or "bpe", a piece of a
            word found by byte-pair encoding (needs ``fastrnn[text]``).
        cell: "lstm", "gru", "rnn" (tanh) or "rnn_relu".
        embedding: size of a token's vector.
        hidden: units of each recurrent layer, in each direction.
        layers: recurrent layers.
        dropout: probability in [0, 1], in training only: on embeddings, between the layers, and before the output.
        bidirectional: read in both directions.
        seed: integer >= 0 that decides the initial weights, the order of the pairs and dropout; None draws one, kept as
            ``model.seed``.
        skip: each recurrent layer whose input has the size of its output adds the one to the other.
        min_frequency: symbols that the training lines hold less often are unknown ones.
        vocab_size: symbols of level "bpe" at most, at least 257.
        dtype: "float32" or "float64".

    Raises:
        TypeError, ValueError: naming the argument.

    ``fit``, ``evaluate`` and ``score`` take pairs (lines, labels), two lists or two paths of files: a label is a word
    without whitespace, one for each line. The labels are those of the first pairs given to ``fit`` (or ``build``).
    ``evaluate`` gives ``accuracy``, the share of labels that are right, beside the loss. A line's end is read, too.

    Source: Graves, "Supervised sequence labelling with recurrent neural networks", 2012.

    Example:
        >>> from fastrnn.models import SequenceClassifier
        >>> lines = ["ab" * n for n in range(1, 9)] + ["ba" * n for n in range(1, 9)]
        >>> labels = ["begins_with_a"] * 8 + ["begins_with_b"] * 8
        >>> model = SequenceClassifier(level="char", embedding=8, hidden=16, seed=1)
        >>> history = model.fit((lines, labels), epochs=20, batch_size=8, lr=0.01, progress=False)
        >>> model.predict(["abab", "baba"])
        ['begins_with_a', 'begins_with_b']
        >>> model.probabilities(["abab"]).round(1), model.labels
        (array([[1., 0.]]), ['begins_with_a', 'begins_with_b'])
    """

    _format = "fastrnn.SequenceClassifier"
    _NEED = "one label"

    def _counts(self, source: Sentences) -> np.ndarray:
        return np.ones(len(source), np.int64)

    def _features(self, memory: np.ndarray, lengths: np.ndarray, places: np.ndarray) -> np.ndarray:
        last = memory[lengths - 1, np.arange(len(lengths))]
        if self.bidirectional:  # whose reverse direction ends at the first step
            last[:, self.hidden :] = memory[0, :, self.hidden :]
        return last

    def _features_backward(
        self, d: np.ndarray, shape: tuple[int, ...], lengths: np.ndarray, places: np.ndarray
    ) -> np.ndarray:
        dmemory, size = np.zeros(shape, d.dtype), self.hidden
        dmemory[lengths - 1, np.arange(len(lengths)), :size] = d[:, :size]
        if self.bidirectional:
            dmemory[0, :, size:] = d[:, size:]
        return dmemory

    def _answers(self, sources: Any, beam: int, batch_size: int) -> list[str]:
        return self.predict(sources, batch_size=batch_size, max_length=sys.maxsize)

    def predict(self, lines: Lines, *, batch_size: int = 64, max_length: int = MAX_LENGTH) -> list[str]:
        """The most probable label of each line; arguments and errors as for ``probabilities``."""
        found = self._probabilities("predict", lines, batch_size, max_length).argmax(axis=1)
        labels = self.labels
        return [labels[i] for i in found]

    def probabilities(self, lines: Lines, *, batch_size: int = 64, max_length: int = MAX_LENGTH) -> np.ndarray:
        """How probable each of ``labels`` is for each line, float64 (lines, labels).

        Args:
            lines: a list of str without line breaks, or the ``pathlib.Path`` of a file.
            batch_size: lines read side by side.
            max_length: tokens of a line; a longer one is an error.

        Raises:
            TypeError, ValueError: naming the argument or line. FloatingPointError: the weights hold NaN or infinity.
        """
        return self._probabilities("probabilities", lines, batch_size, max_length)

    def _probabilities(self, call: str, lines: Lines, batch_size: int, max_length: int) -> np.ndarray:
        count, batches = self._logits(call, lines, batch_size, max_length)
        found = np.empty((count, len(self.labels)))
        for rows, logits in batches:
            found[rows] = np.exp(log_softmax(logits))
        return found
