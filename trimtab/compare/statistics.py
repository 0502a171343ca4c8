"""Intervals over questions, spread between seeds, and paired tests with their correction for many comparisons."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from trimtab.errors import BadDataset, BadValue
from trimtab.intervals import Estimate, Reduce, bootstrap, estimated, first

Measurement: TypeAlias = tuple[Sequence[str], Float[np.ndarray, "_ column"]]
"""The items of one measurement, and their columns."""
Values: TypeAlias = Mapping[int, Sequence[Measurement]]
"""seed -> its measurements, such as one for every fold."""
Means: TypeAlias = Mapping[str, Float[np.ndarray, " column"]]
"""Item -> its columns, averaged over its measurements."""


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


def moved(row: Means, other: Means, reduce: Reduce = first, *, sign: int = 1) -> Moved:
    """Return which of the questions that both rows have moved from the other row to this one, and which way.

    Args:
        sign: -1 where less is better.

    Raises:
        BadDataset: they share no question.
    """
    questions, ours, theirs = _shared(row, other)
    change = sign * (reduce(ours) - reduce(theirs))
    right, wrong = (tuple(compress(questions, way * change > EQUAL)) for way in (1, -1))
    return Moved(right, wrong, len(questions))


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


def spread(values: Values, reduce: Reduce = first, *, unit: str = "share") -> Spread:
    """Return a metric's interval and its spread between seeds.

    Args:
        values: of every seed. A question may have been measured several times under one (a fixed test set, once per
            fold).
        reduce: what the columns' means become.
        unit: of the figure; a share has another interval than the rest.

    Raises:
        BadDataset: there are no measurements.
    """
    seeds = [_averaged(measured) for measured in values.values() if measured]
    if not seeds:
        raise BadDataset("nothing to average: no question was measured")
    per_seed = [float(reduce(means.mean(0))) for _, means in seeds]
    return Spread(
        estimated(_averaged(seeds)[1], reduce, unit=unit),
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


def question_means(values: Values) -> dict[str, Float[np.ndarray, " column"]]:
    """Return each question's columns, averaged first within a seed and then over the seeds that measured it."""
    seeds = [_averaged(measured) for measured in values.values() if measured]
    return dict(zip(*_averaged(seeds), strict=True)) if seeds else {}


def _averaged(measured: Sequence[Measurement]) -> Measurement:
    """Return all items of several measurements, each one's columns averaged over those that it stands in."""
    items = [item for names, _ in measured for item in names]
    place = {item: i for i, item in enumerate(dict.fromkeys(items))}
    at = np.array([place[item] for item in items])
    each, n = np.concatenate([columns for _, columns in measured]), np.bincount(at)
    return list(place), np.add.reduceat(each[np.argsort(at, kind="stable")], np.cumsum(n) - n) / n[:, None]


def paired(
    row: Means, baseline: Means, reduce: Reduce = first, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Estimate, float]:
    """Return (difference, p) of a row and the baseline over the questions that both have.

    The test swaps the two rows' values question by question (with one column this flips the sign of the
    difference; Good 2005, section 3.2) and is exact where there are no more ways to swap them than `resamples`.
    `reduce` sees the swapped means, so that products are tested as they are defined. p is twice the smaller tail; of
    random swaps, what was seen counts as one of them (Phipson & Smyth 2010).

    Raises:
        BadDataset: they share no question.
    """
    return paired_each([(row, baseline, reduce)], resamples=resamples, seed=seed)[0]


