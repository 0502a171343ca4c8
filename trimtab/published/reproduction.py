"""Reproduction: one published table, our rows beside the printed ones, and how several runs become a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.compare.rows import COLUMNS, NATS
from trimtab.compare.statistics import Spread, first, product, spread
from trimtab.evaluate.table import Row
from trimtab.published.figures import Published
from trimtab.storage import versions


@dataclass(frozen=True)
class Reproduction:
    """One published table: the printed rows beside ours, and why they may differ."""

    name: str
    model: str
    rows: dict[str, dict[str, Spread | None]]
    published: Mapping[str, Published]
    """Empty for a model whose figures were not published."""
    deviations: tuple[str, ...]
    setting: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "name": self.name,
            "model": self.model,
            "rows": {n: {m: s and s.as_dict() for m, s in row.items()} for n, row in self.rows.items()},
            "published": {n: p._asdict() for n, p in self.published.items()},
            "deviations": list(self.deviations),
            "setting": self.setting,
            "versions": versions(),
        }

    def to_markdown(self) -> str:
        """Return a table in which each of our rows stands above the printed one, and the deviations."""
        from trimtab.report.markdown import NATS, PERCENT, table_lines

        heads = {**PERCENT, **NATS}
        lines = []
        for name, row in self.rows.items():
            lines.append([name, "ours", *(_ours(row[m], percent=m in PERCENT) for m in heads)])
            if name in self.published:
                figures, source = self.published[name]
                lines.append(["", source, *(_theirs(figures.get(m), percent=m in PERCENT) for m in heads)])
        known = "" if self.published else f"No figures were published for {self.model or 'this model'}.\n\n"
        shown = "\n".join(table_lines(("", "", *heads.values()), lines))
        notes = "\n".join(f"- {d}" for d in self.deviations)
        return f"# {self.name}: {self.model or 'unnamed model'}\n\n{known}{shown}\n\nKnown deviations:\n\n{notes}\n"


def pooled_runs(runs: Sequence[Sequence[Mapping[str, Row]]]) -> dict[str, dict[str, Spread | None]]:
    """Return row -> metric -> spread; `runs` holds for every seed its folds."""
    pooled: dict[str, dict[str, Spread | None]] = {}
    for name in runs[0][0]:
        pooled[name] = {}
        for metric, columns in COLUMNS.items():
            values = {seed: _columns([fold[name] for fold in folds], columns) for seed, folds in enumerate(runs)}
            pooled[name][metric] = spread(values, product if metric == "true_info" else first)
        for i, metric in enumerate(NATS):
            texts = {seed: _texts([fold[name] for fold in folds], i) for seed, folds in enumerate(runs)}
            pooled[name][metric] = spread(texts) if any(texts.values()) else None
    return pooled


def _columns(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        choices = {r["question"]: r for r in row.details["multiple_choice"]}
        for said in row.details["generated"]:
            both = {**said, **{m: choices[said["question"]][m] for m in ("mc1", "mc2")}}
            found.setdefault(said["question"], []).append([float(both[c]) for c in columns])
    return found


def _texts(rows: Sequence[Row], column: int) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        for number, pair in enumerate(row.details["drift"] or ()):
            found.setdefault(str(number), []).append([pair[column]])
    return found


def _ours(value: Spread | None, *, percent: bool) -> str:
    if value is None:
        return "-"
    e = value.estimate
    if percent:
        return f"{100 * e:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]"
    return f"{e:.3f} [{e.low:.3f}, {e.high:.3f}]"


def _theirs(value: float | None, *, percent: bool) -> str:
    return "-" if value is None else f"{100 * value:.1f}" if percent else f"{value:.2f}"
