"""CountedAnswers: what a function counts in the edited model's answers to prompts of its own, without any judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.datasets.asking import asking_for
from trimtab.datasets.behaviours import Behaviour
from trimtab.engine.completion import completions
from trimtab.engine.conversation import asked_by
from trimtab.errors import BadDataset
from trimtab.evaluate.figure import Figure
from trimtab.plain_values import hash_of
from trimtab.protocols import Edit, Measured, Meter


@dataclass(frozen=True)
class CountedAnswers(Meter):
    """Generates an answer to every prompt of its own, and takes what a function says of it: a number, or yes or no."""

    prompts: tuple[str, ...]
    counts: Callable[[str], float | bool]
    max_new_tokens: int = 50
    batch_size: int | None = None
    name: ClassVar[str] = "counted"
    columns: ClassVar[Sequence[str]] = ("counted",)
    shown: ClassVar[Sequence[str]] = ("answer",)

    def __post_init__(self) -> None:
        if not self.prompts or isinstance(self.prompts, str):
            raise BadDataset("counting answers needs prompts, a list of texts")
        object.__setattr__(self, "prompts", tuple(dict.fromkeys(self.prompts)))

    def measure(
        self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit], *, asking: str = "plain", seed: int = 0
    ) -> list[Measured]:
        """Return every prompt's answer under every edit, and what is counted in it."""
        form, found = asking_for(asking, tokenizer), []
        for edit in edits:
            asked = [asked_by(edit, form, prompt) for prompt in self.prompts]
            how = {"max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}
            texts = [a.prompt for a in asked]
            (said,) = completions(model, tokenizer, texts, [edit], template=asked[0].template, **how)
            rows = zip(self.prompts, said, strict=True)
            found.append(Measured({p: {"counted": float(self.counts(text)), "answer": text} for p, text in rows}))
        return found

    def describe(self) -> dict[str, Any]:
        """Return what is counted, and a hash of the prompts."""
        about = {"counts": getattr(self.counts, "__qualname__", "a function"), "max_new_tokens": self.max_new_tokens}
        return {"meter": type(self).__name__, "n": len(self.prompts), "prompts": hash_of(self.prompts)[:16], **about}


def behaviour_meter(behaviour: Behaviour, *, max_new_tokens: int = 40, batch_size: int | None = None) -> Figure:
    """Return the mean of a behaviour's count over answers to its neutral prompts, whatever the items of the table."""
    source = CountedAnswers(behaviour.prompts, behaviour.count, max_new_tokens, batch_size)
    return Figure(source, behaviour.name, behaviour.name, ("counted",), unit=behaviour.unit)
