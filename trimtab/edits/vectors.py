"""HeadShift and ResidualShift: vectors added to attention heads or to the residual stream while a model runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from trimtab.activations.labelled import Head
from trimtab.edits.sited import SiteEdit
from trimtab.models.adding import add_to_heads, changed_residual
from trimtab.models.anatomy import base_of, decoder_layers
from trimtab.models.carriers import through_projections, with_biases
from trimtab.models.heads import HeadSite, find_heads
from trimtab.models.identity import common_model
from trimtab.protocols import EnterAt

Own = TypeVar("Own", bound="VectorEdit")


@dataclass(frozen=True, repr=False)
class VectorEdit(SiteEdit):
    """Adds a vector at each of its sites, along the first of its tensors; the sum of two shifts of one kind is one."""

    noun: ClassVar[str] = "shift"
    site: ClassVar[str]  # what `capture_heads` calls the places

    @property
    def probed(self) -> tuple[Head, ...]:
        """The sites as probes count them: a layer's residual stream is its head 0."""
        return tuple(Head(*site) if isinstance(site, tuple) else Head(site, 0) for site in self.sites)

    @property
    @abstractmethod
    def rows(self) -> Float[Tensor, "k width"]:
        """What is added at each site."""

    @property
    def deltas(self) -> dict[Any, Float[Tensor, " width"]]:
        """What is added, by site."""
        return dict(zip(self.sites, self.rows, strict=True))

    def __add__(self: Own, other: Any) -> Own:
        """Return the shift that adds both; raises `Incompatible` if they were made for different models."""
        if type(other) is not type(self):
            return NotImplemented
        model, total = common_model(self, other), dict(self.deltas)
        for site, delta in other.deltas.items():
            total[site] = total[site] + delta if site in total else delta
        record = {
            **({"model": model} if model else {}),
            "sum_of": [self.describe(), other.describe()],
            "questions": sorted({*self.fitted_on, *other.fitted_on}),
        }
        cost = replace(self.cost + other.cost, trainable_parameters=sum(delta.numel() for delta in total.values()))
        return self.from_deltas(total, name=f"{self.name} + {other.name}", cost=cost, record=record)

    @classmethod
    @abstractmethod
    def from_deltas(cls: type[Own], deltas: Mapping[Any, Float[Tensor, " width"]], **fields: Any) -> Own:
        """Return the shift of strength 1 that adds these vectors; `fields` are its name, cost and record."""

    def randomised(self: Own, seed: int) -> Own:
        """Return the shift with another direction at each site, drawn at random, and the same norms: a control."""
        along = next(iter(self.axes))
        old, generator = getattr(self, along), torch.Generator().manual_seed(seed)
        units = normalize(torch.randn(old.shape, generator=generator, dtype=torch.float64), dim=1)
        turned = (units * old.double().norm(dim=1, keepdim=True).cpu()).to(old)
        record = {**self.record, "direction": "random", "seed": seed}
        return replace(self, name="Random direction", record=record, **{along: turned})

    def merged(self, model: Any) -> Any:
        """Return a model of a stock class whose biases add the vectors at all positions; raises as `with_biases`."""
        constants = self.constants(model)
        return with_biases(base_of(model), constants) if constants else base_of(model)


@dataclass(frozen=True, repr=False)
class HeadShift(VectorEdit):
    """Adds `strength * sigma * direction` to each chosen head's activation (Li et al. 2023, eq. 3)."""

    kind: ClassVar[str] = "shift"
    described_as: ClassVar[str] = "head shift"
    site: ClassVar[str] = "heads"
    place: ClassVar[str] = "head"
    axes: ClassVar[Mapping[str, int]] = {"directions": 2, "sigma": 1}

    heads: tuple[Head, ...]
    """Best first, so that `first(k)` is the shift on the k best heads."""
    directions: Float[Tensor, "k d_head"]
    """Unit vectors."""
    sigma: Float[Tensor, " k"]
    """Standard deviation (ddof 0) of the activations along each direction."""
    strength: float | int = 1.0
    """alpha in the paper."""
    _: KW_ONLY
    name: str = "ITI"

    @property
    def rows(self) -> Float[Tensor, "k d_head"]:
        """What is added to each head."""
        return self.strength * self.sigma[:, None] * self.directions

    @classmethod
    def from_deltas(cls, deltas: Mapping[Head, Float[Tensor, " d_head"]], **fields: Any) -> HeadShift:
        """Return the shift that adds these vectors: their norms become sigma."""
        vectors = torch.stack(list(deltas.values()))
        return cls(tuple(deltas), normalize(vectors, dim=1), vectors.norm(dim=1), **fields)

    def constants(self, model: Any) -> dict[str, Float[Tensor, " d_model"]]:
        """Return by output projection what the shift adds after it: W_O times the vectors (section 3.2)."""
        with self.applied(model, "all"):
            pass  # refuses another model's shift
        moved = {head: delta for head, delta in self.deltas.items() if bool(delta.any())}
        return through_projections(self._found(model), moved)

    def _acting(self, model: Any) -> EnterAt:
        return partial(add_to_heads, model, self.deltas, heads=self._found(model))

    def _found(self, model: Any) -> Sequence[HeadSite]:
        named = {layer: (name, n_heads) for layer, name, n_heads in self.record.get("named_heads", ())}
        return find_heads(model, named or None)


@dataclass(frozen=True, repr=False)
class ResidualShift(VectorEdit):
    """Adds `strength * vector` to the residual stream after each chosen layer (Rimsky et al. 2023, section 3)."""

    kind: ClassVar[str] = "residual shift"
    described_as: ClassVar[str] = "residual shift"
    site: ClassVar[str] = "residual"
    place: ClassVar[str] = "layer"
    axes: ClassVar[Mapping[str, int]] = {"vectors": 2}

    layers: tuple[int, ...]
    """Decoder layers after which it acts, best first, so that `first(k)` is the shift on the k best."""
    vectors: Float[Tensor, "k d_model"]
    """Mean difference between positive and negative activations, not normalised."""
    strength: float | int = 1.0
    """The multiplier."""
    _: KW_ONLY
    name: str = "CAA"

    @property
    def rows(self) -> Float[Tensor, "k d_model"]:
        """What is added after each layer."""
        return self.strength * self.vectors

    @classmethod
    def from_deltas(cls, deltas: Mapping[int, Float[Tensor, " d_model"]], **fields: Any) -> ResidualShift:
        """Return the shift that adds these vectors."""
        return cls(tuple(deltas), torch.stack(list(deltas.values())), **fields)

    def constants(self, model: Any) -> dict[str, Float[Tensor, " d_model"]]:
        """Return by layer what the shift adds after it."""
        with self.applied(model, "all"):
            pass  # refuses another model's shift
        names = {module: name for name, module in base_of(model).named_modules()}
        layers = decoder_layers(model)
        return {names[layers[i]]: delta.double() for i, delta in self.deltas.items() if bool(delta.any())}

    def _acting(self, model: Any) -> EnterAt:
        return partial(changed_residual, model, self.deltas)
