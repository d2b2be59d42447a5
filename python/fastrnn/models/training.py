"""Training by gradients: the data that a run learns from, its steps, exact resume."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..checks import check_real, check_size
from ..clipping import clip_grad_norm
from ..optim import Average
from ..threads import get_num_threads
from .model import perplexity
from .schedules import Options

if TYPE_CHECKING:
    from .neural_model import NeuralModel
    from .trainable import Trainable


@dataclass
class State:
    """A training run between two steps: JSON data and arrays, all copies."""

    data: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Data(Protocol):
    """What a run learns from: the same number of steps each epoch."""

    options: dict[str, Any]  # how it is cut: JSON; a resumed run must have the same ones
    fingerprint: list[int]  # tells other data apart: how many tokens (or what messages count), then checksums
    what: str  # as messages call it
    length: int  # the steps of an epoch are at the positions 0, stride, 2 * stride, ... < length
    stride: int

    def tokens_before(self, epoch: int, position: int) -> int:
        """How many are predicted in an epoch (from 0) before a position, or in all of it at ``length``."""

    def step(
        self, model: Any, epoch: int, position: int, state: Any, rng: np.random.Generator, done: float
    ) -> tuple[float, int, Any]:
        """Mean loss over the tokens of a step, how many these are, and the state carried to the next step.

        Gradients take the place of those in ``model.grads``. ``state`` is what the step before gave, None at the start
        of an epoch: None, an array or a tuple of arrays of the model's library. All that is drawn is drawn by ``rng``,
        or depends on epoch and position alone: so the steps of a resumed run are those of the first. ``done`` is the
        share of the run that is behind: data whose steps depend on it has ``epochs`` among its options.
        """


def streams(ids: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (T, B) of ``batch_size`` contiguous streams; column b is one piece of the text.

    They are views: of a text in a file nothing is read yet.
    """
    length = (len(ids) - 1) // batch_size
    used = length * batch_size
    inputs, targets = (ids[first : first + used].reshape(batch_size, length).T for first in (0, 1))
    return inputs, targets


def fingerprint(ids: np.ndarray) -> list[int]:
    """That of a text, as ``Data`` has it."""
    return [len(ids), zlib.crc32(np.ascontiguousarray(ids).data)]


