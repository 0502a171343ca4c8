"""MEMIT, EMMET and AlphaEdit: all facts at once, over one layer or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.datasets.facts import Fact
from trimtab.errors import BadValue, UnsupportedModel
from trimtab.knowledge.editors import FactEditor, Writing, Written, stored_factors
from trimtab.knowledge.keys import seen_at
from trimtab.knowledge.solve import least_squares, null_space, projector
from trimtab.knowledge.value import ValueSearch, sought_values
from trimtab.models.anatomy import decoder_layers
from trimtab.models.mlp import MlpSite
from trimtab.models.weights import LowRank, changed_weights
from trimtab.progress import tracked


@dataclass(frozen=True, kw_only=True)
class MEMIT(FactEditor):
    """Mass editing (Meng et al. 2023): all facts at once, spread over several layers, by least squares.

    How many old keys C stands for, the published lambda, follows from `share`: `lambda = d_in (1 / share - 1)`, by
    which a layer writes that share of what it is to write of a key as common as the mean of text.
    """

    search: ValueSearch = field(default_factory=lambda: ValueSearch(radius=1.5, measured_by="layer"))
    share: float | int = 0.9
    name: str = "MEMIT"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise BadValue(f"share is what a layer writes of its part, above 0 and up to 1; got {self.share}")

    @property
    def n_layers(self) -> int | None:
        """A sixth of the model's layers."""
        return None

    def _own(self) -> Sequence[str]:
        return ("share",)

    def _right(
        self, keys: Float[Tensor, "d_in n"], moment: Float[Tensor, "d_in d_in"]
    ) -> tuple[Float[Tensor, "n d_in"], dict[str, Any]]:
        """Return the right factor of a layer's change, and what belongs in the record."""
        # of a whitened key; where nothing is known of old keys, of a key as it is
        length = float(keys.square().sum(0).mean()) if self.moment == "identity" else len(moment)
        return least_squares(keys, moment, length * (1 / self.share - 1)), {}

    def sites(self, model: Any) -> list[MlpSite]:
        """Return the maps that are changed, lowest first; raises as `fit`."""
        sites = super().sites(model)
        normed = [site for site in sites if not site.additive]
        if normed:
            raise UnsupportedModel(
                f"{self.name} spreads what is to be added to a layer's output over MLPs, and in this model a norm "
                f"stands between ({normed[0].weight}); use ROME, which works on one MLP's output"
            )
        return sites

    def _written(self, to: Writing) -> Written:
        model, tokenizer, n = to.model, to.tokenizer, len(to.facts)
        last = decoder_layers(model)[to.sites[-1].layer]
        values = sought_values(model, tokenizer, to.facts, to.sites[-1], self.search)
        plain = [texts.plain for texts in to.facts]
        behind = [text for texts in to.facts for text in texts.asked]
        goal = seen_at(model, tokenizer, plain, [], [last]).outputs[last] + torch.stack([v.added for v in values])
        changes: dict[str, LowRank] = {}
        keys: dict[str, Tensor] = {}
        extra: dict[str, Any] = {}
        for i, site in enumerate(tracked(to.sites, "writing layers")):
            with changed_weights(model, changes):  # the layers below
                now = seen_at(model, tokenizer, plain, [], [last]).outputs[last]
                each = seen_at(model, tokenizer, behind, [site.module]).inputs[site.module]
            own = keys[site.weight] = torch.stack([_half_plain(of_fact) for of_fact in each.view(n, -1, site.d_in)])
            # keys of earlier facts stand beside those of the new ones, with nothing to be written
            held = torch.cat([own, self._earlier(site, [texts.fact for texts in to.facts]).to(own)])
            right, found = self._right(held.T, to.moments[site.layer])
            changes[site.weight] = stored_factors((goal - now).T / (len(to.sites) - i), right[:n])
            left = float((goal - now).norm() / goal.norm())
            extra[f"layer {site.layer}"] = {**found, "left_to_write": left, "earlier_keys": len(held) - n}
        return Written(changes, values, keys, {"written": extra})

    def _earlier(self, site: MlpSite, facts: Sequence[Fact]) -> Float[Tensor, "earlier d_in"]:
        """Return the keys of the previous edit's facts, but for those that are written anew."""
        if self.previous is None or site.weight not in self.previous.keys:
            return torch.zeros(0, site.d_in)
        anew = {fact.key for fact in facts}
        labels = self.previous.record["keys"][site.weight]
        return self.previous.keys[site.weight][[i for i, key in enumerate(labels) if key not in anew]]


@dataclass(frozen=True, kw_only=True)
class EMMET(MEMIT):
    """MEMIT's batch with equality (Gupta et al. 2024): all facts at once in one layer, each written exactly."""

    share: float | int = 1.0
    name: str = "EMMET"

    @property
    def n_layers(self) -> int | None:
        """One."""
        return 1


@dataclass(frozen=True, kw_only=True)
class AlphaEdit(MEMIT):
    """MEMIT within the directions that old keys leave alone (Fang et al. 2025).

    `free` is the share of C's trace that may be written over: the published threshold on eigenvalues means another
    thing in every layer and model. The ridge follows from `share` of the mean key's length there.
    """

    free: float = 0.2
    name: str = "AlphaEdit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.free < 1:
            raise BadValue(
                f"free is the share of the old keys that may be written over, between 0 and 1; got {self.free}"
            )
        if self.moment == "identity":
            raise BadValue(
                f"{self.name} writes into directions that old keys leave free, and without statistics all are as free "
                "as any; give moment='own' or KeyStatistics, or use MEMIT"
            )

    def _own(self) -> Sequence[str]:
        return ("share", "free")

    def _right(
        self, keys: Float[Tensor, "d_in n"], moment: Float[Tensor, "d_in d_in"]
    ) -> tuple[Float[Tensor, "n d_in"], dict[str, Any]]:
        project, n = projector(moment, self.free)
        lengths = (project @ keys).square().sum(0)
        ridge = float(lengths.mean()) * (1 / self.share - 1)
        return null_space(keys, project, max(ridge, 1e-9)), {"directions": n, "of": len(moment)}


def _half_plain(keys: Float[Tensor, "text d_in"]) -> Float[Tensor, " d_in"]:
    """Return a fact's key as MEMIT has it: the plain prompt, which stands first, weighs as much as all others."""
    return keys[0] if len(keys) == 1 else (keys[0] + keys[1:].mean(0)) / 2
