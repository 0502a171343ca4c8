"""Which rows run together: groups that fill a packed row, and batches of groups that fill a forward."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Int

from trimtab.devices import free_bytes, ran_out_of_memory
from trimtab.engine.token_tree import TokenTree
from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of, text_config

T = TypeVar("T")
Mode: TypeAlias = Literal["packed", "padded", "plain"]
"""`"packed"`: whole branches of the tree stand in one row, under a mask that shows each token its ancestors only.
`"padded"`: one sequence a row, behind its prompt's cache. `"plain"`: one sequence a row, whole."""
SMALLEST_BUDGET = 64
LARGE, LENGTH = 1 / 4, 0.9
"""A batch that fills this share of the budget is computed as fast as a larger one: groups shorter than this share of
its longest begin another, which is padded less."""


@dataclass(frozen=True)
class Budget:
    """What one forward may hold, as the caller says it; None leaves it to the device."""

    tokens: int | None = None
    """Tokens, cached ones included; halved, as the rows are, whenever memory runs out."""
    rows: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("token_budget", self.tokens), ("batch_size", self.rows)):
            if value is not None and value < 1:
                raise BadValue(f"{name} must be at least 1, got {value}")


@dataclass
class Limits:
    """What may be held at once; it shrinks when memory runs out."""

    tokens: int
    """In one forward, cached ones included."""
    row_length: int
    """A packed row grows up to this length: attention within it is dense, so longer rows cost more than they save."""
    rows: int
    cached: int
    """Tokens whose keys and values are held: of prompts that wait for their rows, of texts that are generated."""
    large: float = LARGE
    """As `LARGE`, of batches of texts that are generated."""
    fixed: bool = False
    """Whether batches of texts stay as they are where memory runs out."""

    @classmethod
    def of(cls, model: Any, budget: Budget) -> Limits:
        """Return the limits to start with."""
        on_gpu = base_of(model).device.type == "cuda"
        tokens = budget.tokens or (16384 if on_gpu else 2048)
        # a GPU takes as long for a step of few texts as for one of many
        cached = max(tokens, min((32 if on_gpu else 8) * tokens, _cache_room(model)))
        return cls(tokens, 512 if on_gpu else 256, budget.rows or 1 << 30, cached, large=1.0 if on_gpu else LARGE)

    def shrunk(self) -> bool:
        """Halve what is held at once; return False where it is small already."""
        if self.tokens <= SMALLEST_BUDGET:
            return False
        self.tokens, self.cached, self.rows = self.tokens // 2, self.cached // 2, max(1, self.rows // 2)
        self.row_length = min(self.row_length, self.tokens)
        return True


def _cache_room(model: Any) -> int:
    """Return how many tokens' keys and values half of the free memory holds, if no heads share them."""
    config, base = text_config(model), base_of(model)
    numbers = 2 * getattr(config, "hidden_size", 0) * getattr(config, "num_hidden_layers", 0)
    return free_bytes(base.device) // 2 // max(1, numbers * base.dtype.itemsize)


def attempted(work: Callable[[], None], shrink: Callable[[], bool]) -> bool:
    """Return whether the work was done; where memory runs out, `shrink` makes the next try smaller, if it can."""
    try:
        work()
        return True
    except Exception as mistake:
        if not ran_out_of_memory(mistake) or not shrink():
            raise
    # outside of the except block, whose traceback would keep the tensors alive
    torch.cuda.empty_cache()
    return False


def longest_first(widths: Sequence[int], limits: Limits, work: Callable[[list[int]], None]) -> None:
    """Hand every place of `widths` to `work`, as many at once as may be held, and half of them where they cannot be.

    Args:
        widths: how many tokens each of them comes to hold.
    """
    left = sorted(range(len(widths)), key=lambda i: -widths[i])

    def halve(n: int) -> bool:
        limits.cached = n // 2 * widths[left[0]]
        return n > 1 and not limits.fixed

    while left:
        batch = next(filled(left, widths.__getitem__, lambda _: 1, limits.cached, limits.rows, limits.large))
        if attempted(partial(work, batch), partial(halve, len(batch))):
            del left[: len(batch)]


