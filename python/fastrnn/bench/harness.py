"""Lets the peers take turns, each in processes of its own that stand still while another one is timed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from .. import reference
from . import machine
from .peers import PEERS, Array, Arrays, missing_modules, reference_results, takes_part
from .shapes import CELLS, Shape, flops, ideal_seconds, slice_bytes

TURN_SECONDS = 0.02
LEAST_ROUNDS = 5
#: Rows with more operations than this in one inference are not compared with the float64 reference but with torch.
REFERENCE_FLOPS = 3e9
#: A peer whose results are further off than this computes something else: its time means nothing.
LARGEST_ERROR = 1e-4
#: Two threads that answer each other more slowly than this, in seconds, do not have a core each.
BUSY_ROUND_TRIP = 1e-5

_COMMAND = (sys.executable, "-m", "fastrnn.bench.worker")
_END_SECONDS = 5  # for a worker that is to end

# Absent on Windows. There a worker only sleeps on its input, and threads of its libraries may go on spinning.
_STOP: signal.Signals | None = getattr(signal, "SIGSTOP", None)
_CONTINUE: signal.Signals | None = getattr(signal, "SIGCONT", None)


class PeerError(Exception):
    """A peer that cannot go on; the message says why."""


class Worker:
    """A process with one peer. It runs only while it has a request to answer."""

    def __init__(self, name: str, number: int, threads: int, folder: Path) -> None:
        self.name, self.label = name, f"{name}-{number}"
        self._folder = folder
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                _COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(threads),
                cwd=folder,  # Python would import from the user's, which may hold anything
                encoding="utf-8",
                errors="replace",
            )

    @property
    def _log(self) -> Path:
        return self._folder / f"{self.label}.log"

    def request(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Raises PeerError where the peer fails or its process has ended."""
        self.send(do, **arguments)
        return self.receive()

    def send(self, do: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._signal(_CONTINUE)
        with suppress(OSError):  # it has ended, which `receive` tells better
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):  # it has ended, maybe in the middle of its answer
            raise PeerError(self._last_words())
        self._signal(_STOP)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self._process.kill()  # whatever it says next belongs to no request
            raise PeerError(f"its process answered {line.strip()[:80]!r}")
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def results(self, mode: str) -> Arrays:
        file = self._folder / "results.npz"
        self.request("results", mode=mode, file=str(file))
        with np.load(file) as arrays:
            return dict(arrays)

    def close(self) -> None:
        self._signal(_CONTINUE)  # a stopped process would not hear the next one
        self._process.terminate()
        try:
            self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # something was never sent
                pipe.close()

    def _signal(self, number: signal.Signals | None) -> None:
        if number is not None:
            self._process.send_signal(number)

    def _last_words(self) -> str:
        try:
            status = self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:  # only its output has ended
            self._process.kill()
            status = self._process.wait()
        text = f"its process ended with status {status}" if status >= 0 else f"its process died of signal {-status}"
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{text}: {last}" if last else text


def _environment(threads: int) -> dict[str, str]:
    """That of this process, with the threads set before any library is loaded, and the same modules to be found."""
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTRNN_NUM_THREADS")
    path = os.pathsep.join(map(os.path.abspath, sys.path))  # the workers start elsewhere
    return {**os.environ, **dict.fromkeys(counts, str(threads)), "PYTHONPATH": path}


@dataclass(frozen=True)
class Settings:
    """What is measured: cells and shapes (all pairs of them), modes, threads, seconds for each row and mode."""

    cells: Sequence[str]
    shapes: Sequence[Shape]
    modes: Sequence[str]
    threads: int
    seconds: float


def make_data(cell: str, shape: Shape, seed: int = 0) -> Arrays:
    """Weights as torch draws them, U(-1/sqrt(H), 1/sqrt(H)), and normal x and dy."""
    rng = np.random.default_rng(seed)
    bound = shape.hidden_size**-0.5

    def uniform(size: tuple[int, ...]) -> Array:
        return (rng.random(size, np.float32) * 2 - 1) * np.float32(bound)

    sizes = reference.weight_shapes(CELLS[cell], shape.input_size, shape.hidden_size, num_layers=shape.num_layers)
    data: Arrays = {name: uniform(size) for name, size in sizes.items()}
    data["x"] = rng.standard_normal((shape.seq_len, shape.batch, shape.input_size), dtype=np.float32)
    data["dy"] = rng.standard_normal((shape.seq_len, shape.batch, shape.hidden_size), dtype=np.float32)
    return data


