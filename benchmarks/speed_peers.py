"""One way of doing one task, in a process of its own: some packages patch torch, others strip hooks.

Started by speed.py as `python speed_peers.py FOLDER TASK PEER`. Prints a JSON line when ready and after every turn.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed_common import Written, answer_pairs, plain_forward

Job = Callable[[], Any]


def capture_plain(w: Written) -> Job:
    ids = w.ids()
    return lambda: plain_forward(w.model, ids, 32)


def capture_trimtab(w: Written) -> Job:
    from trimtab.engine.capture import capture_heads

    order = sorted(range(len(w.statements)), key=lambda i: -len(w.tokenizer(w.statements[i].text)["input_ids"]))
    return lambda: capture_heads(w.model, w.tokenizer, w.statements).values[order].flatten(2)


def capture_pyvene(w: Written) -> Job:
    import pyvene

    n_layers = w.model.config.num_hidden_layers
    seen: dict[int, torch.Tensor] = {}
    last: list[torch.Tensor] = []

    def reader(layer: int) -> Callable[..., Any]:
        def read(base: torch.Tensor, source: Any) -> torch.Tensor:  # noqa: ARG001
            seen[layer] = base[torch.arange(len(base)), last[0]].clone()
            return base

        return read

    parts = [
        {"component": f"model.layers[{i}].self_attn.o_proj.input", "intervention": reader(i)} for i in range(n_layers)
    ]
    model = pyvene.IntervenableModel(parts, w.model)

    def run() -> torch.Tensor:
        found = []
        with torch.inference_mode():
            for ids, mask, ends in w.batches(32):
                last[:] = [ends]
                model({"input_ids": ids, "attention_mask": mask, "logits_to_keep": 1})
                found.append(torch.stack([seen[i] for i in range(n_layers)], 1))
        return torch.cat(found)

    return run


def capture_nnsight(w: Written) -> Job:
    import nnsight

    model = nnsight.LanguageModel(w.model, tokenizer=w.tokenizer)

    def run() -> torch.Tensor:
        found = []
        for ids, mask, ends in w.batches(32):
            rows = torch.arange(len(ids))
            with torch.inference_mode(), model.trace({"input_ids": ids, "attention_mask": mask}, logits_to_keep=1):
                z = nnsight.save([])
                for layer in model.model.layers:
                    z.append(layer.self_attn.o_proj.input[rows, ends])
            found.append(torch.stack(list(z), 1))
        return torch.cat(found)

    return run


def capture_transformer_lens(w: Written) -> Job:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(w.folder / "model"), dtype=torch.float32)

    def run() -> torch.Tensor:
        found = []
        with torch.inference_mode():
            for ids, _, ends in w.batches(32):
                _, cache = bridge.run_with_cache(ids, names_filter=lambda n: n.endswith("hook_z"), return_type=None)
                rows = torch.arange(len(ids))
                found.append(torch.stack([z[rows, ends].flatten(1) for z in cache.cache_dict.values()], 1))
        return torch.cat(found)

    return run


def capture_one_at_a_time(w: Written) -> Job:
    """As honest_llama captures: one prompt a forward, every token's activations copied before one is kept."""
    seen: dict[int, torch.Tensor] = {}
    for i, layer in enumerate(w.model.model.layers):
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, a, i=i: seen.__setitem__(i, a[0].cpu().clone()))

    def run() -> torch.Tensor:
        found = []
        with torch.inference_mode():
            for row in w.ids():
                w.model(torch.tensor([row]))
                found.append(torch.stack([seen[i][0, -1] for i in range(len(seen))]))
        return torch.stack(found)

    return run


def unshared_plain(w: Written) -> Job:
    return lambda: plain_forward(w.model, w.spec["unshared"], 32)


def unshared_trimtab(w: Written) -> Job:
    from gpu_speed import Unshared

    from trimtab.engine.capture import capture_heads

    made = Unshared(w.spec["unshared"])
    return lambda: capture_heads(w.model, made, made.statements()).values


def choice_trimtab(w: Written) -> Job:
    from trimtab.evaluate import multiple_choice

    def run() -> np.ndarray:
        result = multiple_choice(w.model, w.tokenizer, w.asked, convention="lm-eval")
        return np.array([a.logprob for row in result.rows for a in row.answers])

    return run


def choice_lm_eval(w: Written, batch_size: int) -> Job:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=w.model, tokenizer=w.tokenizer, batch_size=batch_size)
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(answer_pairs(w.asked))]
    return lambda: np.array([v for v, _ in harness.loglikelihood(requests, disable_tqdm=True)])


def shift_of(w: Written) -> Any:
    """Return a random shift on six heads of every layer."""
    from trimtab.activations import Head
    from trimtab.edits.vectors import HeadShift

    config = w.model.config
    heads = tuple(
        Head(i, h) for i in range(config.num_hidden_layers) for h in range(min(6, config.num_attention_heads))
    )
    generator = torch.Generator().manual_seed(0)
    units = torch.nn.functional.normalize(torch.randn(len(heads), config.head_dim, generator=generator), dim=1)
    return HeadShift(heads, units, torch.ones(len(heads)), 5.0)


