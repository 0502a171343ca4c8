"""Choices with one right answer, for capability: a hundred that ship, and files of MMLU's, ARC's and one's own form."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from trimtab.datasets.files import read_rows
from trimtab.datasets.questions import Question, QuestionSet
from trimtab.errors import BadDataset

FORMS = (
    "expected `question` with `correct` and `incorrect`; with `choices` (texts) and `answer` (a letter or a place from "
    "0, as MMLU has it; columns A to D will do); or `question` or its `stem` with `choices` (texts with labels) and "
    "`answerKey`, as ARC has it"
)
LETTERS = "ABCDEFGH"


def capability() -> QuestionSet:
    """Return a hundred two-way choices in plain English, written for this project.

    General knowledge (34), arithmetic (33) and common sense (33). They tell whether an edit broke a model that could
    answer them; a model that could not, such as the embedded one, which knows only its own world, tells nothing.
    """
    text = files("trimtab.datasets").joinpath("data/capability.jsonl").read_text(encoding="utf-8")
    return QuestionSet(
        tuple(
            Question(row["question"], tuple(row["correct"]), tuple(row["incorrect"]), category=row["category"])
            for row in map(json.loads, text.splitlines())
        ),
        "capability",
    )


def choices(path: str | Path) -> QuestionSet:
    """Return the questions of a `.jsonl`, `.csv` or `.json` file, each with one right answer and the wrong ones.

    Forms: trimtab's own (`question`, `correct`, `incorrect`), MMLU's (`question`, `choices`, `answer`), that of
    contrast sets (`prompt`, `correct_full_text`, `incorrect_full_text`) and ARC's (`question`, `choices` with labels,
    `answerKey`). A question that stands twice is read once, with a warning.

    Raises:
        BadDataset: the file cannot be read or holds none; a row has no right answer, or none that is wrong; the
            message names the line.
    """
    found: dict[str, Question] = {}
    twice = []
    for line, row in read_rows(path):
        asked, texts, right = _read(path, line, row)
        if not 0 <= right < len(texts):
            raise BadDataset(f"{path}, line {line}: no right answer among its {len(texts)} choices; {FORMS}")
        wrong = tuple(text for i, text in enumerate(texts) if i != right)
        try:
            question = Question(
                asked, (texts[right],), wrong, category=str(row.get("category", row.get("subject", "")))
            )
        except BadDataset as cause:
            raise BadDataset(f"{path}, line {line}: {cause}") from cause
        if found.setdefault(question.key, question) is not question:
            twice.append(line)
    if twice:
        warnings.warn(f"{path}: {len(twice)} questions stand twice and are read once (line {twice[0]})", stacklevel=2)
    if not found:
        raise BadDataset(f"{path} holds no choices; {FORMS}")
    return QuestionSet(tuple(found.values()), Path(path).stem)


def _read(path: str | Path, line: int, row: Mapping[str, Any]) -> tuple[str, Sequence[str], int]:
    """Return what is asked, the texts to choose among and the place of the right one, -1 if there is none."""
    asked, texts, right = row.get("question"), row.get("choices"), row.get("answerKey", row.get("answer"))
    if isinstance(asked, dict):
        asked, texts = asked.get("stem"), asked.get("choices")
    if isinstance(texts, dict):  # ARC on the hub: two lists
        texts = [{"text": t, "label": k} for t, k in zip(texts.get("text", ()), texts.get("label", ()), strict=False)]
    if texts is None and "A" in row:
        texts = [row[letter] for letter in LETTERS if letter in row]
    if "correct_full_text" in row:
        asked = str(row.get("prompt", "")).split("\n\nChoices:")[0]
        texts, right = [row["correct_full_text"], row.get("incorrect_full_text")], 0
    if "correct" in row and texts is None:
        sides = [
            [row[side]] if isinstance(row[side], str) else row[side] for side in ("correct", "incorrect") if side in row
        ]
        texts, right = [text for side in sides for text in side or ()], 0 if len(sides) == 2 and sides[0] else -1
    labels = [one.get("label") for one in texts if isinstance(one, dict)] if isinstance(texts, list) else []
    plain = [one.get("text") if isinstance(one, dict) else one for one in texts or ()]
    said = [text.strip() for text in plain if isinstance(text, str)]
    if not isinstance(asked, str) or not said or len(said) < len(plain):
        raise BadDataset(f"{path}, line {line}: no question with choices; {FORMS}")
    return asked.strip(), said, _place(right, labels)


def _place(right: Any, labels: Sequence[Any]) -> int:
    if right in labels:
        return labels.index(right)
    text = str(right).strip().upper()
    if len(text) == 1 and text in LETTERS and not labels:
        return LETTERS.index(text)
    return int(text) if text.isdigit() and not labels else -1
