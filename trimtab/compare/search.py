"""Which settings a method tries: spread over its space, the middle first, and then beside the best so far."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil, prod
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import qmc

from trimtab.protocols import Knobs, Method, settings_of

SPREAD = 5 / 8
"""The share of the tries that is spread over the space before the rest looks beside the best."""


class Tried(NamedTuple):
    """What is known of a try."""

    knobs: Knobs
    score: float | None
    """Higher is better; None if it failed."""
    within: bool
    """Whether it kept the KL budget."""


@dataclass(frozen=True)
class Search:
    """A method's tries in one fold under one seed. The same scores lead to the same tries."""

    grid: Sequence[Knobs]
    """Every setting of the method, the last knob fastest."""
    shape: tuple[int, ...]
    """How many values each knob has."""
    n: int
    """How many settings are tried."""
    seed: tuple[int, ...]

    @classmethod
    def of(cls, method: Method, trials: int, seed: Sequence[int]) -> Search:
        """Return the search of a method with this many trials, or of its whole space if that has no more settings."""
        grid, shape = settings_of(method), tuple(len(values) for values in method.space.values())
        return cls(grid, shape if prod(shape) == len(grid) else (len(grid),), min(trials, len(grid)), tuple(seed))

    @property
    def _n_spread(self) -> int:
        return self.n if self.n == len(self.grid) else ceil(SPREAD * self.n)

    def decided(self, number: int) -> bool:
        """Return whether a try is the same whatever the tries before it came to."""
        return number < self._n_spread

    def knobs(self, number: int, tried: Sequence[Tried]) -> Knobs:
        """Return the setting of a try, which may depend on those that were tried before."""
        if self.n == len(self.grid):
            return self.grid[number]
        if self.decided(number):
            return self.grid[self._spread(self._n_spread)[number]]
        places = {_key(knobs): place for place, knobs in enumerate(self.grid)}
        taken = [places[_key(t.knobs)] for t in tried]
        scored = [(t.score, place) for t, place in zip(tried, taken, strict=True) if t.score is not None]
        kept = [(t.score, place) for t, place in zip(tried, taken, strict=True) if t.score is not None and t.within]
        free = np.setdiff1d(np.arange(len(self.grid)), taken)
        if not scored:
            return self.grid[int(free[0])]
        # every second one looks beside the best within the budget, since that is a result of its own
        best = max(kept if kept and number % 2 else scored)[1]
        at, free_at, best_at = (self._cells(p) for p in ([place for _, place in scored], free, [best]))
        beside = np.abs(free_at - best_at).sum(1) == 1
        free, free_at = (free[beside], free_at[beside]) if beside.any() else (free, free_at)
        # what the tries so far let expect there: their mean, the nearer ones counting more (Shepard 1968)
        steps = (free_at[:, None] - at[None]) / np.maximum(np.array(self.shape) - 1, 1)
        weights = 1 / (steps**2).sum(-1)
        expected = (weights * np.array([score for score, _ in scored])).sum(1) / weights.sum(1)
        return self.grid[int(free[int(expected.argmax())])]

    def _cells(self, places: Any) -> Any:
        return np.stack(np.unravel_index(np.array(places), self.shape), 1)

    def _spread(self, n: int) -> list[int]:
        """Return n places: the middle, and then a scrambled Halton sequence (Owen 2017) without repetitions."""
        points = qmc.Halton(len(self.shape), rng=np.random.default_rng(self.seed))
        cells = {tuple((size - 1) // 2 for size in self.shape): None}
        while len(cells) < n:
            cells |= {tuple((row * np.array(self.shape)).astype(int)): None for row in points.random(n)}
        return [int(np.ravel_multi_index(cell, self.shape)) for cell in islice(cells, n)]


def _key(knobs: Knobs) -> str:
    return json.dumps(dict(knobs), default=lambda value: value.item() if hasattr(value, "item") else str(value))
