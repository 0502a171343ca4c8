"""WeightEdit: a change of a model's own weights, of low rank or whole: added, scaled, compressed, saved, exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NotRequired

import torch
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from trimtab.errors import BadValue, Incompatible
from trimtab.models.anatomy import base_of
from trimtab.models.identity import Fingerprint, common_model, require_same_model
from trimtab.models.twin import twin_of
from trimtab.models.weights import LowRank, WeightChange, as_whole, changed_weights, inner_product, with_changes
from trimtab.protocols import Cost, Edit, Positions
from trimtab.storage import load_result, save_result, write_json, written_folder

UNDESCRIBED = ("model", "seconds", "keys", "questions")
"""What of the record is too long for a description."""


class _MadeFrom(TypedDict):
    model: NotRequired[Fingerprint]
    facts: NotRequired[list[str]]
    keys: NotRequired[dict[str, list[str]]]
    questions: NotRequired[list[str]]


class _Saved(TypedDict):
    name: str
    strength: float
    unchanged_layers: int
    seconds: float
    record: _MadeFrom


@dataclass(frozen=True, repr=False)
class WeightEdit(Edit):
    """Adds `strength` times a change to each of some weights.

    It acts at every position, whatever `positions` is asked for, as a tuned model does, and costs nothing per token.
    The sum of two such edits is one.
    """

    kind: ClassVar[str] = "weight edit"

    changes: Mapping[str, WeightChange]
    """By the parameter's name in the base model; on the CPU."""
    strength: float | int = 1.0
    _: KW_ONLY
    name: str = "Weights"
    unchanged_layers: int = 0
    cost: Cost = field(default_factory=Cost)
    record: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: the model's fingerprint under `"model"`, the facts' keys under `"facts"`."""
    keys: Mapping[str, Tensor] = field(default_factory=dict)
    """By weight: what the map gets at each fact's subject (fact d_in), in the order of `record["keys"]`."""

    def __post_init__(self) -> None:
        if not self.changes:
            raise BadValue("a weight edit needs one weight or more to change, got none")
        for name, change in self.changes.items():
            parts = change if isinstance(change, LowRank) else (change,)
            if not all(bool(part.isfinite().all()) for part in parts):
                raise BadValue(f"the change of {name} must be finite numbers; fit it again")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self.changes)} weight(s), strength {self.strength:g})"

    @property
    def fitted_on(self) -> Sequence[str]:
        """Keys of the questions that it was tuned on."""
        return self.record.get("questions", ())

    @property
    def losses(self) -> Sequence[float]:
        """The losses of what was optimised, step by step."""
        return self.record.get("losses", ())

    @property
    def norms(self) -> dict[str, float]:
        """The Frobenius norm of each weight's change at the edit's strength."""
        return {name: abs(self.strength) * _norm(change) for name, change in self.changes.items()}

    def applied(self, model: Any, positions: Positions = "generated") -> AbstractContextManager[Any]:  # noqa: ARG002
        """Yield the same model with its weights changed; on exit they are as before, to the bit.

        Raises:
            Incompatible: the edit was made for another checkpoint, or lacks a weight here.
            BadValue, ShapeError: as `changed_weights`.
        """
        self._require_of(model)
        return changed_weights(model, self.changes if self.strength else {}, self.strength)

    def __add__(self, other: Any) -> WeightEdit:
        """Return the edit that makes both changes; raises `Incompatible` if they were made for different models."""
        if type(other) is not type(self):
            return NotImplemented
        model, total, both = common_model(self, other), self._at_one(), (self, other)
        for name, change in other._at_one().items():
            total[name] = _joined(total[name], change) if name in total else change
        record = {
            **({"model": model} if model else {}),
            "sum_of": [self.describe(), other.describe()],
            "facts": [*self.record.get("facts", ()), *other.record.get("facts", ())],
            "keys": {
                n: [key for e in both for key in e.record.get("keys", {}).get(n, ())]
                for n in {**self.keys, **other.keys}
            },
            "questions": sorted({*self.fitted_on, *other.fitted_on}),
        }
        keys = {name: torch.cat([e.keys[name] for e in both if name in e.keys]) for name in record["keys"]}
        return WeightEdit(
            total,
            name=self.name if self.name == other.name else f"{self.name} + {other.name}",
            unchanged_layers=min(self.unchanged_layers, other.unchanged_layers),
            cost=replace(self.cost + other.cost, trainable_parameters=_n_numbers(total)),
            record=record,
            keys=keys,
        )

    def __sub__(self, other: Any) -> WeightEdit:
        """Return the edit that makes this change and takes the other away; raises as the sum does."""
        return self + other.scaled(-1)

    def whole(self, model: Any) -> WeightEdit:
        """Return the edit with each change as a whole tensor of its parameter's shape, its strength worked in.

        So a change of low rank and one of a whole weight can be added up.

        Raises:
            Incompatible, ShapeError: the model lacks a weight, or has it in another shape.
        """
        changes = {name: as_whole(model, name, change) for name, change in self._at_one().items()}
        return replace(self, changes=changes, strength=1.0)

    def compressed(self, tolerance: float = 1e-6) -> WeightEdit:
        """Return the edit with each low-rank change at the least rank that keeps it, up to a share of its norm.

        Many edits of one weight, added up, have more columns than the weight has ranks.
        """
        changes = {n: _compressed(c, tolerance) if isinstance(c, LowRank) else c for n, c in self.changes.items()}
        return replace(self, changes=changes, cost=replace(self.cost, trainable_parameters=_n_numbers(changes)))

    def randomised(self, seed: int) -> WeightEdit:
        """Return an edit of the same keys whose values are turned at random: a control of the same norm and rank.

        Raises:
            BadValue: a change that is not of low rank, whose keys nobody knows.
        """
        generator, drawn = torch.Generator().manual_seed(seed), {}
        for name, change in self.changes.items():
            if not isinstance(change, LowRank):
                raise BadValue(f"{self.name} has no random counterpart: its change of {name} is not of low rank")
            # the singular values of the change stay, its output directions do not
            _, within = torch.linalg.qr(change.left.double())
            turned = torch.randn(change.left.shape, generator=generator, dtype=torch.float64)
            drawn[name] = LowRank((torch.linalg.qr(turned)[0] @ within).to(change.left), change.right)
        record = {**self.record, "values": "random", "seed": seed}
        return replace(self, changes=drawn, name="Random values", record=record)

    def weight_changes(self, model: Any) -> dict[str, WeightChange]:
        """Return the changes with the strength worked in; raises `Incompatible` for another model's."""
        self._require_of(model)
        return self._at_one()

    def merged(self, model: Any) -> Any:
        """Return a plain model of the same class with the change in its weights; other weights are shared.

        Raises:
            Incompatible, BadValue, ShapeError: as `applied`; quantised weights.
        """
        self._require_of(model)
        twin: Any = twin_of(base_of(model))
        with_changes(twin, self.changes if self.strength else {}, self.strength)
        return twin

    def describe(self) -> dict[str, Any]:
        """Return the changed weights with their ranks, and how the edit was made, as plain values."""
        ranks = {n: c.right.shape[0] if isinstance(c, LowRank) else "full" for n, c in self.changes.items()}
        made = {k: v for k, v in self.record.items() if k not in UNDESCRIBED}
        return {"kind": self.kind, "name": self.name, "strength": self.strength, "ranks": ranks, **made}

    def save(self, path: str | Path) -> None:
        """Write the edit to a folder; raises `Incompatible` if it holds something else or cannot be written."""
        tensors: dict[str, Tensor] = {}
        for name, change in self.changes.items():
            factors = change._asdict().items() if isinstance(change, LowRank) else [("whole", change)]
            tensors |= {f"{name}:{part}": tensor for part, tensor in factors}
        tensors |= {f"{name}:keys": keys for name, keys in self.keys.items()}
        record = {
            **{key: getattr(self, key) for key in ("name", "strength", "unchanged_layers", "record")},
            "seconds": self.cost.seconds,
        }
        save_result(path, self.kind, record, tensors)

    @classmethod
    def load(cls, path: str | Path) -> WeightEdit:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        record, tensors = load_result(path, cls.kind, fields=_Saved)
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition(":")
            parts.setdefault(name, {})[part] = tensor
        keys = {name: own.pop("keys") for name, own in parts.items() if "keys" in own}
        try:
            changes = {n: own["whole"] if "whole" in own else LowRank(**own) for n, own in parts.items()}
        except TypeError as cause:
            raise Incompatible(f"the weight edit at {path} lacks a factor of some change; write it again") from cause
        stored = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
        fields = {key: record[key] for key in ("name", "unchanged_layers", "record")}
        return cls(
            changes, record["strength"], cost=Cost(record["seconds"], _n_numbers(changes), stored), keys=keys, **fields
        )

    def to_peft(self, path: str | Path, base_name: str = "") -> None:
        """Write the edit as a LoRA adapter that Hugging Face PEFT and vLLM load, its strength worked in.

        Raises:
            BadValue: a change that is not of low rank.
            Incompatible: the folder holds something else or cannot be written.
        """
        tensors, ranks = {}, {}
        for name, change in self._at_one().items():
            if not isinstance(change, LowRank):
                raise BadValue(f"{self.name} changes all of {name}: no adapter holds that; merge it into a checkpoint")
            module = name.removesuffix(".weight")
            ranks[module] = change.right.shape[0]
            tensors[f"base_model.model.{module}.lora_A.weight"] = change.right.contiguous()
            tensors[f"base_model.model.{module}.lora_B.weight"] = change.left.contiguous()
        most = max(ranks.values())
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name or self.record.get("model", {}).get("name"),
            "inference_mode": True,
            "target_modules": list(ranks),
            # a scale of alpha / rank = 1 everywhere
            **{"r": most, "lora_alpha": most, "rank_pattern": ranks, "alpha_pattern": ranks},
        }
        with written_folder(path, "PEFT adapter") as folder:
            write_json(folder / "adapter_config.json", config)
            save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def _require_of(self, model: Any) -> None:
        if "model" in self.record:
            require_same_model(self.record["model"], model, f"the edit {self.name!r}")

    def _at_one(self) -> dict[str, WeightChange]:
        """Return the changes with the strength worked into them."""
        s = self.strength
        return {n: LowRank(s * c.left, c.right) if isinstance(c, LowRank) else s * c for n, c in self.changes.items()}


