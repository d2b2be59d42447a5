"""Language models of weights: their parameters, training by gradients, and their files."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ..checks import check_choice, check_flag, check_probability, check_real, check_size
from . import training
from .nn import Dropout
from .progress import reporter
from .text_model import TextModel


class Part(Protocol):
    """A layer of a model: parameters, and their gradients under the same names."""

    parameters: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]

    def zero_grad(self) -> None: ...


class NeuralModel(TextModel):
    """A language model that is trained by gradients.

    A kind of model makes its weights in ``_build``, names them in ``_parts``, and computes ``loss_and_grads``.
    """

    def __init__(
        self, level: str, seed: int | None, min_frequency: int, embedding: int, hidden: int, dropout: float, dtype: str
    ) -> None:
        super().__init__(level, seed, min_frequency)
        where = type(self).__name__
        self.embedding = check_size(where, "embedding", embedding)
        self.hidden = check_size(where, "hidden", hidden)
        self.dropout = check_probability(where, "dropout", dropout)
        self.dtype = check_choice(where, "dtype", dtype, ("float32", "float64"))
        self._drop = Dropout(self.dropout)
        self._training: training.State | None = None

    # -- parameters ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _parts(self) -> dict[str, Part]:
        """The layers by the name that they have in ``state_dict``."""

    @property
    def parameters(self) -> list[dict[str, np.ndarray]]:
        """The parameter dicts of the layers, as optimizers take them."""
        return [part.parameters for part in self._parts().values()]

    @property
    def grads(self) -> list[dict[str, np.ndarray]]:
        """Their gradients."""
        return [part.grads for part in self._parts().values()]

    @property
    def num_parameters(self) -> int:
        """How many weights there are; tied ones count once."""
        return sum(array.size for group in self.parameters for array in group.values())

    @property
    def nbytes(self) -> int:
        """The bytes that they take."""
        return sum(array.nbytes for group in self.parameters for array in group.values())

    def zero_grad(self) -> None:
        for part in self._parts().values():
            part.zero_grad()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all weights, by their layer's name and their own: ``embedding.weight``, ..., ``output.bias``."""
        return {name: array.copy() for name, array in self._named_parameters().items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Write weights into the existing arrays: strict about names, shapes, dtypes; no effect when it fails."""
        where, own = f"{type(self).__name__}.load_state_dict", self._named_parameters()
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
        backpropagation through time). Without ``rng`` there is no dropout.
        """

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
        where = f"{type(self).__name__}.fit"
        options = training.Options.checked(
            where, batch_size, bptt, optimizer, lr, momentum, weight_decay, clip, schedule, warmup
        )
        epochs = check_size(where, "epochs", epochs)
        if options.schedule == "plateau" and valid is None:
            raise ValueError(f"{where}: schedule='plateau' needs a valid text")
        if seconds is not None:
            seconds = check_real(where, "seconds", seconds, above=True)
        self._check_text("fit", "train", train, least=options.batch_size + 1)
        if valid is not None:
            self._check_text("fit", "valid", valid, least=2)
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

    # -- files ---------------------------------------------------------------------------------------------------------

    def _contents(self, training: bool) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
        archives = {"weights": self._named_parameters()}
        if not training or self._training is None:
            return {}, archives
        return {"training": self._training.data}, archives | {"training": self._training.arrays}

    def _set_contents(self, data: dict[str, Any], archives: dict[str, dict[str, np.ndarray]]) -> None:
        self.load_state_dict(archives.get("weights", {}))
        if "training" in data:
            self._training = training.State(data["training"], archives.get("training", {}))
