"""Classes of a user's own (tests/foreign.py) are full citizens: measured, stacked, compared and reported."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch

from tests.cases import FEW_SHOT, foreign_nudge, one_shift, slowly
from tests.comparing import TEXTS
from tests.foreign import Nudge, Nudging, Shuffled, Surprise, Vowels
from tests.observing import generated, logits, tokens
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab import NoEdit, Stacked
from trimtab.compare import Comparison, run
from trimtab.edits import ResidualShift
from trimtab.evaluate import answer_meters, drift, generate_answers, multiple_choice
from trimtab.evaluate.cost import milliseconds_per_token
from trimtab.evaluate.table import table
from trimtab.protocols import as_entrant
from trimtab.report.html import to_html
from trimtab.report.markdown import to_markdown

QUESTIONS = tiny_questions(4)


@cache
def the_model() -> Any:
    """Return one model for all tests, each of which must leave it as it was."""
    return tiny_model()


def twin(nudge: Nudge) -> ResidualShift:
    """Return trimtab's own edit that does the same."""
    return ResidualShift((0,), torch.tensor([nudge.vector], dtype=torch.float64), nudge.strength, name=nudge.name)


@pytest.mark.parametrize("mine", [foreign_nudge(tiny_model()), Nudging(), Shuffled(), Surprise(), Vowels()])
def test_asking_a_foreign_class_for_what_is_not_declared_is_an_error_of_the_asker(mine):
    for keyhole in (lambda: getattr(mine, "deltas", None), lambda: hasattr(mine, "parts")):
        with pytest.raises(AssertionError, match=r"does not declare"):
            keyhole()


@pytest.mark.parametrize("positions", ["all", "generated"])
def test_a_foreign_edit_does_what_its_twin_does(positions):
    model, mine = the_model(), foreign_nudge(the_model())
    run_on = logits if positions == "all" else lambda m: generated(m, tokens())[1]
    with mine.applied(model, positions) as edited:
        found = run_on(edited)
    with twin(mine).applied(model, positions) as edited:
        torch.testing.assert_close(found, run_on(edited), rtol=0, atol=1e-4)
    assert not torch.equal(found, run_on(model))


@pytest.mark.parametrize("shares_prompt", [True, False])
def test_every_measurement_finds_of_a_foreign_edit_what_it_finds_of_its_twin(shares_prompt):
    model, tokenizer = the_model(), tiny_tokenizer()
    nudge = foreign_nudge(model)
    mine = Nudge(nudge.vector, nudge.strength, leaves_prompt_unedited=shares_prompt)
    own = twin(mine)
    one, other = (multiple_choice(model, tokenizer, QUESTIONS, edit) for edit in (mine, own))
    assert [a.logprob for r in one.rows for a in r.answers] == pytest.approx(
        [a.logprob for r in other.rows for a in r.answers], abs=1e-3
    )
    said = [generate_answers(model, tokenizer, QUESTIONS, e, max_new_tokens=4) for e in (mine, own, NoEdit())]
    assert [r.answer for r in said[0].rows] == [r.answer for r in said[1].rows] != [r.answer for r in said[2].rows]
    moved = [drift(model, tokenizer, edit, texts=TEXTS).kl for edit in (mine, own)]
    assert float(moved[0]) == pytest.approx(float(moved[1]), rel=1e-3)
    assert milliseconds_per_token(model, tokenizer, ["Who?"], mine) > 0


def test_a_table_has_its_row_and_stacks_hold_it():
    model, tokenizer, mine = the_model(), tiny_tokenizer(), foreign_nudge(the_model())
    with_prompt, with_shift = Stacked((FEW_SHOT, mine)), Stacked((mine, one_shift(model)))
    made = table(model, tokenizer, QUESTIONS, [mine, with_prompt, with_shift], texts=TEXTS, max_new_tokens=4)
    own = Stacked((twin(mine), one_shift(model)))
    expected = table(model, tokenizer, QUESTIONS, [twin(mine), own], texts=TEXTS, max_new_tokens=4)
    for found, right in ((made.rows[0], expected.rows[0]), (made.rows[2], expected.rows[1])):
        assert float(found.mc2) == pytest.approx(float(right.mc2), abs=1e-3)
        assert float(found.kl) == pytest.approx(float(right.kl), rel=1e-3)
    assert made.rows[1].name == "Few-shot + Nudge"
    assert "Nudge" in made.to_markdown()
    json.dumps(made.as_dict(details=True))


