"""Means with intervals over questions (clusters) rather than answers: Wilson's for shares, else the bootstrap."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from trimtab.errors import BadDataset, BadValue


class Estimate(float):
    """A mean that knows its interval: a plain `float` with `.low`, `.high` (95 % unless said) and `.n` clusters."""

    low: float
    high: float
    n: int

    def __new__(cls, mean: float, low: float, high: float, n: int) -> Estimate:
        """Return the estimate; `mean` is what the object is worth as a float."""
        self = super().__new__(cls, mean)
        self.low, self.high, self.n = float(low), float(high), int(n)
        return self

    def __getnewargs__(self) -> tuple[float, float, float, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return what `__new__` needs, so that copies and pickles keep the interval."""
        return float(self), self.low, self.high, self.n

    def as_dict(self) -> dict[str, float]:
        """Return `{"mean", "low", "high", "n"}` for JSON."""
        return {"mean": float(self), "low": self.low, "high": self.high, "n": self.n}


def seeded(seed: int) -> np.random.Generator:
    """Return numpy's generator for a seed; raises `BadValue` for what is no seed."""
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise BadValue(f"a seed must be a whole number of 0 or more, got {seed!r}")
    return np.random.default_rng(seed)


def number_held_out(share: float, n: int, what: str) -> int:
    """Return how many of n questions a test share is; raises `BadDataset` if one side were empty."""
    held = round(share * n) if 0 < share < 1 else 0
    if not 0 < held < n:
        raise BadDataset(
            f"{what}a test share of {share} of {n} questions leaves one side empty; "
            "choose a share between 0 and 1, or give more questions"
        )
    return held


def resampled_means(
    values: Float[np.ndarray, "cluster metric"], *, draws: int = 1000, seed: int = 0
) -> Float[np.ndarray, "draw metric"]:
    """Return the metrics' means over `draws` bootstrap samples of the clusters; all metrics share each sample."""
    n = len(values)
    if n == 0:
        raise BadDataset("nothing to average: an interval needs the values of at least one question")
    return _resamples(n, draws, seed) @ values / n


@functools.lru_cache(maxsize=4)
def _resamples(n: int, draws: int, seed: int) -> Float[np.ndarray, "draw cluster"]:
    """Return how often each cluster is drawn; kept, since all metrics of all settings resample the same questions."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    counts.flags.writeable = False
    return counts


def bootstrap(
    values: Float[np.ndarray, "cluster metric"],
    reduce: Callable[[Float[np.ndarray, "... metric"]], Float[np.ndarray, ...]] = lambda means: means[..., 0],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Return `reduce(means)` with its percentile interval over resampled clusters.

    `reduce` turns the metrics' means into one number, so that products such as True*Info = mean(True) x mean(Info)
    are resampled jointly. Percentile bootstrap: Efron & Tibshirani (1993), section 13.3.
    """
    drawn = reduce(resampled_means(values, draws=draws, seed=seed))
    tail = 100 * (1 - level) / 2
    finite = drawn[np.isfinite(drawn)]  # a share of nothing is no number, and a sample may hold nothing of its whole
    low, high = np.percentile(finite if finite.size else drawn, [tail, 100 - tail])
    return Estimate(float(reduce(values.mean(0))), low, high, len(values))


Reduce: TypeAlias = Callable[[np.ndarray], Any]
"""Turns the means of columns into one number, as `Meter.summary` does."""


def first(means: Float[np.ndarray, "... metric"]) -> Any:
    """Return the first column's mean."""
    return means[..., 0]


def estimated(values: Float[np.ndarray, "cluster metric"], reduce: Reduce = first, *, unit: str = "share") -> Estimate:
    """Return a figure with its 95 % interval: of a share `share`'s, of anything else the bootstrap's."""
    return share(values, reduce) if unit == "share" else bootstrap(values, reduce)


def share(values: Sequence[float] | np.ndarray, reduce: Reduce = first, *, level: float = 0.95) -> Estimate:
    """Return a share, or a product or ratio that lies between 0 and 1, with Wilson's interval (Wilson 1927).

    The number of trials in it is the effective one (Korn & Graubard 1998): as many as would give the figure's own
    variance, which is the jackknife's over clusters, by the square of Student's over the normal quantile. Of zeros and
    ones it is nearly their number; of questions whose answers are averaged over seeds it is more. So no interval has
    width 0, and few or one-sided answers are covered: at least 90 %, 97 % on average, over n of 10, 20, 57 and 106 and
    shares of .5, .9, .95 and .99, where the percentile bootstrap covers as little as 10 %.

    Args:
        values: one number for each cluster, or a row of columns.

    Raises:
        BadDataset: no clusters.
    """
    from scipy.special import ndtri, stdtrit

    rows = np.asarray(values, dtype=np.float64)
    rows = rows[:, None] if rows.ndim == 1 else rows
    n = len(rows)
    if n == 0:
        raise BadDataset("nothing to average: an interval needs the values of at least one question")
    found = float(reduce(rows.mean(0)))
    if not 0 <= found <= 1:  # no share after all, or a share of nothing
        return bootstrap(rows, reduce, level=level)
    z, trials = float(ndtri((1 + level) / 2)), float(n)
    if n > 1:
        without = np.asarray(reduce((rows.sum(0) - rows) / (n - 1)))
        without = without[np.isfinite(without)]
        variance = ((n - 1) / n) ** 2 * float(np.square(without - without.mean()).sum()) if without.size else 0.0
        if 0 < found < 1 and variance <= EXACT and np.ptp(rows, axis=0).any():
            return bootstrap(rows, reduce, level=level)  # columns that make up for one another
        if 0 < found < 1 and variance > EXACT:
            trials = found * (1 - found) / variance
        trials *= (z / float(stdtrit(n - 1, (1 + level) / 2))) ** 2
    middle, beside = found + z**2 / (2 * trials), z * np.sqrt(found * (1 - found) / trials + (z / (2 * trials)) ** 2)
    low, high = ((middle + side * beside) / (1 + z**2 / trials) for side in (-1, 1))
    # rounding must not put the figure outside
    return Estimate(found, min(max(low, 0.0), found), max(min(high, 1.0), found), n)


EXACT = 1e-18
"""A variance below it is rounding."""


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the mean of one number per question with its bootstrap interval."""
    return bootstrap(np.asarray(values, dtype=np.float64)[:, None], seed=seed)
