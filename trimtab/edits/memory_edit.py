"""MemoryEdit: a code book beside one layer, that answers for what it knows and leaves everything else as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import TypedDict

from trimtab.errors import BadValue, Incompatible, ShapeError
from trimtab.models.adding import CodeBook, Place, changed_at
from trimtab.models.anatomy import decoder_layers
from trimtab.models.hooks import on_outputs
from trimtab.models.identity import require_same_model
from trimtab.protocols import Cost, Edit, EnterAt, Positions
from trimtab.storage import load_result, save_result

TENSORS = ("keys", "values", "radii")


class _Saved(TypedDict):
    name: str
    layer: int
    strength: float
    seconds: float
    record: dict[str, Any]


@dataclass(frozen=True, repr=False)
class MemoryEdit(Edit):
    """Where a layer's output lies within the radius of a key, the nearest key's value takes its place.

    Each position decides for itself, by what stands there alone; a model that meets no key computes what it did, to the
    bit. With strength s the output goes the s-th part of the way to the value.
    """

    kind: ClassVar[str] = "memory edit"
    leaves_prompt_unedited: ClassVar[bool] = True

    layer: int
    """Whose output is compared and replaced; counted from 0."""
    keys: Float[Tensor, "entry d_model"]
    values: Float[Tensor, "entry d_model"]
    radii: Float[Tensor, " entry"]
    strength: float | int = 1.0
    _: KW_ONLY
    name: str = "Memory"
    cost: Cost = field(default_factory=Cost)
    record: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: the model's fingerprint under `"model"`, the facts' keys under `"facts"`."""

    def __post_init__(self) -> None:
        if self.keys.ndim != 2 or self.keys.shape != self.values.shape or self.radii.shape != self.keys.shape[:1]:
            shapes = ", ".join(f"{name} {tuple(getattr(self, name).shape)}" for name in TENSORS)
            raise ShapeError(f"a code book has a key, a value and a radius in each row; got {shapes}")
        finite = all(bool(getattr(self, name).isfinite().all()) for name in TENSORS)
        if not len(self.keys) or not finite or not bool((self.radii > 0).all()):
            raise BadValue("a code book needs an entry or more, of finite numbers, with radii above 0; fit it again")

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} entries, strength {self.strength:g})"

    @property
    def unchanged_layers(self) -> int:
        """The layers below the one that it stands beside."""
        return self.layer

    @property
    def losses(self) -> Sequence[float]:
        """The losses of the values, fact by fact."""
        return self.record.get("losses", ())

    @property
    def norms(self) -> dict[str, float]:
        """How far all values lie from their keys together, at the edit's strength, by the layer's name."""
        return {f"layer {self.layer}": abs(self.strength) * float((self.values - self.keys).norm())}

    def applied(self, model: Any, positions: Positions = "generated") -> AbstractContextManager[Any]:
        """Yield the same model, which looks up its positions in the code book until the block ends.

        Raises:
            Incompatible: it was made for another checkpoint or geometry, or did not act.
            BadValue: `"generated"` where it has no meaning (see `add_to_heads`); a layer that the model has not.
        """
        return self.prepared(model)(positions)

    def prepared(self, model: Any) -> EnterAt:
        """Return what enters it on a model again and again: it is checked here, once."""
        if "model" in self.record:
            require_same_model(self.record["model"], model, f"the code book {self.name!r}")
        layer = _layer(model, self.layer)
        if self.strength == 0:
            return lambda positions: nullcontext(model)  # noqa: ARG005
        book = CodeBook(self.keys, self.values, self.radii, torch.tensor(float(self.strength)))

        @contextmanager
        def enter(positions: Positions) -> Iterator[Any]:
            with changed_at(model, [Place(self.layer, on_outputs, layer, book)], positions):
                yield model

        return enter

    def scaled(self, factor: float | int) -> MemoryEdit:
        """Return the edit with its strength multiplied; raises `BadValue` if it is not finite."""
        factor = float(factor)
        if not abs(factor) < float("inf"):
            raise BadValue(f"strength must be a finite number, got {factor}")
        return replace(self, strength=self.strength * factor)

    def randomised(self, seed: int) -> MemoryEdit:
        """Return a code book of the same keys whose values lie as far from them, in random directions: a control."""
        moved = self.values - self.keys
        drawn = torch.randn(moved.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        values = self.keys + (normalize(drawn, dim=1) * moved.double().norm(dim=1, keepdim=True)).to(moved)
        record = {**self.record, "values": "random", "seed": seed}
        return replace(self, values=values, name="Random values", record=record)

    def describe(self) -> dict[str, Any]:
        """Return layer, number of entries and how it was made, as plain values."""
        made = {k: v for k, v in self.record.items() if k not in ("model", "seconds")}
        where = {"layer": self.layer, "entries": len(self), "strength": self.strength}
        return {"kind": self.kind, "name": self.name, **where, **made}

    def save(self, path: str | Path) -> None:
        """Write it to a folder; raises `Incompatible` if that holds something else or cannot be written."""
        plain = {name: getattr(self, name) for name in ("name", "layer", "strength", "record")}
        tensors = {name: getattr(self, name) for name in TENSORS}
        save_result(path, self.kind, {**plain, "seconds": self.cost.seconds}, tensors)

    @classmethod
    def load(cls, path: str | Path) -> MemoryEdit:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        record, tensors = load_result(path, cls.kind, fields=_Saved, names=TENSORS)
        stored = sum(file.stat().st_size for file in Path(path).iterdir())
        cost = Cost(record["seconds"], 2 * tensors["keys"].numel(), stored)
        keys, values, radii = (tensors[name] for name in TENSORS)
        fields = {name: record[name] for name in ("layer", "strength", "name", "record")}
        try:
            return cls(**fields, keys=keys, values=values, radii=radii, cost=cost)
        except (BadValue, ShapeError) as cause:
            raise Incompatible(f"{path} holds a damaged code book ({cause}); fit it again") from cause


def _layer(model: Any, layer: int) -> Any:
    layers = decoder_layers(model)
    if not 0 <= layer < len(layers):
        raise BadValue(f"no layer {layer}: the model has layers 0-{len(layers) - 1}")
    return layers[layer]
