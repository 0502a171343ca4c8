"""Progress bars on standard error for long work; silent in pipes and logs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, track

T = TypeVar("T")


def tracked(items: Iterable[T], description: str, *, total: int | None = None) -> Iterator[T]:
    """Yield the items, drawing a bar while standard error is a terminal."""
    console = Console(stderr=True)
    yield from track(items, description, total=total, console=console, transient=True, disable=not console.is_terminal)


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that moves the bar on by so many items; no bar without a description."""
    console = Console(stderr=True)
    shown = bool(description) and console.is_terminal
    with Progress(console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n: bar.advance(task, n)
