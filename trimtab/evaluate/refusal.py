"""Over-refusal: how often the edited model refuses prompts that it ought to answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.datasets.asking import asking_for
from trimtab.engine.completion import completions
from trimtab.engine.conversation import asked_by
from trimtab.errors import BadDataset
from trimtab.evaluate.figure import Figure
from trimtab.evaluate.wording import refuses
from trimtab.plain_values import hash_of
from trimtab.protocols import Edit, Measured, Meter


@dataclass(frozen=True)
class RefusedPrompts(Meter):
    """Generates an answer to every prompt of its own, and counts those that a function says yes to."""

    prompts: tuple[str, ...]
    counts: Callable[[str], bool] = refuses
    max_new_tokens: int = 50
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
        """Return every prompt's answer under every edit, and whether it counts."""
        found, form = [], asking_for("plain" if asking in ("lm-eval", "iti") else asking, tokenizer)
        for edit in edits:
            asked = [asked_by(edit, form, prompt) for prompt in self.prompts]
            options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "template": asked[0].template}
            (said,) = completions(model, tokenizer, [one.prompt for one in asked], [edit], **options)
            rows = zip(self.prompts, said, strict=True)
            found.append(Measured({p: {"counted": float(self.counts(text)), "answer": text} for p, text in rows}))
        return found

    def describe(self) -> dict[str, Any]:
        """Return what is counted, and a hash of the prompts."""
        about = {"counts": getattr(self.counts, "__name__", "a function"), "max_new_tokens": self.max_new_tokens}
        return {"meter": type(self).__name__, "n": len(self.prompts), "prompts": hash_of(self.prompts)[:16], **about}


def refusal_meters(prompts: Sequence[str], max_new_tokens: int = 50) -> tuple[Meter, ...]:
    """Return the share of prompts, all of which ought to be answered, that the edited model refuses."""
    source = RefusedPrompts(tuple(prompts), max_new_tokens=max_new_tokens)
    return (Figure(source, "over_refusal", "refusals", ("counted",), better="down", collateral=True),)
