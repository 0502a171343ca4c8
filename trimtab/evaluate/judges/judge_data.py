"""TruthfulQA's judge data: questions with answers and what people said of them, as judges are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trimtab.datasets.files import read_rows
from trimtab.datasets.questions import Question
from trimtab.errors import BadDataset
from trimtab.intervals import seeded
from trimtab.plain_values import one_form

FILES = {"true": "finetune_truth.jsonl", "informative": "finetune_info.jsonl"}
WORDS = {"true": "True:", "informative": "Helpful:"}
"""What stands behind question and answer, and asks for yes or no."""
HELD_OUT = 0.2
"""Share of the questions, and then of the other questions' answers, that agreement is measured on."""


class Graded(NamedTuple):
    """One line of judge data: a question with an answer, and what a person said of it."""

    text: str
    """`Q: ...\\nA: ...`."""
    question: str
    """`Q: ...`."""
    label: bool

    @property
    def answer(self) -> str:
        """The answer alone."""
        return self.text.removeprefix(self.question).removeprefix("\nA:").strip()


class Divided(NamedTuple):
    """Judge data: to train on, and two parts that tell how far a judge agrees with people."""

    train: list[Graded]
    answers: list[Graded]
    """Other answers to the questions that are trained on."""
    questions: list[Graded]
    """Answers to questions that are not."""


def read_judge_data(folder: str | Path) -> dict[str, list[Graded]]:
    """Return the lines of both files of a folder.

    Raises:
        BadDataset: a file cannot be read or holds something else; the message names file and line.
    """
    missing = [name for name in FILES.values() if not (Path(folder) / name).is_file()]
    if missing:
        raise BadDataset(f"no {' and no '.join(missing)} in {folder}: expected TruthfulQA's judge data there")
    return {kind: _read(Path(folder) / name) for kind, name in FILES.items()}


def _read(path: Path) -> list[Graded]:
    rows = []
    for line, row in read_rows(path):
        prompt, label = row.get("prompt"), str(row.get("completion", "")).strip()
        text = prompt.rsplit("\n", 1)[0] if isinstance(prompt, str) else ""
        if not text.startswith("Q:") or "\nA:" not in text or label not in ("yes", "no"):
            raise BadDataset(
                f"{path}, line {line}: expected a prompt 'Q: ...', 'A: ...', 'True:' and a completion yes or no"
            )
        rows.append(Graded(text, text.split("\nA:")[0], label == "yes"))
    if not rows:
        raise BadDataset(f"{path} is empty; expected judge data")
    return rows


def divided_by_question(rows: Sequence[Graded], seed: int, what: str) -> tuple[list[Graded], list[Graded]]:
    """Return the lines of four fifths of the questions, and those of the rest.

    Raises:
        BadDataset: fewer than five questions, or one label only.
    """
    questions = sorted({row.question for row in rows})
    if len(questions) < 5 or len({row.label for row in rows}) < 2:
        raise BadDataset(f"{what}: a judge needs five questions or more and both labels; got {len(questions)}")
    order = seeded(seed).permutation(len(questions))
    held = {questions[i] for i in order[: max(1, round(HELD_OUT * len(questions)))]}
    train, test = ([r for r in rows if (r.question in held) == side] for side in (False, True))
    return train, test


def judge_parts(rows: Sequence[Graded], seed: int, what: str) -> Divided:
    """Return the lines to train on, a fifth of their answers, and the lines of a fifth of the questions, all apart.

    Raises:
        BadDataset: as `divided_by_question`.
    """
    rest, questions = divided_by_question(rows, seed, what)
    texts = sorted({row.text for row in rest})
    order = np.random.default_rng([seed, 1]).permutation(len(texts))
    held = {texts[i] for i in order[: max(1, round(HELD_OUT * len(texts)))]}
    train, answers = ([r for r in rest if (r.text in held) == side] for side in (False, True))
    if len({row.label for row in train}) < 2 or not answers:
        raise BadDataset(f"{what}: the part to train on has one label only, or too few answers; give more lines")
    return Divided(train, answers, questions)


def questions_of(rows: Sequence[Graded]) -> list[Question]:
    """Return the questions that have answers of both labels, for trying a judge on nonsense."""
    sides: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
    for row in rows:
        side = sides.setdefault(row.question.removeprefix("Q:").strip(), ({}, {}))[not row.label]
        if row.answer:
            side.setdefault(one_form(row.answer), row.answer)
    found = []
    for question, (true, false) in sides.items():
        only = {key: text for key, text in true.items() if key not in false}
        if only and false and question:
            found.append(Question(question, tuple(only.values()), tuple(false.values())))
    return found
