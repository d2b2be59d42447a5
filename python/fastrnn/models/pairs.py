"""Pairs of lines, given as lists or as files whose lines belong together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .lines import check_aligned, read_lines

Lines = Sequence[str] | os.PathLike[str]  # themselves, or the file that holds them
Pairs = tuple[Lines, Lines]  # source and target


def read_side(where: str, name: str, side: Any) -> list[str]:
    """The lines of one side."""
    if isinstance(side, os.PathLike):
        return read_lines(side)
    if isinstance(side, str) or not isinstance(side, Sequence):
        hint = "; a file is given as a pathlib.Path" if isinstance(side, str) else ""
        raise TypeError(
            f"{where}: {name} must be a list of lines or the path of a file, got {type(side).__name__}{hint}"
        )
    for number, line in enumerate(side, 1):
        if not isinstance(line, str):
            raise TypeError(f"{where}: {name} must be a list of str, got {type(line).__name__} as line {number}")
        if "\n" in line:
            raise line_error(where, name, side, number, "holds a line break")
    return list(side)


def read_pairs(where: str, name: str, pairs: Any) -> tuple[list[str], list[str]]:
    """Source and target, of as many lines, at least one."""
    if not isinstance(pairs, (tuple, list)) or len(pairs) != 2:
        got = f"{len(pairs)} of them" if isinstance(pairs, (tuple, list)) else type(pairs).__name__
        raise TypeError(f"{where}: {name} must be two, source and target, each a list of lines or a path, got {got}")
    names = [f"{name}[{i}]" for i in range(2)]
    source, target = (read_side(where, each, side) for each, side in zip(names, pairs, strict=True))
    shown = [
        os.fspath(side) if isinstance(side, os.PathLike) else each for each, side in zip(names, pairs, strict=True)
    ]
    check_aligned(where, source, target, (shown[0], shown[1]))
    if not source:
        raise ValueError(f"{where}: {name} must have at least one pair, got none")
    return source, target


def line_error(where: str, name: str, side: Any, number: int, what: str) -> ValueError:
    """About a line, from 1, of a file or of an argument."""
    if isinstance(side, os.PathLike):
        return ValueError(f"{os.fspath(side)}: line {number} {what}")
    return ValueError(f"{where}: {name}: line {number} {what}")
