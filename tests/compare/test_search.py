"""The tries of a method: the middle first, a step along two knobs, then where most is expected."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from trimtab.compare.search import Search, Tried
from trimtab.protocols import Method

SPACE = {"top_k": (4, 8, 16, 32, 64), "alpha": (1, 2, 4, 8, 15, 30), "rate": (1, 3, 10)}


@dataclass(frozen=True)
class Spaced(Method):
    name: str = "spaced"
    space: dict = field(default_factory=lambda: SPACE)

    def fit(self, model, tokenizer, train, *, knobs=None, seed=0):
        raise NotImplementedError


def tries(search, score, within=lambda knobs: True):
    """Return the settings that a search tries where a setting's score is this function's."""
    settings, tried = [], []
    for number in range(search.n):
        settings.append(dict(search.knobs(number, tried)))
        tried.append(Tried(settings[-1], score(settings[-1]), within(settings[-1])))
    return settings


def surface(seed):
    """Return a smooth score over the space with one peak, and the best that there is."""
    drawn = np.random.default_rng(seed)
    peak = {knob: drawn.uniform(0, len(values) - 1) for knob, values in SPACE.items()}

    def score(knobs):
        off = [(SPACE[k].index(v) - peak[k]) / (len(SPACE[k]) - 1) for k, v in knobs.items()]
        return float(np.exp(-3 * np.square(off).sum()))

    return score, max(score(dict(knobs)) for knobs in Spaced().grid)


def test_a_space_that_is_no_larger_is_tried_whole_and_in_order():
    search = Search.of(Spaced(space={"a": (1, 2), "b": (3, 4, 5)}), 8, (0, 0))
    assert tries(search, lambda knobs: 0.5) == list(search.grid)


def test_one_setting_is_one_try_and_more_tries_than_settings_try_each_once():
    assert tries(Search.of(Spaced(space={"a": (1,)}), 8, (0, 0)), lambda knobs: 0.5) == [{"a": 1}]
    assert len(tries(Search.of(Spaced(space={"a": (1, 2, 3)}), 99, (0, 0)), lambda knobs: 0.5)) == 3
    assert tries(Search.of(Spaced(space={}), 8, (0, 0)), lambda knobs: 0.5) == [{}]


def test_the_middle_comes_first_and_nothing_is_tried_twice():
    search = Search.of(Spaced(), 20, (0, 1))
    found = tries(search, lambda knobs: -knobs["alpha"])
    assert found[0] == {"top_k": 16, "alpha": 4, "rate": 3}
    assert len({tuple(knobs.items()) for knobs in found}) == 20


def test_the_same_scores_lead_to_the_same_tries_and_folds_differ():
    score, _ = surface(3)
    one, again, other = (tries(Search.of(Spaced(), 8, seed), score) for seed in ((0, 0), (0, 0), (0, 1)))
    assert one == again
    assert one[0] == other[0] and one != other


def test_it_comes_nearer_to_the_best_than_as_many_random_settings(n=8):
    ours, by_chance = [], []
    for seed in range(20):
        score, best = surface(seed)
        ours.append(best - max(map(score, tries(Search.of(Spaced(), n, (seed,)), score))))
        drawn = np.random.default_rng(seed).choice(len(Spaced().grid), n, replace=False)
        by_chance.append(best - max(score(Spaced().grid[i]) for i in drawn))
    assert np.mean(ours) < 0.6 * np.mean(by_chance)


def test_the_best_overall_and_the_best_within_the_budget_are_sought_in_turn():
    search = Search.of(Spaced(), 16, (5,))
    found = tries(search, lambda knobs: float(knobs["alpha"]), lambda knobs: knobs["alpha"] <= 4)
    assert max(knobs["alpha"] for knobs in found) == 30
    assert all(knobs["alpha"] <= 4 for knobs in found[4::2]) and all(knobs["alpha"] > 4 for knobs in found[5::2])


@pytest.mark.parametrize("best", [0, 2])
def test_a_place_where_nothing_happens_at_any_strength_is_left(best):
    """One of three layers carries it, as with contrastive activation addition; at most strengths it breaks."""
    space, rises = {"layer": (0, 1, 2), "alpha": (0.25, 0.5, 1, 2, 4, 8)}, (0.2, 0.3, 0.4, 0.5, 0.0, 0.0)
    for seed in range(10):
        search = Search.of(Spaced(space=space), 8, (seed,))
        found = tries(search, lambda k: rises[space["alpha"].index(k["alpha"])] if k["layer"] == best else 0.15)
        assert {"layer": best, "alpha": 2} in found, seed


def test_tries_that_failed_are_passed_over():
    found = tries(Search.of(Spaced(), 8, (1,)), lambda knobs: None if knobs["rate"] == 10 else 1.0 / knobs["alpha"])
    assert len(found) == 8
    nothing = tries(Search.of(Spaced(), 8, (1,)), lambda knobs: None)
    assert len({tuple(knobs.items()) for knobs in nothing}) == 8
