"""What the memory estimate of a tuning run rests on: the forwards that are run, and what this process may take."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.tiny import tiny_model, tiny_tokenizer
from tests.tuning import QUICK
from trimtab.datasets import SftExample
from trimtab.peft import LoRA
from trimtab.peft.train.examples import Collator, bucketed, encode, forward_size
from trimtab.peft.train.memory import free_on_cpu


@pytest.mark.parametrize("packing", [False, True])
def test_the_plan_counts_every_position_at_which_some_row_of_a_forward_has_a_label(packing, monkeypatch):
    """Short and long prompts in one batch: no row has as many labels as there are positions with one."""
    pairs = [SftExample("word " * (1 + 3 * i) + "A:", " said") for i in range(8)]
    model, recipe = tiny_model(), replace(QUICK, batch_size=4, max_steps=2)
    data = encode(model, tiny_tokenizer(), pairs, recipe)
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


@pytest.mark.parametrize(
    ("line", "files", "taken"),
    [
        (
            "0::/job/step",
            {"job/memory.max": "9000", "job/memory.current": "7000", "job/memory.stat": "inactive_file 30"},
            2030,
        ),
        ("0::/elsewhere", {"memory.max": "9000", "memory.current": "9900", "memory.stat": "anon 1"}, 0),
        (
            "4:memory:/job",
            {f"memory/{k}": v for k, v in {
                "memory.limit_in_bytes": "9000", "memory.usage_in_bytes": "8000",
                "memory.stat": "inactive_file 1\ntotal_inactive_file 500\ntotal_active_file 100",
            }.items()},
            1600,
        ),
        ("0::/", {"memory.max": "max", "memory.current": "7000", "memory.stat": ""}, None),
        ("4:cpu:/job", {"job/memory.max": "1"}, None),
    ],
)  # fmt: skip
def test_a_containers_limit_counts_as_the_end_of_memory(tmp_path, monkeypatch, line, files, taken):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**6))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(f"7:pids:/\n{line}\n")
    assert free_on_cpu(tmp_path, tmp_path / "own") == (10**6 if taken is None else taken)
