"""Predicates of a text's tokens, which units of a model may follow: ``inspection.best_units``.

What a token is inside of is judged at its last character: a model that has read it can know.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

#: A function of the tokens that gives a truth value or a number for each.
Predicate = Callable[[list[str]], Any]


def inside_quotes(tokens: list[str]) -> np.ndarray:
    """Between "straight" or “curly” double quotes that are closed in the same paragraph."""
    text, ends = _joined(tokens)
    inside = np.zeros(len(text), bool)
    for match in re.finditer(r'"(?:(?!\n\n)[^"])*"|“(?:(?!\n\n)[^”])*”', text):
        inside[match.start() : match.end() - 1] = True
    return inside[ends]


def inside_parentheses(tokens: list[str]) -> np.ndarray:
    """Between ( and its ), however deep."""
    text, ends = _joined(tokens)
    depth = np.cumsum([(character == "(") - (character == ")") for character in text])
    return (depth > np.minimum.accumulate(np.minimum(depth, 0)))[ends]  # what closes nothing does not count


def line_position(tokens: list[str]) -> np.ndarray:
    """How many characters ago the line began: 0 at its line break."""
    text, ends = _joined(tokens)
    places = np.arange(1, len(text) + 1)
    breaks = np.where([character == "\n" for character in text], places, 0)
    return (places - np.maximum.accumulate(breaks))[ends]


def upper_case(tokens: list[str]) -> np.ndarray:
    """A token with an upper-case letter."""
    return np.array([any(map(str.isupper, token)) for token in tokens])


def digit(tokens: list[str]) -> np.ndarray:
    """A token with a digit."""
    return np.array([any(map(str.isdigit, token)) for token in tokens])


def space(tokens: list[str]) -> np.ndarray:
    """A token of whitespace alone, such as a line break."""
    return np.array([token.isspace() for token in tokens])


#: By name.
PREDICATES: dict[str, Predicate] = {
    function.__name__: function
    for function in (inside_quotes, inside_parentheses, line_position, upper_case, digit, space)
}


def _joined(tokens: list[str]) -> tuple[str, np.ndarray]:
    """The text and the place of each token's last character."""
    return "".join(tokens), np.maximum(np.cumsum([len(token) for token in tokens]) - 1, 0)
