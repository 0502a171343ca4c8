"""The value to write: what an MLP would have to give at the subject's last token for the new answer to be said."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trimtab.datasets.facts import Fact
from trimtab.errors import BadValue
from trimtab.knowledge.keys import Lookup, lookups, subject_last
from trimtab.models.anatomy import decoder_layers, input_device
from trimtab.models.calling import cache_name, evaluation, require_numbers, takes_positions
from trimtab.models.hooks import on_outputs
from trimtab.models.mlp import MlpSite
from trimtab.models.tokens import encode, pad_id

UNTIL = 0.05
"""The loss at which the search ends early (Meng et al. 2022's code)."""


@dataclass(frozen=True, kw_only=True)
class ValueSearch:
    """How a value is searched: Adam on what is added to the MLP's output (Meng et al. 2022, eq. 4).

    Lengths are shares, so that they mean the same in every layer and model: the radius of what is sought in norms of
    what is there, and the step in radii.
    """

    steps: int = 20
    radius: float | int = 4.0
    """The most that may be added, in norms of `measured_by`."""
    measured_by: Literal["mlp", "layer"] = "mlp"
    """The output of the MLP (ROME), or of the whole layer (MEMIT)."""
    rate: float | int = 0.3
    """Adam's step, as a share of the radius in all directions together."""
    kl: float | int = 0.0625
    """Weight of the divergence of what is predicted at the subject's last token in "SUBJECT is a": it should stay."""
    decay: float | int = 0.5
    """Weight of the norm of what is added, over the squared norm of what is there."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.radius > 0 or not self.rate > 0 or self.kl < 0 or self.decay < 0:
            raise BadValue(f"a search needs steps, a radius and a rate above 0, and weights of 0 or more; got {self}")


class SoughtValue(NamedTuple):
    """What a search found."""

    added: Float[Tensor, " d_out"]
    """What is to be added to the MLP's output at the subject's last token; float64."""
    losses: tuple[float, ...]
    """Mean negative log-likelihood of a token of the new answer at each step, in nats."""

    @property
    def taken(self) -> bool:
        """Whether the new answer became likely: below one nat a token."""
        return self.losses[-1] < 1


@dataclass(frozen=True)
class _Batch:
    """Rows cut at the subject's last token: what stands before it, and it with what follows, the answer included."""

    before: Int[Tensor, "row head"]
    before_mask: Int[Tensor, "row head"]
    after: Int[Tensor, "row tail"]
    after_mask: Int[Tensor, "row tail"]
    predicts: Bool[Tensor, "row tail"]
    """Where a token of the answer is predicted; nowhere in the last row, that of the essence."""
    targets: Int[Tensor, " target"]
    counts: Int[Tensor, " row"]

    @classmethod
    def of(cls, rows: Sequence[tuple[Lookup, list[int]]], pad: int, device: torch.device) -> _Batch:
        """Return the batch of texts, each with the tokens of its answer (none: the essence)."""
        tails, marks = [], []
        for text, answer in rows:
            tail = (text.ids + answer)[text.place : len(text.ids) + max(0, len(answer) - 1)]
            first = len(text.ids) - 1 - text.place
            tails.append(torch.tensor(tail))
            marks.append(torch.tensor([bool(answer) and i >= first for i in range(len(tail))]))
        heads = [torch.tensor(text.ids[: text.place], dtype=torch.long) for text, _ in rows]
        ones = [[torch.ones_like(part) for part in parts] for parts in (heads, tails)]
        padded = partial(pad_sequence, batch_first=True)
        return cls(
            padded(heads, padding_value=pad, padding_side="left").to(device),
            padded(ones[0], padding_value=0, padding_side="left").to(device),
            padded(tails, padding_value=pad).to(device),
            padded(ones[1], padding_value=0).to(device),
            padded(marks, padding_value=False).to(device),
            torch.tensor([t for _, answer in rows for t in answer], device=device),
            torch.tensor([len(answer) for _, answer in rows], device=device),
        )


def sought_value(
    model: Any, tokenizer: Any, fact: Fact, site: MlpSite, before: Sequence[str], search: ValueSearch
) -> SoughtValue:
    """Return what, added at the site, makes the fact's new answer likely behind every context.

    The loss is the mean over contexts of the mean over the answer's tokens of -log p, teacher-forced, and the weighted
    terms of `search`. What stands before the subject's last token is computed once.

    Raises:
        BadValue: the prompt's tokens change when the answer follows; the answer has no token; losses that are no
            numbers.
    """
    essence = subject_last(tokenizer, f"{fact.subject} is a", (0, len(fact.subject)))
    rows = [
        (text, _answer_ids(tokenizer, b + fact.asked, text, fact.new))
        for b, text in _with_texts(tokenizer, fact, before)
    ]
    batch = _Batch.of([*rows, (essence, [])], pad_id(tokenizer), input_device(model))
    with evaluation(model):
        forward = _tail_forward(model, batch)
        return _descend(model, site, batch, forward, search)


def _with_texts(tokenizer: Any, fact: Fact, before: Sequence[str]) -> Iterator[tuple[str, Lookup]]:
    return zip(before, lookups(tokenizer, fact, before), strict=True)


def _answer_ids(tokenizer: Any, prompt: str, text: Lookup, answer: str) -> list[int]:
    """Return the tokens that the answer adds to the prompt's own."""
    whole = encode(tokenizer, f"{prompt} {answer}")
    if whole[: len(text.ids)] != text.ids:
        raise BadValue(
            f"the tokens of {prompt[-60:]!r} change when {answer!r} follows; end the prompt with a whole word"
        )
    if len(whole) == len(text.ids):
        raise BadValue(f"the answer {answer!r} has no token of its own; give another")
    return whole[len(text.ids) :]


def _descend(model: Any, site: MlpSite, batch: _Batch, forward: Any, search: ValueSearch) -> SoughtValue:
    delta = torch.zeros(site.d_out, device=site.module.weight.device, requires_grad=True)
    seen: dict[str, Tensor] = {}

    def add(out: Tensor) -> Tensor:
        seen.setdefault("mlp", out[0, 0].detach().float())
        return torch.cat([(out[:, :1] + delta.to(out.dtype)), out[:, 1:]], 1)

    def keep(out: Tensor) -> None:
        seen.setdefault("layer", out[0, 0].detach().float())

    rows, places = batch.predicts.nonzero(as_tuple=True)
    weights = (1 / (batch.counts[rows] * (len(batch.counts) - 1))).float()
    optimizer, radius = torch.optim.Adam([delta]), 0.0
    losses: list[float] = []
    with on_outputs([(site.module, add), (decoder_layers(model)[site.layer], keep)]):
        for step in range(search.steps):
            with torch.enable_grad():
                logprobs = forward().float().log_softmax(-1)
                nll = -(logprobs[rows, places, batch.targets.to(rows.device)] * weights.to(rows.device)).sum()
                essence = logprobs[-1, 0]
                stays = seen.setdefault("essence", essence.detach())
                there = seen["mlp"].norm()
                loss = nll + search.kl * (stays.exp() * (stays - essence)).sum()
                loss = loss + search.decay * delta.norm().to(loss.device) / there.square().to(loss.device)
            require_numbers(loss.detach()[None], "the loss of a value")
            losses.append(float(nll.detach()))
            if float(loss.detach()) < UNTIL or step == search.steps - 1:
                break
            if not step:
                radius = float(search.radius * seen[search.measured_by].norm())
                optimizer.param_groups[0]["lr"] = search.rate * radius / site.d_out**0.5
            (delta.grad,) = torch.autograd.grad(loss, [delta])
            optimizer.step()
            with torch.no_grad():
                delta.mul_(min(1.0, radius / max(float(delta.norm()), 1e-12)))
    return SoughtValue(delta.detach().double(), tuple(losses))


def _tail_forward(model: Any, batch: _Batch) -> Any:
    """Return a function that runs the tails behind the cached heads, and gives their logits."""
    n_head = batch.before.shape[1]
    mask = torch.cat([batch.before_mask, batch.after_mask], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    own = takes_positions(model)

    def placed(part: slice) -> dict[str, Tensor]:
        return {"position_ids": positions[:, part]} if own else {}

    if n_head == 0:
        whole = {"input_ids": batch.after, "attention_mask": mask, **placed(slice(None))}
        return lambda: model(**whole, use_cache=False).logits
    with torch.no_grad():
        heads = {"input_ids": batch.before, "attention_mask": batch.before_mask, **placed(slice(None, n_head))}
        past = getattr(model(**heads, use_cache=True), cache_name(model))
    tails = {"input_ids": batch.after, "attention_mask": mask, **placed(slice(n_head, None))}
    # a forward writes into the cache that it is given
    return lambda: model(**tails, **{cache_name(model): copy.deepcopy(past)}, use_cache=True).logits
