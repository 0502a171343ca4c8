"""FineTuneL: a fact trained into one MLP's last map, each weight held near what it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from trimtab.edits.weight_edit import WeightEdit
from trimtab.engine.score import token_logprobs
from trimtab.errors import BadValue
from trimtab.knowledge.editors import require_facts
from trimtab.models.anatomy import base_of, input_device
from trimtab.models.calling import evaluation, require_numbers
from trimtab.models.identity import fingerprint
from trimtab.models.mlp import find_mlp_outputs
from trimtab.models.tokens import length_batches, pad_id, tokenize_answers
from trimtab.progress import tracked
from trimtab.protocols import Cost, Knobs, Method, stopwatch


@dataclass(frozen=True, kw_only=True)
class FineTuneL(Method):
    """Constrained fine-tuning (Zhu et al. 2020; FT-L of Meng et al. 2022), on the likelihood of the whole answer.

    The published code reads all tokens of an answer at the prompt's last position, and its bound of 5e-4 leaves a small
    model as it is; both make the baseline weaker than it need be.
    """

    layer: int | None = None
    """Counted from 0; a tenth of the depth if not given."""
    steps: int = 25
    rate: float = 2e-3
    bound: float = 5e-3
    """The most that any weight may move."""
    until: float = 1e-2
    """The loss at which it ends."""
    name: str = "FT-L"

    def fit(
        self,
        model: Any,
        tokenizer: Any,
        train: Any,
        *,
        knobs: Knobs | None = None,
        seed: int = 0,  # noqa: ARG002
    ) -> WeightEdit:
        """Return the change of one weight, all of it, that training on all facts together made.

        Raises:
            BadDataset: what is given are no facts.
            BadValue: quantised weights, or a layer that the model has not.
            UnsupportedModel: a layer has no MLP of one last map.
        """
        self.setting(knobs)
        facts = require_facts(train, self.name)
        base = base_of(model)
        if getattr(base, "is_quantized", False):
            raise BadValue(f"{self.name} cannot train quantised weights; fit on the plain model")
        sites = find_mlp_outputs(model)
        layer = max(1, round(0.1 * len(sites))) if self.layer is None else self.layer
        if not 0 <= layer < len(sites):
            raise BadValue(f"no layer {layer}: the model has layers 0-{len(sites) - 1}")
        site = sites[layer]
        texts = [f"{fact.asked} {fact.new}" for fact in facts]
        tokens = tokenize_answers(tokenizer, texts, [len(fact.asked) for fact in facts])
        ids = [t.ids[: t.end] for t in tokens]
        batches = list(length_batches(ids, batch_size=16, pad=pad_id(tokenizer), device=input_device(model)))

        def loss_of(weight: Tensor) -> Tensor:
            total: Any = 0.0
            for batch in batches:
                given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
                logits = functional_call(base, {site.weight: weight}, kwargs=given).logits
                length = batch.input_ids.shape[1]
                for row, i in enumerate(batch.indices):
                    span, targets = range(tokens[i].start, tokens[i].end), ids[i][tokens[i].start : tokens[i].end]
                    places = torch.tensor([row * length + place - 1 for place in span])
                    total = total - token_logprobs(logits.flatten(0, 1), places, torch.tensor(targets)).mean()
            return total / len(facts)

        with stopwatch() as seconds, evaluation(model):
            change, losses = self._trained(site.module.weight, loss_of)
        record = {
            "model": fingerprint(model),
            "method": self.describe(),
            "facts": [fact.key for fact in facts],
            "layers": [layer],
            "losses": losses,
        }
        cost = Cost(seconds[0], change.numel())
        return WeightEdit({site.weight: change}, name=self.name, unchanged_layers=layer, cost=cost, record=record)

    def _trained(self, weight: Tensor, loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Sequence[float]]:
        held = weight.detach().float()
        change, losses = torch.zeros_like(held, requires_grad=True), []
        optimizer = torch.optim.Adam([change], lr=self.rate)
        for _ in tracked(range(self.steps), "training"):
            with torch.enable_grad():
                loss = loss_of((held + change).to(weight.dtype))
            require_numbers(loss.detach()[None], "the loss of the facts")
            losses.append(float(loss.detach()))
            if losses[-1] < self.until:
                break
            (change.grad,) = torch.autograd.grad(loss, [change])
            optimizer.step()
            with torch.no_grad():
                change.clamp_(-self.bound, self.bound)
        return change.detach().cpu(), losses
