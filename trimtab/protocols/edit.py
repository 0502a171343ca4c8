"""Edit: everything that is ever asked of a change to how a model behaves, with its default."""

from __future__ import annotations

import copy
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor

from trimtab.before import Before
from trimtab.card import card_of
from trimtab.errors import BadValue, Incompatible
from trimtab.hub import folder_of, push_folder
from trimtab.protocols.costs import Cost
from trimtab.protocols.plain_repr import FieldsRepr
from trimtab.protocols.positions import EnterAt, Positions
from trimtab.storage import written_file

Own = TypeVar("Own", bound="Edit")
ALL_LAYERS = sys.maxsize
"""`unchanged_layers` of an edit that leaves the model as it is."""


class Edit(FieldsRepr, ABC):
    """A change to how a model behaves, measured the same way whatever made it.

    Only `name` and `applied` must be given. Laws (the contracts of the tests hold every Edit to them): strength 0
    equals no edit to the bit; on exit, also after an exception and when nested, hooks and weights are as before; only
    declared sites and positions change; save -> load gives equal logits; batched with padding equals one by one;
    cached generation equals one masked forward; merged equals applied at all positions.
    """

    name: str
    """A short name for tables."""
    cost: Cost = Cost()
    """What making it took."""
    record: Mapping[str, Any] = {}
    """How it was made, as plain values."""
    strength: float | int = 1.0
    """What the effect is multiplied by."""
    leaves_prompt_unedited: bool = False
    """Whether the prompt runs as in the unedited model, so that its cache may be shared with other edits.

    It then acts in place on the model that it is given, and under a mask in the rows of the mask alone: several such
    edits may act in one batch, each on rows of its own."""
    unchanged_layers: int = 0
    """How many of the decoder's first layers compute what they compute in the unedited model; measurements share
    them."""
    changes_nothing: bool = False
    """Whether it is the unedited model, beside which the others are read."""
    changes_prompt_only: bool = False
    """Whether the model itself is left as it is."""
    replaces_model: bool = False
    """Whether it answers with a model of its own, on which edits before it would not act."""
    fitted_on: Sequence[str] = ()
    """Keys of the questions that it was made from, which measurements leave out."""
    losses: Sequence[float] = ()
    """Training losses, step by step; empty where nothing was trained."""
    n_sites: int = 1
    """How many places (heads, layers) it acts on, if it can leave some out: see `first`."""
    validated_on: Sequence[str] = ()
    """Keys of the questions that its places were ranked on, and that nothing else of it was made from."""
    kind: ClassVar[str] = ""
    """What the record of its folder says that it holds; `load_edit` finds its class by it."""

    @abstractmethod
    def applied(self, model: Any, positions: Positions = "generated") -> AbstractContextManager[Any]:
        """Return a context manager that yields the model to call while the edit is in place.

        Raises:
            Incompatible: the edit was made for another model, or did not act.
            BadValue: positions that have no meaning.
        """

    def prepared(self, model: Any) -> EnterAt:
        """Return what enters the edit on this model again and again: checks and searches are done here, once.

        For the time in which nobody changes the model's weights or modules: one call, not longer.
        """
        return partial(self.applied, model)

    def prompt(self, question: str) -> str | None:  # noqa: ARG002
        """Return the whole context to ask `question` in, or None to leave the choice to the measurement."""
        return None

    def before(self, question: str) -> Before | None:  # noqa: ARG002
        """Return what is said before the question, for measurements to write as the model is asked (in its template).

        None where nothing is, or where `prompt` gives the whole context, which is then taken as it stands.
        """
        return None

    @property
    def asked_as(self) -> str:
        """How questions were asked while it was made, such as `"chat"`; empty where that is not known."""
        return str(self.record.get("asking", ""))

    def scaled(self: Own, factor: float | int) -> Own:
        """Return the edit with its effect multiplied: that of a dataclass by its field `strength`.

        Raises:
            BadValue: it has no such field, so that this has no meaning; the factor is not finite.
        """
        own = fields(self) if is_dataclass(self) else ()
        if not any(field.name == "strength" for field in own):
            raise BadValue(f"{self.name} has no strength to set: it cannot be scaled; use it as it is")
        factor = float(factor)
        if not abs(factor) < float("inf"):
            raise BadValue(f"strength must be a finite number, got {factor}")
        whole: Any = self
        return replace(whole, strength=self.strength * factor)

    def at_strength(self: Own, strength: float | int) -> Own:
        """Return the edit at this strength, whatever it had; raises `BadValue` where that has no meaning."""
        if strength == self.strength:
            return self
        if self.strength == 0:
            raise BadValue(f"{self.name} has strength 0, which no factor brings to {strength}; load it at another one")
        return self.scaled(strength / self.strength)

    def first(self, k: int) -> Edit:
        """Return the edit on its k best places; raises `BadValue` where it has fewer."""
        if k == self.n_sites:
            return self
        raise BadValue(f"the first {k} places of {self.name} asked for; it has {self.n_sites} and cannot leave one out")

    def randomised(self, seed: int) -> Edit:
        """Return a counterpart that only chance separates from it: the same places and norms, random directions.

        Raises:
            BadValue: an edit of this kind has no directions to draw.
        """
        raise BadValue(f"{self.name} has no random counterpart (seed {seed}): it adds no vectors; follow a shift")

    def renamed(self: Own, name: str) -> Own:
        """Return the edit under another name for tables."""
        return self._with("name", name)

    def with_record(self: Own, **entries: Any) -> Own:
        """Return the edit with entries of its record set."""
        return self._with("record", {**self.record, **entries})

    def _with(self: Own, name: str, value: Any) -> Own:
        other = copy.copy(self)
        object.__setattr__(other, name, value)  # also of a frozen dataclass
        return other

    def describe(self) -> dict[str, Any]:
        """Return plain values for the record."""
        return {"kind": type(self).__name__, "name": self.name, "strength": self.strength}

    def save(self, path: str | Path) -> None:
        """Write the edit to a folder, atomically.

        Raises:
            Incompatible: it has no form on disk, or the folder holds something else or cannot be written.
        """
        raise Incompatible(f"{self.name} cannot be written to {path}: an edit of this kind has no form on disk")

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        raise Incompatible(f"{cls.__name__} cannot be read from {path}: an edit of this kind has no form on disk")

    def save_pretrained(self, path: str | Path) -> None:
        """Write the edit as `save` does, with a model card (`README.md`) from its record; raises as `save`."""
        self.save(path)
        with written_file(Path(path) / "README.md") as staging:
            staging.write_text(card_of(self.name, self.describe(), self.record), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> Any:
        """Return an edit of this kind from a folder, or from a repository of the hub (`org/name`), at a revision.

        `trimtab.from_pretrained` takes any kind; raises `Incompatible` where there is none of this one.
        """
        return cls.load(folder_of(name, revision))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, commit_message: str | None = None) -> str:
        """Write the edit with its card to a repository of the hub, made if it is not there; return its address.

        Raises:
            Incompatible: the edit has no form on disk, or the hub refuses it.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "edit")
            message = commit_message or f"{self.name} by trimtab"
            return push_folder(Path(folder) / "edit", repo_id, private=private, message=message)

    @property
    def stored_bytes(self) -> int:
        """The size of the folder that `save` writes, or what the cost says of an edit that has no form on disk."""
        if type(self).save is Edit.save:
            return self.cost.bytes_on_disk
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "edit"
            self.save(path)
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    def constants(self, model: Any) -> Mapping[str, Float[Tensor, " width"]]:
        """Return what the edit adds to modules' outputs at all positions, by name as in the base's `named_modules`.

        Raises:
            BadValue: an edit of this kind does anything else.
        """
        raise BadValue(
            f"{self.name} adds no constant to what modules of {type(model).__name__} give; write a checkpoint (trimtab "
            "bake --out FOLDER) if its kind can be worked into weights, or use it as it is"
        )

    def weight_changes(self, model: Any) -> Mapping[str, Any] | None:  # noqa: ARG002
        """Return what the edit adds to weights, by name: factors (`LowRank`) or whole tensors.

        None where it does not know that without working itself in: it is the difference that `merged` makes.

        Raises:
            Incompatible: the edit was made for another model.
        """
        return None

    def merged(self, model: Any) -> Any:
        """Return a plain model that computes what `model` does with the edit at all positions.

        It may share weights with `model`, an unquantised Hugging Face model that is left as it is.

        Raises:
            UnsupportedModel: no stock class can carry the edit.
            BadValue: an edit of this kind cannot be worked into weights.
        """
        raise BadValue(f"{self.name} cannot be worked into weights ({type(model).__name__}); use it as it is")
