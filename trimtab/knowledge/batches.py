"""InBatches: facts written in several edits, one after another, each on what those before made of the model."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from trimtab.edits.weight_edit import WeightEdit
from trimtab.errors import BadValue
from trimtab.knowledge.editors import FactEditor, require_facts
from trimtab.models.identity import fingerprint
from trimtab.progress import tracked
from trimtab.protocols import Knobs, Method


@dataclass(frozen=True, kw_only=True)
class InBatches(Method):
    """Sequential editing: the sum of the edits of an editor, each of so many facts.

    MEMIT, EMMET and AlphaEdit keep the keys of the batches before. The record has the norms of the whole change after
    each batch: where they grow faster than the facts, editing wears the model out (Gupta et al. 2024).
    """

    editor: FactEditor
    size: int = 1
    """Facts in a batch."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BadValue(f"a batch needs one fact or more, got {self.size}")

    @property
    def name(self) -> str:
        """The editor's name, and the size."""
        return f"{self.editor.name}, {self.size} at a time"

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> WeightEdit:
        """Return the sum of the batches' edits, at the least rank that holds it; raises as the editor's `fit`."""
        self.setting(knobs)
        facts = require_facts(train, self.name)
        whole: WeightEdit | None = None
        losses, not_taken, batches = [], [], []
        for start in tracked(range(0, len(facts), self.size), "writing batches"):
            earlier = self.editor.previous
            kept = earlier + whole if earlier and whole else earlier or whole
            with nullcontext() if whole is None else whole.applied(model):
                batch = facts[start : start + self.size]
                edit = replace(self.editor, previous=kept).fit(model, tokenizer, batch, seed=seed)
            losses += edit.losses
            not_taken += edit.record["not_taken"]
            whole = edit if whole is None else whole + edit
            batches.append({"facts": start + len(batch), "norms": whole.norms})
        assert whole is not None
        record = {
            "model": fingerprint(model),
            "method": self.describe(),
            **{key: whole.record[key] for key in ("facts", "keys")},
            "layers": [site.layer for site in self.editor.sites(model)],
            **{"seed": seed, "batches": batches, "losses": losses, "not_taken": not_taken},
        }
        return replace(whole, name=self.name, record=record).compressed()

    def describe(self) -> dict[str, Any]:
        """Return plain values that tell one from another."""
        return {"method": type(self).__name__, "name": self.name, "size": self.size, "editor": self.editor.describe()}
