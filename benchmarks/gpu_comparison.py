"""How long a comparison takes beside the training steps: ten methods, two folds, on a random SmolLM2-135M, one process.

    python benchmarks/gpu_comparison.py --truthfulqa FOLDER --out benchmarks/results/gpu_comparison.json

FOLDER holds TruthfulQA's mc_task.json; folklore's questions are used without one. A random model never ends its
answers, so that each takes all of its tokens. `--tiny` tries it out on a tiny model, on the CPU too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from gpu_generation import SMOLLM2, model_of
from speed_common import command, questions_of, setting, trained_tokenizer

from trimtab.cells import table_lines
from trimtab.cli.setup import quiet
from trimtab.storage import write_json

CONFIG = """\
model: {model}
questions: {questions}
folds: 2
seeds: [0]
trials: {trials}
metric: mc1
max_new_tokens: 50
{sizes}
methods:
  - none
  - few-shot
  - retrieved few-shot
  - iti
  - iti probe
  - random direction: {{draws: 5}}
  - caa
  - lora:
      name: LoRA
      max_steps: {steps}
      grid: {{learning_rate: [1.0e-4, 2.0e-4, 4.0e-4, 8.0e-4, 0.0016, 0.0032]}}
  - heads:
      name: head offsets
      max_steps: {steps}
      grid: {{learning_rate: [0.001, 0.002, 0.004, 0.008, 0.016, 0.032]}}
  - full:
      name: full
      max_steps: {steps}
      grid: {{learning_rate: [5.0e-6, 1.0e-5, 2.0e-5, 4.0e-5, 8.0e-5, 1.6e-4]}}
"""
TUNED = ("LoRA", "head offsets", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu_comparison.json")
    parser.add_argument("--truthfulqa", help="a folder with mc_task.json")
    parser.add_argument("--steps", type=int, default=20, help="training steps of a trial, which are counted apart")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and two tries, to try the script out")
    options = parser.parse_args()
    quiet()
    questions = questions_of(options.truthfulqa)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tokenizer = trained_tokenizer(questions, 1000 if options.tiny else SMOLLM2["vocab_size"])
        model_of(options.tiny).save_pretrained(place / "model")
        tokenizer.save_pretrained(place / "model")
        file = str(Path(options.truthfulqa) / "mc_task.json") if options.truthfulqa else "folklore"
        sizes, trials, steps = ("limit: 24\ntest_limit: 8", 2, 2) if options.tiny else ("", 6, options.steps)
        said = CONFIG.format(model=place / "model", questions=file, sizes=sizes, trials=trials, steps=steps)
        (place / "comparison.yaml").write_text(said, encoding="utf-8")
        run = place / "run"
        started = time.perf_counter()
        verb = [str(Path(__file__).parent / "clocked.py"), "compare"]  # which tells where the seconds go, unit by unit
        subprocess.run(
            [sys.executable, *verb, "--config", str(place / "comparison.yaml"), "--out", str(run)], check=True
        )
        wall = time.perf_counter() - started
        result = {
            "command": command(),
            **setting(),
            "model": "tiny" if options.tiny else "random SmolLM2-135M, float32",
        }
        result |= {"questions": len(questions), "steps": options.steps, "wall_s": wall, **seconds_of(run, wall)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out.resolve(), result)
    rows = [[name, *(f"{part[what]:.1f}" for what in ("fit", "measure"))] for name, part in result["rows"].items()]
    print("\n".join(table_lines(["method", "fit, s", "trials measured, s"], rows)))
    print(f"wall {wall:.0f} s, training {result['training_s']:.0f} s, everything else {result['else_s']:.0f} s")


def seconds_of(run: Path, wall: float) -> dict[str, Any]:
    """Return what the trials' records say of seconds, by method, and what is left of the whole without training."""
    rows: dict[str, dict[str, float]] = defaultdict(lambda: {"fit": 0.0, "measure": 0.0})
    for file in sorted(run.rglob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        for what, taken in (record.get("seconds") or {}).items() if isinstance(record, dict) else ():
            rows[record["method"]][what] += taken
    training = sum(part["fit"] for name, part in rows.items() if name in TUNED)
    return {"rows": dict(rows), "training_s": training, "else_s": wall - training}


if __name__ == "__main__":
    main()
