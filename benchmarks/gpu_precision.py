"""Every precision of a random LLaMA-7B on one GPU against one prompt at a time with plain hooks.

    python benchmarks/gpu_precision.py --out benchmarks/results/gpu_precision.json
    python benchmarks/gpu_precision.py --tiny            # the same on a tiny model, on whatever there is

For bfloat16, NF4 (with and without double quantisation), FP4 and int8: captured heads, a steered batch, each step of
steered generation and scores of answers, each against one prompt at a time; then the flash kernel, a static cache, and
a split between CPU and GPU against the model in one piece. Prints a table and the memory.

A difference is within tolerance if it is at most twice (`FACTOR`) the precision's own noise, which is measured on the
same model, unedited, one prompt at a time: eager attention against the fused kernel, and a plain padded batch against
single prompts. The control: the shift moves logits by more than the tolerance.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpu_reference import FACTOR, FLOOR, noise, one_by_one, relative, score, steered_by_hand, tolerances
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from trimtab.datasets import folklore
from trimtab.edits.vectors import HeadShift
from trimtab.embedded import EMBEDDED_FOLDER
from trimtab.engine.capture import capture_heads
from trimtab.evaluate import multiple_choice
from trimtab.models import load_model
from trimtab.models.adding import add_to_heads
from trimtab.models.heads import find_heads
from trimtab.probes import fit_mass_mean
from trimtab.protocols import TokenMask
from trimtab.steer import agreement, fit_shift
from trimtab.storage import versions, write_json

SPLIT = "bfloat16 split between CPU and GPU"
PRECISIONS = ("float32", "bfloat16", "nf4", "nf4-dq", "fp4", "int8")


def make_checkpoint(folder: Path, tiny: bool) -> None:
    size = (
        {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4} if tiny else {}
    )
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=2048, dtype="bfloat16", **size)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED_FOLDER).save_pretrained(folder)


def load(folder: Path, precision: str, **options: Any) -> tuple[Any, Any]:
    plain = precision in ("float32", "bfloat16")
    kind = {"dtype": precision} if plain else {"dtype": "bfloat16", "quantization": precision}
    model, tokenizer = load_model(folder, **kind, **options)
    model.generation_config.eos_token_id = None
    return model, tokenizer


def noise_of(model: Any, tokenizer: Any, questions: Any, n: int) -> dict[str, dict[str, float]]:
    """Return the unedited reference's noise on the statements that capturing is compared on."""
    statements = questions.statements()[:n]
    ids = [tokenizer(s.text)["input_ids"] for s in statements]
    return noise(model, ids, [len(tokenizer(s.prompt)["input_ids"]) for s in statements])


