"""MemoryEdit: a code book beside one layer, that answers for what it knows and leaves everything else as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import TypedDict

from trimtab.edits.sited import HookedEdit
from trimtab.errors import BadValue, Incompatible, ShapeError
from trimtab.models.adding import CodeBook, changed_residual
from trimtab.protocols import Cost, EnterAt
from trimtab.storage import load_result, save_result

TENSORS = ("keys", "values", "radii")


class _Saved(TypedDict):
    name: str
    layer: int
    strength: float
    seconds: float
    record: dict[str, Any]


@dataclass(frozen=True, repr=False)
class MemoryEdit(HookedEdit):
    """Where a layer's output lies within the radius of a key, the nearest key's value takes its place.

    Each position decides for itself, by what stands there alone; a model that meets no key computes what it did, to the
    bit. With strength s the output goes the s-th part of the way to the value.
    """

    kind: ClassVar[str] = "memory edit"
    noun: ClassVar[str] = "code book"

    layer: int
    """Whose output is compared and replaced; counted from 0."""
    keys: Float[Tensor, "entry d_model"]
    values: Float[Tensor, "entry d_model"]
    radii: Float[Tensor, " entry"]
    strength: float | int = 1.0
    _: KW_ONLY
    name: str = "Memory"

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

    def _acting(self, model: Any) -> EnterAt:
        book = CodeBook(self.keys, self.values, self.radii, torch.tensor(float(self.strength)))
        return partial(changed_residual, model, {self.layer: book})

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
