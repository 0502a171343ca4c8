"""Is the search of a comparison good enough? Every method's whole grid, measured once; then the search, replayed on it.

    python benchmarks/search_grid.py --workers 8 --out runs/search_grid

Every setting of every method in CONFIG is fitted in each fold and scored on the validation questions, and measured on
the final ones. The search that a comparison would make (8 tries) is then replayed with ten seeds on the scores that are
there, without measuring anew. May be killed and called again: what is measured is kept, and several machines may share
the folder. `--tiny` measures three methods on a few questions, to see that all is in place; `--replay` only replays.

In the table: seeds of ten in which the chosen setting is within 3 points of the grid's best on the same validation
questions (mean over folds); the mean gap there; the gap on the final questions, chosen minus the grid's best, with its
95 % interval over questions; and the best validation score that 1, 2, 4 and 8 tries are expected to find.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.cells import table_lines
from trimtab.cli.comparison_file import job_of, read_comparison_file
from trimtab.compare.bench import Bench, each
from trimtab.compare.design import Job, Unit
from trimtab.compare.records import RunFolder
from trimtab.compare.search import Search, Tried
from trimtab.compare.statistics import paired
from trimtab.evaluate import answer_meters
from trimtab.evaluate.table import columns_of
from trimtab.models.load.checkpoints import load_model
from trimtab.protocols import Ready, settings_of
from trimtab.storage import write_json

SEEDS, TRIES, NEAR = 10, 8, 0.03


def main() -> None:
    asked = arguments()
    job = job_read(asked)
    if asked.worker:
        measure(job, asked)
        return
    started = time.perf_counter()
    if not asked.replay:
        spawn(asked)
    found = {name: replayed(job, name, asked.out) for name in names(job, asked)}
    whole = {name: len(units(job, name)) * len(settings_of(job.fitted[name])) for name in found}
    left = sum(n - sum(len(grid_of(asked.out, u)) for u in units(job, name)) for name, n in whole.items())
    record = {
        "command": " ".join(sys.argv),
        "seconds": round(time.perf_counter() - started),
        "replayed_on": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "kl_budget": job.design.kl_budget,
        "tries": TRIES,
        "search_seeds": SEEDS,
        "missing": left,
        "methods": found,
    }
    write_json(asked.json or asked.out / "search_grid.json", record)
    print(f"{asked.json or asked.out / 'search_grid.json'}: {record['seconds']} s on {record['replayed_on']}")
    print(f"NOT FINISHED: {left} settings are missing; call again" if left else "Finished.")
    heads = ["", "settings", "of 10 within 3", "gap, validation", "gap, final [95 %]", "best of 1, 2, 4, 8 tries"]
    print("\n".join(table_lines(heads, [line(name, one) for name, one in found.items() if one])))


def line(name: str, one: dict[str, Any]) -> list[str]:
    gap, expected = one["final_gap"], one["expected_best"]
    within = f"{one['near']} of {SEEDS}" if one["near"] >= 9 else f"**{one['near']} of {SEEDS}**"
    return [
        name,
        str(one["settings"]),
        within,
        f"{100 * one['validation_gap']:.1f}",
        f"{100 * gap['mean']:+.1f} [{100 * gap['low']:.1f}, {100 * gap['high']:.1f}]",
        ", ".join(f"{100 * expected['mean'][n - 1]:.1f}" for n in (1, 2, 4, 8) if n <= len(expected["mean"])),
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("search_grid.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/search_grid"))
    parser.add_argument("--json", type=Path, help="write the record here; OUT/search_grid.json if not given")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--together", type=int, default=6, help="settings that are measured, and kept, together")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no part after this")
    parser.add_argument("--methods", nargs="*", help="only these rows, by name")
    parser.add_argument("--tiny", action="store_true", help="a few questions and three methods")
    parser.add_argument("--replay", action="store_true", help="measure nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def job_read(asked: argparse.Namespace) -> Job:
    said = read_comparison_file(asked.config)
    if asked.tiny:
        said = replace(said, limit=24, test_limit=8, methods=["instruction", "few-shot", "iti"], max_new_tokens=8)
    job = job_of(said)
    # what settings are chosen by, and multiple choice; how answers read and what is broken is not asked here
    meters = answer_meters(max_new_tokens=said.max_new_tokens, divide_texts=True)
    return replace(job, meters=tuple(m for m in meters if m.name not in ("ce", "kl", "kl95")))


def names(job: Job, asked: argparse.Namespace) -> list[str]:
    chosen = [name for name, method in job.fitted.items() if not isinstance(method, Ready)]
    return [name for name in chosen if not asked.methods or name in asked.methods]


def units(job: Job, name: str) -> list[Unit]:
    return [unit for unit in job.units if unit.method == name]


def folder_of(out: Path, unit: Unit) -> Path:
    return out / "grid" / f"{unit.method.replace('/', '-')} seed {unit.seed} fold {unit.fold}"


def grid_of(out: Path, unit: Unit) -> list[dict[str, Any]]:
    """Return what was measured of a unit's settings, in their order."""
    return [
        one for path in sorted(folder_of(out, unit).glob("*.json")) for one in json.loads(path.read_text())["results"]
    ]


def spawn(asked: argparse.Namespace) -> None:
    """Run the workers, spread over the GPUs that there are, and wait for them."""
    asked.out.mkdir(parents=True, exist_ok=True)
    n_gpus, threads = torch.cuda.device_count(), max(1, (os.cpu_count() or 1) // asked.workers)
    workers = []
    for number in range(asked.workers):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"CUDA_VISIBLE_DEVICES": str(number % n_gpus)} if n_gpus else {}
        log = (asked.out / f"worker-{number}.log").open("a")
        command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
        workers.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    codes = [worker.wait() for worker in workers]
    if any(codes):
        print(f"worker exit codes {codes}: see {asked.out}/worker-*.log")


