"""table: these meters over these edits, each measurement shared by the meters that sum it up. Nothing else measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from trimtab.cells import figure, table_lines
from trimtab.datasets.given import as_items
from trimtab.engine.conversation import note_asked_otherwise
from trimtab.errors import BadValue
from trimtab.evaluate.defaults import default_meters
from trimtab.intervals import Estimate, bootstrap_mean, estimated
from trimtab.protocols import Edit, Measured, Meter


class Instrument(NamedTuple):
    """What measures, and the meters that sum it up."""

    name: str
    """Its key in records; told apart by a number where two have one name."""
    meter: Meter
    sums: tuple[Meter, ...]


def instruments(meters: Sequence[Meter]) -> list[Instrument]:
    """Return the instruments of meters, in the order of their first ones.

    Raises:
        BadValue: no meters, or two of one name.
    """
    names = [meter.name for meter in meters]
    if not names or len(set(names)) < len(names):
        raise BadValue(f"measuring needs meters of different names, got {', '.join(names) or 'none'}")
    found: list[tuple[Meter, list[Meter]]] = []
    for meter in meters:
        sums = next((sums for instrument, sums in found if instrument == meter.instrument), None)
        if sums is None:
            found.append((meter.instrument, [meter]))
        else:
            sums.append(meter)
    taken: list[str] = []
    for instrument, _ in found:
        times = sum(name == instrument.name or name.startswith(f"{instrument.name} ") for name in taken)
        taken.append(f"{instrument.name} {times + 1}" if times else instrument.name)
    return [Instrument(name, meter, tuple(sums)) for name, (meter, sums) in zip(taken, found, strict=True)]


def mute_among(meters: Sequence[Meter], rows: Mapping[str, Any]) -> dict[str, str]:
    """Return meters that can tell nothing of any edit -> why, from the unedited model's rows by instrument."""
    found = {m.name: m.says_nothing(of) for i in instruments(meters) if (of := rows.get(i.name)) for m in i.sums}
    return {name: why for name, why in found.items() if why}


def mute_sentences(mute: Mapping[str, str], meters: Sequence[Meter]) -> list[str]:
    """Return what must be said before any figure: which meters can tell nothing here, those of one reason together."""
    by_why: dict[str, list[str]] = {}
    for meter in meters:
        if meter.name in mute:
            by_why.setdefault(mute[meter.name], []).append(meter.heading)
    said = (f"{', '.join(names)} can tell nothing here: {why}." for why, names in by_why.items())
    return [text[0].upper() + text[1:] for text in said]


def measurements_of(
    model: Any,
    tokenizer: Any,
    items: Any,
    edits: Sequence[Edit],
    meters: Sequence[Meter],
    *,
    asking: str = "plain",
    seed: int = 0,
) -> list[dict[str, Measured | None]]:
    """Return for every edit what each instrument found, by its name (see `instruments`)."""
    found: list[dict[str, Measured | None]] = [{} for _ in edits]
    for instrument in instruments(meters):
        several = instrument.meter.measure(model, tokenizer, items, edits, asking=asking, seed=seed)
        for of_edit, one in zip(found, several, strict=True):
            of_edit[instrument.name] = one
    return found


def columns_of(meter: Meter, rows: Mapping[str, Mapping[str, Any]]) -> Float[np.ndarray, "item column"]:
    """Return the columns that a meter sums up; raises `BadValue` where a row lacks one or holds no number in it."""
    try:
        numbers = map(float, [row[column] for row in rows.values() for column in meter.columns])
        return np.fromiter(numbers, np.float64).reshape(len(rows), len(meter.columns))
    except (KeyError, TypeError, ValueError) as cause:
        raise BadValue(
            f"meter {meter.name} sums up {', '.join(meter.columns)}, and a row that was measured has no number there: "
            f"{cause}"
        ) from cause


def summed_up(meter: Meter, found: Measured | None) -> Estimate | float | int | None:
    """Return a meter's figure: with a 95 % interval over items where there are rows, else as it was measured.

    None where it is no number, as a share of nothing is.
    """
    if found is None:
        return None
    if not found.rows:
        return found.value
    estimate = estimated(columns_of(meter, found.rows), meter.summary, unit=meter.unit)
    return estimate if estimate == estimate else None


@dataclass(frozen=True)
class Row:
    """One edit's figures by the meters' names: `row["mc1"]`, or `row.mc1`."""

    name: str
    estimates: Mapping[str, Estimate | float | int | None]
    """With 95 % intervals where they are over items; None where a meter has nothing to say (drift of prompting)."""
    edit: dict[str, Any]
    """The edit's description."""
    cost: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    """Instrument -> its rows; None where it has nothing to say."""

    def __getitem__(self, meter: str) -> Any:
        """Return the figure of the meter of this name."""
        if meter not in self.estimates:
            raise BadValue(f"{self.name}: no figure {meter!r}; measured were {', '.join(self.estimates)}")
        return self.estimates[meter]

    def __getattr__(self, meter: str) -> Any:
        """Return the figure of the meter of this name."""
        if meter.startswith("__") or meter not in self.estimates:
            raise AttributeError(f"{type(self).__name__} has no {meter!r}")
        return self.estimates[meter]

    def as_dict(self, *, details: bool = False) -> dict[str, Any]:
        """Return plain values for JSON, with the rows of items if asked for."""
        figures = {m: plain_figure(value) for m, value in self.estimates.items()}
        rest = {"edit": self.edit, "cost": self.cost, **({"details": self.details} if details else {})}
        return {"name": self.name, **figures, **rest}


