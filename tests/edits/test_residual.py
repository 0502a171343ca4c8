"""Residual shifts: fitted as Rimsky et al. (2023) write them, acting where they say; pairs scored by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.by_hand import seen_inputs
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.activations import HeadActivations
from trimtab.datasets import ContrastPair, PairSet, from_file
from trimtab.edits.disk import load_shift
from trimtab.edits.vectors import ResidualShift
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadDataset, BadValue, Incompatible, ShapeError
from trimtab.evaluate import contrast, score_texts
from trimtab.models.adding import changed_residual
from trimtab.probes import fit_logistic
from trimtab.steer import ShiftSpec, Sweep, choose_strength, fit, fit_residual_shift
from trimtab.steer.pipeline import unseen

PAIRS = Path(__file__).parents[2] / "examples" / "formal_casual.jsonl"


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    return from_file(PAIRS)[:20]


@pytest.fixture(scope="module")
def captured(pairs) -> HeadActivations:
    return capture_heads(tiny_model(), tiny_tokenizer(), pairs.statements(), site="residual")


def test_the_vector_is_the_mean_difference_over_pairs(pairs, captured):
    shift = fit_residual_shift(captured, fit_logistic(captured), top_k=2)
    model, tokenizer = tiny_model(), tiny_tokenizer()

    def last(pair: ContrastPair, text: str, layer: int) -> torch.Tensor:
        ids = tokenizer(f"{pair.prompt} {text}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            # the last layer's own output is not among the hidden states (they hold its normalised form)
            return model(ids, output_hidden_states=True).hidden_states[layer + 1][0, -1]

    for layer, vector in zip(shift.layers, shift.vectors, strict=True):
        if layer == 2:
            continue
        differences = [last(p, p.positive[0], layer) - last(p, p.negative[0], layer) for p in pairs]
        assert torch.allclose(vector, torch.stack(differences).mean(0), atol=1e-5)
    assert any(layer != 2 for layer in shift.layers)


def test_vectors_that_are_no_numbers_and_folders_that_hold_them_are_refused(tmp_path):
    shift = ResidualShift((0,), torch.ones(1, 48))
    with pytest.raises(BadValue, match="the shift's vectors must be finite numbers; fit it again"):
        ResidualShift((0,), torch.full((1, 48), float("nan")))
    shift.vectors[0, 0] = float("inf")
    shift.save(tmp_path / "shift")
    with pytest.raises(Incompatible, match=r"shift holds a damaged shift \(.*finite numbers.*\); fit it again"):
        load_shift(tmp_path / "shift")


def test_questions_with_more_answers_do_not_weigh_more():
    values = torch.zeros(5, 1, 1, 2)
    values[:, 0, 0, 0] = torch.tensor([1.0, 3.0, 0.0, 10.0, 0.0])
    labels = torch.tensor([True, True, False, True, False])
    acts = HeadActivations(values, labels, ("a", "a", "a", "b", "b"), (0,), {"site": "residual"})
    probes = fit_logistic(acts, validation=HeadActivations(values, labels, ("c",) * 3 + ("d",) * 2, (0,)))
    # ((1 + 3) / 2 - 0 + 10 - 0) / 2
    assert fit_residual_shift(acts, probes).vectors[0].tolist() == [6.0, 0.0]


def test_mistakes_are_refused(captured):
    probes = fit_logistic(captured)
    with pytest.raises(BadValue, match="site='residual'"):
        fit_residual_shift(HeadActivations(captured.values, captured.labels, captured.groups, captured.layers,
                                           {"site": "heads"}), probes)  # fmt: skip
    only = captured.select(torch.tensor([i != 0 for i in range(len(captured))]))
    with pytest.raises(BadDataset, match="only negative"):
        fit_residual_shift(only, probes)
    with pytest.raises(BadValue, match="stands twice"):
        ResidualShift((0, 0), torch.ones(2, 4))
    with pytest.raises(ShapeError, match="one row each"):
        ResidualShift((0,), torch.ones(2, 4))
    with (
        pytest.raises(BadValue, match="no layer 7: the model has layers 0-2"),
        changed_residual(tiny_model(), {7: torch.ones(48)}),
    ):
        pass
    with pytest.raises(ShapeError, match="expected"), changed_residual(tiny_model(), {0: torch.ones(4)}):
        pass


def test_only_the_declared_layers_and_positions_change():
    model, ids = tiny_model(dtype=torch.float64), torch.arange(5, 14)[None]
    shift = ResidualShift((1,), torch.ones(1, 48), 2.0)
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[0, 4:6] = True

    def states() -> dict[str, torch.Tensor]:
        # what enters a layer is what left the one before, after all hooks on it
        entering = {str(i): model.model.layers[i] for i in (1, 2)}
        return seen_inputs(model, entering, lambda: model(ids, use_cache=False))

    before = states()
    with shift.applied(model, mask):
        after = states()
    assert torch.equal(after["1"], before["1"])
    moved = after["2"] - before["2"]
    assert torch.allclose(moved[0, 4:6], torch.full((2, 48), 2.0, dtype=torch.float64), atol=1e-12)
    assert not moved[0, :4].any()
    assert not moved[0, 6:].any()


def test_load_shift_tells_the_kinds_apart_and_finds_the_shift_of_a_run(tmp_path):
    residual = ResidualShift((1,), torch.ones(1, 48))
    residual.save(tmp_path / "run" / "shift")
    (tmp_path / "run" / "record.json").write_text('{"kind": "fit"}')
    assert isinstance(load_shift(tmp_path / "run" / "shift"), ResidualShift)
    assert isinstance(load_shift(tmp_path / "run"), ResidualShift)
    (tmp_path / "run" / "shift" / "tensors.safetensors").unlink()
    with pytest.raises(Incompatible, match="no readable tensors"):
        load_shift(tmp_path / "run")
    with pytest.raises(Incompatible, match=r"expected an edit at .*nowhere, there is none; there is run$"):
        load_shift(tmp_path / "nowhere")


def test_pair_scores_are_sums_over_each_side(pairs):
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    scores = contrast(model, tokenizer, pairs[:3])

    def total(prompt: str, text: str) -> float:
        whole = tokenizer(f"{prompt} {text}")["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(float(logprobs[i - 1, whole[i]]) for i in range(start, len(whole)))

    for row, pair in zip(scores.rows, pairs[:3], strict=True):
        a, b = total(pair.prompt, pair.positive[0]), total(pair.prompt, pair.negative[0])
        # the space before an answer is a token of its own here or part of the first one
        assert row.positive - row.negative == pytest.approx(a - b, abs=1e-6)
        assert row.probability == pytest.approx(1 / (1 + math.exp(b - a)), abs=1e-9)
    assert float(scores.preferred) == np.mean([r.positive > r.negative for r in scores.rows])
    assert json.loads(json.dumps(scores.as_dict()))["rows"][0]["prompt"] == pairs[0].prompt


def test_several_texts_of_a_side_count_with_their_mean():
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    sides = ("Good day to you.", "Good morning to all of you here."), ("Hi there.", "Hey.")
    (row,) = contrast(model, tokenizer, PairSet((ContrastPair("Greet me.", *sides),))).rows
    alone = [
        contrast(model, tokenizer, PairSet((ContrastPair("Greet me.", (one,), (other,)),))).rows[0]
        for one, other in zip(*sides, strict=True)
    ]
    assert row.positive == pytest.approx(np.mean([one.positive for one in alone]))
    assert row.negative == pytest.approx(np.mean([one.negative for one in alone]))


def test_pairs_without_a_prompt_are_scored_after_the_first_token():
    bare = PairSet((ContrastPair("", ("Good day to you.",), ("Hi there.",)),))
    row = contrast(tiny_model(), tiny_tokenizer(), bare).rows[0]
    assert row.positive < 0
    with pytest.raises(BadValue, match="no prompt to continue"):
        score_texts(tiny_model(), tiny_tokenizer(), bare, scorer=lambda pair, text: 1.0)


def test_a_callable_scores_what_is_generated_and_nonsense_names_it(pairs):
    def length(pair: ContrastPair, text: str) -> float:
        return min(1.0, len(text) / 100)

    scores = score_texts(tiny_model(), tiny_tokenizer(), pairs[:2], scorer=length, max_new_tokens=5)
    assert [r.score for r in scores.rows] == [min(1.0, len(r.text) / 100) for r in scores.rows]

    def grader(pair: ContrastPair, text: str) -> float:
        return "rather formal"  # pyright: ignore

    with pytest.raises(BadValue, match="scorer grader returned 'rather formal'"):
        score_texts(tiny_model(), tiny_tokenizer(), pairs[:1], scorer=grader, max_new_tokens=2)


def test_a_residual_shift_moves_the_pairs_it_was_not_fitted_on(pairs):
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    fitted = fit(model, tokenizer, pairs, ShiftSpec("residual", strength=1))
    other = from_file(PAIRS)[20:]
    means = [
        float(np.mean([r.positive - r.negative for r in contrast(model, tokenizer, other, e).rows]))
        for e in (fitted.shift.scaled(-1), None, fitted.shift)
    ]
    assert means[0] != means[1] != means[2]
    assert len(unseen(from_file(PAIRS), fitted.shift)) == 20
    with pytest.raises(BadDataset, match="fitted on all 20 questions"):
        unseen(pairs, fitted.shift)


def test_strength_is_chosen_by_a_callable_for_residual_shifts(pairs, captured):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    shift = fit_residual_shift(captured, fit_logistic(captured), top_k=2)
    texts = ["The river is wide and slow here."]
    chosen = choose_strength(
        model, tokenizer, pairs[:4], shift, kl_budget=50, metric="pair_probability", sweep=Sweep((-1, 1), texts=texts)
    )
    sweep = chosen.record["sweep"]
    best = max(sweep["trials"][1:], key=lambda t: t["score"])
    assert sweep["metric"] == "pair_probability"
    assert (chosen.strength, len(chosen)) == (best["strength"], best["top_k"])
    assert best["score"] == pytest.approx(float(contrast(model, tokenizer, pairs[:4], chosen).probability), abs=1e-6)
