"""Prompted: examples and an instruction before the question, as an edit that leaves the model alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trimtab.errors import BadValue
from trimtab.protocols import ALL_LAYERS, Cost, Edit, Positions


@dataclass(frozen=True)
class Prompted(Edit):
    """Few-shot prompting: question and answer pairs set before the question; the model is unchanged."""

    examples: tuple[tuple[str, str], ...]
    """(question, answer) pairs, in the order in which they stand."""
    instruction: str = ""
    """Text set before the pairs, followed by a blank line."""
    name: str = "Few-shot"
    cost: Cost = field(default_factory=Cost)
    leaves_prompt_unedited: bool = True
    unchanged_layers: ClassVar[int] = ALL_LAYERS
    changes_prompt_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.examples and not self.instruction:
            raise BadValue("Prompted needs at least one (question, answer) example or an instruction")

    @contextlib.contextmanager
    def applied(self, model: Any, positions: Positions = "generated") -> Iterator[Any]:  # noqa: ARG002
        """Yield the model as it is."""
        yield model

    def prompt(self, question: str) -> str:
        """Return instruction and examples in `Q: ...\\nA: ...` form, separated by blank lines, then the question."""
        blocks = [self.instruction] if self.instruction else []
        blocks += [f"Q: {q}\nA: {a}" for q, a in self.examples]
        return "\n\n".join([*blocks, f"Q: {question}\nA:"])

    def describe(self) -> dict[str, Any]:
        """Return the kind and the examples."""
        return {
            "kind": "prompted",
            "examples": [list(e) for e in self.examples],
            "instruction": self.instruction,
        }
