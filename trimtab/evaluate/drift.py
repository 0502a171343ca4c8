"""Drift: how far an edit moves the model on neutral text, as cross-entropy and KL divergence."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.datasets.asking import PLAIN
from trimtab.datasets.prose import neutral_texts, validation_texts
from trimtab.devices import free_bytes
from trimtab.edits.combined import NoEdit
from trimtab.engine.score import last_logits
from trimtab.engine.shared_layers import SharedLayers
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate.figure import Figure
from trimtab.intervals import Estimate, bootstrap_mean
from trimtab.models.anatomy import base_of, input_device
from trimtab.models.calling import inference, require_numbers
from trimtab.models.processes import over_processes
from trimtab.models.tokens import Batch, context_length, encode, encode_all, length_batches, pad_id, padded_batch
from trimtab.plain_values import hash_of
from trimtab.progress import tracked
from trimtab.protocols import ALL_LAYERS, Edit, Measured, Meter


@dataclass(frozen=True)
class Drift:
    """Means over tokens, in nats, with 95 % bootstrap intervals over texts."""

    ce: Estimate
    """Cross-entropy of the edited model on the texts."""
    kl: Estimate
    """KL(unedited || edited) of the next-token distributions."""
    kl95: Estimate
    """The 95th percentile of KL over a text's tokens, averaged over texts."""
    per_text: tuple[tuple[float, float], ...]
    """(CE, KL) of each text."""
    per_text_kl95: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "ce": self.ce.as_dict(),
            "kl": self.kl.as_dict(),
            "kl95": self.kl95.as_dict(),
            "per_text": [list(p) for p in self.per_text],
        }


@dataclass(frozen=True)
class NeutralTexts(Meter):
    """Measures drift: a row for every neutral text with its CE and KL, behind what an edit sets before it."""

    texts: Sequence[str] | None = None
    """To measure on; trimtab's own neutral prose if not given."""
    choosing_texts: Sequence[str] | None = None
    """To choose settings on; another part of trimtab's own if not given."""
    max_tokens: int = 128
    batch_size: int = 32
    name: ClassVar[str] = "drift"
    columns: ClassVar[Sequence[str]] = ("ce", "kl", "kl95")

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
    ) -> list[Measured]:
        """Return every text's CE and KL under every edit."""
        options = {"texts": self.texts, "max_tokens": self.max_tokens, "batch_size": self.batch_size}
        return [
            Measured(
                {
                    str(i): {"ce": ce, "kl": kl, "kl95": high}
                    for i, ((ce, kl), high) in enumerate(zip(found.per_text, found.per_text_kl95, strict=True))
                }
            )
            for found in drifts(model, tokenizer, edits, **options)
        ]

    def describe(self) -> dict[str, Any]:
        """Return hashes of the texts."""
        texts = {"texts": self.texts, "choosing_texts": self.choosing_texts}
        hashes = {
            kind: "trimtab's own" if given is None else hash_of(list(given))[:16] for kind, given in texts.items()
        }
        return {"meter": type(self).__name__, **hashes, "max_tokens": self.max_tokens}


