"""Published protocols run whole on a tiny random model: splits, sigma bank, our rows beside the printed ones."""

from __future__ import annotations

import json

import pytest
import torch

from tests.comparing import TEXTS, length_judge
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.datasets import truthfulqa
from trimtab.datasets.primer import INSTRUCTION, QA_PRIMER
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate import answer_meters
from trimtab.peft import FullFineTuning, Recipe
from trimtab.published import reproduce
from trimtab.published.figures import DEVIATIONS, TABLE_1, TWO_FOLD
from trimtab.published.reproduce import PublishedIti, _iti, _two_folds, iti_table_1, iti_two_fold, sigma_bank

METERS = answer_meters(judge=length_judge, convention="iti", texts=TEXTS, max_new_tokens=3, divide_texts=True)
LONG = 2048


@pytest.fixture(scope="module")
def model():
    return tiny_model(context=LONG)


def test_two_folds_run_whole_and_every_question_is_measured_once(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model.config, "_name_or_path", "huggyllama/llama-7b")
    asked = {"meters": METERS, "numbers": PublishedIti(3, 2), "keep": tmp_path / "runs"}
    result = iti_two_fold(model, tiny_tokenizer(), tiny_questions(8), **asked)
    assert list(result.rows) == ["Baseline", "ITI"]
    for row in result.rows.values():
        assert {m: s.estimate.n for m, s in row.items() if m in ("true", "mc1")} == {"true": 8, "mc1": 8}
    unedited = result.rows["Baseline"]["kl"].estimate
    assert float(unedited) == unedited.low == unedited.high == 0  # nats, not a share of questions
    assert float(result.rows["ITI"]["kl"].estimate) > 0
    text = result.to_markdown()
    assert "honest_llama, results.md and logs | - | 24.7 | 96.0 | - | 25.5 | 40.5 | 2.13 | 0.00" in text
    assert all(d in text for d in DEVIATIONS)
    assert json.loads(json.dumps(result.as_dict()))["setting"]["parts"] == [[3, 1, 4], [3, 1, 4]]

    monkeypatch.setattr(reproduce, "_measured", None)  # so that nothing can be measured anew
    assert iti_two_fold(model, tiny_tokenizer(), tiny_questions(8), **asked).as_dict() == result.as_dict()
    for other in ({"numbers": PublishedIti(3, 1)}, {"keep": tmp_path / "others"}):
        with pytest.raises(TypeError):
            iti_two_fold(model, tiny_tokenizer(), tiny_questions(8), **{**asked, **other})


@pytest.mark.slow
def test_table_1_runs_whole_with_its_five_rows(model):
    sft = FullFineTuning(recipe=Recipe(objective="true_and_false", max_steps=2, batch_size=4))
    result = iti_table_1(
        model, tiny_tokenizer(), tiny_questions(60), sft=sft, meters=METERS, numbers=PublishedIti(3, 2, (0,))
    )
    assert list(result.rows) == list(TABLE_1["huggyllama/llama-7b"])
    assert result.setting["parts"] == [[2, 1, 57]]
    assert float(result.rows["Few-shot"]["kl"].estimate) > 0  # of texts behind the examples
    for name in ("SFT", "ITI", "Few-shot + ITI"):
        assert float(result.rows[name]["kl"].estimate) > 0
        assert result.rows[name]["true"].estimate.n == 57
    assert "No figures were published for this model;" in result.to_markdown()


def test_on_truthfulqa_the_folds_are_the_published_ones(shared_data):
    questions = truthfulqa(shared_data / "truthfulqa" / "TruthfulQA.csv")
    parts = _two_folds(questions)
    assert [[len(p) for p in part] for part in parts] == [[326, 82, 409], [327, 82, 408]]
    place = {q.question: i for i, q in enumerate(questions)}
    assert [place[q.question] for q in parts[0].train][:5] == [479, 627, 667, 442, 451]


