"""From texts to padded batches of tokens, keeping track of where the answer stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trimtab.datasets.statements import Statement
from trimtab.errors import BadValue, Incompatible
from trimtab.models.anatomy import base_of, text_config


@dataclass(frozen=True)
class AnswerTokens:
    """A tokenised text and the span of its answer."""

    ids: list[int]
    start: int
    """The first token that holds a character of the answer."""
    end: int
    """One past the last token that holds a character of the answer."""


def tokenize_answer(
    tokenizer: Any, text: str, answer_start: int, *, needs_prompt: bool = True, template: bool = False
) -> AnswerTokens:
    """Return one text's `tokenize_answers`."""
    return tokenize_answers(tokenizer, [text], [answer_start], needs_prompt=needs_prompt, templates=[template])[0]


def continuation_tokens(tokenizer: Any, text: str, start: int, *, template: bool = False) -> AnswerTokens:
    """Return a text's tokens split at the character where what is scored starts, which may be its first.

    Raises:
        BadValue: nothing stands before it, and the tokenizer has no begin or end token to stand there.
    """
    tokens = tokenize_answer(tokenizer, text, start, needs_prompt=False, template=template)
    if tokens.start > 0:
        return tokens
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if first is None:
        raise BadValue(f"no token can stand before {text[:60]!r}: the tokenizer has none of its own; give it a prompt")
    return AnswerTokens([first, *tokens.ids], 1, tokens.end + 1)


def scored_tokens(model: Any, tokenizer: Any, statements: Sequence[Statement]) -> list[AnswerTokens]:
    """Return statements' tokens, all that follows the prompt being scored: no answer gets its space for free.

    Raises:
        BadValue: one that does not fit the model; no prompt and no token that could stand before the text.
    """
    tokens = [continuation_tokens(tokenizer, s.text, len(s.prompt), template=s.template) for s in statements]
    require_fits(model, [t.end for t in tokens], [s.text for s in statements])
    return tokens


def tokenize_answers(
    tokenizer: Any,
    texts: Sequence[str],
    answer_starts: Sequence[int],
    *,
    needs_prompt: bool = True,
    templates: Sequence[bool] | None = None,
) -> list[AnswerTokens]:
    """Return prompts and answers tokenised jointly, each split at the character where the answer starts.

    Tokenizers may merge across the border: a token belongs to the answer if it holds any of its characters. The opening
    is added as `encode` adds it, none to what chat templates wrote (`templates`), and nothing behind. An answer's first
    token can be predicted only after another one; `needs_prompt=False` does without (contrast pairs have no prompt, and
    some tokenizers have no opening).

    Raises:
        BadValue: an answer is empty after tokenisation, or no token stands before it.
    """
    offsets = {"return_offsets_mapping": True} if tokenizer.is_fast else {}
    bare, first = encode_each(tokenizer, texts, [True] * len(texts), **offsets), _opening(tokenizer)
    found = []
    written = templates or [False] * len(texts)
    for text, start, encoded, template in zip(texts, answer_starts, bare, written, strict=True):
        ids = encoded["input_ids"]
        if tokenizer.is_fast:
            inside = _inside(encoded["offset_mapping"], start)
        else:
            inside = _inside_without_offsets(tokenizer, ids, text, start)
        opened = ids if template else _opened(tokenizer, ids, first)
        inside = [i + len(opened) - len(ids) for i in inside]
        if not inside or (needs_prompt and inside[0] == 0):
            what = "no answer token" if not inside else "no prompt token before the answer"
            raise BadValue(f"{what} in {text[-60:]!r}; give a non-empty prompt and answer")
        found.append(AnswerTokens(opened, inside[0], inside[-1] + 1))
    return found


def _inside(offsets: Sequence[tuple[int, int]], answer_start: int) -> list[int]:
    # from the end, since prompts may be far longer than their answers
    spans = enumerate(reversed(offsets), 1)
    found = takewhile(lambda span: span[1][1] > answer_start or span[1][1] == span[1][0], spans)
    return [len(offsets) - i for i, (a, b) in found if b > max(a, answer_start)][::-1]


def _inside_without_offsets(tokenizer: Any, ids: Sequence[int], text: str, answer_start: int) -> list[int]:
    prompt = text[:answer_start]
    # the space before the answer may belong to the answer's first token or not
    befores = (tokenizer(before, add_special_tokens=False)["input_ids"] for before in (prompt, prompt.rstrip()))
    shared = max(n_common(ids, before) for before in befores)
    specials = set(tokenizer.all_special_ids)
    return [i for i in range(shared, len(ids)) if ids[i] not in specials]


