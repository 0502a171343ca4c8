"""answer_slopes: how steeply answers' log-probabilities rise as vectors are added, at all sites in two passes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trimtab.engine.batching import Budget, Limits, longest_first
from trimtab.engine.capture import SITES
from trimtab.errors import Incompatible
from trimtab.models.anatomy import input_device, moves_weights
from trimtab.models.calling import differentiable, require_numbers
from trimtab.models.hooks import Replace, require_uncompiled
from trimtab.models.processes import over_processes
from trimtab.models.tokens import AnswerTokens, pad_id, padded_batch
from trimtab.progress import progress

Vectors = Mapping[str, Float[Tensor, "layer part width"]]
"""Site (`"heads"`, `"residual"`) -> a vector for each of its places, by layer and head, as `capture_heads` has them."""


def answer_slopes(
    model: Any,
    tokenizer: Any,
    answers: Sequence[AnswerTokens],
    along: Vectors,
    *,
    sampled: int | None = None,
    batch_size: int = 8,
) -> dict[str, Float[Tensor, "answer layer part"]]:
    """Return the derivative of each answer's log-probability by the strength of each vector, at strength 0, in float32.

    The vector of one place is added, as an edit would, at every position that predicts a token of the answer; the
    others are not. It is attribution patching (Nanda 2023; Syed et al. 2023: gradient times difference) with the
    vector as the difference: one forward and one backward for all places of all sites. Batches are halved where memory
    runs out.

    Args:
        sampled: take, in place of the answers' own tokens, tokens drawn from the model's predictions with this seed.
            The mean over answers of the squared slopes is then the Fisher information of the strength, which is the
            second derivative of KL(unedited || edited), summed over the positions.

    Raises:
        Incompatible: a model that was compiled, or whose weights are moved while it runs.
        BadValue: gradients that are not numbers.
    """
    require_uncompiled(model)
    if moves_weights(model):
        raise Incompatible(
            "gradients are not to be had of a model whose weights are moved while it runs; load it on one device, or "
            "name the places to shift (layers, heads)"
        )
    rows = over_processes(answers, lambda part: _slopes(model, tokenizer, part, along, sampled, batch_size))
    return {site: torch.stack([row[site] for row in rows]) for site in along}


def _slopes(
    model: Any, tokenizer: Any, answers: Sequence[AnswerTokens], along: Vectors, sampled: int | None, batch_size: int
) -> list[dict[str, Float[Tensor, "layer part"]]]:
    found: list[dict[str, Tensor]] = [{} for _ in answers]
    device = input_device(model)
    ids = [answer.ids[: answer.end] for answer in answers]
    generator = torch.Generator().manual_seed(sampled or 0)
    limits = replace(Limits.of(model, Budget(rows=batch_size)), cached=1 << 60)

    def attribute(some: list[int]) -> None:
        drawing = torch.Generator().set_state(generator.get_state())  # again, where memory runs out after it
        batch = padded_batch(ids, some, pad=pad_id(tokenizer), device=device)
        where = torch.arange(batch.input_ids.shape[1], device=device)
        spans = torch.tensor([[answers[i].start - 1, answers[i].end - 2] for i in batch.indices], device=device)
        predicts = (where >= spans[:, :1]) & (where <= spans[:, 1:])
        strengths = {
            site: torch.zeros(len(batch.indices), *vectors.shape[:2], requires_grad=True)
            for site, vectors in along.items()
        }
        with differentiable(model), contextlib.ExitStack() as stack:
            for site, vectors in along.items():
                modules = SITES[site].places(model).modules
                hooks = [(m, _adds(strengths[site][:, i], vectors[i], predicts)) for i, m in enumerate(modules)]
                stack.enter_context(SITES[site].hooks(hooks))
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
            draws = None if sampled is None else drawing
            total = _summed(logits[:, :-1], batch.input_ids[:, 1:], predicts[:, :-1], draws)
            slopes = torch.autograd.grad(total, list(strengths.values()))
        for site, of_site in zip(strengths, slopes, strict=True):
            require_numbers(of_site, "gradients")
            for i, row in zip(batch.indices, of_site, strict=True):
                found[i][site] = row
        generator.set_state(drawing.get_state())
        advance(len(some))

    with progress("attributing", len(ids)) as advance:
        longest_first(list(map(len, ids)), limits, attribute)
    return found


def _adds(strengths: Float[Tensor, "batch part"], vectors: Float[Tensor, "part width"], mask: Tensor) -> Replace:
    def add(x: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq width"]:
        added = (strengths[..., None] * vectors).flatten(1).to(x)
        return x + mask[..., None].to(x) * added[:, None]

    return add


def _summed(
    logits: Float[Tensor, "batch seq vocab"],
    targets: Int[Tensor, "batch seq"],
    counted: Tensor,
    generator: torch.Generator | None,
) -> Float[Tensor, ""]:
    rows = logits[counted]
    logprobs = rows.to(torch.promote_types(rows.dtype, torch.float32)).log_softmax(-1)
    chosen = targets[counted]
    if generator is not None:
        chosen = torch.multinomial(logprobs.detach().exp().cpu(), 1, generator=generator)[:, 0].to(logits.device)
    return logprobs.gather(-1, chosen[:, None]).sum()
