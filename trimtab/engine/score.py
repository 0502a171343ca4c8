"""Log-probabilities of answers, teacher-forced, with the edit acting from the last prompt token on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trimtab.engine.batching import Budget
from trimtab.engine.forwards import Step, run_tree
from trimtab.engine.token_tree import TokenTree, TreeRow
from trimtab.engine.tree_forward import to_device
from trimtab.models.calling import logits_limit, require_numbers
from trimtab.models.processes import over_processes
from trimtab.models.tokens import AnswerTokens, Batch, pad_id
from trimtab.protocols import Edit


@dataclass(frozen=True)
class Scores:
    """Sums of log-probabilities under several edits, and how many tokens they took."""

    logprobs: tuple[tuple[float, ...], ...]
    """One tuple for every edit, one number for every answer."""
    tokens_computed: int
    notes: tuple[str, ...] = ()
    """Why prefixes were not shared, if they were not."""


def score_answers(
    model: Any,
    tokenizer: Any,
    answers: Sequence[AnswerTokens],
    edits: Sequence[Edit],
    *,
    batch_size: int | None = None,
    token_budget: int | None = None,
) -> Scores:
    """Return every answer's log-probability under every edit; no answers give no numbers.

    An edit acts on every position that predicts an answer token: from the last prompt token on. What stands before
    is computed once, for all answers to a prompt and for all edits that leave the prompt unedited. Log-softmax is in
    float32 (float64 for a float64 model). Under a launcher every process scores a stretch of the answers, and all get
    all numbers.

    Raises:
        BadValue: log-probabilities that are not numbers.

    Args:
        batch_size: at most so many answers in one forward; as many as the token budget holds if not given.
        token_budget: how many tokens one forward may hold (see `run_tree`).
    """
    budget = Budget(token_budget, batch_size)
    parts = over_processes(answers, lambda part: [_score(model, tokenizer, part, edits, budget)])
    return Scores(
        tuple(tuple(x for part in parts for x in part.logprobs[i]) for i in range(len(edits))),
        sum(part.tokens_computed for part in parts),
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _score(
    model: Any,
    tokenizer: Any,
    answers: Sequence[AnswerTokens],
    edits: Sequence[Edit],
    budget: Budget,
) -> Scores:
    # the last token predicts nothing that counts, and neither does what a tokenizer puts after it
    rows = [TreeRow(a.ids[: a.end - 1], a.start - 1, a.start - 1) for a in answers]
    found: list[tuple[int, Step, Tensor]] = []

    def read(index: int, step: Step, forward: Callable[[], Any]) -> None:
        targets = [t for row in step.rows for t in answers[row].ids[answers[row].start : answers[row].end]]
        chosen = token_logprobs(step.kept(forward().logits), step.kept_places, torch.tensor(targets))
        # fetched when all is done: a GPU then never waits for what the CPU does between two forwards
        found.append((index, step, chosen))

    tree = TokenTree.of(rows, pad_id(tokenizer))
    took = run_tree(model, tree, read, edits=edits, budget=budget, task="scoring answers")
    sums = [[0.0] * len(answers) for _ in edits]
    for index, step, chosen in found:
        fetched = chosen.cpu()
        require_numbers(fetched, "log-probabilities of answers")
        for row, values in zip(step.rows, fetched.split(step.counts), strict=True):
            sums[index][row] = float(values.sum())
    return Scores(tuple(map(tuple, sums)), took.tokens, tuple(took.notes))


def token_logprobs(
    logits: Float[Tensor, "place vocab"], places: Int[Tensor, " target"], targets: Int[Tensor, " target"]
) -> Float[Tensor, " target"]:
    """Return each target's log-probability at its place, in float32 or better, where the logits are.

    A place may predict several targets: answers that begin alike. Places and targets may stand on the CPU.
    """
    unique, back = places.unique(return_inverse=True)
    unique, back, places, targets = (to_device(x, logits.device) for x in (unique, back, places, targets))
    # in slices, since a float32 copy of all logits of a large vocabulary would be the largest tensor of all
    slices = [_exact(logits[some]).logsumexp(-1) for some in unique.split(1024)]
    return _exact(logits[places, targets]) - torch.cat(slices)[back]


def _exact(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def last_logits(model: Any, batch: Batch, *, keep: int) -> Float[Tensor, "batch keep vocab"]:
    """Return the logits of the last `keep` positions; the model's head runs on those only where it can."""
    limit = logits_limit(model, keep)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **limit).logits
    return logits[:, -keep:]
