"""Checks of plain arguments, shared by all. ``label`` is how the message calls the layer, class or function."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np


def check_size(label: str, name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """An int from low to high; NumPy integers pass, bools and floats do not."""
    expected = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    try:
        if isinstance(value, bool):
            raise TypeError
        size = operator.index(value)
    except TypeError:
        raise TypeError(f"{label}: {name} must be {expected}, got {value!r}") from None
    if size < low or (high is not None and size > high):
        raise ValueError(f"{label}: {name} must be {expected}, got {size}")
    return size


def check_flag(label: str, name: str, value: Any) -> bool:
    if value is True or value is False:
        return value
    if not isinstance(value, np.bool_):
        raise TypeError(f"{label}: {name} must be True or False, got {value!r}")
    return bool(value)


def check_probability(label: str, name: str, value: Any) -> float:
    """A number from 0 to 1; NumPy numbers pass, bools do not."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (float, int, np.floating, np.integer)):
        raise TypeError(f"{label}: {name} must be a number between 0 and 1, got {value!r}")
    if not 0 <= value <= 1:  # NaN fails every comparison
        raise ValueError(f"{label}: {name} must be a number between 0 and 1, got {value!r}")
    return float(value)


def check_real(label: str, name: str, value: Any, low: float = 0.0, *, above: bool = False) -> float:
    """A finite float >= low, or > low with ``above``."""
    bound = f"{'>' if above else '>='} {low:g}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (float, int, np.floating, np.integer)):
        raise TypeError(f"{label}: {name} must be a number {bound}, got {value!r}")
    if not math.isfinite(value) or value < low or (above and value == low):
        raise ValueError(f"{label}: {name} must be a finite number {bound}, got {value!r}")
    return float(value)


def check_choice(label: str, name: str, value: Any, options: Iterable[str]) -> str:
    options = tuple(options)
    if not isinstance(value, str) or value not in options:
        listed = ", ".join(map(repr, options))
        raise ValueError(f"{label}: {name} must be {'one of ' if len(options) > 1 else ''}{listed}, got {value!r}")
    return value
