"""Progress on standard error: bars on a terminal; in pipes and logs a line every half minute of long work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")
EVERY = 30.0
"""Seconds between two lines in a pipe."""


@dataclass
class _Pace:
    said: float = field(default_factory=lambda: time.monotonic())


_PACE: ContextVar[_Pace] = ContextVar("_PACE")


@contextlib.contextmanager
def one_pace() -> Iterator[None]:
    """Let all work in the block share one half minute: many short steps, one after another, are long work as well."""
    token = _PACE.set(_Pace())
    try:
        yield
    finally:
        _PACE.reset(token)


def tracked(items: Iterable[T], description: str, *, total: int | None = None) -> Iterator[T]:
    """Yield the items, drawing a bar while standard error is a terminal, and lines where it is none."""
    total = len(items) if total is None and isinstance(items, Sized) else total
    with progress(description, total) as advance:
        for item in items:
            yield item
            advance(1)


@contextlib.contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that moves the bar, or the next line, on by so many items; nothing without a description."""
    console = Console(stderr=True)
    if not description or not console.is_terminal:
        yield _lines(console, description, total) if description else lambda n: None  # noqa: ARG005
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n: bar.advance(task, n)


def _lines(console: Console, description: str, total: int | None) -> Callable[[int], None]:
    begun, pace = time.monotonic(), _PACE.get(_Pace())
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done, now = done + n, time.monotonic()
        if now - pace.said >= EVERY and done != total:
            pace.said = now
            left = "" if total is None else f" of {total}, about {(now - begun) * (total - done) / done:.0f} s to go"
            console.print(f"trimtab: {description}: {done}{left}", highlight=False, markup=False, soft_wrap=True)

    return advance
