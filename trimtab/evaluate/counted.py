"""CountedAnswers: what a function counts in the edited model's answers, without any judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.datasets.asking import asked_by, asking_for
from trimtab.datasets.behaviours import Behaviour
from trimtab.engine.completion import completions_of
from trimtab.errors import BadDataset
from trimtab.evaluate.figure import Figure
from trimtab.evaluate.wording import refuses, worded, wording_meters
from trimtab.plain_values import hash_of
from trimtab.protocols import Edit, Measured, Meter


@dataclass(frozen=True)
class CountedAnswers(Meter):
    """Generates answers, and takes what a function says of each: a number, or yes or no; and how each reads."""

    prompts: tuple[str, ...] | None
    """What is asked, whatever the items of the table are; the items themselves if None."""
    counts: Callable[[str], float | bool] | None
    """None where only how answers read is wanted."""
    max_new_tokens: int = 50
    batch_size: int | None = None
    name: ClassVar[str] = "counted"
    columns: ClassVar[Sequence[str]] = ("counted",)
    shown: ClassVar[Sequence[str]] = ("answer",)

    def __post_init__(self) -> None:
        if self.prompts is not None and (not self.prompts or isinstance(self.prompts, str)):
            raise BadDataset("counting answers needs prompts, a list of texts")
        object.__setattr__(self, "prompts", self.prompts and tuple(dict.fromkeys(self.prompts)))

    def measure(
        self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit], *, asking: str = "plain", seed: int = 0
    ) -> list[Measured]:
        """Return every answer under every edit, what is counted in it, and how it reads."""
        if self.prompts is None:
            of = items.asked_as(asking, tokenizer)
            asked = {item.key: (of.form_for(item), item.asked) for item in of}
        else:
            form = asking_for(asking, tokenizer)
            asked = {prompt: (form, prompt) for prompt in self.prompts}
        ways = [[asked_by(edit, form, prompt) for form, prompt in asked.values()] for edit in edits]
        prompts, forms = [[one.prompt for one in way] for way in ways], [{"template": way[0].template} for way in ways]
        how = {"max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}
        said = completions_of(model, tokenizer, prompts, edits, forms, **how)
        return [Measured(dict(zip(asked, self._rows(tokenizer, answers), strict=True))) for answers in said]

    def _rows(self, tokenizer: Any, answers: Sequence[str]) -> list[dict[str, Any]]:
        read = worded(tokenizer, answers, self.max_new_tokens)
        counted = [{} if self.counts is None else {"counted": float(self.counts(answer))} for answer in answers]
        return [{**n, "answer": a, **r} for n, a, r in zip(counted, answers, read, strict=True)]

    def describe(self) -> dict[str, Any]:
        """Return what is counted, and a hash of the prompts if it has its own."""
        counts = None if self.counts is None else getattr(self.counts, "__qualname__", "a function")
        about = {"meter": type(self).__name__, "counts": counts, "max_new_tokens": self.max_new_tokens}
        own = {} if self.prompts is None else {"n": len(self.prompts), "prompts": hash_of(self.prompts)[:16]}
        return {**about, **own}


def behaviour_meter(behaviour: Behaviour, *, max_new_tokens: int = 40, batch_size: int | None = None) -> Figure:
    """Return the mean of a behaviour's count over answers to its neutral prompts, whatever the items of the table."""
    source = CountedAnswers(behaviour.prompts, behaviour.count, max_new_tokens, batch_size)
    return _count(behaviour, source)


def counted_meters(behaviour: Behaviour | None, *, max_new_tokens: int = 40) -> tuple[Figure, ...]:
    """Return the mean of a behaviour's count over answers to the items of the table, and how these answers read."""
    source = CountedAnswers(None, behaviour and behaviour.count, max_new_tokens)
    return (*((_count(behaviour, source),) if behaviour else ()), *wording_meters(source))


def refusal_meters(prompts: Sequence[str], max_new_tokens: int = 50) -> tuple[Figure, ...]:
    """Return the share of prompts, all of which ought to be answered, that the edited model refuses."""
    source = CountedAnswers(tuple(prompts), refuses, max_new_tokens)
    return (Figure(source, "over_refusal", "refusals", ("counted",), better="down", collateral=True),)


def _count(behaviour: Behaviour, source: CountedAnswers) -> Figure:
    return Figure(source, behaviour.name, behaviour.name, ("counted",), unit=behaviour.unit)
