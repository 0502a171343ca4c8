"""Choices with one right answer: every form is read, and what has no right answer is refused by line."""

from __future__ import annotations

import json

import pytest

from trimtab.datasets import choices
from trimtab.errors import BadDataset

OWN = {"question": "Is ice cold?", "correct": ["Yes"], "incorrect": ["No"]}
MMLU = {"question": "Is ice cold?", "choices": ["No", "Yes", "Perhaps"], "answer": 1, "subject": "ice"}
ARC = {
    "question": {"stem": "Is ice cold?", "choices": [{"text": "No", "label": "A"}, {"text": "Yes", "label": "B"}]},
    "answerKey": "B",
}
HUB = {"question": "Is ice cold?", "choices": {"text": ["No", "Yes"], "label": ["1", "2"]}, "answerKey": "2"}
TEXTS = {
    "prompt": "Is ice cold?\n\nChoices:\n(A) No\n(B) Yes",
    "correct": "(B)",
    "incorrect": "(A)",
    "correct_full_text": "Yes",
    "incorrect_full_text": "No",
}


def written(path, *rows):
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("row", [OWN, MMLU, {**MMLU, "answer": "B"}, ARC, HUB, TEXTS, {**OWN, "correct": "Yes"}])
@pytest.mark.parametrize("kind", [".jsonl", ".json"])
def test_every_form_is_read(tmp_path, row, kind):
    (question,) = choices(written(tmp_path / f"easy{kind}", row))
    assert (question.question, question.correct) == ("Is ice cold?", ("Yes",))
    assert "No" in question.incorrect


def test_columns_of_letters_are_read(tmp_path):
    (tmp_path / "mmlu.csv").write_text("question,A,B,C,D,answer\nIs ice cold?,No,Yes,Never,Hot,B\n")
    (question,) = choices(tmp_path / "mmlu.csv")
    assert question.correct == ("Yes",) and question.incorrect == ("No", "Never", "Hot")


@pytest.mark.parametrize(
    "row, message",
    [
        ({**MMLU, "answer": 7}, "line 2: no right answer among its 3 choices"),
        ({**MMLU, "answer": None}, "line 2: no right answer"),
        ({k: v for k, v in OWN.items() if k != "correct"}, "line 2: no question with choices"),
        ({**ARC, "answerKey": "E"}, "line 2: no right answer among its 2 choices"),
        ({**OWN, "incorrect": []}, "line 2: .*no false answer"),
        ({"text": "Ice"}, "line 2: no question with choices"),
    ],
)
def test_a_row_without_a_right_answer_or_a_wrong_one_is_refused_by_line(tmp_path, row, message):
    with pytest.raises(BadDataset, match=message):
        choices(written(tmp_path / "easy.jsonl", OWN, row))


def test_a_question_that_stands_twice_is_read_once_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="1 questions stand twice and are read once"):
        assert len(choices(written(tmp_path / "easy.jsonl", OWN, MMLU))) == 1


def test_arc_and_mmlu_as_they_lie_about_are_read(shared_data):
    folder = shared_data / "capability"
    assert len(choices(folder / "mmlu_ab.json")) == 570
    with pytest.warns(UserWarning, match="stand twice"):
        assert len(choices(folder / "arc_challenge_test.jsonl")) == 1148
