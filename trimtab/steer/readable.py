"""readable: how well fresh linear probes still tell the two kinds of texts apart in an edited model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.activations.captured import HeadActivations
from trimtab.datasets.item_set import ItemSet
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadDataset
from trimtab.intervals import Estimate, seeded, share
from trimtab.probes.newton import newton_logistic
from trimtab.protocols import Edit
from trimtab.steer.removal import residual_after
from trimtab.steer.sites import Position, read_at

FOLDS = 5


def readable(
    model: Any,
    tokenizer: Any,
    items: ItemSet[Any],
    edits: Sequence[Edit],
    *,
    layers: Sequence[int],
    position: Position | None = None,
    seed: int = 0,
) -> list[tuple[Estimate, ...]]:
    """Return for every edit, by layer, the share of the items' texts that probes fitted on other items read rightly.

    Each probe is fitted on four fifths of the items in the very same edited model (at all positions), on the
    standardised residual stream after the layer. Give items that the edit was not made from: then nothing that it was
    fitted on is asked, and what a new probe finds again counts. Half is chance where both kinds are equally many. With
    95 % intervals over items.

    Raises:
        BadDataset: texts of one kind only, or fewer than two items.
    """
    statements, position, found = items.statements(), position or read_at(items), []
    for edit in edits:
        with edit.applied(model, "all") as edited:
            acts = capture_heads(edited, tokenizer, statements, position=position, site=residual_after(*layers))
        right = _read_rightly(acts, seed)
        by_item = defaultdict(list)
        for group, row in zip(acts.groups, right, strict=True):
            by_item[group].append(row)
        shares = torch.stack([torch.stack(rows).mean(0) for rows in by_item.values()])
        found.append(tuple(share(column.tolist()) for column in shares.T))
    return found


def _read_rightly(acts: HeadActivations, seed: int) -> Float[Tensor, "example layer"]:
    """Return 1 where the probe of a layer that was not fitted on an example's item reads it rightly, else 0."""
    groups, kinds = sorted(set(acts.groups)), dict(zip(acts.groups, acts.labels.tolist(), strict=True))
    if len(groups) < 2:
        raise BadDataset(f"fresh probes need two or more items, got {len(groups)}: some to fit on, others to read")
    drawn = [groups[i] for i in seeded(seed).permutation(len(groups))]
    # texts that are no pairs: each fold gets its share of both kinds
    place = {group: i for i, group in enumerate(sorted(drawn, key=kinds.__getitem__))}
    folds = torch.tensor([place[group] % min(FOLDS, len(groups)) for group in acts.groups])
    x, right = acts.values[:, :, 0].double(), torch.zeros(len(acts), len(acts.layers))
    for fold in folds.unique():
        held = folds == fold
        rest = acts.select(~held).require_both_labels()
        # in standard deviations, so that the probe's penalty hides nothing in dimensions that vary little
        mean, spread = x[~held].mean(0), x[~held].std(0, correction=0).clamp(min=1e-12)
        standard = (x - mean) / spread
        probe = newton_logistic(standard[~held], rest.labels)
        scores = torch.einsum("elw,lw->el", standard[held], probe.coef) + probe.intercept
        right[held] = ((scores > 0) == acts.labels[held, None]).float()
    return right
