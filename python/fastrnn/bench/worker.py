"""The process that holds one peer: ``python -m fastrnn.bench.worker``.

It answers each line of JSON on standard input by one on standard output:

    {"do": "open", "peer", "cell", "shape", "threads", "data"}   -> {}                 data: an .npz
    {"do": "results", "mode", "file"}                            -> {}                 writes an .npz
    {"do": "time", "mode", "seconds"}                            -> {"times": [...]}   seconds of each call

An exception is answered by {"error": "..."}. It ends when its input does.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .peers import PEERS, Peer
from .shapes import Shape

PAUSE = 1e-3  # seconds before each call in mode "paused"


def time_calls(call: Callable[[], object], seconds: float, pause: float = 0.0) -> list[float]:
    """The time of each call, for so many seconds but at least one call, after one that is not timed."""
    call()
    times = []
    end = time.perf_counter() + seconds
    while True:
        if pause:
            time.sleep(pause)
        start = time.perf_counter()
        call()
        stop = time.perf_counter()
        times.append(stop - start)
        if stop >= end:
            return times


class _Server:
    def __init__(self) -> None:
        self._peer: Peer | None = None
        self._calls: dict[str, Callable[[], object]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        return getattr(self, f"_{request.pop('do')}")(**request)

    def _open(self, peer: str, cell: str, shape: str, threads: int, data: str) -> dict[str, Any]:
        with np.load(data) as arrays:
            self._peer = PEERS[peer](cell, Shape.parse(shape), dict(arrays), threads)
        gc.freeze()  # what exists now stays: the collections before each turn need not look at it
        return {}

    def _results(self, mode: str, file: str) -> dict[str, Any]:
        assert self._peer is not None
        np.savez(file, **self._peer.results(mode))  # type: ignore[arg-type]
        return {}

    def _time(self, mode: str, seconds: float) -> dict[str, Any]:
        assert self._peer is not None
        if mode not in self._calls:
            self._calls[mode] = self._peer.call(mode)
        gc.collect()
        gc.disable()
        times = time_calls(self._calls[mode], seconds, PAUSE if mode == "paused" else 0.0)
        gc.enable()
        return {"times": times}


def _end_with_parent() -> None:
    """On Linux: a parent that is killed cannot end its workers, which may be stopped and wait for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    _end_with_parent()
    # Answers have the standard output to themselves: what a library prints goes where errors go.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    server = _Server()
    for line in sys.stdin:
        try:
            answer = server.answer(json.loads(line))
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
