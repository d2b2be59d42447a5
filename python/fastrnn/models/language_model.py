"""A recurrent language model: embedding -> stacked recurrent layer -> softmax over the vocabulary.

Everything is time-major: tokens are int32 ids (T, B), activations (T, B, size).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..checks import check_choice, check_flag, check_probability, check_size
from ..spec import device_arrays
from .neural_model import NeuralModel
from .nn import Dropout, Embedding, Output, reshaped
from .stack import CELLS, make_stack
from .trainable import Part
from .vocabulary import Vocabulary


class LanguageModel(NeuralModel):
    """Predicts each token of a text from those before it.

    With tokens ``w_t``, embedding ``E`` and a recurrent layer ``f``, inside which dropout acts between its layers::

        h_t, s_t = f(dropout(E[w_t]), s_(t-1))
        p(w_(t+1) | w_1 ... w_t) = softmax(W dropout(h_t) + b)

    Args:
        level: what a token is: "char", a character (Unicode code point); "word", what whitespace separates, and
            the end of each line; or "bpe", a piece of a word found by byte-pair encoding (needs ``fastrnn[text]``).
        cell: "lstm", "gru", "rnn" (tanh) or "rnn_relu".
        embedding: size of a token's vector.
        hidden: units of each recurrent layer.
        layers: recurrent layers.
        dropout: probability in [0, 1], in training only; or three of them: on the embeddings, between the layers, and
            on the outputs.
        tie: W is E (needs embedding == hidden, or == proj_size where there is one).
        seed: integer >= 0 that decides the initial weights, dropout and sampling; None draws one, kept as
            ``model.seed``.
        min_frequency: symbols that the first text holds less often are unknown ones; with "bpe", what stands side by
            side less often does not become one token.
        vocab_size: symbols of level "bpe" at most, at least 257.
        proj_size: size of h of an LSTM with a projection; 0 for none.
        skip: each recurrent layer whose input has the size of its output adds the one to the other: see
            ``models.stack.ResidualLSTM``.
        bidirectional: False; True is refused, as the model would see the tokens that it is to predict.
        dtype: "float32" or "float64".
        device: "cpu", "cuda" or "cuda:N": where the weights are, and what is computed.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: for a device that is not there.

    The vocabulary is that of the first text given to ``fit`` (or ``build``), plus one token for all symbols not in it.
    Texts may be given as paths of files, too (UTF-8); with a ``checkpoint`` folder these may be larger than memory.

    Sources: Mikolov et al., "Recurrent neural network based language model", 2010; Zaremba, Sutskever, Vinyals,
    "Recurrent neural network regularization", 2014; Press, Wolf, "Using the output embedding to improve language
    models", 2017.

    Example:
        >>> import fastrnn
        >>> model = fastrnn.LanguageModel(embedding=8, hidden=16, seed=1)
        >>> history = model.fit("hello world. " * 50, epochs=20, batch_size=4, bptt=16, lr=0.02, progress=False)
        >>> model.evaluate("hello world. hello world.")["perplexity"] < 1.5
        True
    """

    _format = "fastrnn.LanguageModel"
    _config = (
        "level", "cell", "embedding", "hidden", "layers", "dropout", "tie", "seed", "min_frequency", "vocab_size",
        "proj_size", "skip", "dtype",
    )  # fmt: skip

    def __init__(
        self,
        level: str = "char",
        cell: str = "lstm",
        embedding: int = 64,
        hidden: int = 256,
        layers: int = 1,
        dropout: float | Sequence[float] = 0.0,
        tie: bool = False,
        seed: int | None = None,
        *,
        min_frequency: int = 1,
        vocab_size: int = 8192,
        proj_size: int = 0,
        skip: bool = False,
        bidirectional: bool = False,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        where = "LanguageModel"
        if check_flag(where, "bidirectional", bidirectional):
            raise ValueError(
                f"{where}: bidirectional must be False, got True: the reverse direction has read the tokens that the "
                "model is to predict"
            )
        arrays = device_arrays(where, device)
        super().__init__(level, seed, min_frequency, vocab_size, embedding, hidden, dtype, arrays)
        self.dropout, (on_embeddings, between, on_outputs) = _checked_dropout(where, dropout)
        self._drop_embeddings, self._drop_outputs = Dropout(on_embeddings, arrays), Dropout(on_outputs, arrays)
        self.cell = check_choice(where, "cell", cell, CELLS)
        self.layers = check_size(where, "layers", layers)
        self.proj_size = check_size(where, "proj_size", proj_size, low=0)
        if self.proj_size and self.cell != "lstm":
            raise ValueError(f"{where}: proj_size is for cell='lstm', got proj_size={proj_size} and cell={cell!r}")
        self.outputs = self.proj_size or self.hidden
        self.tie = check_flag(where, "tie", tie)
        if self.tie and self.embedding != self.outputs:
            size = f"proj_size={proj_size}" if self.proj_size else f"hidden={hidden}"
            raise ValueError(f"{where}: tie needs embedding == {size.partition('=')[0]}, got {embedding=} and {size}")
        self.skip = check_flag(where, "skip", skip)
        self.recurrent: Any = make_stack(
            self.cell,
            self.embedding,
            self.hidden,
            self.layers,
            dropout=between,
            proj_size=self.proj_size,
            skip=self.skip,
            dtype=self.dtype,
            device=arrays.device,
            seed=int(self._seeds["recurrent"].generate_state(1)[0]),
        )

    @classmethod
    def _of_config(cls, config: dict[str, Any], device: str) -> LanguageModel:
        return cls(**config, device=device)

    def _build(self, vocabulary: Vocabulary) -> Vocabulary:
        rng, dtype = np.random.default_rng(self._seeds["weights"]), np.dtype(self.dtype)
        tied = self.embed = Embedding(len(vocabulary), self.embedding, dtype, rng, self._arrays)
        self.output = Output(self.outputs, len(vocabulary), dtype, rng, tied if self.tie else None, self._arrays)
        return super()._build(vocabulary)

    def _parts(self) -> dict[str, Part]:
        self._built("parameters")
        return {"embedding": self.embed, "recurrent": self.recurrent, "output": self.output}

    # -- computation ---------------------------------------------------------------------------------------------------

    def loss_and_grads(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        state: Any = None,
        rng: np.random.Generator | None = None,
        *,
        accumulate: bool = True,
    ) -> tuple[float, Any]:
        self._built("loss_and_grads")
        self._check_drawing(rng, dropout=float(np.max(self.dropout)))
        with self._arrays.current():
            read = self.embed.read(inputs, self.recurrent, self._drop_embeddings, rng)
            dropout_seed = None if rng is None else int(rng.integers(2**64, dtype=np.uint64))
            y, state_n, tape = self.recurrent.forward(read.x, state, dropout_seed=dropout_seed, **read.options)
            rows, y_mask = self._drop_outputs.forward(reshaped(y, (-1, self.outputs)), rng)
            if not accumulate:
                self.recurrent.zero_grad()
                self.embed.zero_written_rows()  # of a tied one, too: what it keeps of them would grow with each step
            loss, drows = self._loss(rows, targets, accumulate)
            drows = Dropout.backward(y_mask, drows)
            dx, _ = self.recurrent.backward(tape, reshaped(drows, y.shape))
            self.embed.read_backward(read, dx)
        return loss, state_n

    def _features(self, inputs: np.ndarray, state: Any, lengths: np.ndarray) -> tuple[Any, Any]:
        whole = (lengths == len(inputs)).all()
        read = self.embed.read(inputs, self.recurrent)
        y, state = self.recurrent(read.x, state, lengths=None if whole else lengths, **read.options)
        return reshaped(y, (-1, self.outputs)), state

    def _decoder(self, ids: np.ndarray) -> _Stream:
        return _Stream(self, ids)


class _Stream:
    """A ``StepDecoder`` on the layer's packed weights."""

    def __init__(self, model: LanguageModel, ids: np.ndarray) -> None:
        self._embed, self._output, self._arrays = model.embed, model.output, model._arrays
        self._stream = model.recurrent.stream(1)
        if len(ids) > 1:
            with self._arrays.current():
                read = model.embed.read(ids[:-1, None], model.recurrent)
                _, self._stream.state = model.recurrent(read.x, **read.options)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        with self._arrays.current():
            logits = self._output.logits(self._stream.step(self._embed.forward(tokens)))
            return self._arrays.download(logits)

    def select(self, rows: np.ndarray) -> None:
        self._stream.select(rows)


def _checked_dropout(where: str, dropout: Any) -> tuple[float | list[float], list[float]]:
    """As the configuration has it, and the three probabilities."""
    if not isinstance(dropout, (list, tuple)):
        p = check_probability(where, "dropout", dropout)
        return p, [p] * 3
    if len(dropout) != 3:
        raise ValueError(f"{where}: dropout must be one number or three, got {len(dropout)}")
    each = [check_probability(where, f"dropout[{i}]", p) for i, p in enumerate(dropout)]
    return each, each
