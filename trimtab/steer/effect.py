"""rank_sites: heads and layers by what shifting them does, for what it costs, rather than by what probes read there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import TypedDict

from trimtab.activations.labelled import Head
from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.prose import validation_texts
from trimtab.edits.vectors import VectorEdit
from trimtab.engine.capture import SITES
from trimtab.engine.slopes import answer_slopes
from trimtab.errors import BadDataset, BadValue
from trimtab.models.tokens import AnswerTokens, context_length, encode, scored_tokens
from trimtab.storage import load_result, save_result

RankBy: TypeAlias = Literal["effect", "accuracy"]
KIND = "site ranking"
TEXTS, TOKENS = 8, 48
"""Neutral texts, and tokens of each, on which the drift to come is estimated."""
TINY = 1e-12
"""Stands for a drift of 0, which is that of a site where nothing happens."""


class _Saved(TypedDict):
    sites: list[list[int]] | list[int]
    by: RankBy
    n_items: int


@dataclass(frozen=True, repr=False)
class SiteRanking:
    """What adding each site's vector does at small strengths, best first."""

    sites: tuple[Head | int, ...]
    """Heads, or layers."""
    slope: Float[Tensor, " site"]
    """How fast the margin of positive over negative texts rises with the strength, in nats, a mean over items."""
    drift: Float[Tensor, " site"]
    """KL(unedited || edited) at strength 1 on neutral text, in nats per token, as its second derivative has it."""
    by: RankBy
    """What the order goes by."""
    n_items: int
    """How many questions or pairs the margin is a mean over."""

    def __repr__(self) -> str:
        return f"SiteRanking({len(self.sites)} sites by {self.by}, first {self.sites[0]})"

    @property
    def effect(self) -> Float[Tensor, " site"]:
        """The margin that a nat of drift buys, in nats: slope / sqrt(drift); times sqrt(budget), the gain within it."""
        return self.slope / self.drift.sqrt().clamp_min(TINY)

    @property
    def effects(self) -> dict[tuple[int, int], float]:
        """The effect of each place as probes count them: a layer's residual stream is its head 0."""
        places = [site if isinstance(site, tuple) else (site, 0) for site in self.sites]
        return dict(zip(places, self.effect.tolist(), strict=True))

    def reach(self, sites: Sequence[Head | int], kl_budget: float | int) -> float:
        """Return the strength at which these sites together are expected to drift by the budget."""
        total = float(self.drift[[self.sites.index(site) for site in sites]].sum())
        return (kl_budget / max(total, TINY)) ** 0.5

    def save(self, path: str | Path) -> None:
        """Write it to a folder, atomically; raises `Incompatible` where that cannot be."""
        save_result(
            path,
            KIND,
            {"sites": self.sites, "by": self.by, "n_items": self.n_items},
            {"slope": self.slope, "drift": self.drift},
        )

    @classmethod
    def load(cls, path: str | Path) -> SiteRanking:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        record, tensors = load_result(path, KIND, fields=_Saved, names=("slope", "drift"))
        sites = tuple(Head(*site) if isinstance(site, list) else site for site in record["sites"])
        return cls(sites, tensors["slope"], tensors["drift"], record["by"], record["n_items"])


def rank_sites(
    model: Any,
    tokenizer: Any,
    items: ItemSet[Any],
    shift: VectorEdit,
    *,
    by: RankBy = "effect",
    texts: Sequence[str] | None = None,
    seed: int = 0,
) -> SiteRanking:
    """Return the sites of a shift ranked, by what each does alone or in the shift's own order, that of the probes.

    Two passes serve all sites, however many: one over the items gives how the margin (log-probability of positive
    texts minus that of negative ones) moves as a site's vector is added from the last prompt token on, which is
    attribution patching with the vector as the difference (Nanda 2023; Syed et al. 2023); one over neutral texts gives
    the drift that it costs: KL = strength^2 / 2 times the Fisher information of the strength, estimated from tokens
    that the model draws. The rank is by margin per root of drift, since both grow with the vectors' length.

    Args:
        items: questions or contrast pairs that the directions have not seen.
        shift: with every site that is to be ranked, such as `fit_shift(acts, probes, top_k=270)`.
        by: `"accuracy"` keeps the order of the shift; slopes and drift are measured all the same.
        texts: neutral texts; the first eight of trimtab's own for choosing if not given.
        seed: of the tokens drawn.

    Raises:
        BadDataset: items without two sides.
        BadValue: gradients that are not numbers; an unknown way to rank.
        Incompatible: a model that gradients are not to be had of.
    """
    if by not in ("effect", "accuracy"):
        raise BadValue(f"sites are ranked by 'effect' or 'accuracy', got {by!r}")
    grid, where = _as_grid(model, shift)
    slope = _margin_slopes(model, tokenizer, items, {shift.site: grid})[shift.site]
    drift = _drifts_at_one(model, tokenizer, texts or validation_texts()[:TEXTS], {shift.site: grid}, seed)[shift.site]
    slope, drift = slope[where], drift[where]
    order = list(range(len(shift)))
    if by == "effect":
        order = (slope / drift.sqrt().clamp_min(TINY)).argsort(descending=True).tolist()
    return SiteRanking(tuple(shift.sites[i] for i in order), slope[order], drift[order], by, len(items))


def _as_grid(
    model: Any, shift: VectorEdit
) -> tuple[Float[Tensor, "layer part width"], tuple[Int[Tensor, " site"], Int[Tensor, " site"]]]:
    """Return the shift's rows in a table of the model's layers and their parts, and where each site stands in it."""
    found = SITES[shift.site].places(model)
    at = [(found.layers.index(layer), part) for layer, part in shift.probed]
    layers, parts = torch.tensor(at).T
    grid = torch.zeros(len(found.layers), *found.shape)
    grid[layers, parts] = shift.rows.float()
    return grid, (layers, parts)


def _margin_slopes(
    model: Any, tokenizer: Any, items: ItemSet[Any], along: dict[str, Tensor]
) -> dict[str, Float[Tensor, "layer part"]]:
    statements = items.statements()
    found = answer_slopes(model, tokenizer, scored_tokens(model, tokenizer, statements), along)
    sides = [(s.group, s.label) for s in statements]
    if len({group for group, _ in sides}) * 2 != len(set(sides)):
        raise BadDataset("sites are ranked on items that each have positive and negative texts")
    # the mean over items of the mean over each one's positive texts minus that over its negative ones
    weights = torch.tensor([(1 if side[1] else -1) / sides.count(side) for side in sides]) / len(items)
    return {site: torch.einsum("s,slp->lp", weights, of_site) for site, of_site in found.items()}


def _drifts_at_one(
    model: Any, tokenizer: Any, texts: Sequence[str], along: dict[str, Tensor], seed: int
) -> dict[str, Float[Tensor, "layer part"]]:
    limit = min(TOKENS, context_length(model) or TOKENS)
    ids = [i for i in (encode(tokenizer, text)[:limit] for text in texts) if len(i) > 1]
    if not ids:
        raise BadDataset("no neutral text of two tokens or more to estimate drift on")
    found = answer_slopes(model, tokenizer, [AnswerTokens(i, 1, len(i)) for i in ids], along, sampled=seed)
    tokens = sum(len(i) - 1 for i in ids)
    return {site: of_site.square().sum(0) / (2 * tokens) for site, of_site in found.items()}
