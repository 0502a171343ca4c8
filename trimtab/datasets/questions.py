"""Questions with true and false answers, the statements made of them, and splits that never part a question."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, SupportsIndex, TypeAlias, overload

import numpy as np

from trimtab.errors import BadDataset, BadValue
from trimtab.intervals import number_held_out, seeded
from trimtab.plain_values import hash_of

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
        what = f"question {self.question[:60]!r}" if self.question else "the pair"
        for kind, field in (("true", "correct"), ("false", "incorrect")):
            answers = getattr(self, field)
            if not isinstance(answers, list | tuple) or not all(isinstance(a, str) for a in answers):
                raise BadDataset(f"{what}: the {kind} answers must be a list of texts, got {answers!r}")
            if not answers or not all(a.strip() for a in answers):
                raise BadDataset(f"{what} has no {kind} answer or an empty one; give at least one of each kind")
            if len(set(answers)) < len(answers):
                again = next(a for i, a in enumerate(answers) if a in answers[:i])
                raise BadDataset(f"{what} lists the {kind} answer {again!r} twice; keep it once")
            object.__setattr__(self, field, tuple(answers))
        both = set(self.correct) & set(self.incorrect)
        if both:
            raise BadDataset(f"{what} lists {both.pop()!r} as true and as false; keep it on one side")
        if not self.best_answer:
            object.__setattr__(self, "best_answer", self.correct[0])
        if self.best_answer not in self.correct:
            raise BadDataset(f"{what}: best answer {self.best_answer!r} is not among the true answers; add it there")

    @property
    def key(self) -> str:
        """What tells it from other questions, also after a split: its text, or for a bare pair a hash of its texts."""
        if self.question:
            return self.question
        texts = json.dumps([self.correct, self.incorrect], ensure_ascii=False)
        return f"pair {hash_of(texts)[:12]}"


@dataclass(frozen=True)
class QuestionSet(Sequence[Question]):
    """A sequence of questions; slices are question sets too.

    Raises:
        BadDataset: there are no questions, or one stands twice.
    """

    questions: tuple[Question, ...]
    name: str = "questions"
    default_format: str = "plain"

    def __post_init__(self) -> None:
        if not self.questions:
            raise BadDataset(f"{self.name}: no questions; at least one is needed")
        object.__setattr__(self, "questions", tuple(self.questions))
        for text, times in Counter(q.key for q in self.questions).most_common(1):
            if times > 1:
                raise BadDataset(f"{self.name}: {text!r} stands {times} times; merge its answers into one question")

    def __len__(self) -> int:
        return len(self.questions)

    def __iter__(self) -> Iterator[Question]:
        return iter(self.questions)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> QuestionSet: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Question | QuestionSet:
        """Return one question, or a question set for a slice."""
        if isinstance(index, slice):
            return replace(self, questions=self.questions[index])
        return self.questions[index]

    def select(self, indices: Iterable[SupportsIndex]) -> QuestionSet:
        """Return the questions at these places, in this order."""
        return replace(self, questions=tuple(self.questions[int(i)] for i in indices))

    def where(self, keep: Callable[[Question], bool]) -> QuestionSet:
        """Return the questions for which `keep` is true; raises `BadDataset` if there is none."""
        return replace(self, questions=tuple(q for q in self.questions if keep(q)))

    @property
    def fingerprint(self) -> str:
        """A hash of all texts, for records: equal sets in equal order have equal fingerprints."""
        rows = [[q.question, q.correct, q.incorrect, q.best_answer] for q in self.questions]
        return hash_of(json.dumps(rows, ensure_ascii=False))[:16]

    def split(self, *, test: float = 0.5, seed: int = 0) -> tuple[QuestionSet, QuestionSet]:
        """Return (train, test); `test` is the share of questions held out. Order within a side is the set's own.

        Raises:
            BadDataset: one side would be empty.
            BadValue: a seed that is no whole number of 0 or more.
        """
        n_test = number_held_out(test, len(self), f"{self.name}: ")
        order = seeded(seed).permutation(len(self))
        return self.select(sorted(order[n_test:])), self.select(sorted(order[:n_test]))

    def folds(self, n: int, seed: int = 0) -> list[tuple[QuestionSet, QuestionSet]]:
        """Return n pairs (train, test) whose test parts cover every question once.

        Raises:
            BadValue: fewer than 2 folds or more than there are questions; a seed that is no whole number of 0 or more.
        """
        if not 2 <= n <= len(self):
            raise BadValue(f"{self.name}: cannot make {n} folds of {len(self)} questions; choose 2 to {len(self)}")
        parts = np.array_split(seeded(seed).permutation(len(self)), n)
        everything = set(range(len(self)))
        return [(self.select(sorted(everything - set(p.tolist()))), self.select(sorted(p))) for p in parts]

    def statements(self, format: Literal["plain", "iti", "bare"] | Format | None = None) -> list[Statement]:
        """Return every answer of every question as a labelled statement.

        `format` names a form (`"plain"`: two lines, `"iti"`: one line) or is a callable
        `(question, answer) -> text`, for example one that applies a chat template.

        Raises:
            BadValue: an unknown name, or a callable that gives no text or loses the answer.
        """
        join = self._format(format)
        return [
            _statement(join, q.question, answer, label, q.key)
            for q in self.questions
            for label, answers in ((True, q.correct), (False, q.incorrect))
            for answer in answers
        ]

    def sft_examples(self, format: Literal["plain", "iti", "bare"] | Format | None = None) -> list[SftExample]:
        """Return every true answer as a (prompt, completion) pair to tune on.

        Raises:
            BadValue: as `statements`.
        """
        true = (s for s in self.statements(format) if s.label)
        return [SftExample(s.prompt, s.separator + s.answer) for s in true]

    def _format(self, format: str | Format | None) -> Format:
        if callable(format):
            return format
        name = format or self.default_format
        if name not in FORMATS:
            raise BadValue(f"unknown statement format {name!r}; choose {', '.join(FORMATS)} or pass a callable")
        return FORMATS[name]


def _statement(join: Format, question: str, answer: str, label: bool, group: str) -> Statement:
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