def sweep_trimtab(w: Written) -> Job:
    """5 strengths x 4 head counts at once; the first setting is the unedited model, for the check."""
    from trimtab.edits.combined import NoEdit
    from trimtab.evaluate import multiple_choice_many

    shift = shift_of(w)
    sizes = [max(1, len(shift.heads) // n) for n in (8, 4, 2, 1)]
    edits = [shift.first(k).scaled(a) for k in sizes for a in (0.2, 0.4, 0.6, 0.8, 1.0)]

    def run() -> np.ndarray:
        first, *_ = multiple_choice_many(w.model, w.tokenizer, w.asked, [NoEdit(), *edits[1:]], convention="lm-eval")
        return np.array([a.logprob for row in first.rows for a in row.answers])

    return run


def generation(w: Written, mode: str) -> Job:
    from trimtab.edits.combined import NoEdit

    shift = shift_of(w)
    ids = torch.randint(3, w.model.config.vocab_size, (1, 32), generator=torch.Generator().manual_seed(0))
    new = w.spec["new_tokens"]

    edits = {
        "plain": lambda: NoEdit().applied(w.model),
        "trimtab generated": lambda: shift.applied(w.model),
        "trimtab all": lambda: shift.applied(w.model, positions="all"),
    }
    w.placed.enter_context(edits[mode]())  # stays until the process ends: placing it is not timed

    def run() -> None:
        with torch.inference_mode():
            w.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False
            )

    return run


def activations_of(w: Written, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one 7B layer: the embedded model's activations tiled, or features of a fixed correlated spectrum."""
    n, heads, d = w.spec["probes"]
    rng = np.random.default_rng(0)
    if kind == "correlated":
        basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
        x = rng.normal(size=(n, heads, d)) * np.geomspace(1, 1e-3, d) @ basis
        x[..., 0] *= 30
        y = x[:, 0, :8].sum(1) / x[:, 0, :8].sum(1).std() + rng.normal(size=n) > 0
        return torch.from_numpy(x).float(), torch.from_numpy(y)
    from trimtab.datasets import folklore
    from trimtab.engine.capture import capture_heads
    from trimtab.models import load_model

    model, tokenizer = load_model("embedded")
    acts = capture_heads(model, tokenizer, folklore()[: max(8, n // 4)].statements())
    flat = acts.values.flatten(1).repeat(1, 1 + heads * d // acts.values[0].numel())[:n, : heads * d]
    return flat.reshape(len(flat), heads, d), acts.labels[: len(flat)]


def probes(w: Written, kind: str, way: str) -> Job:
    from sklearn.linear_model import LogisticRegression

    from trimtab.probes.newton import newton_logistic

    x, y = activations_of(w, kind)
    if way == "trimtab":
        return lambda: newton_logistic(x, y).coef.numpy()
    options = {"lbfgs": {"max_iter": 1000}, "newton-cholesky": {}}[way]
    features, labels = x.numpy(), y.numpy()

    def run() -> np.ndarray:
        fits = [LogisticRegression(solver=way, **options).fit(features[:, h], labels) for h in range(x.shape[1])]
        return np.stack([f.coef_[0] for f in fits])

    return run


def answers(w: Written, batch_size: int | None) -> Job:
    """Answers for measuring; the check is of their lengths."""
    from trimtab.edits.combined import NoEdit
    from trimtab.engine.completion import completions

    prompts = [f"Q: {question.question}\nA:" for question in w.questions[: w.spec["choice"]]]
    form = {"max_new_tokens": w.spec["new_tokens"], "batch_size": batch_size}
    return lambda: list(map(len, completions(w.model, w.tokenizer, prompts, [NoEdit()], **form)[0]))


def report_trimtab(w: Written) -> Job:
    """Read a run of 20 units and write its page."""
    from made_run import made_run

    from trimtab.compare.comparison import Comparison
    from trimtab.report.html import write_report

    run = made_run(w.folder / "run", w.model, questions=w.spec["report"])

    def job() -> None:
        write_report(Comparison.load(run), w.folder / "report")

    return job


JOBS: dict[str, dict[str, Callable[[Written], Job]]] = {
    "capture": {
        "plain": capture_plain,
        "trimtab": capture_trimtab,
        "pyvene": capture_pyvene,
        "nnsight": capture_nnsight,
        "transformer-lens": capture_transformer_lens,
        "one at a time": capture_one_at_a_time,
    },
    "unshared": {"plain": unshared_plain, "trimtab": unshared_trimtab},
    "choice": {
        "trimtab": choice_trimtab,
        **{f"lm-eval {n}": lambda w, n=n: choice_lm_eval(w, n) for n in (1, 8, 16, 32)},
        "trimtab sweep of 20": sweep_trimtab,
    },
    "generation": {
        mode: lambda w, mode=mode: generation(w, mode) for mode in ("plain", "trimtab generated", "trimtab all")
    },
    **{
        f"probes, {kind}": {
            way: lambda w, kind=kind, way=way: probes(w, kind, way) for way in ("trimtab", "lbfgs", "newton-cholesky")
        }
        for kind in ("embedded", "correlated")
    },
    "answers": {"batches of 16": lambda w: answers(w, 16), "trimtab": lambda w: answers(w, None)},
    "report": {"trimtab": report_trimtab},
}


def values(result: Any) -> np.ndarray | None:
    """Return a result as an array, for the check of equality."""
    return None if result is None else np.asarray(result, dtype=np.float64)


def main(arguments: Sequence[str]) -> None:
    folder, task, peer = Path(arguments[0]), arguments[1], arguments[2]
    with contextlib.redirect_stdout(sys.stderr):  # packages print at import
        job = JOBS[task][peer](Written(folder))
        start = time.perf_counter()
        result = values(job())
        first = time.perf_counter() - start
    if result is not None:
        np.save(folder / f"{task}-{peer}.npy", result)
    print(json.dumps({"seconds": first}), flush=True)
    for _ in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            start = time.perf_counter()
            job()
            seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
