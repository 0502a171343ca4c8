"""Which settings a method tries: spread over its space, the middle first, and then beside the best so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil, prod
from typing import NamedTuple

import numpy as np
from scipy.stats import qmc

from trimtab.protocols import Knobs, Method, settings_of

SPREAD = 5 / 8
"""The share of the tries that is spread over the space before the rest looks beside the best."""


class Tried(NamedTuple):
    """What is known of a try."""

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

    def knobs(self, tried: Sequence[Tried]) -> Knobs:
        """Return the setting to try after these tries."""
        places: list[int] = []
        for i in range(len(tried) + 1):
            places.append(self._place(places, tried[:i]))
        return self.grid[places[-1]]

    def _place(self, places: Sequence[int], tried: Sequence[Tried]) -> int:
        if self.n == len(self.grid):
            return len(places)
        n_spread = ceil(SPREAD * self.n)
        if len(places) < n_spread:
            return self._spread(n_spread)[len(places)]
        scored = [(t.score, place) for t, place in zip(tried, places, strict=True) if t.score is not None]
        kept = [(t.score, place) for t, place in zip(tried, places, strict=True) if t.score is not None and t.within]
        # every second one looks beside the best within the budget, since that is a result of its own
        among = kept if kept and len(places) % 2 else scored
        free = np.setdiff1d(np.arange(len(self.grid)), places)
        if not among:
            return int(free[0])
        at, free_at = (np.stack(np.unravel_index(np.array(p), self.shape), 1) for p in ([p for _, p in scored], free))
        best = np.array(np.unravel_index(max(among)[1], self.shape))
        beside = np.abs(free_at - best).sum(1) == 1
        free, free_at = (free[beside], free_at[beside]) if beside.any() else (free, free_at)
        # what the tries so far let expect there: their mean, the nearer ones counting more (Shepard 1968)
        steps = (free_at[:, None] - at[None]) / np.maximum(np.array(self.shape) - 1, 1)
        weights = 1 / (steps**2).sum(-1)
        expected = (weights * np.array([score for score, _ in scored])).sum(1) / weights.sum(1)
        return int(free[int(expected.argmax())])

    def _spread(self, n: int) -> list[int]:
        """Return n places: the middle, and then a scrambled Halton sequence (Owen 2017) without repetitions."""
        points = qmc.Halton(len(self.shape), rng=np.random.default_rng(self.seed))
        cells = {tuple((size - 1) // 2 for size in self.shape): None}
        while len(cells) < n:
            cells |= {tuple((row * np.array(self.shape)).astype(int)): None for row in points.random(n)}
        return [int(np.ravel_multi_index(cell, self.shape)) for cell in islice(cells, n)]
