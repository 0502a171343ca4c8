"""CountedAnswers: a behaviour's counted property in what the edited model answers, without any judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.datasets.behaviours import Behaviour
from trimtab.engine.conversation import answers
from trimtab.protocols import Edit, Measured, Meter


@dataclass(frozen=True)
class CountedAnswers(Meter):
    """Mean of a behaviour's count over greedy answers to its neutral prompts, whatever the items of the table are."""

    behaviour: Behaviour
    max_new_tokens: int = 40
    batch_size: int | None = None
    columns: ClassVar[Sequence[str]] = ("count",)
    shown: ClassVar[Sequence[str]] = ("text",)

    @property
    def name(self) -> str:
        """The behaviour's."""
        return self.behaviour.name

    @property
    def heading(self) -> str:
        """The behaviour's name."""
        return self.behaviour.name

    @property
    def unit(self) -> str:
        """As of the behaviour's count."""
        return self.behaviour.unit

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        items: Any,
        edits: Sequence[Edit],
        *,
        asking: str = "plain",
        seed: int = 0,
    ) -> list[Measured]:
        """Return every prompt's answer and count under every edit."""
        prompts, new, found = self.behaviour.prompts, {"max_new_tokens": self.max_new_tokens}, []
        for edit in edits:
            how = {"asking": asking, "settings": new, "batch_size": self.batch_size}
            said = answers(model, tokenizer, prompts, edit, **how)
            rows = {
                p: {"text": text, "count": self.behaviour.count(text)} for p, text in zip(prompts, said, strict=True)
            }
            found.append(Measured(rows, record={"counted": self.behaviour.counted}))
        return found

    def describe(self) -> dict[str, Any]:
        """Return the behaviour by name, what is counted, and how long answers may be."""
        told = {"behaviour": self.name, "counted": self.behaviour.counted, "prompts": len(self.behaviour.prompts)}
        return {"meter": type(self).__name__, **told, "max_new_tokens": self.max_new_tokens}
