"""Questions as a model wants them asked, in its chat template or in plain form, and its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from trimtab.engine.completion import AnswerEnd, cut
from trimtab.engine.generate import Decoding, continuations
from trimtab.errors import BadDataset, BadValue
from trimtab.models.tokens import encode
from trimtab.protocols import Edit


class Turn(NamedTuple):
    """A question and the answer it got."""

    question: str
    answer: str


def has_template(tokenizer: Any) -> bool:
    """Return whether the tokenizer knows how its model wants a conversation written."""
    return bool(getattr(tokenizer, "chat_template", None))


def prompt_ids(
    tokenizer: Any, question: str, history: Sequence[Turn] = (), *, template: bool | None = None
) -> list[int]:
    """Return the tokens that ask the question after a conversation, ready for the answer to follow.

    `template` forces the chat template or (False) the plain form, `Q: ...\\nA: ...` with blank lines between; the
    template is used where there is one if not given.

    Raises:
        BadDataset: the question is not UTF-8 text.
        BadValue: a template is asked for and there is none, or it does not take this conversation.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in question):  # how Python passes on bytes that are no text
        shown = question.encode("utf-8", "backslashreplace").decode()
        raise BadDataset(f"the question '{shown[:60]}' is not UTF-8 text; give it in UTF-8")
    if template is None:
        template = has_template(tokenizer)
    if not template:
        turns = [f"Q: {t.question}\nA: {t.answer}" for t in history]
        return encode(tokenizer, "\n\n".join([*turns, f"Q: {question}\nA:"]))
    if not has_template(tokenizer):
        raise BadValue("the tokenizer has no chat template; ask in plain form")
    messages = []
    for turn in history:
        messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
    messages.append({"role": "user", "content": question})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as cause:  # templates are programs, and raise what they like
        raise BadValue(f"the chat template does not take this conversation ({cause}); ask in plain form") from cause
    # the template writes the special tokens itself
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[str],
    edit: Edit | None = None,
    *,
    template: bool | None = None,
    settings: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> list[str]:
    """Return the edited model's answers to single questions.

    Args:
        template: as in `prompt_ids`. In plain form an answer ends at the next question or blank line.
        settings: options of `generate`, such as `do_sample` and `temperature`; greedy, 50 new tokens if not given.
            Of the checkpoint's own generation defaults those of sampling hold, where sampling is asked for.

    Raises:
        BadDataset: there are no questions, or one is empty.
        BadValue, UnsupportedModel, Incompatible: as `continuations`.
    """
    if not questions or not all(q.strip() for q in questions):
        raise BadDataset("no question to answer" if not questions else "one of the questions is empty")
    template = has_template(tokenizer) if template is None else template
    ids = [prompt_ids(tokenizer, q, template=template) for q in questions]
    (texts,) = continuations(
        model, tokenizer, ids, [edit], _decoding(tokenizer, template, settings), batch_size=batch_size
    )
    return [_answer_in(text, template) for text in texts]


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
    return _answer_in(text, template)


def _decoding(tokenizer: Any, template: bool, settings: Mapping[str, Any] | None) -> Decoding:
    options = dict(settings or {})
    new = options.pop("max_new_tokens", Decoding.max_new_tokens)
    return Decoding(new, options, ends=None if template else lambda length: AnswerEnd(tokenizer, length))


def _answer_in(text: str, template: bool) -> str:
    return text.strip() if template else cut(text)
