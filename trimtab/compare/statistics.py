"""Intervals over questions, spread between seeds, and paired tests with their correction for many comparisons."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from trimtab.errors import BadDataset, BadValue
from trimtab.intervals import Estimate, Reduce, bootstrap, estimated, first

Values: TypeAlias = dict[int, dict[str, list[list[float]]]]
"""seed -> item -> its measurements, each a list of columns."""


@dataclass(frozen=True)
class Spread:
    """One metric of one row: its interval over questions, and apart from it the spread between seeds."""

    estimate: Estimate
    """Mean with a 95 % interval over questions, their repetitions (seeds) averaged inside."""
    between_seeds: float | None
    """Standard deviation (ddof 1) of the seeds' means; None with one seed."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**self.estimate.as_dict(), "between_seeds": self.between_seeds}


RESAMPLES = 9999
"""Random swaps of a sign-flip test, where there are more ways to swap than that."""


@dataclass(frozen=True)
class Moved:
    """The questions on which two rows differ, by the way that is better."""

    right: tuple[str, ...]
    wrong: tuple[str, ...]
    n: int
    """All questions; those that did not move are the rest."""

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of questions that moved the right way, the wrong way, and not at all."""
        right, wrong = len(self.right), len(self.wrong)
        return right / self.n, wrong / self.n, (self.n - right - wrong) / self.n


def moved(
    row: Mapping[str, Float[np.ndarray, " metric"]],
    other: Mapping[str, Float[np.ndarray, " metric"]],
    reduce: Reduce = first,
    *,
    sign: int = 1,
) -> Moved:
    """Return which of the questions that both rows have moved from the other row to this one, and which way.

    Args:
        sign: -1 where less is better.

    Raises:
        BadDataset: they share no question.
    """
    shared = _shared(row, other)
    change = {q: sign * float(reduce(row[q]) - reduce(other[q])) for q in shared}
    right, wrong = (tuple(q for q in shared if way * change[q] > EQUAL) for way in (1, -1))
    return Moved(right, wrong, len(shared))


@dataclass(frozen=True)
class PairedDifference:
    """A row's difference to the baseline on the questions that both answered."""

    difference: Estimate
    """Row minus baseline, with a 95 % interval over questions."""
    p: float
    """Two-sided sign-flip test over questions."""
    p_holm: float
    """`p` after Holm's correction over the rows of the table (see `holm`)."""
    n: int
    """Questions compared."""
    moved: Moved | None = None
    """Which questions moved, and which way; None where it was not asked."""
    resamples: int = RESAMPLES
    """Random swaps of the test."""

    @property
    def floor(self) -> float:
        """The smallest p that the test could have given: 0 where it is exact."""
        return 2 / (self.resamples + 1) if 2**self.n > self.resamples else 0.0

    @property
    def at_floor(self) -> bool:
        """Whether p is as small as the test can say, and may be smaller."""
        return self.p <= self.floor

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "difference": self.difference.as_dict(), "p_floor": self.floor}


def spread(
    values: Mapping[int, Mapping[str, Sequence[Sequence[float]]]], reduce: Reduce = first, *, unit: str = "share"
) -> Spread:
    """Return a metric's interval and its spread between seeds.

    Args:
        values: seed -> question -> its measurements, each a list of columns. A question may have been measured
            several times under one seed (a fixed test set, once per fold).
        reduce: what the columns' means become.
        unit: of the figure; a share has another interval than the rest.

    Raises:
        BadDataset: there are no measurements.
    """
    by_question = question_means(values)
    if not by_question:
        raise BadDataset("nothing to average: no question was measured")
    per_seed = [float(reduce(np.array(list(_means(rows).values())).mean(0))) for rows in values.values() if rows]
    return Spread(
        estimated(np.array(list(by_question.values())), reduce, unit=unit),
        float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None,
    )


def over_draws(seeds: Sequence[int], values: Sequence[float], *, unit: str = "share") -> Spread:
    """Return the mean of a random control's draws with its interval over draws, and its spread between seeds.

    Args:
        seeds: of each draw, the seed under which it was made.
        values: one number per draw, such as its share of true answers.
        unit: of the number; a share has another interval than the rest.
    """
    by_seed: dict[int, list[float]] = {}
    for seed, value in zip(seeds, values, strict=True):
        by_seed.setdefault(seed, []).append(value)
    means = [float(np.mean(drawn)) for drawn in by_seed.values()]
    between = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return Spread(estimated(np.array(values)[:, None], unit=unit), between)


