"""Questions as a model wants them asked, in its chat template or in plain form, and its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trimtab.edits.combined import NoEdit
from trimtab.engine.completion import AnswerEnd, cut
from trimtab.errors import BadDataset, BadValue
from trimtab.models.anatomy import input_device
from trimtab.models.calling import inference
from trimtab.models.tokens import context_length, encode, length_batches, pad_id, require_left_padding
from trimtab.progress import tracked
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
    batch_size: int = 16,
) -> list[str]:
    """Return the edited model's answers to single questions.

    Args:
        template: as in `prompt_ids`. In plain form an answer ends at the next question or blank line.
        settings: options of `generate`, such as `do_sample` and `temperature`; greedy, 50 new tokens if not given.

    Raises:
        BadDataset: there are no questions, or one is empty.
        BadValue: prompt and answer do not fit the model's context; settings that `generate` refuses.
        Incompatible: the model is in PEFT's prompt learning, which does not bear left padding.
    """
    edit = NoEdit() if edit is None else edit
    if not questions or not all(q.strip() for q in questions):
        raise BadDataset("no question to answer" if not questions else "one of the questions is empty")
    require_left_padding(model)
    template = has_template(tokenizer) if template is None else template
    ids = [prompt_ids(tokenizer, q, template=template) for q in questions]
    device, texts = input_device(model), [""] * len(ids)
    batches = list(length_batches(ids, batch_size=batch_size, pad=pad_id(tokenizer), device=device, side="left"))
    with edit.applied(model) as edited, inference(edited):
        for batch in tracked(batches, "answering"):
            new = _continued(edited, tokenizer, batch.input_ids, batch.attention_mask, template, settings)
            for place, text in zip(batch.indices, new, strict=True):
                texts[place] = text
    return texts


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
        BadValue: prompt and answer do not fit the model's context; settings that `generate` refuses.
    """
    import torch

    edit = NoEdit() if edit is None else edit
    tokens = torch.tensor([list(ids)], device=input_device(model))
    with edit.applied(model) as edited, inference(edited):
        return _continued(edited, tokenizer, tokens, torch.ones_like(tokens), template, settings, streamer)[0]


def _continued(
    model: Any,
    tokenizer: Any,
    input_ids: Any,
    attention_mask: Any,
    template: bool,
    settings: Mapping[str, Any] | None,
    streamer: Any = None,
) -> list[str]:
    length = input_ids.shape[1]
    options = {"max_new_tokens": 50, "do_sample": False, **(settings or {})}
    context, new = context_length(model), options["max_new_tokens"]
    if context is not None and length + new > context:
        raise BadValue(
            f"{length} tokens of prompt and {new} new ones do not fit the model's context of {context}; shorten the "
            "prompt (in a chat: /new) or ask for fewer new tokens"
        )
    if not options["do_sample"]:
        options = {"temperature": None, "top_p": None, "top_k": None, **options}
    ends = [] if template else [AnswerEnd(tokenizer, length)]
    try:
        out = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=True,
            pad_token_id=pad_id(tokenizer),
            stopping_criteria=ends,
            streamer=streamer,
            **options,
        )
    except ValueError as cause:  # what transformers raises over its options
        raise BadValue(f"these generation options were refused: {str(cause).splitlines()[0]}") from cause
    texts = tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
    return [text.strip() if template else cut(text) for text in texts]
