"""Log-probabilities of answers, teacher-forced, with the edit acting from the last prompt token on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.edits import Edit, TokenMask
from trimtab.models.heads import inference, logits_limit
from trimtab.models.tokens import AnswerTokens, Batch, input_device, length_batches, pad_id
from trimtab.progress import tracked


def answer_logprobs(
    model: Any, tokenizer: Any, answers: Sequence[AnswerTokens], edit: Edit, *, batch_size: int = 16
) -> list[float]:
    """Return for each tokenised answer the sum of its tokens' log-probabilities given what stands before it.

    The edit acts on every position that predicts an answer token: from the last prompt token on. Log-softmax is in
    float32 (float64 for a float64 model).
    """
    device, pad = input_device(model), pad_id(tokenizer)
    # tokens after the answer (a tokenizer's end token) predict nothing that counts
    sequences = [a.ids[: a.end] for a in answers]
    batches = list(length_batches(sequences, batch_size=batch_size, pad=pad, device=device))
    sums = [0.0] * len(answers)
    mask = TokenMask()
    with edit.applied(model, positions=mask) as edited, inference(edited):
        for batch in tracked(batches, "scoring answers"):
            rows = [answers[i] for i in batch.indices]
            for place, value in zip(batch.indices, _batch(edited, batch, rows, mask), strict=True):
                sums[place] = value
    return sums


def _batch(model: Any, batch: Batch, rows: Sequence[AnswerTokens], mask: TokenMask) -> list[float]:
    place = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    starts = torch.tensor([r.start for r in rows], device=place.device)[:, None]
    ends = torch.tensor([r.end for r in rows], device=place.device)[:, None]
    mask.value = (place >= starts - 1) & (place < ends)
    first = int(starts.min()) - 1
    logits = last_logits(model, batch, keep=len(place) - first)
    targets = batch.input_ids[:, first + 1 :]
    chosen = token_logprobs(logits[:, :-1], targets)
    is_answer = (place >= starts) & (place < ends)
    return chosen.masked_fill(~is_answer[:, first + 1 :], 0).sum(1).tolist()


def last_logits(model: Any, batch: Batch, *, keep: int) -> Float[Tensor, "batch keep vocab"]:
    """Return the logits of the last `keep` positions; the model's head runs on those only where it can."""
    limit = logits_limit(model, keep)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **limit).logits
    return logits[:, -keep:]


def token_logprobs(logits: Float[Tensor, "batch seq vocab"], targets: Tensor) -> Float[Tensor, "batch seq"]:
    """Return the targets' log-probabilities, in float32 or better."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return exact.gather(-1, targets[..., None])[..., 0] - exact.logsumexp(-1)
