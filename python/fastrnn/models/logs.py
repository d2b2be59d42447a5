"""The records of a training run as files: CSV, and events for TensorBoard where it is installed."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from . import checkpoint

CSV = "log.csv"
TENSORBOARD = "tensorboard"  # the folder of the events
_PLACES = ("epoch", "steps")  # what is no result


class Log:
    """Writes ``log.csv`` to a folder, and scalars to its subfolder ``tensorboard``.

    The events are written by the package ``tensorboard`` itself, without torch, after each record and under the names
    in it. A resumed run adds a file of events, which TensorBoard shows as one with those before. Where they cannot be
    written, ``report`` is told so once, and the run goes on without.
    """

    def __init__(self, folder: str | os.PathLike[str], report: Callable[[str], None]) -> None:
        self._folder, self._report = Path(folder), report
        self._events: Any = None  # from the first record on
        self._with_events = True

    def write(self, history: list[dict[str, Any]]) -> None:
        """All records, of which the last is new. An OSError, naming the file, leaves ``log.csv`` as it was."""
        self.write_csv(history)
        if not self._with_events:
            return
        try:
            if self._events is None:
                self._events = _event_writer(self._folder / TENSORBOARD)
                self._events.write(_event(file_version="brain.Event:2"))
            self._events.write(_event(step=history[-1]["steps"], summary=_summary(history[-1])))
            self._events.flush()
        except ImportError:
            self._with_events = False
        except OSError as error:
            self._with_events = False
            self._report(f"the run goes on without events for TensorBoard in {self._folder / TENSORBOARD}: {error}")

    def write_csv(self, history: list[dict[str, Any]]) -> None:
        checkpoint.replace_file(self._folder / CSV, lambda file: _write_csv(file, history))

    def close(self) -> None:
        """Every record is in its file already: nothing is lost when this fails."""
        if self._events is not None:
            with suppress(OSError):
                self._events.close()


def _write_csv(file: BinaryIO, history: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for record in history for name in record))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names)  # an empty cell for what a record has not
    writer.writeheader()
    writer.writerows(history)
    file.write(text.getvalue().encode())


def _event_writer(folder: Path) -> Any:
    """Not tensorboard's EventFileWriter, whose thread meets a full disk on its own."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    now = time.time_ns()
    return RecordWriter(Path(folder, f"events.out.tfevents.{now // 10**9}.{now % 10**9:09}.{os.getpid()}").open("xb"))


def _event(**content: Any) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return bytes(Event(wall_time=time.time(), **content).SerializeToString())


def _summary(record: dict[str, Any]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in record.items() if name not in _PLACES]
    return Summary(value=values)
