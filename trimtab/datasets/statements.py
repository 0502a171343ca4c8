"""Statement: a question's text with one answer, and the forms that are functions of the two."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from trimtab.errors import BadValue

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
    end: str = ""
    """What a chat template writes behind the answer, such as the token that ends a turn."""
    template: bool = False
    """Whether a chat template wrote it: special tokens then stand in the text, and none are added."""

    @property
    def text(self) -> str:
        """Prompt and answer as one text."""
        return self.prompt + self.separator + self.answer

    @property
    def answer_start(self) -> int:
        """The character of `text` at which the answer starts."""
        return len(self.prompt) + len(self.separator)

    @property
    def example(self) -> SftExample:
        """The prompt, and the answer with its end as what is to be learned."""
        return SftExample(self.prompt, self.separator + self.answer + self.end, self.template)


class SftExample(NamedTuple):
    """A prompt and the completion to learn, joined as they stand."""

    prompt: str
    completion: str
    template: bool = False
    """As of `Statement`."""


def true_examples(statements: Iterable[Statement]) -> list[SftExample]:
    """Return the true statements as (prompt, completion) pairs to tune on."""
    return [s.example for s in statements if s.label]


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
