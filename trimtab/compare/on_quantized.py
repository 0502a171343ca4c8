"""OnQuantized: a tuning method on a quantised copy of the model, as QLoRA is LoRA on 4-bit weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from trimtab.before import Before
from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of, input_device
from trimtab.models.load.checkpoints import load_model
from trimtab.protocols import Cost, Edit, Knobs, Method, Positions


@dataclass(frozen=True)
class OnQuantized(Method):
    """A tuning method on a quantised copy of the model (QLoRA: Dettmers et al. 2023).

    The copy is loaded from where the model came from; the edit answers with the tuned copy, and is measured against
    the model that was given, so that what quantisation itself costs is in its row.
    """

    method: Method
    quantization: str = "nf4"
    replaces_model: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The method's name with its quantisation."""
        return f"{self.method.name} on {self.quantization}"

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """The method's own."""
        return self.method.space

    def fit(
        self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0
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
    replaces_model: ClassVar[bool] = True

    @property
    def cost(self) -> Cost:
        """What the edit on the copy took."""
        return self.edit.cost

    @property
    def losses(self) -> Sequence[float]:
        """Those of the edit on the copy."""
        return self.edit.losses

    @property
    def fitted_on(self) -> Sequence[str]:
        """As of the edit on the copy."""
        return self.edit.fitted_on

    @property
    def strength(self) -> float | int:
        """As of the edit on the copy."""
        return self.edit.strength

    @property
    def stored_bytes(self) -> int:
        """As of the edit on the copy."""
        return self.edit.stored_bytes

    @contextlib.contextmanager
    def applied(self, model: Any, positions: Positions = "generated") -> Iterator[Any]:  # noqa: ARG002
        """Yield the tuned copy; the model itself is not touched."""
        with self.edit.applied(self.copy, positions) as tuned:
            yield tuned

    def prompt(self, question: str) -> str | None:
        """Return the edit's prompt."""
        return self.edit.prompt(question)

    def before(self, question: str) -> Before | None:
        """Return what the edit says before the question."""
        return self.edit.before(question)

    def scaled(self, factor: float | int) -> QuantizedEdit:
        """Return the copy with the edit's effect multiplied; at strength 0 the untuned copy answers."""
        return QuantizedEdit(self.copy, self.edit.scaled(factor), self.name)

    def describe(self) -> dict[str, Any]:
        """Return the edit's description."""
        return {**self.edit.describe(), "kind": "edit on a quantised copy", "name": self.name}

    def save(self, path: str | Path) -> None:
        """Write the edit on the copy, as it writes itself."""
        self.edit.save(path)
