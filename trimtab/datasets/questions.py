"""Questions with true and false answers, and the statements made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from trimtab.datasets.item_set import ItemSet
from trimtab.errors import BadDataset, BadValue
from trimtab.intervals import seeded
from trimtab.plain_values import one_form

Format: TypeAlias = Callable[[str, str], str]
"""Turns (question, answer) into the whole text; the answer must occur in it. What follows the answer is cut off,
since a causal model's activations on the answer do not depend on it."""


def plain(question: str, answer: str) -> str:
    """Return the two-line form, `Q: ...\\nA: ...`."""
    return f"Q: {question}\nA: {answer}"


def one_line(question: str, answer: str) -> str:
    """Return ITI's one-line form, `Q: ... A: ...` (Li et al. 2023, section 3)."""
    return f"Q: {question} A: {answer}"


def bare(question: str, answer: str) -> str:
    """Return the texts joined by a space, for contrast pairs."""
    return f"{question} {answer}" if question else answer


MARK = "\x00"
"""Stands in for an answer to see where a format puts it."""
FORMATS: dict[str, Format] = {"plain": plain, "iti": one_line, "bare": bare}


@dataclass(frozen=True)
class Statement:
    """A question's text with one answer, labelled true or false."""

    prompt: str
    """The text up to the answer, without the white space between them."""
    answer: str
    label: bool
    """True for a true (or positive) answer."""
    group: str
    """The question it belongs to; splits and intervals go by it."""
    separator: str = " "
    """The white space between prompt and answer."""

    @property
    def text(self) -> str:
        """Prompt and answer as one text."""
        return self.prompt + self.separator + self.answer

    @property
    def answer_start(self) -> int:
        """The character of `text` at which the answer starts."""
        return len(self.prompt) + len(self.separator)


class SftExample(NamedTuple):
    """A prompt and the completion to learn, joined as they stand."""

    prompt: str
    completion: str


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


@dataclass(frozen=True)
class QuestionSet(ItemSet[Question]):
    """A sequence of questions; slices are question sets too.

    Raises:
        BadDataset: there are no questions, or one stands twice.
    """

    questions: tuple[Question, ...]
    name: str = "questions"
    default_format: str = "plain"
    measured_by: ClassVar[str] = "answers"

    def __post_init__(self) -> None:
        object.__setattr__(self, "questions", tuple(self.questions))
        self.require_distinct("questions", "merge its answers into one question")

    @property
    def items(self) -> tuple[Question, ...]:
        """The questions."""
        return self.questions

    def with_items(self, items: tuple[Question, ...]) -> QuestionSet:
        """Return these questions under the set's name."""
        return replace(self, questions=items)

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

    def statements(self, format: Literal["plain", "iti", "bare"] | Format | None = None) -> list[Statement]:
        """Return every answer of every question as a labelled statement.

        `format` names a form (`"plain"`: two lines, `"iti"`: one line) or is a callable
        `(question, answer) -> text`, for example one that applies a chat template.

        Raises:
            BadValue: an unknown name, or a callable that gives no text or loses the answer.
        """
        join = format_of(format or self.default_format)
        return [
            statement(join, q.question, answer, label, q.key)
            for q in self.questions
            for label, answers in ((True, q.correct), (False, q.incorrect))
            for answer in answers
        ]

    def sft_examples(self, format: Literal["plain", "iti", "bare"] | Format | None = None) -> list[SftExample]:
        """Return every true answer as a (prompt, completion) pair to tune on.

        Raises:
            BadValue: as `statements`.
        """
        return true_examples(self.statements(format))


def true_examples(statements: Iterable[Statement]) -> list[SftExample]:
    """Return the true statements as (prompt, completion) pairs to tune on."""
    return [SftExample(s.prompt, s.separator + s.answer) for s in statements if s.label]


def format_of(format: str | Format) -> Format:
    """Return the statement format of this name, or the callable that was given; raises `BadValue` if there is none."""
    if callable(format):
        return format
    if format not in FORMATS:
        raise BadValue(f"unknown statement format {format!r}; choose {', '.join(FORMATS)} or pass a callable")
    return FORMATS[format]


def statement(join: Format, question: str, answer: str, label: bool, group: str) -> Statement:
    """Return the statement that a format makes; raises `BadValue` if it gives no text or loses the answer."""
    text = join(question, answer)
    if not isinstance(text, str):
        raise BadValue(f"the statement format must return the whole text, got {text!r:.60} for {question[:60]!r}")
    start = _answer_start(join, question, answer, text)
    prompt = text[:start].rstrip()
    return Statement(prompt, answer, label, group, separator=text[len(prompt) : start])


def _answer_start(join: Format, question: str, answer: str, text: str) -> int:
    start = text.rfind(answer)
    if start < 0:
        raise BadValue(f"the statement format lost the answer {answer[:60]!r}; its text must contain the answer")
    if text.find(answer) == start:
        return start
    # a trailer may hold the answer's letters too ("end" in "<|im_end|>"): see where the format puts another answer
    marked = join(question, MARK)
    last = marked.rfind(MARK)
    shifted = last + marked.count(MARK, 0, last) * (len(answer) - len(MARK))
    return shifted if last >= 0 and text.startswith(answer, shifted) else start
