"""The document of a run, and its tables."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from ..output import Table, print_table
from .shapes import CELLS, MODES

Document = dict[str, Any]

_MAIN_HEADER = [
    "T,B,I,H,L",
    "cell",
    "mode",
    "fastrnn ms",
    "torch ms",
    "ratio",
    "best other peer, ms, ratio",
    "x ideal",
    "error",
]
_PAUSED_HEADER = ["T,B,I,H,L", "cell", "fastrnn ms", "torch ms", "ratio"]
_NOTHING = "-"


def read_json(path: str | os.PathLike[str]) -> Document:
    """Raises ValueError where the file holds something else."""
    with open(path, encoding="utf-8") as file:
        document = json.load(file)
    if not isinstance(document, dict) or not {"machine", "versions", "threads", "rows"} <= document.keys():
        raise ValueError(f"bench: {path} must be what fastrnn bench --json writes, got other JSON")
    return document


def main_table(document: Document, mode: str | None = None) -> Table:
    """A line for each row of the document, or for those of one mode."""
    return _MAIN_HEADER, [_main_line(row) for row in document["rows"] if mode in (None, row["mode"])]


def paused_table(document: Document) -> Table:
    """Single steps after a pause: what a program sees that has one now and then."""
    rows = [(row, row["paused"]) for row in document["rows"] if "paused" in row]
    return _PAUSED_HEADER, [
        [_shape(row), row["cell"], _time(paused, "fastrnn"), _time(paused, "torch"), _ratio(paused, "torch")]
        for row, paused in rows
    ]


def summary_table(document: Document) -> Table:
    """The ratios to torch: a line for each shape, a column for each mode and cell; no lines where torch is missing."""
    ratios = {(_shape(row), row["mode"], row["cell"]): _ratio(row["peers"], "torch") for row in document["rows"]}
    if set(ratios.values()) <= {_NOTHING}:
        return [], []
    kinds = [(mode, cell) for mode in MODES for cell in CELLS]
    kinds = [kind for kind in kinds if any(kind == key[1:] for key in ratios)]
    header = [_MAIN_HEADER[0], *(f"{cell.upper()} {mode}" for mode, cell in kinds)]
    lines = dict.fromkeys(key[0] for key in ratios)
    return header, [[shape, *(ratios.get((shape, *kind), _NOTHING) for kind in kinds)] for shape in lines]


def failures(document: Document) -> list[str]:
    """Where fastrnn itself could not be measured or was wrong, and why."""
    entries = [
        (f"{row['cell']} {_shape(row)} {mode}", peers["fastrnn"])
        for row in document["rows"]
        for mode, peers in ((row["mode"], row["peers"]), ("paused", row.get("paused", {})))
        if peers.get("fastrnn")
    ]
    return [f"{place}: {entry['failed']}" for place, entry in entries if "failed" in entry]


def describe(document: Document) -> str:
    """Machine, versions and limits in a line or two."""
    machine, rows = document["machine"], document["rows"]
    versions = {name: version for name, version in document["versions"].items() if version}
    if document.get("commit") and "fastrnn" in versions:
        versions["fastrnn"] += f" ({document['commit']})"
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    peaks = [row["limits"]["peak_flops"] / 1e9 for row in rows if row["limits"]["peak_flops"]]
    trips = [row["limits"]["round_trip"] * 1e6 for row in rows if row["limits"]["round_trip"]]
    limits = [f"peak {_span(peaks)} GFLOP/s"] if peaks else []
    limits += [f"round trip between two threads {_span(trips)} us"] if trips else []
    return (
        f"{machine['cpu']}, {document['threads']} of {machine['cores']} cores, {machine['isa']}, {machine['os']}, "
        f"Python {machine['python']}; {libraries}" + "".join(f"; {limit}" for limit in limits)
    )


def show(document: Document) -> None:
    """Prints tables and machine on standard output."""
    tables = [("", main_table(document)), ("One step after a pause of 1 ms", paused_table(document))]
    for title, table in tables:
        if table[1]:
            print_table(title, table)
    print(describe(document))


def _main_line(row: dict[str, Any]) -> list[str]:
    peers = row["peers"]
    ours = peers["fastrnn"]
    return [
        _shape(row),
        row["cell"],
        row["mode"],
        _time(peers, "fastrnn"),
        _time(peers, "torch"),
        _ratio(peers, "torch"),
        _best_other(peers),
        f"{ours['ms'] / row['ideal_ms']:.2f}" if "ms" in ours and row["ideal_ms"] else _NOTHING,
        _NOTHING if ours.get("error") is None else f"{ours['error']:.0e}",
    ]


def _shape(row: dict[str, Any]) -> str:
    return ",".join(map(str, row["shape"]))


def _time(peers: dict[str, Any], name: str) -> str:
    entry = peers.get(name)
    if entry is None:
        return _NOTHING
    return f"{_digits(entry['ms'])} ± {entry['spread']:.0%}" if "ms" in entry else "failed"


def _ratio(peers: dict[str, Any], name: str) -> str:
    """How many times faster fastrnn is."""
    entries = [peers.get(each) or {} for each in (name, "fastrnn")]
    if not all("ms" in entry for entry in entries):
        return _NOTHING
    return f"{entries[0]['ms'] / entries[1]['ms']:.2f}"


def _best_other(peers: dict[str, Any]) -> str:
    others = {name: entry["ms"] for name, entry in peers.items() if name not in ("fastrnn", "torch") and _timed(entry)}
    if not others:
        return _NOTHING
    best = min(others, key=others.__getitem__)
    return f"{best} {_digits(others[best])}, {_ratio(peers, best)}"


def _timed(entry: dict[str, Any] | None) -> bool:
    return entry is not None and "ms" in entry


def _span(values: Sequence[float]) -> str:
    low, high = _digits(min(values)), _digits(max(values))
    return low if low == high else f"{low} to {high}"


def _digits(value: float) -> str:
    """Three significant digits, never with an exponent."""
    rounded = f"{value:.2e}"
    decimals = 2 - int(rounded.partition("e")[2])
    return f"{float(rounded):.{max(decimals, 0)}f}"
