"""Method: everything that is ever asked of a way of making an edit, with its default."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import product
from typing import Any, ClassVar, TypeAlias, TypeVar

from trimtab.errors import BadValue
from trimtab.protocols.edit import Edit
from trimtab.protocols.plain_repr import FieldsRepr

T = TypeVar("T")
Knobs: TypeAlias = Mapping[str, Any]
"""One setting of a method: knob -> value."""


@dataclass(frozen=True)
class Findings:
    """What is found out once for all methods that are fitted on the same questions and model, such as activations."""

    found: dict[Any, Any] = field(default_factory=dict)

    def once(self, what: Hashable, find: Callable[[], T]) -> T:
        """Return what `find` gave when this was first asked for."""
        if what not in self.found:
            self.found[what] = find()
        return self.found[what]


class Method(FieldsRepr, ABC):
    """A way of making an Edit from training questions. Only `fit` must be given."""

    name: str = ""
    """A short name for tables; the class's name if not given."""
    space: Mapping[str, Sequence[Any]] = {}
    """What may be tried: knob -> values, in their order."""
    replaces_model: bool = False
    """As of its edits."""
    changes_prompt_only: bool = False
    """As of its edits."""
    fitted_on: Sequence[str] = ()
    """Keys of the items that its edits were made from whatever is given to fit on; a comparison measures on others."""
    follows: ClassVar[str | None] = None
    """None: a method chooses its own setting (a control takes another row's)."""
    control_of: str | None = None
    """The name of the method that it is a control of, with tries of its own; None for what is no control."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give the class its own name as the name for tables if it has none, and no field for one."""
        super().__init_subclass__(**kwargs)
        if not getattr(cls, "name", "") and "name" not in vars(cls):
            cls.name = cls.__name__

    @property
    def grid(self) -> Sequence[Knobs]:
        """Every setting of the space. A class that overrides it is read for one version more: see `settings_of`."""
        return settings(self.space)

    def setting(self, knobs: Knobs | None) -> dict[str, Any]:
        """Return the first setting of the space with these knobs in it; raises `BadValue` for one that it lacks."""
        unknown = [knob for knob in knobs or {} if knob not in self.space]
        if unknown:
            known = f"its knobs are {', '.join(self.space)}" if self.space else "it has none"
            raise BadValue(f"{self.name} has no knob {unknown[0]!r}; {known}")
        return {**settings(self.space)[0], **(knobs or {})}

    def limited_to(self, n: int) -> Method:  # noqa: ARG002
        """Return the method without what cannot be tried on so few training items; itself if all can."""
        return self

    @abstractmethod
    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> Edit:
        """Return the edit fitted on the training questions, with the first setting of the space if no knobs are given.

        Raises:
            BadValue: knobs that the method does not have.
        """

    def fitter(self, model: Any, tokenizer: Any, train: Any, *, seed: int = 0) -> Callable[[Knobs], Edit]:
        """Return a function from knobs to edits; what all settings can share is done here, once."""
        return lambda knobs: self.fit(model, tokenizer, train, knobs=knobs, seed=seed)

    def fitter_with(
        self,
        findings: Findings,  # noqa: ARG002
        model: Any,
        tokenizer: Any,
        train: Any,
        *,
        seed: int = 0,
    ) -> Callable[[Knobs], Edit]:
        """Return the `fitter`, which may take from `findings`, of this very model and questions, and add to them."""
        return self.fitter(model, tokenizer, train, seed=seed)

    def describe(self) -> dict[str, Any]:
        """Return plain values that tell one method from another: the class and its fields."""
        own = {f.name: getattr(self, f.name) for f in fields(self)} if is_dataclass(self) else {}
        return {"method": type(self).__name__, "name": self.name, **own}


def settings(space: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of the knobs' values, the last knob fastest."""
    return [dict(zip(space, values, strict=True)) for values in product(*space.values())]


def settings_of(method: Method) -> list[Knobs]:
    """Return every setting that a method has.

    A class that gives an own `grid`, as methods did before there was `space`, is read with a warning.
    """
    if type(method).grid is not Method.grid:
        warnings.warn(
            f"{method.name}: a method's `grid` is read for one version more; give `space`, knob -> values, instead",
            FutureWarning,
            stacklevel=2,
        )
    return [dict(knobs) for knobs in method.grid]