class Streams:
    """A text as ``batch_size`` contiguous streams side by side, ``bptt`` tokens a step: truncated backpropagation
    through time, from the state at the end of the step before."""

    what = "train text"

    def __init__(self, ids: np.ndarray, batch_size: int, bptt: int) -> None:
        self.inputs, self.targets = streams(ids, batch_size)
        self.options = {"batch_size": batch_size, "bptt": bptt}
        self.fingerprint = fingerprint(ids)
        self.length, self.stride = len(self.inputs), bptt

    def tokens_before(self, epoch: int, position: int) -> int:
        return position * self.inputs.shape[1]

    def batch(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the step at a position, int32 (t, B)."""
        part = slice(position, position + self.stride)
        return np.ascontiguousarray(self.inputs[part], np.int32), np.ascontiguousarray(self.targets[part], np.int32)

    def step(
        self, model: NeuralModel, epoch: int, position: int, state: Any, rng: np.random.Generator, done: float
    ) -> tuple[float, int, Any]:
        inputs, targets = self.batch(position)
        loss, state = model.loss_and_grads(inputs, targets, state, rng, accumulate=False)
        return loss, targets.size, state


class Trainer:
    """Takes the steps of a run and knows where it stands.

    With averaging the model's weights are the averages wherever others see them: in ``state``, ``restore`` and what is
    saved. The steps go on from weights of their own: ``exchange`` puts these in the averages' place, and back.
    """

    def __init__(
        self, model: Trainable, data: Data, options: Options, epochs: int, held_out: list[int] | None = None
    ) -> None:
        self.model, self.data, self.options, self.epochs = model, data, options, epochs
        self.held_out = held_out  # fingerprint of what is evaluated
        self.steps_per_epoch = -(-data.length // data.stride)
        self.optimizer = options.make_optimizer(model.parameters)
        self.average: Average | None = None  # once averaging has begun
        self.rng = np.random.default_rng(model._seeds["training"])
        self.epoch = 0  # finished epochs
        self.position = 0  # in the data
        self.steps = 0
        self.scale = 1.0  # of the learning rate, after plateaus
        self.best: float | None = None  # figure on valid, that of a part of an epoch (after Ctrl-C) too
        self.threads: int | None = None  # those that a restored run had
        self.whole = True  # weights, optimizer and progress belong to the same step
        self._state: Any = None
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

    def step(self, done: float) -> tuple[float, float]:
        """One step at the learning rate of ``done`` (0..1, share of the run behind): its loss, and the norm of its
        gradient before clipping."""
        begun = time.perf_counter()
        model, data = self.model, self.data
        limit = math.inf if self.options.clip is None else self.options.clip
        drawn_before = self.rng.bit_generator.state
        try:
            with np.errstate(all="ignore"):  # what is not finite is an error below
                loss, tokens, state = data.step(model, self.epoch, self.position, self._state, self.rng, done)
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
            self.nats += loss * tokens
            self.tokens += tokens
            self.norms += norm
            self.clipped += norm > limit
            self.position += data.stride
            self.seconds += time.perf_counter() - begun
            if self.position >= data.length:
                self.position, self._state = 0, None
                self.epoch += 1
        return loss, norm

    def lr(self, done: float) -> float:
        return self.options.rate(self.steps + 1, self.epoch + 1, done, self.scale)

    def end_epoch(self, losses: list[float]) -> None:
        """After the last step of an epoch; ``losses`` on valid of all epochs so far, if there is one, or figures of
        which lower ones are better, too."""
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

    @property
    def _all_options(self) -> dict[str, Any]:
        """How the data is cut and the steps are taken."""
        return self.data.options | asdict(self.options)

    def state(self) -> State:
        """While the model has the averages, where there are any."""
        download = self.model._arrays.download
        data: dict[str, Any] = {
            "options": self._all_options,
            "epochs": self.epochs,
            "text": self.data.fingerprint,
            "held_out": self.held_out,
            "progress": {name: getattr(self, name) for name in _PROGRESS},
            "best": self.best,
            "rng": self.rng.bit_generator.state,
            "threads": get_num_threads(),
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
                progress = {name: check("progress", name, data["progress"][name]) for name, check in _PROGRESS.items()}
                self._check_place(**progress)
                best = None if data["best"] is None else check_real("progress", "best", data["best"])
                threads = check_size("progress", "threads", data["threads"])
                average = Average(self.model.parameters) if "average" in data else None
                if average is not None:
                    average.load_state_dict({**data["average"], "state": arrays("average")})
                self.rng.bit_generator.state = data["rng"]
                self.optimizer.load_state_dict({**data["optimizer"], "state": arrays("optimizer")})
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"{where}: the training state is damaged: {error!r}") from None
        if difference is not None:
            raise ValueError(f"{where}: resume needs {difference}")
        for name, value in progress.items():
            setattr(self, name, value)
        self.best, self.average, self.threads = best, average, threads
        self._state = None if not parts else parts[0] if len(parts) == 1 else tuple(parts)

    def _check_place(self, position: int, epoch: int, **progress: float) -> None:
        """What ``step`` counts belongs together."""
        length, stride = self.data.length, self.data.stride
        if position % stride or position >= length:
            raise ValueError(f"position must be a multiple of {stride} below {length}, got {position}")
        at_end = position == 0 and progress["epoch_steps"] > 0
        read = length if at_end else position  # since the epoch began
        expected = {
            "epoch_steps": -(-read // stride),
            "tokens": self.data.tokens_before(epoch - at_end, read),
            "steps": epoch * self.steps_per_epoch + position // stride,
        }
        for name, value in expected.items():
            if progress[name] != value:
                raise ValueError(
                    f"{name} must be {value} at position {position} of epoch {epoch}, got {progress[name]}"
                )

    def _difference(self, data: Mapping[str, Any]) -> str | None:
        """What the run of a ``state()`` had that this one has not."""
        tokens, own = data["text"][0], self.data.fingerprint
        if data["text"] != own:
            others = own[0] if own[0] != tokens else "others"
            return f"the same {self.data.what}: {tokens} tokens, got {others}"
        if data["held_out"] not in (None, self.held_out):
            got = "none" if self.held_out is None else "another"
            return f"the same valid, whose figures tell which epoch was best, got {got}"
        for name, value in self._all_options.items():
            if (before := data["options"][name]) != value:
                return f"the same {name}={before!r}, got {value!r}"
        if self.options.schedule == "cosine" and data["epochs"] != self.epochs:
            return f"the same epochs={data['epochs']} with schedule={self.options.schedule!r}, got {self.epochs}"
        return None


_count = partial(check_size, low=0)
_PROGRESS: dict[str, Callable[[str, str, Any], Any]] = {
    "epoch": _count,
    "position": _count,
    "steps": _count,
    "scale": check_real,
    "nats": check_real,
    "tokens": _count,
    "norms": check_real,
    "clipped": _count,
    "epoch_steps": _count,
    "seconds": check_real,
}
