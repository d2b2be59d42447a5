"""Where a run happened: machine, versions, commit, and the limits that times are compared with."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import fastrnn

from .. import _core, config

_PEAK_SECONDS, _BANDWIDTH_SECONDS, _ROUND_TRIP_SECONDS = 0.01, 0.01, 0.002
# A development setup may reach the package through symbolic links: what counts is where its files really lie.
_PACKAGE = Path(fastrnn.__file__).resolve()


def describe() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": _core.config()["isa"],
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(modules: Iterable[str]) -> dict[str, str | None]:
    """Of fastrnn, NumPy and these modules, as their packages give them."""
    return {"fastrnn": config.version()} | {name: config._installed(name) for name in ("numpy", *modules)}


def commit() -> str | None:
    """The commit of the checkout in which the package lies, "+changes" appended where files differ from it, or None."""
    folder = _PACKAGE.parent
    # An installed package may lie inside a checkout too, in an environment there; it is not tracked then.
    if not _git(folder, "ls-files", "--error-unmatch", "--", str(_PACKAGE)):
        return None
    revision = _git(folder, "rev-parse", "--short", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{revision}+changes" if revision and changes else revision


def _git(folder: Path, *args: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return result.stdout.strip() if result.returncode == 0 else None


@dataclass
class Limits:
    """What the machine can do while a row is measured: it changes within minutes."""

    threads: int
    slice_bytes: int
    peaks: list[float] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)
    round_trips: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Before each round, while all workers are stopped."""
        self.peaks.append(_core.peak_flops("float32", self.threads, _PEAK_SECONDS))
        self.bandwidths.append(_core.read_bandwidth(self.slice_bytes, self.threads, _BANDWIDTH_SECONDS))
        if self.threads > 1:  # one thread waits for nobody
            self.round_trips.append(_core.round_trip(_ROUND_TRIP_SECONDS))

    @property
    def peak(self) -> float | None:
        return _median(self.peaks)

    @property
    def bandwidth(self) -> float | None:
        return _median(self.bandwidths)

    def summary(self) -> dict[str, Any]:
        return {
            "peak_flops": self.peak,
            "read_bandwidth": self.bandwidth,
            "slice_bytes": self.slice_bytes,
            "round_trip": _median(self.round_trips),
        }


def _median(values: Iterable[float]) -> float | None:
    """Of those above 0; None where there is none: on a busy machine a measurement may come to nothing."""
    measured = [value for value in values if value > 0]
    return median(measured) if measured else None
