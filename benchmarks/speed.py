"""trimtab's speed on the CPU beside its peers, each in its own process, in turns, after a check that results agree.

    python benchmarks/speed.py --out benchmarks/results/speed.json

`--truthfulqa FOLDER` asks TruthfulQA's questions (mc_task.json) instead of folklore's; `--tiny` tries the script out.
Writes the JSON, and with `--docs FOLDER` a table (benchmarks.md) and a chart (images/benchmarks.png) for the docs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed_common import SIZES, command, questions_of, random_llama, ratio, setting, trained_tokenizer, unshared
from speed_peers import JOBS
from speed_report import chart, markdown

from trimtab.storage import write_json

REFERENCE = {
    "capture": "plain",
    "unshared": "plain",
    "choice": "trimtab",
    "generation": "plain",
    "answers": "batches of 16",
}
"""What the other peers of a task are divided by; for probes it is trimtab."""
TOLERANCE = {"capture": 1e-4, "unshared": 1e-4, "choice": 1e-4, "answers": 0.0}
TOLERANCE |= {"probes, embedded": 5e-3, "probes, correlated": 5e-3}
INEXACT = {"lbfgs"}
"""Stops before the optimum on correlated features (reference: scikit-learn's own newton-cholesky); not compared."""


class Peer:
    """A process that runs one job whenever it is told to."""

    def __init__(self, folder: Path, task: str, name: str, log: Path) -> None:
        here = Path(__file__).parent
        command = [sys.executable, str(here / "speed_peers.py"), str(folder), task, name]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.errors = log.open("w")
        self.process = subprocess.Popen(command, stderr=self.errors, env={**os.environ, "HF_HUB_OFFLINE": "1"}, **pipes)
        self.log = log

    def reply(self) -> dict[str, Any] | None:
        """Return the next line that the process prints, or None if it ended."""
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def turn(self) -> float:
        """Run the job once and return its seconds."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        said = self.reply()
        if said is None:
            raise RuntimeError(f"a peer stopped: {self.log.read_text()[-2000:]}")
        return said["seconds"]

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def write_world(folder: Path, options: argparse.Namespace) -> None:
    size = "tiny" if options.tiny else "small"
    questions = questions_of(options.truthfulqa)
    tokenizer = trained_tokenizer(questions, SIZES[size][4])
    random_llama(size).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    spec = {
        "truthfulqa": options.truthfulqa,
        "capture": 6 if options.tiny else 30,
        "choice": 3 if options.tiny else 60,
        "unshared": unshared(20 if options.tiny else 256, SIZES[size][4]),
        "new_tokens": 8 if options.tiny else 64,
        "report": 20 if options.tiny else 817,
        "probes": [200, 4, 32] if options.tiny else [3200, 32, 128],
    }
    (folder / "spec.json").write_text(json.dumps(spec))


def measured(folder: Path, task: str, rounds: int) -> dict[str, Any]:
    """Return a task's seconds by peer, their differences in results, and their ratios."""
    peers: dict[str, Peer] = {}
    failed: dict[str, str] = {}
    first: dict[str, float] = {}
    for name in JOBS[task]:  # one after the other, so that the first runs are alone, too
        peer = Peer(folder, task, name, folder / f"{task}-{name}.log")
        said = peer.reply()
        if said is None:
            failed[name] = peer.log.read_text().strip().splitlines()[-1]
        else:
            peers[name], first[name] = peer, said["seconds"]
    differences = compared(folder, task, peers)
    harness = sorted((name for name in peers if name.startswith("lm-eval")), key=first.__getitem__)
    # the harness takes minutes: only its fastest batch size goes into the rounds, the others count with their first run
    seconds: dict[str, list[float]] = {name: [first[name]] for name in harness[1:]}
    for name in harness[1:]:
        peers.pop(name).close()
    seconds |= {name: [] for name in peers}
    rounds = min(rounds, 2) if harness else rounds
    for number in range(rounds):
        for name in list(peers)[:: 1 if number % 2 else -1]:
            seconds[name].append(peers[name].turn())
    for peer in peers.values():
        peer.close()
    reference = REFERENCE.get(task, "trimtab")
    return {
        "seconds": seconds,
        "median": {name: float(np.median(s)) for name, s in seconds.items()},
        "reference": reference,
        "ratio to reference": {name: ratio(seconds[name], seconds[reference]) for name in peers if name != reference},
        "seconds of the first run": first,
        "largest difference from trimtab": differences,
        "failed": failed,
    }


def difference(one: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of two results."""
    return float(np.abs(one.reshape(expected.shape) - expected).max())


def allowed(task: str, expected: np.ndarray) -> float:
    """Return how far a peer's results may be from what is expected."""
    return TOLERANCE[task] * (1.0 if task == "choice" else max(1.0, float(np.abs(expected).max())))


def compared(folder: Path, task: str, peers: dict[str, Peer]) -> dict[str, float]:
    """Return every peer's largest difference from trimtab's results; refuse to time those that differ."""
    ours = folder / f"{task}-trimtab.npy"
    if not ours.exists():
        return {}
    expected = np.load(ours)
    found = {}
    for name in list(peers):
        path = folder / f"{task}-{name}.npy"
        if name == "trimtab" or not path.exists():
            continue
        found[name] = difference(np.load(path), expected)
        if not found[name] <= allowed(task, expected) and name not in INEXACT:
            raise SystemExit(f"{task}: {name} differs from trimtab by {found[name]:.2g}; no times are reported")
    return found


def peer_versions() -> dict[str, str]:
    found = {}
    for name in ("pyvene", "nnsight", "transformer-lens", "lm-eval"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed.json")
    parser.add_argument("--truthfulqa", help="folder that holds mc_task.json")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tasks", help="only these, separated by semicolons, for the record that is there")
    parser.add_argument("--docs", type=Path, help="the docs' folder, for the table and the chart")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script out")
    options = parser.parse_args()
    if options.truthfulqa:
        options.truthfulqa = str(Path(options.truthfulqa).resolve())
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    tasks = options.tasks.split(";") if options.tasks else list(JOBS)
    held = json.loads(options.out.read_text(encoding="utf-8")) if options.tasks and options.out.is_file() else {}
    result: dict[str, Any] = {
        "command": command(),
        **setting(),
        "peers": peer_versions(),
        "model": "tiny" if options.tiny else "random Llama, 8 layers x 8 heads x 64, float32",
        "questions": questions_of(options.truthfulqa).name,
        "tasks": {},
    }
    if held:
        if any(held[what] != result[what] for what in ("versions", "hardware", "model", "questions")):
            raise SystemExit(f"{options.out} is of other versions, or of something else: measure all tasks again")
        result = {**held, "later": [*dict.fromkeys([*held.get("later", ()), *tasks])]}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_world(folder, options)
        for task in tasks:
            result["tasks"][task] = measured(folder, task, options.rounds)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.out.resolve(), result)
            print(f"{task}: {result['tasks'][task]['median']} {result['tasks'][task]['failed'] or ''}", flush=True)
    print(markdown(result))
    if options.docs:
        (options.docs / "images").mkdir(parents=True, exist_ok=True)
        (options.docs / "benchmarks.md").write_text(
            markdown(result) + "\n\n![Seconds by tool](images/benchmarks.png)\n", encoding="utf-8"
        )
        chart(result).savefig(options.docs / "images" / "benchmarks.png", dpi=150)


if __name__ == "__main__":
    main()
