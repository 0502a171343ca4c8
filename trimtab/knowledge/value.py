"""The value to write: what an MLP would have to give at the subject's last token for the new answer to be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trimtab.engine.shared_layers import SharedLayers
from trimtab.engine.tail_forward import TailForward
from trimtab.errors import BadValue
from trimtab.knowledge.keys import FactTexts, Lookup
from trimtab.models.anatomy import decoder_layers, input_device
from trimtab.models.calling import differentiable, require_numbers
from trimtab.models.hooks import on_outputs
from trimtab.models.mlp import MlpSite
from trimtab.models.tokens import encode, pad_id, padded_batch
from trimtab.progress import tracked

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
    """Weight of KL(unedited || edited) of what is predicted at the subject's last token in "SUBJECT is a", which should
    stay. The paper and its code take the divergence the other way round; the two agree where it is small."""
    decay: float | int = 0.5
    """Weight of the norm of what is added, over the squared norm of what is there."""
    batch_size: int = 32
    """At most so many texts in one forward, where a fact has one for each context, and another; changes no value."""

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
class _Rows:
    """Texts cut at the subject's last token, `per_fact` for each fact: one for each context, then that of the essence.

    The tails hold that token and what follows, the answer included.
    """

    forward: TailForward
    per_fact: int
    fact: Int[Tensor, " row"]
    """The fact that a row is of."""
    rows: Int[Tensor, " target"]
    places: Int[Tensor, " target"]
    """Where a token of an answer is predicted."""
    targets: Int[Tensor, " target"]
    weights: Float[Tensor, " target"]
    """By which the losses of a fact's tokens add up to the mean over contexts of the mean over tokens."""

    @classmethod
    def of(cls, model: Any, tokenizer: Any, facts: Sequence[FactTexts]) -> _Rows:
        """Run what stands before the cuts; raises as `sought_values`."""
        texts: list[Lookup] = []
        answers: list[list[int]] = []
        for of_fact in facts:
            texts += [*of_fact.asked, of_fact.essence]
            answers += [*(answer_ids(tokenizer, text, of_fact.fact.new) for text in of_fact.asked), []]
        heads = [text.ids[: text.place] for text in texts]
        tails = [text.ids[text.place :] + answer[:-1] for text, answer in zip(texts, answers, strict=True)]
        every, how = list(range(len(texts))), {"pad": pad_id(tokenizer), "device": input_device(model)}
        forward = TailForward(model, padded_batch(heads, every, side="left", **how), padded_batch(tails, every, **how))
        starts = [len(tail) - len(answer) for tail, answer in zip(tails, answers, strict=True)]
        predicted = [(i, starts[i] + n, token) for i in every for n, token in enumerate(answers[i])]
        rows, places, targets = (torch.tensor(column) for column in zip(*predicted, strict=True))
        n = len(facts[0].asked)
        weights = torch.tensor([1 / (len(answers[i]) * n) for i, _, _ in predicted])
        fact_of = torch.arange(len(facts)).repeat_interleave(n + 1)
        return cls(forward, n + 1, fact_of, rows, places, targets, weights)


