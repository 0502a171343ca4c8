"""HeadShift and ResidualShift: vectors added to attention heads or to the residual stream while a model runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from trimtab.activations.labelled import Head
from trimtab.edits.vector_record import UNDESCRIBED, common_model, load_vectors, plain_sites, ranks_of, save_vectors
from trimtab.errors import BadValue, ShapeError
from trimtab.models.adding import add_to_heads, add_to_residual
from trimtab.models.anatomy import base_of, decoder_layers
from trimtab.models.carriers import through_projections, with_biases
from trimtab.models.heads import HeadSite, find_heads
from trimtab.models.identity import require_same_model
from trimtab.protocols import Cost, Edit, EnterAt, Positions

Own = TypeVar("Own", bound="VectorEdit")


@dataclass(frozen=True, repr=False)
class VectorEdit(Edit):
    """Adds a vector at each of its sites; the sum of two shifts of one kind is a shift."""

    place: ClassVar[str]
    """What a site is, `"head"` or `"layer"`; the field that lists the sites is its plural."""
    axes: ClassVar[Mapping[str, int]]
    """Tensor -> number of axes, the directions first; each has one row for every site."""
    described_as: ClassVar[str]
    site: ClassVar[str]  # what `capture_heads` calls the places
    leaves_prompt_unedited: ClassVar[bool] = True

    _: KW_ONLY
    name: str = ""
    cost: Cost = field(default_factory=Cost)
    record: Mapping[str, Any] = field(default_factory=dict)
    """How the shift was made; `MadeFrom` lists what is read again."""

    def __post_init__(self) -> None:
        k, tensors = len(self.sites), self.tensors
        if any(t.ndim != n or len(t) != k for t, n in zip(tensors.values(), self.axes.values(), strict=True)):
            shapes = " and ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
            raise ShapeError(f"{k} {self.place}s came with {shapes}; expected one row each")
        if k == 0:
            raise BadValue(f"a shift needs one {self.place} or more, got none")
        if not all(bool(t.isfinite().all()) for t in tensors.values()):
            raise BadValue(f"the shift's {' and '.join(tensors)} must be finite numbers; fit it again")
        if len(set(self.sites)) < k:
            raise BadValue(f"a {self.place} stands twice in the shift; give it once (a sum of two shifts adds them up)")

    def __len__(self) -> int:
        return len(self.sites)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} {self.place}(s), strength {self.strength:g})"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {name: getattr(self, name) for name in self.axes}

    @property
    def sites(self) -> tuple[Any, ...]:
        """Where it acts, best first."""
        return getattr(self, f"{self.place}s")

    @property
    def probed(self) -> tuple[Head, ...]:
        """The sites as probes count them: a layer's residual stream is its head 0."""
        return tuple(Head(*site) if isinstance(site, tuple) else Head(site, 0) for site in self.sites)

    @property
    def n_sites(self) -> int:
        """How many heads or layers it acts on."""
        return len(self.sites)

    @property
    @abstractmethod
    def rows(self) -> Float[Tensor, "k width"]:
        """What is added at each site."""

    @property
    def deltas(self) -> dict[Any, Float[Tensor, " width"]]:
        """What is added, by site."""
        return dict(zip(self.sites, self.rows, strict=True))

    @property
    def fitted_on(self) -> Sequence[str]:
        """Keys of the questions that it was made from, those that ranked its sites included."""
        return self.record.get("questions", ())

    @property
    def validated_on(self) -> Sequence[str]:
        """Keys of the questions that ranked its sites."""
        return self.record.get("validation_questions", ())

    def scaled(self: Own, factor: float | int) -> Own:
        """Return the shift with its strength multiplied; raises `BadValue` if it is not finite."""
        factor = float(factor)
        if not abs(factor) < float("inf"):
            raise BadValue(f"strength must be a finite number, got {factor}")
        return replace(self, strength=self.strength * factor)  # pyright: ignore[reportCallIssue]

    def first(self: Own, k: int) -> Own:
        """Return the shift on its k best sites; raises `BadValue` if it has fewer, or k is below 1."""
        if 1 <= k <= len(self):
            return self.on(self.sites[:k])
        raise BadValue(f"first {k} {self.place}s asked for; the shift has {len(self)}")

    def on(self: Own, sites: Sequence[Any]) -> Own:
        """Return the shift on these of its sites, in this order; raises `BadValue` for one that it does not have."""
        ranks, record = ranks_of(self, sites)
        rows = {name: tensor[ranks] for name, tensor in self.tensors.items()}
        return replace(self, record=record, **rows, **{f"{self.place}s": tuple(sites)})

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

    def applied(self, model: Any, positions: Positions = "generated") -> AbstractContextManager[Any]:
        """Yield the same model, steered at `positions` until the block ends.

        Raises:
            Incompatible: the shift was made for another checkpoint or geometry, or did not act.
            BadValue: `"generated"` where it has no meaning (see `add_to_heads`).
        """
        return self.prepared(model)(positions)

    def prepared(self, model: Any) -> EnterAt:
        """Return what enters the shift on a model again and again: it is checked here, its sites found once."""
        if "model" in self.record:
            require_same_model(self.record["model"], model, f"the shift {self.name!r}")
        if self.strength == 0:
            return lambda positions: nullcontext(model)  # noqa: ARG005
        adding = self._adding(model)

        @contextmanager
        def enter(positions: Positions) -> Iterator[Any]:
            with adding(positions):
                yield model

        return enter

    @abstractmethod
    def _adding(self, model: Any) -> Callable[[Positions], AbstractContextManager[None]]:
        """Return what adds the vectors at given positions."""

    def merged(self, model: Any) -> Any:
        """Return a model of a stock class whose biases add the vectors at all positions; raises as `with_biases`."""
        constants = self.constants(model)
        return with_biases(base_of(model), constants) if constants else base_of(model)

    def describe(self) -> dict[str, Any]:
        """Return sites, strength and how the shift was made, as plain values."""
        made = {k: v for k, v in self.record.items() if k not in UNDESCRIBED}
        named = {"kind": self.described_as, "name": self.name}
        return {**named, **plain_sites(self), "strength": self.strength, **made}

    def save(self, path: str | Path) -> None:
        """Write the shift to a folder; raises `Incompatible` if it holds something else or cannot be written."""
        save_vectors(self, path)

    @classmethod
    def load(cls: type[Own], path: str | Path) -> Own:
        """Return a shift that `save` wrote; raises `Incompatible` for anything else."""
        return load_vectors(cls, path)


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

    @property
    def unchanged_layers(self) -> int:
        """The layers below the first one that has a head in the shift."""
        return min(head.layer for head in self.heads)

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

    def _adding(self, model: Any) -> Callable[[Positions], AbstractContextManager[None]]:
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

    @property
    def unchanged_layers(self) -> int:
        """The layers below the first one that the shift acts on."""
        return min(self.layers)

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

    def _adding(self, model: Any) -> Callable[[Positions], AbstractContextManager[None]]:
        return partial(add_to_residual, model, self.deltas)
