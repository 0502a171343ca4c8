"""TruthfulQA (Lin, Hilton & Evans 2021), from its CSV, its multiple-choice JSON, or the hub; and ITI's two folds."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trimtab.datasets.files import read_rows
from trimtab.datasets.questions import Question, QuestionSet
from trimtab.errors import BadDataset, BadValue
from trimtab.plain_values import hash_of, json_value

HUB_ID = "truthfulqa/truthful_qa"
N_QUESTIONS = 817


def truthfulqa(source: str | Path = HUB_ID) -> QuestionSet:
    """Return TruthfulQA's questions, in the hub's order.

    `source` is a path to `TruthfulQA.csv` or to `mc_task.json`, or the hub's id (which needs Hugging Face's
    `datasets` and the network). The CSV's answers become those of the multiple-choice files: with a final period,
    none of them twice, and false if listed on both sides; the best false one, which the version of 2025 names, stands
    first. The multiple-choice sources have no categories.

    Raises:
        BadDataset: the file cannot be read or has other fields; the hub cannot be reached.
        BadValue: `datasets` is not installed.
    """
    path = Path(source)
    if path.suffix.lower() == ".csv":
        return _from_csv(path)
    if path.suffix.lower() == ".json":
        return _from_multiple_choice(path, _read_json(path))
    if str(source) == HUB_ID:
        return _from_hub()
    raise BadDataset(f"TruthfulQA from {source}: expected a .csv or .json file, or the hub id {HUB_ID!r}")


class Fold(NamedTuple):
    """Row numbers (from 0, in the hub's order) of one fold."""

    train: list[int]
    validation: list[int]
    test: list[int]


def iti_folds() -> list[Fold]:
    """Return the two folds of ITI's published code with seed 42: 326/82/409 and 327/82/408 questions.

    The halves are contiguous; four fifths of the other half are drawn for training. numpy's legacy generator
    gives fold 0 directly. Between the folds the published run took 303 more 32-bit words from it (found by
    search against the published split), so only seed 42 can be reproduced.
    """
    rng = np.random.RandomState(42)
    halves = np.array_split(np.arange(N_QUESTIONS), 2)
    folds = []
    for held, rest in ((halves[0], halves[1]), (halves[1], halves[0])):
        if folds:
            rng.bytes(4 * 303)
        train = rng.choice(rest, size=int(len(rest) * 0.8), replace=False)
        validation = [i for i in rest.tolist() if i not in set(train.tolist())]
        folds.append(Fold(train.tolist(), validation, held.tolist()))
    return folds


def _from_csv(path: Path) -> QuestionSet:
    questions = []
    for line, row in read_rows(path):
        try:
            # one dict, as the multiple-choice files were made: no answer twice, and false if it is on both sides
            labels = {
                a: f == "Correct Answers" for f in ("Correct Answers", "Incorrect Answers") for a in _listed(row[f])
            }
            # the best false answer, of the two-way version of 2025, stands first
            worst, false = _closed(row.get("Best Incorrect Answer", "")), [a for a, true in labels.items() if not true]
            question = Question(
                row["Question"].strip(),
                tuple(a for a, true in labels.items() if true),
                tuple(sorted(false, key=lambda a, worst=worst: a != worst)),
                best_answer=_closed(row["Best Answer"]),
                category=row["Category"],
                source=row["Source"],
            )
        except KeyError as cause:
            raise BadDataset(f"{path}, line {line}: field {cause} is missing; is this TruthfulQA.csv?") from cause
        except BadDataset as cause:
            raise BadDataset(f"{path}, line {line}: {cause}") from cause
        questions.append(question)
    return _set(path, _in_hub_order(questions))


def _set(path: Path, questions: tuple[Question, ...]) -> QuestionSet:
    try:
        return QuestionSet(questions, name="truthfulqa")
    except BadDataset as cause:
        raise BadDataset(f"{path}: {cause}") from cause


def _listed(answers: str) -> list[str]:
    return [_closed(a) for a in answers.split(";") if a.strip()]


def _closed(answer: str) -> str:
    answer = answer.strip()
    return answer if answer.endswith(".") or not answer else answer + "."


def _in_hub_order(questions: list[Question]) -> tuple[Question, ...]:
    # the CSV's order differs between its revisions; ITI's folds are row numbers in the hub's order
    order = json.loads(files("trimtab.datasets").joinpath("data/truthfulqa_order.json").read_text())
    place = {digest: i for i, digest in enumerate(order)}
    last = len(place)
    return tuple(sorted(questions, key=lambda q: place.get(question_digest(q.question), last)))


def question_digest(question: str) -> str:
    """Return the short hash by which the shipped order knows a question."""
    return hash_of(" ".join(question.split()))[:8]


def _read_json(path: Path) -> Any:
    try:
        return json_value(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as cause:
        raise BadDataset(f"{path} cannot be read as JSON ({cause}); expected TruthfulQA's mc_task.json") from cause


def _from_multiple_choice(path: Path, rows: Any) -> QuestionSet:
    if not isinstance(rows, list):
        raise BadDataset(f"{path}: expected a list of questions, as in mc_task.json; got {type(rows).__name__}")
    questions = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadDataset(f"{path}, row {number}: expected a JSON object, got {type(row).__name__}")
        for field, kind in (("question", str), ("mc1_targets", dict), ("mc2_targets", dict)):
            if not isinstance(row.get(field), kind):
                raise BadDataset(f"{path}, row {number}: field {field!r} is missing or no {kind.__name__}")
            odd = [label for label in row[field].values() if label not in (0, 1)] if kind is dict else []
            if odd:
                raise BadDataset(f"{path}, row {number}: field {field!r} has the label {odd[0]!r}, expected 0 or 1")
        choices = row["mc2_targets"]
        best = next((answer for answer, label in row["mc1_targets"].items() if label == 1), "")
        try:
            questions.append(_question(row["question"], list(choices), list(choices.values()), best))
        except BadDataset as cause:
            raise BadDataset(f"{path}, row {number}: {cause}") from cause
    return _set(path, tuple(questions))


def _from_hub() -> QuestionSet:
    try:
        import datasets as hf_datasets
    except ImportError as cause:
        raise BadValue("TruthfulQA from the hub needs `pip install datasets`; or give the path of its CSV") from cause
    try:
        rows: Any = hf_datasets.load_dataset(HUB_ID, "multiple_choice")["validation"]
    except OSError as cause:  # no network, offline mode, or not found
        raise BadDataset(
            f"TruthfulQA cannot be had from the hub ({cause}); give the path of TruthfulQA.csv or mc_task.json"
        ) from cause
    questions = []
    for row in rows:
        one, two = row["mc1_targets"], row["mc2_targets"]
        best = one["choices"][one["labels"].index(1)]
        questions.append(_question(row["question"], two["choices"], two["labels"], best))
    return QuestionSet(tuple(questions), name="truthfulqa")


def _question(question: str, choices: list[str], labels: list[Any], best: str) -> Question:
    by_label = {kind: tuple(c for c, label in zip(choices, labels, strict=True) if label == kind) for kind in (1, 0)}
    return Question(question.strip(), by_label[1], by_label[0], best_answer=best)
