"""capture_to_store: activations of many statements, straight to disk, by any number of processes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from trimtab.activations.manifest import Layout, Manifest
from trimtab.activations.shards import ActivationStore
from trimtab.datasets.statements import Statement
from trimtab.engine.capture import Site, capture_heads, require_position, require_statements, site_of
from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of
from trimtab.models.identity import fingerprint
from trimtab.models.processes import rank_and_count, wait
from trimtab.plain_values import hash_of


def capture_to_store(
    model: Any,
    tokenizer: Any,
    statements: Sequence[Statement],
    path: str | Path,
    *,
    position: Literal["last", "mean_answer"] = "last",
    site: Literal["heads", "residual"] | Mapping[int, tuple[str, int]] | Site = "heads",
    per_shard: int = 512,
) -> ActivationStore:
    """Return the store at `path` with the activations of every head for every statement.

    As `capture_heads`, but memory holds `per_shard` statements at a time. Whatever stops a run, the shards it wrote
    stay: the same call makes those that are missing or damaged. Under `accelerate launch` or `torchrun` every
    process makes its share of the shards, and each gets the whole store; a stopped run may go on with another number
    of processes. `per_shard` is settled when the store is begun.

    Raises:
        UnsupportedModel, BadDataset, BadValue: as `capture_heads`.
        Incompatible: the folder holds something else, or activations of another model, other statements or settings;
            there is no room on the disk.
    """
    # before the folder is begun with them
    require_statements(statements)
    require_position(position)
    where = site_of(site)
    if per_shard < 1:
        raise BadValue(f"per_shard must be at least 1, got {per_shard}")
    places, dtype = where.places(model), torch.promote_types(base_of(model).dtype, torch.float32)
    rank, n_processes = rank_and_count()
    store = None
    # the first process makes or checks the manifest, the others then find it there
    for turn in (rank == 0, rank != 0):
        if turn:
            wanted = Manifest(
                _record(model, tokenizer, statements, position, where),
                Layout(places.layers, *places.shape, str(dtype).removeprefix("torch."), per_shard),
                tuple(s.label for s in statements),
                tuple(s.group for s in statements),
            )
            store = ActivationStore.created(path, wanted)
            if rank == 0:
                store.sweep()
        wait()
    assert store is not None
    missing = store.missing()
    wait()  # all list what is missing before anyone writes, so that the shares fit together
    for shard in missing[rank::n_processes]:
        part = [statements[i] for i in store.manifest.examples_of(shard)]
        acts = capture_heads(model, tokenizer, part, position=position, site=where)
        store.write(shard, acts.values)
    wait()
    return ActivationStore.open(path)


def _record(
    model: Any,
    tokenizer: Any,
    statements: Sequence[Statement],
    position: str,
    site: Site,
) -> dict[str, Any]:
    tokens = [tokenizer(s.text)["input_ids"] for s in statements]
    texts = [[s.prompt, s.answer] for s in statements]
    made = json.dumps([texts, tokens], ensure_ascii=False)
    return {
        "model": fingerprint(model),
        "position": position,
        "site": site.name,
        "statements": hash_of(made),
        **site.record,
    }
