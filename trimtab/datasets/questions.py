"""Questions with true and false answers, and the statements made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from trimtab.datasets.asking import Form, form_of
from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.statements import Format, SftExample, Statement, true_examples
from trimtab.errors import BadDataset
from trimtab.intervals import seeded
from trimtab.plain_values import one_form


@dataclass(frozen=True)
class Question:
    """A question with its true and false answers.

    Raises:
        BadDataset: no true or no false answer, an empty one, one that stands twice or on both sides, or a best answer
            that is not among the true ones.
    """

    question: str
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]
    best_answer: str = ""
    """The correct answer that MC1 uses; the first one if not given."""
    category: str = ""
    source: str = ""
    explanation: str = ""
    """One sentence that says why."""

    def __post_init__(self) -> None:
        if not isinstance(self.question, str):
            raise BadDataset(f"a question must be a text, got {self.question!r:.60}")
        what = f"question {self.question[:60]!r}"
        true, false = two_sides(what, ("true answer", self.correct), ("false answer", self.incorrect))
        object.__setattr__(self, "correct", true)
        object.__setattr__(self, "incorrect", false)
        if not self.best_answer:
            object.__setattr__(self, "best_answer", self.correct[0])
        if self.best_answer not in self.correct:
            raise BadDataset(f"{what}: best answer {self.best_answer!r} is not among the true answers; add it there")

    @property
    def key(self) -> str:
        """What tells it from other questions, also after a split: its text, accents written in one way."""
        return one_form(self.question)

    @property
    def asked(self) -> str:
        """The question."""
        return self.question


def two_sides(what: str, one: tuple[str, Any], other: tuple[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the texts of two sides, each given with the kind's name, such as "true answer".

    Raises:
        BadDataset: a side has no text, an empty one or one twice, or one stands on both.
    """
    for kind, texts in (one, other):
        if not isinstance(texts, list | tuple) or not all(isinstance(a, str) for a in texts):
            raise BadDataset(f"{what}: the {kind}s must be a list of texts, got {texts!r}")
        if not texts or not all(a.strip() for a in texts):
            raise BadDataset(f"{what} has no {kind} or an empty one; give at least one of each kind")
        alike = [one_form(a) for a in texts]
        if len(set(alike)) < len(alike):
            again = next(a for i, a in enumerate(alike) if a in alike[:i])
            raise BadDataset(f"{what} lists the {kind} {again!r} twice; keep it once")
    both = set(map(one_form, one[1])) & set(map(one_form, other[1]))
    if both:
        words = (kind.split()[0] for kind, _ in (one, other))
        raise BadDataset(f"{what} lists {both.pop()!r} as {' and as '.join(words)}; keep it on one side")
    return tuple(one[1]), tuple(other[1])


def dealt_anew(
    one: Sequence[str], other: Sequence[str], rng: np.random.Generator
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return two sides of the same sizes, of all texts at random."""
    texts = [*one, *other]
    mixed = [texts[i] for i in rng.permutation(len(texts))]
    return tuple(mixed[: len(one)]), tuple(mixed[len(one) :])


@dataclass(frozen=True, repr=False)
class QuestionSet(ItemSet[Question]):
    """A sequence of questions; slices are question sets too.

    Raises:
        BadDataset: there are no questions, or one stands twice.
    """

    questions: tuple[Question, ...]
    name: str = "questions"
    default_format: str = "plain"
    form: Form | None = field(default=None, compare=False, repr=False)
    """How its questions are asked (`asked_as`); in the default format if not given."""
    measured_by: ClassVar[str] = "answers"

    def __post_init__(self) -> None:
        object.__setattr__(self, "questions", tuple(self.questions))
        self.require_distinct("questions", "merge its answers into one question")

    def form_for(self, item: Question) -> Form:  # noqa: ARG002
        """Return how a question is asked."""
        return self.form or form_of(self.default_format)

    def texts(self, item: Question) -> Sequence[Any]:
        """Return a question with its answers."""
        return [item.question, item.correct, item.incorrect, item.best_answer]

    def shuffled(self, seed: int) -> QuestionSet:
        """Return the questions, each with as many true answers as before, drawn from all of its answers."""
        rng = seeded(seed)
        dealt = [dealt_anew(q.correct, q.incorrect, rng) for q in self.questions]
        return self.with_items(
            tuple(
                replace(q, correct=true, incorrect=false, best_answer=true[0])
                for q, (true, false) in zip(self.questions, dealt, strict=True)
            )
        )

    def statements(self, format: Literal["plain", "iti", "bare"] | Format | Form | None = None) -> list[Statement]:
        """Return every answer of every question as a labelled statement.

        `format` names a form (`"plain"`: two lines, `"iti"`: one line) or is a callable
        `(question, answer) -> text`; the set's own form (see `asked_as`) if not given.

        Raises:
            BadValue: an unknown name, or a callable that gives no text or loses the answer.
        """
        own = None if format is None else form_of(format)
        return [
            (own or self.form_for(q)).statement(q.question, answer, label, q.key)
            for q in self.questions
            for label, answers in ((True, q.correct), (False, q.incorrect))
            for answer in answers
        ]

    def sft_examples(self, format: Literal["plain", "iti", "bare"] | Format | Form | None = None) -> list[SftExample]:
        """Return every true answer as a (prompt, completion) pair to tune on.

        Raises:
            BadValue: as `statements`.
        """
        return true_examples(self.statements(format))
