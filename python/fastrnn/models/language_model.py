"""A recurrent language model: embedding -> stacked recurrent layer -> softmax over the vocabulary.

Everything is time-major: tokens are int32 ids (T, B), activations (T, B, size).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..checks import check_choice, check_flag, check_probability, check_real, check_size
from ..layers import GRU, LSTM, RNN
from ..spec import check_device
from . import checkpoint, training
from .nn import Dropout, Embedding, Output
from .progress import reporter
from .sampling import Sampler
from .vocabulary import UNKNOWN, VOCABULARIES, Vocabulary, vocabulary_from_dict

_CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
_FORMAT = "fastrnn.LanguageModel"
_CHUNK = 256  # time steps a pass in evaluation: bounds the activations, changes no value


class LanguageModel:
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
        where = "LanguageModel"
        self.level = check_choice(where, "level", level, VOCABULARIES)
        self.cell = check_choice(where, "cell", cell, _CELLS)
        self.embedding = check_size(where, "embedding", embedding)
        self.hidden = check_size(where, "hidden", hidden)
        self.layers = check_size(where, "layers", layers)
        self.dropout = check_probability(where, "dropout", dropout)
        self.tie = check_flag(where, "tie", tie)
        if self.tie and self.embedding != self.hidden:
            raise ValueError(f"{where}: tie needs embedding == hidden, got embedding={embedding} and hidden={hidden}")
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        self.seed = check_size(where, "seed", seed, low=0)
        self.min_frequency = check_size(where, "min_frequency", min_frequency)
        self.dtype = check_choice(where, "dtype", dtype, ("float32", "float64"))
        if check_device(where, device) is not None:
            raise RuntimeError(f"{where}: device {device!r} is not available: in this version models run on the CPU")
        self.vocabulary: Vocabulary | None = None
        self.history: list[dict[str, Any]] = []
        self._training: training.State | None = None
        # Independent streams from one seed; each part keeps its own whatever the others draw.
        self._seeds = dict(
            zip(
                ("recurrent", "weights", "training", "sampling"),
                np.random.SeedSequence(self.seed).spawn(4),
                strict=True,
            )
        )
        self._sampling = np.random.default_rng(self._seeds["sampling"])
        self._drop = Dropout(self.dropout)
        self.recurrent = _CELLS[self.cell](
            self.embedding,
            self.hidden,
            self.layers,
            dropout=self.dropout if self.layers > 1 else 0.0,
            dtype=self.dtype,
            seed=int(self._seeds["recurrent"].generate_state(1)[0]),
        )

    def __repr__(self) -> str:
        config = ", ".join(f"{name}={value!r}" for name, value in self.config.items())
        return f"LanguageModel({config})"

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, device aside."""
        names = ("level", "cell", "embedding", "hidden", "layers", "dropout", "tie", "seed", "min_frequency", "dtype")
        return {name: getattr(self, name) for name in names}

    # -- parameters ----------------------------------------------------------------------------------------------------

    def build(self, text: str) -> Vocabulary:
        """Take the vocabulary of ``text``, which is returned, and make the weights that depend on it.

        ``fit`` does so by itself.
        """
        if self.vocabulary is not None:
            raise RuntimeError("LanguageModel.build: the vocabulary is there already; make a new model for another one")
        self._check_text("LanguageModel.build", "text", text, least=1)
        return self._build(VOCABULARIES[self.level].of_text(text, self.min_frequency))

    def _build(self, vocabulary: Vocabulary) -> Vocabulary:
        rng, dtype = np.random.default_rng(self._seeds["weights"]), np.dtype(self.dtype)
        self.embed = Embedding(len(vocabulary), self.embedding, dtype, rng)
        self.output = Output(self.hidden, len(vocabulary), dtype, rng, tied=self.embed if self.tie else None)
        self.vocabulary = vocabulary
        return vocabulary

    def _built(self, where: str) -> Vocabulary:
        if self.vocabulary is None:
            raise RuntimeError(f"LanguageModel.{where}: the model has no vocabulary yet: call fit (or build) first")
        return self.vocabulary

    def _parts(self) -> dict[str, Any]:
        self._built("parameters")
        return {"embedding": self.embed, "recurrent": self.recurrent, "output": self.output}

    @property
    def parameters(self) -> list[dict[str, np.ndarray]]:
        """The parameter dicts of the embedding, the recurrent layer and the output layer, as optimizers take them."""
        return [part.parameters for part in self._parts().values()]

    @property
    def grads(self) -> list[dict[str, np.ndarray]]:
        """Their gradients."""
        return [part.grads for part in self._parts().values()]

    @property
    def num_parameters(self) -> int:
        """How many weights there are; tied ones count once."""
        return sum(array.size for group in self.parameters for array in group.values())

    def zero_grad(self) -> None:
        for part in self._parts().values():
            part.zero_grad()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all weights: ``embedding.weight``, ``recurrent.weight_ih_l0``, ..., ``output.bias``."""
        return {name: array.copy() for name, array in self._named_parameters().items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Write weights into the existing arrays: strict about names, shapes, dtypes; no effect when it fails."""
        where, own = "LanguageModel.load_state_dict", self._named_parameters()
        if not isinstance(state, Mapping):
            raise TypeError(f"{where}: state must be a dict of arrays, got {type(state).__name__}")
        if set(state) != set(own):
            raise ValueError(f"{where}: state must have the names {sorted(own)}, got {sorted(map(str, state))}")
        for name, array in own.items():
            new = state[name]
            if not isinstance(new, np.ndarray) or new.dtype != array.dtype:
                got = getattr(new, "dtype", type(new).__name__)
                raise TypeError(f"{where}: state[{name!r}] must be an array of {array.dtype}, got {got}")
            if new.shape != array.shape:
                raise ValueError(f"{where}: state[{name!r}] must have shape {array.shape}, got {new.shape}")
        for name, array in own.items():
            array[...] = state[name]

    def _named_parameters(self) -> dict[str, np.ndarray]:
        return {
            f"{name}.{key}": array for name, part in self._parts().items() for key, array in part.parameters.items()
        }

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
            dropped = self.dropout > 0.0 and self.layers > 1
            if dropped:
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
        """Cross-entropy of each token after the first, in chunks (nats (t, B), valid (t, B)), from B streams.

        Stream b predicts tokens 1 + b L ... of ``ids`` and starts with a zero state; the last streams may be shorter.
        """
        count = len(ids) - 1
        length = -(-count // batch_size)
        padded = np.zeros(length * batch_size + 1, np.int32)
        padded[: len(ids)] = ids
        inputs = padded[:-1].reshape(batch_size, length).T
        targets = padded[1:].reshape(batch_size, length).T
        lengths = np.clip(count - length * np.arange(batch_size), 0, length)
        state = None
        for start in range(0, length, _CHUNK):
            chunk = slice(start, min(start + _CHUNK, length))
            steps = chunk.stop - chunk.start
            left = np.clip(lengths - start, 0, steps)
            x = self.embed.forward(inputs[chunk])
            y, state = self.recurrent(x, state, lengths=None if (left == steps).all() else left)
            nats = self.output.nats(y.reshape(-1, self.hidden), targets[chunk].reshape(-1))
            yield nats.reshape(steps, batch_size), np.arange(steps)[:, None] < left

    # -- use -----------------------------------------------------------------------------------------------------------

    def fit(
        self,
        train: str,
        valid: str | None = None,
        *,
        epochs: int = 10,
        batch_size: int = 32,
        bptt: int = 64,
        optimizer: str = "adam",
        lr: float | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        clip: float | None = 1.0,
        schedule: str = "constant",
        warmup: int = 0,
        seconds: float | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        progress: Any = True,
    ) -> list[dict[str, Any]]:
        """Train on a text by truncated backpropagation through time; returns one record for each epoch.

        The text is cut into ``batch_size`` contiguous streams that are read side by side, ``bptt`` tokens a step. The
        state at the end of a step starts the next; gradients stop there. Each epoch begins with a zero state, and what
        does not fill the last row of the streams is left out.

        Args:
            train: text of at least ``batch_size`` + 1 tokens.
            valid: text evaluated after each epoch, in ``batch_size`` streams.
            epochs: passes over ``train``, those before a ``resume`` included.
            optimizer: "adam", "adamw" or "sgd" (with ``momentum``).
            lr: learning rate; None is 0.002 for adam and adamw, 1.0 for sgd.
            weight_decay: L2 penalty; with adamw decoupled weight decay.
            clip: largest global norm of the gradients (``clip_grad_norm``); None does not clip.
            schedule: "constant"; "cosine": from ``lr`` to 0 along half a cosine over the whole run; or "plateau": a
                quarter of the rate after each epoch that did not lower the loss on ``valid``.
            warmup: steps over which the rate first rises linearly.
            seconds: stop after this much time, whatever is left of ``epochs``; "cosine" then ends on time. The clock
                takes part in such a run: it does not repeat to the bit.
            checkpoint: folder that ``save`` writes to after each epoch; its subfolder ``best`` gets the model of the
                lowest loss on ``valid``.
            resume: carry on from the training state of this model (of an earlier ``fit``, or loaded), with the same
                text and options. The result is that of one uninterrupted run, to the bit.
            progress: True shows progress on standard error, False nothing; or an object (``models.progress.Progress``).

        Records: ``epoch``, ``steps``, ``lr``, ``loss`` (nats per token, in training mode), ``perplexity``, ``clipped``
        (share of steps), ``tokens_per_second``, ``seconds``; with ``valid`` also ``valid_loss``, ``valid_perplexity``.

        Raises:
            TypeError, ValueError: naming the argument.
            FloatingPointError: the loss or a gradient is not finite; the weights are those before that step.
        """
        where = "LanguageModel.fit"
        options = training.Options.checked(
            where, batch_size, bptt, optimizer, lr, momentum, weight_decay, clip, schedule, warmup
        )
        epochs = check_size(where, "epochs", epochs)
        if options.schedule == "plateau" and valid is None:
            raise ValueError(f"{where}: schedule='plateau' needs a valid text")
        if seconds is not None:
            seconds = check_real(where, "seconds", seconds, above=True)
        self._check_text(where, "train", train, least=options.batch_size + 1)
        if valid is not None:
            self._check_text(where, "valid", valid, least=2)
        report = reporter(where, progress)
        if checkpoint is not None:
            os.makedirs(checkpoint, exist_ok=True)  # a wrong path fails now, not after an epoch
        if not check_flag(where, "resume", resume):
            self._training = None
        elif self._training is None:
            raise ValueError(f"{where}: resume needs a model with training state: fitted before, or loaded with it")
        if self.vocabulary is None:
            self.build(train)
        return training.fit(
            self, train, valid, options, epochs=epochs, seconds=seconds, checkpoint=checkpoint, report=report
        )

    def evaluate(self, text: str, *, batch_size: int = 1) -> dict[str, float | int]:
        """How well the model predicts ``text``.

        Every token but the first, which has nothing before it, is predicted from all those before it. With
        ``batch_size`` above 1 the text is cut into as many streams, each starting from a zero state: faster, and
        slightly pessimistic.

        Returns a dict: ``loss`` (nats per token), ``perplexity`` (exp(loss)), ``tokens`` (predicted tokens),
        ``bits_per_character``.
        """
        where = "LanguageModel.evaluate"
        ids = self._encode("evaluate", text)
        batch_size = min(check_size(where, "batch_size", batch_size), len(ids) - 1)
        total = sum(float(nats.sum(where=valid, dtype=np.float64)) for nats, valid in self._nats(ids, batch_size))
        tokens = len(ids) - 1
        loss = total / tokens
        return {
            "loss": loss,
            "perplexity": math.inf if loss > 709.0 else math.exp(loss),
            "tokens": tokens,
            "bits_per_character": total / math.log(2.0) / max(1, len(text) - self._first_length(ids)),
        }

    def score(self, text: str) -> np.ndarray:
        """log p of each token of ``text`` but the first, in nats: float64, entry i for token i + 1."""
        ids = self._encode("score", text)
        return -np.concatenate([nats[:, 0] for nats, _ in self._nats(ids, 1)]).astype(np.float64)

    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int = 100,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str:
        """A continuation of ``prompt`` (which is not part of the result).

        Args:
            prompt: text to go on from; an empty one stands for the end of a line (or the first symbol, without one in
                the vocabulary).
            max_new_tokens: how many tokens, >= 0.
            temperature: divides the logits; below 1 plainer, 0 always the most probable token.
            top_k: draw from the k most probable tokens only.
            top_p: draw from the most probable tokens that together reach probability p, in (0, 1].
            seed: integer >= 0; None goes on with the model's own generator (started by its seed).

        Raises:
            TypeError, ValueError: naming the argument. FloatingPointError: the weights hold NaN or infinity.
        """
        where = "LanguageModel.generate"
        vocabulary = self._built("generate")
        if not isinstance(prompt, str):
            raise TypeError(f"{where}: prompt must be a str, got {type(prompt).__name__}")
        count = check_size(where, "max_new_tokens", max_new_tokens, low=0)
        sampler = Sampler.checked(where, temperature, top_k, top_p)
        rng = self._sampling if seed is None else np.random.default_rng(check_size(where, "seed", seed, low=0))
        ids = vocabulary.encode(prompt)
        if len(ids) == 0:
            ids = np.array([vocabulary.start], np.int32)
        last = int(ids[-1])
        # What stands between the last token and the first new one, such as a space, is part of the continuation.
        return vocabulary.decode([last, *self._continue(ids, count, sampler, rng)])[len(vocabulary.decode([last])) :]

    def _continue(self, ids: np.ndarray, count: int, sampler: Sampler, rng: np.random.Generator) -> Iterator[int]:
        stream = self.recurrent.stream(1)
        if len(ids) > 1:
            _, stream.state = self.recurrent(self.embed.forward(ids[:-1, None]))
        token = int(ids[-1])
        for _ in range(count):
            h = stream.step(self.embed.parameters["weight"][token : token + 1])
            logits = self.output.logits(h)[0]
            if not np.isfinite(logits).all():
                raise FloatingPointError(
                    "LanguageModel.generate: the model's outputs are not finite; check its weights"
                )
            logits[UNKNOWN] = -np.inf
            token = sampler.draw(logits, rng)
            yield token

    def _encode(self, where: str, text: str) -> np.ndarray:
        vocabulary = self._built(where)
        self._check_text(f"LanguageModel.{where}", "text", text, least=2)
        return vocabulary.encode(text)

    def _first_length(self, ids: np.ndarray) -> int:
        """Characters of the first token, which nothing predicts."""
        return len(self._built("evaluate").decode(ids[:1]))

    def _check_text(self, where: str, name: str, text: Any, least: int) -> None:
        if not isinstance(text, str):
            raise TypeError(f"{where}: {name} must be a str, got {type(text).__name__}")
        vocabulary = VOCABULARIES[self.level]
        if (count := vocabulary.count(text)) < least:
            raise ValueError(f"{where}: {name} must have at least {least} {vocabulary.unit}, got {count}")

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], *, training: bool = True) -> None:
        """Write the model to ``folder`` (made if missing): ``model.json`` and NumPy ``.npz`` archives, no pickle.

        With ``training`` also the training state (the optimizer's arrays and the position), so that ``fit(...,
        resume=True)`` can carry on. A save that fails or is cut off leaves the model that was there.
        """
        vocabulary = self._built("save")
        data: dict[str, Any] = {"config": self.config, "vocabulary": vocabulary.to_dict(), "history": self.history}
        archives = {"weights": self._named_parameters()}
        if training and self._training is not None:
            data["training"] = self._training.data
            archives["training"] = self._training.arrays
        checkpoint.write(folder, _FORMAT, data, archives)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "cpu") -> LanguageModel:
        """The model that ``save`` wrote.

        Raises:
            FileNotFoundError, ValueError: one line that names the file, when it is missing, damaged, changed or of
                another kind.
        """
        where = "LanguageModel.load"
        data, archives = checkpoint.read(where, folder, _FORMAT)
        config: Any = data.get("config")
        if not isinstance(config, dict):
            raise ValueError(f"{where}: {folder} is damaged: it has no config")
        config = {"min_frequency": 1} | config  # which the first models had not
        try:
            model = cls(**config, device=device)
            if model.config != config:
                raise ValueError(f"config must have the keys {sorted(model.config)}, got {sorted(config)}")
            vocabulary = vocabulary_from_dict(data.get("vocabulary"))
            if vocabulary.level != model.level:
                raise ValueError(f"the vocabulary must be of level {model.level!r}, got {vocabulary.level!r}")
            model._build(vocabulary)
            model.load_state_dict(archives.get("weights", {}))
            model.history = training.checked_history(data.get("history"))
            if "training" in data:
                model._training = training.State(data["training"], archives.get("training", {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {folder} is damaged: {error}") from None
        return model
