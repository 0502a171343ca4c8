"""Keys: what the MLP's last map gets at a subject's last token, and the texts of the model's own that stand before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.datasets.facts import Fact
from trimtab.engine.capture import AllRead
from trimtab.engine.generate import Decoding, continuations
from trimtab.errors import BadValue
from trimtab.models.anatomy import decoder_layers, input_device, moves_weights
from trimtab.models.calling import inference, logits_limit
from trimtab.models.hooks import on_inputs, on_outputs
from trimtab.models.seeds import torch_seeded
from trimtab.models.tokens import encode, length_batches, pad_id

OPENINGS = (
    "The",
    "Therefore",
    "Because",
    "I",
    "You",
    "In",
    "It",
    "This",
    "When",
    "A",
    "We",
    "If",
    "What",
    "For",
    "She",
)
"""What the model's own texts begin with; MEMIT's five stand first."""


class Lookup(NamedTuple):
    """A tokenised text and where its subject stands."""

    ids: list[int]
    place: int
    """Of the subject's last token."""
    first: int
    """Of its first token."""
    text: str = ""
    """What was tokenised."""


def subject_last(tokenizer: Any, text: str, span: tuple[int, int]) -> Lookup:
    """Return the text's tokens and the places of those that hold the last and the first character of `span`.

    Raises:
        BadValue: that token holds characters behind the span as well, so that the subject has no end of its own; the
            tokenizer does not say where its tokens stand (a slow one).
    """
    if not tokenizer.is_fast:
        raise BadValue("facts are found by character offsets, which this slow tokenizer has not; load the fast one")
    made, ids = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False), encode(tokenizer, text)
    # of a character that takes several tokens, each with its offsets, the last one
    place = max(i for i, (a, b) in enumerate(made["offset_mapping"]) if a < span[1] <= b and b > a)
    first = min(i for i, (a, b) in enumerate(made["offset_mapping"]) if b > span[0] and b > a)
    if made["offset_mapping"][place][1] > span[1]:
        token = text[slice(*made["offset_mapping"][place])]
        raise BadValue(
            f"the subject {text[slice(*span)]!r} ends within the token {token!r} of {text[-80:]!r}; write the prompt "
            "so that a space or a full stop follows the subject"
        )
    opening = len(ids) - len(made["input_ids"])
    return Lookup(ids, opening + place, opening + first, text)


def own_texts(model: Any, tokenizer: Any, n: int, length: int, seed: int, **sampling: Any) -> list[str]:
    """Return `n` texts of at most `length` new tokens that the model goes on with after common words, by a seed."""
    prompts = [encode(tokenizer, OPENINGS[i % len(OPENINGS)]) for i in range(n)]
    decoding = Decoding(length, {"do_sample": True, "temperature": 1.0, **sampling})
    with torch_seeded(seed, model):
        (texts,) = continuations(model, tokenizer, prompts, [None], decoding, batch_size=32)
    return [OPENINGS[i % len(OPENINGS)] + text for i, text in enumerate(texts)]


def contexts(model: Any, tokenizer: Any, n: int, seed: int) -> tuple[str, ...]:
    """Return what stands before prompts: nothing first, then `n` texts of the model's own of ten tokens or so."""
    texts = own_texts(model, tokenizer, n, 10, seed, top_k=5) if n else []
    return ("", *(f"{' '.join(text.split()).rstrip('.')}. " for text in texts))


class FactTexts(NamedTuple):
    """A fact and the texts that its value is sought in."""

    fact: Fact
    asked: Sequence[Lookup]
    """The prompt behind each of the contexts, and where its subject ends."""
    essence: Lookup
    """"SUBJECT is a"."""

    @property
    def plain(self) -> Lookup:
        """The prompt behind the first context, which is none."""
        return self.asked[0]