def _norm(change: WeightChange) -> float:
    return max(0.0, inner_product(change, change)) ** 0.5


def _joined(one: WeightChange, other: WeightChange) -> WeightChange:
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        return LowRank(torch.cat([one.left, other.left], 1), torch.cat([one.right, other.right], 0))
    if isinstance(one, LowRank) or isinstance(other, LowRank):
        raise BadValue(
            "a change of low rank and one of a whole weight are not added up; give both as edit.whole(model), or apply "
            "them as tt.Stacked(...)"
        )
    return one + other


def _compressed(change: LowRank, tolerance: float) -> LowRank:
    (q_left, r_left), (q_right, r_right) = (torch.linalg.qr(f.double()) for f in (change.left, change.right.T))
    u, s, v = torch.linalg.svd(r_left @ r_right.T)
    # what is dropped, from the smallest on, as a share of the whole norm
    tails = s.square().flip(0).cumsum(0).flip(0).sqrt()
    rank = max(1, int((tails > tolerance * tails[0]).sum()))
    left, right = q_left @ (u[:, :rank] * s[:rank]), v[:rank] @ q_right.T
    return LowRank(left.to(change.left).contiguous(), right.to(change.right).contiguous())


def _n_numbers(changes: Mapping[str, WeightChange]) -> int:
    return sum(sum(f.numel() for f in c) if isinstance(c, LowRank) else c.numel() for c in changes.values())
