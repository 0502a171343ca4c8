"""Cluster bootstrap with seeds inside, paired sign-flip tests and Holm's correction: by enumeration and theorems."""

from __future__ import annotations

from itertools import product as every

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test

from trimtab.compare.statistics import first, holm, over_draws, paired, paired_each, question_means, spread
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate.figure import SUMMARIES
from trimtab.intervals import share


def columns(*values):
    return {f"q{i}": np.atleast_1d(np.asarray(v, dtype=float)) for i, v in enumerate(values)}


def seeds_of(table):
    """table[seed][question] -> a measurement of one column for every seed."""
    return {s: [measured(**{f"q{i}": [v] for i, v in enumerate(row)})] for s, row in enumerate(table)}


def measured(**rows):
    """item -> columns, as a measurement."""
    return list(rows), np.array([*rows.values()], dtype=float)


def enumerated_p(differences):
    """The sign-flip test written out over all sign patterns."""
    differences = np.asarray(differences, dtype=float)
    seen = abs(differences.mean())
    flips = [abs((differences * signs).mean()) for signs in every((1, -1), repeat=len(differences))]
    return float(np.mean([f >= seen - 1e-12 for f in flips]))


def test_seeds_are_averaged_inside_questions_before_questions_are_resampled():
    table = np.array([[1, 0, 1, 1], [0, 0, 1, 0]])
    got = spread(seeds_of(table))
    assert got.estimate.as_dict() == share(table.mean(0)).as_dict()
    assert got.estimate.n == 4  # questions, not answers
    assert got.between_seeds == pytest.approx(np.std([0.75, 0.25], ddof=1))


def test_more_seeds_of_the_same_questions_do_not_narrow_the_interval():
    row = [1, 0, 1, 1, 0, 1, 0, 0]
    one, ten = spread(seeds_of([row])), spread(seeds_of([row] * 10))
    assert (one.estimate.low, one.estimate.high) == (ten.estimate.low, ten.estimate.high)
    assert one.between_seeds is None
    assert ten.between_seeds == 0


def test_a_question_measured_twice_under_a_seed_counts_once():
    values = {0: [measured(q0=[1], q1=[1]), measured(q0=[0])]}
    assert float(spread(values).estimate) == 0.75
    assert question_means(values)["q0"] == [0.5]


def test_the_product_is_that_of_the_means_and_not_the_mean_of_the_products():
    values = {0: [measured(a=[1, 0], b=[0, 1])]}
    assert float(spread(values, SUMMARIES["product"]).estimate) == 0.25


def test_draws_that_are_all_alike_have_an_interval_with_a_width_if_they_are_shares():
    shares, words = (over_draws([0, 0, 1, 1], [0.0] * 4, unit=unit).estimate for unit in ("share", "words"))
    assert shares.low == 0 and shares.high == share([0.0] * 4).high > 0.4
    assert words.low == words.high == 0  # the control


def test_the_spread_of_draws_between_seeds_is_that_of_the_seeds_means():
    found = over_draws([0, 0, 1, 1], [0.1, 0.3, 0.6, 0.8])
    assert found.between_seeds == pytest.approx(np.std([0.2, 0.7], ddof=1))
    assert over_draws([3, 3], [0.1, 0.3]).between_seeds is None


def test_nothing_measured_is_refused():
    with pytest.raises(BadDataset, match="no question was measured"):
        spread({0: []})


@pytest.mark.parametrize(
    "ours, theirs",
    [([1, 1, 1, 0, 1], [0, 0, 1, 0, 0]), ([0.2, 0.5, 0.9, 0.4], [0.1, 0.7, 0.3, 0.4]), ([1] * 6, [0] * 6)],
)
def test_the_paired_test_is_the_sign_flip_test_over_all_sign_patterns(ours, theirs):
    difference, p = paired(columns(*ours), columns(*theirs))
    assert float(difference) == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert p == pytest.approx(enumerated_p(np.subtract(ours, theirs)))


def test_six_questions_that_all_improve_give_the_smallest_p_there_is():
    assert paired(columns(*[1] * 6), columns(*[0] * 6))[1] == pytest.approx(2 / 2**6)


def test_equal_rows_differ_by_nothing():
    difference, p = paired(columns(1, 0, 1), columns(1, 0, 1))
    assert (float(difference), difference.low, difference.high, p) == (0, 0, 0, 1)


def test_only_shared_questions_are_paired():
    ours, theirs = columns(1, 1, 0), columns(0, 1)
    difference, _ = paired(ours, theirs)
    assert difference.n == 2
    with pytest.raises(BadDataset, match="share no question"):
        paired({"x": np.ones(1)}, theirs)


