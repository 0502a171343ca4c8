"""MC1, MC2 and MC3: hand-computed cases with given log-probabilities, and the prompts they are computed on."""

from __future__ import annotations

import json
import math
import sys
from itertools import permutations

import numpy as np
import pytest
import torch

from tests.measuring import answer_logprob, random_shift
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.datasets import Question, truthfulqa
from trimtab.datasets.primer import QA_PRIMER
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.prompts import Prompted
from trimtab.engine.score import Scores
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate import multiple_choice
from trimtab.evaluate.multiple_choice import AnswerChoices, labelled_answers
from trimtab.protocols import Findings

FEW_SHOT = Prompted((("What is snow?", "Snow is white."), ("What is coal?", "Coal is black.")))
SOME = Question("Some?", ("best", "good", "fair"), ("bad", "worse"))


@pytest.fixture
def scored(monkeypatch):
    """Return a function that scores questions with given log-probabilities, by answer text."""

    def run(logprobs, *questions):
        def fake(model, tokenizer, answers, edits, **options):
            texts = [tokenizer.decode(a.ids[a.start : a.end]).strip() for a in answers]
            return Scores((tuple(float(logprobs[t]) for t in texts),), 0)

        monkeypatch.setattr(sys.modules[multiple_choice.__module__], "score_answers", fake)
        return multiple_choice(tiny_model(), tiny_tokenizer(), questions)

    return run


def row_of(scored, *values, question=SOME):
    texts = [text for text, _ in labelled_answers(question)]
    return scored(dict(zip(texts, values, strict=True)), question).rows[0]


def test_mc1_asks_whether_the_best_answer_beats_every_false_one(scored):
    assert row_of(scored, -1, -9, -9, -2, -3).mc1 == 1.0
    # other true answers neither help nor hurt it
    assert row_of(scored, -1, -0.5, -9, -2, -3).mc1 == 1.0
    assert row_of(scored, -3, -1, -1, -2, -4).mc1 == 0.0
    assert row_of(scored, -3, -1, -1, -4, -2).mc1 == 0.0


def test_mc2_is_the_mass_on_true_answers(scored):
    probabilities = [0.1, 0.2, 0.05, 0.3, 0.15]
    row = row_of(scored, *(math.log(p) for p in probabilities))
    assert row.mc2 == pytest.approx(0.35 / 0.8, rel=1e-12)


def test_mc3_is_the_share_of_true_answers_above_every_false_one(scored):
    assert row_of(scored, -1, -4, -2, -3, -9).mc3 == pytest.approx(2 / 3)
    assert row_of(scored, -1, -1.5, -2, -3, -9).mc3 == 1.0
    assert row_of(scored, -4, -4, -5, -3, -9).mc3 == 0.0


def test_a_tie_goes_to_the_best_answer_for_mc1_and_counts_as_no_win_for_mc3(scored):
    row = row_of(scored, -2, -3, -1, -2, -3)
    assert row.mc1 == 1.0
    assert row.mc3 == pytest.approx(1 / 3)


def test_mc2_does_not_underflow_where_every_probability_does(scored):
    row = row_of(scored, -1000, -1001, -1002, -1000, -1003)
    assert math.exp(-1000) == 0.0
    true, false = (sum(math.exp(x) for x in xs) for xs in ((0, -1, -2), (0, -3)))
    assert row.mc2 == pytest.approx(true / (true + false), rel=1e-12)


def test_mc2_is_exact_at_its_ends(scored):
    assert row_of(scored, -1, -1, -1, -5000, -5000).mc2 == 1.0
    assert row_of(scored, -5000, -5000, -5000, -1, -1).mc2 == 0.0


def test_means_are_over_questions_and_not_over_answers(scored):
    one = Question("One?", ("yes",), ("no", "nope", "never"))
    two = Question("Two?", ("right", "sure", "truly"), ("wrong",))
    logprobs = {"yes": -1, "no": -2, "nope": -2, "never": -2, "right": -3, "sure": -1, "truly": -3, "wrong": -2}
    result = scored(logprobs, one, two)
    assert float(result.mc1) == 0.5
    assert float(result.mc3) == pytest.approx((1 + 1 / 3) / 2)
    assert float(result.mc2) == pytest.approx(np.mean([row.mc2 for row in result.rows]))
    assert 0.0 < result.mc1.low < 0.02
    assert 0.98 < result.mc1.high < 1.0
    assert result.mc1.n == 2


