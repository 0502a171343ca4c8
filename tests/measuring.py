"""Plain counterparts of what `trimtab.evaluate` does: one text at a time, no padding, hooks written by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trimtab.activations import Head
from trimtab.edits.vectors import HeadShift
from trimtab.engine.completion import completions
from trimtab.protocols import Edit

# the attention output projections by name, so that the oracle does not lean on trimtab's own search for them
PROJECTIONS = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense"}


def random_shift(model: Any, *, seed: int = 0, strength: float = 3.0, name: str = "ITI") -> HeadShift:
    """Return a shift of three heads in two layers along random directions."""
    generator = torch.Generator().manual_seed(seed)
    d_head = getattr(model.config, "head_dim", None) or model.config.hidden_size // 4
    directions = normalize(torch.randn(3, d_head, generator=generator), dim=1)
    sigma = 0.5 + torch.rand(3, generator=generator)
    return HeadShift((Head(0, 1), Head(2, 3), Head(2, 0)), directions, sigma, strength, name=name)


@contextlib.contextmanager
def shifted_from(model: Any, shift: HeadShift, first: int) -> Iterator[None]:
    """Add the shift's vectors at every position from `first` on, in forwards over whole texts."""
    suffix = PROJECTIONS.get(model.config.model_type, "self_attn.o_proj")
    modules = [module for name, module in model.named_modules() if name.endswith(suffix)]
    assert len(modules) == 3
    handles = []
    for i, (layer, head) in enumerate(shift.heads):
        delta = shift.strength * shift.sigma[i] * shift.directions[i]
        handles.append(modules[layer].register_forward_pre_hook(_adder(delta, head, first)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(delta: Tensor, head: int, first: int) -> Any:
    place = slice(head * len(delta), (head + 1) * len(delta))

    def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        x[:, first:, place] += delta.to(x.dtype)
        return (x, *args[1:])

    return hook


def text_logprobs(model: Any, ids: Sequence[int]) -> Tensor:
    """Return the log-softmax after every token of one text, in float64, from one plain forward."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits.double().log_softmax(-1)


def answer_logprob(model: Any, ids: Sequence[int], start: int, end: int) -> float:
    """Return the sum of the log-probabilities of tokens start..end-1, from one plain forward."""
    logprobs = text_logprobs(model, ids)
    return float(sum(logprobs[i - 1, ids[i]] for i in range(start, end)))


def complete(model: Any, tokenizer: Any, prompts: Sequence[str], edit: Edit, **options: Any) -> list[str]:
    """Return `completions` under a single edit."""
    (texts,) = completions(model, tokenizer, prompts, [edit], **options)
    return texts
