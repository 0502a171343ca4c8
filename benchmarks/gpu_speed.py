"""trimtab's speed on one GPU, on a random LLaMA-7B: capture, multiple choice, probes, generation, ITI's whole protocol.

    python benchmarks/gpu_speed.py --truthfulqa FOLDER --out benchmarks/results/gpu_speed.json

FOLDER holds TruthfulQA's mc_task.json; folklore's questions are used without one. `--stages` chooses some stages,
`--tiny` runs everything on a tiny model, on the CPU too. The file is written after every stage.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from speed_common import (
    SIZES,
    Unshared,
    agreement,
    answer_pairs,
    bandwidth,
    command,
    harness_like,
    interleaved,
    plain_forward,
    questions_of,
    random_llama,
    random_shift,
    ratio,
    setting,
    synchronize,
    timed,
    trained_tokenizer,
    unshared,
)
from speed_protocol import protocol

from trimtab.cli.setup import quiet
from trimtab.engine.capture import capture_heads
from trimtab.engine.generate import compiled_steps
from trimtab.evaluate import multiple_choice, multiple_choice_many
from trimtab.probes.newton import newton_logistic
from trimtab.storage import write_json


class World:
    """The model and what is asked of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.size = "tiny" if options.tiny else "llama-7b"
        self.tiny = options.tiny
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.questions = questions_of(options.truthfulqa)
        if options.tiny:
            self.questions = self.questions[:24]
        self.tokenizer = trained_tokenizer(self.questions, SIZES[self.size][4])
        dtype = torch.float32 if options.tiny else torch.bfloat16
        self.model = random_llama(self.size, device=device, dtype=dtype)
        self.rounds = 2 if options.tiny else 3


