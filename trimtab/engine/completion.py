"""Greedy continuations of prompts, batched; prompts that several edits leave unedited run once for all of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trimtab.engine.prompt_cache import prompt_cache
from trimtab.engine.score import require_numbers
from trimtab.errors import BadValue, UnsupportedModel
from trimtab.models.anatomy import base_of, decoder_of, input_device
from trimtab.models.calling import cache_name, inference
from trimtab.models.hooks import has_edits
from trimtab.models.processes import spread
from trimtab.models.tokens import (
    Batch,
    context_length,
    encode,
    length_batches,
    pad_id,
    require_known,
    require_left_padding,
)
from trimtab.progress import progress
from trimtab.protocols import Edit, EnterAt

NEXT_QUESTION = re.compile(r"(?<!\w)Q:")
"""Where an answer ends; not inside a word such as "FAQ:"."""


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    edit: Edit,
    *,
    paragraphs: bool = False,
    max_new_tokens: int = 50,
    batch_size: int = 32,
) -> list[str]:
    """Return the greedy continuation of every prompt, up to the next question, paragraph or end token.

    With `paragraphs` an answer may have several, and an `A:` that the model writes itself is where it begins.
    Under a launcher every process continues a stretch of the prompts, and all get all texts.

    Raises:
        BadValue: prompt and answer do not fit the model's context; logits are not numbers.
    """
    (texts,) = completions(
        model, tokenizer, prompts, [edit], paragraphs=paragraphs, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    return texts


def completions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    edits: Sequence[Edit],
    *,
    paragraphs: bool = False,
    max_new_tokens: int = 50,
    batch_size: int = 32,
) -> list[list[str]]:
    """Return `complete` of every edit; edits that leave the prompt unedited share the cache of its forward.

    What all prompts of a batch begin with, such as examples, is computed once for them. The last token of a prompt,
    which predicts the first of the answer, is run by each edit.

    Raises:
        BadValue: as `complete`.
        UnsupportedModel: the model has no `generate`.
        Incompatible: the model is in PEFT's prompt learning, which does not bear left padding.
    """
    if not hasattr(base_of(model), "generate"):
        raise UnsupportedModel(
            f"{type(base_of(model)).__name__} cannot generate; derive it from transformers' GenerationMixin too, or "
            "measure it by multiple choice"
        )
    require_left_padding(model)
    ids = [encode(tokenizer, prompt) for prompt in prompts]
    _require_room(model, ids, prompts, max_new_tokens)
    ways = [(edit.prepared(model), edit.leaves_prompt_unedited) for edit in edits]

    def part(ids: Sequence[list[int]]) -> list[tuple[str, ...]]:
        pad, device = pad_id(tokenizer), input_device(model)
        batches = list(length_batches(ids, batch_size=batch_size, pad=pad, device=device, side="left"))

        def run(edited: Any, batch: Batch, past: Any) -> list[str]:
            new = _continued(edited, tokenizer, batch, past, max_new_tokens=max_new_tokens, paragraphs=paragraphs)
            return [cut(text, paragraphs=paragraphs) for text in new]

        def begun(batch: Batch) -> Any:
            return prompt_cache(model, batch, ids, pad, several=sum(leaves for _, leaves in ways) > 1)

        return _texts(model, ways, batches, begun, run)

    return [list(texts) for texts in zip(*spread(ids, part), strict=True)]


def _texts(
    model: Any,
    ways: Sequence[tuple[EnterAt, bool]],
    batches: Sequence[Batch],
    begun: Callable[[Batch], Any],
    run: Callable[[Any, Batch, Any], list[str]],
) -> list[tuple[str, ...]]:
    """Return every prompt's texts.

    `run` continues a batch with the model that it is given, from the cache that `begun` returns for it (or none).
    """
    sharing = [i for i, (_, leaves_prompt) in enumerate(ways) if leaves_prompt]
    # under an edit that the caller has in place, no prompt is unedited
    if has_edits(decoder_of(model)) or _has_own_positions(model):
        sharing = []
    found: list[dict[int, str]] = [{} for _ in ways]
    with progress("generating answers", len(batches) * len(ways)) as advance:
        for batch in batches if sharing else ():
            past = begun(batch)
            for i in sharing:
                # generation writes into the cache that it is given
                own = past if i == sharing[-1] else copy.deepcopy(past)
                with ways[i][0]("generated") as edited, inference(edited):
                    found[i].update(zip(batch.indices, run(edited, batch, own), strict=True))
                advance(1)
        for i in sorted(set(range(len(ways))) - set(sharing)):
            with ways[i][0]("generated") as edited, inference(edited):
                for batch in batches:
                    found[i].update(zip(batch.indices, run(edited, batch, None), strict=True))
                    advance(1)
    return [tuple(texts[place] for texts in found) for place in sorted(found[0])]


def _has_own_positions(model: Any) -> bool:
    """Return whether generation's positions come from more than the mask, such as the last call's images."""
    from transformers import GenerationMixin

    name = "_prepare_position_ids_for_generation"
    return getattr(type(base_of(model)), name, None) is not getattr(GenerationMixin, name, None)


def _continued(
    edited: Any, tokenizer: Any, batch: Batch, past: Any, *, max_new_tokens: int, paragraphs: bool
) -> list[str]:
    length = batch.input_ids.shape[1]
    # a cache that is given stands in for the kind that the model's generation defaults ask for
    cache = {} if past is None else {cache_name(edited): past, "cache_implementation": None}
    out = edited.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        # greedy whatever the model's generation defaults; a repetition penalty would also act on padding
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        return_dict_in_generate=False,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=pad_id(tokenizer),
        stopping_criteria=[AnswerEnd(tokenizer, length, paragraphs=paragraphs)],
        logits_processor=[_numbers],
        **cache,
    )
    return tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)


def _numbers(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    """Refuse logits of which the likeliest token would be whatever stands first."""
    require_numbers(scores, "logits of the next token")
    return scores


def cut(text: str, *, paragraphs: bool = False) -> str:
    """Return the answer: the text before the next `Q:` or blank line, stripped.

    With `paragraphs`: after the first `A:`, if there is one, and before the next `Q:`.
    """
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


def _require_room(model: Any, ids: Sequence[Sequence[int]], prompts: Sequence[str], new: int) -> None:
    if new < 1:
        raise BadValue(f"max_new_tokens must be at least 1, got {new}")
    require_known(model, max(map(max, filter(None, ids)), default=0))
    context = context_length(model)
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    if context is not None and len(ids[longest]) + new > context:
        raise BadValue(
            f"a prompt of {len(ids[longest])} tokens and {new} new ones do not fit the model's context of {context}: "
            f"{prompts[longest][:60]!r}...; shorten the prompt or ask for fewer tokens"
        )
