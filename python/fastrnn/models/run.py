"""A training run around its steps: evaluation, checkpoints, reports, the ways in which it ends."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import check_flag, check_real, check_size
from ..threads import get_num_threads
from . import checkpoint as files
from .logs import Log
from .metrics import METRICS
from .progress import Progress, reporter
from .schedules import Options
from .training import Trainer

if TYPE_CHECKING:
    from .trainable import Trainable

CHECKPOINT_SECONDS = 300.0  # of a long epoch, after which a killed run would lose more than it may
_LOWER_IS_BETTER = {"valid_loss", "valid_perplexity", *(f"valid_{name}" for name in METRICS if not METRICS[name])}


@dataclass(frozen=True)
class Settings:
    """How long a run goes on, what is kept of it and what is shown. A resumed run may have others."""

    epochs: int
    patience: int | None
    seconds: float | None
    sample_every: int | None
    checkpoint: str | os.PathLike[str] | None
    resume: bool
    report: Progress

    @classmethod
    def checked(
        cls,
        where: str,
        *,
        epochs: Any,
        patience: Any,
        seconds: Any,
        sample_every: Any,
        checkpoint: Any,
        resume: Any,
        progress: Any,
    ) -> Settings:
        """From arguments of ``fit``; a TypeError or ValueError names the one that is wrong."""
        return cls(
            epochs=check_size(where, "epochs", epochs),
            patience=None if patience is None else check_size(where, "patience", patience),
            seconds=None if seconds is None else check_real(where, "seconds", seconds, above=True),
            sample_every=None if sample_every is None else check_size(where, "sample_every", sample_every),
            checkpoint=_checked_path(where, checkpoint),
            resume=check_flag(where, "resume", resume),
            report=reporter(where, progress),
        )

    def needs_valid(self, options: Options) -> str | None:
        """What of these or the options does, as messages call it."""
        return options.needs_valid or (None if self.patience is None else "patience")


def _checked_path(where: str, checkpoint: Any) -> str | os.PathLike[str] | None:
    if checkpoint is None or isinstance(checkpoint, (str, os.PathLike)):
        return checkpoint
    raise TypeError(f"{where}: checkpoint must be the path of a folder, got {type(checkpoint).__name__}")


@dataclass
class Run:
    """What ``fit`` does around the steps: evaluation, checkpoints, reports, the end.

    ``evaluate`` gives figures on valid by name, such as {"loss": 1.2, "perplexity": 3.3}; records have them as
    "valid_loss" and so on. ``judge`` names the one of these, a number >= 0, that decides what is best: checkpoint,
    patience, plateaus and averaging go by it. ``sample`` gives a text that the model writes.
    """

    model: Trainable
    trainer: Trainer
    settings: Settings
    evaluate: Callable[[], dict[str, float]] | None = None
    sample: Callable[[], str] | None = None
    judge: str = "valid_loss"
    _saved: bool = field(default=False, init=False)  # a checkpoint of this run is there
    _last_save: float = field(default=0.0, init=False)

    def go(self) -> list[dict[str, Any]]:
        """The run behind ``fit``, which checks the arguments and explains them."""
        model, trainer, settings = self.model, self.trainer, self.settings
        report, seconds, checkpoint = settings.report, settings.seconds, settings.checkpoint
        if model._training is not None:
            trainer.restore(f"{type(model).__name__}.fit", model._training)
            self._saved = checkpoint is not None and files.peek(Path(checkpoint), files.RUN) == model._run
            threads = trainer.threads
        else:
            model.history, threads = [], None
        log = None if checkpoint is None else Log(checkpoint, report.message)
        if self._finished():
            if log is not None and self._saved:  # which may have been killed before its last record was written
                log.write_csv(model.history)
            return model.history
        begun = self._last_save = time.monotonic()
        total = trainer.steps_per_epoch * trainer.epochs
        report.start(total, "training")
        if threads not in (None, get_num_threads()):
            report.message(
                f"the run had {threads} threads, now {get_num_threads()}: its numbers may differ by rounding"
            )
        with interruptions() as interrupted:
            trainer.exchange()
            try:
                finished = False
                while not finished:
                    spent = 0.0 if seconds is None else (time.monotonic() - begun) / seconds
                    if not trainer.at_end:  # a run may have been cut off there
                        trainer.step(max(trainer.done, spent))
                        report.update(round(max(trainer.done, spent) * total), _figures(trainer))
                        if settings.sample_every is not None and trainer.steps % settings.sample_every == 0:
                            self._show_sample()
                    stopped = interrupted() or (seconds is not None and time.monotonic() - begun >= seconds)
                    if trainer.at_end or stopped:
                        self._end_epoch(log)
                        finished = stopped or self._finished()
                    elif checkpoint is not None and time.monotonic() - self._last_save >= CHECKPOINT_SECONDS:
                        with trainer.averaged():
                            self._check_weights(trainer.record())
                            self._save()  # the best of an earlier run stays until this one has had its say
            except FloatingPointError as error:
                if not self._saved:
                    raise
                raise FloatingPointError(f"{error}; the last good checkpoint is in {checkpoint}") from None
            finally:
                # However the run ended, it can be carried on from the weights as they are; not from half a step.
                trainer.exchange()
                model._training = trainer.state() if trainer.whole else None
                if log is not None:
                    log.close()
                with suppress(OSError):  # which would take the place of what ended the run
                    report.close()
        if interrupted():
            raise KeyboardInterrupt
        return model.history

    @property
    def _lower(self) -> bool:
        """Whether lower ones of the figure that decides are better."""
        return self.judge in _LOWER_IS_BETTER

    def _signed(self, figure: float) -> float:
        """Of which lower ones are better."""
        return figure if self._lower else -figure

    def _losses(self) -> list[float]:
        """What decides, after each whole epoch: a part of one decides nothing."""
        return [
            self._signed(record[self.judge])
            for record in self.model.history
            if self.judge in record and record["epoch"] <= self.trainer.epoch
        ]

    def _finished(self) -> bool:
        trainer = self.trainer
        return not trainer.at_end and (trainer.epoch >= trainer.epochs or self._lost_patience())

    def _lost_patience(self) -> bool:
        losses, patience = self._losses(), self.settings.patience
        if patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= patience

    def _nothing_to_go_on_from(self, record: dict[str, Any], why: str) -> FloatingPointError:
        trainer = self.trainer
        trainer.whole = False
        return FloatingPointError(
            f"{type(self.model).__name__}.fit: after step {trainer.steps} (epoch {record['epoch']}) {why}: "
            f"try a lower lr (now {record['lr']:g}) or clip (now {trainer.options.clip})"
        )

    def _check_weights(self, record: dict[str, Any]) -> None:
        if not self.model._is_finite():
            raise self._nothing_to_go_on_from(record, "the weights are not finite")

    def _save(self) -> None:
        """The model, which has the averages, and all that the run needs to go on from this step."""
        model, checkpoint = self.model, self.settings.checkpoint
        model._training = self.trainer.state()
        if checkpoint is not None:
            model.save(checkpoint)
            self._saved, self._last_save = True, time.monotonic()

    def _show_sample(self) -> None:
        assert self.sample is not None
        with self.trainer.averaged():
            text = self.sample()
        self.settings.report.message(f"step {self.trainer.steps} writes:\n{text}\n")

    def _end_epoch(self, log: Log | None) -> None:
        model, trainer, checkpoint = self.model, self.trainer, self.settings.checkpoint
        record, ended = trainer.record(), trainer.at_end
        figures = f"epoch {record['epoch']}/{trainer.epochs}: loss {record['loss']:.3f}, "
        figures += f"perplexity {record['perplexity']:.2f}"
        improved = False
        if self.evaluate is not None:
            with trainer.averaged(), np.errstate(all="ignore"):
                found = self.evaluate()
            for name, figure in found.items():
                if not math.isfinite(figure):
                    raise self._nothing_to_go_on_from(record, f"valid has {name} {figure}")
            record |= {f"valid_{name}": figure for name, figure in found.items()}
            improved = trainer.best is None or self._signed(record[self.judge]) < self._signed(trainer.best)
            figures += f", valid {_shown(found)}"
        with trainer.averaged():
            self._check_weights(record)
        if trainer.options.clip is not None:
            figures += f", clipped {record['clipped']:.0%}"
        # The record of a part of the epoch, after Ctrl-C, gives way: the sums of this one hold its own.
        model.history = [each for each in model.history if each["epoch"] != record["epoch"]] + [record]
        if ended:
            trainer.end_epoch(self._losses())
        with trainer.averaged():
            if improved:
                # Before the other: a run that is cut off between the two repeats its end and finds it best again.
                if checkpoint is not None:
                    model.save(Path(checkpoint, files.BEST), training=False)
                trainer.best = record[self.judge]
            self._save()
            if checkpoint is not None:
                files.remove_best_of_others(checkpoint)
        if log is not None:
            log.write(model.history)
        self.settings.report.message(f"{figures}, {record['tokens_per_second']:,.0f} tokens/s")
        if ended and self._lost_patience():
            better = f"{'lower' if self._lower else 'higher'} {self.judge.removeprefix('valid_')}"
            self.settings.report.message(f"stopped: no {better} on valid in {self.settings.patience} epochs")


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


def _shown(found: dict[str, float]) -> str:
    """Perplexity stands for the loss, and needs no name beside that of training."""
    named = [f"{name} {figure:.4g}" for name, figure in found.items() if name not in ("loss", "perplexity")]
    if "perplexity" in found:
        named.insert(0, f"{found['perplexity']:.2f}")
    return ", ".join(named) or f"loss {found['loss']:.3f}"


def _figures(trainer: Trainer) -> str:
    if trainer.tokens == 0:  # at the end of an epoch the sums begin anew
        return ""
    record = trainer.record()
    return (
        f"loss {record['loss']:.3f}  ppl {record['perplexity']:.2f}  "
        f"{record['tokens_per_second']:,.0f} tok/s  lr {record['lr']:.1e}"
    )
