"""Before: what is said before a question, whoever asks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Before(NamedTuple):
    """What is said before a question."""

    instruction: str = ""
    turns: Sequence[tuple[str, str]] = ()
    """Questions with their answers."""


NOTHING = Before()