def test_the_bank_holds_every_answer_before_one_other_question_per_question():
    questions = tiny_questions(5)
    bank = sigma_bank(questions, seed=42)
    assert len(bank) == 20
    asked = {q.question for q in questions}
    for statement in bank:
        assert statement.text.startswith(f"Q: {statement.group} A: ")
        assert statement.answer.removeprefix("Q: ") in asked
    assert len({s.answer for s in bank if s.group == questions[0].question}) == 1
    assert not any(s.text.endswith(".") for s in bank)
    assert any(a.endswith(".") for q in questions for a in q.correct)
    assert bank == sigma_bank(questions, seed=42)
    assert bank != sigma_bank(questions, seed=43)


def test_the_shift_is_mass_mean_over_training_and_validation_with_the_banks_sigma(model):
    tokenizer, questions = tiny_tokenizer(), tiny_questions(8)
    part, bank = _two_folds(questions)[0], sigma_bank(questions, seed=42)
    shift = _iti(model, tokenizer, part, bank, PublishedIti(top_k=2), seed=42)
    both = [*part.train.statements("iti"), *part.validation.statements("iti")]
    acts, spread_over = capture_heads(model, tokenizer, both), capture_heads(model, tokenizer, bank)
    assert shift.strength == 15
    for i, (layer, head) in enumerate(shift.heads):
        x = acts.values[:, layer, head].double()
        direction = x[acts.labels].mean(0) - x[~acts.labels].mean(0)
        direction = direction / direction.norm()
        torch.testing.assert_close(shift.directions[i].double(), direction, rtol=0, atol=3e-6)
        sigma = (spread_over.values[:, layer, head].double() @ direction).std(correction=0)
        assert float(shift.sigma[i]) == pytest.approx(float(sigma), rel=1e-5)
        ours = (acts.values[:, layer, head].double() @ direction).std(correction=0)
        assert float(ours) != pytest.approx(float(sigma), rel=1e-3), "the control: the two banks differ"


def test_questions_are_asked_after_the_instruction_and_the_primer(model):
    seen, drifted = [], []
    original = reproduce.measurements_of
    try:
        reproduce.measurements_of = lambda m, t, q, edits, meters: (
            (drifted if meters[0].collateral else seen).extend(edits) or original(m, t, q, edits, meters)
        )
        iti_two_fold(model, tiny_tokenizer(), tiny_questions(6), meters=METERS, numbers=PublishedIti(2, 1))
    finally:
        reproduce.measurements_of = original
    prompt = seen[0].prompt("Why?")
    assert prompt == f"{INSTRUCTION}\n\n{QA_PRIMER}\n\nQ: Why?\nA:"
    assert {e.prompt("Why?") for e in seen} == {prompt}
    assert drifted and {e.prompt("Why?") for e in drifted} == {None}


def test_more_heads_than_there_are_are_refused(model):
    with pytest.raises(BadValue, match="top 99 heads asked for; the model has"):
        iti_two_fold(model, tiny_tokenizer(), tiny_questions(6), meters=METERS, numbers=PublishedIti(99))


def test_too_few_questions_are_refused(model):
    with pytest.raises(BadDataset, match="need 6 questions or more, got 4"):
        iti_two_fold(model, tiny_tokenizer(), tiny_questions(4), meters=METERS)
    with pytest.raises(BadDataset, match="5 % of 12 questions is 1"):
        iti_table_1(model, tiny_tokenizer(), tiny_questions(12), sft=FullFineTuning(), meters=METERS)


def test_every_printed_row_is_named_as_ours_are_and_is_a_share_or_nats():
    for tables, rows in (
        (TABLE_1, {"Baseline", "SFT", "Few-shot", "ITI", "Few-shot + ITI"}),
        (TWO_FOLD, {"Baseline", "ITI"}),
    ):
        for published in tables.values():
            assert set(published) <= rows
            for figures, _ in published.values():
                assert all(0 <= v <= 1 for m, v in figures.items() if m not in ("ce", "kl"))
