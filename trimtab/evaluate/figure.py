"""Figure: one number summed up from an instrument's rows, as plain values that a record can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from trimtab.errors import BadValue
from trimtab.protocols import Edit, Findings, Measured, Meter

Means = Float[np.ndarray, "... column"]
"""The means of a meter's columns, over items or over resampled ones."""


def bleu_of(means: Means) -> Any:
    """Return BLEU-4 (Papineni et al. 2002) from the mean numbers of matching and given n-grams and the mean lengths.

    Without smoothing: 0 where no n-gram of a length matches.
    """
    hits, given, length, reference = means[..., :4], means[..., 4:8], means[..., 8], means[..., 9]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(given > 0, hits / given, 0.0)
        return np.exp(np.log(precision).mean(-1) + np.minimum(0.0, 1 - reference / length))


def nist_of(means: Means) -> Any:
    """Return NIST-5 (Doddington 2002) from the mean information of n-grams, their numbers and the mean lengths."""
    info, given, length, reference = means[..., :5], means[..., 5:10], means[..., 10], means[..., 11]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(given > 0, info / given, 0.0).sum(-1)
        short = np.minimum(np.log(length / reference), 0.0)
        return np.where(length > 0, precision * np.exp(log(0.5) / log(1.5) ** 2 * short**2), 0.0)


def ratio_of(means: Means) -> Any:
    """Return the first column's mean over the second's: a share of things of which items have different numbers.

    It is not a number where there are none.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(means[..., 0], means[..., 1])


SUMMARIES: dict[str, Callable[[Means], Any]] = {
    "mean": lambda means: means[..., 0],
    "product": lambda means: means[..., 0] * means[..., 1],
    "rest": lambda means: 1 - means[..., 0],
    "ratio": ratio_of,
    "bleu": bleu_of,
    "nist": nist_of,
}
"""How a figure is made of the means of its columns, by the name that records keep."""


@dataclass(frozen=True)
class Figure(Meter):
    """A figure of an instrument, or of a record where there is none to measure with."""

    source: Meter | None
    name: str
    heading: str
    columns: Sequence[str]
    unit: str = "share"
    better: Literal["up", "down", "neither"] = "up"
    tested: bool = True
    collateral: bool = False
    sums_up: str = "mean"  # pyright: ignore[reportIncompatibleMethodOverride]
    """A key of `SUMMARIES`."""

    @property
    def instrument(self) -> Meter:
        """What measures."""
        return self.source or self

    @property
    def shown(self) -> Sequence[str]:
        """As of the instrument."""
        return self.source.shown if self.source else ()

    @property
    def choosing(self) -> Meter:
        """The figure of what the instrument measures to choose by."""
        return replace(self, source=self.source and self.source.choosing)

    def kept_in(self, folder: Any) -> Meter:
        """Return the figure of the instrument that keeps its work there."""
        return replace(self, source=self.source and self.source.kept_in(folder))

    def with_findings(self, findings: Findings) -> Meter:
        """Return the figure of the instrument that takes from them."""
        return replace(self, source=self.source and self.source.with_findings(findings))

    def measure(
        self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit], **how: Any
    ) -> Sequence[Measured | None]:
        """Return what the instrument measures; raises `BadValue` if the figure is a record of one."""
        if self.source is None:
            raise BadValue(f"meter {self.name} is a record of one; give the meter itself to measure with")
        return self.source.measure(model, tokenizer, items, edits, **how)

    def summary(self, means: Float[np.ndarray, "... column"]) -> Any:
        """Return the figure from the means of its columns."""
        return SUMMARIES[self.sums_up](means)
