"""GRACE: facts into a code book beside one layer; the weights stay, and so does all that meets no key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.datasets.facts import Fact
from trimtab.edits.memory_edit import MemoryEdit
from trimtab.engine.shared_layers import SharedLayers
from trimtab.engine.tail_forward import TailForward
from trimtab.errors import BadValue
from trimtab.knowledge.editors import require_facts, warn_of_lost
from trimtab.knowledge.keys import subject_last
from trimtab.knowledge.value import UNTIL, answer_ids
from trimtab.models.anatomy import decoder_layers, input_device
from trimtab.models.calling import differentiable, require_numbers
from trimtab.models.hooks import on_outputs
from trimtab.models.identity import fingerprint
from trimtab.models.tokens import encode, pad_id, padded_batch
from trimtab.progress import tracked
from trimtab.protocols import Cost, Knobs, Method, stopwatch

DECOYS = ("it", "this", "the house", "my friend", "Anna", "water", "the city", "a small dog")
"""What stands in the subject's place in prompts that are another thing's: so near, a key must not reach."""


@dataclass(frozen=True, kw_only=True)
class GRACE(Method):
    """A code book of the facts (after Hartvigsen et al. 2023): key, radius and a value trained by gradient.

    A key is what the layer gives at the prompt's last token, and one more at each token of the answer but its last, so
    that answers of several tokens are said to their end; the paper has the first alone. Its radius is not a number for
    all models and layers but a share of the way to the nearest of the same prompt about other things, and of the other
    facts. It generalises little: what is answered for is that prompt, and what is all but it.
    """

    layer: int | None = None
    """Counted from 0; at three quarters of the depth if not given."""
    reach: float | int = 0.5
    """The radius, as a share of the way to the nearest other thing."""
    steps: int = 40
    rate: float | int = 0.1
    """Adam's step, as a share of the norm of what stands there in all directions together."""
    batch_size: int = 64
    """At most so many texts in one forward."""
    name: str = "GRACE"

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.rate > 0 or not 0 < self.reach <= 1 or self.batch_size < 1:
            raise BadValue(
                f"a code book needs steps, a rate above 0 and a reach above 0 and up to 1; got {self.steps}, "
                f"{self.rate} and {self.reach}"
            )

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> MemoryEdit:  # noqa: ARG002
        """Return the code book of the facts; nothing in it is drawn.

        Raises:
            BadDataset: what is given are no facts.
            BadValue: a layer that the model has not; a prompt whose tokens change when the answer follows.
        """
        self.setting(knobs)
        facts, n = require_facts(train, self.name), len(decoder_layers(model))
        layer = min(round(0.75 * n), n - 1) if self.layer is None else self.layer
        if not 0 <= layer < n:
            raise BadValue(f"no layer {layer}: the model has layers 0-{n - 1}")
        shared = SharedLayers(model, [layer + 1])
        books: list[_Entries] = []
        with stopwatch() as seconds, differentiable(model):
            for start in tracked(range(0, len(facts), self.batch_size), "seeking values"):
                tails = _Tails.of(model, tokenizer, facts[start : start + self.batch_size])
                found = self._sought(model, layer, tails, shared)
                books.append(found._replace(fact=found.fact + start))
            keys, values, fact_of = (torch.cat(parts) for parts in zip(*[book[:3] for book in books], strict=True))
            radii = self._radii(model, tokenizer, facts, layer, keys, fact_of)
        losses = [loss for book in books for loss in book.losses]
        lost = [fact.asked for fact, loss in zip(facts, losses, strict=True) if loss >= 1]
        warn_of_lost(lost, len(facts))
        record = {
            "model": fingerprint(model),
            "method": self.describe(),
            "facts": [fact.key for fact in facts],
            "losses": losses,
            "not_taken": lost,
        }
        cost = Cost(seconds[0], 2 * keys.numel())
        keys, values, radii = (part.float().cpu() for part in (keys, values, radii))
        return MemoryEdit(layer, keys, values, radii, name=self.name, cost=cost, record=record)

    def _sought(self, model: Any, layer: int, tails: _Tails, shared: SharedLayers) -> _Entries:
        """Return the batch's entries: what the layer gives, and what it should give for the answers to be said."""
        module, seen = decoder_layers(model)[layer], list[Tensor]()
        with on_outputs([(module, seen.append)]), shared.recording(), torch.no_grad():
            tails.forward()
        states = seen[0].detach().float()
        size = self.rate * states.norm(dim=-1, keepdim=True) / states.shape[-1] ** 0.5
        moved = torch.zeros_like(states, requires_grad=True)
        optimizer = torch.optim.Adam([moved], lr=1.0)
        losses, going = torch.zeros(len(states)), torch.ones(len(states), dtype=torch.bool)
        with on_outputs([(module, lambda out: out + (size * moved).to(out))]):
            for step in range(self.steps):
                with shared.resumed(layer + 1):
                    logprobs = tails.forward().float().log_softmax(-1)
                chosen = logprobs.gather(-1, tails.targets.to(logprobs.device)[..., None])[..., 0].cpu()
                loss = -(chosen * tails.wanted).sum(1) / tails.wanted.sum(1)
                require_numbers(loss.detach(), "the loss of a value")
                losses = torch.where(going, loss.detach(), losses)
                going = going & (losses >= UNTIL)
                if not bool(going.any()) or step == self.steps - 1:
                    break
                (moved.grad,) = torch.autograd.grad(loss[going].sum(), [moved])
                before = moved.detach().clone()
                optimizer.step()
                with torch.no_grad():  # of a fact that is done nothing moves any more
                    moved.copy_(torch.where(going[:, None, None].to(moved.device), moved, before))
        wanted = tails.wanted.to(states.device)
        fact_of = torch.arange(len(states), device=states.device)[:, None].expand(wanted.shape)
        values = (states + size * moved.detach())[wanted]
        return _Entries(states[wanted], values, fact_of[wanted], losses.tolist())

    def _radii(
        self, model: Any, tokenizer: Any, facts: Sequence[Fact], layer: int, keys: Tensor, fact_of: Tensor
    ) -> Float[Tensor, " entry"]:
        """Return each entry's radius: the share of the way to the nearest decoy at its token, or other fact's key."""
        apart = torch.cdist(keys, keys, compute_mode="donot_use_mm_for_euclid_dist")
        apart[fact_of[:, None] == fact_of] = torch.inf
        nearest = apart.min(1).values
        module, seen = decoder_layers(model)[layer], list[Tensor]()
        for decoy in tracked(DECOYS, "looking beside"):
            place = 0
            for start in range(0, len(facts), self.batch_size):
                seen.clear()
                batch = facts[start : start + self.batch_size]
                tails = _Tails.of(model, tokenizer, batch, decoy)
                with on_outputs([(module, seen.append)]), torch.no_grad():
                    tails.forward()
                states = seen[0].float()[tails.wanted.to(seen[0].device)]
                here = slice(place, place + len(states))
                place = here.stop
                away = (states - keys[here]).norm(dim=1)
                # a subject that is called as the decoy is
                away[away < 1e-3 * keys[here].norm(dim=1)] = torch.inf
                nearest[here] = torch.minimum(nearest[here], away)
        return self.reach * nearest


