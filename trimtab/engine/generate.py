"""The one way to new tokens: greedy, sampled or by beams, one prompt or many, under one edit or several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trimtab.engine.batching import Budget, Limits, longest_first
from trimtab.engine.prompt_cache import prompt_cache
from trimtab.errors import BadValue, UnsupportedModel, first_line
from trimtab.models.anatomy import base_of, decoder_of, input_device
from trimtab.models.calling import cache_name, entering, inference, require_numbers
from trimtab.models.hooks import has_edits
from trimtab.models.tokens import Batch, context_length, pad_id, padded_batch, require_known, require_left_padding
from trimtab.progress import progress
from trimtab.protocols import Edit, TokenMask

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""What a checkpoint may say of sampling; it holds where sampling is asked for."""
OF_THE_CHECKPOINT = ("bos_token_id", "eos_token_id", "decoder_start_token_id")
"""What it alone says; anything else that it says of generation, such as a repetition penalty, does not hold."""
SAMPLED = 16
"""Rows of a batch where tokens are drawn, on every machine."""


@dataclass(frozen=True)
class Decoding:
    """How new tokens are chosen, and when they end: greedily and at the end token, unless told otherwise."""

    max_new_tokens: int = 50
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of transformers' `generate`, such as `do_sample`, `temperature` or `num_beams`."""
    ends: Callable[[int], Any] | None = None
    """Makes what stops a row before its end token, as `generate` takes it, from the length of the padded prompts."""
    streamer: Any = None
    """Gets the tokens as they come, as `generate` takes it."""
    compiled: bool = False
    """Whether steps are compiled (on a GPU), with a cache of fixed size: quicker once the first call has compiled."""


def continuations(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    edits: Sequence[Edit | None],
    decoding: Decoding,
    *,
    batch_size: int | None = None,
) -> list[list[str]]:
    """Return, for every edit (None: none), the new text after every prompt (given as tokens), without special tokens.

    Prompts are padded on the left. Edits that leave the prompt unedited share the cache of its forward and stand in
    one batch behind it, each acting on rows of its own; what all prompts of a batch begin with is computed once.
    Batches are as large as their cache may be (see `Limits`), halved where memory runs out; what was generated before
    stays. Where tokens are drawn they have sixteen rows of one edit: the same seed then draws the same everywhere.

    Args:
        batch_size: at most so many rows at once.

    Raises:
        BadValue: prompt and new tokens do not fit the model's context; tokens that the model does not know; options
            that `generate` refuses; logits that are not numbers.
        UnsupportedModel: the model has no `generate`.
        Incompatible: the model is in PEFT's prompt learning, which does not bear left padding.
    """
    _require_room(model, tokenizer, prompts, decoding.max_new_tokens)
    ways = [entering(edit, model) for edit in edits]
    sharing = {i for i, edit in enumerate(edits) if edit is None or edit.leaves_prompt_unedited}
    # under an edit that the caller has in place, no prompt is unedited; beams need a cache for each
    several = {"num_beams", "num_return_sequences"} & decoding.options.keys()
    sampled = decoding.options.get("do_sample", False)
    if decoding.compiled or several or sampled or has_edits(decoder_of(model)) or _has_own_positions(model):
        sharing = set()
    limits, pad = Limits.of(model, Budget(rows=batch_size)), pad_id(tokenizer)
    if sampled:  # what is drawn hangs on who stands in the batch: that must not be the memory's choice
        limits = replace(limits, rows=batch_size or SAMPLED, cached=1 << 60, fixed=True)
    beams = decoding.options.get("num_beams") or 1
    widths = [beams * (len(prompt) + decoding.max_new_tokens) for prompt in prompts]
    texts: dict[tuple[int, int], str] = {}
    with progress("generating", len(prompts) * len(edits)) as advance:

        def padded(places: Sequence[int]) -> Batch:
            return padded_batch(prompts, list(places), pad=pad, device=input_device(model), side="left")

        def run(rows: list[tuple[int, int]], edited: Any, past: Any = None) -> None:
            with inference(edited):
                new = new_tokens(edited, tokenizer, padded([place for _, place in rows]), decoding, past)
            texts.update(zip(rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True))
            advance(len(rows))

        def together(some: list[int]) -> None:
            """Continue rows of several edits in one batch, in which each edit acts on its own rows."""
            rows = [shared[i] for i in some if shared[i] not in texts]
            places, acting = list(dict.fromkeys(p for _, p in rows)), list(dict.fromkeys(i for i, _ in rows))
            past = prompt_cache(model, padded(places), prompts, pad, several=len(acting) > 1)
            if past is None or len(acting) == 1:
                for index in acting:
                    own = [row for row in rows if row[0] == index]
                    with ways[index]("generated") as edited:
                        run(own, edited, past)
                return
            past.reorder_cache(torch.tensor([places.index(place) for _, place in rows], device=input_device(model)))
            with contextlib.ExitStack() as stack:
                for index in acting:
                    mask = torch.tensor([[i == index] for i, _ in rows], device=input_device(model))
                    stack.enter_context(ways[index](TokenMask(mask)))
                run(rows, model, past)

        # what all edits answer to a prompt stands together, so that the prompt is run once
        shared = [(index, place) for place in range(len(prompts)) for index in sorted(sharing)]
        longest_first([widths[place] for _, place in shared], limits, together)
        for index in sorted(set(range(len(edits))) - sharing):
            compiling = compiled_steps(model) if decoding.compiled else contextlib.nullcontext()
            with compiling, ways[index]("generated") as edited:
                longest_first(widths, limits, lambda some, i=index, m=edited: run([(i, place) for place in some], m))
    return [[texts[index, place] for place in range(len(prompts))] for index in range(len(edits))]


