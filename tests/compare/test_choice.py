"""What a comparison chooses among trials, and what it tells the search of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trimtab.compare.worker import Worker, chosen
from trimtab.evaluate.drift import drift_meters
from trimtab.evaluate.multiple_choice import choice_meters

UP, DOWN = choice_meters()[0], drift_meters()[1]


def trial(score: float | None, kl: float | None, status: str = "done") -> dict[str, Any]:
    return {"status": status, "knobs": {"k": 1}, "validation": {"score": score, "kl": kl}}


@pytest.mark.parametrize(
    ("meter", "trials", "best", "within"),
    [
        (UP, [trial(0.5, 0.3), trial(0.7, 0.2), trial(0.6, 0.05)], 1, 2),
        (DOWN, [trial(0.5, 0.3), trial(0.7, 0.2), trial(0.6, 0.05)], 0, 2),
        (UP, [trial(0.7, 0.3), trial(0.7, 0.2), trial(0.7, 0.25)], 1, None),  # equal: the smaller drift
        (UP, [trial(0.7, 0.02), trial(0.7, 0.02)], 0, 0),  # and then the earlier one
        (UP, [trial(None, 0.0), trial(0.1, None), trial(0.9, 0.0, "failed")], 1, 1),
        (UP, [trial(0.9, 0.0, "failed")], None, None),
    ],
)
def test_the_best_trial_and_the_best_within_the_budget(meter, trials, best, within):
    assert chosen(trials, meter, None) == best
    assert chosen(trials, meter, 0.1) == within


@pytest.mark.parametrize(("meter", "score"), [(UP, 0.7), (DOWN, -0.7)])
def test_the_search_is_told_scores_of_which_more_is_better(meter, score):
    worker: Any = SimpleNamespace(job=SimpleNamespace(chooser=meter, design=SimpleNamespace(kl_budget=0.1)))
    told = Worker._known(worker, trial(0.7, 0.2))
    assert (told.score, told.within) == (score, False)
    assert Worker._known(worker, trial(0.7, 0.1)).within
    failed = Worker._known(worker, {"status": "failed", "knobs": {}})
    assert failed.score is None
