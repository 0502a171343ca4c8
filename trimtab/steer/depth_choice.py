"""choose_depth: at which layer the direction of an ablation is read, by what ablating it does and costs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.prose import validation_texts
from trimtab.evaluate.contrast import contrast_many
from trimtab.evaluate.drift import drifts
from trimtab.models.anatomy import decoder_layers
from trimtab.steer.readable import readable
from trimtab.steer.removal import Ablation

HELD = 0.4
"""The share of the items on which depths are tried."""


@dataclass(frozen=True)
class TriedDepth:
    """One depth and what ablating the direction that is read there did."""

    depth: float
    left: float
    """Of pairs the mean margin of the positive side, in nats; of other texts the share that fresh probes read."""
    kl: float
    """On neutral texts, in nats per token."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def choose_depth(
    model: Any,
    tokenizer: Any,
    method: Ablation,
    items: ItemSet[Any],
    *,
    kl_budget: float | int = 0.1,
    seed: int = 0,
) -> tuple[float, tuple[TriedDepth, ...]]:
    """Return the depth of the method's whose ablation leaves least of the concept within a KL, and all that was tried.

    Directions are fitted on three fifths of the items and tried on the others; where none keeps within the budget, the
    one of the least KL is taken. Arditi et al. (2024, section 2.3) choose by refusal scores, with the same budget.

    Raises:
        BadDataset, BadValue: as `Ablation.fit`.
    """
    train, held = items.split(test=HELD, seed=seed)
    edits = [method.fit(model, tokenizer, train, knobs={"depth": depth}) for depth in method.depths]
    if items.measured_by == "pairs":
        scores = contrast_many(model, tokenizer, held, edits)
        left: Sequence[float] = [sum(r.positive - r.negative for r in s.rows) / len(s.rows) for s in scores]
    else:
        last = len(decoder_layers(model)) - 1
        left = [float(shares[0]) for shares in readable(model, tokenizer, held, edits, layers=(last,), seed=seed)]
    costs = drifts(model, tokenizer, edits, texts=validation_texts(16))
    tried = tuple(TriedDepth(*row) for row in zip(method.depths, left, [float(c.kl) for c in costs], strict=True))
    within = [t for t in tried if t.kl <= kl_budget]
    best = min(within, key=lambda t: t.left) if within else min(tried, key=lambda t: t.kl)
    if not within:
        warnings.warn(
            f"no direction can be ablated within a KL of {kl_budget:g}: that of depth {best.depth:g}, with the least "
            f"({best.kl:.3f}), is taken; ablate fewer layers or components, or erase by LEACE",
            stacklevel=2,
        )
    return best.depth, tried
