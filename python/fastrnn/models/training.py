"""Training by gradients: contiguous streams, truncated backpropagation through time, exact resume."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..clipping import clip_grad_norm
from ..optim import Average
from .logs import CSV, Log
from .progress import Progress
from .schedules import Options

if TYPE_CHECKING:
    from .neural_model import NeuralModel

BEST = "best"  # folder of the best checkpoint, in that of the latest


@dataclass
class State:
    """A training run between two steps: JSON data and arrays, all copies."""

    data: dict[str, Any]
    arrays: dict[str, np.ndarray]


def streams(ids: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (T, B) of ``batch_size`` contiguous streams; column b is one piece of the text.

    They are views: of a text in a file nothing is read yet.
    """
    length = (len(ids) - 1) // batch_size
    used = length * batch_size
    inputs, targets = (ids[first : first + used].reshape(batch_size, length).T for first in (0, 1))
    return inputs, targets


class Trainer:
    """Takes the steps of a run over one text and knows where it stands.

    With averaging the model's weights are the averages wherever others see them: in ``state``, ``restore`` and what is
    saved. The steps go on from weights of their own: ``exchange`` puts these in the averages' place, and back.
    """

    def __init__(self, model: NeuralModel, ids: np.ndarray, options: Options, epochs: int) -> None:
        self.model, self.options, self.epochs = model, options, epochs
        self.inputs, self.targets = streams(ids, options.batch_size)
        self.steps_per_epoch = -(-len(self.inputs) // options.bptt)
        self.optimizer = options.make_optimizer(model.parameters)
        self.average: Average | None = None  # once averaging has begun
        self.rng = np.random.default_rng(model._seeds["training"])
        self.epoch = 0  # finished epochs
        self.position = 0  # time step of the streams
        self.steps = 0
        self.scale = 1.0  # of the learning rate, after plateaus
        self.whole = True  # weights, optimizer and progress belong to the same step
        self._state: Any = None
        self._text = [len(ids), zlib.crc32(np.ascontiguousarray(ids).data)]
        self._start_sums()

    def _start_sums(self) -> None:
        self.nats, self.tokens, self.norms, self.clipped, self.epoch_steps, self.seconds = 0.0, 0, 0.0, 0, 0, 0.0

    @property
    def done(self) -> float:
        """The share of all steps that is behind."""
        return self.steps / (self.steps_per_epoch * self.epochs)

    @property
    def at_end(self) -> bool:
        """Between the last step of an epoch and ``end_epoch``."""
        return self.position == 0 and self.epoch_steps > 0

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the next step, int32 (t, B)."""
        part = slice(self.position, self.position + self.options.bptt)
        return np.ascontiguousarray(self.inputs[part], np.int32), np.ascontiguousarray(self.targets[part], np.int32)

    def step(self, done: float) -> bool:
        """One step at the learning rate of ``done`` (0..1, share of the run behind); True when it ended an epoch."""
        begun = time.perf_counter()
        inputs, targets = self.batch()
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
        with self._half_done():
            self.optimizer.lr = self.lr(done)
            self.optimizer.step(model.grads, min(1.0, limit / (norm + 1e-6)))
            if self.average is not None:
                self.average.update()
            self._state = state
            self.steps += 1
            self.epoch_steps += 1
            self.nats += loss * targets.size
            self.tokens += targets.size
            self.norms += norm
            self.clipped += norm > limit
            self.position += self.options.bptt
            self.seconds += time.perf_counter() - begun
            ended = self.position >= len(self.inputs)
            if ended:
                self.position, self._state = 0, None
                self.epoch += 1
        return ended

    def lr(self, done: float) -> float:
        return self.options.rate(self.steps + 1, self.epoch + 1, done, self.scale)

    def end_epoch(self, losses: list[float]) -> None:
        """After the last step of an epoch; ``losses`` on valid of all epochs so far, if there is one."""
        self._start_sums()
        self.scale *= self.options.plateau(losses)
        if self.average is None and self.options.averages_from(self.epoch, losses):
            self.average = Average(self.model.parameters)
            self.average.update()

    @contextmanager
    def _half_done(self) -> Iterator[None]:
        """What is left by an exception is no state to go on from."""
        before, self.whole = self.whole, False
        yield
        self.whole = before

    def exchange(self) -> None:
        """The averages in the place of the weights that the steps go on from, or back; nothing without averages."""
        if self.average is not None:
            with self._half_done():
                self.average.swap()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it, between two steps, the model has the averages."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def record(self) -> dict[str, Any]:
        """The figures since the last epoch began."""
        loss = self.nats / self.tokens
        return {
            "epoch": self.epoch if self.position == 0 else self.epoch + 1,
            "steps": self.steps,
            "lr": self.optimizer.lr,
            "loss": loss,
            "perplexity": perplexity(loss),
            "grad_norm": self.norms / self.epoch_steps,
            "clipped": self.clipped / self.epoch_steps,
            "tokens_per_second": self.tokens / self.seconds,
            "seconds": self.seconds,
        }

    def state(self) -> State:
        """While the model has the averages, where there are any."""
        download = self.model._arrays.download
        data: dict[str, Any] = {
            "options": asdict(self.options),
            "epochs": self.epochs,
            "text": self._text,
            "progress": {name: getattr(self, name) for name in _PROGRESS},
            "rng": self.rng.bit_generator.state,
        }
        arrays: dict[str, np.ndarray] = {}
        for part in ("optimizer", "average"):
            if (owner := getattr(self, part)) is not None:
                data[part] = owner.state_dict()
                arrays |= {f"{part}.{name}": download(array) for name, array in data[part].pop("state").items()}
        if self._state is not None:
            parts = self._state if isinstance(self._state, tuple) else (self._state,)
            arrays |= {f"state.{i}": np.array(download(part)) for i, part in enumerate(parts)}
        return State(data, arrays)

    def restore(self, where: str, state: State) -> None:
        """Continue from a ``state()``; a ValueError when it is of another run or damaged."""
        data, upload = state.data, self.model._arrays.upload

        def arrays(part: str) -> dict[str, Any]:
            prefix = f"{part}."
            found = {name: array for name, array in state.arrays.items() if name.startswith(prefix)}
            return {name.removeprefix(prefix): upload(array) for name, array in found.items()}

        try:
            difference = self._difference(data)
            if difference is None:
                carried = arrays("state")
                parts = [carried[str(i)] for i in range(len(carried))]
                kept = {"scale": 1.0, "norms": 0.0} | data["progress"]  # which the first runs had not
                progress = {name: kind(kept[name]) for name, kind in _PROGRESS.items()}
                average = Average(self.model.parameters) if "average" in data else None
                if average is not None:
                    average.load_state_dict({**data["average"], "state": arrays("average")})
                self.rng.bit_generator.state = data["rng"]
                self.optimizer.load_state_dict({**data["optimizer"], "state": arrays("optimizer")})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{where}: the training state is damaged: {error!r}") from None
        if difference is not None:
            raise ValueError(f"{where}: resume needs {difference}")
        for name, value in progress.items():
            setattr(self, name, value)
        self.average = average
        self._state = None if not parts else parts[0] if len(parts) == 1 else tuple(parts)

    def _difference(self, data: Mapping[str, Any]) -> str | None:
        """What the run of a ``state()`` had that this one has not."""
        tokens = data["text"][0]
        if data["text"] != self._text:
            return f"the same train text: {tokens} tokens, got {self._text[0]}"
        kept = Options.of_first_runs(data["options"]["schedule"]) | data["options"]
        for name, value in asdict(self.options).items():
            if kept[name] != value:
                return f"the same {name}={kept[name]!r}, got {value!r}"
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
    "norms": float,
    "clipped": int,
    "epoch_steps": int,
    "seconds": float,
}


@dataclass
class Run:
    """What ``fit`` does around the steps: evaluation, checkpoints, reports, the end.

    Of the model, trainer and run need ``loss_and_grads``, ``parameters``, ``grads``, ``save`` and ``history``.
    ``evaluate`` gives the loss on valid, ``sample`` a text that the model writes.
    """

    model: NeuralModel
    trainer: Trainer
    report: Progress
    evaluate: Callable[[], float] | None = None
    sample: Callable[[], str] | None = None
    sample_every: int | None = None
    patience: int | None = None
    seconds: float | None = None
    checkpoint: str | os.PathLike[str] | None = None
    _saved: bool = field(default=False, init=False)  # a checkpoint of this run is there

    def go(self) -> list[dict[str, Any]]:
        """The run behind ``fit``, which checks the arguments and explains them."""
        model, trainer, report, seconds = self.model, self.trainer, self.report, self.seconds
        if model._training is not None:
            trainer.restore(f"{type(model).__name__}.fit", model._training)
            self._saved = self.checkpoint is not None and Path(self.checkpoint, CSV).exists()
        else:
            model.history = []
        if self._finished():
            return model.history
        log = None if self.checkpoint is None else Log(self.checkpoint)
        begun = time.monotonic()
        total = trainer.steps_per_epoch * trainer.epochs
        report.start(total, "training")
        with interruptions() as interrupted:
            trainer.exchange()
            try:
                finished = False
                while not finished:
                    spent = 0.0 if seconds is None else (time.monotonic() - begun) / seconds
                    if not trainer.at_end:  # a run may have been cut off there
                        trainer.step(max(trainer.done, spent))
                        report.update(round(max(trainer.done, spent) * total), _figures(trainer))
                        if self.sample_every is not None and trainer.steps % self.sample_every == 0:
                            self._show_sample()
                    stopped = interrupted() or (seconds is not None and time.monotonic() - begun >= seconds)
                    if trainer.at_end or stopped:
                        self._end_epoch(log)
                        finished = stopped or self._finished()
            except FloatingPointError as error:
                if not self._saved:
                    raise
                raise FloatingPointError(f"{error}; the last good checkpoint is in {self.checkpoint}") from None
            finally:
                # However the run ended, it can be carried on from the weights as they are; not from half a step.
                trainer.exchange()
                model._training = trainer.state() if trainer.whole else None
                report.close()
                if log is not None:
                    log.close()
        if interrupted():
            raise KeyboardInterrupt
        return model.history

    def _losses(self) -> list[float]:
        """On valid after each epoch. A record of a part of one gives way to that of the whole."""
        losses = {
            record["epoch"]: record["valid_loss"]
            for record in self.model.history
            if "valid_loss" in record and record["epoch"] <= self.trainer.epoch
        }
        return list(losses.values())

    def _finished(self) -> bool:
        trainer = self.trainer
        return not trainer.at_end and (trainer.epoch >= trainer.epochs or self._lost_patience())

    def _lost_patience(self) -> bool:
        losses = self._losses()
        if self.patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= self.patience

    def _show_sample(self) -> None:
        assert self.sample is not None
        with self.trainer.averaged():
            text = self.sample()
        self.report.message(f"step {self.trainer.steps} writes:\n{text}\n")

    def _end_epoch(self, log: Log | None) -> None:
        model, trainer = self.model, self.trainer
        record, ended = trainer.record(), trainer.at_end
        figures = f"epoch {record['epoch']}/{trainer.epochs}: loss {record['loss']:.3f}, "
        figures += f"perplexity {record['perplexity']:.2f}"
        improved = False
        if self.evaluate is not None:
            with trainer.averaged(), np.errstate(all="ignore"):
                loss = self.evaluate()
            if not math.isfinite(loss):
                trainer.whole = False  # nothing to go on from
                raise FloatingPointError(
                    f"{type(model).__name__}.fit: after step {trainer.steps} (epoch {record['epoch']}) valid has loss "
                    f"{loss}: try a lower lr (now {record['lr']:g}) or clip (now {trainer.options.clip})"
                )
            improved = loss < min((each.get("valid_loss", math.inf) for each in model.history), default=math.inf)
            record |= {"valid_loss": loss, "valid_perplexity": perplexity(loss)}
            figures += f", valid {record['valid_perplexity']:.2f}"
        model.history.append(record)
        if ended:
            trainer.end_epoch(self._losses())
        with trainer.averaged():
            model._training = trainer.state()
            if self.checkpoint is not None:
                model.save(self.checkpoint)
                self._saved = True
                if improved:
                    model.save(Path(self.checkpoint, BEST), training=False)
        if log is not None:
            log.write(model.history)
        self.report.message(f"{figures}, {record['tokens_per_second']:,.0f} tokens/s")
        if ended and self._lost_patience():
            self.report.message(f"stopped: no lower loss on valid in {self.patience} epochs")


def perplexity(loss: float) -> float:
    """Of a mean loss in nats; finite, as JSON needs it."""
    return math.exp(min(loss, 700.0))


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
