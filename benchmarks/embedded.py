"""What ITI and LoRA do to the embedded model on folklore's final part: mean over three splits, with the controls.

    python benchmarks/embedded.py

Writes benchmarks/results/embedded.json: every split's table, and means over the splits with 95 % intervals (bootstrap
over questions, over neutral texts for CE and KL; splits and draws of the random control are averaged inside).
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.cells import MISSING, number, table_lines
from trimtab.cli.setup import quiet
from trimtab.compare.design import Parts
from trimtab.compare.statistics import Measurement, spread
from trimtab.datasets import folklore
from trimtab.embedded import EMBEDDED_FOLDER
from trimtab.evaluate.table import Table, columns_of, instruments
from trimtab.models import load_model
from trimtab.peft import LoRA
from trimtab.protocols import Meter
from trimtab.published.iti_run import ItiRun, ItiSettings, iti_run
from trimtab.storage import versions, write_json

SEEDS = (0, 1, 2)
DRAWS = 10


def alignment(run: ItiRun) -> list[float]:
    """Return each random draw's cosine with the ITI shift, over all heads together."""
    shift = torch.cat(list(run.shift.deltas.values()))
    drawn = [torch.cat([c.deltas[h] for h in run.shift.heads]) for c in run.controls]
    return [float(torch.nn.functional.cosine_similarity(shift, d, dim=0)) for d in drawn]


def main() -> None:
    quiet()
    model, tokenizer = load_model("embedded")
    final, runs, tables, started = folklore("final"), [], [], time.perf_counter()
    for seed in SEEDS:
        train, validation = folklore("development").split(test=0.4, seed=seed)
        tuned = LoRA(r=8).fit(model, tokenizer, train, seed=seed)
        run = iti_run(
            model, tokenizer, Parts(train, validation, final), ItiSettings(draws=DRAWS, seed=seed), others=[tuned]
        )
        tables.append(run.table)
        random = run.table["Random direction"].details["draws"]
        runs.append(
            {
                "seed": seed,
                "reading": run.reading,
                "chosen": run.shift.record["sweep"]["chosen"],
                **run.table.as_dict(),
                "lora": {key: tuned.record[key] for key in ("seconds", "steps", "tokens_seen", "losses")},
                "random_draws": {
                    "cosine_with_iti": alignment(run),
                    "true": [row["true"]["mean"] for row in random],
                },
            }
        )
        print(run.table.to_markdown(), run.reading, runs[-1]["random_draws"], sep="\n", flush=True)
    mean = mean_over_seeds(tables)
    reading = {key: float(np.mean([r["reading"][key] for r in runs])) for key in runs[0]["reading"]}
    record = json.loads((EMBEDDED_FOLDER / "record.json").read_text())
    result = {
        "command": "python benchmarks/embedded.py",
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": f"{torch.get_num_threads()} CPU threads",
        "seconds": round(time.perf_counter() - started),
        "weights_sha256": record["sha256"],
        "questions": folklore().fingerprint,
        "mean_over_seeds": mean,
        "reading": reading,
        "runs": runs,
    }
    write_json(Path(__file__).parent / "results" / "embedded.json", result)
    print(markdown(mean, run.table.meters), reading, sep="\n")


def mean_over_seeds(tables: Sequence[Table]) -> dict[str, dict[str, dict[str, Any] | None]]:
    """Return row -> metric -> mean, low and high over the seeds' tables; None where the row has no such measurement."""
    pooled: dict[str, dict[str, dict[str, Any] | None]] = {}
    for row in tables[0].rows:
        draws = {seed: drawn(table[row.name].details) for seed, table in enumerate(tables)}
        pooled[row.name] = {}
        for instrument in instruments(tables[0].meters):
            for meter in instrument.sums:
                values = {seed: measurements(details, instrument.name, meter) for seed, details in draws.items()}
                found = spread(values, meter.summary).as_dict() if any(values.values()) else None
                pooled[row.name][meter.name] = found
    return pooled


def drawn(details: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the details of a row's draws, or its own if it is not a row of draws."""
    return [d["details"] for d in details["draws"]] if "draws" in details else [details]


def measurements(draws: Sequence[Mapping[str, Any]], instrument: str, meter: Meter) -> list[Measurement]:
    """Return each draw's questions (or neutral texts) with the columns that the meter sums up."""
    several = [{str(place): row for place, row in enumerate(details[instrument] or ())} for details in draws]
    return [
        ([row.get("question", place) for place, row in rows.items()], columns_of(meter, rows))
        for rows in several
        if rows
    ]


def markdown(mean: Mapping[str, Mapping[str, Mapping[str, Any] | None]], meters: Sequence[Meter]) -> str:
    """Return the README's table: the means."""
    rows = (
        [name, *(MISSING if (e := row[m.name]) is None else number(e["mean"], m.unit) for m in meters)]
        for name, row in mean.items()
    )
    return "\n".join(table_lines(["", *(meter.heading for meter in meters)], rows))


if __name__ == "__main__":
    main()
