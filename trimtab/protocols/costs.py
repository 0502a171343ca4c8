"""What making an edit took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Cost:
    """What making an edit took. Zero where nothing was made."""

    seconds: float = 0.0
    trainable_parameters: int = 0
    """Numbers that were fitted and must be stored."""
    bytes_on_disk: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of making both."""
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@contextlib.contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Yield a list that receives the seconds the block took."""
    seconds: list[float] = []
    start = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - start)