def measure(job: Job, asked: argparse.Namespace) -> None:
    """Measure the parts that are missing and that no other worker is at."""
    ends = time.monotonic() + 60 * asked.minutes
    model, tokenizer = load_model(read_comparison_file(asked.config).model)
    bench = Bench(model, tokenizer, job, RunFolder(asked.out / "bench"))
    for name in names(job, asked):
        grid = settings_of(job.fitted[name])
        for unit in units(job, name):
            fit, parts = bench.fitter(unit, bench.job.parts(unit)), bench.job.parts(unit)
            for start in range(0, len(grid), asked.together):
                path = folder_of(asked.out, unit) / f"{start:03d}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.with_suffix(".lock").open("w") as lock:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue
                    if path.exists():
                        continue
                    if time.monotonic() > ends:
                        return
                    some = grid[start : start + asked.together]
                    write_json(
                        path, {"settings": [dict(k) for k in some], "results": results(bench, unit, fit, parts, some)}
                    )


def results(bench: Bench, unit: Unit, fit: Any, parts: Any, knobs: Sequence[Any]) -> list[dict[str, Any]]:
    """Return of each setting its validation score and drift, and the chooser's columns of every final question."""
    chooser = next(m for m in bench.job.meters if m.name == bench.job.design.choose_by)

    def measured(edits: list[Any]) -> list[dict[str, Any]]:
        scores = bench.scores(unit, edits, parts.validation)
        tested = bench.last_measurements(unit, edits, parts.test)
        columns = [columns_of(chooser, one["rows"]["generated"]).tolist() for one in tested]
        return [{"score": s["score"], "kl": s["kl"], "test": c} for s, c in zip(scores, columns, strict=True)]

    made = each(lambda several: [fit(one) for one in several], list(knobs))
    good = [edit for edit in made if not isinstance(edit, str)]
    found = iter(each(measured, good) if good else ())
    said = [edit if isinstance(edit, str) else next(found) for edit in made]
    return [one if isinstance(one, dict) else {"why": str(one)} for one in said]


def replayed(job: Job, name: str, out: Path) -> dict[str, Any] | None:
    """Return how ten searches of a method come out on its measured grid; None while a part of it is missing."""
    method, chooser = job.fitted[name], job.chooser
    summary = next(m for m in job.meters if m.name == job.design.choose_by).summary
    gaps, curves, ours, best, measured = np.zeros((SEEDS, 0)), [], [], [], []
    for unit in units(job, name):
        grid = grid_of(out, unit)
        if len(grid) < len(settings_of(method)):
            return None
        values: list[Any] = [None if one.get("score") is None else chooser.sign * one["score"] for one in grid]
        drift = [one.get("kl") or 0.0 for one in grid]
        measured.append({"score": [round(value or 0, 6) for value in values], "kl": [round(kl, 4) for kl in drift]})
        known = [i for i, value in enumerate(values) if value is not None]
        top = max(known, key=lambda i: (values[i], -drift[i], -i))
        runs = []
        for seed in range(SEEDS):
            order = tries(method, (seed, unit.seed, unit.fold), values, drift, job.design.kl_budget)
            told = [i for i in order if values[i] is not None]
            chosen = max(told, key=lambda i: (values[i], -drift[i], -order.index(i)))
            runs.append(
                (
                    values[top] - values[chosen],
                    [max(values[i] or 0.0 for i in order[: n + 1]) for n in range(len(order))],
                )
            )
            ours.append(np.array(grid[chosen]["test"]))
            best.append(np.array(grid[top]["test"]))
        gaps = np.column_stack([gaps, [gap for gap, _ in runs]])
        curves.append([curve for _, curve in runs])
    mine, theirs = ({str(i): row for i, row in enumerate(np.mean(side, axis=0))} for side in (ours, best))
    final, _ = paired(mine, theirs, summary)
    of_seed = np.mean(curves, axis=0)  # search seed, number of tries
    return {
        "settings": len(settings_of(method)),
        "shape": [len(values) for values in method.space.values()],
        # one line a fold, in the order of the settings: what the search may be tried on again
        "grid": [{name: " ".join(map(str, row)) for name, row in fold.items()} for fold in measured],
        "near": int((gaps.mean(1) <= NEAR + 1e-12).sum()),
        "near_in_each_fold": (gaps <= NEAR + 1e-12).sum(0).tolist(),
        "validation_gap": float(gaps.mean()),
        "final_gap": final.as_dict(),
        "expected_best": {"mean": of_seed.mean(0).tolist(), "between_seeds": of_seed.std(0, ddof=1).tolist()},
    }


def tries(
    method: Any, seed: Sequence[int], values: Sequence[float | None], drift: Sequence[float], budget: float
) -> list[int]:
    """Return the places in the grid that a search tries, given what each would come to."""
    search, tried, order = Search.of(method, TRIES, seed), [], []
    places = {json.dumps(dict(knobs), default=str): place for place, knobs in enumerate(search.grid)}
    for number in range(search.n):
        knobs = search.knobs(number, tried)
        place = places[json.dumps(dict(knobs), default=str)]
        order.append(place)
        tried.append(Tried(knobs, values[place], drift[place] <= budget))
    return order


if __name__ == "__main__":
    main()