def relative_error(results: Arrays, expected: Arrays) -> float:
    """The largest difference in any array over that array's largest value."""
    errors = []
    for name, want in expected.items():
        if name not in results:
            raise PeerError(f"{name} is missing among its results")
        if results[name].shape != want.shape:
            raise PeerError(f"{name} has shape {results[name].shape} in the place of {want.shape}")
        largest = float(np.abs(want).max())
        errors.append(float(np.abs(results[name] - want).max()) / (largest or 1.0))
    return float(np.max(errors))  # unlike max, this lets NaN through


@dataclass
class Times:
    """The calls of one worker in one mode, round by round."""

    medians: list[float] = field(default_factory=list)
    calls: int = 0

    def add(self, times: Sequence[float]) -> None:
        self.medians.append(median(times))
        self.calls += len(times)

    def summary(self) -> dict[str, Any]:
        middle = median(self.medians)
        return {
            "ms": middle * 1e3,
            "spread": spread(self.medians),
            "rounds": len(self.medians),
            "calls": self.calls,
        }


def spread(values: Sequence[float]) -> float:
    """Interquartile range over median."""
    if len(values) < 2:
        return 0.0
    first, middle, third = quantiles(values, n=4, method="inclusive")
    return (third - first) / middle


def run(settings: Settings, progress: Callable[[str], None], keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measures everything.

    Args:
        progress: gets each line of news.
        keep: gets what is returned, as far as it is, after each row.

    Returns:
        The whole run as JSON can hold it; README.md in benchmarks/ describes it.
    """
    missing = {name: missing_modules(name) for name in PEERS}
    names = [name for name in PEERS if not missing[name]]
    libraries = dict.fromkeys(module for name in names for module in PEERS[name].needs)
    document: dict[str, Any] = {
        "machine": machine.describe(),
        "versions": machine.versions(libraries),
        "commit": machine.commit(),
        "threads": settings.threads,
        "seconds": settings.seconds,
        "rows": [],
    }
    if left_out := "; ".join(f"{name} ({', '.join(modules)})" for name, modules in missing.items() if modules):
        progress(f"left out, as modules are not installed: {left_out}")
    pairs = [(cell, shape) for shape in settings.shapes for cell in settings.cells]
    for number, (cell, shape) in enumerate(pairs, 1):
        progress(f"{number}/{len(pairs)}: {cell} {shape}")
        with _Row(cell, shape, settings, names, progress).opened() as row:
            for mode in settings.modes:
                document["rows"].append(row.measure(mode))
                keep(document)
    return document


class _Row:
    """One cell and shape: its workers live as long as it is opened."""

    def __init__(
        self, cell: str, shape: Shape, settings: Settings, names: Iterable[str], progress: Callable[[str], None]
    ) -> None:
        self._cell, self._shape, self._settings, self._progress = cell, shape, settings, progress
        self._names = list(names)
        self._failed: dict[str, str] = {}
        self._workers: list[Worker] = []
        self._order = random.Random(0)

    @contextmanager
    def opened(self) -> Iterator[_Row]:
        cell, shape, threads = self._cell, self._shape, self._settings.threads
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastrnn-bench-")))
            self._data = make_data(cell, shape)
            np.savez(folder / "data.npz", **self._data)  # type: ignore[arg-type]
            for name in self._names:
                if any(takes_part(name, cell, shape, mode) for mode in self._settings.modes):
                    for number in range(1, PEERS[name].processes + 1):
                        worker = Worker(name, number, threads, folder)
                        stack.callback(worker.close)
                        self._workers.append(worker)
            for worker in self._workers:  # loading takes the most time, and they do it side by side
                worker.send(
                    "open", peer=worker.name, cell=cell, shape=str(shape), threads=threads, data=f"{folder}/data.npz"
                )
            for worker in list(self._workers):
                with self._guard(worker):
                    worker.receive()
            yield self

    def measure(self, mode: str) -> dict[str, Any]:
        cell, shape = self._cell, self._shape
        errors, standard = self._check(mode)
        times, limits = self._interleave(mode, self._taking_part(mode))
        if limits.round_trips and median(limits.round_trips) > BUSY_ROUND_TRIP:
            self._progress(f"{cell} {shape} {mode}: other programs were using the cores, the times mean little")
        # The ideal goes with the limits that were measured in the same rounds.
        peak, bandwidth = limits.peak, limits.bandwidth
        ideal = ideal_seconds(cell, shape, mode, peak, bandwidth) * 1e3 if peak and bandwidth else None
        row = {
            "cell": cell,
            "shape": [int(size) for size in str(shape).split(",")],
            "mode": mode,
            "peers": {
                name: self._entry(name, mode, times, errors) for name in self._names if mode in PEERS[name].modes
            },
            "checked_against": standard,
            "ideal_ms": ideal,
            "limits": limits.summary(),
        }
        if mode == "infer" and shape.seq_len == 1:
            pausing = [worker for worker in self._taking_part(mode) if PEERS[worker.name].pauses]
            paused, _ = self._interleave("paused", pausing)
            row["paused"] = {name: self._entry(name, mode, paused, {}) for name in self._names if PEERS[name].pauses}
        return row

    def _taking_part(self, mode: str) -> list[Worker]:
        return [worker for worker in self._workers if takes_part(worker.name, self._cell, self._shape, mode)]

    def _entry(
        self, name: str, mode: str, times: dict[Worker, Times], errors: dict[str, float | None]
    ) -> dict[str, Any] | None:
        """What the JSON says of one peer; None where it takes no part."""
        if not takes_part(name, self._cell, self._shape, mode):
            return None
        results = [worker_times.summary() for worker, worker_times in times.items() if worker.name == name]
        if not results:
            return {"failed": self._failed.get(name, "no process is left")}
        best = min(results, key=lambda result: result["ms"])
        if PEERS[name].processes > 1:
            best["processes"] = [result["ms"] for result in results]
        if errors:
            best["error"] = errors.get(name)
        return best

    @contextmanager
    def _guard(self, worker: Worker) -> Iterator[None]:
        """Where the worker fails inside, its peer is out, and the others go on."""
        try:
            yield
        except PeerError as error:
            self._failed[worker.name] = str(error)
            self._workers = [other for other in self._workers if other.name != worker.name]
            self._progress(f"{worker.label} failed ({self._cell} {self._shape}): {error}")

    def _check(self, mode: str) -> tuple[dict[str, float | None], str | None]:
        """The error of each peer, None for the one that the others are compared with, and that one's name."""
        standard, expected = "reference", None
        if flops(self._cell, self._shape, "infer") <= REFERENCE_FLOPS:
            expected = reference_results(CELLS[self._cell], self._data, self._shape.num_layers, np.float64, mode)
        errors: dict[str, float | None] = {}
        # Where there is no reference, the first one that answers takes its place: torch, or else fastrnn.
        order = ("torch", "fastrnn", *PEERS)
        for worker in sorted(self._taking_part(mode), key=lambda worker: order.index(worker.name)):
            if worker not in self._workers:  # out, with another process of its peer
                continue
            with self._guard(worker):
                results = worker.results(mode)
                if expected is None:
                    standard, expected = worker.name, results
                    errors[worker.name] = None
                    continue
                error = relative_error(results, expected)
                if not error <= LARGEST_ERROR:  # NaN too
                    raise PeerError(f"its results differ from those of {standard} by {error:.0e}")
                if worker.name != standard:
                    errors[worker.name] = max(error, errors.get(worker.name) or 0.0)
        return errors, standard if expected is not None else None

    def _interleave(self, mode: str, workers: Sequence[Worker]) -> tuple[dict[Worker, Times], machine.Limits]:
        """Rounds in which each worker has its turn, in another order each time."""
        threads = self._settings.threads
        limits = machine.Limits(threads, slice_bytes(self._cell, self._shape, threads))
        times = {worker: Times() for worker in workers}
        end, rounds = time.perf_counter() + self._settings.seconds, 0
        while rounds == 0 or (times and (time.perf_counter() < end or rounds < LEAST_ROUNDS)):
            limits.measure()
            for worker in self._order.sample(list(times), len(times)):
                if worker not in self._workers:
                    continue
                with self._guard(worker):
                    times[worker].add(worker.request("time", mode=mode, seconds=TURN_SECONDS)["times"])
            # What a failed one had measured until then is half a measurement.
            times = {worker: measured for worker, measured in times.items() if worker in self._workers}
            rounds += 1
        return times, limits
