"""A comparison by several processes on one machine, to be called again until it is finished.

    python benchmarks/comparison.py --config benchmarks/editing.yaml --workers 8 --minutes 8.5 --out runs/editing

The workers share out the machine's GPUs. Packs the run folder into RUN.tar.gz beside it at the end and unpacks that at
the start, so that a machine that is lent for minutes can go on where another one stopped. `--tiny` runs two methods for
a minute, to see that all is in place.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import torch

TINY = """\
model: embedded
questions: folklore
limit: 24
test_limit: 8
folds: 1
seeds: [0]
trials: 1
max_new_tokens: 8
methods: [few-shot, lora: {max_steps: 2}]
"""


def main() -> None:
    asked = arguments()
    run, archive = asked.out, asked.out.with_suffix(".tar.gz")
    if archive.exists() and not run.exists():
        with tarfile.open(archive) as packed:
            packed.extractall(run.parent, filter="data")
    run.parent.mkdir(parents=True, exist_ok=True)
    config = asked.config
    if asked.tiny:
        config = run.parent / "tiny.yaml"
        config.write_text(TINY, encoding="utf-8")
    started = time.perf_counter()
    # a worker ends after the trial it is in; the rest of the time is for that
    command = [
        *(sys.executable, "-m", "trimtab", "compare", "--config", str(config)),
        *("--out", str(run), "--stop-after", str(60 * asked.minutes)),
        *(["--redo-changed"] if asked.redo_changed else []),
    ]
    threads = max(1, (os.cpu_count() or 1) // asked.workers)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    n_gpus = torch.cuda.device_count()
    workers = []
    for number in range(asked.workers):
        log = (run.parent / f"worker-{number}.log").open("a")
        # the first one alone forgets failures, before the others can write new ones
        again = ["--retry-failed"] if asked.retry_failed and number == 0 else []
        gpu = {"CUDA_VISIBLE_DEVICES": str(number % n_gpus)} if n_gpus else {}
        workers.append(
            subprocess.Popen([*command, *again], env={**environment, **gpu}, stdout=log, stderr=subprocess.STDOUT)
        )
        if again:
            time.sleep(30)
    codes = [worker.wait() for worker in workers]
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(run, arcname=run.name, filter=lambda entry: None if "/locks" in entry.name else entry)
    summary = summarise(run, asked, codes, time.perf_counter() - started)
    if asked.json:
        asked.json.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB; worker exit codes {codes}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("editing.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/editing"))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=8.5, help="start no trial after this")
    parser.add_argument("--json", type=Path, help="write the summary here")
    parser.add_argument("--retry-failed", action="store_true", help="try again what is recorded as failed")
    parser.add_argument("--redo-changed", action="store_true", help="do methods anew whose settings have changed")
    parser.add_argument("--tiny", action="store_true", help="two methods for a minute")
    return parser.parse_args()


def summarise(run: Path, asked: argparse.Namespace, codes: list[int], seconds: float) -> dict[str, object]:
    """Print how far the run has got and return the record of this call."""
    from trimtab.cells import table_lines
    from trimtab.compare import Comparison
    from trimtab.report.markdown import quality_cells, quality_headings, status

    comparison = Comparison.load(run)
    rows = comparison.rows(comparison.sizes[-1])
    print("\n".join(table_lines(quality_headings(comparison), (quality_cells(row, comparison) for row in rows))))
    notes = [f"{row.name}: {note}" for row in rows for note in row.notes]
    print(*notes[:20], status(comparison), sep="\n")
    return {
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "seconds": round(seconds),
        "workers": asked.workers,
        "exit_codes": codes,
        **comparison.as_dict(),
    }


if __name__ == "__main__":
    main()
