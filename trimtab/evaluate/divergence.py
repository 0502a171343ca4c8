"""CE and KL(unedited || edited) of texts given as tokens, text by text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.devices import free_bytes, is_crowded
from trimtab.engine.forwards import Step, run_tree
from trimtab.engine.score import last_logits
from trimtab.engine.shared_layers import SharedLayers
from trimtab.engine.token_tree import TokenTree, TreeRow
from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of, input_device
from trimtab.models.calling import inference, require_numbers
from trimtab.models.tokens import Batch, context_length, encode, length_batches, pad_id
from trimtab.progress import tracked
from trimtab.protocols import ALL_LAYERS, Edit, Findings

Row: TypeAlias = tuple[float, float, float]
"""CE, KL and the 95th percentile of KL over the tokens of a text."""


def divergence_rows(
    model: Any,
    tokenizer: Any,
    work: Sequence[tuple[list[int], list[list[int]]]],
    edits: Sequence[Edit],
    batch_size: int,
    findings: Findings | None = None,
) -> list[tuple[Row, ...]]:
    """Return for each text, given with the tokens that each edit sets before it, its row under every edit.

    What the unedited model says of the texts is taken from `findings`, if given, and kept there.
    """
    ids, found = [own for own, _ in work], [[(0.0, 0.0, 0.0)] * len(work) for _ in edits]
    prompting = [any(ahead[i] for _, ahead in work) for i in range(len(edits))]
    # what changes no layer, and sets nothing before a text, computes what the unedited model does
    ways = [
        None if e.unchanged_layers == ALL_LAYERS and not prompts else (e.prepared(model), e.unchanged_layers)
        for e, prompts in zip(edits, prompting, strict=True)
    ]
    opening = len(encode(tokenizer, ""))
    starts = [way[1] for way, prompts in zip(ways, prompting, strict=True) if way and not prompts]
    findings = findings or Findings()
    shared = findings.once(("shared layers", *sorted(starts)), partial(SharedLayers, model, starts))
    batches = list(length_batches(ids, batch_size=batch_size, pad=pad_id(tokenizer), device=input_device(model)))
    of = [str([ids[place] for place in batch.indices]) for batch in batches]
    known = set(of) <= findings.found.keys()
    held = len(batches) if known else _held_at_once(model, batches[0])
    # what is kept stays until the last call, and other processes may want the memory
    keeps = known or (held >= len(batches) and not is_crowded(input_device(model)))
    for start in tracked(range(0, len(batches), held), "measuring drift"):
        some, named = batches[start : start + held], of[start : start + held]
        unedited = [
            _unedited(model, *one, shared, findings.found if keeps else {}) for one in zip(named, some, strict=True)
        ]
        for i, (way, rows) in enumerate(zip(ways, found, strict=True)):
            enter, unchanged = way or (lambda _: nullcontext(model), 0)
            # once for all of them, as putting a tuned edit in place takes longer than a forward
            with enter("all") as edited, inference(edited):
                for batch, (plain, below) in zip(some, unedited, strict=True):
                    tables, counted = iter(plain), batch.attention_mask[:, 1:].bool()
                    if way is not None and prompting[i]:
                        ahead = [work[place][1][i] for place in batch.indices]
                        own = [ids[place] for place in batch.indices]
                        tables, counted = _behind(edited, pad_id(tokenizer), ahead, own, opening, plain)
                    elif way is not None:
                        shared.kept = dict(below)
                        with shared.resumed(unchanged):
                            tables = _logprobs(edited, batch)
                    for place, row in zip(batch.indices, _rows(plain, tables, batch, counted), strict=True):
                        rows[place] = row
    return list(zip(*found, strict=True))


def _unedited(
    model: Any, name: str, batch: Batch, shared: SharedLayers, kept: dict[Any, Any]
) -> tuple[Tensor, dict[int, Any]]:
    """Return the unedited log-probabilities, and what the layers gave that other forwards may start from.

    They are taken from `kept` where a call before gave them, and go there else.
    """
    table, below = kept.get(name, (None, {}))
    if table is None or not shared.starts <= below.keys():
        with inference(model), shared.recording():
            if table is None:
                table = torch.stack([*_logprobs(model, batch)])
            else:
                last_logits(model, batch, keep=1)  # for what the layers give
            kept[name] = table, {**below, **shared.kept}
    return kept[name]


def _held_at_once(model: Any, largest: Batch) -> int:
    """Return of how many batches the unedited model's tables are held: a sixteenth of the free memory, or one."""
    vocabulary = base_of(model).get_input_embeddings().weight.shape[0]
    return max(1, free_bytes(input_device(model)) // (16 * 4 * vocabulary * largest.input_ids.numel()))


def _logprobs(model: Any, batch: Batch) -> Iterator[Float[Tensor, "seq vocab"]]:
    """Run the model, and return what yields every text's table: text by text it stays in a CPU's cache."""
    return map(_normalised, last_logits(model, batch, keep=batch.input_ids.shape[1])[:, :-1])


def _normalised(logits: Float[Tensor, "*place vocab"]) -> Float[Tensor, "*place vocab"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _behind(
    edited: Any,
    pad: int,
    ahead: Sequence[list[int]],
    ids: Sequence[list[int]],
    opening: int,
    plain: Float[Tensor, "batch seq vocab"],
) -> tuple[Iterator[Float[Tensor, "seq vocab"]], Bool[Tensor, "batch seq"]]:
    """Return what yields the edited tables of texts behind what an edit sets before them, and which places they have.

    They stand where the plain ones do: `opening` tokens of each text are those that stand before every text, and are
    not repeated. What texts of a batch stand behind alike is computed once.
    """
    whole = [(before + own[opening:])[: context_length(edited)] for before, own in zip(ahead, ids, strict=True)]
    # a text's own first token is predicted by what stands before every text, or not at all
    first = [len(before) - 1 + (opening == 0) for before in ahead]
    if any(len(tokens) - 1 <= start for tokens, start in zip(whole, first, strict=True)):
        raise BadValue(
            f"a prompt of {max(map(len, ahead))} tokens leaves no room for a neutral text in the model's context "
            f"of {context_length(edited)}; give fewer examples"
        )
    logits: dict[int, Tensor] = {}

    def read(_: int, step: Step, forward: Callable[[], Any]) -> None:
        wanted = step.kept(forward().logits)[step.kept_places.to(plain.device)]
        logits.update(zip(step.rows, wanted.split(step.counts), strict=True))

    # the last token predicts nothing
    rows = [TreeRow(tokens[:-1], start, start) for tokens, start in zip(whole, first, strict=True)]
    run_tree(edited, TokenTree.of(rows, pad), read, task="")
    counts, at = [len(tokens) - 1 - start for tokens, start in zip(whole, first, strict=True)], max(opening, 1) - 1
    places = torch.arange(plain.shape[1], device=plain.device) - at
    counted = (places >= 0) & (places < torch.tensor(counts, device=plain.device)[:, None])

    def tables() -> Iterator[Tensor]:
        for row, (unedited, n) in enumerate(zip(plain, counts, strict=True)):
            moved = unedited.clone()
            moved[at : at + n] = _normalised(logits.pop(row))
            yield moved

    return tables(), counted


def _rows(
    plain: Float[Tensor, "batch seq vocab"],
    edited: Iterator[Float[Tensor, "seq vocab"]],
    batch: Batch,
    counted: Bool[Tensor, "batch seq"],
) -> list[Row]:
    found = []
    for before, after, ids in zip(plain, edited, batch.input_ids[:, 1:], strict=True):
        ce = -after.gather(-1, ids[:, None])[:, 0]
        found.append(torch.stack([ce, (before.exp() * (before - after)).sum(-1)]))
    ce, kl = torch.stack(found, dim=1)
    means = [x.masked_fill(~counted, 0).sum(1) / counted.sum(1) for x in (ce, kl)]
    high = kl.masked_fill(~counted, torch.nan).nanquantile(0.95, dim=1)
    rows = torch.stack([*means, high])
    require_numbers(rows, "CE or KL")
    return list(zip(*rows.tolist(), strict=True))
