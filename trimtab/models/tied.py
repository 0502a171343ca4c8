"""Input and output embeddings that are one tensor."""

from __future__ import annotations

from typing import Any

from torch import nn


def has_tied_embeddings(model: Any) -> bool:
    """Return whether the output embedding is the input embedding."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is embedding.weight


def untie(model: Any) -> None:
    """Give the output embedding a weight of its own, and say so in the config."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    model.config.tie_word_embeddings = False
