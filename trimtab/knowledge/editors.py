"""ROME, and what editors share: facts as changes of the MLPs' last maps, in closed form once values are found."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from pydantic import InstanceOf
from torch import Tensor

from trimtab.datasets.facts import Fact
from trimtab.edits.weight_edit import WeightEdit
from trimtab.errors import BadDataset, BadValue, Incompatible
from trimtab.knowledge.keys import FactTexts, contexts, fact_texts, seen_at, subject_last
from trimtab.knowledge.moments import Cache, KeyStatistics, own_statistics, require_of_model, usual_cache
from trimtab.knowledge.solve import least_squares
from trimtab.knowledge.value import SoughtValue, ValueSearch, sought_values
from trimtab.models.anatomy import base_of
from trimtab.models.identity import fingerprint, require_same_model
from trimtab.models.mlp import MlpSite, find_mlp_outputs
from trimtab.models.weights import LowRank, changed_weights, unchanged
from trimtab.progress import tracked
from trimtab.protocols import Cost, Knobs, Method, stopwatch

Moments = Mapping[int, Float[Tensor, "d_in d_in"]]
Editor = TypeVar("Editor", bound="FactEditor")


class Writing(NamedTuple):
    """Facts, and what they are written into and with."""

    model: Any
    tokenizer: Any
    facts: Sequence[FactTexts]
    sites: Sequence[MlpSite]
    """The maps that are changed, lowest first."""
    moments: Moments
    """Layer -> C."""


class Written(NamedTuple):
    """What an editor found."""

    changes: Mapping[str, LowRank]
    """By the weight's name."""
    values: Sequence[SoughtValue]
    """One for each fact."""
    keys: Mapping[str, Float[Tensor, "fact d_in"]]
    """The facts' keys, by the weight's name."""
    record: Mapping[str, Any] = {}
    """What else there is to say."""


