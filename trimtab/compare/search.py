"""Which settings a method tries: the middle of its space, a step along two knobs, and then where most is expected."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from math import prod
from typing import Any, NamedTuple

import numpy as np

from trimtab.protocols import Knobs, Method, settings_of

SEARCH = "middle, then a step along two knobs, then a Gaussian process with a length for each knob"
"""What a run's record calls this search: another one would go on otherwise from the same tries."""
FIRST = 3
"""Tries that wait for no other one's score."""
DRAWS = 256
"""Draws of what is not known: how much each knob does, and over which length."""
LENGTHS = (0.15, 3.0)
"""Between which lengths they are drawn (evenly on a log scale), as shares of a knob's range."""
MAIN = 0.9
"""The share of a score's variance that is the sum of what each knob does by itself; how it is divided is drawn."""
NOISE = 0.01
"""The share of it that is noise, besides."""
BOLD = 0.5
"""Standard deviations above the expected score that a setting is tried for."""


class Tried(NamedTuple):
    """What is known of a try."""

    knobs: Knobs
    score: float | None
    """Higher is better; None if it failed."""
    within: bool
    """Whether it kept the KL budget."""


@dataclass(frozen=True)
class Search:
    """A method's tries in one fold under one seed. The same scores lead to the same tries.

    After the first ones a Gaussian process over the places of the values in their knobs says what to expect of the
    settings that are left, and the one with the highest upper bound is tried (GP-UCB, Srinivas et al. 2010). Its kernel
    is a sum of one for each knob and, with less weight, their product (Duvenaud et al. 2011), so that what a knob does
    is learned wherever the others stand. Which knobs matter and how fast scores change along them is not known: that is
    drawn, and each draw counts by its likelihood.
    """

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

    def decided(self, number: int) -> bool:
        """Return whether a try is the same whatever the tries before it came to."""
        return self.n == len(self.grid) or number < min(FIRST, self.n)

    def knobs(self, number: int, tried: Sequence[Tried]) -> Knobs:
        """Return the setting of a try, which may depend on those that were tried before."""
        if self.n == len(self.grid):
            return self.grid[number]
        if self.decided(number):
            return self.grid[self._first()[number]]
        places = {_key(knobs): place for place, knobs in enumerate(self.grid)}
        taken = [places[_key(t.knobs)] for t in tried]
        free = np.setdiff1d(np.arange(len(self.grid)), taken)
        scored = [(place, t.score, t.within) for place, t in zip(taken, tried, strict=True) if t.score is not None]
        if not scored:
            return self.grid[int(free[0])]
        at, scores, within = (np.array(column) for column in zip(*scored, strict=True))
        # every second one seeks the best within the budget, which is a result of its own
        if within.any() and number % 2 == 0:
            scores = np.where(within, scores, scores.min())
        return self.grid[int(free[self._promise(at, scores, free, number).argmax()])]

    def _promise(self, at: Any, scores: Any, free: Any, number: int) -> Any:
        """Return how high each of the free places may lie above the mean of the scores, in their deviations."""
        rng, d = np.random.default_rng([*self.seed, number]), len(self.shape)
        found = (scores - scores.mean()) / (scores.std() or 1)
        steps = [abs(self._at(some)[:, None] - self._at(at)) for some in (at, free)]
        lengths, shares = (
            np.exp(rng.uniform(np.log(LENGTHS[0]), np.log(LENGTHS[1]), (DRAWS, d))),
            rng.dirichlet(np.ones(d), DRAWS),
        )
        likely, high = [], []
        for some in np.split(np.arange(DRAWS), 16):  # all at once, a large space would fill the memory
            ours, theirs = (_alike(step, lengths[some], shares[some]) for step in steps)
            root = np.linalg.cholesky(ours + NOISE * np.eye(len(at)))
            told, reach = np.linalg.solve(root, found[None, :, None]), np.linalg.solve(root, theirs.transpose(0, 2, 1))
            likely.append(-(told**2).sum((1, 2)) / 2 - np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1))
            high.append((told * reach).sum(1) + BOLD * np.sqrt(np.maximum(1 - (reach**2).sum(1), 0)))
        weights = np.exp(np.concatenate(likely) - np.max(likely))
        # settings that promise the same are tried in an order that the seed gives
        return weights @ np.concatenate(high) / weights.sum() + 1e-9 * rng.random(len(free))

    def _at(self, places: Any) -> Any:
        """Return where settings stand in each knob's values, from 0 to 1."""
        return np.stack(np.unravel_index(places, self.shape), 1) / np.maximum(np.array(self.shape) - 1, 1)

    def _first(self) -> list[int]:
        """Return the middle, and what differs from it in one knob, by the widest gap among the values tried."""
        rng, middle = np.random.default_rng(self.seed), [(size - 1) // 2 for size in self.shape]
        cells = [middle]
        knobs = rng.permutation([knob for knob, size in enumerate(self.shape) if size > 1])
        for knob in islice(cycle(knobs), min(FIRST, self.n) - 1):
            tried = {-1, self.shape[knob], *(cell[knob] for cell in cells)}
            gaps = np.array([min(abs(value - other) for other in tried) for value in range(self.shape[knob])])
            value = int(rng.choice(np.flatnonzero(gaps == gaps.max())))
            cells.append([*middle[:knob], value, *middle[knob + 1 :]])
        return [int(np.ravel_multi_index(cell, self.shape)) for cell in cells]


def _alike(steps: Any, lengths: Any, shares: Any) -> Any:
    """Return each draw's kernel of two sets of places: Matérn 5/2 (Rasmussen & Williams 2006, 4.17) by knob."""
    r = np.sqrt(5) * steps / lengths[:, None, None]
    by_knob = (1 + r + r**2 / 3) * np.exp(-r)
    return MAIN * (by_knob * shares[:, None, None]).sum(-1) + (1 - MAIN) * by_knob.prod(-1)


def _key(knobs: Knobs) -> str:
    return json.dumps(dict(knobs), default=lambda value: value.item() if hasattr(value, "item") else str(value))
