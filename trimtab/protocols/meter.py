"""Meter: everything that is ever asked of one figure of an edited model, with its default."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from trimtab.errors import BadValue
from trimtab.protocols.edit import Edit
from trimtab.protocols.judge import Judge
from trimtab.protocols.method import Findings


@dataclass(frozen=True)
class Measured:
    """What an instrument found of one edit."""

    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Item (question, pair, text, fact) -> column -> value; numbers in the columns that meters sum up."""
    value: float | int | None = None
    """For a meter without rows, such as a cost."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What must stand beside the figures: a judge's agreement with people, the form of the questions."""


class Meter(ABC):
    """One figure of an edited model. Everything that averages, tests, prints or draws works over meters by these alone.

    Several meters may sum up the rows of one measurement: their `instrument` is then the same (equal) meter, which
    measures once for all of them.
    """

    name: str
    """Its key in records, such as `mc1`."""
    heading: str = ""
    """Its heading in tables; the name if not given."""
    unit: str = "share"
    """`"share"` (printed in percent), or a unit such as `"nats"`, `"s"`, `"bytes"`, `"ms"`."""
    better: Literal["up", "down", "neither"] = "up"
    """Which way is an improvement."""
    columns: Sequence[str] = ()
    """The columns of a row that it sums up; its own name if not given."""
    shown: Sequence[str] = ()
    """Columns of a row that hold text for reading, such as the answer; records keep them beside the figures."""
    sums_up: str = "mean"
    """How `summary` makes the figure, for whoever reads records without the code of the meter; filled in."""
    collateral: bool = False
    """Whether it says what an edit broke rather than what it was made for; pages show the two apart."""
    tested: bool = True
    """Whether a comparison tests its difference to the unedited model; it never does where `better` is neither."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Fill heading and columns from the name where a class gives none."""
        super().__init_subclass__(**kwargs)
        name = vars(cls).get("name")
        if isinstance(name, str):
            cls.heading, cls.columns = (
                vars(cls).get(key, own) for key, own in (("heading", name), ("columns", (name,)))
            )
        own = "mean" if cls.summary is Meter.summary else "its own code"
        cls.sums_up = vars(cls).get("sums_up", own)

    @property
    def instrument(self) -> Meter:
        """What measures: this meter, or the one whose rows it sums up."""
        return self

    @property
    def sign(self) -> int:
        """What its figures are multiplied by so that more is better: -1 where less is, else 1."""
        return -1 if self.better == "down" else 1

    @property
    def choosing(self) -> Meter:
        """The meter to choose settings by, where measuring on the same items would be peeking: itself if not."""
        return self

    def kept_in(self, folder: str | Path) -> Meter:  # noqa: ARG002
        """Return the meter that keeps unfinished work in a folder, to go on there after a failure: itself if none."""
        return self

    def with_findings(self, findings: Findings) -> Meter:  # noqa: ARG002
        """Return the meter that takes what it finds of the unedited model from `findings` of this very model, and adds
        to them: itself if nothing."""
        return self

    def try_out(self, items: Any) -> None:
        """Measure next to nothing, so that what cannot measure says so before anything long is done.

        As of the instrument, like all that is asked of the rows before or without a measurement.

        Raises:
            BadValue: such as a judge that cannot be asked.
        """
        if self.instrument is not self:
            self.instrument.try_out(items)

    @abstractmethod
    def measure(
        self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit], *, asking: str = "plain", seed: int = 0
    ) -> Sequence[Measured | None]:
        """Return what was measured of every edit; None where it has nothing to say of one.

        Args:
            items: the questions, pairs or facts of the table.
            asking: how questions become tokens, such as `"plain"`.
            seed: of whatever is drawn.
        """

    def says_nothing(self, unedited: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Return why the figure can tell nothing of any edit, from the rows of the unedited model; None if it can."""
        return None if self.instrument is self else self.instrument.says_nothing(unedited)

    def mute_on(self, model: Any, tokenizer: Any, items: Any) -> str | None:
        """Return `says_nothing` of a few items, having asked the unedited model, where that costs little; None else."""
        return None if self.instrument is self else self.instrument.mute_on(model, tokenizer, items)

    def without_model(self, train: Any, items: Any) -> Mapping[str, Mapping[str, Any]] | None:
        """Return the rows that the texts' style alone gives, learned from the training items; None where none does."""
        return None if self.instrument is self else self.instrument.without_model(train, items)

    def summary(self, means: Float[np.ndarray, "... column"]) -> Any:
        """Return the figure from the means of its columns; intervals and tests resample items and go through it."""
        return means[..., 0]

    def describe(self) -> dict[str, Any]:
        """Return plain values that tell one meter from another: its fields, without those that equality leaves out."""
        told = [f.name for f in fields(self) if f.compare] if is_dataclass(self) else []
        own = {name: _plain(getattr(self, name)) for name in told}
        return {"meter": type(self).__name__, "name": self.name, **own}


def _plain(value: Any) -> Any:
    if isinstance(value, Meter):
        return value.describe()
    if isinstance(value, Judge):
        return {"name": value.name, **value.record}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def as_meter(value: Any) -> Meter:
    """Return a meter as it is, and that of a class that needs nothing; raises `BadValue` for anything else."""
    if isinstance(value, Meter):
        return value
    if isinstance(value, type) and issubclass(value, Meter):
        return value()
    raise BadValue(f"{value!r:.60} is no meter: derive its class from trimtab.protocols.Meter and give an instance")
