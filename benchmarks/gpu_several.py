"""Several GPUs of one host: a model spread over them, and processes that share the work, against one GPU alone.

    python benchmarks/gpu_several.py --truthfulqa FOLDER --out benchmarks/results/gpu_several.json

Models are random. "spread" is a 7B-wide model of 8 layers in float32 under `device="auto"`; "processes" is LLaMA-7B in
bf16, capture and multiple choice on TruthfulQA and a LoRA of the same optimiser batch, each GPU with a process and a
model of its own (torchrun, NCCL).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from speed_common import SIZES, command, questions_of, random_llama, random_shift, setting, trained_tokenizer

from trimtab import peft
from trimtab.cli.setup import quiet
from trimtab.edits.vectors import HeadShift
from trimtab.engine.capture import capture_heads
from trimtab.engine.capture_store import capture_to_store
from trimtab.evaluate import drift, generate_answers, multiple_choice
from trimtab.models import load_model
from trimtab.storage import write_json

SIZES["7b-wide, 8 layers"] = (8, *SIZES["llama-7b"][1:])


# --- a model over several devices -------------------------------------------------------------------------------------


def over_devices(tiny: bool, folder: str | None) -> dict[str, Any]:
    """Everything measured on a model that is spread, and on the same model on one GPU."""
    size = "tiny" if tiny else "7b-wide, 8 layers"
    questions = questions_of(folder)[:20]
    with tempfile.TemporaryDirectory() as saved:
        random_llama(size, device="cuda").save_pretrained(saved)
        trained_tokenizer(questions_of(folder), SIZES[size][4]).save_pretrained(saved)
        torch.cuda.empty_cache()
        alone = everything(*load_model(saved, device="cuda:0"), questions, random_shift(size))
        torch.cuda.empty_cache()
        model, tokenizer = load_model(saved, device="auto")
        devices = sorted({str(p.device) for p in model.parameters()})
        both = everything(model, tokenizer, questions, random_shift(size))
    far = {key: float((alone[key] - both[key]).abs().max()) for key in ("activations", "logprobs", "KL")}
    return {
        "devices": devices,
        "largest difference": far,
        "largest": {key: float(alone[key].abs().max()) for key in far},
        "answers that are equal": [a == b for a, b in zip(alone["answers"], both["answers"], strict=True)].count(True),
        "answers": len(alone["answers"]),
    }


def everything(model: Any, tokenizer: Any, questions: Any, shift: HeadShift) -> dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = False
    texts = [q.question for q in questions]
    scored = multiple_choice(model, tokenizer, questions, shift)
    return {
        "activations": capture_heads(model, tokenizer, questions.statements()).values,
        "logprobs": torch.tensor([a.logprob for row in scored.rows for a in row.answers]),
        "answers": [r.answer for r in generate_answers(model, tokenizer, questions, shift, max_new_tokens=20).rows],
        "KL": torch.tensor([kl for _, kl in drift(model, tokenizer, shift, texts=texts).per_text]),
    }


# --- several processes ------------------------------------------------------------------------------------------------


def worker(out: Path, size: str, folder: str | None) -> None:
    """What one process of a launch does; it writes what it found to `out`, under its rank."""
    rank, processes = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = f"cuda:{rank}" if torch.cuda.is_available() else "cpu"
    if device != "cpu":
        torch.cuda.set_device(device)
    questions = questions_of(folder)
    model = random_llama(size, device=device, dtype=torch.bfloat16)
    tokenizer = trained_tokenizer(questions, SIZES[size][4])
    multiple_choice(model, tokenizer, questions[:8])
    seconds: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - start
        return result

    store = timed("capture", lambda: capture_to_store(model, tokenizer, questions.statements(), out / "store"))
    scored = timed("multiple choice", lambda: multiple_choice(model, tokenizer, questions, random_shift(size)))
    values = store.load().values
    recipe = peft.Recipe(batch_size=32 // processes, max_steps=16, learning_rate=1e-4, precision="bf16")
    method = peft.LoRA(r=16, recipe=recipe)
    tuned = timed("LoRA, 16 steps of 32", lambda: method.fit(model, tokenizer, questions, seed=0))
    found = {
        "seconds": seconds,
        "activations": [float(values.double().mean()), float(values.double().square().mean())],
        "logprobs": [a.logprob for row in scored.rows for a in row.answers],
        "losses": tuned.record["losses"],
        "seconds of training alone": tuned.record["seconds"]["train"],
        "tokens_seen": tuned.record["tokens_seen"],
    }
    (out / f"found-{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def launched(processes: int, options: argparse.Namespace, out: Path, *launcher: str) -> dict[str, Any]:
    """Return what the first process of a launch found, or the end of what it said."""
    out.mkdir()
    command = [sys.executable, *launcher, str(Path(__file__).resolve()), "--worker", str(out)]
    command += ["--tiny"] if options.tiny else []
    command += ["--truthfulqa", options.truthfulqa] if options.truthfulqa else []
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    if ran.returncode or not (out / "found-0.json").is_file():
        return {"error": ran.stderr[-2000:]}
    return {"processes": processes, **json.loads((out / "found-0.json").read_text(encoding="utf-8"))}


def over_processes(options: argparse.Namespace) -> dict[str, Any]:
    """The same work by one process and by as many as there are GPUs."""
    n = torch.cuda.device_count() or 2
    with tempfile.TemporaryDirectory() as folder:
        one = launched(1, options, Path(folder) / "one")
        many = launched(n, options, Path(folder) / "many", "-m", "torch.distributed.run", "--standalone",
                        f"--nproc-per-node={n}")  # fmt: skip
    if "error" in one or "error" in many:
        return {"one": one, "many": many}
    pairs = {key: (torch.tensor(one.pop(key)), torch.tensor(many.pop(key))) for key in ("logprobs", "losses")}
    return {
        "one": one,
        "many": many,
        "largest difference": {key: float((a - b).abs().max()) for key, (a, b) in pairs.items()},
        "losses": [[float(side[0]), float(side[-1])] for side in pairs["losses"]],
        "times as fast": {key: s / many["seconds"][key] for key, s in one["seconds"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu_several.json")
    parser.add_argument("--truthfulqa", help="folder that holds mc_task.json")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script out")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if options.worker:
        worker(options.worker, "tiny" if options.tiny else "llama-7b", options.truthfulqa)
        return
    result: dict[str, Any] = {"command": command(), **setting()}
    result["gpus"] = torch.cuda.device_count()
    result["processes"] = over_processes(options)
    if result["gpus"]:
        result["spread"] = over_devices(options.tiny, options.truthfulqa)
    write_json(options.out.resolve(), result)
    print(json.dumps({key: result[key] for key in ("gpus", "spread", "processes") if key in result}, indent=1))


if __name__ == "__main__":
    main()
