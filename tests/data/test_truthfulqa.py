"""TruthfulQA read whole from each of its sources, and the published two-fold split."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trimtab.datasets import QuestionSet, iti_folds, truthfulqa
from trimtab.datasets.truthfulqa import HUB_ID, question_digest
from trimtab.errors import BadDataset, BadValue

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def csv_path(shared_data: Path) -> Path:
    return shared_data / "truthfulqa" / "TruthfulQA.csv"


@pytest.fixture(scope="module")
def csv_rows(csv_path: Path) -> Rows:
    with csv_path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def json_path(shared_data: Path) -> Path:
    return shared_data / "truthfulqa" / "mc_task.json"


@pytest.fixture(scope="module")
def json_rows(json_path: Path) -> list[dict]:
    return json.loads(json_path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def from_csv(csv_path: Path) -> QuestionSet:
    return truthfulqa(csv_path)


@pytest.fixture(scope="module")
def from_json(json_path: Path) -> QuestionSet:
    return truthfulqa(json_path)


def write_csv(path: Path, rows: Rows) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_the_best_false_answer_of_the_two_way_version_stands_first(tmp_path):
    row = {"Type": "A", "Category": "B", "Question": "Is it?", "Best Answer": "No", "Source": "here"}
    row |= {"Correct Answers": "No; Never", "Incorrect Answers": "Yes; Perhaps; Always"}
    plain = truthfulqa(write_csv(tmp_path / "old.csv", [row]))
    newer = truthfulqa(write_csv(tmp_path / "new.csv", [{**row, "Best Incorrect Answer": "Perhaps"}]))
    assert plain[0].incorrect == ("Yes.", "Perhaps.", "Always.") and newer[0].incorrect == (
        "Perhaps.",
        "Yes.",
        "Always.",
    )
    assert plain[0].correct == newer[0].correct == ("No.", "Never.")


# ---- the benchmark, whole


def test_the_multiple_choice_file_gives_its_817_questions_and_5882_choices_as_they_stand(from_json, json_rows):
    assert len(from_json) == 817
    assert len(from_json.statements()) == 5882
    for question, row in zip(from_json, json_rows, strict=True):
        assert question.question == row["question"]
        assert dict.fromkeys(question.correct, 1) | dict.fromkeys(question.incorrect, 0) == row["mc2_targets"]
        assert [question.best_answer] == [a for a, label in row["mc1_targets"].items() if label]
        assert {a for a, label in row["mc1_targets"].items() if not label} <= set(question.incorrect)


def test_the_csv_gives_the_same_questions_answers_and_order_as_the_multiple_choice_file(from_csv, from_json):
    assert [q.question for q in from_csv] == [q.question for q in from_json]
    for ours, theirs in zip(from_csv, from_json, strict=True):
        assert (ours.correct, ours.incorrect, ours.best_answer) == (
            theirs.correct,
            theirs.incorrect,
            theirs.best_answer,
        )
    assert from_csv.fingerprint == from_json.fingerprint


def test_the_csv_gives_categories_and_sources_which_the_multiple_choice_file_lacks(from_csv, from_json, csv_rows):
    expected = {r["Question"].strip(): (r["Category"], r["Source"]) for r in csv_rows}
    assert {q.question: (q.category, q.source) for q in from_csv} == expected
    assert len({q.category for q in from_csv}) == 38
    assert {(q.category, q.source) for q in from_json} == {("", "")}


def test_the_order_is_the_hub_s_whatever_the_order_of_the_csv(from_csv, csv_rows, tmp_path):
    assert [r["Question"].strip() for r in csv_rows] != [q.question for q in from_csv]
    assert truthfulqa(write_csv(tmp_path / "reversed.csv", csv_rows[::-1])) == from_csv


def test_questions_that_the_hub_does_not_have_come_last(from_csv, csv_rows, tmp_path):
    new = {**csv_rows[0], "Question": "Is this a question of the benchmark?"}
    questions = truthfulqa(write_csv(tmp_path / "more.csv", [new, *csv_rows]))
    assert questions[:817] == from_csv
    assert questions[817].question == new["Question"]


def test_an_answer_that_the_csv_lists_on_both_sides_counts_as_false_and_no_answer_stands_twice(from_csv, csv_rows):
    def answers(row: dict[str, str], field: str) -> list[str]:
        return [a.strip().removesuffix(".") for a in row[field].split(";") if a.strip()]

    both = {
        row["Question"].strip(): shared
        for row in csv_rows
        if (shared := set(answers(row, "Correct Answers")) & set(answers(row, "Incorrect Answers")))
    }
    assert list(both.values()) == [{"Unknown"}, {"Unknown"}]
    for question in from_csv:
        listed = [*question.correct, *question.incorrect]
        assert len(set(listed)) == len(listed)
        assert all(a.endswith(".") for a in listed)
        if question.question in both:
            assert "Unknown." in question.incorrect


def test_the_shipped_order_knows_each_question_by_a_hash_of_its_own(from_json):
    digests = [question_digest(q.question) for q in from_json]
    assert len(set(digests)) == 817
    assert question_digest("  Is it\tso? ") == question_digest("Is it so?") != question_digest("is it so?")


def test_the_hub_s_rows_give_the_same_questions(from_json, json_rows, monkeypatch):
    def listed(targets: dict[str, int]) -> dict[str, list]:
        return {"choices": list(targets), "labels": list(targets.values())}

    rows = [
        {"question": r["question"], "mc1_targets": listed(r["mc1_targets"]), "mc2_targets": listed(r["mc2_targets"])}
        for r in json_rows
    ]
    asked = []
    fake = SimpleNamespace(load_dataset=lambda *args: asked.append(args) or {"validation": rows})
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert truthfulqa() == from_json
    assert asked == [(HUB_ID, "multiple_choice")]


# ---- the published split


def test_iti_folds_are_the_published_ones(shared_data):
    published = json.loads((shared_data / "truthfulqa" / "iti_folds_seed42.json").read_text())
    folds = iti_folds()
    assert len(folds) == 2
    for fold, name in zip(folds, ("fold_0", "fold_1"), strict=True):
        assert fold._asdict() == {
            "train": published[name]["train"],
            "validation": published[name]["val"],
            "test": published[name]["test"],
        }


def test_iti_folds_part_the_817_rows_and_hold_each_out_once(from_json):
    folds = iti_folds()
    assert [tuple(map(len, fold)) for fold in folds] == [(326, 82, 409), (327, 82, 408)]
    for fold in folds:
        assert sorted([*fold.train, *fold.validation, *fold.test]) == list(range(817))
    assert folds[0].test + folds[1].test == list(range(817))
    assert [len(from_json.select(fold.test)) for fold in folds] == [409, 408]


# ---- what is refused


MC_ROW = {
    "question": "Is it so?",
    "mc1_targets": {"Yes.": 1, "No.": 0},
    "mc2_targets": {"Yes.": 1, "So.": 1, "No.": 0},
}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [MC_ROW, {**MC_ROW, "question": "B?", "mc2_targets": None}],
            "row 1: field 'mc2_targets' is missing or no dict",
        ),
        ([{k: v for k, v in MC_ROW.items() if k != "mc1_targets"}], "row 0: field 'mc1_targets' is missing"),
        ([{**MC_ROW, "question": 5}], "row 0: field 'question' is missing or no str"),
        ([MC_ROW, "Is it so?"], "row 1: expected a JSON object, got str"),
        ([{**MC_ROW, "mc2_targets": {"Yes.": 1}}], r"row 0: question 'Is it so\?' has no false answer"),
        ([{**MC_ROW, "mc2_targets": {"No.": 0}}], r"row 0: question 'Is it so\?' has no true answer"),
        ([{**MC_ROW, "mc1_targets": {"No.": 1}}], r"row 0: .* best answer 'No\.' is not among the true answers"),
        ([MC_ROW, MC_ROW], r"mc\.json: truthfulqa: 'Is it so\?' stands 2 times"),
        ([], r"mc\.json: truthfulqa: no questions"),
        (
            [{**MC_ROW, "mc2_targets": {"Yes.": 1, "No.": "no"}}],
            "row 0: field 'mc2_targets' has the label 'no', expected",
        ),
        ([{**MC_ROW, "mc1_targets": {"Yes.": 2}}], "row 0: field 'mc1_targets' has the label 2, expected 0 or 1"),
        ({"questions": [MC_ROW]}, r"mc\.json: expected a list of questions, as in mc_task\.json; got dict"),
    ],
)
def test_a_malformed_multiple_choice_file_is_refused_by_file_row_and_field(tmp_path, rows, words):
    path = write_json(tmp_path / "mc.json", rows)
    with pytest.raises(BadDataset, match=words) as caught:
        truthfulqa(path)
    assert str(caught.value).startswith(str(path))
    (control,) = truthfulqa(write_json(path, [MC_ROW]))
    assert (control.correct, control.incorrect) == (("Yes.", "So."), ("No.",))


CSV_ROW = {
    "Type": "Adversarial",
    "Category": "Logic",
    "Question": "Is it so? ",
    "Best Answer": "Yes",
    "Correct Answers": "Yes; So.",
    "Incorrect Answers": "No",
    "Source": "a book",
}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{k: v for k, v in CSV_ROW.items() if k != "Incorrect Answers"}],
            "line 2: field 'Incorrect Answers' is missing",
        ),
        ([{"question": "Is it so?", "correct": "Yes.", "incorrect": "No."}], r"line 2: .*; is this TruthfulQA\.csv\?"),
        ([CSV_ROW, {**CSV_ROW, "Question": "B?", "Incorrect Answers": " ; "}], r"line 3: question 'B\?' has no false"),
        ([{**CSV_ROW, "Correct Answers": "No"}], r"line 2: question 'Is it so\?' has no true answer"),
        ([{**CSV_ROW, "Best Answer": "No"}], r"line 2: .* best answer 'No\.' is not among the true answers"),
        ([CSV_ROW, CSV_ROW], r"qa\.csv: truthfulqa: 'Is it so\?' stands 2 times"),
    ],
)
def test_a_malformed_csv_is_refused_by_file_line_and_field(tmp_path, rows, words):
    path = write_csv(tmp_path / "qa.csv", rows)
    with pytest.raises(BadDataset, match=words) as caught:
        truthfulqa(path)
    assert str(caught.value).startswith(str(path))
    (control,) = truthfulqa(write_csv(path, [{**CSV_ROW, "Best Answer": ""}]))
    assert (control.question, control.correct, control.incorrect) == ("Is it so?", ("Yes.", "So."), ("No.",))
    assert control.best_answer == "Yes."


def test_a_byte_order_mark_before_the_multiple_choice_file_changes_nothing(tmp_path):
    (tmp_path / "mc.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([MC_ROW]).encode())
    (question,) = truthfulqa(tmp_path / "mc.json")
    assert (question.correct, question.incorrect) == (("Yes.", "So."), ("No.",))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("qa.csv", b"", r"qa\.csv: truthfulqa: no questions"),
        ("qa.csv", b"\xff\xfe\x00", r"qa\.csv is not UTF-8 text"),
        ("mc.json", b"", r"mc\.json cannot be read as JSON \(.*\); expected TruthfulQA's mc_task\.json"),
        ("mc.json", b'[{"mc1_targets": {"Yes.": 1, "Yes.": 0}}]', r"mc\.json cannot .*the key 'Yes\.' stands twice"),
        ("mc.json", b"[{]", r"mc\.json cannot be read as JSON"),
        ("mc.json", b"\xff\xfe\x00", r"mc\.json cannot be read as JSON"),
        ("mc.json", None, r"mc\.json cannot be read as JSON"),
        ("qa.csv", None, r"qa\.csv cannot be read"),
        ("qa.txt", b"", r"qa\.txt: expected a \.csv or \.json file, or the hub id 'truthfulqa/truthful_qa'"),
    ],
)
def test_an_unreadable_source_is_refused_by_its_path(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadDataset, match=words):
        truthfulqa(tmp_path / name)


def test_the_hub_without_hugging_face_s_datasets_or_without_network_names_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadValue, match="needs `pip install datasets`; or give the path of its CSV"):
        truthfulqa()

    def unreachable(*args):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=unreachable))
    with pytest.raises(
        BadDataset, match=r"from the hub \(no route\); give the path of TruthfulQA\.csv or mc_task\.json"
    ):
        truthfulqa()
