"""The folklore questions that ship: their make-up, their fixed final part, their review, and no giveaway in style."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline

import trimtab
from trimtab.datasets import Question, QuestionSet, Statement, folklore, truthfulqa
from trimtab.datasets.folklore import is_final
from trimtab.errors import BadValue

REVIEW = Path(trimtab.__file__).parent / "datasets" / "data" / "folklore-review.jsonl"
FILLERS = frozenset(
    re.findall(r"\w+", "a an the of in on at to is are was were do does did what which who whom that it")
)


@pytest.fixture(scope="module")
def questions() -> QuestionSet:
    return folklore()


@pytest.fixture(scope="module")
def review() -> dict[str, dict]:
    rows = [json.loads(line) for line in REVIEW.read_text(encoding="utf-8").splitlines()]
    by_question = {row["question"]: row for row in rows}
    assert len(by_question) == len(rows)
    return by_question


def normalised(question: str) -> frozenset[str]:
    """Return the words that carry a question's meaning, whatever its case, punctuation and word order."""
    return frozenset(re.findall(r"[a-z0-9]+", question.lower())) - FILLERS


# ---- make-up


def test_there_are_enough_questions_in_enough_categories(questions):
    per_category = Counter(q.category for q in questions)
    assert len(questions) >= 500
    assert len(per_category) >= 12
    assert min(per_category.values()) >= 10
    assert "" not in per_category


def test_every_question_has_two_short_answers_of_each_kind_and_says_why(questions):
    for q in questions:
        answers = (*q.correct, *q.incorrect)
        assert min(len(q.correct), len(q.incorrect)) >= 2, q.question
        assert len({a.lower() for a in answers}) == len(answers), q.question
        assert all(a.endswith(".") and a == a.strip() and len(a) <= 100 for a in answers), q.question
        assert q.question.endswith("?"), q.question
        assert q.explanation.endswith(".") and len(q.explanation.split()) >= 6, q.question
        assert "\n" not in "".join((q.question, q.explanation, *answers)), q.question


def test_no_question_is_asked_twice_in_other_words(questions):
    counts = Counter(normalised(q.question) for q in questions)
    assert [sorted(words) for words, n in counts.items() if n > 1] == []


def test_no_question_is_shared_with_truthfulqa(questions, shared_data):
    benchmark = truthfulqa(shared_data / "truthfulqa" / "mc_task.json")
    theirs = {normalised(q.question) for q in benchmark}
    assert [q.question for q in questions if normalised(q.question) in theirs] == []
    # the same question would be found in another case, punctuation and word order
    assert len(theirs) > 800
    for q in benchmark:
        words = q.question.rstrip("?").split()
        assert normalised(" ".join(reversed(words)).upper() + " ...") in theirs


# ---- the final part


def test_development_and_final_part_the_questions_and_keep_their_order(questions):
    development, final = folklore("development"), folklore("final")
    is_development = {q.question for q in development}
    assert is_development.isdisjoint(q.question for q in final)
    assert [q for q in questions if q.question in is_development] == list(development)
    assert [q for q in questions if q.question not in is_development] == list(final)
    assert folklore("all") == questions


def test_the_final_part_is_about_a_fifth_and_reaches_most_categories(questions):
    final = folklore("final")
    assert 0.15 <= len(final) / len(questions) <= 0.25
    assert len({q.category for q in final}) >= 12


def test_membership_of_the_final_part_hangs_on_the_question_s_text_alone(questions):
    for q in questions:
        digest = hashlib.sha256(q.question.encode("utf-8")).digest()
        assert is_final(q.question) == (int.from_bytes(digest, "big") % 5 == 0)
    # fixed once and for all: what was final for an earlier release stays final
    assert [i for i in range(40) if is_final(f"Question {i}?")] == [6, 11, 18, 27, 29, 35]


def test_an_unknown_part_is_refused():
    # without the run's type checks, as a user meets it
    with pytest.raises(BadValue, match="folklore has no part 'test'; choose all, development or final"):
        inspect.unwrap(folklore)("test")


# ---- style must not give truth away


PIPELINES: dict[str, Callable[[], object]] = {
    "words": lambda: make_pipeline(TfidfVectorizer(), LogisticRegression()),
    "phrases": lambda: make_pipeline(
        TfidfVectorizer(ngram_range=(1, 3), min_df=2, sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    ),
}


def text_only_accuracy(pipeline: str, statements: list[Statement]) -> float:
    labels, groups = [s.label for s in statements], [s.group for s in statements]
    folds = GroupKFold(5, shuffle=True, random_state=0)
    answers = [s.answer for s in statements]
    return float(cross_val_score(PIPELINES[pipeline](), answers, labels, groups=groups, cv=folds).mean())


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_answers_texts_alone_do_not_tell_true_from_false(questions, pipeline):
    assert text_only_accuracy(pipeline, questions.statements()) <= 0.65


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_text_only_control_would_notice_a_habit_of_style(questions, pipeline):
    hedged = [
        Statement(s.prompt, f"It is thought that {s.answer}" if s.label and i % 3 else s.answer, s.label, s.group)
        for i, s in enumerate(questions.statements())
    ]
    assert text_only_accuracy(pipeline, hedged) > 0.75


def test_true_and_false_answers_are_equally_long(questions):
    mean = {
        label: np.mean([len(s.answer) for s in questions.statements() if s.label == label]) for label in (True, False)
    }
    assert mean[True] == pytest.approx(mean[False], rel=0.05)


# ---- the review


def test_every_question_went_through_two_reviews(questions, review):
    assert [q.question for q in questions if q.question not in review] == []
    for q in questions:
        row = review[q.question]
        assert row["keyed_review"]["verdict"] in ("ok", "fix"), q.question
        assert isinstance(row["blind_review"]["disagreements"], list), q.question


def test_every_disagreement_was_resolved_by_a_change_or_by_leaving_the_question_out(questions, review):
    shipped = {q.question: q for q in questions}
    for question, row in review.items():
        doubted = row["keyed_review"]["verdict"] == "fix" or bool(row["blind_review"]["disagreements"])
        if question not in shipped:
            assert row["resolution"].startswith("dropped: "), question
        elif row["resolution"] == "kept as written":
            assert not doubted, question
        else:
            assert row["resolution"] == "mended", question
            assert changed(row, shipped[question]), question


def changed(row: dict, question: Question) -> bool:
    before, now = row["answers_before"], {"correct": [*question.correct], "incorrect": [*question.incorrect]}
    # of a mended explanation the log keeps the reviewer's words only
    return "question_before" in row or before != now or row["keyed_review"]["note"].startswith("why:")
