"""Questions as a model wants them asked, in its chat template or in plain form, and its answers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from trimtab.before import NOTHING, Before
from trimtab.datasets.asking import Form, asking_for
from trimtab.engine.batching import alike_together
from trimtab.engine.completion import answer_end, cut
from trimtab.engine.generate import Decoding, continuations
from trimtab.errors import BadDataset
from trimtab.models.tokens import encode
from trimtab.protocols import Edit


class Turn(NamedTuple):
    """A question and the answer it got."""

    question: str
    answer: str


def prompt_ids(
    tokenizer: Any,
    question: str,
    history: Sequence[Turn] = (),
    *,
    asking: str | Form = "auto",
    edit: Edit | None = None,
) -> list[int]:
    """Return the tokens that ask the question after a conversation, ready for the answer to follow.

    Args:
        asking: as in `QuestionSet.asked_as`, or a form. In plain form turns are `Q: ...\\nA: ...` with blank lines
            between; the chat template is used where there is one.
        edit: what it sets before questions stands before the conversation.

    Raises:
        BadDataset: the question is not UTF-8 text.
        BadValue: a template is asked for and there is none, or it does not take this conversation.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in question):  # how Python passes on bytes that are no text
        shown = question.encode("utf-8", "backslashreplace").decode()
        raise BadDataset(f"the question '{shown[:60]}' is not UTF-8 text; give it in UTF-8")
    form = asking_for(asking, tokenizer) if isinstance(asking, str) else asking
    before = (edit and edit.before(question)) or NOTHING
    asked = form.asked(question, Before(before.instruction, [*before.turns, *history]))
    return encode(tokenizer, asked.prompt, template=asked.template)


def answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[str],
    edit: Edit | None = None,
    *,
    asking: str = "auto",
    settings: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> list[str]:
    """Return the edited model's answers to single questions.

    Args:
        asking: as in `prompt_ids`. In plain form an answer ends at the next question or blank line.
        settings: options of `generate`, such as `do_sample` and `temperature`; greedy, 50 new tokens if not given.
            Of the checkpoint's own generation defaults those of sampling hold, where sampling is asked for.

    Raises:
        BadDataset: there are no questions, or one is empty.
        BadValue, UnsupportedModel, Incompatible: as `continuations`.
    """
    how = {"asking": asking, "settings": settings, "batch_size": batch_size}
    return answers_many(model, tokenizer, questions, [edit], **how)[0]


def answers_many(
    model: Any,
    tokenizer: Any,
    questions: Sequence[str],
    edits: Sequence[Edit | None],
    *,
    asking: str = "auto",
    settings: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> list[list[str]]:
    """Return `answers` under every edit; what edits and prompts share is computed once, as in `continuations`.

    Raises:
        BadDataset: there are no questions, or one is empty.
        BadValue, UnsupportedModel, Incompatible: as `continuations`.
    """
    if not questions or not all(q.strip() for q in questions):
        raise BadDataset("no question to answer" if not questions else "one of the questions is empty")
    form = asking_for(asking, tokenizer)
    for edit in edits:
        note_asked_otherwise(edit, form.name)
    asked = [tuple(tuple(prompt_ids(tokenizer, q, asking=form, edit=edit)) for q in questions) for edit in edits]
    decoding = _decoding(tokenizer, form.template, settings)

    def go_on(places: list[int]) -> list[list[str]]:
        group = [edits[i] for i in places]
        return continuations(model, tokenizer, asked[places[0]], group, decoding, batch_size=batch_size)

    return [[cut(text, template=form.template) for text in texts] for texts in alike_together(asked, go_on)]


def note_asked_otherwise(edit: Edit | None, asking: str) -> None:
    """Warn where an edit was made with questions asked in another way than it is used with now."""
    if edit is not None and edit.asked_as not in ("", asking):
        warnings.warn(
            f"{edit.name} was made with questions asked in {edit.asked_as} form and is used in {asking} form, where "
            f"it may do less; ask as it was made (--asking {edit.asked_as})",
            stacklevel=3,
        )


def reply(
    model: Any,
    tokenizer: Any,
    ids: Sequence[int],
    edit: Edit | None = None,
    *,
    template: bool,
    settings: Mapping[str, Any] | None = None,
    streamer: Any = None,
) -> str:
    """Return the edited model's answer to a prompt of `prompt_ids`, streaming it on the way if wanted.

    Args:
        template: whether the prompt was written with the chat template; in plain form the answer ends at the next
            question or blank line.
        settings: as in `answers`.
        streamer: what `generate` takes under that name.

    Raises:
        BadValue, UnsupportedModel, Incompatible: as `continuations`.
    """
    decoding = replace(_decoding(tokenizer, template, settings), streamer=streamer)
    ((text,),) = continuations(model, tokenizer, [ids], [edit], decoding)
    return cut(text, template=template)


def _decoding(tokenizer: Any, template: bool, settings: Mapping[str, Any] | None) -> Decoding:
    options = dict(settings or {})
    new = options.pop("max_new_tokens", Decoding.max_new_tokens)
    return Decoding(new, options, ends=answer_end(tokenizer, template=template))