def fact_texts(model: Any, tokenizer: Any, facts: Sequence[Fact], before: Sequence[str]) -> list[FactTexts]:
    """Return the texts of each fact, `before` being the contexts, nothing first; raises as `subject_last`."""
    essences = [(f"{fact.subject} is a", (0, len(fact.subject))) for fact in facts]
    found = unsunk(model, tokenizer, [*((fact.asked, fact.span) for fact in facts), *essences])
    texts = []
    for fact, plain, essence in zip(facts, found, found[len(facts) :], strict=False):
        start, end = fact.span
        spans = [(len(context) + start, len(context) + end) for context in before[1:]]
        behind = [subject_last(tokenizer, c + fact.asked, span) for c, span in zip(before[1:], spans, strict=True)]
        texts.append(FactTexts(fact, [plain, *behind], essence))
    return texts


SINK = 2.0
"""How many times as long as elsewhere a state is that attention sinks into. On SmolLM2-135M-Instruct the subjects of
ten of 532 facts are: at least 3.0 times (four of one token, five of two, one of five), the others at most 1.6 times."""
AT_ONCE = 64
"""Texts whose states in every layer are held together."""


def unsunk(model: Any, tokenizer: Any, texts: Sequence[tuple[str, tuple[int, int]]]) -> list[Lookup]:
    """Return `subject_last` of each text and span, behind a new line where attention sinks into it.

    Attention sinks into one of a text's first tokens, whose state is then many times as long as others' (Sun et al.
    2024, "Massive activations"), so a key there is like no other, and every text has it: what is written to it is not
    the fact's, and wrecks the model. Which token that is depends on the text; so the same subject's state behind a new
    line, into which attention then sinks, is what its length is held against, in every layer. A subject into which it
    sinks in both places is not noticed.
    """
    plain = [subject_last(tokenizer, text, span) for text, span in texts]
    behind = [subject_last(tokenizer, "\n" + text, (start + 1, end + 1)) for text, (start, end) in texts]
    layers, found = decoder_layers(model), list[Lookup]()
    for start in range(0, len(texts), AT_ONCE):
        both = (side[start : start + AT_ONCE] for side in (plain, behind))
        here, there = (seen_at(model, tokenizer, side, [], layers).outputs for side in both)
        sinks = torch.stack([(here[m].norm(dim=1) > SINK * there[m].norm(dim=1)).cpu() for m in layers]).any(0)
        found += [behind[start + i] if sunk else plain[start + i] for i, sunk in enumerate(sinks.tolist())]
    return found


class Seen(NamedTuple):
    """What modules got, or gave, at one place of every text."""

    inputs: Mapping[nn.Module, Float[Tensor, "text d_in"]]
    outputs: Mapping[nn.Module, Float[Tensor, "text d_model"]]


def seen_at(
    model: Any, tokenizer: Any, texts: Sequence[Lookup], inputs: Sequence[nn.Module], outputs: Sequence[nn.Module] = ()
) -> Seen:
    """Return the inputs and the outputs of modules at each text's place, in float64 on the model's device."""
    kept: dict[tuple[str, nn.Module], list[Tensor]] = {}
    # what follows the place cannot change what stands there
    ids, device = [text.ids[: text.place + 1] for text in texts], input_device(model)
    places, wanted, order = torch.zeros(0, dtype=torch.long), len(inputs) + len(outputs), list[int]()
    stops, seen = not moves_weights(model), 0

    def keep(x: Tensor, *key: Any) -> None:
        nonlocal seen
        kept.setdefault(key, []).append(x[torch.arange(len(places)), places.to(x.device)].double())
        seen += 1
        if stops and seen % wanted == 0:
            raise AllRead

    hooks_in = [(m, lambda x, m=m: keep(x, "in", m)) for m in inputs]
    hooks_out = [(m, lambda x, m=m: keep(x, "out", m)) for m in outputs]
    with inference(model), on_inputs(hooks_in), on_outputs(hooks_out):
        for batch in length_batches(ids, batch_size=32, pad=pad_id(tokenizer), device=device):
            places = torch.tensor([texts[i].place for i in batch.indices])
            given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
            with suppress(AllRead):
                model(**given, **logits_limit(model, 1))
            order += batch.indices
    back = torch.tensor(order).argsort()
    whole = {key: torch.cat(values)[back.to(values[0].device)] for key, values in kept.items()}
    return Seen({m: whole["in", m] for m in inputs}, {m: whole["out", m] for m in outputs})
