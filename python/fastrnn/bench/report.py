"""The document of a run as tables: text, Markdown, and with rich on a terminal."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

Document = dict[str, Any]
Table = tuple[list[str], list[list[str]]]  # header and rows

_HEADER = [
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


def write_json(path: str | os.PathLike[str], document: Document) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.write("\n")


def main_table(document: Document, mode: str | None = None) -> Table:
    """A line for each row of the document, or for those of one mode."""
    return _HEADER, [_main_line(row) for row in document["rows"] if mode in (None, row["mode"])]


def paused_table(document: Document) -> Table:
    """Single steps after a pause: what a program sees that has one now and then."""
    rows = [(row, row["paused"]) for row in document["rows"] if "paused" in row]
    return _PAUSED_HEADER, [
        [_shape(row), row["cell"], _time(paused, "fastrnn"), _time(paused, "torch"), _ratio(paused, "torch")]
        for row, paused in rows
    ]


def describe(document: Document) -> str:
    """Machine, versions and limits in a line or two."""
    machine, rows = document["machine"], document["rows"]
    libraries = ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version)
    commit = f" ({document['commit']})" if document.get("commit") else ""
    peaks = [row["limits"]["peak_flops"] / 1e9 for row in rows]
    trips = [row["limits"]["round_trip"] * 1e6 for row in rows if row["limits"]["round_trip"]]
    limits = [f"peak {_span(peaks)} GFLOP/s"] if peaks else []
    limits += [f"round trip between two threads {_span(trips)} us"] if trips else []
    return (
        f"{machine['cpu']}, {document['threads']} of {machine['cores']} cores, {machine['isa']}, {machine['os']}, "
        f"Python {machine['python']}; {libraries}{commit}" + "".join(f"; {limit}" for limit in limits)
    )


def as_text(table: Table) -> str:
    """Aligned columns."""
    header, rows = table
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in (header, *rows)
    )
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(table: Table) -> str:
    header, rows = table
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))


def show(document: Document) -> None:
    """Prints tables and machine on standard output."""
    tables = [("", main_table(document)), ("One step after a pause of 1 ms", paused_table(document))]
    for title, table in tables:
        if table[1]:
            _print(title, table)
    print(describe(document))


def _print(title: str, table: Table) -> None:
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        import rich.table
        from rich.console import Console

        shown = rich.table.Table(*table[0], title=title or None)
        for row in table[1]:
            shown.add_row(*row)
        Console(markup=False, highlight=False).print(shown)
    else:
        print("\n".join(filter(None, [title, as_text(table), ""])), end="\n\n")


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
        f"{ours['ms'] / row['ideal_ms']:.1f}" if "ms" in ours else _NOTHING,
        _NOTHING if ours.get("error") is None else f"{ours['error']:.0e}",
    ]


def _shape(row: dict[str, Any]) -> str:
    return ",".join(map(str, row["shape"]))


def _time(peers: dict[str, Any], name: str) -> str:
    entry = peers.get(name)
    if entry is None:
        return _NOTHING
    return f"{entry['ms']:.3g} ± {entry['spread']:.0%}" if "ms" in entry else "failed"


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
    return f"{best} {others[best]:.3g}, {_ratio(peers, best)}"


def _timed(entry: dict[str, Any] | None) -> bool:
    return entry is not None and "ms" in entry


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
