"""What full fine-tuning of bfloat16 weights loses, and where: float32 beside float32 copies that are rounded.

    python benchmarks/rounded_weights.py --out benchmarks/results/rounded_weights.json

On the embedded model, whose weights are rounded to bfloat16 before and, where copies are trained, after each step;
everything else is computed in float32. One process, half a minute; the table of docs/tuning.md is what it prints.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from speed_common import command, setting
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import get_linear_schedule_with_warmup

from trimtab.cells import table_lines
from trimtab.cli.setup import quiet
from trimtab.datasets import folklore
from trimtab.models import load_model
from trimtab.peft import Recipe
from trimtab.peft.train.examples import Encoded, encode_examples
from trimtab.storage import write_json

STEPS, BATCH, QUESTIONS, EXAMPLES = 6, 8, 8, 16
HEADINGS = {
    "float32": "loss falls by, in float32",
    "copies": "by the float32 copies",
    "copies_rounded": "by the copies, rounded",
    "float32_rounded": "by float32's result, rounded",
    "back": "weights that round back",
    "left": "what is left of the move",
}


def loss_of(model: Any, examples: Sequence[Encoded]) -> Tensor:
    """Return the mean loss of the examples' learned tokens."""
    losses = []
    for example in examples:
        ids = torch.tensor([example.ids])
        logits = model(ids, use_cache=False).logits[0, example.start - 1 : -1]
        losses.append(cross_entropy(logits, ids[0, example.start :], reduction="none"))
    return torch.cat(losses).mean()


def on_grid(weights: Sequence[Tensor]) -> list[Tensor]:
    return [w.bfloat16().float() for w in weights]


@torch.no_grad()
def put(model: Any, weights: Sequence[Tensor]) -> None:
    for parameter, values in zip(model.parameters(), weights, strict=True):
        parameter.copy_(values)


def trained(
    model: Any, start: Sequence[Tensor], examples: Sequence[Encoded], rate: float, *, rounded: bool
) -> list[Tensor]:
    """Return the weights after AdamW's steps as the recipe schedules it; `rounded`: gradients at rounded weights."""
    copies = [torch.nn.Parameter(w.clone()) for w in start]
    optimizer = torch.optim.AdamW(copies, rate, weight_decay=0.0)
    falling = get_linear_schedule_with_warmup(optimizer, math.ceil(STEPS * Recipe().warmup), STEPS)
    for step in range(STEPS):
        values = [c.detach() for c in copies]
        put(model, on_grid(values) if rounded else values)
        model.zero_grad()
        loss_of(model, [examples[(step * BATCH + i) % len(examples)] for i in range(BATCH)]).backward()
        for copy, parameter in zip(copies, model.parameters(), strict=True):
            copy.grad = parameter.grad
        clip_grad_norm_(copies, 1.0)
        optimizer.step()
        falling.step()
    return [c.detach() for c in copies]


@torch.no_grad()
def fall(model: Any, start: Sequence[Tensor], end: Sequence[Tensor], examples: Sequence[Encoded]) -> float:
    """Return by how much the loss is lower at the end."""
    losses = []
    for weights in (start, end):
        put(model, weights)
        losses.append(float(loss_of(model, examples)))
    return losses[0] - losses[1]


def row(model: Any, start: Sequence[Tensor], examples: Sequence[Encoded], rate: float) -> dict[str, float]:
    plain, copies = (trained(model, start, examples, rate, rounded=how) for how in (False, True))
    ends = {"float32": plain, "copies": copies, "copies_rounded": on_grid(copies), "float32_rounded": on_grid(plain)}
    moved, kept = (torch.cat([(e - s).flatten() for e, s in zip(end, start, strict=True)]) for end in
                   (copies, ends["copies_rounded"]))  # fmt: skip
    return {
        "rate": rate,
        **{name: fall(model, start, end, examples) for name, end in ends.items()},
        "back": float((kept[moved != 0] == 0).float().mean()),
        "left": float((kept.double() @ moved.double()) / moved.double().square().sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rounded_weights.json")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-5, 1e-4])
    options = parser.parse_args()
    quiet()
    model, tokenizer = load_model("embedded", device="cpu")
    model.float().eval()
    examples = encode_examples(model, tokenizer, folklore()[:QUESTIONS], Recipe()).encoded[:EXAMPLES]
    start = on_grid([p.detach() for p in model.parameters()])
    rows = [row(model, start, examples, rate) for rate in options.rates]
    write_json(options.out.resolve(), {"command": command(), **setting(), "examples": len(examples), "rows": rows})
    print("\n".join(table(rows)))


def table(rows: Sequence[dict[str, float]]) -> list[str]:
    """Return the lines of docs/tuning.md's table."""
    shown = [
        [f"{one['rate']:.0e}".replace("e-0", "e-")]
        + [f"{100 * one[n]:.0f} %" if n in ("back", "left") else f"{one[n]:.3f}" for n in HEADINGS]
        for one in rows
    ]
    return table_lines(["learning rate", *HEADINGS.values()], shown)


if __name__ == "__main__":
    main()
