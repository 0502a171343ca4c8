"""Stack: several methods at once, as one method."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trimtab.edits.combined import Stacked
from trimtab.errors import BadValue
from trimtab.protocols import Edit, Knobs, Method, require_order


@dataclass(frozen=True)
class Stack(Method):
    """Several methods at once: each is fitted on the model as the ones before it leave it, on the same questions.

    So the probes and the shift of LoRA + ITI are those of the tuned model. A trial sets the knobs of all of them: the
    knob `top_k` of ITI is `ITI.top_k`.
    """

    methods: tuple[Method, ...]

    def __post_init__(self) -> None:
        names = [m.name for m in self.methods]
        if len(names) < 2 or len(set(names)) < len(names):
            raise BadValue(f"a stack needs two or more methods of different names, got {', '.join(names) or 'none'}")
        require_order(self.methods)

    @property
    def name(self) -> str:
        """The methods' names joined by +."""
        return " + ".join(m.name for m in self.methods)

    @property
    def replaces_model(self) -> bool:
        """Whether one of them answers with a model of its own."""
        return any(m.replaces_model for m in self.methods)

    @property
    def changes_prompt_only(self) -> bool:
        """Whether no one of them changes the model."""
        return all(m.changes_prompt_only for m in self.methods)

    @property
    def fitted_on(self) -> Sequence[str]:
        """What any of them was made from."""
        return [key for m in self.methods for key in m.fitted_on]

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """Every knob of every method, after the method's name."""
        return {f"{m.name}.{knob}": values for m in self.methods for knob, values in m.space.items()}

    def limited_to(self, n: int) -> Stack:
        """Return the stack of the methods so limited."""
        return replace(self, methods=tuple(m.limited_to(n) for m in self.methods))

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> Stacked:
        """Return the stacked edit; raises `BadValue` for a knob that no one of the methods has."""
        knobs, made = knobs or {}, []
        unknown = [knob for knob in knobs if not any(knob.startswith(f"{m.name}.") for m in self.methods)]
        if unknown:
            raise BadValue(f"{self.name} has no knob {unknown[0]!r}; its knobs are {', '.join(self.space)}")
        with contextlib.ExitStack() as stack:
            for i, method in enumerate(self.methods):
                own = {
                    k.removeprefix(f"{method.name}."): v for k, v in knobs.items() if k.startswith(f"{method.name}.")
                }
                edit: Edit = method.fit(model, tokenizer, train, knobs=own or None, seed=seed)
                made.append(edit)
                if i + 1 < len(self.methods):
                    model = stack.enter_context(edit.applied(model, positions="all"))
        return Stacked(tuple(made), name=self.name)
