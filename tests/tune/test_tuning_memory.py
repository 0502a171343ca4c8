"""What the memory estimate of a tuning run rests on: the forwards that are run, and what this process may take."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.tiny import tiny_model, tiny_tokenizer
from tests.tuning import QUICK
from trimtab.datasets import SftExample
from trimtab.peft import LoRA
from trimtab.peft.train.examples import Collator, bucketed, encode_examples, forward_size


@pytest.mark.parametrize("packing", [False, True])
def test_the_plan_counts_every_position_at_which_some_row_of_a_forward_has_a_label(packing, monkeypatch):
    """Short and long prompts in one batch: no row has as many labels as there are positions with one."""
    pairs = [SftExample("word " * (1 + 3 * i) + "A:", " said") for i in range(8)]
    model, recipe = tiny_model(), replace(QUICK, batch_size=4, max_steps=2)
    data = encode_examples(model, tiny_tokenizer(), pairs, recipe)
    seen, call = [], Collator.__call__

    def watched(self, examples):
        batch = call(self, examples)
        seen.append((batch["input_ids"].numel(), len(batch["input_ids"]) * len(batch["columns"])))
        return batch

    monkeypatch.setattr(Collator, "__call__", watched)
    order = bucketed([len(e.ids) for e in data.encoded], 4, seed=5)
    found = forward_size(data, Collator(0, packing), order, 4)
    planned, seen[:] = list(seen), []
    edit = LoRA(recipe=replace(recipe, packing=packing)).fit(model, tiny_tokenizer(), pairs, seed=5)
    ran = seen[2:]  # after the plan's own look
    assert sorted(ran) == sorted(planned) and len(ran) == 2
    tokens, logits = (max(column) for column in zip(*ran, strict=True))
    assert found == (math.ceil(tokens / 4), math.ceil(logits / 4))
    assert edit.record["plan"]["memory"]["logits"] == 4 * found[1] * model.config.vocab_size * 12
    assert packing or found[1] > 1.5 * max(e.n_labelled for e in data.encoded)
