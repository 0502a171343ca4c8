"""as_items and as_questions: whatever holds questions, pairs or facts, as a set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from trimtab.datasets.facts import Fact, FactSet
from trimtab.datasets.files import from_list
from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.pairs import ContrastPair, PairSet
from trimtab.datasets.questions import Question, QuestionSet
from trimtab.errors import BadDataset

Rows: TypeAlias = ItemSet[Any] | Iterable[Any]
"""A set, or a list of items or of mappings with the fields of a file, or a `datasets.Dataset` of Hugging Face."""


def as_items(given: Any) -> Any:
    """Return questions, pairs or facts as a set: a set as it is, else a list of items, of mappings, or a Dataset.

    Raises:
        BadDataset: something else.
    """
    if isinstance(given, ItemSet):
        return given
    if isinstance(given, str | bytes | Path | Mapping) or not isinstance(given, Iterable):
        raise BadDataset(
            f"{given!r:.60} is no set of questions or pairs; read a file by trimtab.datasets.from_file, or give a list"
        )
    rows = list(given)
    for kind, whole in ((Question, QuestionSet), (ContrastPair, PairSet), (Fact, FactSet)):
        if rows and all(isinstance(row, kind) for row in rows):
            return whole(tuple(rows))
    return from_list(rows)


def as_questions(given: Any) -> Sequence[Question]:
    """Return questions as they are, and what else holds them as a set; raises `BadDataset` as `as_items`."""
    if isinstance(given, ItemSet) or (isinstance(given, list | tuple) and all(isinstance(q, Question) for q in given)):
        return given
    return as_items(given)
