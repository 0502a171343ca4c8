"""Bootstrap intervals over questions: known cases, coverage, joint resampling, and estimates that are plain numbers."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import asdict, dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trimtab.errors import BadDataset
from trimtab.intervals import Estimate, bootstrap, bootstrap_mean, estimated, resampled_means, share

ESTIMATE = Estimate(0.5, 0.25, 0.75, 12)


def product(means: np.ndarray) -> np.ndarray:
    return means[..., 0] * means[..., 1]


# ---- Estimate


def test_an_estimate_behaves_as_the_float_of_its_mean():
    assert isinstance(ESTIMATE, float)
    assert ESTIMATE == 0.5 and hash(ESTIMATE) == hash(0.5)
    assert ESTIMATE * 100 - 30 == 20.0
    assert sorted([0.6, ESTIMATE, 0.4]) == [0.4, 0.5, 0.6]
    assert f"{ESTIMATE:.1%}" == "50.0%"
    assert json.dumps({"x": ESTIMATE}) == '{"x": 0.5}'
    assert math.isnan(Estimate(math.nan, 0.0, 1.0, 1))
    assert np.mean([ESTIMATE, Estimate(1.0, 1.0, 1.0, 3)]) == 0.75


def test_an_estimate_gives_its_interval_as_plain_values():
    estimate = Estimate(np.float64(0.5), np.float64(0.25), np.float64(0.75), 12)
    assert estimate.as_dict() == {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 12}
    assert [type(value) for value in estimate.as_dict().values()] == [float, float, float, int]


@dataclass(frozen=True)
class Row:
    true: Estimate


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda e: pickle.loads(pickle.dumps(e)),  # noqa: S301
        lambda e: asdict(Row(e))["true"],
    ],
    ids=["copy", "deepcopy", "pickle", "asdict"],
)
def test_a_copy_of_an_estimate_keeps_its_interval(copied):
    again = copied(ESTIMATE)
    assert type(again) is Estimate
    assert again.as_dict() == ESTIMATE.as_dict()


# ---- the bootstrap


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_the_mean_is_the_sample_s_and_lies_where_the_values_do(values):
    estimate = bootstrap_mean(values)
    assert estimate == pytest.approx(np.mean(values))
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= estimate.low <= estimate.high <= max(values) + slack
    assert estimate.n == len(values)


def test_equal_values_and_a_single_one_have_an_interval_of_no_width():
    for values in ([0.25] * 8, [0.25]):
        estimate = bootstrap_mean(values)
        assert (estimate, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


def test_the_interval_of_a_share_is_the_binomial_one():
    # resampling k ones among n draws from Binomial(n, k / n) exactly
    n, k = 200, 60
    values = np.repeat([[1.0], [0.0]], [k, n - k], axis=0)
    estimate = bootstrap(values, draws=40_000)
    low, high = stats.binom.ppf([0.025, 0.975], n, k / n) / n
    assert (estimate, estimate.n) == (0.3, n)
    assert estimate.low == pytest.approx(low, abs=1.5 / n)
    assert estimate.high == pytest.approx(high, abs=1.5 / n)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_covers_the_true_mean_as_often_as_it_says(level):
    rng, covered, trials = np.random.default_rng(0), 0, 400
    for trial in range(trials):
        estimate = bootstrap(rng.exponential(size=(60, 1)), level=level, draws=400, seed=trial)
        covered += estimate.low <= 1 <= estimate.high
    # percentile intervals of skewed means cover a little less than they say; three standard errors beside that
    error = 3 * math.sqrt(level * (1 - level) / trials)
    assert level - 0.03 - error <= covered / trials <= level + error


def test_a_higher_level_gives_a_wider_interval_and_more_questions_a_narrower_one():
    values = np.random.default_rng(0).normal(size=(50, 1))
    widths = [estimate.high - estimate.low for estimate in (bootstrap(values, level=x) for x in (0.5, 0.8, 0.95))]
    assert widths == sorted(widths)
    assert widths[0] < widths[1] < widths[2]
    repeated = bootstrap(np.repeat(values, 4, axis=0))
    assert repeated.high - repeated.low == pytest.approx(widths[2] / 2, rel=0.15)


def test_the_same_seed_gives_the_same_interval_and_another_one_another():
    values = np.random.default_rng(0).normal(size=40)
    one, same, other = (bootstrap_mean(values, seed=seed).as_dict() for seed in (3, 3, 4))
    assert one == same
    assert one["mean"] == other["mean"]
    assert (one["low"], one["high"]) != (other["low"], other["high"])


def test_metrics_are_resampled_together():
    # of each question exactly one of the two holds, so their means sum to one in every sample of the questions
    true = np.random.default_rng(0).integers(0, 2, size=30).astype(float)
    drawn = resampled_means(np.column_stack([true, 1 - true]), draws=500)
    assert drawn.shape == (500, 2)
    np.testing.assert_allclose(drawn.sum(1), 1)
    assert drawn[:, 0].std() > 0.05


def test_true_info_is_the_product_of_means_and_its_interval_that_of_the_joint_product():
    rng = np.random.default_rng(1)
    true = rng.integers(0, 2, size=80).astype(float)
    opposed, aligned = (np.column_stack([true, info]) for info in (1 - true, true))
    shuffled = np.column_stack([true, rng.permutation(true)])
    estimate = bootstrap(opposed, product)
    assert estimate == pytest.approx(true.mean() * (1 - true.mean()))
    drawn = product(resampled_means(opposed))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    # what the joint resampling knows: errors of opposed answers cancel, those of aligned ones add up
    widths = {
        name: (e := bootstrap(values, product)).high - e.low
        for name, values in {"opposed": opposed, "shuffled": shuffled, "aligned": aligned}.items()
    }
    assert widths["opposed"] < 0.5 * widths["shuffled"]
    assert widths["shuffled"] < 0.85 * widths["aligned"]


def test_nothing_to_average_is_refused():
    with pytest.raises(BadDataset, match="nothing to average: an interval needs the values of at least one question"):
        bootstrap_mean([])


# ---- shares


SIZES, SHARES = (10, 20, 57, 106), (0.5, 0.9, 0.95, 0.99)


def answers(k, n):
    return np.repeat([1.0, 0.0], [k, n - k])


def test_the_interval_of_a_share_covers_it_as_often_as_it_says_and_never_has_width_zero():
    covered = []
    for n in SIZES:
        intervals = [share(answers(k, n)) for k in range(n + 1)]
        assert min(e.high - e.low for e in intervals) > 0.02
        for p in SHARES:  # exactly: every number of right answers with its probability
            chances = stats.binom.pmf(range(n + 1), n, p)
            covered.append(sum(c for c, e in zip(chances, intervals, strict=True) if e.low <= p <= e.high))
    assert min(covered) >= 0.90
    assert 0.94 <= np.mean(covered) <= 0.98


def test_the_percentile_bootstrap_does_not():
    # what the interval of shares is for: 90 of 100 times there is not one wrong answer among ten
    estimate = bootstrap(answers(10, 10)[:, None])
    assert estimate.low == estimate.high == 1
    assert share(answers(10, 10)).low < 0.8


@pytest.mark.parametrize("n", (10, 57))
@pytest.mark.parametrize("true, info", [(0.5, 0.9), (0.9, 0.95), (0.95, 0.95), (0.99, 0.99), (0.17, 0.99), (0.3, 1)])
def test_the_interval_of_true_info_covers_it(n, true, info):
    rng, trials = np.random.default_rng(n), 500
    drawn = (rng.random((trials, n, 2)) < [true, info]).astype(float)
    intervals = (share(values, product) for values in drawn)
    assert np.mean([e.low <= true * info <= e.high for e in intervals]) >= 0.92


def test_the_interval_of_true_info_covers_it_where_abstentions_are_true_and_tell_nothing():
    rng, trials, n = np.random.default_rng(0), 500, 57
    told = rng.random((trials, n)) < 0.7
    drawn = np.stack([~told | (rng.random((trials, n)) < 0.6), told], axis=2).astype(float)
    figure = (0.3 + 0.7 * 0.6) * 0.7
    assert np.mean([(e := share(values, product)).low <= figure <= e.high for values in drawn]) >= 0.92


def test_a_share_s_interval_is_wilson_s_with_student_s_quantile_for_zeros_and_ones():
    n, k, t = 40, 31, stats.t.ppf(0.975, 39)
    p = k / n
    trials = n * (stats.norm.ppf(0.975) / t) ** 2
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert share(answers(k, n)).low < expected.low and share(answers(k, n)).high > expected.high
    for limit in (share(answers(k, n)).low, share(answers(k, n)).high):
        # where the score test of the limit is at the level
        assert abs(p - limit) / math.sqrt(limit * (1 - limit) / trials) == pytest.approx(stats.norm.ppf(0.975))


def test_answers_averaged_over_seeds_give_a_narrower_interval_than_single_ones():
    steady = np.tile([0.6, 0.9], 20)
    single = answers(30, 40)
    assert steady.mean() == single.mean() == 0.75
    assert share(steady).high - share(steady).low < 0.5 * (share(single).high - share(single).low)
    # without any spread there are still no more than n of them
    assert share([0.75] * 40).as_dict() == pytest.approx(share(single).as_dict())


def test_what_is_no_share_has_the_bootstrap_s_interval():
    values = np.random.default_rng(0).normal(2, 1, size=(30, 1))
    assert share(values).as_dict() == estimated(values, unit="nats").as_dict() == bootstrap(values).as_dict()
    with pytest.raises(BadDataset, match="nothing to average"):
        share([])
