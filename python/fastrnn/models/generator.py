"""One to many: a decoder writes a line from a vector."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_choice, check_size
from .encoder_decoder import Decoder
from .lines import Sentences
from .nn import Embedding, Linear, Output
from .pairs import read_pairs
from .pairs_model import MAX_LENGTH
from .trainable import Part
from .translation import Decoding, breaks_in
from .vectors import Vectors
from .vocabulary import VOCABULARIES
from .writing_model import WritingModel


class SequenceGenerator(WritingModel):
    """Writes a line for each vector v (D,) that it is given.

    Each layer of the decoder begins with a state made from the vector (for "lstm" h and c, each with its own weights),
    and the decoder predicts each token from those before it::

        s_0 = tanh(W_s v + b_s)
        y_t, s_t = decoder(dropout(E[w_t]), s_(t-1))
        p(w_(t+1) | w_1 ... w_t, v) = softmax(W dropout(y_t) + b)

    Args:
        features: D, numbers of a vector.
        level: what a token of a line is: "word", "char" or "bpe"; see ``Seq2Seq``.
        cell: "lstm", "gru", "rnn" (tanh) or "rnn_relu".
        embedding: size of a token's vector.
        hidden: units of each recurrent layer.
        layers: recurrent layers.
        dropout: probability in [0, 1], in training only: on embeddings, between the layers, and before the output.
        seed: integer >= 0 that decides the initial weights, the order of the pairs, dropout and drawing; None draws
            one, kept as ``model.seed``.
        skip: each recurrent layer whose input has the size of its output adds the one to the other.
        min_frequency, vocab_size, dtype: as in ``Seq2Seq``.

    Raises:
        TypeError, ValueError: naming the argument.

    ``fit``, ``evaluate`` and ``score`` take pairs (vectors, lines): real numbers (n, D), best of mean 0 and variance 1
    or so, and n lines, as a list or the ``pathlib.Path`` of a file.

    Sources: Vinyals, Toshev, Bengio, Erhan, "Show and tell: a neural image caption generator", 2015, where the vector
    is the first input of the decoder; Xu et al., "Show, attend and tell: neural image caption generation with visual
    attention", 2015, where it makes the first state, as here.

    Example:
        >>> import numpy as np
        >>> from fastrnn.models import SequenceGenerator
        >>> vectors = np.random.default_rng(0).integers(0, 2, (64, 2))
        >>> lines = ["ab"[first] * (2 + 2 * long) for first, long in vectors]
        >>> model = SequenceGenerator(2, level="char", embedding=8, hidden=16, seed=1)
        >>> history = model.fit((vectors, lines), epochs=20, batch_size=16, lr=0.02, progress=False)
        >>> model.generate([[0, 0], [0, 1], [1, 1]])
        ['aa', 'aaaa', 'bbbb']
    """

    _format = "fastrnn.SequenceGenerator"
    _config = (
        "features", "level", "cell", "embedding", "hidden", "layers", "dropout", "seed", "skip", "min_frequency",
        "vocab_size", "dtype",
    )  # fmt: skip
    _VOCABULARIES = ("target",)

    def __init__(
        self,
        features: int,
        level: str = "word",
        cell: str = "lstm",
        embedding: int = 256,
        hidden: int = 256,
        layers: int = 1,
        dropout: float = 0.0,
        seed: int | None = None,
        *,
        skip: bool = False,
        min_frequency: int = 1,
        vocab_size: int = 8192,
        dtype: str = "float32",
    ) -> None:
        super().__init__(seed)
        self.features = check_size("SequenceGenerator", "features", features)
        self.level = check_choice("SequenceGenerator", "level", level, VOCABULARIES)
        self._set_sizes(
            cell=cell, embedding=embedding, hidden=hidden, layers=layers, dropout=dropout, skip=skip,
            min_frequency=min_frequency, vocab_size=vocab_size, dtype=dtype,
        )  # fmt: skip

    # -- weights -------------------------------------------------------------------------------------------------------

    @property
    def _levels(self) -> dict[str, str]:
        return {"target": self.level}

    def _make_weights(self) -> None:
        target, dtype = self.vocabularies["target"], np.dtype(self.dtype)
        rng, states = np.random.default_rng(self._seeds["weights"]), 2 if self.cell == "lstm" else 1
        self._breaks = breaks_in(target, self._ends["target"])
        self._encoder = _First(
            Linear(self.features, states * self.layers * self.hidden, dtype, rng), states, self.hidden
        )
        self._decoder = Decoder(
            Embedding(len(target), self.embedding, dtype, rng),
            self._make_stack(self.embedding, self._seeds["recurrent"].generate_state(1)[0]),
            None,
            Output(self.hidden, len(target), dtype, rng),
            self.dropout,
            input_feeding=False,
        )

    def _parts(self) -> dict[str, Part]:
        self._built("parameters")
        decoder = self._decoder
        return {
            "first": self._encoder.linear,
            "embedding": decoder.embed,
            "decoder": decoder.stack,
            "output": decoder.output,
        }

    # -- pairs ---------------------------------------------------------------------------------------------------------

    def _read(self, where: str, name: str, pairs: Any) -> tuple[Vectors, list[str]]:
        if not isinstance(pairs, (tuple, list)) or len(pairs) != 2:
            got = f"{len(pairs)} of them" if isinstance(pairs, (tuple, list)) else type(pairs).__name__
            raise TypeError(f"{where}: {name} must be two, vectors and lines, got {got}")
        vectors = self._vectors(where, f"{name}[0]", pairs[0])
        _, lines = read_pairs(where, name, ([""] * len(vectors), pairs[1]))  # equally many, at least one
        return vectors, lines

    def _vectors(self, where: str, name: str, given: Any) -> Vectors:
        return given if isinstance(given, Vectors) else Vectors.checked(where, name, given, self.features, self.dtype)

    def _ids(
        self, where: str, name: str, pairs: Any, lines: tuple[Any, Any], max_length: int
    ) -> tuple[Vectors, Sentences]:
        return lines[0], self._sentences(where, f"{name}[1]", "target", pairs[1], lines[1], max_length)

    # -- use -----------------------------------------------------------------------------------------------------------

    def _answers(self, sources: Any, beam: int, batch_size: int) -> list[str]:
        return self.generate(sources, beam, batch_size=batch_size)

    def generate(
        self,
        vectors: Any,
        beam: int = 1,
        *,
        length_penalty: float = 1.0,
        unknown: str = "avoid",
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        batch_size: int = 64,
        max_length: int = MAX_LENGTH,
    ) -> list[str]:
        """A line for each vector: the best one, or one that is drawn.

        Args:
            vectors: real numbers (n, D).
            beam: how many outputs are followed side by side; 1: always the most probable token.
            length_penalty, temperature, top_k, top_p, seed: as in ``Seq2Seq.translations``.
            unknown: "avoid": unknown tokens are not written; "keep": they are, as ``<unk>``.
            batch_size: vectors side by side.
            max_length: tokens of an output at most.

        Raises:
            TypeError, ValueError: naming the argument. FloatingPointError: the weights hold NaN or infinity.
        """
        where, vocabulary = "SequenceGenerator.generate", self._built("generate")["target"]
        how = Decoding.checked(
            where, beam, 1, False, self._sampling, length_penalty=length_penalty, unknown=unknown,
            temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, batch_size=batch_size, max_length=max_length,
        )  # fmt: skip
        source = self._vectors(where, "vectors", vectors)
        rows, limits, lines = np.arange(len(source)), np.full(len(source), how.max_length), [""] * len(source)
        for row, (best, *_) in self._hypotheses(where, source, rows, limits, how):
            lines[row] = vocabulary.decode(best.tokens.tolist())
        return lines


class _First:
    """In the place of an encoder: the first state of each of a decoder's layers, from vectors (B, D)."""

    def __init__(self, linear: Linear, states: int, hidden: int) -> None:
        self.linear, self._states, self._hidden = linear, states, hidden

    def __call__(self, vectors: np.ndarray, lengths: np.ndarray) -> tuple[None, Any]:
        return self.forward(vectors, lengths, None)[:2]

    def forward(self, vectors: np.ndarray, lengths: np.ndarray, rng: Any) -> tuple[None, Any, Any]:
        y = np.tanh(self.linear.forward(vectors))
        parts = y.reshape(len(vectors), self._states, -1, self._hidden).transpose(1, 2, 0, 3)  # (states, L, B, H)
        state = tuple(np.ascontiguousarray(part) for part in parts)
        return None, state if self._states > 1 else state[0], (vectors, y)

    def backward(self, tape: Any, dmemory: None, dstate: Any) -> None:
        vectors, y = tape
        parts = np.stack(dstate if self._states > 1 else [dstate])
        self.linear.backward(vectors, parts.transpose(2, 0, 1, 3).reshape(y.shape) * (1.0 - y * y))
