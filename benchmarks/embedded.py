"""What ITI does to the embedded model on folklore's final part: mean over three splits, with its controls.

    python benchmarks/embedded.py

Writes benchmarks/results/embedded.json. Took 18 minutes on 2 busy cores.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from trimtab.cli.setup import quiet
from trimtab.compare import ItiRun, iti_run
from trimtab.compare.table import HEADINGS, METRICS
from trimtab.datasets import folklore
from trimtab.models import load_model
from trimtab.models.loading import embedded_folder
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
    final, runs, started = folklore("final"), [], time.perf_counter()
    for seed in SEEDS:
        train, validation = folklore("development").split(test=0.4, seed=seed)
        run = iti_run(model, tokenizer, train, validation, final, draws=DRAWS, seed=seed)
        random = run.table["Random direction"].details["draws"]
        runs.append(
            {
                "seed": seed,
                "reading": run.reading,
                "chosen": run.shift.record["sweep"]["chosen"],
                **run.table.as_dict(),
                "random_draws": {
                    "cosine_with_iti": alignment(run),
                    "true": [row["true"]["mean"] for row in random],
                },
            }
        )
        print(run.table.to_markdown(), run.reading, runs[-1]["random_draws"], sep="\n", flush=True)
    names = [row["name"] for row in runs[0]["rows"]]
    mean = {
        name: {
            m: float(np.mean([r["rows"][i][m]["mean"] for r in runs])) if runs[0]["rows"][i][m] else None
            for m in METRICS
        }
        for i, name in enumerate(names)
    }
    reading = {key: float(np.mean([r["reading"][key] for r in runs])) for key in runs[0]["reading"]}
    record = json.loads((embedded_folder() / "record.json").read_text())
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
    print(markdown(mean), reading, sep="\n")


def markdown(mean: dict[str, dict[str, float | None]]) -> str:
    """Return the README's table."""
    lines = [f"| | {' | '.join(HEADINGS.values())} |", "|" + " --- |" * 9]
    for name, row in mean.items():
        shown = ("-" if v is None else f"{v:.3f}" if m in ("ce", "kl") else f"{100 * v:.1f}" for m, v in row.items())
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
