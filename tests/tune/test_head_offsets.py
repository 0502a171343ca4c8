"""Learned head offsets: the same place as a shift, and heads chosen by learned scalings (LoFiT)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from tests.tune.test_own_methods import METHODS, attached, logits, shake
from trimtab.activations import Head
from trimtab.errors import BadValue
from trimtab.models.adding import add_to_heads
from trimtab.peft.methods.head_offsets import HeadOffsets, HeadScalings
from trimtab.peft.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=0.05)


@pytest.mark.parametrize("family", ["llama-gqa", "llama-odd-head-dim", "gpt2", "gpt-neox", "gemma2"])
def test_offsets_are_deltas_added_to_heads_at_all_positions(family):
    method: Any = METHODS["heads"]
    model = tiny_model(family)
    with attached(method, model) as parts:
        shake(parts)
        tuned, deltas = logits(parts.model), method.offsets_by_head(parts.tensors())
    assert list(deltas) == [Head(2, 3), Head(0, 1), Head(2, 0)]
    with add_to_heads(model, deltas, "all"):
        torch.testing.assert_close(logits(model), tuned, rtol=0, atol=1e-6)


def test_the_heads_with_the_longest_scalings_are_chosen():
    method, model = HeadScalings(), tiny_model("llama-gqa")
    with attached(method, model) as parts:
        tensors = {k: t.clone() for k, t in parts.tensors().items()}
    tensors["layers.1"][2, 5], tensors["layers.0"][3, 0], tensors["layers.2"][0, 1] = -3.0, 2.0, 1.0
    assert method.strongest(tensors, 2) == (Head(1, 2), Head(0, 3))
    with pytest.raises(BadValue, match="top_k=13 heads asked for; the model has 12"):
        method.strongest(tensors, 13)


def test_fitting_chooses_heads_and_equals_choosing_them_and_fitting_on_them():
    model, tokenizer, questions = tiny_model("llama-gqa"), tiny_tokenizer(), tiny_questions(8)
    edit: Any = HeadOffsets(3, recipe=RECIPE).fit(model, tokenizer, questions, seed=1)
    scaled: Any = HeadScalings(recipe=RECIPE).fit(model, tokenizer, questions, seed=1)
    heads = HeadScalings().strongest(scaled.tensors, 3)
    assert edit.method.heads == heads
    assert len(set(heads)) == 3
    by_hand: Any = HeadOffsets(heads=heads, recipe=RECIPE).fit(model, tokenizer, questions, seed=1)
    assert edit.tensors.keys() == by_hand.tensors.keys()
    assert all(torch.equal(edit.tensors[k], by_hand.tensors[k]) for k in edit.tensors)
    plain = logits(model)
    with edit.applied(model) as tuned:
        moved = logits(tuned)
    with add_to_heads(model, edit.method.offsets_by_head(edit.tensors), "all"):
        torch.testing.assert_close(logits(model), moved, rtol=0, atol=1e-6)
    assert float((moved - plain).abs().max()) > 1e-3