def test_products_are_tested_by_swapping_whole_questions():
    ours = columns(*[(1, 1), (1, 0), (1, 1), (0, 1)])
    theirs = columns(*[(0, 1), (1, 1), (0, 0), (0, 1)])
    difference, p = paired(ours, theirs, SUMMARIES["product"])
    a, b = np.array(list(ours.values())), np.array(list(theirs.values()))

    def gap(swap):
        swap = np.array(swap)[:, None]
        x, y = np.where(swap, b, a).mean(0), np.where(swap, a, b).mean(0)
        return x[0] * x[1] - y[0] * y[1]

    gaps = [gap(swap) for swap in every((False, True), repeat=4)]
    assert float(difference) == pytest.approx(gaps[0])
    tails = np.mean([g >= gaps[0] - 1e-12 for g in gaps]), np.mean([g <= gaps[0] + 1e-12 for g in gaps])
    assert p == pytest.approx(min(1.0, 2 * min(tails)))


@pytest.mark.parametrize("n, summary", [(30, "mean"), (30, "product"), (9, "product")])
def test_the_p_value_is_that_of_scipys_permutation_test_with_the_same_seed(n, summary):
    ours, theirs = np.random.default_rng(n).random((2, n, 2)) < [[[0.7]], [[0.4]]]
    both, reduce = np.concatenate([ours, theirs]).astype(float), SUMMARIES[summary]

    def statistic(a, b, axis=-1):
        x, y = (reduce(both[side.astype(int)].mean(axis if axis >= 0 else axis - 1)) for side in (a, b))
        return x - y

    options = {"permutation_type": "samples", "vectorized": True, "n_resamples": 999, "rng": np.random.default_rng(5)}
    expected = permutation_test((np.arange(n), np.arange(n) + n), statistic, **options).pvalue
    assert 0.0 < expected < 1.0
    assert paired(columns(*ours), columns(*theirs), reduce, resamples=999, seed=5)[1] == expected


def test_pairs_tested_together_have_the_intervals_and_p_values_that_each_has_alone():
    rng = np.random.default_rng(0)
    mean, product = SUMMARIES["mean"], SUMMARIES["product"]
    pairs = [
        (columns(*rng.random((n, width))), columns(*rng.random((n, width)) + shift), reduce)
        for n, width, reduce, shift in ((40, 1, mean, 0.2), (40, 2, product, 0.1), (7, 1, mean, 0.3), (25, 2, mean, 0))
    ]
    pairs.insert(2, (pairs[0][0], pairs[0][0], mean))  # two that differ nowhere
    told = [(d.as_dict(), p) for d, p in paired_each(pairs, resamples=999)]
    assert told == [(d.as_dict(), p) for d, p in (paired(*pair, resamples=999) for pair in pairs)]
    assert len({p for _, p in told}) == len(pairs)  # the control: each has its own


def test_a_share_of_nothing_is_no_evidence_neither_seen_nor_under_swaps():
    def told(*right):
        return columns(*((value or 0, value is not None) for value in right))

    ratio = SUMMARIES["ratio"]
    difference, p = paired(told(*[1] * 12), told(*[None] * 12), ratio)
    assert np.isnan(float(difference)) and p == 1
    # two of the four ways to swap leave one side without anything, one is as far as what was seen
    assert paired(told(1, None), told(None, 0), ratio)[1] == 1
    assert paired(told(*[1] * 12), told(*[0] * 12), ratio)[1] < 0.01  # the control


def test_what_is_equal_but_for_rounding_is_a_tie():
    tenths = [-4, 4, -4, 3, -4, -1, -2, 4]
    sums = [abs(np.dot(tenths, signs)) for signs in every((1, -1), repeat=8)]  # of whole numbers: exact
    expected = np.mean([s >= abs(sum(tenths)) for s in sums])
    # 0.1 + 0.2 is not 0.3 in binary, and sums in another order differ in their last bits
    assert paired(columns(*[0.1 * t + 0.3 for t in tenths]), columns(*[0.3] * 8))[1] == pytest.approx(expected)


def test_one_question_says_nothing():
    assert paired(columns(1), columns(0))[1] == 1.0


def test_p_values_are_uniform_where_nothing_differs():
    rng = np.random.default_rng(0)
    ps = []
    for trial in range(60):
        data = rng.random((2, 30))
        ps.append(paired(columns(*data[0]), columns(*data[1]), first, resamples=199, seed=trial)[1])
    assert 0.3 < np.mean(ps) < 0.7
    assert np.mean(np.array(ps) <= 0.05) < 0.2


def test_holm_agrees_with_the_example_worked_by_hand():
    # ordered: .005 x 4, .01 x 3, .03 x 2, .04 x 1; then made monotone
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_lies_between_p_and_bonferroni_and_rejects_as_the_step_down_rule_does(ps):
    adjusted = holm(ps)
    for i, p in enumerate(ps):
        assert p <= adjusted[i] <= min(1.0, len(ps) * p) + 1e-12
    assert [adjusted[i] for i in np.argsort(ps, kind="stable")] == sorted(adjusted)
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    rejected = set()
    for rank, i in enumerate(order):
        if (len(ps) - rank) * ps[i] > 0.05:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(adjusted) if p <= 0.05} == rejected


def test_what_is_no_p_value_is_refused():
    with pytest.raises(BadValue, match="between 0 and 1"):
        holm([0.2, 1.5])
