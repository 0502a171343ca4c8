"""Means with bootstrap intervals, resampling questions (clusters) rather than answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

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


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the mean of one number per question with its bootstrap interval."""
    return bootstrap(np.asarray(values, dtype=np.float64)[:, None], seed=seed)
