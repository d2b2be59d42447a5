"""Language models of weights: what they compute, and training on a text."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..arrays import HOST, Arrays
from ..checks import check_choice, check_size
from .nn import Output
from .run import Settings
from .schedules import Options
from .text_model import Text, TextModel, cut
from .trainable import Trainable
from .training import Streams, fingerprint

_CHUNK = 256  # time steps a pass in evaluation: bounds the activations, changes no value


class NeuralModel(Trainable, TextModel):
    """A language model that is trained by gradients.

    A kind of model makes its weights in ``_build``, names them in ``_parts``, and computes ``loss_and_grads``.
    """

    output: Output

    def __init__(
        self,
        level: str,
        seed: int | None,
        min_frequency: int,
        vocab_size: int,
        embedding: int,
        hidden: int,
        dtype: str,
        arrays: Arrays = HOST,
    ) -> None:
        super().__init__(level, seed, min_frequency, vocab_size)
        where = type(self).__name__
        self.embedding = check_size(where, "embedding", embedding)
        self.hidden = check_size(where, "hidden", hidden)
        self.dtype = check_choice(where, "dtype", dtype, ("float32", "float64"))
        self._arrays = arrays

    # -- computation ---------------------------------------------------------------------------------------------------

    def _loss(self, rows: Any, targets: np.ndarray, accumulate: bool) -> tuple[float, Any]:
        """Mean cross-entropy after (N, size) rows that go into the output layer, and its gradient by these."""
        flat = targets.reshape(-1)
        nats, drows = self.output.loss(rows, flat, 1.0 / flat.size, accumulate)
        return float(self._arrays.download(nats).sum(dtype=np.float64) / flat.size), drows

    @abstractmethod
    def loss_and_grads(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        state: Any = None,
        rng: np.random.Generator | None = None,
        *,
        accumulate: bool = True,
    ) -> tuple[float, Any]:
        """Mean cross-entropy of ``targets`` (T, B) after ``inputs`` (T, B), in nats, and the state after them.

        Gradients are added to ``grads``; without ``accumulate`` they take the place of those of earlier calls, as after
        ``zero_grad``, in less time. They end at ``state``: what came before it is taken as given (truncated
        backpropagation through time). Dropout is drawn by ``rng``.
        """

    @abstractmethod
    def _features(self, inputs: np.ndarray, state: Any, lengths: np.ndarray) -> tuple[Any, Any]:
        """What the output layer gets after each of (T, B) tokens, (T B, size), without dropout, and the state.

        Past the end of a stream, of the ``lengths`` (B,), anything.
        """

    def _nats(self, ids: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        inputs, targets, lengths = cut(ids, batch_size)
        state = None
        for start in range(0, len(inputs), _CHUNK):
            chunk = slice(start, min(start + _CHUNK, len(inputs)))
            steps = chunk.stop - start
            left = np.clip(lengths - start, 0, steps)
            with self._arrays.current():
                rows, state = self._features(inputs[chunk], state, left)
                nats = self._arrays.download(self.output.nats(rows, targets[chunk].reshape(-1)))
            yield nats.reshape(steps, batch_size), np.arange(steps)[:, None] < left

    def fit(
        self,
        train: Text,
        valid: Text | None = None,
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
        decay: float | None = None,
        decay_after: int | None = None,
        average: int | str | None = None,
        patience: int | None = None,
        seconds: float | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        sample_every: int | None = None,
        progress: Any = True,
    ) -> list[dict[str, Any]]:
        """Train on a text by truncated backpropagation through time; returns one record for each epoch.

        The text is cut into ``batch_size`` contiguous streams that are read side by side, ``bptt`` tokens a step. The
        state at the end of a step starts the next; gradients stop there. Each epoch begins with a zero state, and what
        does not fill the last row of the streams is left out.

        Args:
            train: text of at least ``batch_size`` + 1 tokens, or the path of a file of text.
            valid: another one, evaluated after each epoch in ``batch_size`` streams.
            epochs: passes over ``train``, those before a ``resume`` included.
            optimizer: "adam", "adamw" or "sgd" (with ``momentum``).
            lr: learning rate; None is 0.002 for adam and adamw, 1.0 for sgd.
            weight_decay: L2 penalty; with adamw decoupled weight decay.
            clip: largest global norm of the gradients (``clip_grad_norm``); None does not clip.
            schedule: "constant"; "cosine": from ``lr`` to 0 along half a cosine over the whole run; "plateau": the rate
                is multiplied by ``decay`` after each epoch that did not lower the loss on ``valid``; or "zaremba":
                ``lr * decay ** max(epoch - decay_after, 0)``, epochs counted from 1.
            warmup: steps over which the rate first rises linearly.
            decay: above 0 and at most 1; None is 0.25 for plateau, 0.5 for zaremba.
            decay_after: last epoch of the whole rate, an integer >= 0; None is 4.
            average: with sgd, take the mean of the weights after each step for the weights: an integer >= 1, from the
                end of that epoch on; or "plateau", from the end of the first epoch whose loss on ``valid`` is above the
                lowest of the epochs more than 5 before it. Evaluation, samples, checkpoints and the model after ``fit``
                then have the mean; a ``resume`` goes on from the weights of the steps, which the training state holds.
            patience: stop after this many epochs in a row that did not lower the loss on ``valid``. The model then has
                the weights of the last epoch; those of the best are in the checkpoint.
            seconds: stop after this much time, whatever is left of ``epochs``; "cosine" then ends on time. The clock
                takes part in such a run: it does not repeat to the bit.
            checkpoint: folder that ``save`` writes to after each epoch and, within a long one, every 5 minutes; its
                subfolder ``best`` gets the model of the lowest loss on ``valid``; that of an earlier run goes with the
                first checkpoint of one without ``resume``. The records go into its file ``log.csv`` and, where the
                package tensorboard is installed, as scalars into its subfolder ``tensorboard``. The tokens of texts
                given as files are kept in its subfolder ``tokens`` and mapped into memory from there.
            resume: carry on from the training state of this model (of an earlier ``fit``, or loaded), with the same
                texts and options. The result is that of one uninterrupted run: to the bit with the same number of
                threads (``set_num_threads``) and the same instruction set. What says when to stop or what is shown
                (``epochs``, but not with cosine, ``patience``, ``seconds``, ``sample_every``) may change.
            sample_every: show 100 tokens that the model writes, at temperature 0.8, each time after so many steps. They
                are drawn by ``seed`` apart from everything else: the weights are those of a run without.
            progress: True shows progress on standard error, False nothing; or an object (``models.progress.Progress``).

        Ctrl-C ends a run after the step with an evaluation and a checkpoint; a second one ends it at once.

        Records: ``epoch``, ``steps``, ``lr``, ``loss`` (nats per token, in training mode), ``perplexity``,
        ``grad_norm`` (mean of the steps' global norms before clipping), ``clipped`` (share of steps),
        ``tokens_per_second``, ``seconds``; with ``valid`` also ``valid_loss``, ``valid_perplexity``.

        Raises:
            TypeError, ValueError: naming the argument.
            FloatingPointError: the loss or a gradient is not finite: the weights are those before that step; or the
                loss on ``valid`` is not, or the weights at a checkpoint. The message names the folder of the
                last good checkpoint, if there is one.
            KeyboardInterrupt: after Ctrl-C, when everything is written.

        Sources: Zaremba, Sutskever, Vinyals, "Recurrent neural network regularization", 2014 (zaremba); Merity, Keskar,
        Socher, "Regularizing and optimizing LSTM language models", 2018 (average).
        """
        where = f"{type(self).__name__}.fit"
        batch_size, bptt = check_size(where, "batch_size", batch_size), check_size(where, "bptt", bptt)
        options = Options.checked(
            where, optimizer=optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay, clip=clip,
            schedule=schedule, warmup=warmup, decay=decay, decay_after=decay_after, average=average,
        )  # fmt: skip
        settings = Settings.checked(
            where, epochs=epochs, patience=patience, seconds=seconds, sample_every=sample_every, checkpoint=checkpoint,
            resume=resume, progress=progress,
        )  # fmt: skip
        if valid is None and (needing := settings.needs_valid(options)):
            raise ValueError(f"{where}: {needing} needs a valid text")
        least, why = batch_size + 1, " (batch_size + 1)"
        self._check_text("fit", "train", train, least, why)
        if valid is not None:
            self._check_text("fit", "valid", valid, least=2)
        self._begin(settings)
        if self.vocabulary is None:
            self.build(train)
        ids = self._ids("fit", "train", train, least, checkpoint, why)
        held_out = None if valid is None else self._ids("fit", "valid", valid, 2, checkpoint)
        return self._fit(
            settings,
            options,
            Streams(ids, batch_size, bptt),
            evaluate=None if held_out is None else lambda: self._figures(held_out, batch_size),
            sample=lambda: self.generate(max_new_tokens=100, temperature=0.8, seed=self.seed),
            held_out=None if held_out is None else fingerprint(held_out),
        )