def test_the_order_of_answers_and_the_place_of_the_best_one_do_not_matter(scored):
    logprobs = {"best": -2, "good": -1, "fair": -4, "bad": -3, "worse": -2.5}
    expected = scored(logprobs, SOME).rows[0]
    for correct in permutations(SOME.correct):
        turned = Question("Some?", correct, SOME.incorrect[::-1], best_answer="best")
        row = scored(logprobs, turned).rows[0]
        assert (row.mc1, row.mc3) == (expected.mc1, expected.mc3)
        assert row.mc2 == pytest.approx(expected.mc2, rel=1e-12)
        assert row.answers[0].text == "best"
    # control: another best answer changes MC1
    other = Question("Some?", SOME.correct, SOME.incorrect, best_answer="fair")
    assert scored(logprobs, other).rows[0].mc1 != expected.mc1


def test_truthfulqa_labels_in_any_order_are_kept(shared_data):
    path = shared_data / "truthfulqa" / "mc_task.json"
    targets = {row["question"]: row["mc2_targets"] for row in json.loads(path.read_text(encoding="utf-8"))}
    unsorted = [q for q, t in targets.items() if list(t.values()) != sorted(t.values(), reverse=True)]
    assert unsorted  # otherwise this shows nothing
    for question in truthfulqa(path):
        if question.question in unsorted:
            assert dict(labelled_answers(question)) == {a: bool(v) for a, v in targets[question.question].items()}


def ask(*, edit=None, convention="plain", n=2, model=None, **options):
    # 1000 positions, since the primer takes most of a tiny tokenizer's context
    model = model or tiny_model(context=1000, dtype=torch.float64)
    questions = tiny_questions(n)
    return multiple_choice(model, tiny_tokenizer(), questions, edit, convention=convention, **options)


def test_rows_hold_the_context_and_the_answers_without_leading_space():
    row = ask().rows[1]
    question = tiny_questions(2)[1]
    assert row.question == question.question
    assert row.prompt == f"Q: {question.question}\nA:"
    assert [(a.text, a.label) for a in row.answers] == [
        *((text, True) for text in question.correct),
        *((text, False) for text in question.incorrect),
    ]


@pytest.mark.parametrize("convention", ["plain", "lm-eval"])
def test_scores_are_of_all_that_follows_the_context_in_the_rows(convention):
    model, tokenizer = tiny_model(context=1000, dtype=torch.float64), tiny_tokenizer()
    for row in ask(model=model, convention=convention).rows:
        n_context = len(tokenizer(row.prompt)["input_ids"])
        for answer in row.answers:
            ids = tokenizer(f"{row.prompt} {answer.text}")["input_ids"]
            expected = answer_logprob(model, ids, n_context, len(ids))
            assert answer.logprob == pytest.approx(expected, abs=1e-5)


def test_the_space_before_an_answer_counts_where_it_is_a_token_of_its_own():
    tokenizer, space = tiny_tokenizer(), tiny_tokenizer()(" ")["input_ids"][1:]
    question = Question("Why?", ("The sky.", "Zoo."), ("No.",))
    assert tokenizer(" The sky.")["input_ids"][1:2] != space
    assert tokenizer(" Zoo.")["input_ids"][1:2] == space
    model = tiny_model(dtype=torch.float64)
    for answer in multiple_choice(model, tokenizer, [question]).rows[0].answers:
        ids = tokenizer(f"Q: Why?\nA: {answer.text}")["input_ids"]
        start = len(tokenizer("Q: Why?\nA:")["input_ids"])
        assert answer.logprob == pytest.approx(answer_logprob(model, ids, start, len(ids)), abs=1e-5)


def test_the_lm_eval_prompt_is_the_primer_and_the_question():
    rows = ask(convention="lm-eval").rows
    assert [r.prompt for r in rows] == [f"{QA_PRIMER}\n\nQ: {q.question}\nA:" for q in tiny_questions(2)]


def test_the_primer_is_the_published_one(shared_data):
    assert (shared_data / "truthfulqa" / "qa_primer.txt").read_text(encoding="utf-8") == QA_PRIMER + "\n"


@pytest.mark.parametrize("convention", ["plain", "lm-eval"])
def test_an_edit_that_changes_the_prompt_replaces_the_conventions(convention):
    prompted = ask(edit=FEW_SHOT, convention=convention)
    assert [r.prompt for r in prompted.rows] == [FEW_SHOT.prompt(q.question) for q in tiny_questions(2)]
    unprompted = ask(convention=convention)
    assert prompted.rows[0].answers[0].logprob != pytest.approx(unprompted.rows[0].answers[0].logprob, abs=0.1)


