"""Drift: how far an edit moves the model on neutral text, as cross-entropy and KL divergence."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.datasets.prose import neutral_texts, validation_texts
from trimtab.edits.combined import NoEdit
from trimtab.engine.score import last_logits
from trimtab.engine.shared_layers import SharedLayers
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate.figure import Figure
from trimtab.intervals import Estimate, bootstrap_mean
from trimtab.models.anatomy import input_device
from trimtab.models.calling import inference, require_numbers
from trimtab.models.processes import over_processes
from trimtab.models.tokens import Batch, context_length, encode, length_batches, pad_id
from trimtab.plain_values import hash_of
from trimtab.progress import tracked
from trimtab.protocols import ALL_LAYERS, Edit, EnterAt, Measured, Meter


@dataclass(frozen=True)
class Drift:
    """Means over tokens, in nats, with 95 % bootstrap intervals over texts."""

    ce: Estimate
    """Cross-entropy of the edited model on the texts."""
    kl: Estimate
    """KL(unedited || edited) of the next-token distributions."""
    per_text: tuple[tuple[float, float], ...]
    """(CE, KL) of each text."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "ce": self.ce.as_dict(),
            "kl": self.kl.as_dict(),
            "per_text": [list(p) for p in self.per_text],
        }


@dataclass(frozen=True)
class NeutralTexts(Meter):
    """Measures drift: a row for every neutral text with its CE and KL; nothing of an edit that only prompts."""

    texts: Sequence[str] | None = None
    """To measure on; trimtab's own neutral prose if not given."""
    choosing_texts: Sequence[str] | None = None
    """To choose settings on; another part of trimtab's own if not given."""
    max_tokens: int = 128
    batch_size: int = 32
    name: ClassVar[str] = "drift"
    columns: ClassVar[Sequence[str]] = ("ce", "kl")

    @property
    def choosing(self) -> Meter:
        """The same on the texts for choosing."""
        return replace(self, texts=tuple(self.choosing_texts or validation_texts()))

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        items: Any,
        edits: Sequence[Edit],
        *,
        asking: str = "plain",
        seed: int = 0,
    ) -> list[Measured | None]:
        """Return every text's CE and KL under every edit that changes the model."""
        moving = [edit for edit in edits if not edit.changes_prompt_only]
        options = {"texts": self.texts, "max_tokens": self.max_tokens, "batch_size": self.batch_size}
        found = iter(drifts(model, tokenizer, moving, **options) if moving else ())
        return [
            None
            if edit.changes_prompt_only
            else Measured({str(i): {"ce": ce, "kl": kl} for i, (ce, kl) in enumerate(next(found).per_text)})
            for edit in edits
        ]

    def describe(self) -> dict[str, Any]:
        """Return hashes of the texts."""
        texts = {"texts": self.texts, "choosing_texts": self.choosing_texts}
        hashes = {
            kind: "trimtab's own" if given is None else hash_of(list(given))[:16] for kind, given in texts.items()
        }
        return {"meter": type(self).__name__, **hashes, "max_tokens": self.max_tokens}


def drift_meters(source: NeutralTexts | None = None) -> tuple[Figure, ...]:
    """Return CE and KL(unedited || edited) on neutral texts. Whatever acts drifts, so that nothing is tested."""
    source = source or NeutralTexts()
    return (
        Figure(source, "ce", "CE", ("ce",), unit="nats", better="neither"),
        Figure(source, "kl", "KL", ("kl",), unit="nats", better="down", tested=False),
    )


