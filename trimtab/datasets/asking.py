"""How a question is put to a model: in plain form, behind a primer, or in the model's own chat template.

What is fitted, what is measured and what is tuned are asked in the same words because all of them take these forms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from trimtab.before import NOTHING, Before
from trimtab.datasets.primer import INSTRUCTION, QA_PRIMER
from trimtab.datasets.statements import MARK, Format, Statement, bare, one_line, plain, statement
from trimtab.errors import BadValue, nearest

ASKINGS = ("auto", "plain", "bare", "primer", "chat")
"""The names of ways to ask; `"auto"` is `"chat"` for a model with a chat template, else `"plain"`."""


class Asked(NamedTuple):
    """A question as it is put to a model."""

    prompt: str
    """The whole text before the answer."""
    separator: str = " "
    """The white space between the prompt and an answer that is written behind it."""
    end: str = ""
    """What stands behind such an answer."""
    template: bool = False
    """Whether a chat template wrote it: special tokens then stand in the text, and an answer ends by itself."""


class Form(ABC):
    """A way to put questions to a model."""

    name: str
    """What records call it."""
    template: ClassVar[bool] = False
    """Whether it is a model's chat template."""

    @abstractmethod
    def asked(self, question: str, before: Before = NOTHING) -> Asked:
        """Return the question behind an instruction and earlier turns; raises `BadValue` where that cannot be."""

    @abstractmethod
    def statement(self, question: str, answer: str, label: bool, group: str, before: Before = NOTHING) -> Statement:
        """Return the question with an answer as a labelled statement; raises `BadValue` where that cannot be."""


@dataclass(frozen=True)
class Joined(Form):
    """Question and answer joined by a function, blank lines between turns."""

    name: str
    join: Format
    opening: str = ""
    """What stands before a question that has nothing else before it."""

    def asked(self, question: str, before: Before = NOTHING) -> Asked:
        """Return instruction, turns and question, separated by blank lines."""
        return Asked(self._text(before, self.join(question, "").removesuffix(" ")))

    def statement(self, question: str, answer: str, label: bool, group: str, before: Before = NOTHING) -> Statement:
        """Return the statement that the function makes; raises `BadValue` if it gives no text or loses the answer."""
        return statement(lambda q, a: self._text(before, self.join(q, a)), question, answer, label, group)

    def _text(self, before: Before, last: Any) -> Any:
        return f"{ahead}{last}" if (ahead := self.ahead(before)) else last

    def ahead(self, before: Before) -> str:
        """Return what stands before a question, each part followed by a blank line."""
        texts = [before.instruction] if before.instruction else []
        texts += [self.join(q, a) for q, a in before.turns]
        return "".join(f"{text}\n\n" for text in texts or [self.opening] * bool(self.opening))


PLAIN = Joined("plain", plain)
BARE = Joined("bare", bare)
ITI = Joined("iti", plain, f"{INSTRUCTION}\n\n{QA_PRIMER}")
"""As the evaluation of Inference-Time Intervention asks: its instruction and the primer before the question."""
FORMS: Mapping[str, Form] = {
    "plain": PLAIN,
    "iti": Joined("iti", one_line),
    "bare": BARE,
    "primer": Joined("primer", plain, QA_PRIMER),
}