def test_a_stack_uses_its_one_prompt_and_its_shift():
    model = tiny_model(context=1000, dtype=torch.float64)
    shift = random_shift(model)
    stacked = ask(model=model, edit=Stacked((FEW_SHOT, shift)))
    assert stacked.rows[0].prompt == FEW_SHOT.prompt(tiny_questions(1)[0].question)
    for other in (FEW_SHOT, shift):
        alone = ask(model=model, edit=other)
        assert abs(stacked.rows[0].answers[0].logprob - alone.rows[0].answers[0].logprob) > 0.1


def test_no_edit_is_the_default():
    model = tiny_model(context=1000)
    assert ask(model=model) == ask(model=model, edit=NoEdit())


def test_batch_size_does_not_change_the_scores():
    model = tiny_model(dtype=torch.float64)
    alone, together = (ask(model=model, n=4, batch_size=size) for size in (1, 16))
    for a, b in zip(alone.rows, together.rows, strict=True):
        assert [x.logprob for x in a.answers] == pytest.approx([x.logprob for x in b.answers], abs=1e-5)


def test_the_record_is_json_with_its_rows():
    result = ask(convention="lm-eval")
    record = json.loads(json.dumps(result.as_dict()))
    assert record["convention"] == "lm-eval"
    assert record["mc2"]["mean"] == float(result.mc2)
    assert set(record["rows"][0]["answers"][0]) == {"text", "label", "logprob"}
    assert record["rows"][0]["mc3"] == result.rows[0].mc3


def test_no_questions_is_refused():
    with pytest.raises(BadDataset, match="no questions"):
        multiple_choice(tiny_model(), tiny_tokenizer(), [])


def test_a_context_longer_than_the_models_is_refused_with_its_text():
    with pytest.raises(BadValue, match=r"\d+ tokens does not fit the model's context of 256: 'Q: What is human"):
        ask(model=tiny_model(), convention="lm-eval")


def test_a_text_as_long_as_the_context_is_scored_and_one_token_more_is_refused():
    tokenizer, question = tiny_tokenizer(), tiny_questions(1)[0]
    longest = max(len(tokenizer(f"Q: {question.question}\nA: {a}")["input_ids"]) for a, _ in labelled_answers(question))
    assert len(ask(model=tiny_model(context=longest), n=1).rows) == 1
    with pytest.raises(BadValue, match=f"{longest} tokens does not fit the model's context of {longest - 1}"):
        ask(model=tiny_model(context=longest - 1), n=1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("convention", ["iti-original", "", "Plain"])
def test_an_unknown_convention_is_refused(convention):
    with pytest.raises(BadValue, match=r"unknown convention .*; choose auto, plain, bare, primer, chat, lm-eval, iti"):
        multiple_choice(tiny_model(), tiny_tokenizer(), tiny_questions(1), convention=convention)


def test_questions_become_tokens_once_for_all_calls_and_what_stands_before_them_never_counts_as_theirs(monkeypatch):
    model, tokenizer, questions = tiny_model("llama"), tiny_tokenizer(), tiny_questions(5)
    home = sys.modules[multiple_choice.__module__]
    read, plain = [], home.tokenize_answers

    def counted(*given, **options):
        read.append(len(given[1]))
        return plain(*given, **options)

    monkeypatch.setattr(home, "tokenize_answers", counted)
    kept, others = AnswerChoices().with_findings(Findings()), tiny_questions(9)[5:]
    for edits, items, n in (
        ([NoEdit()], questions, 1),
        ([random_shift(model), FEW_SHOT], questions, 1),
        ([FEW_SHOT], questions, 1),
        ([NoEdit()], others, 1),
        ([NoEdit()], questions, 0),
    ):
        read.clear()
        found = kept.measure(model, tokenizer, items, edits)
        assert len(read) == n
        assert found == AnswerChoices().measure(model, tokenizer, items, edits)


def test_records_say_the_same_of_the_meter_wherever_it_keeps_its_tokens():
    """As the records of earlier runs have it: joining and resuming compare what is said."""
    said = {"meter": "AnswerChoices", "name": "multiple_choice", "convention": None, "batch_size": None}
    assert AnswerChoices().describe() == AnswerChoices().with_findings(Findings()).describe() == said
