"""NoEdit and Stacked: none, and several edits at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import TypedDict

from trimtab.before import Before
from trimtab.edits.disk import load_edit
from trimtab.errors import BadValue, UnsupportedModel
from trimtab.models.anatomy import base_of
from trimtab.models.carriers import with_biases
from trimtab.models.identity import fingerprint, standing_for
from trimtab.protocols import ALL_LAYERS, Cost, Edit, EnterAt, Positions, require_order
from trimtab.storage import RECORD, load_record, save_result, versions, write_json, written_folder


class _Named(TypedDict):
    name: str


class _SavedStack(_Named):
    edits: list[str]


@dataclass(frozen=True)
class NoEdit(Edit):
    """The unedited model."""

    kind: ClassVar[str] = "no edit"
    leaves_prompt_unedited: ClassVar[bool] = True
    unchanged_layers: ClassVar[int] = ALL_LAYERS
    changes_nothing: ClassVar[bool] = True

    name: str = "Baseline"

    @property
    def stored_bytes(self) -> int:
        """None: nothing was made."""
        return 0

    def applied(self, model: Any, positions: Positions = "generated") -> AbstractContextManager[Any]:  # noqa: ARG002
        """Yield the model as it is."""
        return nullcontext(model)

    def scaled(self, factor: float | int) -> NoEdit:  # noqa: ARG002
        """Return the same: any multiple of nothing."""
        return self

    def describe(self) -> dict[str, Any]:
        """Return the kind."""
        return {"kind": "none"}

    def merged(self, model: Any) -> Any:
        """Return the model."""
        return model

    def save(self, path: str | Path) -> None:
        """Write the name to a folder; raises `Incompatible` if it holds something else or cannot be written."""
        save_result(path, self.kind, {"name": self.name}, {})

    @classmethod
    def load(cls, path: str | Path) -> NoEdit:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        return cls(load_record(path, cls.kind, fields=_Named)["name"])


@dataclass(frozen=True)
class Stacked(Edit):
    """Several edits at once, applied in order; at most one of them may change the prompt.

    Raises:
        BadValue: fewer than two edits; two that change the prompt; one that answers with a model of its own after
            one that would then not act.
    """

    kind: ClassVar[str] = "stacked"

    edits: tuple[Edit, ...]
    name: str = ""
    cost: Cost = field(init=False)

    def __post_init__(self) -> None:
        if len(self.edits) < 2:
            raise BadValue(f"Stacked needs two or more edits, got {len(self.edits)}")
        prompting = [e.name for e in self.edits if e.prompt("?") is not None]
        if len(prompting) > 1:
            raise BadValue(f"only one edit of a stack may change the prompt, got {' and '.join(prompting)}")
        require_order([e for e in self.edits if e.unchanged_layers != ALL_LAYERS])
        object.__setattr__(self, "cost", sum((e.cost for e in self.edits), Cost()))
        object.__setattr__(self, "name", self.name or " + ".join(e.name for e in self.edits))

    @property
    def replaces_model(self) -> bool:
        """Whether one of them answers with a model of its own."""
        return any(e.replaces_model for e in self.edits)

    @property
    def changes_prompt_only(self) -> bool:
        """Whether every edit of the stack only prompts."""
        return all(e.changes_prompt_only for e in self.edits)

    @property
    def leaves_prompt_unedited(self) -> bool:
        """True if every edit does."""
        return all(e.leaves_prompt_unedited for e in self.edits)

    @property
    def unchanged_layers(self) -> int:
        """Those that no edit of the stack changes."""
        return min(e.unchanged_layers for e in self.edits)

    @property
    def fitted_on(self) -> Sequence[str]:
        """The questions that any of them was made from."""
        return sorted({key for e in self.edits for key in e.fitted_on})

    @property
    def losses(self) -> Sequence[float]:
        """The losses of the first one that was trained."""
        return next((e.losses for e in self.edits if e.losses), ())

    @property
    def stored_bytes(self) -> int:
        """What all of them take on disk."""
        return sum(e.stored_bytes for e in self.edits)

    @contextlib.contextmanager
    def applied(self, model: Any, positions: Positions = "generated") -> Iterator[Any]:
        """Yield the model with every edit in place."""
        with contextlib.ExitStack() as stack:
            for edit in self.edits:
                model = stack.enter_context(edit.applied(model, positions))
            yield model

    def prepared(self, model: Any) -> EnterAt:
        """Return what enters every edit again and again, each prepared once where all act on this very model."""
        if not self.leaves_prompt_unedited:
            return super().prepared(model)
        entries = [edit.prepared(model) for edit in self.edits]

        @contextlib.contextmanager
        def enter(positions: Positions) -> Iterator[Any]:
            with contextlib.ExitStack() as stack:
                yield [stack.enter_context(entry(positions)) for entry in entries][-1]

        return enter

    def prompt(self, question: str) -> str | None:
        """Return the prompt of the one edit that changes it."""
        return next((p for e in self.edits if (p := e.prompt(question)) is not None), None)

    def before(self, question: str) -> Before | None:
        """Return what the one edit that changes the prompt says before the question."""
        return next((b for e in self.edits if (b := e.before(question)) is not None), None)

    @property
    def asked_as(self) -> str:
        """As of the first edit that knows."""
        return next((e.asked_as for e in self.edits if e.asked_as), "")

    def scaled(self, factor: float | int) -> Stacked:
        """Return the stack with every edit's effect multiplied; raises `BadValue` if one of them has no strength."""
        return Stacked(tuple(e.scaled(factor) for e in self.edits), self.name)

    def describe(self) -> dict[str, Any]:
        """Return the parts' descriptions."""
        return {"kind": self.kind, "edits": [e.describe() for e in self.edits]}

    def save(self, path: str | Path) -> None:
        """Write every edit to a folder of its own within the folder, atomically.

        Raises:
            Incompatible: one of them has no form on disk; the folder holds something else or cannot be written.
        """
        with written_folder(path, self.kind) as folder:
            parts = [f"{i:02}" for i in range(len(self.edits))]
            for part, edit in zip(parts, self.edits, strict=True):
                edit.save(folder / part)
            write_json(folder / RECORD, {"kind": self.kind, "versions": versions(), "name": self.name, "edits": parts})

    @classmethod
    def load(cls, path: str | Path, *, kinds: Sequence[type[Edit]] = ()) -> Stacked:
        """Return what `save` wrote; its edits are of trimtab's own kinds or of these.

        Raises:
            Incompatible: the folder holds something else, or an edit of another kind.
        """
        path, record = Path(path), load_record(path, cls.kind, fields=_SavedStack)
        # names alone: a record leads to no other folder
        parts = [path / Path(part).name for part in record["edits"]]
        return cls(tuple(load_edit(part, kinds=kinds) for part in parts), record["name"])

    def constants(self, model: Any) -> dict[str, Tensor]:
        """Return what all of them add; raises `BadValue` if one does anything else."""
        total: dict[str, Tensor] = {}
        for edit in self.edits:
            for name, vector in edit.constants(model).items():
                total[name] = total[name] + vector if name in total else vector
        return total

    def merged(self, model: Any) -> Any:
        """Return a plain model with every edit worked in: constants together, other edits one after another."""
        try:
            constants = self.constants(model)
            return with_biases(base_of(model), constants) if constants else base_of(model)
        except (BadValue, UnsupportedModel):  # other than constants, or more of them than one switch of a config adds
            merged, original = model, fingerprint(model)
            for edit in self.edits:
                with standing_for(merged, original):
                    merged = edit.merged(merged)
            return merged
