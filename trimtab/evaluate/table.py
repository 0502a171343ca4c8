"""table: the same questions and meters for edits that were already made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimtab.datasets.questions import QuestionSet
from trimtab.edits.prompts import Prompted
from trimtab.edits.retrieval import Retrieved
from trimtab.errors import BadValue
from trimtab.evaluate.drift import drifts
from trimtab.evaluate.generation import generate_answers_many
from trimtab.evaluate.judges.exact import exact_judge
from trimtab.evaluate.judges.verdicts import Judge
from trimtab.evaluate.multiple_choice import Convention, multiple_choice_many
from trimtab.intervals import Estimate, bootstrap_mean
from trimtab.protocols import Edit

HEADINGS = {
    "true_info": "True*Info",
    "true": "True",
    "info": "Info",
    "unmatched": "unmatched",
    "mc1": "MC1",
    "mc2": "MC2",
    "ce": "CE",
    "kl": "KL",
}
METRICS = tuple(HEADINGS)


@dataclass(frozen=True)
class Row:
    """One edit's measurements, each with its 95 % interval."""

    name: str
    true_info: Estimate
    true: Estimate
    info: Estimate
    unmatched: Estimate
    mc1: Estimate
    mc2: Estimate
    ce: Estimate | None
    """None where the model itself is unchanged (prompting)."""
    kl: Estimate | None
    edit: dict[str, Any]
    """The edit's description."""
    cost: dict[str, Any]
    details: dict[str, Any]
    """Per-question rows."""

    def as_dict(self, *, details: bool = False) -> dict[str, Any]:
        """Return plain values for JSON, with the per-question rows if asked for."""
        metrics = {m: None if (e := getattr(self, m)) is None else e.as_dict() for m in METRICS}
        rest = {"edit": self.edit, "cost": self.cost, **({"details": self.details} if details else {})}
        return {"name": self.name, **metrics, **rest}


@dataclass(frozen=True)
class Table:
    """Rows measured on the same questions with the same meters."""

    rows: tuple[Row, ...]
    setting: dict[str, Any]
    """Questions, convention and their fingerprints."""

    def __getitem__(self, name: str) -> Row:
        """Return the row of this name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise BadValue(f"no row {name!r}; the table has {', '.join(r.name for r in self.rows)}")

    def as_dict(self, *, details: bool = False) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"rows": [row.as_dict(details=details) for row in self.rows], "setting": self.setting}

    def to_markdown(self) -> str:
        """Return the table as Markdown; percentages with intervals in brackets, CE and KL in nats."""
        heads = ["", *HEADINGS.values()]
        lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
        lines += ["| " + " | ".join([row.name.replace("|", r"\|"), *cells(row)]) + " |" for row in self.rows]
        return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """Return the row's metrics as text."""
    return [_cell(getattr(row, m), percent=m not in ("ce", "kl")) for m in METRICS]


def table(
    model: Any,
    tokenizer: Any,
    questions: QuestionSet,
    edits: Sequence[Edit],
    *,
    judge: Judge = exact_judge,
    convention: Convention = "plain",
    texts: Sequence[str] | None = None,
    max_new_tokens: int = 50,
    keep: str | Path | None = None,
) -> Table:
    """Return a table with one row per edit, all measured on the same questions and neutral texts.

    Args:
        keep: a folder for the generated answers and their verdicts (`trimtab.evaluate.generate_answers`).

    Raises:
        BadValue: no edits, or two of one name.
    """
    names = [edit.name for edit in edits]
    if not names or len(set(names)) < len(names):
        raise BadValue(f"a table needs edits of different names, got {', '.join(names) or 'none'}")
    rows = []
    choices = multiple_choice_many(model, tokenizer, questions, edits, convention=convention)
    moving = [i for i, edit in enumerate(edits) if not only_prompts(edit)]
    moves = dict(zip(moving, drifts(model, tokenizer, [edits[i] for i in moving], texts=texts), strict=True))
    answers = generate_answers_many(
        model, tokenizer, questions, edits, judge=judge, max_new_tokens=max_new_tokens, keep=keep
    )
    for i, (edit, chosen, said) in enumerate(zip(edits, choices, answers, strict=True)):
        moved = moves.get(i)
        rows.append(
            Row(
                name=edit.name,
                true_info=said.true_info,
                true=said.true,
                info=said.informative,
                unmatched=said.unmatched,
                mc1=chosen.mc1,
                mc2=chosen.mc2,
                ce=moved.ce if moved else None,
                kl=moved.kl if moved else None,
                edit=edit.describe(),
                cost=asdict(edit.cost),
                details={
                    "generated": said.as_dict()["rows"],
                    "multiple_choice": chosen.as_dict()["rows"],
                    "drift": moved.as_dict()["per_text"] if moved else None,
                },
            )
        )
    setting = {"questions": questions.name, "n": len(questions), "fingerprint": questions.fingerprint}
    return Table(tuple(rows), {**setting, "convention": convention})


def pooled(rows: Sequence[Row], name: str) -> Row:
    """Return the mean row of several draws of the same kind; intervals are over draws, not questions.

    Raises:
        BadValue: no rows.
    """
    if not rows:
        raise BadValue(f"row {name!r} needs one row or more to pool, got none")

    def mean(metric: str) -> Estimate | None:
        values = [getattr(row, metric) for row in rows]
        return None if None in values else bootstrap_mean(values)

    metrics: dict[str, Any] = {m: mean(m) for m in METRICS}
    draws = {"kind": "draws", "draws": [row.edit for row in rows]}
    return Row(
        name=name, **metrics, edit=draws, cost=rows[0].cost, details={"draws": [r.as_dict(details=True) for r in rows]}
    )


def only_prompts(edit: Edit) -> bool:
    """Return whether the edit leaves the model as it is, so that it has neither CE nor KL of its own."""
    return isinstance(edit, Prompted | Retrieved)


def _cell(value: Estimate | None, *, percent: bool) -> str:
    if value is None:
        return "-"
    show: Callable[[float], str] = (lambda v: f"{100 * v:.1f}") if percent else (lambda v: f"{v:.3f}")
    return f"{show(value)} [{show(value.low)}, {show(value.high)}]"
