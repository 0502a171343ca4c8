"""TunedEdit: a tuned model as an Edit, and its place on disk."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from trimtab.errors import BadValue, Incompatible, first_line
from trimtab.models.anatomy import base_of, has_tied_embeddings
from trimtab.models.identity import require_same_model
from trimtab.models.processes import on_cpu
from trimtab.models.twin import twin_of
from trimtab.models.weights import WeightChange, untie
from trimtab.peft.names import method_from_record, method_of_hub
from trimtab.peft.parts.attached import Attached
from trimtab.peft.tunable import HubAdapter, Tunable
from trimtab.plain_values import json_value
from trimtab.protocols import Cost, Edit, Positions
from trimtab.storage import RECORD, TENSORS, load_record, load_result, versions, write_json, written_folder

KIND = "tuned edit"
HUB_CONFIG, HUB_TENSORS = "adapter_config.json", "adapter_model.safetensors"


class _Method(TypedDict):
    method: str


class _Saved(TypedDict):
    method: _Method
    recipe: dict[str, Any]
    name: str
    seconds: float
    trainable_parameters: int
    record: dict[str, Any]


@dataclass(frozen=True, repr=False)
class TunedEdit(Edit):
    """What a tuning method learned: an Edit.

    It acts at every position, the prompt's included, whatever `positions` is asked for.
    """

    method: Tunable
    tensors: Mapping[str, Tensor]
    """What the method stores, on the CPU."""
    name: str = ""
    cost: Cost = field(default_factory=Cost)
    record: dict[str, Any] = field(default_factory=dict)
    """The model's fingerprint under "model", the plan, the recipe, times, memory and losses."""
    strength: float | int = 1.0
    """What the effect is multiplied by: 1 as it was learned, 0 for none."""
    leaves_prompt_unedited: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.method.name)

    def __repr__(self) -> str:
        return f"TunedEdit({self.name!r}, {self.cost.trainable_parameters:,} numbers, strength {self.strength:g})"

    @contextlib.contextmanager
    def applied(self, model: Any, positions: Positions = "generated") -> Iterator[Any]:  # noqa: ARG002
        """Yield the tuned model to call; on exit the model is as before.

        Raises:
            Incompatible: the edit was made for another model, or the model carries an adapter already.
        """
        with self._in_place(model) as attached:
            yield attached.model

    @contextlib.contextmanager
    def _in_place(self, model: Any) -> Iterator[Attached]:
        attached = self._attached(model)
        try:
            self.method.load(attached, self.tensors, self.strength)
            yield attached
        finally:
            attached.detach()

    def _attached(self, model: Any) -> Attached:
        if "model" in self.record:
            require_same_model(self.record["model"], model, f"the edit {self.name!r}")
        return self.method.attach_for_use(model, seed=self.record.get("seed", 0))

    def scaled(self, factor: float | int) -> TunedEdit:
        """Return the edit with its effect multiplied; raises `BadValue` where that has no meaning."""
        scaled = super().scaled(factor)
        self.method.require_scalable(self.tensors)
        return scaled

    @property
    def losses(self) -> Sequence[float]:
        """Training losses, step by step."""
        return self.record.get("losses", ())

    @property
    def fitted_on(self) -> Sequence[str]:
        """Keys of the questions that it was tuned on."""
        return self.record.get("questions", ())

    def describe(self) -> dict[str, Any]:
        """Return the method, its settings and the recipe as plain values."""
        rest = {k: self.record[k] for k in ("recipe", "seed", "data") if k in self.record}
        return {
            "kind": KIND,
            "name": self.name,
            "strength": self.strength,
            **_plain(self.method.describe()),
            **_plain(rest),
        }

    def save(self, path: str | Path) -> None:
        """Write the edit to a folder, atomically; as a PEFT adapter too where the method exists there.

        An adapter's tensors are in PEFT's own file alone, so that every loader sees the same model. The strength is
        worked into the tensors, except where it is a share of the way from the model's own weights.
        """
        base_name = self.record.get("model", {}).get("name") or ""
        edit = self if self.strength == 1 or self.method.scales_from_start else self.baked()
        adapter = edit.method.to_hub(edit.tensors, base_name)
        stored = adapter.tensors if adapter else edit.tensors
        record = {
            "kind": KIND,
            "versions": versions(),
            "method": edit.method.describe(),
            "recipe": edit.method.recipe.as_dict(),
            "name": self.name,
            "seconds": self.cost.seconds,
            "trainable_parameters": self.cost.trainable_parameters,
            "strength": self.strength,
            "record": self.record,
            "tensors": {k: list(v.shape) for k, v in stored.items()},
        }
        with written_folder(path, KIND) as folder:
            write_json(folder / RECORD, record)
            save_file(on_cpu(stored), folder / (HUB_TENSORS if adapter else TENSORS), metadata={"format": "pt"})
            if adapter:
                write_json(folder / HUB_CONFIG, adapter.config)

    def weight_changes(self, model: Any) -> dict[str, WeightChange] | None:
        """Return a low-rank update as its factors; None for other ways of tuning.

        Raises:
            Incompatible: the edit was made for another model, or the model carries an adapter already.
        """
        with self._in_place(model) as attached:
            return attached.weight_changes()

    def merged(self, model: Any) -> Any:
        """Return a plain model of the same class with the edit in its weights; `model` is left as it is.

        Weights that the edit does not change are shared. Tied embeddings of which one is tuned are untied, in the
        config too.

        Raises:
            BadValue: the method cannot be worked into weights, or the model's are quantised.
            Incompatible: the edit is for another model.
        """
        if not self.method.capabilities.mergeable:
            raise BadValue(f"{self.name} cannot be merged: it is not a change of weights; use the edit as it is")
        base = base_of(model)
        if getattr(base, "is_quantized", False):
            raise BadValue("the model's weights are quantised: trimtab.export.checkpoint dequantises them, and merges")
        twin = twin_of(base)
        if _tunes_one_of_tied_embeddings(self, base):
            untie(twin)
        attached = self._attached(twin)
        for part in attached.trainable().values():  # some may be weights, whose memory is the model's
            part.data = part.data.clone()
        self.method.load(attached, self.tensors, self.strength)
        return attached.merged().eval()

    def baked(self) -> TunedEdit:
        """Return the edit with its strength worked into the tensors."""
        return replace(self, tensors=self.method.scaled_tensors(self.tensors, self.strength), strength=1.0)

    @classmethod
    def load(cls, path: str | Path) -> TunedEdit:
        """Return an edit that `save` wrote, or an adapter that Hugging Face PEFT (or a tool that uses it) wrote.

        Raises:
            Incompatible: anything else, or a file that lacks tensors or holds others.
        """
        path = Path(path)
        if (path / HUB_CONFIG).is_file() and not (path / RECORD).is_file():
            return cls._from_elsewhere(path)
        if not (path / HUB_CONFIG).is_file():
            record, tensors = load_result(path, KIND, fields=_Saved)
            return cls._from_record(path, record, dict(tensors), None)
        record = load_record(path, KIND, fields=_Saved)
        tensors = _read_tensors(path / HUB_TENSORS)
        if record.get("tensors") != {k: list(v.shape) for k, v in tensors.items()}:
            raise Incompatible(f"the {HUB_TENSORS} at {path} is not the one that its {RECORD} lists: write it again")
        return cls._from_record(path, record, tensors, _read_config(path))

    @classmethod
    def _from_record(
        cls, path: Path, record: dict[str, Any], tensors: dict[str, Tensor], config: dict[str, Any] | None
    ) -> TunedEdit:
        try:
            method = method_from_record(record["method"], record["recipe"])
        except TypeError as cause:  # a setting that the method does not have, or lacks
            raise Incompatible(f"the {RECORD} at {path} describes no method: {cause}; write the edit again") from cause
        if config is not None:
            tensors = method.from_hub(HubAdapter(config, tensors))
        cost = Cost(record["seconds"], record["trainable_parameters"], folder_bytes(path))
        strength = record.get("strength", 1.0) if method.scales_from_start else 1.0
        return cls(method, tensors, record["name"], cost, record["record"], strength)

    @classmethod
    def _from_elsewhere(cls, path: Path) -> TunedEdit:
        adapter = HubAdapter(_read_config(path), _read_tensors(path / HUB_TENSORS))
        method = method_of_hub(adapter, path)
        tensors = method.from_hub(adapter)
        cost = Cost(0.0, sum(t.numel() for t in tensors.values()), folder_bytes(path))
        return cls(method, tensors, method.name, cost, {"made_by": "Hugging Face PEFT"})


def _tunes_one_of_tied_embeddings(edit: TunedEdit, base: Any) -> bool:
    if edit.method.capabilities.family == "full" or not has_tied_embeddings(base):
        return False
    shared = (base.get_input_embeddings(), base.get_output_embeddings())
    names = [name for name, module in base.named_modules() if any(module is m for m in shared)]
    # PEFT ties the trained tokens of both itself
    keys = [key for key in edit.tensors if "trainable_tokens" not in key]
    return any(f".{name}." in f".{key}" for key in keys for name in names)


def folder_bytes(path: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json_value((path / HUB_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise Incompatible(
            f"the {HUB_CONFIG} at {path} cannot be read ({first_line(cause)}): write the adapter again"
        ) from cause
    if not isinstance(config, dict):
        raise Incompatible(f"the {HUB_CONFIG} at {path} holds no settings of an adapter: write the adapter again")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as cause:
        raise Incompatible(f"{path} cannot be read as safetensors: write the adapter again") from cause