def capture(w: World) -> dict[str, Any]:
    """Statements that share their questions, and prompts that share nothing, against plain forwards."""
    n_questions = 24 if w.tiny else len(w.questions)
    statements = w.questions[:n_questions].statements()
    ids = [w.tokenizer(s.text)["input_ids"] for s in statements]
    alone = Unshared(unshared(100 if w.tiny else 2000, SIZES[w.size][4]))
    jobs = {
        "plain 128": lambda: plain_forward(w.model, ids, 128),
        "trimtab": lambda: capture_heads(w.model, w.tokenizer, statements),
        "unshared plain 128": lambda: plain_forward(w.model, alone.rows, 128),
        "unshared trimtab": lambda: capture_heads(w.model, alone, alone.statements()),
    }
    seconds, results = interleaved(jobs, w.rounds)
    sample = ids[:: max(1, len(ids) // 100)]
    one, _ = timed(lambda: [plain_forward(w.model, [row], 1) for row in sample])
    return {
        "statements": len(ids),
        "tokens": sum(map(len, ids)),
        "tokens_computed": results["trimtab"].record["tokens_computed"],
        "seconds": seconds,
        "one at a time, scaled": one * len(ids) / len(sample),
        "trimtab / plain": ratio(seconds["trimtab"], seconds["plain 128"]),
        "unshared: trimtab / plain": ratio(seconds["unshared trimtab"], seconds["unshared plain 128"]),
    }


def choice(w: World) -> dict[str, Any]:
    """Six-shot multiple choice against the harness's own batching, and a sweep of 5 strengths x 4 head counts."""
    some = w.questions[: 8 if w.tiny else 60]
    pairs = answer_pairs(some)
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        peer = "lm-eval"

        def harness(batch_size: int) -> Any:
            lm = HFLM(pretrained=w.model, tokenizer=w.tokenizer, batch_size=batch_size)
            requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
            return [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    except ImportError:
        peer = "a re-implementation of HFLM.loglikelihood's batching (lm-eval is not installed here)"

        def harness(batch_size: int) -> Any:
            return harness_like(w.model, w.tokenizer, pairs, batch_size)

    jobs: dict[str, Any] = {f"harness {n}": lambda n=n: harness(n) for n in (8, 16, 32)}
    jobs["trimtab"] = lambda: multiple_choice(w.model, w.tokenizer, some, convention="lm-eval")
    seconds, results = interleaved(jobs, w.rounds)
    seconds["harness 1"] = [timed(lambda: harness(1))[0]]  # once: minutes, and far behind
    best = min((n for n in jobs if n != "trimtab"), key=lambda name: np.median(seconds[name]))
    shift = random_shift(w.size)
    sizes = [max(1, len(shift.heads) // n) for n in (8, 4, 2, 1)]
    edits = [shift.first(k).scaled(a) for k in sizes for a in (0.2, 0.4, 0.6, 0.8, 1.0)]
    jobs = {
        "sweep": lambda: multiple_choice_many(w.model, w.tokenizer, some, edits, convention="lm-eval"),
        "one setting": jobs[best],
    }
    in_turns, swept = interleaved(jobs, w.rounds)
    return {
        "peer": peer,
        "questions": len(some),
        "answers": len(pairs),
        "tokens_computed": results["trimtab"].tokens_computed,
        "dtype": str(w.model.dtype),
        "difference in this dtype": difference(results["trimtab"], results[best]),
        "difference in float32": exact_difference(w, some[:4]),
        "seconds": seconds,
        "best harness": best,
        "harness / trimtab": ratio(seconds[best], seconds["trimtab"]),
        "sweep": {
            "settings": len(edits),
            "seconds": in_turns["sweep"],
            "tokens_computed": swept["sweep"][0].tokens_computed,
            f"{best}, seconds for one setting": in_turns["one setting"],
            "harness, scaled from one setting, / trimtab": ratio(
                [len(edits) * s for s in in_turns["one setting"]], in_turns["sweep"]
            ),
        },
    }


def difference(result: Any, logprobs: list[float]) -> float:
    """Return the largest difference of log-probabilities."""
    ours = [a.logprob for row in result.rows for a in row.answers]
    return float(np.abs(np.array(ours) - np.array(logprobs)).max())


def exact_difference(w: World, questions: Any) -> float:
    """Return the largest difference in float32 (without TF32) from the harness's way, on a model of 4 layers."""
    torch.backends.cuda.matmul.allow_tf32 = False
    size = f"{w.size}, 4 layers"
    SIZES[size] = (min(4, SIZES[w.size][0]), *SIZES[w.size][1:])
    model = random_llama(size, device=w.model.device.type)
    result = multiple_choice(model, w.tokenizer, questions, convention="lm-eval")
    return difference(result, harness_like(model, w.tokenizer, answer_pairs(questions), 8))


def probes(w: World) -> dict[str, Any]:
    """One layer of a 7B model: batched Newton where the model lives, against scikit-learn's loop on this CPU."""
    n_heads, n, d = (4, 400, 32) if w.tiny else (32, 3200, 128)
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    x = rng.normal(size=(n, n_heads, d)) * np.geomspace(1, 1e-3, d) @ basis
    x[..., 0] *= 30
    y = x[:, 0, :8].sum(1) / x[:, 0, :8].sum(1).std() + rng.normal(size=n) > 0
    place, some = w.model.device, 4 if w.tiny else 8
    loops = {}
    for solver, options in {"lbfgs": {"max_iter": 1000}, "newton-cholesky": {"tol": 1e-8, "max_iter": 200}}.items():
        fits = [LogisticRegression(solver=solver, **options) for _ in range(some)]
        seconds, _ = timed(lambda fits=fits: [f.fit(x[:, h], y) for h, f in enumerate(fits)])
        loops[solver] = (seconds * n_heads / some, np.stack([f.coef_[0] for f in fits]))
    features, labels = torch.from_numpy(x).float(), torch.from_numpy(y)
    newton_logistic(features.to(place), labels)
    ours = [timed(lambda: newton_logistic(features.to(place), labels)) for _ in range(w.rounds)]
    exact = newton_logistic(features.double().to(place), labels).coef[:some].cpu().numpy()
    optimum = loops["newton-cholesky"][1]
    seconds = float(np.median([s for s, _ in ours]))
    return {
        "heads": n_heads,
        "statements": n,
        "seconds": seconds,
        "seconds for 32 layers": 32 * seconds,
        **{f"{name}, one head at a time on the CPU, scaled": value for name, (value, _) in loops.items()},
        **{f"{name} / trimtab": value / seconds for name, (value, _) in loops.items()},
        "largest coefficient": float(np.abs(optimum).max()),
        "from the optimum, float32": float(np.abs(ours[0][1].coef[:some].cpu().numpy() - optimum).max()),
        "from the optimum, float64": float(np.abs(exact - optimum).max()),
        "lbfgs from the optimum": float(np.abs(loops["lbfgs"][1] - optimum).max()),
    }


def generation(w: World) -> dict[str, Any]:
    """Tokens a second of plain and steered generation: eager, and compiled with a static cache."""
    new = 16 if w.tiny else 128
    shift = random_shift(w.size, strength=20.0)
    ids = torch.randint(3, SIZES[w.size][4], (1, 32), generator=torch.Generator().manual_seed(0)).to(w.model.device)

    def generate(batch: int = 1, **options: Any) -> torch.Tensor:
        rows = ids.expand(batch, -1)
        out = w.model.generate(
            rows, attention_mask=torch.ones_like(rows), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            **options,
        )  # fmt: skip
        return out[:, rows.shape[1] :]

    def steered(batch: int = 1) -> torch.Tensor:
        with shift.applied(w.model):
            return generate(batch)

    jobs = {"plain": generate, "steered": steered}
    if not w.tiny:
        jobs |= {"plain, batch 16": lambda: generate(16), "steered, batch 16": lambda: steered(16)}
    seconds, results = interleaved(jobs, 2 * w.rounds)  # the CPU bounds these, and its speed changes
    static = {"cache_implementation": "static"}
    with compiled_steps(w.model), shift.applied(w.model):
        first, _ = timed(lambda: generate(**static))
        timed(lambda: generate(**static))
        compiled = [timed(lambda: generate(**static)) for _ in range(w.rounds)]
    with compiled_steps(w.model):  # on its exit the model is an uncompiled one again
        unsteered_first, _ = timed(lambda: generate(**static))
        timed(lambda: generate(**static))
        unsteered = [timed(lambda: generate(**static)) for _ in range(w.rounds)]
    rate = new / float(np.median([s for s, _ in compiled]))
    limit = bandwidth(w.model.device) / (sum(p.numel() * p.element_size() for p in w.model.parameters()))
    return {
        "new tokens": new,
        "tokens/s": {name: (16 if "16" in name else 1) * new / float(np.median(s)) for name, s in seconds.items()},
        "steered / plain": ratio(seconds["steered"], seconds["plain"]),
        **({} if w.tiny else {"batch 16": ratio(seconds["steered, batch 16"], seconds["plain, batch 16"])}),
        "static steered, tokens/s": rate,
        "static plain, tokens/s": new / float(np.median([s for s, _ in unsteered])),
        "static steered / static plain, seconds": ratio([s for s, _ in compiled], [s for s, _ in unsteered]),
        "first call with compilation": [first, unsteered_first],
        "static steered over plain eager": rate / (new / float(np.median(seconds["plain"]))),
        "memory-bandwidth limit, tokens/s": limit,
        "share of the limit": rate / limit,
        "tokens equal to the hook's": agreement(compiled[0][1], results["steered"]),
        "tokens equal to unsteered": agreement(compiled[0][1], unsteered[0][1]),
    }


STAGES = {"capture": capture, "choice": choice, "probes": probes, "protocol": protocol, "generation": generation}
"""In this order: what generation compiles is the model's affair, so it comes last."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu_speed.json")
    parser.add_argument("--truthfulqa", help="folder that holds mc_task.json")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"some of {', '.join(STAGES)}")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script out")
    options = parser.parse_args()
    quiet()
    w = World(options)
    result = {"command": command(), **setting(), "model": w.size, "questions": w.questions.name}
    for name in options.stages.split(","):
        start = time.perf_counter()
        result[name] = STAGES[name](w)
        synchronize(w.model)
        result[name]["stage took"] = time.perf_counter() - start
        if torch.cuda.is_available():
            result[name]["peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.empty_cache()
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out.resolve(), result)
        print(f"{name}: {result[name]['stage took']:.0f} s", flush=True)
    for name in options.stages.split(","):
        print(f"\n{name}", *(f"  {key}: {value}" for key, value in result[name].items() if key != "seconds"), sep="\n")


if __name__ == "__main__":
    main()
