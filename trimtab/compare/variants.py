"""Tuning methods in a comparison: more knobs than a learning rate, and tuning on a quantised copy of the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of, input_device
from trimtab.models.load.checkpoints import load_model
from trimtab.prompting.few_shot import name_of
from trimtab.protocols import Cost, Edit, Method, Positions

STRENGTH = "strength"


@dataclass(frozen=True)
class Widened(Method):
    """A method with more knobs: its own grid times these values, `strength` among them.

    `strength` multiplies the finished edit (`edit.scaled`), so that a tuned edit has the knob that a shift has.
    """

    method: Method
    knobs: tuple[tuple[str, tuple[Any, ...]], ...]
    """(knob, values) pairs."""
    name: str = ""

    def __post_init__(self) -> None:
        if not all(values for _, values in self.knobs):
            raise BadValue(f"{name_of(self.method)}: every knob needs one value or more to try, got {self.knobs}")
        if not self.name:
            object.__setattr__(self, "name", name_of(self.method))

    @property
    def replaces_model(self) -> bool:
        """Whether the method's edit answers with a model of its own."""
        return getattr(self.method, "replaces_model", False)

    @property
    def grid(self) -> Sequence[Mapping[str, Any]]:
        """Every combination of the method's own settings with the added values; a named knob replaces its own."""
        names = [knob for knob, _ in self.knobs]
        own = [{k: v for k, v in knobs.items() if k not in names} for knobs in self.method.grid]
        unique = [knobs for i, knobs in enumerate(own) if knobs not in own[:i]]
        added = [dict(zip(names, values, strict=True)) for values in product(*(v for _, v in self.knobs))]
        return tuple({**knobs, **more} for knobs, more in product(unique, added))

    def fit(
        self, model: Any, tokenizer: Any, train: Any, *, knobs: Mapping[str, Any] | None = None, seed: int = 0
    ) -> Edit:
        """Return the edit fitted with these knobs, at their strength.

        Raises:
            BadValue: the edit has no strength to set.
        """
        knobs = dict(knobs or self.grid[0])
        strength = knobs.pop(STRENGTH, 1)
        edit: Any = self.method.fit(model, tokenizer, train, knobs=knobs, seed=seed)
        if strength != 1:
            if not hasattr(edit, "scaled"):
                raise BadValue(f"{self.name} has no strength to set; leave it out of its knobs")
            edit = edit.scaled(strength)
        return edit


@dataclass(frozen=True)
class OnQuantized(Method):
    """A tuning method on a quantised copy of the model, as QLoRA (Dettmers et al. 2023) is LoRA on 4-bit weights.

    The copy is loaded from where the model came from; the edit answers with the tuned copy, and is measured against
    the model that was given, so that what quantisation itself costs is in its row.
    """

    method: Method
    quantization: str = "nf4"

    @property
    def replaces_model(self) -> bool:
        """True: the edit answers with the copy."""
        return True

    @property
    def name(self) -> str:
        """The method's name with its quantisation."""
        return f"{name_of(self.method)} on {self.quantization}"

    @property
    def grid(self) -> Sequence[Mapping[str, Any]]:
        """The method's own."""
        return self.method.grid

    def fit(
        self, model: Any, tokenizer: Any, train: Any, *, knobs: Mapping[str, Any] | None = None, seed: int = 0
    ) -> QuantizedEdit:
        """Return the edit fitted on a quantised copy.

        Raises:
            BadValue: the model has no path or hub id to load the copy from; bitsandbytes is missing.
        """
        base = base_of(model)
        source = base.config.name_or_path
        if not source:
            raise BadValue(f"{self.name}: this model has no folder or hub id to load a quantised copy from")
        copy = load_model(
            source,
            quantization=self.quantization,  # pyright: ignore[reportArgumentType]
            device=str(input_device(model)),
            dtype=base.dtype,
            # the commit that was loaded, whatever name it was asked for by
            revision=getattr(base.config, "_commit_hash", None),
        ).model
        return QuantizedEdit(copy, self.method.fit(copy, tokenizer, train, knobs=knobs, seed=seed), self.name)


@dataclass(frozen=True)
class QuantizedEdit(Edit):
    """An edit that answers with a tuned, quantised copy of the model."""

    copy: Any = field(repr=False, compare=False)
    edit: Edit
    name: str
    leaves_prompt_unedited: bool = False
    replaces_model: bool = True

    @property
    def cost(self) -> Cost:
        """What the edit on the copy took."""
        return self.edit.cost

    @contextlib.contextmanager
    def applied(self, model: Any, positions: Positions = "generated") -> Iterator[Any]:  # noqa: ARG002
        """Yield the tuned copy; the model itself is not touched."""
        with self.edit.applied(self.copy, positions) as tuned:
            yield tuned

    def prompt(self, question: str) -> str | None:
        """Return the edit's prompt."""
        return self.edit.prompt(question)

    def describe(self) -> dict[str, Any]:
        """Return the edit's description."""
        return {**self.edit.describe(), "kind": "edit on a quantised copy", "name": self.name}

    def save(self, path: Any) -> None:
        """Write the edit on the copy, as it writes itself."""
        self.edit.save(path)  # pyright: ignore[reportAttributeAccessIssue]
