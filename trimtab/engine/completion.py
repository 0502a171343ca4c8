"""Greedy answers to prompts, each up to where the next question or paragraph would begin."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from trimtab.engine.batching import alike_together
from trimtab.engine.generate import Decoding, continuations
from trimtab.models.processes import over_processes
from trimtab.models.tokens import encode_all
from trimtab.protocols import Edit

NEXT_QUESTION = re.compile(r"(?<!\w)Q:")
"""Where an answer ends; not inside a word such as "FAQ:"."""


def completions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    edits: Sequence[Edit],
    *,
    max_new_tokens: int = 50,
    batch_size: int | None = None,
    **form: bool,
) -> list[list[str]]:
    """Return for every edit the greedy continuation of every prompt, up to the next question, paragraph or end token.

    What the edits and prompts share is computed once, as in `continuations`. Under a launcher every process continues a
    stretch of the prompts; all get all texts.

    Args:
        form: `paragraphs`: an answer may have several, and an `A:` that the model writes itself is where it begins; or
            `template`: a chat template wrote the prompts, and answers end by themselves.

    Raises:
        BadValue, UnsupportedModel, Incompatible: as `continuations`.
    """
    template = form.get("template", False)
    decoding = Decoding(max_new_tokens, ends=answer_end(tokenizer, **form))

    def part(ids: Sequence[list[int]]) -> list[tuple[str, ...]]:
        found = continuations(model, tokenizer, ids, edits, decoding, batch_size=batch_size)
        return list(zip(*([cut(text, **form) for text in texts] for texts in found), strict=True))

    texts = over_processes(encode_all(tokenizer, prompts, template=template), part)
    return [list(of_edit) for of_edit in zip(*texts, strict=True)]


def completions_of(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Sequence[str]],
    edits: Sequence[Edit],
    forms: Sequence[Mapping[str, bool]],
    **options: Any,
) -> list[list[str]]:
    """Return `completions` where every edit has prompts of its own, in a form of its own: those that ask alike at once.

    Raises:
        BadValue, UnsupportedModel, Incompatible: as `continuations`.
    """

    def complete(places: list[int]) -> list[list[str]]:
        first, group = places[0], [edits[i] for i in places]
        return completions(model, tokenizer, asked[first], group, **forms[first], **options)

    keys = [(tuple(prompts), tuple(form.items())) for prompts, form in zip(asked, forms, strict=True)]
    return alike_together(keys, complete)


def answer_end(
    tokenizer: Any, *, paragraphs: bool = False, template: bool = False
) -> Callable[[int], AnswerEnd] | None:
    """Return what ends answers behind prompts of a length, or None in a chat template, where they end by themselves."""
    return None if template else lambda length: AnswerEnd(tokenizer, length, paragraphs=paragraphs)


def cut(text: str, *, paragraphs: bool = False, template: bool = False) -> str:
    """Return the answer: the text before the next `Q:` or blank line, stripped.

    With `paragraphs`: after the first `A:`, if there is one, and before the next `Q:`. In a chat template: all of it.
    """
    if template:
        return text.strip()
    text = NEXT_QUESTION.split(text)[0].strip()
    return text.split("A:", 1)[-1].strip() if paragraphs else text.split("\n\n")[0].strip()


class AnswerEnd:
    """Stops a row once its new text holds the next question or, unless `paragraphs` may follow, a blank line."""

    def __init__(self, tokenizer: Any, prompt_length: int, *, paragraphs: bool = False) -> None:
        self.tokenizer, self.prompt_length, self.paragraphs = tokenizer, prompt_length, paragraphs
        self.read = prompt_length
        self.ending: dict[int, bool] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        """Return for each row whether its newest tokens end it."""
        length = input_ids.shape[1]
        newest = input_ids[:, min(self.read, length - 1) :].tolist()
        self.read = length
        # only rows that may have ended are decoded whole, or decoding would cost as much as a forward in large batches
        rows = [row for row, tokens in enumerate(newest) if any(map(self._may_end, tokens))]
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        if rows:
            texts = self.tokenizer.batch_decode(input_ids[rows, self.prompt_length :])
            done[rows] = torch.tensor([self._done(text) for text in texts])
        return done.to(input_ids.device)

    def _may_end(self, token: int) -> bool:
        """Return whether a token holds the last character of what ends an answer."""
        if token not in self.ending:
            self.ending[token] = not {":", "\n"}.isdisjoint(self.tokenizer.decode([token]))
        return self.ending[token]

    def _done(self, text: str) -> bool:
        started = text.lstrip()
        return NEXT_QUESTION.search(started) is not None or ("\n\n" in started and not self.paragraphs)
