"""ROME, and what editors share: facts as changes of the MLPs' last maps, in closed form once values are found."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.datasets.facts import Fact
from trimtab.edits.weight_edit import WeightEdit
from trimtab.errors import BadDataset, BadValue
from trimtab.knowledge.keys import contexts, lookups, seen_at
from trimtab.knowledge.moments import Cache, KeyStatistics, own_statistics, require_of_model, usual_cache
from trimtab.knowledge.solve import least_squares
from trimtab.knowledge.value import SoughtValue, ValueSearch, sought_values
from trimtab.models.anatomy import base_of
from trimtab.models.identity import fingerprint
from trimtab.models.mlp import MlpSite, find_mlp_outputs
from trimtab.models.weights import LowRank, changed_weights
from trimtab.progress import tracked
from trimtab.protocols import Cost, Knobs, Method, stopwatch

Moments = Mapping[int, Float[Tensor, "d_in d_in"]]


@dataclass(frozen=True, kw_only=True)
class FactEditor(Method):
    """What editors share: which layers, which texts stand before prompts, and the second moment of the old keys."""

    layers: tuple[int, ...] | None = None
    """Layers whose MLPs are changed, counted from 0; a tenth of the depth (see the editor) if not given."""
    search: ValueSearch = field(default_factory=ValueSearch)
    before: int = 5
    """Texts of the model's own that stand before the prompt, besides none."""
    moment: KeyStatistics | Literal["own", "identity"] = "own"
    """C: statistics that are given, or those of the model's own texts, or none (`C = I`)."""
    n_tokens: int | None = None
    """Tokens of those texts; ten for each dimension of a key if not given."""
    ridge: float | int = 1e-4
    """What is added to C's diagonal, as a share of its mean eigenvalue."""
    cache: Cache = field(default_factory=usual_cache)
    """The folder that keeps statistics of the model's own texts; None for none."""

    @property
    def n_layers(self) -> int | None:
        """How many layers are edited if none are named; None for a sixth of the model's."""
        return 1

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> WeightEdit:
        """Return the change of weights that makes the model say the facts' new answers.

        Raises:
            BadDataset: what is given are no facts.
            BadValue: quantised weights; a layer that the model has not; facts that cannot be tokenised so that their
                subject has a last token; statistics of too few tokens.
            UnsupportedModel: a layer has no MLP of one last map, or a norm behind it where the method needs none.
            Incompatible: statistics of another model.
        """
        self.setting(knobs)
        facts = require_facts(train, self.name)
        base = base_of(model)
        if getattr(base, "is_quantized", False):
            raise BadValue(
                f"{self.name} cannot edit quantised weights: keys and values of them are another model's; fit on the "
                "plain model, and apply the edit to the quantised one"
            )
        with stopwatch() as taken:
            sites = self.sites(model)
            for fact in facts:  # a subject that cannot be found says so before minutes of statistics
                lookups(tokenizer, fact, [""])
            moments = self._moments(model, tokenizer, sites, seed)
            texts = contexts(model, tokenizer, self.before, seed)
        with stopwatch() as editing:
            changes, values, extra = self._written(model, tokenizer, facts, sites, texts, moments)
        lost = [fact.asked for fact, value in zip(facts, values, strict=True) if not value.taken]
        if lost:
            warnings.warn(
                f"{len(lost)} of {len(facts)} new answers stayed unlikely while they were sought, such as that to "
                f"{lost[0]!r}; allow more steps or a larger radius",
                stacklevel=2,
            )
        record = {
            "model": fingerprint(model),
            "method": self.describe(),
            "facts": [fact.key for fact in facts],
            "layers": [site.layer for site in sites],
            "seed": seed,
            "not_taken": lost,
            "losses": [value.losses[-1] for value in values],
            "seconds": {"statistics": taken[0], "edit": editing[0]},
            **extra,
        }
        n = sum(factor.numel() for change in changes.values() for factor in change)
        return WeightEdit(
            changes, name=self.name, unchanged_layers=sites[0].layer, cost=Cost(sum(taken + editing), n), record=record
        )

    def describe(self) -> dict[str, Any]:
        """Return plain values that tell one editor from another; where statistics are kept does not."""
        given = "given" if isinstance(self.moment, KeyStatistics) else self.moment
        own = {key: getattr(self, key) for key in ("layers", "before", "n_tokens", "ridge", *self._own())}
        return {"method": type(self).__name__, "name": self.name, "moment": given, "search": vars(self.search), **own}

    def _own(self) -> Sequence[str]:
        """Return the names of the fields that the method itself adds."""
        return ()

    def sites(self, model: Any) -> list[MlpSite]:
        """Return the maps that are changed, lowest first; raises as `fit`."""
        found = find_mlp_outputs(model)
        first = min(max(1, round(0.1 * len(found))), len(found) - 1)
        n = self.n_layers or max(1, len(found) // 6)
        layers = self.layers or tuple(range(first, min(first + n, len(found))))
        wrong = [layer for layer in layers if not 0 <= layer < len(found)]
        if wrong:
            raise BadValue(f"no layer {wrong[0]}: the model has layers 0-{len(found) - 1}")
        return [found[layer] for layer in sorted(set(layers))]

    @abstractmethod
    def _written(
        self,
        model: Any,
        tokenizer: Any,
        facts: Sequence[Fact],
        sites: Sequence[MlpSite],
        texts: Sequence[str],
        moments: Moments,
    ) -> tuple[dict[str, LowRank], list[SoughtValue], dict[str, Any]]:
        """Return the changes by the weight's name, the values of the facts, and what else belongs in the record."""

    def _moments(self, model: Any, tokenizer: Any, sites: Sequence[MlpSite], seed: int) -> Moments:
        if self.moment == "identity":
            return {s.layer: torch.eye(s.d_in, dtype=torch.float64, device=s.module.weight.device) for s in sites}
        if isinstance(self.moment, KeyStatistics):
            statistics = self.moment
        elif self.moment == "own":
            statistics = own_statistics(model, tokenizer, sites, n_tokens=self.n_tokens, seed=seed, cache=self.cache)
        else:
            raise BadValue(f"moment is 'own', 'identity' or KeyStatistics, got {self.moment!r:.60}")
        require_of_model(statistics, model, sites)
        return {s.layer: statistics.conditioned(s.layer, self.ridge).to(s.module.weight.device) for s in sites}


@dataclass(frozen=True, kw_only=True)
class ROME(FactEditor):
    """Rank-one editing (Meng et al. 2022): each fact is written exactly, by one key, one after another.

    Of all changes with `W' k = v` it makes the one that moves the old keys' values least. One key, the mean over
    contexts, stands in both places of the published formula, which otherwise can divide by nearly nothing (Gupta et
    al. 2024). Statistics of old keys are those of the model's own texts, not of Wikipedia.
    """

    name: str = "ROME"

    def sites(self, model: Any) -> list[MlpSite]:
        """Return the one map that is changed; raises as `fit`."""
        sites = super().sites(model)
        if len(sites) > 1:
            raise BadValue(f"{self.name} writes into one layer, got {len(sites)}; MEMIT spreads a fact over several")
        return sites

    def _written(
        self,
        model: Any,
        tokenizer: Any,
        facts: Sequence[Fact],
        sites: Sequence[MlpSite],
        texts: Sequence[str],
        moments: Moments,
    ) -> tuple[dict[str, LowRank], list[SoughtValue], dict[str, Any]]:
        (site,) = sites
        values: list[SoughtValue] = []
        factors: list[LowRank] = []
        with ExitStack() as written:
            for fact in tracked(facts, "writing facts"):
                (value,) = sought_values(model, tokenizer, [fact], site, texts, self.search)
                here = lookups(tokenizer, fact, texts)
                keys = seen_at(model, tokenizer, here, [site.module]).inputs[site.module]
                # what is sought is added to the output for every context: the same change of W k for the mean key
                right = least_squares(keys.mean(0)[:, None], moments[site.layer], 0)
                factors.append(stored_factors(value.added[:, None], right))
                values.append(value)
                written.enter_context(changed_weights(model, {site.weight: factors[-1]}))
        whole = LowRank(torch.cat([f.left for f in factors], 1), torch.cat([f.right for f in factors], 0))
        return {site.weight: whole}, values, {}


def require_facts(train: Any, name: str) -> Sequence[Fact]:
    """Return what is given as facts; raises `BadDataset` if it is anything else."""
    facts = (train,) if isinstance(train, Fact) else tuple(train)
    if not facts or not all(isinstance(fact, Fact) for fact in facts):
        raise BadDataset(
            f"{name} takes facts, got {type(train).__name__}; give a FactSet, such as "
            "trimtab.datasets.facts_from_file(path)"
        )
    return facts


def stored_factors(left: Float[Tensor, "d_out n"], right: Float[Tensor, "n d_in"]) -> LowRank:
    """Return the change as an edit keeps it: in float32, on the CPU."""
    return LowRank(left.float().cpu(), right.float().cpu().contiguous())
