"""A neural language model of a fixed window: embeddings side by side -> hidden layer -> softmax over the vocabulary.

Everything is time-major: tokens are int32 ids (T, B), activations (T, B, size).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_flag, check_probability, check_size
from .neural_model import NeuralModel
from .nn import Dropout, Embedding, Linear, Output
from .trainable import Part
from .vocabulary import Vocabulary


class WindowModel(NeuralModel):
    """Predicts each token of a text from the ``window`` tokens before it.

    With tokens ``w_t`` and embedding ``E``::

        x_t = [E[w_(t-window+1)], ..., E[w_t]]
        h_t = tanh(H x_t + d)
        p(w_(t+1) | w_(t-window+1) ... w_t) = softmax(U h_t + W x_t + b)

    where ``W x_t`` is there with ``direct`` only. Before a text stands the end of a line, ``window`` times. Dropout
    acts on ``x_t`` and ``h_t``.

    Args:
        level: what a token is, as in ``LanguageModel``.
        window: how many tokens are seen.
        embedding: size of a token's vector.
        hidden: units of the hidden layer.
        direct: connect the embeddings with the output, too.
        dropout: probability in [0, 1], in training only.
        seed: integer >= 0 that decides the initial weights, dropout and sampling; None draws one, kept as
            ``model.seed``.
        min_frequency, vocab_size: as in ``LanguageModel``.
        dtype: "float32" or "float64".

    Raises:
        TypeError, ValueError: naming the argument.

    All else is as in ``LanguageModel``: ``fit``, ``evaluate``, ``score``, ``generate``, ``save``, ``load``.

    Source: Bengio, Ducharme, Vincent, Jauvin, "A neural probabilistic language model", 2003.

    Example:
        >>> from fastrnn.models import WindowModel
        >>> model = WindowModel(window=5, embedding=8, hidden=32, seed=1)
        >>> history = model.fit("hello world. " * 50, epochs=20, batch_size=4, bptt=16, lr=0.02, progress=False)
        >>> model.evaluate("hello world. hello world.")["perplexity"] < 1.5
        True
    """

    _format = "fastrnn.WindowModel"
    _config = (
        "level", "window", "embedding", "hidden", "direct", "dropout", "seed", "min_frequency", "vocab_size", "dtype",
    )  # fmt: skip

    def __init__(
        self,
        level: str = "char",
        window: int = 4,
        embedding: int = 64,
        hidden: int = 256,
        direct: bool = False,
        dropout: float = 0.0,
        seed: int | None = None,
        *,
        min_frequency: int = 1,
        vocab_size: int = 8192,
        dtype: str = "float32",
    ) -> None:
        super().__init__(level, seed, min_frequency, vocab_size, embedding, hidden, dtype)
        self.dropout = check_probability("WindowModel", "dropout", dropout)
        self._drop = Dropout(self.dropout)
        self.window = check_size("WindowModel", "window", window)
        self.direct = check_flag("WindowModel", "direct", direct)

    def _build(self, vocabulary: Vocabulary) -> Vocabulary:
        rng, dtype = np.random.default_rng(self._seeds["weights"]), np.dtype(self.dtype)
        seen = self.window * self.embedding
        self.embed = Embedding(len(vocabulary), self.embedding, dtype, rng)
        self.linear = Linear(seen, self.hidden, dtype, rng)
        self.output = Output(self.hidden + (seen if self.direct else 0), len(vocabulary), dtype, rng)
        return super()._build(vocabulary)

    def _parts(self) -> dict[str, Part]:
        self._built("parameters")
        return {"embedding": self.embed, "hidden": self.linear, "output": self.output}

    # -- computation ---------------------------------------------------------------------------------------------------

    def _extended(self, inputs: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        """Tokens (window - 1 + T, B): those before the inputs, which are the state, and these."""
        if before is None:
            before = np.full((self.window - 1, inputs.shape[1]), self._built("state").start, np.int32)
        return np.concatenate([before, inputs])

    def _seen(self, tokens: np.ndarray) -> np.ndarray:
        """x (T, B, window * E)."""
        vectors = self.embed.forward(tokens)
        steps = len(tokens) - self.window + 1
        return np.concatenate([vectors[k : k + steps] for k in range(self.window)], axis=2)

    def _joined(self, x: np.ndarray, h: np.ndarray) -> np.ndarray:
        return np.concatenate([h, x], axis=-1) if self.direct else h

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
        self._check_drawing(rng, dropout=self.dropout)
        tokens = self._extended(inputs, state)
        x, x_mask = self._drop.forward(self._seen(tokens), rng)
        rows = x.reshape(-1, x.shape[2])
        tanh = np.tanh(self.linear.forward(rows))
        h, h_mask = self._drop.forward(tanh, rng)
        if not accumulate:
            self.linear.zero_grad()
            self.embed.zero_written_rows()
        loss, dfeatures = self._loss(self._joined(rows, h), targets, accumulate)
        dh = self._drop.backward(h_mask, dfeatures[:, : self.hidden])
        drows = self.linear.backward(rows, dh * (1 - tanh * tanh))
        if self.direct:
            drows += dfeatures[:, self.hidden :]
        dx = self._drop.backward(x_mask, drows.reshape(x.shape))
        # Each token is seen by `window` steps.
        dvectors = np.zeros((*tokens.shape, self.embedding), x.dtype)
        for k in range(self.window):
            dvectors[k : k + len(inputs)] += dx[..., k * self.embedding : (k + 1) * self.embedding]
        self.embed.backward(tokens, dvectors)
        return loss, tokens[len(inputs) :]

    def _features(self, inputs: np.ndarray, state: Any, lengths: np.ndarray) -> tuple[Any, Any]:
        tokens = self._extended(inputs, state)
        return self._outputs(tokens), tokens[len(inputs) :]

    def _outputs(self, tokens: np.ndarray) -> np.ndarray:
        """What the output layer gets after the last T of (window - 1 + T, B) tokens, (T B, size), without dropout."""
        x = self._seen(tokens)
        rows = x.reshape(-1, x.shape[2])
        return self._joined(rows, np.tanh(self.linear.forward(rows)))

    def _decoder(self, ids: np.ndarray) -> _Window:
        return _Window(self, ids)


class _Window:
    """A ``StepDecoder`` that keeps the last tokens of each row."""

    def __init__(self, model: WindowModel, ids: np.ndarray) -> None:
        self._model = model
        read = model._extended(ids[:-1, None], None)
        self._before = read[len(read) - model.window + 1 :]  # (window - 1, N)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        seen = np.concatenate([self._before, tokens[None]])
        self._before = seen[1:]
        return self._model.output.logits(self._model._outputs(seen))

    def select(self, rows: np.ndarray) -> None:
        self._before = self._before[:, rows]
