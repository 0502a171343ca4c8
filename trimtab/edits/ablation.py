"""DirectionalAblation: a direction that nothing in the model may write, while it runs or in its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from trimtab.edits.sited import SiteEdit
from trimtab.edits.weight_edit import WeightEdit
from trimtab.errors import BadValue, UnsupportedModel
from trimtab.models.adding import Affine
from trimtab.models.anatomy import (
    base_of,
    decoder_of,
    has_tied_embeddings,
    input_device,
    text_config,
    untouched_layers,
)
from trimtab.models.calling import inference
from trimtab.models.twin import twin_of
from trimtab.models.weights import LowRank, WeightChange, turned, untie, with_changes
from trimtab.models.writes import COMPONENTS, erased_writes, find_writes, projection
from trimtab.protocols import EnterAt

SAME = 1e-3
"""Relative difference of logits up to which weights do what hooks do."""


@dataclass(frozen=True, repr=False)
class DirectionalAblation(SiteEdit):
    """Takes a direction out of all that embeddings, attention and MLPs write to the stream (Arditi et al. 2024).

    `x -> x - strength * r (r . x)` of what each module writes, at the given layers, before it is added; where writes
    cannot be told apart (a norm or experts between), of the stream after each layer. Deviation: the published hooks
    project the stream before every layer too, which at strength 1 changes nothing more.
    """

    kind: ClassVar[str] = "ablation"
    noun: ClassVar[str] = "ablation"
    described_as: ClassVar[str] = "directional ablation"
    place: ClassVar[str] = "layer"
    axes: ClassVar[Mapping[str, int]] = {"directions": 2}
    plain: ClassVar[Sequence[str]] = ("components",)

    layers: tuple[int, ...]
    """Whose writes lose the direction; the first layer's with those of the embeddings."""
    directions: Float[Tensor, "k d_model"]
    """A unit vector for each layer; the published method has the same for all."""
    strength: float | int = 1.0
    """1 takes out all of it, 0 nothing."""
    _: KW_ONLY
    components: tuple[str, ...] = COMPONENTS
    """Of `"embedding"`, `"attention"` and `"mlp"`."""
    name: str = "Ablation"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "components", tuple(self.components))
        if not self.components or not set(self.components) <= set(COMPONENTS):
            raise BadValue(
                f"components are some of {', '.join(COMPONENTS)}, got {', '.join(self.components) or 'none'}"
            )
        norms = self.directions.double().norm(dim=1)
        if not bool((norms - 1).abs().max() < 1e-3):
            raise BadValue(f"an ablation needs unit vectors, got one of norm {float(norms.min()):.3g}")

    @property
    def changes(self) -> dict[int, Affine]:
        """The change of each layer's writes."""
        rows = zip(self.layers, self.directions, strict=True)
        return {layer: projection(direction, self.strength) for layer, direction in rows}

    def randomised(self, seed: int) -> DirectionalAblation:
        """Return the ablation of random directions, one for each that this one has: a control."""
        distinct, which = torch.unique(self.directions, dim=0, return_inverse=True)
        drawn = torch.randn(distinct.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        record = {**self.record, "direction": "random", "seed": seed}
        directions = normalize(drawn, dim=1).to(self.directions)[which]
        return replace(self, directions=directions, name="Random ablation", record=record)

    def _acting(self, model: Any) -> EnterAt:
        return partial(erased_writes, model, self.changes, self.components)

    def to_weights(self, model: Any) -> WeightEdit:
        """Return the same as a change of weights: `W - strength * r (r . W)` of all that writes to the stream.

        Raises:
            UnsupportedModel: something else stands between (see `find_writes`); the embeddings are the output's too,
                which must stay: leave `"embedding"` out of the components, or merge.
            BadValue: quantised weights.
            Incompatible: the ablation was made for another model.
        """
        base = base_of(model)
        if "embedding" in self.components and 0 in self.layers and has_tied_embeddings(base):
            raise UnsupportedModel(
                f"{type(base).__name__} has one matrix for the embeddings of input and output, and the output's must "
                "stay: ablate components=('attention', 'mlp') only, merge (which unties them), or use the edit as it is"
            )
        changes = self._written(base)
        lowest = untouched_layers(base, changes)
        made = WeightEdit(changes, name=self.name, cost=self.cost, unchanged_layers=lowest, record=self.record)
        self._require_same(base, made.merged(base))
        return made

    def weight_changes(self, model: Any) -> Mapping[str, WeightChange]:
        """Return the change of weights; raises as `to_weights`."""
        return self.to_weights(model).changes

    def merged(self, model: Any) -> Any:
        """Return a plain model of the same class with orthogonalised weights; tied embeddings are untied if changed.

        Raises:
            UnsupportedModel, BadValue, Incompatible: as `to_weights`.
        """
        base = base_of(model)
        twin: Any = twin_of(base)
        if "embedding" in self.components and 0 in self.layers and has_tied_embeddings(twin):
            untie(twin)
        with_changes(twin, self._written(twin))
        self._require_same(base, twin)
        return twin

    @torch.no_grad()
    def _written(self, base: Any) -> dict[str, WeightChange]:
        if getattr(base, "is_quantized", False):
            raise BadValue("the model's weights are quantised and cannot be orthogonalised; use the edit as it is")
        writes, found, rows = find_writes(base), {}, dict(zip(self.layers, self.directions.double(), strict=True))
        if not writes:
            raise UnsupportedModel(
                f"in {type(base).__name__} a norm or experts stand between what the layers' modules give and the "
                "stream, so that no change of weights takes a direction out of it; use the edit as it is"
            )
        for layer, component, name in writes:
            if layer in rows and component in self.components:
                module, r = base.get_submodule(name), rows[layer]
                weight = turned(module, module.weight).double().cpu()
                found[f"{name}.weight"] = LowRank((-self.strength * r[:, None]).float(), (r @ weight)[None].float())
                if getattr(module, "bias", None) is not None:
                    found[f"{name}.bias"] = self._away(module.bias, r)
        if "embedding" in self.components and 0 in rows:
            found |= {name: self._away(weight, rows[0]) for name, weight in _embeddings(base)}
        return found

    def _away(self, weight: Tensor, r: Float[Tensor, " d_model"]) -> Tensor:
        weight = weight.double().cpu()
        return (-self.strength * (weight @ r)[..., None] * r).float()

    def _require_same(self, base: Any, changed: Any) -> None:
        """Raise `UnsupportedModel` unless changed weights do what the hooks do."""
        tokens = torch.arange(8, device=input_device(base))[None]
        with self.applied(base, "all") as ablated, inference(ablated):
            wanted = ablated(input_ids=tokens, use_cache=False).logits.double()
        with inference(changed):
            found = changed(input_ids=tokens, use_cache=False).logits.double()
        error, allowed = float((found - wanted).norm() / wanted.norm()), max(SAME, 8 * torch.finfo(base.dtype).eps)
        if not error <= allowed:
            raise UnsupportedModel(
                f"orthogonalised weights of {type(base).__name__} do not do what the ablation does (logits differ by "
                f"{error:.2g}): something else writes to the stream; use the edit as it is"
            )


def _embeddings(base: Any) -> list[tuple[str, Tensor]]:
    """Return the embeddings of tokens and positions, by the names of their parameters."""
    width, decoder = text_config(base).hidden_size, decoder_of(base)
    within = {id(module) for module in decoder.modules() if isinstance(module, nn.Embedding)}
    return [
        (f"{name}.weight", module.weight)
        for name, module in base.named_modules()
        if id(module) in within and module.weight.shape[1] == width
    ]
