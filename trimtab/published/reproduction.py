"""Reproduction: one published table, our rows beside the printed ones, and how several runs become a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from trimtab.cells import MISSING, figure, number, table_lines
from trimtab.compare.statistics import Spread, Values, spread
from trimtab.evaluate.table import columns_of, instruments
from trimtab.protocols import Measured, Meter
from trimtab.published.figures import Published
from trimtab.storage import versions

Run: TypeAlias = Mapping[str, Mapping[str, Measured | None]]
"""Row -> instrument -> what it found on the test questions of one fold."""


@dataclass(frozen=True)
class Reproduction:
    """One published table: the printed rows beside ours, and why they may differ."""

    name: str
    rows: dict[str, dict[str, Spread | None]]
    meters: tuple[Meter, ...]
    published: Mapping[str, Published]
    """Empty for a model whose figures were not published."""
    deviations: tuple[str, ...]
    setting: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "name": self.name,
            "model": self.setting["model"]["name"],
            "rows": {n: {m: s and s.as_dict() for m, s in row.items()} for n, row in self.rows.items()},
            "published": {n: p._asdict() for n, p in self.published.items()},
            "deviations": list(self.deviations),
            "setting": self.setting,
            "versions": versions(),
        }

    def to_markdown(self) -> str:
        """Return a table in which each of our rows stands above the printed one, and the deviations."""
        lines = []
        for name, row in self.rows.items():
            ours = (figure(spread and spread.estimate, m.unit) for m in self.meters for spread in (row[m.name],))
            lines.append([name, "ours", *ours])
            if name in self.published:
                figures, source = self.published[name]
                lines.append(["", source, *(_printed(figures.get(m.name), m.unit) for m in self.meters)])
        size, asked = self.setting["parameters"] / 1e6, self.setting["questions"]
        about = f"{size:,.0f} million parameters; {asked['n']} questions of {asked['name']}.\n\n"
        if not self.published:
            about += "No figures were published for this model; those of larger models are no measure for these.\n\n"
        shown = "\n".join(table_lines(("", "", *(m.heading for m in self.meters)), lines))
        notes = "\n".join(f"- {d}" for d in self.deviations)
        model = self.setting["model"]["name"] or "unnamed model"
        return f"# {self.name}: {model}\n\n{about}{shown}\n\nKnown deviations:\n\n{notes}\n"


def pooled_runs(runs: Sequence[Sequence[Run]], meters: Sequence[Meter]) -> dict[str, dict[str, Spread | None]]:
    """Return row -> meter -> spread; `runs` holds for every seed its folds."""
    pooled: dict[str, dict[str, Spread | None]] = {name: {} for name in runs[0][0]}
    for name, instrument in ((name, i) for name in pooled for i in instruments(meters)):
        for meter in instrument.sums:
            values: Values = {
                seed: [
                    (list(found.rows), columns_of(meter, found.rows))
                    for fold in folds
                    if (found := fold[name][instrument.name]) and found.rows
                ]
                for seed, folds in enumerate(runs)
            }
            pooled[name][meter.name] = spread(values, meter.summary, unit=meter.unit) if any(values.values()) else None
    return pooled


def _printed(value: float | None, unit: str) -> str:
    # papers print two digits of nats
    return MISSING if value is None else f"{value:.2f}" if unit == "nats" else number(value, unit)