def paired_each(
    pairs: Sequence[tuple[Means, Means, Reduce]], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[tuple[Estimate, float]]:
    """Return what `paired` says of each of several (row, baseline, reduce), all at once.

    Pairs that share equally many questions swap them in the same ways.
    """
    sides = [_Sides(*_shared(row, baseline)[1:], reduce) for row, baseline, reduce in pairs]
    p_values: dict[int, float] = {}
    for n in {len(one.ours) for one in sides}:
        places = [i for i, one in enumerate(sides) if len(one.ours) == n]
        found = _sign_flip([sides[i] for i in places], _swaps(n, resamples, seed))
        p_values |= zip(places, found, strict=True)
    return [(one.difference(), p_values[i]) for i, one in enumerate(sides)]


class _Sides(NamedTuple):
    """Two rows on the questions that both have, and what the means of their columns become."""

    ours: Float[np.ndarray, "question column"]
    theirs: Float[np.ndarray, "question column"]
    reduce: Reduce

    def difference(self) -> Estimate:
        """Return ours minus theirs with its interval."""
        reduce, width = self.reduce, self.ours.shape[1]
        both = np.concatenate([self.ours, self.theirs], axis=1)
        return bootstrap(both, lambda means: reduce(means[..., :width]) - reduce(means[..., width:]))

    def swapped(self, more: Float[np.ndarray, "*swap column"]) -> Any:
        """Return the difference where swaps add so much to the sums of our columns, and take it from theirs."""
        ours, theirs, n = self.ours.sum(0), self.theirs.sum(0), len(self.ours)
        sums = ours + more
        return np.asarray(self.reduce(sums / n) - self.reduce((ours + theirs - sums) / n))

    def tails(self, more: Float[np.ndarray, "swap column"]) -> tuple[int, int]:
        """Return under how many swaps the difference is no higher, and no lower, than what was seen."""
        seen, null = self.swapped(np.zeros(self.ours.shape[1])), self.swapped(more)
        # sums in another order: what is equal but for rounding is equal
        near = EQUAL * (abs(self.reduce(self.ours.mean(0))) + abs(self.reduce(self.theirs.mean(0))))
        # what is no number (a share of nothing) is no evidence: it counts in both tails
        return int(np.count_nonzero(~(null > seen + near))), int(np.count_nonzero(~(null < seen - near)))


def _sign_flip(several: Sequence[_Sides], swaps: Bool[np.ndarray, "swap question"]) -> list[float]:
    """Return each one's p under the same swaps of questions."""
    change = np.concatenate([one.theirs - one.ours for one in several], axis=1)
    ends = np.cumsum([one.ours.shape[1] for one in several])[:-1]
    tails = np.zeros((len(several), 2), dtype=int)
    # in parts, whose copies as numbers are small
    for part in np.array_split(swaps, 1 + len(swaps) // 1000):
        more = np.split(part @ change, ends, axis=1)
        tails += [one.tails(sums) for one, sums in zip(several, more, strict=True)]
    drawn = len(swaps) < 2 ** swaps.shape[1]
    return np.minimum(1.0, 2 * (tails.min(1) + drawn) / (len(swaps) + drawn)).tolist()


def _shared(
    row: Means, other: Means
) -> tuple[list[str], Float[np.ndarray, "question column"], Float[np.ndarray, "question column"]]:
    """Return the questions that two rows both have, and each row's columns of them."""
    questions = [question for question in row if question in other]
    if not questions:
        raise BadDataset("the two rows share no question: there is nothing to pair")
    ours, theirs = (np.concatenate([side[q] for q in questions]).reshape(len(questions), -1) for side in (row, other))
    return questions, ours, theirs


EQUAL = 1e-12
"""Differences closer than this share of the figures are the same one."""


@functools.lru_cache(maxsize=4)
def _swaps(n: int, resamples: int, seed: int) -> Bool[np.ndarray, "swap question"]:
    """Return which of n questions are swapped: in every way if there are few, else at random.

    Kept, since all tests of all rows swap the same questions. The draws are those of scipy's `permutation_test`.
    """
    if 2**n <= resamples:
        return (np.arange(2**n)[:, None] >> np.arange(n)) % 2 > 0
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(2**32, size=n, dtype=np.uint32) % 2 == 0 for _ in range(resamples)])


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
