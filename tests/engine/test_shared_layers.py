"""Layers below an edit run once: the same drift to the bit, fewer layers run, nothing left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer
from trimtab.activations import Head
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.prompts import Prompted
from trimtab.edits.vectors import HeadShift, ResidualShift
from trimtab.engine.shared_layers import SharedLayers
from trimtab.evaluate.drift import drifts
from trimtab.models.anatomy import decoder_layers
from trimtab.models.heads import find_heads
from trimtab.protocols import ALL_LAYERS, Edit, Findings, Positions

TEXTS = ["The sky.", "Snow fell on the old road all night.", "It rained.", "A cart went by, and then another one."]


class Secretive(Edit):
    """The same edit, which does not say where it acts."""

    def __init__(self, edit: Edit) -> None:
        self.edit, self.name = edit, edit.name

    def applied(self, model: Any, positions: Positions = "generated") -> Any:
        return self.edit.applied(model, positions)


def last_layer_shift(model: Any, strength: float = 1.0) -> HeadShift:
    site = find_heads(model)[-1]
    direction = nn.functional.normalize(torch.randn(1, site.d_head, generator=torch.Generator().manual_seed(3)), dim=1)
    return HeadShift((Head(site.layer, 1),), direction, torch.ones(1), strength)


def last_layer_residual(model: Any) -> ResidualShift:
    vector = torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(4))
    return ResidualShift((len(decoder_layers(model)) - 1,), vector)


@pytest.fixture
def layer_runs() -> Iterator[Counter[type]]:
    """Count forwards of the models' layers that were really run, by what stands behind a replaced forward."""
    runs: Counter[type] = Counter()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: runs.update([type(module)]))
    yield runs
    handle.remove()


def measured(model: Any, edits: list[Any]) -> list[Any]:
    return [d.per_text for d in drifts(model, tiny_tokenizer(), list[Any](edits), texts=TEXTS, batch_size=3)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_drift_is_the_same_to_the_bit(family: str) -> None:
    model = tiny_model(family)
    edits = [last_layer_shift(model), last_layer_residual(model), last_layer_shift(model, -2.0)]
    found, expected = measured(model, edits), measured(model, [Secretive(edit) for edit in edits])
    assert found == expected
    assert len({kl for pairs in found for _, kl in pairs}) == 12  # the control: every edit moves every text


def test_the_layers_below_run_once_for_all_edits(layer_runs: Counter[type]) -> None:
    model = tiny_model("llama")
    attention = type(decoder_layers(model)[0].self_attn)
    n_layers = len(decoder_layers(model))

    def count(edits: list[Any]) -> int:
        layer_runs.clear()
        measured(model, edits)
        return layer_runs[attention]

    shifts = [last_layer_shift(model, strength) for strength in (1.0, 2.0, 3.0)]
    one, three = count(shifts[:1]), count(shifts)
    assert three - one == 2 * 2  # two batches, one layer for each further shift
    hidden = [Secretive(shift) for shift in shifts]
    assert count(hidden) - count(hidden[:1]) == 2 * 2 * n_layers


def test_an_edit_says_which_layers_it_leaves() -> None:
    few_shot = Prompted((("What is snow?", "Snow is white."),))
    shift = last_layer_shift(tiny_model("llama"))
    low = HeadShift((Head(2, 0), Head(0, 1)), torch.eye(12)[:2], torch.ones(2))
    assert (shift.unchanged_layers, low.unchanged_layers) == (shift.heads[0].layer, 0)
    assert Stacked((few_shot, shift)).unchanged_layers == shift.unchanged_layers > 0
    assert Stacked((low, shift)).unchanged_layers == 0
    assert Stacked((shift, Secretive(few_shot))).unchanged_layers == 0
    assert NoEdit().unchanged_layers == Stacked((NoEdit(), few_shot)).unchanged_layers == ALL_LAYERS


def test_a_layer_that_takes_more_than_the_output_below_is_noticed() -> None:
    model = tiny_model("llama")
    first, last = decoder_layers(model)[0], decoder_layers(model)[-1]
    seen: list[torch.Tensor] = []
    run = first.forward

    def forward(hidden: torch.Tensor, **options: Any) -> torch.Tensor:
        seen[:] = [hidden]
        return run(hidden, **options)

    first.forward = forward
    later = last.forward

    def looks_back(hidden: torch.Tensor, **options: Any) -> torch.Tensor:
        seen[0] = seen[0] * 1.5  # a state that every run of the first layer renews
        return later(hidden + seen[0], **options)

    last.forward = looks_back
    edits = [last_layer_shift(model)]
    assert SharedLayers(model, [last_layer_shift(model).unchanged_layers]).starts == set()
    assert measured(model, edits) == measured(model, [Secretive(edit) for edit in edits])


def test_forwards_are_as_before_also_after_an_error() -> None:
    model = tiny_model("gpt2")
    first, second = decoder_layers(model)[:2]
    own = second.forward
    second.forward = own
    shared = SharedLayers(model, [2])
    assert shared.starts == {2}
    with pytest.raises(RuntimeError, match="stop"), shared.recording(), shared.resumed(2):
        assert "forward" in vars(first)
        raise RuntimeError("stop")
    assert "forward" not in vars(first) and vars(second)["forward"] is own


def test_drift_of_calls_that_share_findings_is_that_of_each_call_alone() -> None:
    model, findings = tiny_model("llama"), Findings()
    last = last_layer_residual(model)
    middle = ResidualShift((1,), last.vectors)
    for edits, texts in (
        ([middle, last], TEXTS[:2]),
        ([last], TEXTS[:2]),
        ([last], TEXTS[2:]),
        ([middle], TEXTS[2:]),  # what it starts from was recorded of these texts
    ):
        shared, alone = (
            [of.per_text for of in drifts(model, tiny_tokenizer(), list[Edit](edits), texts=texts, findings=given)]
            for given in (findings, None)
        )
        assert shared == alone
