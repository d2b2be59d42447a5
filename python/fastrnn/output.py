"""What commands print and write: tables, as text, as Markdown, and with rich on a terminal; JSON files."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

Table = tuple[list[str], list[list[str]]]  # header and rows


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


def print_table(title: str, table: Table) -> None:
    """On standard output."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        import rich.table
        from rich.console import Console

        shown = rich.table.Table(*table[0], title=title or None)
        for row in table[1]:
            shown.add_row(*row)
        Console(markup=False, highlight=False).print(shown)
    else:
        print("\n".join(filter(None, [title, as_text(table), ""])), end="\n\n")


def write_json(path: str | os.PathLike[str], document: Any) -> None:
    """What is there is replaced at once, so that a run that ends meanwhile leaves one of the two.

    A ValueError for NaN and infinity, which JSON has not.
    """
    _write(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises OSError where `write_json` would, and leaves what is there."""
    _write(path, None)


def _write(path: str | os.PathLike[str], text: str | None) -> None:
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not target.is_file():  # a device or a pipe, which nothing can take the place of
            with open(target, "w", encoding="utf-8") as file:
                file.write(text or "")
            return
        beside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            beside.write_text(text or "", encoding="utf-8")
            if text is not None:
                os.replace(beside, target)
        finally:
            with suppress(OSError):  # where all went well there is none
                beside.unlink()
    except OSError as error:  # said of the file that the user has named
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