def question_means(
    values: Mapping[int, Mapping[str, Sequence[Sequence[float]]]],
) -> dict[str, Float[np.ndarray, " metric"]]:
    """Return each question's columns, averaged first within a seed and then over the seeds that measured it."""
    found: dict[str, list[np.ndarray]] = {}
    for rows in values.values():
        for question, mean in _means(rows).items():
            found.setdefault(question, []).append(mean)
    return _means(found)


def _means(rows: Mapping[str, Sequence[Any]]) -> dict[str, Float[np.ndarray, " metric"]]:
    """Return each question's columns, averaged over its measurements, all at once."""
    if not rows:
        return {}
    each = np.array([columns for measured in rows.values() for columns in measured], dtype=np.float64)
    n = np.array([len(measured) for measured in rows.values()])
    return dict(zip(rows, np.add.reduceat(each, np.cumsum(n) - n) / n[:, None], strict=True))


def paired(
    row: Mapping[str, Float[np.ndarray, " metric"]],
    baseline: Mapping[str, Float[np.ndarray, " metric"]],
    reduce: Reduce = first,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Estimate, float]:
    """Return (difference, p) of a row and the baseline over the questions that both have.

    The test swaps the two rows' values question by question (with one column this flips the sign of the
    difference; Good 2005, section 3.2) and is exact where there are no more ways to swap them than `resamples`.
    `reduce` sees the swapped means, so that products are tested as they are defined. p is twice the smaller tail; of
    random swaps, what was seen counts as one of them (Phipson & Smyth 2010).

    Raises:
        BadDataset: they share no question.
    """
    shared = _shared(row, baseline)
    ours, theirs = (np.array([side[q] for q in shared]) for side in (row, baseline))
    width = ours.shape[1]
    difference = bootstrap(
        np.concatenate([ours, theirs], axis=1), lambda means: reduce(means[..., :width]) - reduce(means[..., width:])
    )
    if np.array_equal(ours, theirs):
        return difference, 1.0
    n, swaps = len(shared), _swaps(len(shared), resamples, seed)
    change, total = theirs - ours, ours.sum(0) + theirs.sum(0)
    # in parts, whose copies as numbers are small
    sums = ours.sum(0) + np.concatenate([part @ change for part in np.array_split(swaps, 1 + len(swaps) // 1000)])
    seen, null = (np.asarray(reduce(s / n) - reduce((total - s) / n)) for s in (ours.sum(0), sums))
    # sums in another order: what is equal but for rounding is equal
    near = EQUAL * (abs(reduce(ours.mean(0))) + abs(reduce(theirs.mean(0))))
    drawn = len(swaps) < 2**n
    tails = [np.count_nonzero(side) + drawn for side in (null <= seen + near, null >= seen - near)]
    return difference, float(min(1.0, 2 * min(tails) / (len(swaps) + drawn)))


def _shared(row: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    shared = [question for question in row if question in other]
    if not shared:
        raise BadDataset("the two rows share no question: there is nothing to pair")
    return shared


EQUAL = 1e-12
"""Differences closer than this share of the figures are the same one."""


@functools.lru_cache(maxsize=4)
def _swaps(n: int, resamples: int, seed: int) -> Bool[np.ndarray, "swap question"]:
    """Return which of n questions are swapped: in every way if there are few, else at random.

    Kept, since all tests of all rows swap the same questions. The draws are those of scipy's `permutation_test`.
    """
    if 2**n <= resamples:
        return (np.arange(2**n)[:, None] >> np.arange(n)) % 2 > 0
    rng, order = np.random.default_rng(seed), np.tile(np.arange(2, dtype=np.int8), (n, 1))
    return np.stack([rng.permuted(order, axis=-1)[:, 0] > 0 for _ in range(resamples)])


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted by Holm's step-down procedure (Holm 1979), in the order given.

    Rejecting those that are at most a level keeps the chance of any false rejection at that level.

    Raises:
        BadValue: a p-value outside 0 to 1.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise BadValue(f"p-values must lie between 0 and 1, got {list(p_values)}")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
