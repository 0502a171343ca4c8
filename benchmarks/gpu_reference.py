"""One prompt at a time with plain hooks: what gpu_precision.py compares with, and how far that is from itself.

A precision's noise is what changes in the unedited model when nothing but the order of sums does: attention by eager
matrices instead of the fused kernel, and prompts in one padded batch instead of one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trimtab.edits.vectors import HeadShift

FACTOR, FLOOR = 2.0, 1e-4
"""A difference may be so many times the noise; where that is smaller (float32), this share of the largest value."""


@contextmanager
def plain_hooks(model: Any, hook: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    """The reference: pre-hooks written out on modules named by hand."""
    handles = [layer.self_attn.o_proj.register_forward_pre_hook(hook(i)) for i, layer in enumerate(model.model.layers)]
    yield
    for handle in handles:
        handle.remove()


def one_by_one(model: Any, ids: list[list[int]]) -> Tensor:
    """Return `example layer width` of each prompt's last token, one prompt a forward."""
    rows = []
    for row in ids:
        seen: dict[int, Tensor] = {}

        def hook(i: int, seen: dict[int, Tensor] = seen) -> Callable[..., None]:
            return lambda _, args: seen.__setitem__(i, args[0][0, -1].float().cpu())

        with plain_hooks(model, hook), torch.inference_mode():
            model(input_ids=torch.tensor([row], device=model.get_input_embeddings().weight.device))
        rows.append(torch.stack([seen[i] for i in range(len(seen))]))
    return torch.stack(rows)


def steered_by_hand(model: Any, shift: HeadShift, ids: list[int], first: int) -> Tensor:
    """Return one prompt's logits with the shift added from position `first` on by a plain hook."""
    d_head, deltas = shift.directions.shape[1], shift.deltas

    def hook(i: int) -> Callable[..., tuple[Tensor]]:
        def add(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            x = args[0].clone()
            for (layer, head), delta in deltas.items():
                if layer == i:
                    x[:, first:, head * d_head : (head + 1) * d_head] += delta.to(x)
            return (x,)

        return add

    with plain_hooks(model, hook), torch.inference_mode():
        return model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float().cpu()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def logits_one_by_one(model: Any, ids: list[list[int]]) -> list[Tensor]:
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([row], device=model.device)).logits[0].float().cpu() for row in ids]


def in_one_batch(model: Any, ids: list[list[int]]) -> tuple[Tensor, list[Tensor]]:
    """Return `example layer width` of the last tokens and each prompt's logits, from one left-padded forward."""
    width, seen = max(map(len, ids)), {}
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in ids], device=model.device)
    real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)

    def hook(i: int) -> Callable[..., None]:
        return lambda _, args: seen.__setitem__(i, args[0][:, -1].float().cpu())

    places = (real.cumsum(1) - 1).clamp(min=0)
    with plain_hooks(model, hook), torch.inference_mode():
        logits = model(input_ids=tokens, attention_mask=real, position_ids=places).logits.float().cpu()
    return torch.stack([seen[i] for i in range(len(seen))], 1), [
        x[width - len(r) :] for x, r in zip(logits, ids, strict=True)
    ]


def score(logits: Tensor, ids: list[int], start: int) -> float:
    """Return the summed log-probability of the tokens from `start` on."""
    logprobs = logits.log_softmax(-1)
    return sum(float(logprobs[t - 1, ids[t]]) for t in range(start, len(ids)))


def noise(model: Any, ids: list[list[int]], starts: list[int]) -> dict[str, dict[str, float]]:
    """Return, for what is captured, generated and scored, how far the unedited reference is from itself."""
    alone, logits = one_by_one(model, ids), logits_one_by_one(model, ids)
    others = {"batch": in_one_batch(model, ids)}
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    others["eager attention"] = one_by_one(model, ids), logits_one_by_one(model, ids)
    model.set_attn_implementation(before)
    found: dict[str, dict[str, float]] = {"capture": {}, "generate": {}, "score": {}}
    for name, (heads, rows) in others.items():
        found["capture"][name] = relative(heads, alone)
        found["generate"][name] = max(relative(a, b) for a, b in zip(rows, logits, strict=True))
        pairs = [(score(a, i, s), score(b, i, s)) for a, b, i, s in zip(rows, logits, ids, starts, strict=True)]
        found["score"][name] = max(abs(a - b) / abs(b) for a, b in pairs)
    return found


def tolerances(noises: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the largest difference that each check may have."""
    return {check: max(FLOOR, FACTOR * max(by.values())) for check, by in noises.items()}