def check_precision(model: Any, tokenizer: Any, questions: Any, sizes: tuple[int, int]) -> tuple[dict, HeadShift, Any]:
    n_alone, n_new = sizes
    statements, found = questions.statements(), {}
    acts = capture_heads(model, tokenizer, statements)
    ids = [tokenizer(s.text)["input_ids"] for s in statements[:n_alone]]
    alone = one_by_one(model, ids)
    found["capture"] = relative(acts.values[:n_alone].flatten(2), alone)
    shift = fit_shift(acts, fit_mass_mean(acts), top_k=min(48, 4 * len(find_heads(model)))).scaled(15)

    prompts = [tokenizer(f"Q: {q.question}\nA:")["input_ids"] for q in questions[:4]]
    width = max(map(len, prompts))
    pad = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=model.device)
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    with torch.inference_mode(), shift.applied(model):
        out = model.generate(
            input_ids=pad, attention_mask=real, max_new_tokens=n_new, do_sample=False, output_logits=True,
            return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip
    steps, worst, moved = torch.stack(out.logits).float().cpu(), 0.0, 0.0
    for i, prompt in enumerate(prompts):
        whole = prompt + out.sequences[i, width:-1].tolist()
        expected = steered_by_hand(model, shift, whole, len(prompt) - 1)[len(prompt) - 1 :]
        plain = steered_by_hand(model, shift.scaled(0), whole, 0)[len(prompt) - 1 :]
        worst, moved = max(worst, relative(steps[:, i], expected)), max(moved, relative(expected, plain))
    found["generate"], found["the shift moves logits by"] = worst, moved

    rows, worst = multiple_choice(model, tokenizer, questions[:4], shift).rows, 0.0
    for row in rows:
        start = len(tokenizer(row.prompt)["input_ids"])
        for answer in row.answers:
            whole = tokenizer(f"{row.prompt} {answer.text}")["input_ids"]
            expected = score(steered_by_hand(model, shift, whole, start - 1), whole, start)
            worst = max(worst, abs(answer.logprob - expected) / abs(expected))
    found["score"] = worst
    found["constant after projection"] = constant(model, shift, prompts[0])
    return found, shift, acts


def constant(model: Any, shift: HeadShift, prompt: list[int]) -> float:
    """Return how far projection(x + delta) - projection(x) at the output is from the shift at the input."""
    ids, d_head = torch.tensor([prompt], device=model.device), shift.directions.shape[1]
    sites, moves = {s.layer: s for s in find_heads(model)}, {}
    for (layer, head), delta in shift.deltas.items():
        whole = moves.setdefault(layer, torch.zeros(1, 1, sites[layer].n_heads * d_head, device=model.device))
        whole[..., head * d_head : (head + 1) * d_head] += delta.to(whole)
    dtype = model.lm_head.weight.dtype
    with torch.inference_mode():
        with add_to_heads(model, shift.deltas, "all"):
            found = model(input_ids=ids).logits
        handles = []
        for layer, move in moves.items():
            project = sites[layer].module
            after = project(move.to(dtype)) - project(torch.zeros_like(move, dtype=dtype))
            handles.append(project.register_forward_hook(lambda *call, after=after: call[-1] + after))
        expected = model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    return relative(found.float(), expected.float())


def check_kernels_and_caches(model: Any, tokenizer: Any, shift: HeadShift) -> dict[str, float]:
    """Return the differences of the flash kernel, eager attention and a static cache from the default."""
    ids = torch.tensor([tokenizer("Q: What is the colour of the sky at noon?\nA: The sky is blue.")["input_ids"]])
    ids, found, mask = ids.to(model.device), {}, TokenMask()
    mask.value = torch.ones(ids.shape, dtype=torch.bool)
    options: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    options |= {"return_dict_in_generate": True, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode(), shift.applied(model, mask):
        default = model(input_ids=ids).logits.float()
        if torch.cuda.is_available():
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                found["flash kernel"] = relative(model(input_ids=ids).logits.float(), default)
        model.set_attn_implementation("eager")
        found["eager attention"] = relative(model(input_ids=ids).logits.float(), default)
        model.set_attn_implementation("sdpa")
    with torch.inference_mode(), shift.applied(model):
        dynamic = torch.stack(model.generate(ids, **options).logits).float()
        # without its compilation, which takes longer than all the rest
        out = model.generate(ids, cache_implementation="static", disable_compile=True, **options)
    # the first step is the same forward; later ones may follow another token where two were as likely
    static = torch.stack(out.logits).float()
    found["static cache, first step"] = relative(static[0], dynamic[0])
    same = (static.argmax(-1) == dynamic.argmax(-1)).flatten()
    upto = len(same) if bool(same.all()) else int((~same).int().argmax()) + 1
    found["static cache, common steps"] = relative(static[:upto], dynamic[:upto])
    return found


def check_split(folder: Path, whole_acts: Any, questions: Any, precision: str) -> dict[str, float]:
    """Return how far a model with half its layers in the CPU's memory is from the whole one."""
    if not torch.cuda.is_available():
        return {}
    n_layers = len(whole_acts.layers)
    parts = {"model.embed_tokens": 0, "model.norm": 0, "model.rotary_emb": 0, "lm_head": 0}
    layers = {f"model.layers.{i}": 0 if i < n_layers // 2 else "cpu" for i in range(n_layers)}
    model, tokenizer = load(folder, precision, device={**parts, **layers})
    n = 16
    acts = capture_heads(model, tokenizer, questions.statements()[:n], batch_size=n)
    on_meta = sum(p.device.type == "meta" for p in model.parameters())
    return {"capture": relative(acts.values, whole_acts.values[:n]), "parameters in CPU memory": on_meta}


def memory() -> dict[str, float]:
    if not torch.cuda.is_available():
        return {}
    return {"now_gb": torch.cuda.memory_allocated() / 1e9, "peak_gb": torch.cuda.max_memory_allocated() / 1e9}


def examined(folder: Path, precision: str, questions: Any, sizes: tuple[int, int], first: Any) -> tuple[dict, Any]:
    """Return what was found at one precision, and its activations; `first` are those to compare directions with."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    model, tokenizer = load(folder, precision)
    found: dict[str, Any] = {"load_seconds": time.perf_counter() - begun, "weights": memory()}
    checks, shift, acts = check_precision(model, tokenizer, questions, sizes)
    found["differences"], found["noise"] = checks, noise_of(model, tokenizer, questions, sizes[0])
    found["tolerance"] = tolerances(found["noise"])
    found["within_tolerance"] = {n: checks[n] <= found["tolerance"][n] for n in found["tolerance"]}
    found["control"] = checks["the shift moves logits by"] > found["tolerance"]["generate"]
    if first is not None:
        against = agreement(first[1], fit_mass_mean(first[1]), acts, fit_mass_mean(acts), top_k=8)
        found["directions"] = {
            "against": first[0], "median_cosine": float(against.cosine.median()),
            "lowest_cosine": float(against.cosine.min()), "overlap_top_8": against.overlap,
            "chance_overlap": against.chance_overlap,
        }  # fmt: skip
    if precision == "bfloat16":
        found["kernels_and_caches"] = check_kernels_and_caches(model, tokenizer, shift)
    found["memory"], found["seconds"] = memory(), time.perf_counter() - begun
    return found, acts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    options = parser.parse_args()
    started, results = time.perf_counter(), {}
    questions = folklore("development").split(test=0.25, seed=0)[1][: 4 if options.tiny else 40]
    sizes = (4, 4) if options.tiny else (16, 16)
    record: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/gpu_precision.py", *sys.argv[1:]]),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": {"python": platform.python_version(), **versions()},
        "statements": len(questions.statements()),
        "tolerance": f"{FACTOR} times the unedited reference's noise, at least {FLOOR}",
        "results": results,
    }

    def keep() -> None:  # after each precision, so that a run that is cut off loses nothing
        record["seconds"] = round(time.perf_counter() - started, 1)
        if options.out:
            write_json(options.out, record)

    first = kept = None
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name), options.tiny)
        for precision in options.precisions:
            results[precision], acts = examined(Path(name), precision, questions, sizes, first)
            first = (precision, acts) if first is None else first
            kept = acts if precision == "bfloat16" else kept
            print(precision, json.dumps(results[precision], indent=1), flush=True)
            keep()
        gc.collect()
        if kept is not None:
            results[SPLIT] = check_split(Path(name), kept, questions, "bfloat16")
    keep()
    print_table(record, options.precisions)


def print_table(record: dict[str, Any], precisions: list[str]) -> None:
    results = record["results"]
    print(f"\n{record['hardware']}, {record['seconds']} s; largest relative differences from one prompt at a time,")
    print(f"and in brackets what they may be: {record['tolerance']}")
    print("| precision | capture | generate | score | constant after projection | weights GB | peak GB | within |")
    print("|---|---|---|---|---|---|---|---|")
    for precision in precisions:
        r = results[precision]
        cells = [f"{r['differences'][k]:.2g} ({r['tolerance'][k]:.2g})" for k in r["tolerance"]]
        gigabytes = [r["weights"].get("now_gb", 0.0), r["memory"].get("peak_gb", 0.0)]
        cells += [f"{r['differences']['constant after projection']:.2g}", *(f"{v:.2f}" for v in gigabytes)]
        within = all(r["within_tolerance"].values()) and r["control"]
        print(f"| {' | '.join([precision, *cells, 'yes' if within else 'NO'])} |")
    print("kernels and caches:", results.get("bfloat16", {}).get("kernels_and_caches"))
    print("split between CPU and GPU:", results.get(SPLIT))


if __name__ == "__main__":
    main()
