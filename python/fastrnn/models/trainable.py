"""What all models trained by gradients share: their parameters, the run behind ``fit``, and their files."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ..arrays import HOST, Arrays
from . import checkpoint, training
from .model import Model
from .run import Run, Settings
from .schedules import Options


class Part(Protocol):
    """A layer of a model: parameters, and their gradients under the same names."""

    parameters: dict[str, Any]
    grads: dict[str, Any]

    def zero_grad(self) -> None: ...


class Trainable(Model):
    """A model that is trained by gradients.

    A kind of model makes its weights in ``_set_vocabularies`` and names them in ``_parts``. Its ``fit`` checks what it
    is given (``Options.checked``, ``Settings.checked``, its data), calls ``_begin``, makes what it needs for the
    weights, and ends in ``_fit``.
    """

    _arrays: Arrays = HOST
    _training: training.State | None = None
    _run: str | None = None  # name of the run that the weights are of

    # -- parameters ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _parts(self) -> dict[str, Part]:
        """The layers by the name that they have in ``state_dict``."""

    @property
    def parameters(self) -> list[dict[str, Any]]:
        """The parameter dicts of the layers, as optimizers take them."""
        return [part.parameters for part in self._parts().values()]

    @property
    def grads(self) -> list[dict[str, Any]]:
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
        """NumPy copies of all weights, by the names of their layer and their own: ``embedding.weight``, ..."""
        return {name: np.array(array) for name, array in self._downloaded().items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Write NumPy arrays into those of the model: strict about names, shapes, dtypes; no effect when it fails."""
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
        uploaded = {name: self._arrays.upload(state[name]) for name in own}  # may fail, before anything is written
        for name, array in own.items():
            self._arrays.write(array, uploaded[name])

    def _is_finite(self) -> bool:
        return all(np.isfinite(array).all() for array in self._downloaded().values())

    def _named_parameters(self) -> dict[str, Any]:
        return {
            f"{name}.{key}": array for name, part in self._parts().items() for key, array in part.parameters.items()
        }

    def _downloaded(self) -> dict[str, np.ndarray]:
        return {name: self._arrays.download(array) for name, array in self._named_parameters().items()}

    # -- training ------------------------------------------------------------------------------------------------------

    def _check_drawing(self, rng: np.random.Generator | None, **shares: float) -> None:
        """A generator is there for what is drawn."""
        for name, share in shares.items():
            if rng is None and share > 0.0:
                raise ValueError(f"{type(self).__name__}.loss_and_grads: {name}={share} needs rng, got None")

    def _begin(self, settings: Settings) -> None:
        """Once all arguments are checked: what a run needs before anything is made of its data."""
        if settings.resume and self._training is None:
            where = f"{type(self).__name__}.fit"
            raise ValueError(f"{where}: resume needs a model with training state: fitted before, or loaded with it")
        if settings.checkpoint is not None:
            checkpoint.make_folder(settings.checkpoint)  # a wrong path fails now, not after an epoch
        if not settings.resume:
            self._training, self._run = None, secrets.token_hex(8)

    def _fit(
        self,
        settings: Settings,
        options: Options,
        data: training.Data,
        evaluate: Callable[[], dict[str, float]] | None,
        sample: Callable[[], str] | None,
        judge: str = "valid_loss",
        held_out: list[int] | None = None,
    ) -> list[dict[str, Any]]:
        """The rest of ``fit`` after ``_begin``, with weights in place; see ``Run`` for the arguments. ``held_out`` is a
        fingerprint of what ``evaluate`` evaluates."""
        trainer = training.Trainer(self, data, options, settings.epochs, held_out)
        return Run(self, trainer, settings, evaluate, sample, judge).go()

    # -- files ---------------------------------------------------------------------------------------------------------

    def _contents(self, training: bool) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
        archives = {"weights": self._downloaded()}
        run = {} if self._run is None else {checkpoint.RUN: self._run}
        if not training or self._training is None:
            return run, archives
        return run | {"training": self._training.data}, archives | {"training": self._training.arrays}

    def _set_contents(self, data: dict[str, Any], archives: dict[str, dict[str, np.ndarray]]) -> None:
        self.load_state_dict(archives.get("weights", {}))
        self._run = data.get(checkpoint.RUN)
        if "training" in data:
            self._training = training.State(data["training"], archives.get("training", {}))