def alike_together(keys: Sequence[Hashable], work: Callable[[list[int]], Sequence[T]]) -> list[T]:
    """Return what the work gives of each place, done once for all places that have the same key."""
    groups: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    found: dict[int, T] = {}
    for places in groups.values():
        found |= zip(places, work(places), strict=True)
    return [found[place] for place in range(len(keys))]


def filled(
    items: Sequence[T],
    width: Callable[[T], int],
    n_rows: Callable[[T], int],
    tokens: int,
    rows: int,
    share: float | int = LARGE,
) -> Iterator[list[T]]:
    """Yield the items that go into one forward each: as many as may, unless shorter ones would be padded much.

    Args:
        width, n_rows: of an item; padded, all of a batch are as wide as its widest.
        tokens, rows: what a batch may hold; one item goes alone where it is larger.
        share: of the tokens, from which on shorter items begin another batch.
    """
    batch: list[T] = []
    widest = held = 0
    for item in items:
        own, wider = width(item), max(widest, width(item))
        full = (len(batch) + 1) * wider > tokens or held + n_rows(item) > rows
        large = len(batch) * widest >= tokens * share
        if batch and (full or (large and own < LENGTH * widest)):
            yield batch
            batch, wider, held = [], own, 0
        batch.append(item)
        widest, held = wider, held + n_rows(item)
    if batch:
        yield batch


Group: TypeAlias = tuple[int, ...]
"""Rows of the tree that run in one row of a batch."""


@dataclass(frozen=True)
class Batching:
    """Groups and batches of a tree's rows in one mode."""

    tree: TokenTree
    mode: Mode
    limits: Limits

    @property
    def n_root(self) -> int:
        """How many nodes, which every row begins with, are computed before all others."""
        return 0 if self.mode == "plain" else self.tree.n_root

    def nodes(self, group: Group) -> Int[np.ndarray, " node"]:
        """Return the group's nodes behind the root, each once."""
        return merged_paths([self.tree.paths[row][self.n_root :] for row in group])

    def groups(self, left: set[int]) -> list[Group]:
        """Return the rows that are left in groups, longest first where the order is free."""
        units = [unit for whole in self.tree.units if (unit := tuple(row for row in whole if row in left))]
        if self.mode == "plain":
            return [(row,) for row in sorted(left, key=lambda row: (-len(self.tree.paths[row]), row))]
        if self.mode == "padded":
            return [(row,) for unit in units for row in unit]
        groups: list[Group] = []
        size = 0
        for unit in (part for whole in units for part in self._parts(whole)):
            new = len(self.nodes(unit))
            fits = groups and size + new <= self.limits.row_length
            if fits and len(groups[-1]) + len(unit) <= self.limits.rows:
                groups[-1], size = (*groups[-1], *unit), size + new
            else:
                groups.append(unit)
                size = new
        return sorted(groups, key=lambda group: -len(self.nodes(group)))

    def _parts(self, unit: Group) -> Iterator[Group]:
        """Yield rows of one prompt together, or in parts where they are very many."""
        limit = max(self.limits.row_length, self.tree.rows[unit[0]].split - self.n_root)
        part: Group = ()
        size = 0
        for row in unit:
            own = len(self.tree.rows[row].ids) - self.tree.rows[row].split
            if part and (size + own > limit or len(part) == self.limits.rows):
                yield part
                part, size = (), 0
            part, size = (*part, row), size + own
        yield part

    def cached_together(self, groups: Sequence[Group]) -> list[Group]:
        """Return the first of the groups: those whose prompts' caches may be held at once."""
        size, together = 0, []
        for group in groups:
            size += self.n_root + len(self.nodes(group))
            if together and size > self.limits.cached:
                break
            together.append(group)
        return together

    def batches(self, groups: Sequence[Group]) -> Iterator[list[Group]]:
        """Yield the groups that go into one forward each."""
        limits = self.limits
        return filled(groups, lambda group: self.n_root + len(self.nodes(group)), len, limits.tokens, limits.rows)


def merged_paths(paths: Sequence[np.ndarray]) -> Int[np.ndarray, " node"]:
    """Return the nodes of paths, each once and in order, as they stand in every single path."""
    return paths[0] if len(paths) == 1 else np.unique(np.concatenate(paths))
