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

from ..threads import get_num_threads
from . import checkpoint as files
from .logs import CSV, Log
from .progress import Progress
from .text_model import perplexity
from .training import Trainer

if TYPE_CHECKING:
    from .neural_model import NeuralModel


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
            threads = model._training.data.get("threads")  # which the first runs had not
        else:
            model.history, threads = [], None
            if self.checkpoint is not None:
                files.remove_best(self.checkpoint)
        if self._finished():
            return model.history
        log = None if self.checkpoint is None else Log(self.checkpoint, report.message)
        begun = time.monotonic()
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
                if log is not None:
                    log.close()
                with suppress(OSError):  # which would take the place of what ended the run
                    report.close()
        if interrupted():
            raise KeyboardInterrupt
        return model.history

    def _losses(self) -> list[float]:
        """On valid after each whole epoch: a part of one decides nothing."""
        return [
            record["valid_loss"]
            for record in self.model.history
            if "valid_loss" in record and record["epoch"] <= self.trainer.epoch
        ]

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
            improved = loss < trainer.best
            record |= {"valid_loss": loss, "valid_perplexity": perplexity(loss)}
            figures += f", valid {record['valid_perplexity']:.2f}"
        if trainer.options.clip is not None:
            figures += f", clipped {record['clipped']:.0%}"
        # The record of a part of the epoch, after Ctrl-C, gives way: the sums of this one hold its own.
        model.history = [each for each in model.history if each["epoch"] != record["epoch"]] + [record]
        if ended:
            trainer.end_epoch(self._losses())
        with trainer.averaged():
            if improved:
                # Before the other: a run that is cut off between the two repeats the epoch and finds it best again.
                if self.checkpoint is not None:
                    model.save(Path(self.checkpoint, files.BEST), training=False)
                trainer.best = record["valid_loss"]
            model._training = trainer.state()
            if self.checkpoint is not None:
                model.save(self.checkpoint)
                self._saved = True
        if log is not None:
            log.write(model.history)
        self.report.message(f"{figures}, {record['tokens_per_second']:,.0f} tokens/s")
        if ended and self._lost_patience():
            self.report.message(f"stopped: no lower loss on valid in {self.patience} epochs")


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
