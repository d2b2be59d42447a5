"""How each step of a training run is taken: the optimizer, the learning rate over the run, averaging."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import check_choice, check_probability, check_real, check_size
from ..optim import SGD, Adam, AdamW, Optimizer

_DEFAULT_LR = {"adam": 2e-3, "adamw": 2e-3, "sgd": 1.0}
#: What the learning rate is multiplied by in an epoch (from 1), when this share of the run is behind.
_FACTORS: dict[str, Callable[[Options, int, float], float]] = {
    "constant": lambda options, epoch, done: 1.0,
    "cosine": lambda options, epoch, done: 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))),
    "plateau": lambda options, epoch, done: 1.0,
    "zaremba": lambda options, epoch, done: options.decay ** max(epoch - options.decay_after, 0),
}
SCHEDULES = tuple(_FACTORS)
_DECAY = {"plateau": 0.25, "zaremba": 0.5}  # of the schedules that have one
_DECAY_AFTER = 4
_NONMONOTONE = 5  # epochs, of average="plateau"


@dataclass(frozen=True)
class Options:
    """How each step is taken. A resumed run must have the same ones."""

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    clip: float | None
    schedule: str
    warmup: int
    decay: float = 1.0
    decay_after: int = 0
    average: int | str | None = None

    @classmethod
    def checked(
        cls,
        where: str,
        *,
        optimizer: Any = "adam",
        lr: Any = None,
        momentum: Any = 0.0,
        weight_decay: Any = 0.0,
        clip: Any = 1.0,
        schedule: Any = "constant",
        warmup: Any = 0,
        decay: Any = None,
        decay_after: Any = None,
        average: Any = None,
    ) -> Options:
        """From arguments of ``fit``, with its defaults; a TypeError or ValueError names the one that is wrong."""
        check_choice(where, "optimizer", optimizer, _DEFAULT_LR)
        options = cls(
            optimizer=optimizer,
            lr=check_real(where, "lr", _DEFAULT_LR[optimizer] if lr is None else lr, above=True),
            momentum=check_probability(where, "momentum", momentum),
            weight_decay=check_real(where, "weight_decay", weight_decay),
            clip=None if clip is None else check_real(where, "clip", clip, above=True),
            schedule=check_choice(where, "schedule", schedule, SCHEDULES),
            warmup=check_size(where, "warmup", warmup, low=0),
            decay=_checked_decay(where, schedule, decay),
            decay_after=_checked_decay_after(where, schedule, decay_after),
            average=None if average is None else checked_average(where, average),
        )
        for name, given in (("momentum", options.momentum > 0.0), ("average", average is not None)):
            if given and optimizer != "sgd":
                raise ValueError(f"{where}: {name} is for optimizer='sgd', got optimizer={optimizer!r}")
        return options

    @property
    def needs_valid(self) -> str | None:
        """The option that does, as messages call it."""
        needing = [name for name in ("schedule", "average") if getattr(self, name) == "plateau"]
        return f"{needing[0]}='plateau'" if needing else None

    def make_optimizer(self, params: list[dict[str, np.ndarray]]) -> Optimizer:
        if self.optimizer == "sgd":
            return SGD(params, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return {"adam": Adam, "adamw": AdamW}[self.optimizer](params, lr=self.lr, weight_decay=self.weight_decay)

    def rate(self, step: int, epoch: int, done: float, scale: float) -> float:
        """The learning rate of a step: its number and its epoch's (from 1), the share of the run that is behind, what
        the plateaus so far have multiplied the rate by."""
        rise = min(1.0, step / self.warmup) if self.warmup else 1.0
        return self.lr * scale * rise * _FACTORS[self.schedule](self, epoch, done)

    def plateau(self, losses: Sequence[float]) -> float:
        """What multiplies the rate after an epoch, the last of those with these losses on valid (or figures of which
        lower ones are better, too)."""
        if self.schedule != "plateau" or losses[-1] < min(losses[:-1], default=math.inf):
            return 1.0
        return self.decay

    def averages_from(self, epoch: int, losses: Sequence[float]) -> bool:
        """Whether averaging begins at the end of an epoch, the last of those with these losses on valid.

        "plateau" is the trigger of Merity, Keskar, Socher, "Regularizing and optimizing LSTM language models", 2018.
        """
        if self.average != "plateau":
            return self.average == epoch
        *earlier, loss = losses
        return len(earlier) > _NONMONOTONE and loss > min(earlier[:-_NONMONOTONE])


def checked_average(where: str, average: Any) -> int | str:
    if isinstance(average, str) and average == "plateau":
        return average
    try:
        return check_size(where, "average", average)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: average must be 'plateau' or an integer >= 1, got {average!r}") from None


def _checked_decay(where: str, schedule: str, decay: Any) -> float:
    if decay is None:
        return _DECAY.get(schedule, 1.0)
    if schedule not in _DECAY:
        raise ValueError(f"{where}: decay is for schedule='plateau' and 'zaremba', got schedule={schedule!r}")
    if check_probability(where, "decay", decay) == 0.0:
        raise ValueError(f"{where}: decay must be above 0 and at most 1, got {decay}")
    return float(decay)


def _checked_decay_after(where: str, schedule: str, decay_after: Any) -> int:
    if schedule != "zaremba":
        if decay_after is not None:
            raise ValueError(f"{where}: decay_after is for schedule='zaremba', got schedule={schedule!r}")
        return 0
    return check_size(where, "decay_after", _DECAY_AFTER if decay_after is None else decay_after, low=0)
