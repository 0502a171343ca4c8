"""The comparison table: one row per edit, made of the same meters that one can call alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.prompts import Prompted
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate import Verdict, answer_meters, drift, generate_answers, multiple_choice
from trimtab.evaluate.generation import judged_meters
from trimtab.evaluate.table import Row, Table, pooled, table
from trimtab.intervals import Estimate
from trimtab.protocols import Cost

FEW_SHOT = Prompted((("What is snow?", "Snow is white."),))
TEXTS = ["The sky was grey.", "Snow fell on the old road all night.", "It rained."]
METERS = {"max_new_tokens": 5}
DECLARED = answer_meters()
METRICS = [meter.name for meter in DECLARED]


def judge(question, answer):
    """Judge by the answer's length, so that different answers get different verdicts."""
    return Verdict(float(len(answer) % 2), float(len(answer) % 3 > 0), matched=len(answer) > 4)


def edits(model):
    shift = random_shift(model)
    return [NoEdit(), FEW_SHOT, shift, Stacked((FEW_SHOT, shift))]


@pytest.fixture(scope="module")
def made():
    """Return a model, the four edits and their table."""
    model = tiny_model()
    chosen = edits(model)
    return model, chosen, table(model, tiny_tokenizer(), tiny_questions(5), chosen, judge=judge, texts=TEXTS, **METERS)


def a_row(name="A", mean=0.5, *, kl: float | None = 0.25, edit=None):
    estimates = {m: Estimate(mean, mean - 0.25, mean + 0.25, 4) for m in METRICS}
    drifts = dict.fromkeys(("ce", "kl", "kl95"), None if kl is None else Estimate(kl, 0.125, 0.5, 4))
    return Row(name, {**estimates, **drifts}, edit=edit or {"kind": "x"}, cost={"seconds": 1.0}, details={})


def test_there_is_one_row_per_edit_in_order_and_by_name(made):
    _, _, result = made
    assert [row.name for row in result.rows] == ["Baseline", "Few-shot", "ITI", "Few-shot + ITI"]
    for row in result.rows:
        assert result[row.name] is row


def test_what_can_tell_nothing_here_is_read_off_the_unedited_model_whatever_it_is_called(made):
    model, (_, few_shot, shift, _), _ = made

    def mute(*rows):
        meters = judged_meters(max_new_tokens=3)
        return table(model, tiny_tokenizer(), tiny_questions(3), rows, meters=meters).setting.get("mute", {})

    assert "true_info" in mute(shift, NoEdit("Plain"))
    assert mute(shift.renamed("Baseline"), few_shot, Stacked((NoEdit(), few_shot), name="Both")) == {}


def test_a_name_that_the_table_lacks_is_refused_with_those_it_has(made):
    with pytest.raises(BadValue, match=r"no row 'LoRA'; the table has Baseline, Few-shot, ITI, Few-shot \+ ITI"):
        made[2]["LoRA"]


def test_rows_hold_what_the_meters_say_when_called_alone(made):
    model, chosen, result = made
    for edit, row in zip(chosen, result.rows, strict=True):
        said = generate_answers(model, tiny_tokenizer(), tiny_questions(5), edit, judge=judge, **METERS)
        chosen_answers = multiple_choice(model, tiny_tokenizer(), tiny_questions(5), edit)
        assert row.true.as_dict() == said.true.as_dict()
        assert row.info.as_dict() == said.informative.as_dict()
        assert row.true_info.as_dict() == said.true_info.as_dict()
        assert row.unmatched.as_dict() == said.unmatched.as_dict()
        assert row.mc1.as_dict() == chosen_answers.mc1.as_dict()
        # edits that share their prompts' computation are scored in other batches than one alone
        assert row.mc2.as_dict() == pytest.approx(chosen_answers.mc2.as_dict(), abs=1e-5)
        assert row.details["generated"] == [one.counted for one in said.rows]
        for ours, theirs in zip(row.details["multiple_choice"], chosen_answers.as_dict()["rows"], strict=True):
            logprobs = [[a["logprob"] for a in r["answers"]] for r in (ours, theirs)]
            assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)
        assert row.edit == edit.describe()
    # otherwise mixed-up rows would not show
    assert len({float(row.mc2) for row in result.rows}) == 4


def test_rows_hold_their_drift_prompting_ones_too(made):
    model, chosen, result = made
    for name, edit in zip(("Few-shot", "ITI", "Few-shot + ITI"), chosen[1:], strict=True):
        moved = drift(model, tiny_tokenizer(), edit, texts=TEXTS)
        assert edit.name == name
        assert result[name].ce.as_dict() == pytest.approx(moved.ce.as_dict())
        assert result[name].kl.as_dict() == pytest.approx(moved.kl.as_dict())
        kl = [r["kl"] for r in result[name].details["drift"]]
        assert kl == pytest.approx([own for _, own in moved.per_text])
    assert float(result["ITI"].kl) > 0
    assert float(result["Baseline"].kl) == 0
    assert float(result["Baseline"].ce) > 0


def test_the_setting_names_the_questions_and_the_convention(made):
    questions = tiny_questions(5)
    assert made[2].setting == {
        "questions": "tiny",
        "n": 5,
        "fingerprint": questions.fingerprint,
        "convention": "plain",
    }
    assert questions.fingerprint != tiny_questions(6).fingerprint


