"""The questions that ship with trimtab: popular false beliefs and what is so, written for this project."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Literal

from trimtab.datasets.questions import Question, QuestionSet
from trimtab.errors import BadValue
from trimtab.plain_values import hash_of


def folklore(part: Literal["all", "development", "final"] = "all") -> QuestionSet:
    """Return the folklore questions: each has two or more true and two or more popular but false answers.

    A fixed fifth of them, chosen by a hash of the question, is the final part: trimtab's own recipe, trained seed,
    heads and strengths were chosen without it. `part="development"` is the rest.

    Raises:
        BadValue: an unknown part.
    """
    lines = files("trimtab.datasets").joinpath("data/folklore.jsonl").read_text(encoding="utf-8").splitlines()
    questions = QuestionSet(tuple(_question(json.loads(line)) for line in lines), name="folklore")
    if part == "all":
        return questions
    if part not in ("development", "final"):
        raise BadValue(f"folklore has no part {part!r}; choose all, development or final")
    return questions.where(lambda q: is_final(q.question) == (part == "final"))


def is_final(question: str) -> bool:
    """Return whether a question belongs to the final part: its SHA-256 is divisible by five."""
    return int(hash_of(question), 16) % 5 == 0


def _question(row: dict[str, object]) -> Question:
    return Question(
        question=str(row["question"]),
        correct=tuple(row["correct"]),  # pyright: ignore[reportArgumentType]
        incorrect=tuple(row["incorrect"]),  # pyright: ignore[reportArgumentType]
        category=str(row["category"]),
        explanation=str(row["why"]),
        source="trimtab",
    )