def test_a_saved_foreign_edit_takes_the_bytes_of_its_folder(tmp_path):
    mine = foreign_nudge(the_model())
    mine.save(tmp_path / "mine")
    assert mine.stored_bytes == (tmp_path / "mine" / "record.json").stat().st_size
    assert Nudge.load(tmp_path / "mine") == mine


@pytest.mark.parametrize("choose_by", slowly(["true_info", "surprise"], "true_info"))
def test_a_comparison_of_foreign_methods_controls_meters_and_judges_is_run_and_reported(choose_by, tmp_path):
    meters = [*answer_meters(judge=Vowels(), texts=TEXTS, max_new_tokens=4, divide_texts=True), Surprise()]
    entrants = [Nudging(), Shuffled(), Nudge(foreign_nudge(the_model()).vector, 0.5, "Mine")]
    arguments = {"folds": 2, "seeds": (0,), "trials": 2, "meters": meters, "choose_by": choose_by}
    result = run(the_model(), tiny_tokenizer(), tiny_questions(12), entrants, **arguments, out=tmp_path / "run")
    best = [row for row in result.rows() if row.variant == "best"]
    assert [row.method for row in best] == ["Baseline", "Nudging", "Shuffled", "Mine"]
    assert all(row.complete for row in best)
    tried = [trial["knobs"] for trial in result.trials if trial["method"] == "Nudging"]
    assert {"size": 0.5} in tried and {"size": 2.0} in tried
    row, baseline = result.row("Nudging"), result.row("Baseline")
    assert float(row.metrics["kl"].estimate) > 0
    # a meter whose figure is better the lower it is: measured, tested against the baseline, and drawn
    own = row.differences["surprise"].difference
    assert float(own) == pytest.approx(
        float(row.metrics["surprise"].estimate) - float(baseline.metrics["surprise"].estimate), abs=1e-6
    )
    for test in (t for t in result.tests if t["method"] == "Nudging"):
        scores = [trial["validation"]["score"] for trial in result.trials_of(test)]
        assert scores[test["best"]] == (min(scores) if choose_by == "surprise" else max(scores))
    for page in (to_markdown(result), to_html(result)):
        assert all(name in page for name in ("Nudging", "Shuffled", "Mine", "surprise", "vowels"))
    assert Comparison.load(tmp_path / "run").row("Nudging").metrics == row.metrics  # without the user's code at hand


def test_what_is_no_entrant_is_refused():
    from trimtab.errors import BadValue

    for mine in (Nudging(), Shuffled(), foreign_nudge(the_model())):
        assert as_entrant(mine)
    for wrong in (Nudging, Surprise(), Vowels(), "Nudging"):
        with pytest.raises(BadValue, match="neither a Method, an Edit nor a Control"):
            as_entrant(wrong)


def test_a_foreign_meter_measures_every_edit_and_is_summed_up_by_its_mean():
    model, meter = the_model(), Surprise()
    edits = [NoEdit(), foreign_nudge(model), twin(foreign_nudge(model))]
    plain, mine, own = meter.measure(model, tiny_tokenizer(), QUESTIONS, edits)
    assert list(mine.rows) == [q.key for q in QUESTIONS]
    assert mine.rows != plain.rows
    for key, row in mine.rows.items():
        assert row["surprise"] == pytest.approx(own.rows[key]["surprise"], abs=1e-4)
    assert (meter.heading, tuple(meter.columns), meter.instrument, meter.choosing) == (
        "surprise", ("surprise",), meter, meter,
    )  # fmt: skip
    json.dumps(meter.describe())


def test_a_foreign_judge_gives_a_verdict_on_every_answer():
    verdicts = Vowels().verdicts(QUESTIONS[0], ["aeiou", "xyz"])
    assert [(v.true, v.informative, v.matched) for v in verdicts] == [(1.0, 1.0, True), (0.0, 0.0, True)]
