"""Judges against people and on nonsense: by scikit-learn's kappa, by hand, and from files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from tests.tiny import tiny_model, tiny_tokenizer
from trimtab import peft
from trimtab.datasets import Question, QuestionSet
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate import exact_judge
from trimtab.evaluate.generation import judged_meters
from trimtab.evaluate.judges.checking import (
    NONSENSE,
    agreed,
    false_accepts,
    judge_line,
    read_labels,
    tried_judge,
    with_people,
)
from trimtab.evaluate.judges.judge_data import Graded, judge_parts, questions_of
from trimtab.peft.tuned_judge import tune_judge
from trimtab.protocols import Verdict, as_judge

QUESTIONS = QuestionSet(tuple(Question(f"What is {i}?", (f"It is {i}.",), (f"It is {i + 1}.",)) for i in range(12)))


def yes_man(question, answer):
    return Verdict(1.0, 1.0)


def test_agreement_and_kappa_are_those_of_the_confusion_matrix():
    rng = np.random.default_rng(0)
    people, noise = rng.random(300) < 0.4, rng.random(300) < 0.2
    judge = people ^ noise
    found = agreed([str(i // 3) for i in range(300)], judge.tolist(), people.tolist())
    assert found.agreement == pytest.approx((judge == people).mean())
    assert found.kappa == pytest.approx(cohen_kappa_score(judge, people))
    assert found.on_yes == pytest.approx(judge[people].mean())
    assert found.on_no == pytest.approx((~judge[~people]).mean())
    assert found.kappa.low < found.kappa < found.kappa.high and found.kappa.n == 100
    # control: a judge that does not look agrees by chance
    assert abs(agreed(["a"] * 300, (rng.random(300) < 0.4).tolist(), people.tolist()).kappa) < 0.2


def test_kappa_has_an_interval_where_a_judge_always_says_the_same_or_always_as_people_do():
    questions, people = [f"q{i}" for i in range(20)], [True] * 12 + [False] * 8
    yes, right = agreed(questions, [True] * 20, people), agreed(questions, people, people)
    assert yes.kappa.low < yes.kappa == 0 < yes.kappa.high
    assert right.kappa.low < right.kappa == right.kappa.high == 1
    assert right.kappa.low == pytest.approx(1 - (1 - right.agreement.low) / (0.6 * 0.4 * 2))


def test_the_exact_judge_takes_no_nonsense_and_agrees_with_its_own_answers(tmp_path):
    accepted = false_accepts(exact_judge, QUESTIONS)
    assert list(accepted) == list(NONSENSE)
    assert all(of["both"]["mean"] == 0 and of["both"]["high"] > 0.1 for of in accepted.values())
    rows = [
        {"question": q.question, "answer": a, "true": a in q.correct}
        for q in QUESTIONS
        for a in (*q.correct, *q.incorrect)
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = with_people(exact_judge, read_labels(tmp_path / "labels.jsonl", QUESTIONS))
    assert list(found) == ["true"] and found["true"].agreement == found["true"].kappa == 1
    record = tried_judge(exact_judge, QUESTIONS, read_labels(tmp_path / "labels.jsonl", QUESTIONS)).describe()
    assert "agrees with people on 100.0 %" in judge_line(record)
    assert "true and informative: empty 0 %, letters 0 %" in judge_line(record)


def test_a_judge_that_says_yes_to_everything_is_refused_before_anything_is_measured():
    with pytest.raises(BadValue, match="judge yes_man calls everything true and informative"):
        judged_meters(judge=yes_man)[0].try_out(QUESTIONS)
    assert false_accepts(as_judge(yes_man), QUESTIONS)["loop"]["both"]["mean"] == 1


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": "What is ice?", "answer": "Ice", "true": 1}, r"labels of 1 question\(s\) that the data lacks"),
        ({"question": "What is 1?", "answer": "It is 1."}, "line 1: no verdict; give `true`"),
        ({"question": "What is 1?", "answer": "It is 1.", "true": "maybe"}, "line 1: true must be true or false"),
        ({"question": "What is 1?", "true": 1}, "line 1: expected fields `question` and `answer`"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_by_line(tmp_path, row, message):
    (tmp_path / "labels.jsonl").write_text(json.dumps(row))
    with pytest.raises(BadDataset, match=message):
        read_labels(tmp_path / "labels.jsonl", QUESTIONS)


# ---- judge data


ROWS = [
    Graded(f"Q: What is {i}?\nA: It {word} {i}.", f"Q: What is {i}?", word == "is")
    for i in range(20)
    for word in ("is", "isn't")
]


def test_judge_data_is_divided_into_parts_that_share_no_answer():
    parts = judge_parts(ROWS, 0, "data")
    texts = [{row.text for row in part} for part in parts]
    assert not texts[0] & texts[1] and not (texts[0] | texts[1]) & texts[2]
    asked = [{row.question for row in part} for part in parts]
    assert asked[1] <= asked[0] | asked[1] and not asked[2] & (asked[0] | asked[1])
    assert len(parts.questions) == 8 and len(parts.answers) == 6
    assert questions_of(ROWS)[3] == Question("What is 3?", ("It is 3.",), ("It isn't 3.",))


def test_a_part_with_one_label_is_refused():
    rows = [row._replace(label=i == 0) for i, row in enumerate(ROWS)]
    with pytest.raises(BadDataset, match="has one label only"):
        for seed in range(30):  # until the one line is held out
            judge_parts(rows, seed, "data")


def test_a_tuned_judge_agrees_on_what_it_was_trained_to_tell():
    method = peft.FullFineTuning(recipe=peft.Recipe(max_steps=40, batch_size=8, learning_rate=0.005))
    made = tune_judge(tiny_model(), tiny_tokenizer(), ROWS, "true", method=method)
    assert made.answers.n_answers == 6 and made.questions.n_answers == 8
    assert made.questions.agreement > 0.7
