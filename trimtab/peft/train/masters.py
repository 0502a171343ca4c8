"""Masters: float32 copies of 16-bit weights that are trained in place, where a small step would be rounded away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.models.processes import split_like


class Masters:
    """Lets an optimiser step on float32 copies of 16-bit parameters (Micikevicius et al. 2018, section 3.1).

    After each step the parameters are the copies, rounded; those of other dtypes are stepped on themselves.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.pairs = {
            name: (p, nn.Parameter(p.detach().float())) for name, p in parameters.items() if p.element_size() == 2
        }

    def take_over(self, optimizer: Optimizer) -> None:
        """Put the copies in the place of their parameters."""
        of = {id(parameter): master for parameter, master in self.pairs.values()}
        for group in optimizer.param_groups:
            group["params"] = [of.get(id(p), p) for p in group["params"]]
        if self.pairs:
            optimizer.register_step_pre_hook(self._hand_gradients)
            optimizer.register_step_post_hook(self._round)

    def tensors(self) -> dict[str, Tensor]:
        """Return the copies by their parameters' names."""
        return {name: master.detach() for name, (_, master) in self.pairs.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` returned."""
        for name, (_, master) in self.pairs.items():
            master.copy_(split_like(tensors[name], master))

    def _hand_gradients(self, *_: Any) -> None:
        for parameter, master in self.pairs.values():
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def _round(self, *_: Any) -> None:
        for parameter, master in self.pairs.values():
            parameter.copy_(master)
            master.grad = None