def plain_figure(value: Estimate | float | int | None) -> Any:
    """Return a figure for JSON: with its interval if it has one."""
    return value.as_dict() if isinstance(value, Estimate) else value


@dataclass(frozen=True)
class Table:
    """Rows measured on the same items with the same meters."""

    rows: tuple[Row, ...]
    setting: dict[str, Any]
    """Items, convention and their fingerprints."""
    meters: tuple[Meter, ...]

    def __getitem__(self, name: str) -> Row:
        """Return the row of this name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise BadValue(f"no row {name!r}; the table has {', '.join(r.name for r in self.rows)}")

    def as_dict(self, *, details: bool = False) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"rows": [row.as_dict(details=details) for row in self.rows], "setting": self.setting}

    @property
    def headings(self) -> list[str]:
        """The headings of the columns, that of the names first."""
        return ["", *(meter.heading for meter in self.meters)]

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text: their names and figures with intervals, each in its unit."""
        return [[row.name, *(figure(row.estimates.get(m.name), m.unit) for m in self.meters)] for row in self.rows]

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`: a row for every edit, each figure with the columns of its interval's ends.

        Raises:
            BadValue: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as cause:
            raise BadValue("to_pandas needs pandas, which is not installed: pip install pandas") from cause
        found = []
        for row in self.rows:
            figures: dict[str, Any] = {}
            for name, value in row.estimates.items():
                figures[name] = None if value is None else float(value)
                if isinstance(value, Estimate):
                    figures |= {f"{name}_low": value.low, f"{name}_high": value.high}
            found.append(figures)
        return pandas.DataFrame(found, index=pandas.Index([row.name for row in self.rows], name="edit"))

    def to_markdown(self) -> str:
        """Return the table as Markdown; shares in percent with intervals in brackets, CE and KL in nats."""
        return "\n".join(table_lines(self.headings, self.cells))


def table(
    model: Any,
    tokenizer: Any,
    items: Any,
    edits: Sequence[Edit],
    *,
    meters: Sequence[Meter] | None = None,
    keep: str | Path | None = None,
    asking: str = "auto",
    **options: Any,
) -> Table:
    """Return a table with one row per edit, all measured on the same items by the same meters.

    Args:
        items: questions, contrast pairs or the like: a set, or a list of mappings.
        meters: those that speak of such items if not given (`trimtab.evaluate.defaults.default_meters`).
        keep: a folder for unfinished work, such as generated answers and their verdicts.
        asking: as in `QuestionSet.asked_as`: by default in the model's chat template where it has one.
        options: of the default meters: `judge`, `convention`, `texts`, `max_new_tokens`.

    Raises:
        BadValue: no edits, or two of one name; meters of one name.
    """
    names = [edit.name for edit in edits]
    if not names or len(set(names)) < len(names):
        raise BadValue(f"a table needs edits of different names, got {', '.join(names) or 'none'}")
    items = as_items(items).asked_as(asking, tokenizer)
    meters = default_meters(items, **options) if meters is None else meters
    own = [meter if keep is None else meter.kept_in(keep) for meter in meters]
    for edit in edits:
        note_asked_otherwise(edit, items.asking)
    found = measurements_of(model, tokenizer, items, edits, own, asking=items.asking)
    rows = []
    for edit, one in zip(edits, found, strict=True):
        figures = {m.name: summed_up(m, one[i.name]) for i in instruments(own) for m in i.sums}
        details = {name: of and list(of.rows.values()) for name, of in one.items() if of is None or of.rows}
        rows.append(Row(edit.name, {m.name: figures[m.name] for m in own}, edit.describe(), asdict(edit.cost), details))
    setting = {"questions": items.name, "n": len(items), "fingerprint": items.fingerprint}
    plain = next((of for edit, of in zip(edits, found, strict=True) if edit.changes_nothing), {})
    if mute := mute_among(own, {name: of and of.rows for name, of in plain.items()}):
        setting["mute"] = mute
    return Table(tuple(rows), {**setting, "convention": options.get("convention") or items.asking}, tuple(own))


def pooled(rows: Sequence[Row], name: str) -> Row:
    """Return the mean row of several draws of the same kind; intervals are over draws, not questions.

    Raises:
        BadValue: no rows.
    """
    if not rows:
        raise BadValue(f"row {name!r} needs one row or more to pool, got none")
    values = {meter: [row.estimates[meter] for row in rows] for meter in rows[0].estimates}
    means = {m: None if None in several else bootstrap_mean(several) for m, several in values.items()}  # pyright: ignore[reportArgumentType]
    draws = {"kind": "draws", "draws": [row.edit for row in rows]}
    return Row(name, means, draws, rows[0].cost, {"draws": [r.as_dict(details=True) for r in rows]})