def divided(texts: Sequence[str] | None) -> NeutralTexts:
    """Return the measuring of drift on given texts: the first fifth for choosing settings, the rest for measuring.

    Raises:
        BadDataset: fewer than two texts.
    """
    if texts is None:
        return NeutralTexts()
    if len(texts) < 2:
        raise BadDataset(
            f"{len(texts)} neutral texts given; give two or more: one to choose on, the rest to measure on"
        )
    cut = max(1, len(texts) // 5)
    return NeutralTexts(tuple(texts[cut:]), tuple(texts[:cut]))


def drift(
    model: Any,
    tokenizer: Any,
    edit: Edit | None = None,
    *,
    texts: Sequence[str] | None = None,
    max_tokens: int = 128,
    batch_size: int = 32,
) -> Drift:
    """Return CE and KL(unedited || edited) on neutral texts, with the edit acting at all positions.

    As in ITI's evaluation (Li et al. 2023, section 5.1), except that the texts are fixed and the log-softmax is in
    float32. A prompting edit does not change the model: its KL is 0.

    Args:
        texts: neutral text (not questions and answers), 200 or more; trimtab's own neutral prose if not given.
        max_tokens: how much of each text is used; less if the model's context is shorter.

    Raises:
        BadDataset: no text has two tokens or more; a single text instead of several.
        BadValue: CE or KL is not a number; `max_tokens` is below 2.
    """
    (result,) = drifts(model, tokenizer, [edit or NoEdit()], texts=texts, max_tokens=max_tokens, batch_size=batch_size)
    return result


def drifts(
    model: Any,
    tokenizer: Any,
    edits: Sequence[Edit],
    *,
    texts: Sequence[str] | None = None,
    max_tokens: int = 128,
    batch_size: int = 32,
) -> tuple[Drift, ...]:
    """Return `drift` of every edit; the unedited model runs once for all of them.

    At any time two tables of next-token distributions over one batch are held, whatever the number of texts and
    edits. An edit's `unchanged_layers` are not run again. Under a launcher every process measures a stretch of the
    texts.

    Raises:
        BadDataset: no text has two tokens or more; a single text instead of several.
        BadValue: CE or KL is not a number; `max_tokens` is below 2.
    """
    if isinstance(texts, str):
        raise BadDataset("drift is measured on several texts, got a single one; put it into a list")
    if max_tokens < 2:
        raise BadValue(f"max_tokens must be at least 2, the first token predicting the second; got {max_tokens}")
    texts = neutral_texts() if texts is None else texts
    limit = min(max_tokens, context_length(model) or max_tokens)
    ids = [encode(tokenizer, text)[:limit] for text in texts]
    ids = [i for i in ids if len(i) > 1]
    if not ids:
        raise BadDataset("no neutral text of two tokens or more to measure drift on")
    rows = over_processes(ids, lambda part: _per_text(model, tokenizer, part, edits, batch_size))
    pairs = list(zip(*rows, strict=True))
    # every text weighs the same: texts are cut to nearly equal length, and intervals resample texts
    return tuple(Drift(bootstrap_mean([c for c, _ in p]), bootstrap_mean([k for _, k in p]), tuple(p)) for p in pairs)


def _per_text(
    model: Any, tokenizer: Any, ids: Sequence[list[int]], edits: Sequence[Edit], batch_size: int
) -> list[tuple[tuple[float, float], ...]]:
    """Return for each text (CE, KL) under every edit."""
    pairs = [[(0.0, 0.0)] * len(ids) for _ in edits]
    batches = list(length_batches(ids, batch_size=batch_size, pad=pad_id(tokenizer), device=input_device(model)))
    # what changes no layer computes what the unedited model does
    ways = [None if e.unchanged_layers == ALL_LAYERS else (e.prepared(model), e.unchanged_layers) for e in edits]
    unedited = NoEdit().prepared(model)
    shared = SharedLayers(model, [way[1] for way in ways if way])
    for batch in tracked(batches, "measuring drift"):
        plain = _logprobs(unedited, batch, shared.recording())
        for way, found in zip(ways, pairs, strict=True):
            edited = plain
            if way is not None:
                edited = _logprobs(way[0], batch, shared.resumed(way[1]))
            for place, pair in zip(batch.indices, _ce_and_kl(plain, edited, batch), strict=True):
                found[place] = pair
    return list(zip(*pairs, strict=True))


def _logprobs(enter: EnterAt, batch: Batch, within: AbstractContextManager[None]) -> Float[Tensor, "batch seq vocab"]:
    with enter("all") as edited, inference(edited), within:
        logits = last_logits(edited, batch, keep=batch.input_ids.shape[1])[:, :-1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _ce_and_kl(
    plain: Float[Tensor, "batch seq vocab"], edited: Float[Tensor, "batch seq vocab"], batch: Batch
) -> list[tuple[float, float]]:
    real = batch.attention_mask[:, 1:].bool()
    ce = -edited.gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    kl = (plain.exp() * (plain - edited)).sum(-1)
    count = real.sum(1)
    means = torch.stack([x.masked_fill(~real, 0).sum(1) / count for x in (ce, kl)])
    require_numbers(means, "CE or KL")
    return list(zip(*means.tolist(), strict=True))