def drift_meters(source: NeutralTexts | None = None) -> tuple[Figure, ...]:
    """Return CE and KL(unedited || edited) on neutral texts, its mean and its tail. Whatever acts drifts: no tests."""
    source = source or NeutralTexts()
    return (
        Figure(source, "ce", "CE", ("ce",), unit="nats", better="neither", collateral=True),
        Figure(source, "kl", "KL", ("kl",), unit="nats", better="down", tested=False, collateral=True),
        Figure(source, "kl95", "KL 95 %", ("kl95",), unit="nats", better="down", tested=False, collateral=True),
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
    float32. An edit that prompts is charged as soft prompts are: the text stands behind what the edit sets before it
    (`Edit.before`), and the same tokens count; where both do not fit the model's context, those that do.

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

    The unedited model's tables of next-token distributions are held of as many batches as a sixteenth of the free
    memory takes, or of one; each edit is put in place once for those. An edit's `unchanged_layers` are not run again.
    Under a launcher every process measures a stretch of the texts.

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
    long = [pair for pair in zip(texts, encode_all(tokenizer, texts), strict=True) if len(pair[1]) > 1]
    if not long:
        raise BadDataset("no neutral text of two tokens or more to measure drift on")
    ahead = [_ahead(tokenizer, edit, [text for text, _ in long]) for edit in edits]
    work = [(ids[:limit], [own[i] for own in ahead]) for i, (_, ids) in enumerate(long)]
    rows = over_processes(work, lambda part: _per_text(model, tokenizer, part, edits, batch_size))
    # every text weighs the same: texts are cut to nearly equal length, and intervals resample texts
    return tuple(_summed(of_edit) for of_edit in zip(*rows, strict=True))


def _ahead(tokenizer: Any, edit: Edit, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens that an edit sets before texts that are no questions."""
    before = [_said_before(edit, text) for text in texts]
    ids = encode_all(tokenizer, before) if any(before) else [[]] * len(texts)
    return [own if said else [] for own, said in zip(ids, before, strict=True)]


def _said_before(edit: Edit, text: str) -> str:
    before = edit.before(text)
    if before is not None:
        return PLAIN.ahead(before)
    return (edit.prompt(text) or "").rpartition(text)[0]


def _summed(rows: Sequence[tuple[float, float, float]]) -> Drift:
    ce, kl, kl95 = zip(*rows, strict=True)
    means = bootstrap_mean(ce), bootstrap_mean(kl), bootstrap_mean(kl95)
    return Drift(*means, per_text=tuple(zip(ce, kl, strict=True)), per_text_kl95=kl95)


_Row: TypeAlias = tuple[float, float, float]
"""CE, KL and the 95th percentile of KL over the tokens of a text."""


def _per_text(
    model: Any,
    tokenizer: Any,
    work: Sequence[tuple[list[int], list[list[int]]]],
    edits: Sequence[Edit],
    batch_size: int,
) -> list[tuple[_Row, ...]]:
    """Return for each text, given with the tokens that each edit sets before it, its row under every edit."""
    ids, found = [own for own, _ in work], [[(0.0, 0.0, 0.0)] * len(work) for _ in edits]
    prompting = [any(ahead[i] for _, ahead in work) for i in range(len(edits))]
    # what changes no layer, and sets nothing before a text, computes what the unedited model does
    ways = [
        None if e.unchanged_layers == ALL_LAYERS and not prompts else (e.prepared(model), e.unchanged_layers)
        for e, prompts in zip(edits, prompting, strict=True)
    ]
    opening = len(encode(tokenizer, ""))
    shared = SharedLayers(model, [way[1] for way, prompts in zip(ways, prompting, strict=True) if way and not prompts])
    batches = list(length_batches(ids, batch_size=batch_size, pad=pad_id(tokenizer), device=input_device(model)))
    held = _held_at_once(model, batches[0])
    for start in tracked(range(0, len(batches), held), "measuring drift"):
        some = batches[start : start + held]
        tables, below = [], []
        with inference(model):
            for batch in some:
                with shared.recording():
                    tables.append(_logprobs(model, batch))
                below.append(dict(shared.kept))
        for i, (way, rows) in enumerate(zip(ways, found, strict=True)):
            enter, unchanged = way or (lambda _: nullcontext(model), 0)
            # once for all of them, as putting a tuned edit in place takes longer than a forward
            with enter("all") as edited, inference(edited):
                for batch, plain, kept in zip(some, tables, below, strict=True):
                    table, counted = plain, batch.attention_mask[:, 1:].bool()
                    if way is not None and prompting[i]:
                        ahead = [work[place][1][i] for place in batch.indices]
                        table, counted = _behind(edited, ahead, [ids[place] for place in batch.indices], opening, plain)
                    elif way is not None:
                        shared.kept = kept
                        with shared.resumed(unchanged):
                            table = _logprobs(edited, batch)
                    for place, row in zip(batch.indices, _rows(plain, table, batch, counted), strict=True):
                        rows[place] = row
    return list(zip(*found, strict=True))


def _held_at_once(model: Any, largest: Batch) -> int:
    """Return of how many batches the unedited model's tables are held: a sixteenth of the free memory, or one."""
    vocabulary = base_of(model).get_input_embeddings().weight.shape[0]
    return max(1, free_bytes(input_device(model)) // (16 * 4 * vocabulary * largest.input_ids.numel()))


def _logprobs(model: Any, batch: Batch) -> Float[Tensor, "batch seq vocab"]:
    return _normalised(last_logits(model, batch, keep=batch.input_ids.shape[1])[:, :-1])


def _normalised(logits: Float[Tensor, "*place vocab"]) -> Float[Tensor, "*place vocab"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _behind(
    edited: Any,
    ahead: Sequence[list[int]],
    ids: Sequence[list[int]],
    opening: int,
    plain: Float[Tensor, "batch seq vocab"],
) -> tuple[Float[Tensor, "batch seq vocab"], Bool[Tensor, "batch seq"]]:
    """Return the edited log-probabilities of texts behind what an edit sets before them, and which of them there are.

    They stand where the plain ones do: `opening` tokens of each text are those that stand before every text, and are
    not repeated.
    """
    whole = [(before + own[opening:])[: context_length(edited)] for before, own in zip(ahead, ids, strict=True)]
    # a text's own first token is predicted by what stands before every text, or not at all
    first = [len(before) - 1 + (opening == 0) for before in ahead]
    if any(len(tokens) - 1 <= start for tokens, start in zip(whole, first, strict=True)):
        raise BadValue(
            f"a prompt of {max(map(len, ahead))} tokens leaves no room for a neutral text in the model's context "
            f"of {context_length(edited)}; give fewer examples"
        )
    batch = padded_batch(whole, [*range(len(whole))], pad=0, device=plain.device)
    logits = last_logits(edited, batch, keep=batch.input_ids.shape[1] - min(first))
    moved, counted = plain.clone(), torch.zeros(plain.shape[:2], dtype=torch.bool, device=plain.device)
    for row, (tokens, start) in enumerate(zip(whole, first, strict=True)):
        n, at = len(tokens) - 1 - start, max(opening, 1) - 1
        moved[row, at : at + n] = _normalised(logits[row, start - min(first) :][:n])
        counted[row, at : at + n] = True
    return moved, counted


def _rows(
    plain: Float[Tensor, "batch seq vocab"],
    edited: Float[Tensor, "batch seq vocab"],
    batch: Batch,
    counted: Bool[Tensor, "batch seq"],
) -> list[_Row]:
    ce = -edited.gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    kl = (plain.exp() * (plain - edited)).sum(-1)
    means = [x.masked_fill(~counted, 0).sum(1) / counted.sum(1) for x in (ce, kl)]
    high = kl.masked_fill(~counted, torch.nan).nanquantile(0.95, dim=1)
    rows = torch.stack([*means, high])
    require_numbers(rows, "CE or KL")
    return list(zip(*rows.tolist(), strict=True))
