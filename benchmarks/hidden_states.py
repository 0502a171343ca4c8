"""A meter of how far an edit moves hidden states, for a comparison's `meters: [hidden_states.py:HiddenStates]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.datasets.prose import neutral_texts
from trimtab.models.anatomy import input_device
from trimtab.models.calling import inference
from trimtab.models.tokens import encode_all
from trimtab.protocols import Edit, Measured, Meter

N_TEXTS, N_TOKENS = 40, 64


class HiddenStates(Meter):
    """The length of what an edit adds to hidden states over their own, mean of layers and tokens of neutral text.

    The first token is left out: its states are tens of times as long as all others. Behind virtual tokens, a text's
    own states count. An edit that writes a prompt is asked without it, and so moves nothing.
    """

    name = "hidden_states"
    heading = "hidden states"
    unit = "of their length"
    better = "neither"
    collateral = True
    tested = False

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        items: Any,  # noqa: ARG002
        edits: Sequence[Edit],
        **how: Any,  # noqa: ARG002
    ) -> list[Measured]:
        """Return the share for each of forty texts under every edit."""
        texts = [ids[:N_TOKENS] for ids in encode_all(tokenizer, neutral_texts()[:N_TEXTS])]
        plain = [states(model, ids) for ids in texts]
        found = []
        for edit in edits:
            with edit.applied(model, "all") as edited:
                moved = [states(edited, ids) for ids in texts]
            shares = [((b - a).norm(dim=-1) / a.norm(dim=-1)).mean() for a, b in zip(plain, moved, strict=True)]
            found.append(Measured({str(i): {self.name: float(share)} for i, share in enumerate(shares)}))
        return found


def states(model: Any, ids: Sequence[int]) -> Tensor:
    """Return the states after every layer: layer token d."""
    with inference(model):
        out = model(torch.tensor([list(ids)], device=input_device(model)), output_hidden_states=True)
    return torch.stack([layer[0, 1 - len(ids) :] for layer in out.hidden_states[1:]]).float()
