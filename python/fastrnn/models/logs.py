"""The records of a training run as files: CSV, and events for TensorBoard where it is installed."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path
from typing import Any

CSV = "log.csv"
TENSORBOARD = "tensorboard"  # the folder of the events
_PLACES = ("epoch", "steps")  # what is no result


class Log:
    """Writes ``log.csv`` to a folder, and scalars to its subfolder ``tensorboard``.

    The events are written by the package ``tensorboard`` itself, without torch, after each record and under the names
    in it. A resumed run adds a file of events, which TensorBoard shows as one with those before.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._path = Path(folder, CSV)
        self._events: Any = None
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            return
        self._events = EventFileWriter(os.fspath(Path(folder, TENSORBOARD)))

    def write(self, history: list[dict[str, Any]]) -> None:
        """All records, of which the last is new."""
        names = list(dict.fromkeys(name for record in history for name in record))
        with self._path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)  # an empty cell for what a record has not
            writer.writeheader()
            writer.writerows(history)
        if self._events is not None:
            self._events.add_event(_event(history[-1]))
            self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def _event(record: dict[str, Any]) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in record.items() if name not in _PLACES]
    return Event(wall_time=time.time(), step=record["steps"], summary=Summary(value=values))
