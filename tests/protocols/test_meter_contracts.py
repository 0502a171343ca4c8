"""The laws that every Meter and every Judge keeps, over the lists of tests/cases.py."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.cases import FEW_SHOT, JUDGES, METERS, QUESTIONS, every_judge, every_meter, foreign_nudge, one_shift
from tests.observing import random_state, state_of
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab import NoEdit
from trimtab.evaluate.table import columns_of, summed_up, table
from trimtab.protocols import Judge, Measured, Meter, Verdict

MEASURING = pytest.mark.parametrize("name", [name for name, case in METERS.items() if case.rows != "none"])


@cache
def the_model() -> Any:
    """Return one model for all tests, each of which must leave it as it was."""
    model = tiny_model()
    model.generation_config.eos_token_id = None
    return model


@cache
def edits() -> tuple[Any, ...]:
    shift = one_shift(the_model())
    return NoEdit(), shift, shift.scaled(0), FEW_SHOT, foreign_nudge(the_model())


def measured(name: str, *chosen: Any, items: Any = None) -> list[Measured | None]:
    case = METERS[name]
    return list(case.meter.instrument.measure(the_model(), tiny_tokenizer(), items or case.items, chosen))


class Found(NamedTuple):
    """What an instrument measured, once for all meters that sum up its rows, and whether it left all as it was."""

    together: tuple[Measured | None, ...]
    """Of all edits at once."""
    alone: tuple[Measured | None, ...]
    """Of each edit by itself."""
    left_all: bool


@cache
def found_by(first: str) -> Found:
    before, draws = state_of(the_model()), random_state()
    together = tuple(measured(first, *edits()))
    left_all = (state_of(the_model()), random_state()) == (before, draws)
    return Found(together, tuple(measured(first, edit)[0] for edit in edits()), left_all)


@cache
def one_by_one(first: str) -> tuple[Measured, list[Measured]]:
    """Return what was measured of one edit on all items, and on each item by itself."""
    case, (together, *_) = METERS[first], measured(first, edits()[1])
    return together, [measured(first, edits()[1], items=case.items[i : i + 1])[0] for i in range(len(case.items))]


@cache
def first_of(name: str) -> str:
    """Return the first of the meters that sum up the same rows."""
    wanted = METERS[name]
    return next(
        n for n, c in METERS.items() if c.meter.instrument == wanted.meter.instrument and c.items is wanted.items
    )


def found(name: str) -> tuple[Measured | None, ...]:
    return found_by(first_of(name)).together


def numbers(name: str, one: Measured) -> np.ndarray:
    return columns_of(METERS[name].meter, one.rows)


@every_meter
def test_a_meter_says_what_its_figure_is_in_plain_values(name):
    meter = METERS[name].meter
    assert isinstance(meter, Meter)
    assert meter.name and meter.heading
    assert meter.better in ("up", "down", "neither")
    assert json.loads(json.dumps(meter.describe()))["meter"]
    assert meter.instrument.instrument == meter.instrument
    assert isinstance(meter.choosing, Meter)
    assert meter.choosing.name == meter.name


@every_meter
def test_measuring_leaves_the_model_and_all_random_numbers_as_they_were(name):
    assert len(found(name)) == len(edits())
    assert found_by(first_of(name)).left_all


@MEASURING
def test_rows_stand_by_the_keys_of_the_items_and_hold_numbers_to_sum_up(name):
    case = METERS[name]
    for one in found(name):
        if one is None:
            continue
        assert case.rows != "items" or list(one.rows) == [item.key for item in case.items]
        values = numbers(name, one)
        assert values.shape == (len(one.rows), len(case.meter.columns))
        assert np.isfinite(values).all()
        json.dumps([one.rows, dict(one.record)])


@MEASURING
def test_the_figure_is_the_summary_of_the_columns_means(name):
    meter = METERS[name].meter
    for one in found(name):
        if one is None:
            continue
        figure = summed_up(meter, one)
        expected = float(meter.summary(numbers(name, one).mean(0)))
        assert np.isnan(expected) if figure is None else float(figure) == pytest.approx(expected)
        if meter.sums_up == "mean":
            assert expected == pytest.approx(float(np.mean([row[meter.columns[0]] for row in one.rows.values()])))
        several = np.stack([numbers(name, one).mean(0)] * 3)
        assert meter.summary(several) == pytest.approx([expected] * 3, nan_ok=True)


@MEASURING
def test_an_edit_of_no_strength_measures_as_no_edit_and_one_that_acts_does_not(name):
    plain, acts, nothing = found(name)[:3]
    assert numbers(name, nothing) == pytest.approx(numbers(name, plain), abs=1e-5)
    instrument = METERS[name].meter.instrument
    if instrument.columns != METERS[name].meter.columns:
        return  # one of several figures of the same rows, which may agree by chance
    assert {key: dict(row) for key, row in acts.rows.items()} != {key: dict(row) for key, row in plain.rows.items()}


@MEASURING
def test_several_edits_at_once_measure_as_each_alone(name):
    for alone, together in zip(found_by(first_of(name)).alone, found(name), strict=True):
        assert (alone is None) == (together is None)
        if alone is not None:
            assert list(alone.rows) == list(together.rows)
            assert numbers(name, alone) == pytest.approx(numbers(name, together), abs=1e-4)


@pytest.mark.parametrize("name", [name for name, case in METERS.items() if case.rows == "items"])
def test_items_in_one_padded_batch_measure_as_one_by_one(name):
    case, (together, apart) = METERS[name], one_by_one(first_of(name))
    rows = {key: row for one in apart for key, row in one.rows.items()}
    assert list(rows) == list(together.rows)
    assert columns_of(case.meter, rows) == pytest.approx(numbers(name, together), abs=1e-4)


@every_meter
def test_a_table_of_this_meter_alone_has_its_figure_and_its_heading(name):
    case = METERS[name]
    made = table(the_model(), tiny_tokenizer(), case.items, [NoEdit(), edits()[1]], meters=[case.meter])
    assert case.meter.heading in made.to_markdown()
    assert set(made.rows[0].estimates) == {case.meter.name}
    json.dumps(made.as_dict(details=True))


@every_judge
def test_a_judge_gives_a_verdict_on_every_answer_whatever_stands_beside_it(name):
    judge, question = JUDGES[name], QUESTIONS[0]
    answers = [question.best_answer, question.incorrect[0], "I have no comment.", "", "Zebras."]
    verdicts = judge.verdicts(question, answers)
    assert isinstance(judge, Judge)
    assert len(verdicts) == len(answers)
    assert all(isinstance(v, Verdict) and 0 <= v.true <= 1 and 0 <= v.informative <= 1 for v in verdicts)
    assert verdicts == [judge.verdicts(question, [answer])[0] for answer in answers]
    assert verdicts == [judge(question, answer) for answer in answers]
    assert verdicts[::-1] == judge.verdicts(question, answers[::-1])
    assert judge.verdicts(question, []) == []
    assert len(set(verdicts)) > 1


@every_judge
def test_a_judge_has_a_name_and_a_record_of_plain_values(name):
    judge = JUDGES[name]
    assert judge.name
    json.dumps(dict(judge.record))
    assert judge.cannot_fail in (True, False)
