"""Weights split over the GPUs of one host (FSDP2) against a whole model on each (DDP).

    python benchmarks/gpu_sharded.py --out benchmarks/results/gpu_sharded.json

"agreement" is a 7B-wide model of 2 layers in float32, tuned both ways from the same start: how far losses and what was
learned differ, also with shards kept in the CPU's memory and with gathered weights kept between forward and backward.
"size" is LLaMA-7B, loaded on the CPU by every process: full fine-tuning in float32, for which one GPU has no room, and
a LoRA of the bfloat16 model. Each launch is a process a GPU (accelerate launch, NCCL). Models are random.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from speed_common import SIZES, command, questions_of, random_llama, setting, trained_tokenizer

from trimtab import peft
from trimtab.cli.setup import quiet
from trimtab.errors import TrimtabError
from trimtab.peft import TunedEdit
from trimtab.storage import write_json

SIZES["7b-wide, 2 layers"] = (2, *SIZES["llama-7b"][1:])
METHODS = {
    "full fine-tuning": lambda recipe: peft.FullFineTuning(recipe=recipe),
    "LoRA r=16": lambda recipe: peft.LoRA(r=16, recipe=recipe),
    "Pfeiffer adapter w=16": lambda recipe: peft.Bottleneck(recipe=recipe),
    "Prefix tuning n=10": lambda recipe: peft.PrefixTuning(recipe=recipe),
    "IA3": lambda recipe: peft.IA3(recipe=recipe),
}
LAUNCHES = {
    "whole": {},
    "split": {"fsdp": "true"},
    "split, offloaded": {"fsdp": "true", "fsdp_offload_params": "true"},
    "split, kept gathered": {"fsdp": "true", "fsdp_reshard_after_forward": "false"},
}


def worker(jobs: list[dict[str, Any]], out: Path) -> None:
    """What one process of a launch does, job by job; it writes what it found to `out`, under its rank."""
    rank, gpu = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.is_available()
    device = f"cuda:{rank}" if gpu else "cpu"
    if gpu:
        torch.cuda.set_device(rank)
        torch.backends.cuda.matmul.allow_tf32 = False
    found = []
    for i, job in enumerate(jobs):
        questions = questions_of(None)
        model = random_llama(job["size"], device=device, dtype=getattr(torch, job["dtype"]))
        model = model.to("cpu" if job["on the CPU"] else device)
        gc.collect()
        torch.cuda.empty_cache()
        tokenizer = trained_tokenizer(questions, SIZES[job["size"]][4])
        method = METHODS[job["method"]](peft.Recipe(**job["recipe"]))
        try:
            edit = method.fit(model, tokenizer, questions)
        except TrimtabError as refusal:
            found.append({"refused": str(refusal)})
        else:
            keys = ("losses", "seconds", "tokens_seen", "peak_bytes")
            found.append({key: edit.record[key] for key in keys})
            found[-1]["planned_bytes"] = edit.record["plan"]["estimated_peak_bytes"]
            if rank == 0 and job["keep"]:
                edit.save(out / f"edit-{i}")
            del edit
        del model
    (out / f"found-{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def launched(jobs: list[dict[str, Any]], launch: str, out: Path, processes: int) -> list[dict[str, Any]]:
    """Return what the first process found, job by job; or the end of what was said."""
    out.mkdir()
    options = {"num_processes": str(processes), "num_machines": "1", "mixed_precision": "no", "dynamo_backend": "no"}
    said = dict(LAUNCHES[launch])
    kind = ["--use_fsdp", "--fsdp_version=2"] if said.pop("fsdp", None) else ["--multi_gpu"]
    line = [sys.executable, "-m", "accelerate.commands.launch", *kind]
    line += [f"--{k}={v}" for k, v in {**options, **said}.items()]
    line += [str(Path(__file__).resolve()), "--worker", str(out), "--jobs", json.dumps(jobs)]
    threads = str(max(1, (os.cpu_count() or 2) // processes))
    ran = subprocess.run(
        line, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "OMP_NUM_THREADS": threads}
    )
    if ran.returncode or not (out / "found-0.json").is_file():
        return [{"error": ran.stderr[-1500:]}] * len(jobs)
    return json.loads((out / "found-0.json").read_text(encoding="utf-8"))


def agreement(tiny: bool, processes: int) -> list[dict[str, Any]]:
    """Every method split and whole."""
    recipe = {"batch_size": 4, "max_steps": 6, "learning_rate": 1e-4}
    job = {"size": "tiny" if tiny else "7b-wide, 2 layers", "dtype": "float32", "on the CPU": False, "keep": True}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for launch in LAUNCHES:
            methods = list(METHODS)[: 5 if launch in ("whole", "split") else 2]
            jobs = [{**job, "method": method, "recipe": recipe} for method in methods]
            found = launched(jobs, launch, Path(folder) / launch, processes)
            for i, (method, one) in enumerate(zip(methods, found, strict=True)):
                if launch == "whole":
                    continue
                edits = [Path(folder) / x / f"edit-{i}" for x in ("whole", launch)]
                row = {"method": method, "launch": launch}
                row |= _difference(*map(TunedEdit.load, edits)) if all(e.is_dir() for e in edits) else one
                rows.append(row)
                print(row, flush=True)
    return rows


def _difference(whole: TunedEdit, split: TunedEdit) -> dict[str, Any]:
    losses = torch.tensor(whole.record["losses"]), torch.tensor(split.record["losses"])
    far = max(float((whole.tensors[k] - split.tensors[k]).abs().max()) for k in whole.tensors)
    return {
        "losses": [whole.record["losses"][i] for i in (0, -1)],
        "largest difference of a loss": float((losses[0] - losses[1]).abs().max()),
        "largest difference of a number": far,
    }


def sizes(tiny: bool, processes: int) -> list[dict[str, Any]]:
    """LLaMA-7B: time and memory; short rows, so that the weights' share of both is seen."""
    recipe = {"batch_size": 8, "max_steps": 30, "learning_rate": 1e-5, "checkpointing": True}
    job = {"size": "tiny" if tiny else "llama-7b", "recipe": recipe, "keep": False}
    pairs = (("full fine-tuning", "float32"), ("LoRA r=16", "bfloat16"))
    rows: list[dict[str, Any]] = []
    for launch in ("whole", "split"):
        # LoRA first: what out-of-memory leaves behind is not in its way
        jobs = [{**job, "method": m, "dtype": d, "on the CPU": launch == "split"} for m, d in reversed(pairs)]
        with tempfile.TemporaryDirectory() as folder:
            found = launched(jobs, launch, Path(folder) / "run", processes)
        for one, result in zip(jobs, found, strict=True):
            rows.append({key: one[key] for key in ("method", "dtype", "on the CPU")} | {"launch": launch, **result})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu_sharded.json")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script out")
    parser.add_argument("--only", choices=("agreement", "size"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if options.worker:
        worker(options.jobs, options.worker)
        return
    processes = torch.cuda.device_count() or 2
    result: dict[str, Any] = {"command": command(), **setting(), "gpus": torch.cuda.device_count()}
    for name, measure in (("agreement", agreement), ("size", sizes)):
        if options.only in (None, name):
            result[name] = measure(options.tiny, processes)
            write_json(options.out.resolve(), result)


if __name__ == "__main__":
    main()