def encode_each(
    tokenizer: Any, texts: Sequence[str], written_out: Sequence[bool], **options: Any
) -> list[dict[str, Any]]:
    """Return every text's encoding; special tokens are added where the text does not have them `written_out`.

    A fast tokenizer takes them together, since it works on all cores then.
    """
    found: list[dict[str, Any]] = [{} for _ in texts]
    for written in (False, True):
        places = [i for i, own in enumerate(written_out) if own is written]
        special = {"add_special_tokens": False} if written else {}
        if tokenizer.is_fast and places:
            together = tokenizer([texts[i] for i in places], **special, **options)
            for n, i in enumerate(places):
                found[i] = {name: together[name][n] for name in together}
        else:
            for i in places:
                found[i] = tokenizer(texts[i], **special, **options)
    return found


def encode(tokenizer: Any, text: str, *, template: bool = False) -> list[int]:
    """Return the text's tokens behind what the tokenizer puts before every text, ready for more to follow.

    A text that begins with those tokens itself gets them once, and one that a chat template wrote as the template has
    it. What the tokenizer would put behind a text, such as an end token, is left out: nothing could follow it.
    """
    return encode_all(tokenizer, [text], template=template)[0]


def encode_all(tokenizer: Any, texts: Sequence[str], *, template: bool = False) -> list[list[int]]:
    """Return every text's `encode`."""
    bare, first = encode_each(tokenizer, texts, [True] * len(texts)), [] if template else _opening(tokenizer)
    return [_opened(tokenizer, own["input_ids"], first) for own in bare]


def _opening(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer puts before every text: none, a begin token, or more."""
    whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    return whole[: next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)]


def _opened(tokenizer: Any, ids: list[int], first: list[int]) -> list[int]:
    if first and first[0] not in ids:  # as nearly always: nothing need be decoded
        return [*first, *ids]
    written = next((i for i, token in enumerate(ids) if tokenizer.decode([token]).strip()), 0) if first else 0
    return ids if ids[written : written + len(first)] == first else [*first, *ids]


def n_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common beginning."""
    if one is other:
        return len(one)
    n = min(len(one), len(other))
    if one[:n] == other[:n]:
        return n
    return next(i for i in range(n) if one[i] != other[i])


def require_fits(model: Any, lengths: Sequence[int], texts: Sequence[str]) -> None:
    """Raise `BadValue`, naming the text, if a sequence is longer than the model's context."""
    context = context_length(model)
    longest = max(range(len(lengths)), key=lengths.__getitem__, default=None)
    if context is not None and longest is not None and lengths[longest] > context:
        raise BadValue(
            f"a text of {lengths[longest]} tokens does not fit the model's context of {context}: "
            f"{texts[longest][:60]!r}...; shorten it (fewer examples in the prompt, shorter answers)"
        )


def require_known(model: Any, token: int) -> None:
    """Raise `BadValue` if the model has no embedding for a token, so that the tokenizer is another model's."""
    n_known = base_of(model).get_input_embeddings().weight.shape[0]
    if token >= n_known:
        raise BadValue(
            f"the tokenizer gives token {token}, but the model knows {n_known}; use the tokenizer of this very model"
        )


def context_length(model: Any) -> int | None:
    """Return the number of positions the model was made for, or None if its config does not say."""
    return getattr(text_config(model), "max_position_embeddings", None)


def pad_id(tokenizer: Any) -> int:
    """Return the token to pad with: the tokenizer's, else its end token, else 0 (padding is masked in any case)."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def require_left_padding(model: Any) -> None:
    """Raise `Incompatible` if the model gives other results behind left padding, as PEFT's prompt learning does."""
    config: Any = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise Incompatible(
            f"PEFT's {config.peft_type.value} gives other texts under the left padding that generation needs; give the "
            "model without it, and as an edit its saved folder: trimtab.peft.TunedEdit.load(folder)"
        )


@dataclass(frozen=True)
class Batch:
    """Token sequences padded to one length."""

    indices: list[int]
    """The sequences' places in what was given."""
    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]


def length_batches(
    sequences: Sequence[Sequence[int]],
    *,
    batch_size: int,
    pad: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Yield the sequences in batches of similar length, longest first, so that memory runs out early or not at all.

    Raises:
        BadValue: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise BadValue(f"batch_size must be at least 1, got {batch_size}")
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield padded_batch(sequences, chosen, pad=pad, device=device)


def padded_batch(
    sequences: Sequence[Sequence[int]], chosen: list[int], *, pad: int, device: torch.device, side: str = "right"
) -> Batch:
    """Return the chosen ones of the sequences, in this order."""
    rows = [torch.tensor(sequences[i], dtype=torch.long) for i in chosen]
    ones = [torch.ones(len(r), dtype=torch.long) for r in rows]
    return Batch(
        chosen,
        pad_sequence(rows, batch_first=True, padding_value=pad, padding_side=side).to(device),
        pad_sequence(ones, batch_first=True, padding_value=0, padding_side=side).to(device),
    )
