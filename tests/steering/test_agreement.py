"""agreement: how far directions, heads and MC1 move between two loads of one model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.planted import LAYERS, PLANTED, activations, planted_direction
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.activations import Head, HeadActivations
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadDataset, BadValue, Incompatible, ShapeError
from trimtab.evaluate import multiple_choice
from trimtab.evaluate.multiple_choice import MultipleChoice
from trimtab.probes import fit_logistic
from trimtab.steer import Agreement, MassMean, agreement

ACTS = activations(60)


def compare(one: HeadActivations, other: HeadActivations, **options: int) -> Agreement:
    return agreement(one, fit_logistic(one), other, fit_logistic(other), **options)


def test_a_model_agrees_wholly_with_itself() -> None:
    found = compare(ACTS, ACTS, top_k=3)
    assert torch.allclose(found.cosine, torch.ones(3, 4, dtype=torch.float64))
    assert found.top == found.other_top == found.shared and found.overlap == 1
    assert found.top[0] == PLANTED
    assert found.mc1 is None
    assert found.chance_overlap == 3 / 12


def test_a_turned_direction_shows_in_its_head_alone_by_its_cosine() -> None:
    layer, values = LAYERS.index(PLANTED.layer), ACTS.values.clone()
    means = [values[ACTS.labels == label, layer, PLANTED.head].mean(0) for label in (True, False)]
    direction = means[0] - means[1]
    across = torch.linalg.qr(torch.stack([direction, torch.eye(8)[0]], dim=1)).Q[:, 1] * direction.norm()
    side = torch.where(ACTS.labels, 0.5, -0.5)
    turned = 0.6 * direction + 0.8 * across - direction
    values[:, layer, PLANTED.head] += side[:, None] * turned
    found = compare(ACTS, replace(ACTS, values=values)).cosine
    expected = torch.ones(3, 4, dtype=torch.float64)
    expected[layer, PLANTED.head] = 0.6
    assert torch.allclose(found, expected, atol=1e-5)


def test_heads_that_read_only_in_one_model_are_not_shared() -> None:
    values = ACTS.values.clone()
    moved = torch.where(ACTS.labels, 2.0, -2.0)[:, None] * planted_direction()
    values[:, LAYERS.index(PLANTED.layer), PLANTED.head] -= moved
    values[:, 0, 0] += moved
    found = compare(ACTS, replace(ACTS, values=values), top_k=1)
    assert found.top == (PLANTED,) and found.other_top == (Head(LAYERS[0], 0),)
    assert found.shared == () and found.overlap == 0


def test_the_difference_in_mc1_is_paired_over_the_questions() -> None:
    questions, tokenizer = tiny_questions(12), tiny_tokenizer()
    scores = tuple(multiple_choice(tiny_model("llama", seed=s), tokenizer, questions) for s in (0, 1))
    probes = fit_logistic(ACTS)
    found = agreement(ACTS, probes, ACTS, probes, scores=scores)
    assert found.mc1 is not None and found.mc1 == pytest.approx(float(scores[1].mc1) - float(scores[0].mc1))
    three, all_twelve = (
        replace(scores[0], rows=tuple(replace(row, mc1=float(i < n)) for i, row in enumerate(scores[0].rows)))
        for n in (3, 12)
    )
    assert agreement(ACTS, probes, ACTS, probes, scores=(three, all_twelve)).mc1 == pytest.approx(0.75)
    same = agreement(ACTS, probes, ACTS, probes, scores=(scores[0], scores[0]))
    assert same.mc1 is not None and (same.mc1, same.mc1.low, same.mc1.high) == (0, 0, 0)
    assert json.loads(json.dumps(found.as_dict()))["mc1"]["n"] == 12
    with pytest.raises(BadDataset, match="asked other questions"):
        agreement(
            ACTS, probes, ACTS, probes,
            scores=(scores[0], multiple_choice(tiny_model("llama"), tokenizer, tiny_questions(5))),
        )  # fmt: skip


def test_what_cannot_be_compared_is_refused() -> None:
    probes = fit_logistic(ACTS)
    with pytest.raises(ShapeError, match="compare two loads of one model"):
        compare(ACTS, activations(60, n_heads=5))
    with pytest.raises(BadDataset, match="other statements"):
        compare(ACTS, activations(60, prefix="other"))
    with pytest.raises(BadDataset, match="other statements"):
        compare(ACTS, replace(ACTS, labels=~ACTS.labels))
    with pytest.raises(BadValue, match="fit both with the same seed"):
        agreement(ACTS, probes, ACTS, fit_logistic(ACTS, seed=1))
    with pytest.raises(BadValue, match="top 13 heads"):
        agreement(ACTS, probes, ACTS, probes, top_k=13)


def test_saved_directions_agree_as_the_activations_do(tmp_path) -> None:
    MassMean.of(ACTS).save(tmp_path / "d")
    saved, probes, shuffled = MassMean.load(tmp_path / "d"), fit_logistic(ACTS), activations(60, seed=1)
    other = fit_logistic(shuffled)
    told = agreement(ACTS, probes, shuffled, other, top_k=3)
    again = agreement(saved, probes, MassMean.of(shuffled), other, top_k=3)
    assert torch.allclose(told.cosine, again.cosine, atol=1e-6)
    assert float(told.cosine.min()) < 0.9
    assert told.top == again.top and told.other_top == again.other_top
    with pytest.raises(BadDataset, match="other statements"):
        agreement(saved, probes, MassMean.of(activations(60, prefix="other")), other)


def test_another_checkpoint_of_the_same_architecture_is_refused() -> None:
    statements, tokenizer = tiny_questions(12).statements(), tiny_tokenizer()
    one, other = (capture_heads(tiny_model("llama", seed=s), tokenizer, statements) for s in (0, 1))
    probes = fit_logistic(one)
    assert agreement(one, probes, one, probes, top_k=1).overlap == 1
    with pytest.raises(Incompatible, match="different checkpoints"):
        agreement(one, probes, other, fit_logistic(other), top_k=1)


def test_multiple_choice_comes_back_from_json_and_other_conventions_do_not_compare() -> None:
    model, tokenizer, questions = tiny_model("llama", context=2000), tiny_tokenizer(), tiny_questions(3)
    plain, primed = (multiple_choice(model, tokenizer, questions, convention=c) for c in ("plain", "lm-eval"))
    back = MultipleChoice.from_dict(json.loads(json.dumps(plain.as_dict())))
    assert back == plain and back.mc1.low == plain.mc1.low
    probes = fit_logistic(ACTS)
    with pytest.raises(BadDataset, match="as plain and as lm-eval"):
        agreement(ACTS, probes, ACTS, probes, scores=(back, primed))