def test_the_convention_reaches_the_meter():
    model = tiny_model(context=1000)
    result = table(model, tiny_tokenizer(), tiny_questions(2), [NoEdit()], convention="lm-eval", texts=TEXTS, **METERS)
    alone = multiple_choice(model, tiny_tokenizer(), tiny_questions(2), convention="lm-eval")
    assert result.rows[0].mc2.as_dict() == alone.mc2.as_dict()
    assert result.setting["convention"] == "lm-eval"


def test_two_edits_of_one_name_are_refused():
    model = tiny_model()
    twice = [NoEdit(), random_shift(model, seed=1), random_shift(model, seed=2)]
    with pytest.raises(BadValue, match="different names, got Baseline, ITI, ITI"):
        table(model, tiny_tokenizer(), tiny_questions(2), twice)
    renamed = [NoEdit(), twice[1], twice[2].renamed("ITI 2")]
    result = table(model, tiny_tokenizer(), tiny_questions(2), renamed, texts=TEXTS, **METERS)
    assert [row.name for row in result.rows] == ["Baseline", "ITI", "ITI 2"]


def test_no_edits_are_refused():
    with pytest.raises(BadValue, match="needs edits of different names, got none"):
        table(tiny_model(), tiny_tokenizer(), tiny_questions(2), [])


def test_texts_without_tokens_are_refused():
    with pytest.raises(BadDataset, match="no neutral text"):
        table(tiny_model(), tiny_tokenizer(), tiny_questions(2), [NoEdit()], texts=[], **METERS)


def test_the_record_is_json_with_a_mean_and_an_interval_per_metric(made):
    record = json.loads(json.dumps(made[2].as_dict()))
    assert set(record) == {"rows", "setting"}
    for row, given in zip(record["rows"], made[2].rows, strict=True):
        assert set(row) == {"name", *METRICS, "edit", "cost"}
        for metric in ("true_info", "true", "info", "unmatched", "mc1", "mc2"):
            assert row[metric] == getattr(given, metric).as_dict()
            assert {"mean", "low", "high"} <= set(row[metric])
            assert row[metric]["low"] <= row[metric]["mean"] <= row[metric]["high"]
    assert record["rows"][0]["kl"]["mean"] == 0 < record["rows"][1]["kl"]["mean"]
    assert record["rows"][2]["kl"]["mean"] > 0


def test_details_are_in_the_record_only_if_asked_for(made):
    record = json.loads(json.dumps(made[2].as_dict(details=True)))
    assert [len(row["details"]["generated"]) for row in record["rows"]] == [5] * 4
    assert record["rows"][0]["details"]["multiple_choice"][0]["answers"][0]["label"] is True
    assert "details" not in made[2].as_dict()["rows"][0]


def test_markdown_shows_percentages_with_intervals_and_nats_and_a_dash_for_what_was_not_measured():
    text = Table((a_row(), a_row("B", kl=None)), {}, DECLARED).to_markdown()
    percent = "50.0 [25.0, 75.0]"
    assert text.splitlines() == [
        "|  | True*Info | True | Info | unmatched | MC1 | MC2 | CE | KL | KL 95 % |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| A | " + " | ".join([percent] * 6 + ["0.250 [0.125, 0.500]"] * 3) + " |",
        "| B | " + " | ".join([percent] * 6 + ["-"] * 3) + " |",
    ]


def test_a_bar_in_a_name_does_not_break_the_markdown_table():
    lines = Table((a_row("A|B"),), {}, DECLARED).to_markdown().splitlines()
    cells = [len(re.split(r"(?<!\\)\|", line)) for line in lines]
    assert len(set(cells)) == 1


def test_pooled_rows_are_means_with_intervals_over_draws():
    draws = [a_row(f"draw {i}", mean, edit={"seed": i}) for i, mean in enumerate((0.2, 0.4, 0.9))]
    row = pooled(draws, "Random direction")
    assert row.name == "Random direction"
    for metric in ("true_info", "true", "info", "unmatched", "mc1", "mc2"):
        estimate = getattr(row, metric)
        assert float(estimate) == pytest.approx(0.5)
        assert (estimate.low, estimate.high) == pytest.approx((0.2, 0.9))
        assert estimate.n == 3
    assert float(row.kl) == row.kl.low == row.kl.high == 0.25
    assert row.edit == {"kind": "draws", "draws": [{"seed": 0}, {"seed": 1}, {"seed": 2}]}
    assert [d["name"] for d in row.details["draws"]] == ["draw 0", "draw 1", "draw 2"]
    assert json.loads(json.dumps(row.as_dict(details=True)))["true"]["n"] == 3


def test_pooled_rows_lack_what_a_draw_lacks():
    row = pooled([a_row("a", kl=None), a_row("b")], "both")
    assert (row.ce, row.kl) == (None, None)
    assert float(row.true) == 0.5


def test_no_rows_to_pool_are_refused():
    with pytest.raises(BadValue, match="row 'Random direction' needs one row or more to pool, got none"):
        pooled([], "Random direction")


def test_costs_are_in_the_rows():
    model = tiny_model()
    shift = replace(random_shift(model), cost=Cost(1.5, 36, 1000))
    row = table(model, tiny_tokenizer(), tiny_questions(2), [shift], texts=TEXTS, **METERS).rows[0]
    assert row.cost == {"seconds": 1.5, "trainable_parameters": 36, "bytes_on_disk": 1000}