def new_tokens(
    model: Any, tokenizer: Any, batch: Batch, decoding: Decoding, past: Any = None
) -> Int[Tensor, "row new"]:
    """Return the tokens that follow each row of a left-padded batch, going on from its cache if one is given."""
    length = batch.input_ids.shape[1]
    try:
        with _own_defaults(model, decoding, pad_id(tokenizer)):
            out = model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                tokenizer=tokenizer,
                stopping_criteria=[] if decoding.ends is None else [decoding.ends(length)],
                logits_processor=[_RefuseNaN()],
                streamer=decoding.streamer,
                **decoding.options,
                **({"cache_implementation": "static"} if decoding.compiled else {}),
                **({} if past is None else {cache_name(model): past}),
            )
    except ValueError as cause:  # what transformers raises over its options
        raise BadValue(f"these generation options were refused: {first_line(cause)}") from cause
    return out[:, length:]


@contextlib.contextmanager
def compiled_steps(model: Any) -> Iterator[None]:
    """Let generation compile its steps inside the block; what transformers keeps of that on the model goes at its end.

    Edits refuse a model that was compiled before they were applied: enter this first, and the edit inside.
    """
    try:
        yield
    finally:
        for name in ("_compiled_call", "_last_compile_config"):
            vars(base_of(model)).pop(name, None)


@contextlib.contextmanager
def _own_defaults(model: Any, decoding: Decoding, pad: int) -> Iterator[None]:
    """Give the model fresh generation defaults inside the block: `generate` takes what it is not told from there."""
    from transformers import GenerationConfig

    base = base_of(model)
    before = base.generation_config
    kept = (*OF_THE_CHECKPOINT, *(SAMPLING if decoding.options.get("do_sample") else ()))
    said = {name: value for name in kept if (value := getattr(before, name, None)) is not None}
    base.generation_config = GenerationConfig(**said, pad_token_id=pad, max_new_tokens=decoding.max_new_tokens)
    try:
        yield
    finally:
        base.generation_config = before


class _RefuseNaN:
    """Refuses logits of which the likeliest token would be whatever stands first, NaN or infinite.

    A class, since transformers reads the signature of `__call__` at every token: of a function's, a text, it takes
    eight times as long.
    """

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "row vocab"]) -> Tensor:  # noqa: ARG002
        """Return the same scores; raises `BadValue`."""
        require_numbers(scores, "logits of the next token")
        return scores


def _has_own_positions(model: Any) -> bool:
    """Return whether generation's positions come from more than the mask, such as the last call's images."""
    from transformers import GenerationMixin

    name = "_prepare_position_ids_for_generation"
    return getattr(type(base_of(model)), name, None) is not getattr(GenerationMixin, name, None)


def _require_room(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new: int) -> None:
    if not hasattr(base_of(model), "generate"):
        raise UnsupportedModel(
            f"{type(base_of(model)).__name__} cannot generate; derive it from transformers' GenerationMixin too, or "
            "measure it by multiple choice"
        )
    require_left_padding(model)
    if new < 1:
        raise BadValue(f"max_new_tokens must be at least 1, got {new}")
    require_known(model, max(map(max, filter(None, prompts)), default=0))
    context, longest = context_length(model), max(prompts, key=len, default=())
    if context is not None and len(longest) + new > context:
        begins = tokenizer.decode(longest, skip_special_tokens=True)[:60]
        raise BadValue(
            f"a prompt of {len(longest)} tokens and {new} new ones do not fit the model's context of {context}: "
            f"{begins!r}...; shorten the prompt (in a chat: /new) or ask for fewer tokens"
        )