def sought_values(
    model: Any, tokenizer: Any, facts: Sequence[FactTexts], site: MlpSite, search: ValueSearch
) -> list[SoughtValue]:
    """Return for each fact what, added at the site, makes its new answer likely behind every context.

    The loss is the mean over contexts of the mean over the answer's tokens of -log p, teacher-forced, and the weighted
    terms of `search`; each fact has its own, and facts share forwards alone. What stands before the subject's last
    token is computed once, and so are the layers below the site.

    Raises:
        BadValue: the prompt's tokens change when the answer follows; the answer has no token; losses that are no
            numbers.
    """
    at_once = max(1, search.batch_size // (len(facts[0].asked) + 1))
    shared, found = SharedLayers(model, [site.layer]), list[SoughtValue]()
    for start in tracked(range(0, len(facts), at_once), "seeking values"):
        with differentiable(model):
            rows = _Rows.of(model, tokenizer, facts[start : start + at_once])
            found += _descend(model, site, rows, shared, search)
    return found


def answer_ids(tokenizer: Any, asked: Lookup, answer: str) -> list[int]:
    """Return the tokens that the answer adds to the prompt's own."""
    whole = encode(tokenizer, f"{asked.text} {answer}")
    if whole[: len(asked.ids)] != asked.ids:
        raise BadValue(
            f"the tokens of {asked.text[-60:]!r} change when {answer!r} follows; end the prompt with a whole word"
        )
    if len(whole) == len(asked.ids):
        raise BadValue(f"the answer {answer!r} has no token of its own; give another")
    return whole[len(asked.ids) :]


def _descend(model: Any, site: MlpSite, rows: _Rows, shared: SharedLayers, search: ValueSearch) -> list[SoughtValue]:
    n, k, home = int(rows.fact[-1]) + 1, rows.per_fact, site.module.weight.device
    deltas = [torch.zeros(site.d_out, device=home, requires_grad=True) for _ in range(n)]
    seen: dict[str, Tensor] = {}

    def add(out: Tensor) -> Tensor:
        seen.setdefault("mlp", out[::k, 0].detach().float())
        added = torch.stack(deltas)[rows.fact.to(home)].to(out)
        return torch.cat([out[:, :1] + added[:, None], out[:, 1:]], 1)

    def keep(out: Tensor) -> None:
        seen.setdefault("layer", out[::k, 0].detach().float())

    # what Adam does with one delta, whatever the others do
    optimizer = torch.optim.Adam([{"params": [delta]} for delta in deltas])
    radii: list[float] = []
    losses: list[list[float]] = [[] for _ in range(n)]
    with on_outputs([(site.module, add), (decoder_layers(model)[site.layer], keep)]):
        for step in range(search.steps):
            with shared.resumed(site.layer) if step else shared.recording():
                nll, whole = _losses(rows, deltas, seen, search)
            require_numbers(whole.detach(), "the loss of a value")
            if not step:
                radii = [float(search.radius * norm) for norm in seen[search.measured_by].norm(dim=1)]
                for group, radius in zip(optimizer.param_groups, radii, strict=True):
                    group["lr"] = search.rate * radius / site.d_out**0.5
            # a fact is done once its loss has come below the threshold, whatever it would come to later
            going = [i for i in range(n) if len(losses[i]) == step]
            for i in going:
                losses[i].append(float(nll[i].detach()))
            going = [i for i in going if float(whole[i].detach()) >= UNTIL]
            if not going or step == search.steps - 1:
                break
            optimizer.zero_grad()
            grads = torch.autograd.grad(whole[going].sum(), [deltas[i] for i in going])
            for i, grad in zip(going, grads, strict=True):
                deltas[i].grad = grad
            optimizer.step()
            with torch.no_grad():
                for delta, radius in zip(deltas, radii, strict=True):
                    delta.mul_(min(1.0, radius / max(float(delta.norm()), 1e-12)))
    return [SoughtValue(d.detach().double(), tuple(own)) for d, own in zip(deltas, losses, strict=True)]


def _losses(
    rows: _Rows, deltas: Sequence[Tensor], seen: dict[str, Tensor], search: ValueSearch
) -> tuple[Float[Tensor, " fact"], Float[Tensor, " fact"]]:
    """Return each fact's negative log-likelihood of the answer, and its whole loss."""
    logits = rows.forward()
    home = logits.device
    said = logits[rows.rows.to(home), rows.places.to(home)].float().log_softmax(-1)
    of_tokens = -said.gather(1, rows.targets.to(home)[:, None])[:, 0] * rows.weights.to(home)
    of_fact = rows.fact.to(home)[rows.rows.to(home)]
    nll = torch.zeros(len(deltas), device=home).index_add(0, of_fact, of_tokens)
    essence = logits[rows.per_fact - 1 :: rows.per_fact, 0].float().log_softmax(-1)
    stays = seen.setdefault("essence", essence.detach())
    moved = torch.stack([delta.norm() for delta in deltas]).to(home)
    decay = moved / seen["mlp"].square().sum(1).to(home)
    return nll, nll + search.kl * (stays.exp() * (stays - essence)).sum(1) + search.decay * decay
