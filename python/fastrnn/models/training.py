"""Training a language model: contiguous streams, truncated backpropagation through time, exact resume."""

from __future__ import annotations

import csv
import math
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import check_choice, check_probability, check_real, check_size
from ..optim import SGD, Adam, AdamW, Optimizer, clip_grad_norm
from .progress import Progress

if TYPE_CHECKING:
    from .neural_model import NeuralModel

_DEFAULT_LR = {"adam": 2e-3, "adamw": 2e-3, "sgd": 1.0}
#: What the learning rate is multiplied by when this share of the run is behind.
_SCHEDULES = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))),
    "plateau": lambda done: 1.0,
}
_PLATEAU = 4.0  # the rate is divided by it
BEST = "best"  # folder of the best checkpoint, in that of the latest


@dataclass(frozen=True)
class Options:
    """How each step is taken. A resumed run must have the same ones."""

    batch_size: int
    bptt: int
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    clip: float | None
    schedule: str
    warmup: int

    @classmethod
    def checked(
        cls,
        where: str,
        batch_size: Any,
        bptt: Any,
        optimizer: Any,
        lr: Any,
        momentum: Any,
        weight_decay: Any,
        clip: Any,
        schedule: Any,
        warmup: Any,
    ) -> Options:
        check_choice(where, "optimizer", optimizer, _DEFAULT_LR)
        options = cls(
            batch_size=check_size(where, "batch_size", batch_size),
            bptt=check_size(where, "bptt", bptt),
            optimizer=optimizer,
            lr=check_real(where, "lr", _DEFAULT_LR[optimizer] if lr is None else lr, above=True),
            momentum=check_probability(where, "momentum", momentum),
            weight_decay=check_real(where, "weight_decay", weight_decay),
            clip=None if clip is None else check_real(where, "clip", clip, above=True),
            schedule=check_choice(where, "schedule", schedule, _SCHEDULES),
            warmup=check_size(where, "warmup", warmup, low=0),
        )
        if options.momentum > 0.0 and optimizer != "sgd":
            raise ValueError(f"{where}: momentum is for optimizer='sgd', got optimizer={optimizer!r}")
        return options

    def make_optimizer(self, params: list[dict[str, np.ndarray]]) -> Optimizer:
        if self.optimizer == "sgd":
            return SGD(params, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return {"adam": Adam, "adamw": AdamW}[self.optimizer](params, lr=self.lr, weight_decay=self.weight_decay)


@dataclass
class State:
    """A training run between two steps: JSON data and arrays, all copies."""

    data: dict[str, Any]
    arrays: dict[str, np.ndarray]


def streams(ids: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (T, B) of ``batch_size`` contiguous streams; column b is one piece of the text."""
    length = (len(ids) - 1) // batch_size
    used = length * batch_size

    def columns(first: int) -> np.ndarray:
        return np.ascontiguousarray(ids[first : first + used].reshape(batch_size, length).T)

    return columns(0), columns(1)


class Trainer:
    """Takes the steps of a run over one text and knows where it stands."""

    def __init__(self, model: NeuralModel, ids: np.ndarray, options: Options, epochs: int) -> None:
        self.model, self.options, self.epochs = model, options, epochs
        self.inputs, self.targets = streams(ids, options.batch_size)
        self.steps_per_epoch = -(-len(self.inputs) // options.bptt)
        self.optimizer = options.make_optimizer(model.parameters)
        self.rng = np.random.default_rng(model._seeds["training"])
        self.epoch = 0  # finished epochs
        self.position = 0  # time step of the streams
        self.steps = 0
        self.scale = 1.0  # of the learning rate, after plateaus
        self.whole = True  # weights, optimizer and progress belong to the same step
        self._state: Any = None
        self._text = [len(ids), zlib.crc32(ids.tobytes())]
        self._start_sums()

    def _start_sums(self) -> None:
        self.nats, self.tokens, self.clipped, self.epoch_steps, self.seconds = 0.0, 0, 0, 0, 0.0

    @property
    def done(self) -> float:
        """The share of all steps that is behind."""
        return self.steps / (self.steps_per_epoch * self.epochs)

    def step(self, done: float) -> bool:
        """One step at the learning rate of ``done`` (0..1, share of the run behind); True when it ended an epoch."""
        begun = time.perf_counter()
        part = slice(self.position, self.position + self.options.bptt)
        inputs, targets = self.inputs[part], self.targets[part]
        model = self.model
        limit = math.inf if self.options.clip is None else self.options.clip
        drawn_before = self.rng.bit_generator.state
        try:
            with np.errstate(all="ignore"):  # what is not finite is an error below
                loss, state = model.loss_and_grads(inputs, targets, self._state, self.rng, accumulate=False)
                norm = clip_grad_norm(model.grads, math.inf)
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise FloatingPointError(
                    f"{type(model).__name__}.fit: step {self.steps + 1} (epoch {self.epoch + 1}) has loss {loss} and "
                    f"gradient norm {norm}; the weights are those before it: try a lower lr (now {self.lr(done):g}) "
                    f"or clip (now {self.options.clip})"
                )
        except BaseException:
            self.rng.bit_generator.state = drawn_before  # the step was not taken
            raise
        self.whole = False
        self.optimizer.lr = self.lr(done)
        self.optimizer.step(model.grads, min(1.0, limit / (norm + 1e-6)))
        self._state = state
        self.steps += 1
        self.epoch_steps += 1
        self.nats += loss * targets.size
        self.tokens += targets.size
        self.clipped += norm > limit
        self.position += self.options.bptt
        self.seconds += time.perf_counter() - begun
        ended = self.position >= len(self.inputs)
        if ended:
            self.position, self._state = 0, None
            self.epoch += 1
        self.whole = True
        return ended

    def lr(self, done: float) -> float:
        options = self.options
        rise = min(1.0, (self.steps + 1) / options.warmup) if options.warmup else 1.0
        return options.lr * self.scale * rise * _SCHEDULES[options.schedule](done)

    def record(self) -> dict[str, Any]:
        """The figures since the last epoch began."""
        loss = self.nats / self.tokens
        return {
            "epoch": self.epoch if self.position == 0 else self.epoch + 1,
            "steps": self.steps,
            "lr": self.optimizer.lr,
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "clipped": self.clipped / self.epoch_steps,
            "tokens_per_second": self.tokens / self.seconds,
            "seconds": self.seconds,
        }

    def state(self) -> State:
        optimizer = self.optimizer.state_dict()
        arrays = {f"optimizer.{name}": array for name, array in optimizer.pop("state").items()}
        if self._state is not None:
            parts = self._state if isinstance(self._state, tuple) else (self._state,)
            arrays |= {f"state.{i}": np.array(part) for i, part in enumerate(parts)}
        data = {
            "options": asdict(self.options),
            "epochs": self.epochs,
            "text": self._text,
            "progress": {name: getattr(self, name) for name in _PROGRESS},
            "rng": self.rng.bit_generator.state,
            "optimizer": optimizer,
        }
        return State(data, arrays)

    def restore(self, where: str, state: State) -> None:
        """Continue from a ``state()``; a ValueError when it is of another run or damaged."""
        data, arrays = state.data, state.arrays
        try:
            difference = self._difference(data)
            if difference is None:
                optimizer = {name[10:]: array for name, array in arrays.items() if name.startswith("optimizer.")}
                carried = [arrays[f"state.{i}"] for i in range(len(arrays) - len(optimizer))]
                kept = {"scale": 1.0} | data["progress"]  # which the first runs had not
                progress = {name: kind(kept[name]) for name, kind in _PROGRESS.items()}
                self.rng.bit_generator.state = data["rng"]
                self.optimizer.load_state_dict({**data["optimizer"], "state": optimizer})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{where}: the training state is damaged: {error!r}") from None
        if difference is not None:
            raise ValueError(f"{where}: resume needs {difference}")
        for name, value in progress.items():
            setattr(self, name, value)
        self._state = None if not carried else carried[0] if len(carried) == 1 else tuple(carried)

    def _difference(self, data: Mapping[str, Any]) -> str | None:
        """What the run of a ``state()`` had that this one has not."""
        tokens = data["text"][0]
        if data["text"] != self._text:
            return f"the same train text: {tokens} tokens, got {self._text[0]}"
        for name, value in asdict(self.options).items():
            if data["options"][name] != value:
                return f"the same {name}={data['options'][name]!r}, got {value!r}"
        if self.options.schedule == "cosine" and data["epochs"] != self.epochs:
            return f"the same epochs={data['epochs']} with schedule={self.options.schedule!r}, got {self.epochs}"
        return None


_PROGRESS = {
    "epoch": int,
    "position": int,
    "steps": int,
    "scale": float,
    "nats": float,
    "tokens": int,
    "clipped": int,
    "epoch_steps": int,
    "seconds": float,
}


def fit(
    model: NeuralModel,
    train: str,
    valid: str | None,
    options: Options,
    *,
    epochs: int,
    seconds: float | None,
    checkpoint: str | os.PathLike[str] | None,
    report: Progress,
) -> list[dict[str, Any]]:
    """The run behind ``fit``, which checks the arguments and explains them."""
    where = f"{type(model).__name__}.fit"
    trainer = Trainer(model, model._built("fit").encode(train), options, epochs)
    if model._training is not None:
        trainer.restore(where, model._training)
    else:
        model.history = []
    if trainer.epoch >= epochs:
        return model.history
    begun = time.monotonic()
    report.start(trainer.steps_per_epoch * epochs, "training")
    try:
        with interruptions() as interrupted:
            stopped = False
            while trainer.epoch < epochs and not stopped:
                spent = 0.0 if seconds is None else (time.monotonic() - begun) / seconds
                done = max(trainer.done, spent)
                ended = trainer.step(done)
                stopped = interrupted() or (seconds is not None and time.monotonic() - begun >= seconds)
                report.update(round(max(trainer.done, spent) * trainer.steps_per_epoch * epochs), _figures(trainer))
                if ended or stopped:
                    _end_epoch(model, trainer, valid, checkpoint, report, ended)
        if interrupted():
            raise KeyboardInterrupt
    finally:
        # However the run ended, it can be carried on from the weights as they are; not from half a step.
        model._training = trainer.state() if trainer.whole else None
        report.close()
    return model.history


def _end_epoch(
    model: NeuralModel,
    trainer: Trainer,
    valid: str | None,
    checkpoint: str | os.PathLike[str] | None,
    report: Progress,
    ended: bool,
) -> None:
    record = trainer.record()
    improved = False
    if valid is not None:
        result = model.evaluate(valid, batch_size=trainer.options.batch_size)
        record |= {"valid_loss": result["loss"], "valid_perplexity": result["perplexity"]}
        improved = result["loss"] < min((each.get("valid_loss", math.inf) for each in model.history), default=math.inf)
        if ended and not improved and trainer.options.schedule == "plateau":
            trainer.scale /= _PLATEAU
    model.history.append(record)
    if ended:
        trainer._start_sums()
    model._training = trainer.state()
    if checkpoint is not None:
        model.save(checkpoint)
        _write_log(Path(checkpoint, "log.csv"), model.history)
        if improved:
            model.save(Path(checkpoint, BEST), training=False)
    figures = (
        f"epoch {record['epoch']}/{trainer.epochs}: loss {record['loss']:.3f}, perplexity {record['perplexity']:.2f}"
    )
    if valid is not None:
        figures += f", valid {record['valid_perplexity']:.2f}"
    report.message(f"{figures}, {record['tokens_per_second']:,.0f} tokens/s")


def _write_log(path: Path, history: list[dict[str, Any]]) -> None:
    """One line for each record; a column for whatever any of them has."""
    names = list(dict.fromkeys(name for record in history for name in record))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(history)


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Puts Ctrl-C off until the step is done: whether it came is asked for. A second one acts at once."""
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(number, signal.default_int_handler)

    # Only the main thread gets signals, and who has a handler of their own keeps it.
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _figures(trainer: Trainer) -> str:
    if trainer.tokens == 0:  # at the end of an epoch the sums begin anew
        return ""
    record = trainer.record()
    return (
        f"loss {record['loss']:.3f}  ppl {record['perplexity']:.2f}  "
        f"{record['tokens_per_second']:,.0f} tok/s  lr {record['lr']:.1e}"
    )