@dataclass(frozen=True)
class ChatTemplate(Form):
    """A model's own chat template: instructions as system message, examples as turns.

    What stands before an answer is the template's generation prompt where a written conversation goes on from it, else
    what the template writes before an answer: a template without generation prompt, or one that opens a thought to be
    written there, is so asked for the answer itself.
    """

    tokenizer: Any = field(repr=False, compare=False)
    known: dict[str, Asked] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Questions that were asked already, with nothing before them: templates take their time."""
    name: ClassVar[str] = "chat"
    template: ClassVar[bool] = True

    def asked(self, question: str, before: Before = NOTHING) -> Asked:
        """Return the question in the template.

        Raises:
            BadValue: the template does not take the conversation, or its text cannot be split before the answer.
        """
        if before != NOTHING:
            return self._split(question, before)
        if question not in self.known:
            self.known[question] = self._split(question, before)
        return self.known[question]

    def _split(self, question: str, before: Before) -> Asked:
        messages = self._messages(question, before)
        begun = self._written(messages, add_generation_prompt=True)
        whole = self._written([*messages, {"role": "assistant", "content": MARK}])
        head, mark, end = whole.rpartition(MARK)
        if not mark or MARK in head:
            raise BadValue(
                "the chat template leaves the answer out of its text or writes it twice, so that question and answer "
                "cannot be told apart; ask in plain form (--asking plain)"
            )
        goes_on = head.startswith(begun) and not head[len(begun) :].strip()
        prompt = begun if goes_on else head.rstrip(" ")
        return Asked(prompt, head[len(prompt) :], end.rstrip(), True)

    def statement(self, question: str, answer: str, label: bool, group: str, before: Before = NOTHING) -> Statement:
        """Return the question with an answer in the template; raises `BadValue` as `asked`."""
        prompt, separator, end, _ = self.asked(question, before)
        return Statement(prompt, answer.strip(), label, group, separator, end, template=True)

    def _messages(self, question: str, before: Before) -> list[dict[str, str]]:
        said = [text for turn in before.turns for text in turn] + [question]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        if not before.instruction:
            return messages
        if self.takes_system:
            return [{"role": "system", "content": before.instruction}, *messages]
        messages[0]["content"] = f"{before.instruction}\n\n{messages[0]['content']}"
        return messages

    @cached_property
    def takes_system(self) -> bool:
        """Whether it has a system message; an instruction stands before the first question where it has none."""
        messages = [{"role": "system", "content": MARK}, {"role": "user", "content": "?"}]
        try:
            return MARK in self._written(messages, add_generation_prompt=True)
        except BadValue:
            return False

    def _written(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
        except Exception as cause:  # templates are programs, and raise what they like
            raise BadValue(
                f"the chat template does not take this conversation ({cause}); ask in plain form (--asking plain)"
            ) from cause


def has_template(tokenizer: Any) -> bool:
    """Return whether the tokenizer knows how its model wants a conversation written."""
    return bool(getattr(tokenizer, "chat_template", None))


def asking_for(asking: str, tokenizer: Any, items: Any = None) -> Form:
    """Return the form of this name for a model's tokenizer.

    Args:
        asking: one of `ASKINGS`, or `"iti"` (its one-line form).
        tokenizer: the model's own.
        items: what is asked; under `"auto"` a set that says how its items are asked is asked so.

    Raises:
        BadValue: an unknown name, or a template is asked for and there is none.
    """
    own = getattr(items, "form", None)  # a list of questions has none
    if asking == "auto":
        return own or (ChatTemplate(tokenizer) if has_template(tokenizer) else PLAIN)
    if asking == "chat":
        if not has_template(tokenizer):
            raise BadValue("the tokenizer has no chat template; ask in plain form (--asking plain)")
        return ChatTemplate(tokenizer)
    if asking not in FORMS:
        raise BadValue(f"unknown way to ask {asking!r}{nearest(asking, ASKINGS)}")
    return FORMS[asking]


def asked_by(edit: Any, form: Form, question: str) -> Asked:
    """Return the question behind what the edit sets before it, or in the edit's own whole context if it has one."""
    before = edit.before(question)
    whole = edit.prompt(question) if before is None else None
    return form.asked(question, before or NOTHING) if whole is None else Asked(whole)


def form_of(format: str | Format | Form) -> Form:
    """Return the statement form of this name or function, or itself; raises `BadValue` if there is none."""
    if isinstance(format, Form):
        return format
    if callable(format):
        return Joined("own", format)
    if format not in FORMS:
        raise BadValue(f"unknown statement format {format!r}; choose {', '.join(FORMS)} or pass a callable")
    return FORMS[format]
