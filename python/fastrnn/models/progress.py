"""Telling how a long run is doing, on standard error: a bar by rich where it is installed, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol


class Progress(Protocol):
    """What a training run calls. Any object with these methods may be given as ``progress``."""

    def start(self, total: int, title: str) -> None: ...
    def update(self, done: int, figures: str) -> None: ...
    def message(self, text: str) -> None: ...
    def close(self) -> None: ...


class Silent:
    """Says nothing."""

    def start(self, total: int, title: str) -> None:
        pass

    def update(self, done: int, figures: str) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class Unfailing:
    """Passes on what a run tells, and lets go what cannot be shown: a full disk under a log, or a reader that is gone,
    ends no run."""

    def __init__(self, report: Progress) -> None:
        self._report = report

    def start(self, total: int, title: str) -> None:
        with suppress(OSError):
            self._report.start(total, title)

    def update(self, done: int, figures: str) -> None:
        with suppress(OSError):
            self._report.update(done, figures)

    def message(self, text: str) -> None:
        with suppress(OSError):
            self._report.message(text)

    def close(self) -> None:
        with suppress(OSError):
            self._report.close()


class Lines:
    """A line every few seconds, with the time left, and one for each message."""

    _WEIGHT = 0.3  # of the newest line in the smoothed seconds of a step

    def __init__(self, interval: float = 5.0) -> None:
        self._interval = interval

    def start(self, total: int, title: str) -> None:
        self._total, self._title = total, title
        self._last = time.monotonic()
        self._mark: tuple[float, int] | None = None  # a resumed run begins anywhere: the first update tells
        self._each = 0.0  # smoothed seconds of a step, once there are some

    def update(self, done: int, figures: str) -> None:
        now = time.monotonic()
        if self._mark is None:
            self._mark = now, done
        if now - self._last >= self._interval:
            self._last = now
            share = f"{done}/{self._total} ({done / max(self._total, 1):.0%})"
            self.message(f"{self._title}: {share}  {figures}{self._left(now, done)}")

    def _left(self, now: float, done: int) -> str:
        assert self._mark is not None
        then, before = self._mark
        if done > before:
            each = (now - then) / (done - before)
            self._each += (self._WEIGHT if self._each else 1.0) * (each - self._each)
            self._mark = now, done
        return f"  ETA {timedelta(seconds=round(self._each * (self._total - done)))}" if self._each else ""

    def message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class Bar:
    """A bar with the time left, by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), TextColumn("{task.percentage:>3.0f}%"))
        figures = TextColumn("{task.fields[figures]}", markup=False)
        console = Console(stderr=True)
        self._bar = RichProgress(*columns, figures, TimeRemainingColumn(), console=console, refresh_per_second=4)

    def start(self, total: int, title: str) -> None:
        self._task = self._bar.add_task(title, total=total, figures="")
        self._bar.start()

    def update(self, done: int, figures: str) -> None:
        self._bar.update(self._task, completed=done, figures=figures)

    def message(self, text: str) -> None:
        self._bar.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


def reporter(where: str, progress: Any) -> Progress:
    """The reporter for a ``progress`` argument: True, False (or None), or an object with the methods of Progress."""
    if progress is None or progress is False:
        return Silent()
    if progress is True:
        # A bar redraws its line: only a terminal shows that as intended.
        if sys.stderr is not None and sys.stderr.isatty():
            try:
                return Unfailing(Bar())
            except ImportError:
                pass
        return Unfailing(Lines()) if sys.stderr is not None else Silent()
    if not all(callable(getattr(progress, name, None)) for name in ("start", "update", "message", "close")):
        raise TypeError(
            f"{where}: progress must be True, False or an object with start, update, message, close, got {progress!r}"
        )
    return progress
