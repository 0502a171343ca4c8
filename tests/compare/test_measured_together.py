"""Edits of a unit are measured together, so that what they share is computed once; each fails for itself."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch

from tests.comparing import SpyMethod, tiny_run
from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.compare import RandomTries, bench, draws
from trimtab.compare.bench import each
from trimtab.edits.vectors import HeadShift
from trimtab.errors import BadValue
from trimtab.evaluate.table import measurements_of
from trimtab.protocols import Findings
from trimtab.steer import CAA, ITI, RandomDirection, sites

ONE = {"seeds": (0,), "n": 12}


def halves(numbers: list[int]) -> list[float]:
    return [12 / number for number in numbers]


def test_what_fails_on_all_is_done_one_by_one_and_what_fails_alone_says_why() -> None:
    assert each(halves, [1, 2, 3]) == [12, 6, 4]
    first, wrong, last = each(halves, [4, 0, 6])
    assert (first, last) == (3, 2) and "division by zero" in str(wrong)
    assert each(halves, []) == []


@dataclass(frozen=True)
class TrainedShift(HeadShift):
    """Says that it was trained."""

    losses = (2.0, 1.0)


class Trained(SpyMethod):
    """Gives edits that were trained."""

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Any = None, seed: int = 0) -> HeadShift:
        made = super().fit(model, tokenizer, train, knobs=knobs, seed=seed)
        return TrainedShift(made.heads, made.directions, made.sigma, made.strength, name="Trained")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Collect the names of the edits of every measurement."""
    seen: list[list[str]] = []

    def measured(model: Any, tokenizer: Any, items: Any, edits: Any, meters: Any, **how: Any) -> Any:
        seen.append([f"{edit.name} {edit.strength:g}" for edit in edits])
        return measurements_of(model, tokenizer, items, edits, meters, **how)

    monkeypatch.setattr(bench, "measurements_of", measured)
    return seen


def test_the_tries_of_a_fold_are_measured_at_once_and_so_are_the_draws_of_a_control(
    asked, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(draws, "TOGETHER", 3)
    methods = [ITI(top_ks=(2,), alphas=(1, 4)), RandomDirection(draws=4)]
    tiny_run(tmp_path / "run", methods, **ONE)
    tries = [len(names) for names in asked if names[0].startswith("ITI")]
    drawn = [len(names) for names in asked if names[0].startswith("Random")]
    assert tries[::2] == [2, 2]  # in each fold, and then what was chosen of them
    assert drawn == [3, 1, 3, 1]


def test_what_was_trained_is_measured_and_recorded_before_the_next_is_trained(asked, tmp_path) -> None:
    tiny_run(tmp_path / "run", {"Trained": Trained()}, trials=3, **ONE)
    assert [len(names) for names in asked if "Trained" in names[0]].count(1) >= 6  # three tries in two folds


def test_an_edit_that_cannot_be_measured_takes_no_other_with_it(monkeypatch, tmp_path) -> None:
    expected = tiny_run(tmp_path / "expected", [SpyMethod()], trials=3, **ONE)
    plain, wrong = bench.measurements_of, random_shift(tiny_model()).scaled(2.0).strength

    def measured(model: Any, tokenizer: Any, items: Any, edits: Any, meters: Any, **how: Any) -> Any:
        if any(edit.strength == wrong for edit in edits):
            raise BadValue("strength 2 cannot be measured")
        return plain(model, tokenizer, items, edits, meters, **how)

    monkeypatch.setattr(bench, "measurements_of", measured)
    found = tiny_run(tmp_path / "run", [SpyMethod()], trials=3, **ONE)
    for one, other in zip(found.trials, expected.trials, strict=True):
        if one["knobs"].get("strength") == 2.0:
            assert one["status"] == "failed" and one["why"] == "strength 2 cannot be measured"
        else:
            assert one.get("validation") == other.get("validation")


def test_a_control_takes_the_edit_that_was_chosen_without_making_it_again(monkeypatch, tmp_path) -> None:
    made: list[int] = []
    plain = ITI.fitter_with

    def fitter(self: ITI, *given: Any, **options: Any) -> Any:
        made.append(1)
        return plain(self, *given, **options)

    monkeypatch.setattr(ITI, "fitter_with", fitter)
    methods = [ITI(top_ks=(2,), alphas=(1, 4)), RandomDirection(draws=2)]
    one = tiny_run(tmp_path / "run", methods, **ONE)
    assert len(made) == 2  # once in each fold
    # the control of that: another process makes it again, and draws the same
    for record in (tmp_path / "run" / "records").glob("random*/*.json"):
        record.unlink()
    again = tiny_run(tmp_path / "run", methods, **ONE)
    assert len(made) == 4
    assert [row.draws for row in again.rows()] == [row.draws for row in one.rows()]


def test_methods_that_read_the_same_sites_of_a_fold_share_one_capture(monkeypatch, tmp_path) -> None:
    read: list[str] = []
    plain = sites.capture_heads

    def capture(*given: Any, **options: Any) -> Any:
        read.append(options["site"])
        return plain(*given, **options)

    monkeypatch.setattr(sites, "capture_heads", capture)
    mean, weights = (ITI(direction=d, top_ks=(2,), alphas=(1, 4)) for d in ("mass_mean", "probe"))
    methods = [mean, weights, CAA(ranks=(1,), alphas=(1,)), RandomTries(mean)]
    together = tiny_run(tmp_path / "run", methods, **ONE)
    assert read == ["heads"] * 2 + ["residual"] * 2 + ["heads"] * 2 + ["residual"] * 2  # two parts of each fold
    for method in methods[:2]:
        alone = tiny_run(tmp_path / method.direction, [method], **ONE)
        one, other = (run.row(method.name) for run in (alone, together))
        assert (one.metrics, one.settings) == (other.metrics, other.settings)


def test_what_is_shared_is_only_what_is_the_same() -> None:
    model, tokenizer, findings = tiny_model("llama"), tiny_tokenizer(), Findings()
    train, others = tiny_questions(8), tiny_questions(14).select(range(6, 14))
    knobs = {"top_k": 2, "alpha": 1}
    told: list[HeadShift] = []
    for method, questions, seed in product((ITI(), ITI(direction="probe"), ITI(format="iti")), (train, others), (0, 1)):
        shared: Any = method.fitter_with(findings, model, tokenizer, questions, seed=seed)(knobs)
        alone: Any = method.fitter(model, tokenizer, questions, seed=seed)(knobs)
        assert shared.heads == alone.heads and torch.equal(shared.rows, alone.rows)
        told.append(shared)
    assert len(findings.found) == 8 and len({str(shift.rows) for shift in told}) == len(told)
