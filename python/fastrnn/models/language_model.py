"""A recurrent language model: embedding -> stacked recurrent layer -> softmax over the vocabulary.

Everything is time-major: tokens are int32 ids (T, B), activations (T, B, size).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..checks import check_choice, check_flag, check_size
from ..layers import GRU, LSTM, RNN
from ..spec import check_device
from .neural_model import NeuralModel, Part
from .nn import Embedding, Output
from .text_model import cut
from .vocabulary import Vocabulary

_CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
_CHUNK = 256  # time steps a pass in evaluation: bounds the activations, changes no value


class LanguageModel(NeuralModel):
    """Predicts each token of a text from those before it.

    With tokens ``w_t``, embedding ``E`` and a recurrent layer ``f`` (dropout as in torch's word language model example:
    the same p on the embeddings, between the layers and on the outputs)::

        h_t, s_t = f(dropout(E[w_t]), s_(t-1))
        p(w_(t+1) | w_1 ... w_t) = softmax(W dropout(h_t) + b)

    Args:
        level: what a token is: "char", a character (Unicode code point); or "word", what whitespace separates, and
            the end of each line.
        cell: "lstm", "gru" or "rnn" (tanh).
        embedding: size of a token's vector.
        hidden: units of each recurrent layer.
        layers: recurrent layers.
        dropout: probability in [0, 1], in training only.
        tie: W is E (needs embedding == hidden).
        seed: integer >= 0 that decides the initial weights, dropout and sampling; None draws one, kept as
            ``model.seed``.
        min_frequency: symbols that the first text holds less often are unknown ones.
        dtype: "float32" or "float64".
        device: "cpu".

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: for a device that is not there.

    The vocabulary is that of the first text given to ``fit`` (or ``build``), plus one token for all symbols not in it.

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
        "level", "cell", "embedding", "hidden", "layers", "dropout", "tie", "seed", "min_frequency", "dtype",
    )  # fmt: skip

    def __init__(
        self,
        level: str = "char",
        cell: str = "lstm",
        embedding: int = 64,
        hidden: int = 256,
        layers: int = 1,
        dropout: float = 0.0,
        tie: bool = False,
        seed: int | None = None,
        *,
        min_frequency: int = 1,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        super().__init__(level, seed, min_frequency, embedding, hidden, dropout, dtype)
        where = "LanguageModel"
        self.cell = check_choice(where, "cell", cell, _CELLS)
        self.layers = check_size(where, "layers", layers)
        self.tie = check_flag(where, "tie", tie)
        if self.tie and self.embedding != self.hidden:
            raise ValueError(f"{where}: tie needs embedding == hidden, got embedding={embedding} and hidden={hidden}")
        if check_device(where, device) is not None:
            raise RuntimeError(f"{where}: device {device!r} is not available: in this version models run on the CPU")
        self.recurrent = _CELLS[self.cell](
            self.embedding,
            self.hidden,
            self.layers,
            dropout=self.dropout if self.layers > 1 else 0.0,
            dtype=self.dtype,
            seed=int(self._seeds["recurrent"].generate_state(1)[0]),
        )

    @classmethod
    def _of_config(cls, config: dict[str, Any], device: str) -> LanguageModel:
        return cls(**config, device=device)

    def _build(self, vocabulary: Vocabulary) -> Vocabulary:
        rng, dtype = np.random.default_rng(self._seeds["weights"]), np.dtype(self.dtype)
        self.embed = Embedding(len(vocabulary), self.embedding, dtype, rng)
        self.output = Output(self.hidden, len(vocabulary), dtype, rng, tied=self.embed if self.tie else None)
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
        """Mean cross-entropy of ``targets`` (T, B) after ``inputs`` (T, B), in nats, and the final state of the layer.

        Gradients are added to ``grads``; without ``accumulate`` they take the place of those of earlier calls, as after
        ``zero_grad``, in less time. They end at ``state``: what came before it is taken as given (truncated
        backpropagation through time). Without ``rng`` there is no dropout.
        """
        self._built("loss_and_grads")
        x, x_mask = self._drop.forward(self.embed.forward(inputs), rng)
        if rng is None:
            if self.dropout > 0.0 and self.layers > 1:
                raise ValueError("LanguageModel.loss_and_grads: a model with dropout needs rng")
            y, state_n, tape = self.recurrent.forward(x, state)
        else:
            dropout_seed = int(rng.integers(2**64, dtype=np.uint64))
            y, state_n, tape = self.recurrent.forward(x, state, dropout_seed=dropout_seed)
        rows, y_mask = self._drop.forward(y.reshape(-1, self.hidden), rng)
        flat = targets.reshape(-1)
        if not accumulate:
            self.recurrent.zero_grad()
            if not self.tie:
                self.embed.zero_written_rows()
        nats, drows = self.output.loss(rows, flat, 1.0 / flat.size, accumulate)
        loss = nats.sum(dtype=np.float64) / flat.size
        drows = self._drop.backward(y_mask, drows)
        dx, _ = self.recurrent.backward(tape, drows.reshape(y.shape))
        self.embed.backward(inputs, self._drop.backward(x_mask, dx))
        return float(loss), state_n

    def _nats(self, ids: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        inputs, targets, lengths = cut(ids, batch_size)
        state = None
        for start in range(0, len(inputs), _CHUNK):
            chunk = slice(start, min(start + _CHUNK, len(inputs)))
            steps = chunk.stop - chunk.start
            left = np.clip(lengths - start, 0, steps)
            x = self.embed.forward(inputs[chunk])
            y, state = self.recurrent(x, state, lengths=None if (left == steps).all() else left)
            nats = self.output.nats(y.reshape(-1, self.hidden), targets[chunk].reshape(-1))
            yield nats.reshape(steps, batch_size), np.arange(steps)[:, None] < left

    def _decoder(self, ids: np.ndarray) -> _Stream:
        return _Stream(self, ids)


class _Stream:
    """A ``Decoder`` on the layer's packed weights."""

    def __init__(self, model: LanguageModel, ids: np.ndarray) -> None:
        self._embed, self._output = model.embed, model.output
        self._stream = model.recurrent.stream(1)
        if len(ids) > 1:
            _, self._stream.state = model.recurrent(model.embed.forward(ids[:-1, None]))

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._output.logits(self._stream.step(self._embed.forward(tokens)))

    def select(self, rows: np.ndarray) -> None:
        self._stream.select(rows)
