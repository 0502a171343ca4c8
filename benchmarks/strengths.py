"""One question at several strengths of one edit, with the drift of each: the README's picture, and its record.

    trimtab fit --model smollm2 --data examples/cheerful_grumpy.jsonl --out runs/cheerful
    python benchmarks/strengths.py --model smollm2 --edit runs/cheerful    # asks, writes the record, draws
    python benchmarks/strengths.py --draw                                  # draws the record that is there

Strengths are multiples of the one that `fit` chose. The question stands in none of the pairs.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from trimtab.datasets.behaviours import BEHAVIOURS, behaviour
from trimtab.storage import versions, write_json

RECORD = Path("benchmarks/results/strengths.json")
PICTURE = Path("docs/images/strengths.png")
TIMES = (0.0, 0.5, 1.0, 3.0, 9.0)
SHADES = ("#f4f4f4", "#e8f2ec", "#d3ebdd", "#fbeecb", "#f6d5c8")


def measured(said: argparse.Namespace) -> dict[str, Any]:
    """Return the record: the answer, its count and the drift at every strength."""
    from trimtab.edits.disk import load_edit
    from trimtab.evaluate import answers, drifts
    from trimtab.models import load_model

    model, tokenizer = load_model(said.model)
    of, shift = behaviour(said.behaviour), load_edit(said.edit)
    edits = [shift.scaled(times) for times in TIMES]
    moved = drifts(model, tokenizer, edits, texts=said.texts)
    rows = []
    for times, edit, drift in zip(TIMES, edits, moved, strict=True):
        (text,) = answers(model, tokenizer, [said.question], edit, settings={"max_new_tokens": said.new_tokens})
        rows.append({
            "times": times, "strength": float(edit.strength), "kl": float(drift.kl), "counted": of.count(text),
            "answer": text,
        })  # fmt: skip
    return {
        "command": f"python benchmarks/strengths.py --model {said.model} --edit {said.edit}", "model": said.name,
        "question": said.question, "behaviour": of.name, "counted": of.counted, "unit": of.unit,
        "edit": shift.describe(), "fit": fit_of(shift), "rows": rows,
        "device": str(model.device), "versions": versions(),
    }  # fmt: skip


def fit_of(shift: Any) -> dict[str, Any]:
    """Return what `fit` said of the shift, and what it tried."""
    from trimtab.steer.outcome import outcome_of

    sweep = shift.record["sweep"]
    tried = [{k: v for k, v in trial.items() if k != "answers"} for trial in sweep["trials"]]
    return {**outcome_of(sweep).as_dict(), "repeats": sweep["repeats"], "trials": tried}


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the record: a bar for every strength, as long as its answer, with the drift beside it."""
    from matplotlib.figure import Figure

    rows = [(row, lines_of(" ".join(row["answer"].split()) + " ...")) for row in record["rows"]]
    height = sum(0.34 + 0.21 * len(lines) for _, lines in rows)
    figure = Figure(figsize=(9.5, 0.5 + height))
    axes = figure.add_axes((0.01, 0.01, 0.98, height / (0.5 + height)))
    axes.set_axis_off()
    top = 0.0
    for (row, lines), shade in zip(rows, SHADES, strict=True):
        height = 0.34 + 0.21 * len(lines)
        axes.axhspan(-top - height + 0.05, -top, color=shade)
        middle = -top - height / 2 + 0.025
        label = "unedited" if not row["times"] else f"{row['times']:g} x"
        axes.text(0.012, middle, label, va="center", fontsize=12, fontweight="bold")
        axes.text(0.125, middle, f"KL {row['kl']:.2f}", va="center", fontsize=10, color="#555555")
        axes.text(0.21, middle, "\n".join(lines), va="center", fontsize=10.5)
        top += height
    axes.set(xlim=(0, 1), ylim=(-top, 0))
    axes.set_title(
        f"\N{LEFT DOUBLE QUOTATION MARK}{record['question']}\N{RIGHT DOUBLE QUOTATION MARK}  "
        f"{record['model']}, one direction ({record['behaviour']}) at five strengths",
        loc="left", fontsize=12,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def lines_of(text: str) -> list[str]:
    """Return a text in lines of the picture's width, where a capital takes the room of one and a half letters."""
    return textwrap.wrap(text, int(92 * len(text) / sum(1.5 if c.isupper() else 1 for c in text)))[:3]


def main() -> None:
    """Measure if asked to, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="as `load_model` takes it")
    parser.add_argument("--name", default="SmolLM2-135M-Instruct", help="what the record calls it")
    parser.add_argument("--edit", default="runs/cheerful", help="as `trimtab fit` wrote it")
    parser.add_argument("--behaviour", default="cheerful", choices=BEHAVIOURS, help="what is counted")
    parser.add_argument("--question", default="How was your day?")
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--texts", type=int, default=16, help="neutral texts for the drift")
    parser.add_argument("--draw", action="store_true", help="only draw the record that is there")
    said = parser.parse_args()
    if not said.draw:
        from trimtab.datasets.prose import neutral_texts

        said.texts = neutral_texts()[: said.texts]
        write_json(RECORD, measured(said))
    draw(json.loads(RECORD.read_text(encoding="utf-8")), PICTURE)


if __name__ == "__main__":
    main()