@dataclass(frozen=True, kw_only=True)
class FactEditor(Method):
    """What editors share: which layers, which texts stand before prompts, and the second moment of the old keys."""

    layers: tuple[int, ...] | None = None
    """Layers whose MLPs are changed, counted from 0; a tenth of the depth (see the editor) if not given."""
    search: ValueSearch = field(default_factory=ValueSearch)
    before: int = 5
    """Texts of the model's own that stand before the prompt, besides none."""
    moment: InstanceOf[KeyStatistics] | Literal["own", "identity"] = "own"
    """C: statistics that are given, or those of the model's own texts, or none (`C = I`)."""
    n_tokens: int | None = None
    """Tokens of those texts; ten for each dimension of a key if not given."""
    ridge: float | int = 1e-4
    """What is added to C's diagonal, as a share of its mean eigenvalue."""
    cache: Cache = field(default_factory=usual_cache)
    """The folder that keeps statistics of the model's own texts; None for none."""
    previous: InstanceOf[WeightEdit] | None = None
    """An earlier edit of facts that is in place; MEMIT, EMMET and AlphaEdit leave what its keys give as it is."""

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
            Incompatible: statistics of another model; a previous edit that is another model's, or not in place.
        """
        self.setting(knobs)
        facts = require_facts(train, self.name)
        base = base_of(model)
        if getattr(base, "is_quantized", False):
            raise BadValue(
                f"{self.name} cannot edit quantised weights: keys and values of them are another model's; fit on the "
                "plain model, and apply the edit to the quantised one"
            )
        self._require_previous(model)
        with stopwatch() as taken:
            sites = self.sites(model)
            for fact in facts:  # a subject that cannot be found says so before minutes of statistics
                subject_last(tokenizer, fact.asked, fact.span)
            moments = self._moments(model, tokenizer, sites, seed)
            before = contexts(model, tokenizer, self.before, seed)
        with stopwatch() as editing:
            texts = fact_texts(model, tokenizer, facts, before)
            written = self._written(Writing(model, tokenizer, texts, sites, moments))
        lost = [fact.asked for fact, value in zip(facts, written.values, strict=True) if not value.taken]
        warn_of_lost(lost, len(facts))
        record = {
            "model": fingerprint(model),
            "method": self.describe(),
            "facts": [fact.key for fact in facts],
            "layers": [site.layer for site in sites],
            "seed": seed,
            "not_taken": lost,
            "losses": [value.losses[-1] for value in written.values],
            "seconds": {"statistics": taken[0], "edit": editing[0]},
            "keys": {weight: [fact.key for fact in facts] for weight in written.keys},
            **({} if self.previous is None else {"previous": self.previous.record.get("facts", [])}),
            **written.record,
        }
        n = sum(factor.numel() for change in written.changes.values() for factor in change)
        return WeightEdit(
            written.changes,
            name=self.name,
            unchanged_layers=sites[0].layer,
            cost=Cost(sum(taken + editing), n),
            record=record,
            keys={weight: keys.float().cpu() for weight, keys in written.keys.items()},
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
    def _written(self, to: Writing) -> Written:
        """Return the changes that write the facts."""

    def _require_previous(self, model: Any) -> None:
        if self.previous is None:
            return
        require_same_model(self.previous.record.get("model", fingerprint(model)), model, "the previous edit")
        weights = dict(base_of(model).named_parameters())
        if any(unchanged(weights[name]) is weights[name] for name in self.previous.changes):
            raise Incompatible(
                f"{self.previous.name} is given as the previous edit and is not in place; fit within "
                "`with previous.applied(model):`"
            )

    def with_statistics(self: Editor, model: Any, tokenizer: Any, sites: Sequence[MlpSite], *, seed: int) -> Editor:
        """Return the editor with the model's own statistics of these maps' inputs, all from the same texts.

        Itself where it was given others, or takes none.
        """
        if self.moment != "own":
            return self
        how: dict[str, Any] = {"n_tokens": self.n_tokens, "seed": seed, "cache": self.cache}
        return replace(self, moment=own_statistics(model, tokenizer, sites, **how))

    def _moments(self, model: Any, tokenizer: Any, sites: Sequence[MlpSite], seed: int) -> Moments:
        if self.moment == "identity":
            return {s.layer: torch.eye(s.d_in, dtype=torch.float64, device=s.module.weight.device) for s in sites}
        statistics = self.with_statistics(model, tokenizer, sites, seed=seed).moment
        if not isinstance(statistics, KeyStatistics):
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

    def _written(self, to: Writing) -> Written:
        (site,) = to.sites
        values: list[SoughtValue] = []
        keys: list[Tensor] = []
        changes: dict[str, LowRank] = {}
        for fact in tracked(to.facts, "writing facts"):
            with changed_weights(to.model, changes):
                values += sought_values(to.model, to.tokenizer, [fact], site, self.search)
                keys.append(seen_at(to.model, to.tokenizer, fact.asked, [site.module]).inputs[site.module].mean(0))
            # what is sought is added to the output for every context: the same change of W k for the mean key
            right = least_squares(keys[-1][:, None], to.moments[site.layer], 0)
            new = stored_factors(values[-1].added[:, None], right)
            changes[site.weight] = concatenated(changes[site.weight], new) if changes else new
        return Written(changes, values, {site.weight: torch.stack(keys)})


def require_facts(train: Any, name: str) -> Sequence[Fact]:
    """Return what is given as facts; raises `BadDataset` if it is anything else."""
    facts = (train,) if isinstance(train, Fact) else tuple(train)
    if not facts or not all(isinstance(fact, Fact) for fact in facts):
        raise BadDataset(
            f"{name} takes facts, got {type(train).__name__}; give a FactSet, such as "
            "trimtab.datasets.facts_from_file(path)"
        )
    return facts


def warn_of_lost(lost: Sequence[str], n: int) -> None:
    """Warn that of n facts these prompts' new answers did not become likely."""
    if lost:
        warnings.warn(
            f"{len(lost)} of {n} new answers stayed unlikely while they were sought, such as that to {lost[0]!r}; "
            "allow more steps or a larger radius",
            stacklevel=3,
        )


def concatenated(one: LowRank, other: LowRank) -> LowRank:
    """Return the sum of two changes of one weight."""
    return LowRank(torch.cat([one.left, other.left], 1), torch.cat([one.right, other.right], 0))


def stored_factors(left: Float[Tensor, "d_out n"], right: Float[Tensor, "n d_in"]) -> LowRank:
    """Return the change as an edit keeps it: in float32, on the CPU."""
    return LowRank(left.float().cpu(), right.float().cpu().contiguous())
