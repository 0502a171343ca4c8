"""answer_slopes: how steeply answers' log-probabilities rise as vectors are added, at all sites in two passes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trimtab.engine.batching import Budget
from trimtab.engine.capture import SITES
from trimtab.engine.forwards import Step, run_differentiable
from trimtab.engine.token_tree import TokenTree, TreeRow
from trimtab.errors import Incompatible
from trimtab.models.anatomy import moves_weights
from trimtab.models.calling import require_numbers
from trimtab.models.hooks import Replace, require_uncompiled
from trimtab.models.processes import over_processes
from trimtab.models.tokens import AnswerTokens, pad_id
from trimtab.protocols import TokenMask

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
    rows = [TreeRow(a.ids[: a.end - 1], a.start - 1, a.start - 1) for a in answers]
    generator, strengths = torch.Generator().manual_seed(sampled or 0), dict[str, Tensor]()

    @contextlib.contextmanager
    def added(mask: TokenMask) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            for site, vectors in along.items():
                modules = SITES[site].places(model).modules
                hooks = [(m, _adds(strengths, site, i, vectors[i], mask)) for i, m in enumerate(modules)]
                stack.enter_context(SITES[site].hooks(hooks))
            yield model

    def read(_: int, step: Step, forward: Callable[[], Any]) -> None:
        for site, vectors in along.items():
            strengths[site] = torch.zeros(len(step.rows), *vectors.shape[:2], requires_grad=True)
        drawing = torch.Generator().set_state(generator.get_state())  # again, where memory runs out after it
        logits = step.kept(forward().logits)
        scored = [answers[row] for row in step.rows]
        targets = torch.tensor([token for a in scored for token in a.ids[a.start : a.end]])
        total = _summed(logits[step.kept_places.to(logits.device)], targets, None if sampled is None else drawing)
        slopes = torch.autograd.grad(total, list(strengths.values()))
        for site, of_site in zip(strengths, slopes, strict=True):
            require_numbers(of_site, "gradients")
            for row, values in zip(step.rows, of_site, strict=True):
                found[row][site] = values
        generator.set_state(drawing.get_state())

    tree, budget = TokenTree.of(rows, pad_id(tokenizer)), Budget(rows=batch_size)
    run_differentiable(model, tree, read, added, budget=budget, task="attributing")
    return found


def _adds(
    strengths: Mapping[str, Float[Tensor, "batch layer part"]],
    site: str,
    layer: int,
    vectors: Float[Tensor, "part width"],
    mask: TokenMask,
) -> Replace:
    def add(x: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq width"]:
        vector = (strengths[site][:, layer, :, None] * vectors).flatten(1).to(x)
        assert mask.value is not None
        return x + mask.value[..., None].to(x) * vector[:, None]

    return add


def _summed(
    rows: Float[Tensor, "target vocab"], targets: Int[Tensor, " target"], generator: torch.Generator | None
) -> Float[Tensor, ""]:
    logprobs = rows.to(torch.promote_types(rows.dtype, torch.float32)).log_softmax(-1)
    if generator is not None:
        targets = torch.multinomial(logprobs.detach().exp().cpu(), 1, generator=generator)[:, 0]
    return logprobs.gather(-1, targets.to(rows.device)[:, None]).sum()
