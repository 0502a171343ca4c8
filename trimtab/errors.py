"""The errors that a user's mistake raises; every message says what was given, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TrimtabError(Exception):
    """Base of all errors that trimtab raises on purpose; the command line prints it and exits with code 2."""


class UnsupportedModel(TrimtabError):
    """The model (or its folder) cannot be loaded, or its attention heads cannot be found and verified."""


class BadDataset(TrimtabError):
    """A data file or question set is empty, malformed, or lacks what the task needs."""


class BadValue(TrimtabError):
    """An argument, or a number inside a tensor, has a value that cannot be used."""


class OutOfMemory(BadValue):
    """There was too little memory, which may be otherwise at another time."""


class ShapeError(TrimtabError):
    """A tensor's shape does not fit the model or the other tensors."""


class Incompatible(TrimtabError):
    """Two things that do not belong together: a shift and another model, a folder and another kind of result."""


def first_line(cause: Exception) -> str:
    """Return what another library's exception says in one line, or its kind if it says nothing."""
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def nearest(given: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the nearest known ones, or all of them."""
    known = sorted(set(known))
    close = get_close_matches(given, known, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there {'is' if len(known) == 1 else 'are'} {', '.join(known)}" if known else ""