class _Entries(NamedTuple):
    keys: Float[Tensor, "entry d_model"]
    values: Float[Tensor, "entry d_model"]
    fact: Tensor
    """The fact that each is of."""
    losses: list[float]
    """Of each fact, in nats per token of its answer."""


class _Tails(NamedTuple):
    """Prompts' last tokens with their answers behind them."""

    forward: TailForward
    targets: Tensor
    """What follows each token (row token); 0 where nothing does."""
    wanted: Bool[Tensor, "row token"]
    """Where a token of the answer follows; on the CPU."""

    @classmethod
    def of(cls, model: Any, tokenizer: Any, facts: Sequence[Fact], decoy: str | None = None) -> _Tails:
        """Return those of facts, or of the same prompts about something else; raises as `answer_ids`."""
        answers, heads, tails = [], [], []
        for fact in facts:
            text = subject_last(tokenizer, fact.asked, fact.span)  # its key is the prompt's, as it is asked
            answers.append(answer_ids(tokenizer, text, fact.new))
            ids = text.ids if decoy is None else encode(tokenizer, fact.prompt.replace("{}", decoy))
            heads.append(ids[:-1])
            tails.append([ids[-1], *answers[-1][:-1]])
        every, how = list(range(len(facts))), {"pad": pad_id(tokenizer), "device": input_device(model)}
        batches = padded_batch(heads, every, side="left", **how), padded_batch(tails, every, **how)
        targets = padded_batch(answers, every, pad=0, device=torch.device("cpu"))
        return cls(TailForward(model, *batches), targets.input_ids, targets.attention_mask.bool())
