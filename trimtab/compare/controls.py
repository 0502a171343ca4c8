"""Controls that choose among as many tries as the method they stand beside: random directions, shuffled labels."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.compare.wrapped import WrappedMethod
from trimtab.errors import BadValue
from trimtab.plain_values import hash_of
from trimtab.protocols import Edit, Findings, Knobs
from trimtab.steer.random import one_seed


@dataclass(frozen=True)
class SearchedControl(WrappedMethod):
    """A method without what it claims to find, searched as the method is: same space, tries and validation score."""

    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.named_after(self.method.name))

    @abstractmethod
    def named_after(self, method: str) -> str:
        """Return the name beside a method of this name."""

    @property
    def control_of(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The method's name."""
        return self.method.name

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """The method's own."""
        return self.method.space

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> Edit:
        """Return the control's edit; raises as the method does, and `BadValue` where it has no such counterpart."""
        return self.fitter(model, tokenizer, train, seed=seed)(self.setting(knobs))


@dataclass(frozen=True)
class RandomTries(SearchedControl):
    """Random directions at each of a method's settings, and the best of them chosen.

    They are other ones at every setting and seed, and in every fold. Norms and places are those that the method finds
    with the setting. What it reaches is what luck and as many tries reach; one random direction that nobody chose says
    less.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method.changes_prompt_only:
            raise BadValue(f"{self.method.name} changes the prompt alone: it has no directions that could be random")

    def named_after(self, method: str) -> str:
        """Return the name beside a method of this name."""
        return f"Random tries ({method})"

    def fitter_with(
        self, findings: Findings, model: Any, tokenizer: Any, train: Any, *, seed: int = 0
    ) -> Callable[[Knobs], Edit]:
        """Return what fits the method and draws directions in place of its own."""
        fit = self.method.fitter_with(findings, model, tokenizer, train, seed=seed)

        def drawn(knobs: Knobs) -> Edit:
            said = json.dumps(dict(knobs), sort_keys=True, default=str)
            own = int(hash_of([said, *(item.key for item in train)])[:8], 16)
            return fit(knobs).randomised(one_seed([seed, own])).renamed(self.name)

        return drawn


@dataclass(frozen=True)
class ShuffledLabels(SearchedControl):
    """The method fitted on questions whose true and false answers are mixed up, question by question.

    What it still reaches comes from the texts, the places and the tries, not from what is true (Hewitt & Liang 2019).
    """

    def named_after(self, method: str) -> str:
        """Return the name beside a method of this name."""
        return f"Shuffled labels ({method})"

    def fitter_with(
        self,
        findings: Findings,  # noqa: ARG002 - of other labels
        model: Any,
        tokenizer: Any,
        train: Any,
        *,
        seed: int = 0,
    ) -> Callable[[Knobs], Edit]:
        """Return what fits the method on the shuffled questions."""
        fit = self.method.fitter(model, tokenizer, train.shuffled(seed), seed=seed)
        return lambda knobs: fit(knobs).renamed(self.name)
