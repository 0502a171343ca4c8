"""ITI from start to table: on a tiny model with TruthfulQA, and the rules of `iti_run`."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import trimtab as tt
from tests.measuring import random_shift
from tests.tiny import COMMON, tiny_model, tiny_questions, tiny_tokenizer
from trimtab.compare.design import Parts
from trimtab.datasets import iti_folds, neutral_texts, truthfulqa
from trimtab.errors import BadValue
from trimtab.published.iti_run import ItiSettings, iti_run
from trimtab.steer import CAA, ITI, RandomDirection
from trimtab.steer.random import one_seed
from trimtab.steer.sites import RANKING


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_truthfulqa_runs_through_fit_and_evaluate(shared_data, every):
    # the longest statement has more of the tiny tokenizer's tokens than the tiny models' context
    roomy = LlamaConfig(**{**COMMON, "max_position_embeddings": 512})
    model, tokenizer = AutoModelForCausalLM.from_config(roomy).eval(), tiny_tokenizer()
    questions = truthfulqa(shared_data / "truthfulqa" / "mc_task.json")
    train, validation, test = (questions.select(part[::every]) for part in iti_folds()[0])
    acts = tt.capture_heads(model, tokenizer, train.statements("iti"), batch_size=128)
    held = tt.capture_heads(model, tokenizer, validation.statements("iti"), batch_size=128)
    assert len(acts) + len(held) == sum(len(q.correct) + len(q.incorrect) for q in [*train, *validation])
    probes = tt.probes.fit_logistic(acts, validation=held)
    assert set(probes.validation_questions) == {q.question for q in validation}
    shift = tt.steer.fit_shift(acts, probes, top_k=4).scaled(8)
    plain = tt.evaluate.multiple_choice(model, tokenizer, test, batch_size=128)
    steered = tt.evaluate.multiple_choice(model, tokenizer, test, shift, batch_size=128)
    assert len(plain.rows) == len(steered.rows) == -(-409 // every)
    assert all(a.answers != b.answers for a, b in zip(plain.rows, steered.rows, strict=True))


@pytest.fixture(scope="module")
def small_run():
    """One run on a tiny random model whose strength is chosen for next to no drift."""
    texts = neutral_texts(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.steer.strength.validation_texts", lambda: texts)
        patch.setattr(import_module("trimtab.evaluate.drift"), "neutral_texts", lambda: texts)
        model, tokenizer, questions = tiny_model(), tiny_tokenizer(), tiny_questions(20)
        parts = questions[:10], questions[10:15], questions[15:]
        with pytest.warns(UserWarning, match="no setting within"):
            other = replace(random_shift(model, seed=1), name="Other")
            settings = ItiSettings(top_k=4, kl_budget=0.5, shots=2, draws=3)
            return iti_run(model, tokenizer, Parts(*parts), settings, others=[other])


def test_a_run_has_its_rows_measured_on_the_test_questions(small_run):
    assert [row.name for row in small_run.table.rows] == [
        "Baseline",
        "Few-shot",
        "ITI",
        "Few-shot + ITI",
        "Other",
        "Random direction",
    ]
    asked = {row["question"] for row in small_run.table["ITI"].details["generated"]}
    assert asked == {q.question for q in tiny_questions(20)[15:]}
    assert small_run.table["Baseline"].kl == 0 < small_run.table["ITI"].kl <= 1
    assert set(small_run.probes.validation_questions) == {q.question for q in tiny_questions(20)[10:15]}


def test_a_saved_run_holds_shift_probes_pictures_and_every_row(small_run, tmp_path):
    small_run.save(tmp_path / "run")
    small_run.save(tmp_path / "run")  # a run of the same kind may be written again
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["sweep"]["chosen"]["top_k"] == len(small_run.shift.heads)
    assert tt.steer.HeadShift.load(tmp_path / "run" / "shift").heads == small_run.shift.heads
    assert tt.probes.HeadProbes.load(tmp_path / "run" / "probes").top(3) == small_run.probes.top(3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_the_random_row_is_the_control_of_the_chosen_shift(small_run):
    shift = small_run.shift
    drawn = [*RandomDirection().edits(shift, 3, seed=(0,))]
    assert len(small_run.controls) == 3
    for control, again in zip(small_run.controls, drawn, strict=True):
        assert torch.equal(control.directions, again.directions) and control.heads == shift.heads
        for head, delta in control.deltas.items():
            assert float(delta.norm()) == pytest.approx(float(shift.deltas[head].norm()), rel=1e-5)
    one, other, _ = small_run.controls
    assert not torch.allclose(one.directions, other.directions)


def test_every_seed_fold_and_draw_has_a_seed_of_its_own_within_what_torch_reads():
    numbers = [*product((0, 1, 2, 42, 20_241_231), range(10), range(50))]
    seeds = [one_seed(three) for three in numbers]
    assert len(set(seeds)) == len(numbers) and max(seeds) < 2**32
    assert [one_seed((0, i)) for i in range(3)] == [0, 1, 2]
    drawn = [torch.randn(4, generator=torch.Generator().manual_seed(s)) for s in seeds[:200]]
    assert len({tuple(d.tolist()) for d in drawn}) == 200


@pytest.mark.parametrize("method", [ITI(top_ks=(2,), alphas=(1,)), CAA(ranks=(1,), alphas=(1,))])
def test_vectors_come_from_questions_that_ranked_nothing(method):
    model, tokenizer, train = tiny_model(), tiny_tokenizer(), tiny_questions(10)
    shift = method.fit(model, tokenizer, train, seed=3)
    fitted_on, ranking = train.split(test=0.2, seed=3)
    assert set(shift.validated_on) == {q.key for q in ranking}
    assert set(shift.fitted_on) == {q.key for q in train}
    acts = tt.capture_heads(model, tokenizer, fitted_on.statements(), site=method.site)
    for (layer, head), row in zip(shift.probed, shift.rows, strict=True):
        x = acts.values[:, acts.layers.index(layer), head].double()
        direction = x[acts.labels].mean(0) - x[~acts.labels].mean(0)
        assert float(torch.cosine_similarity(row.double(), direction, dim=0)) == pytest.approx(1, abs=1e-3)


def test_parts_that_share_a_question_and_too_many_shots_are_refused():
    model, tokenizer, questions = tiny_model(), tiny_tokenizer(), tiny_questions()
    with pytest.raises(BadValue, match="must not share"):
        iti_run(model, tokenizer, Parts(questions[:6], questions[5:8], questions[8:]))
    with pytest.raises(BadValue, match="7 shots asked for; there are 6"):
        iti_run(model, tokenizer, Parts(questions[:6], questions[6:8], questions[8:]), ItiSettings(shots=7))


def test_the_benchmark_averages_seeds_and_draws_inside_a_question(small_run):
    program = Path(__file__).parents[2] / "benchmarks" / "embedded.py"
    spec = importlib.util.spec_from_file_location("embedded_benchmark", program)
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    one = small_run.table
    mean = benchmark.mean_over_seeds([one, one])
    assert list(mean) == [row.name for row in one.rows]
    for row in one.rows:
        for metric in ("true", "info", "unmatched", "mc1", "mc2", "ce", "kl"):
            value = getattr(row, metric)
            assert (mean[row.name][metric] is None) == (value is None)
            if value is not None:
                assert mean[row.name][metric]["mean"] == pytest.approx(float(value))
    # clusters are questions, or texts for CE and KL, however many seeds and draws measured them
    assert mean["Random direction"]["mc2"]["n"] == mean["ITI"]["mc2"]["n"] == 5
    assert mean["Random direction"]["kl"]["n"] == 3
    assert mean["ITI"]["mc2"]["low"] < mean["ITI"]["mc2"]["mean"] < mean["ITI"]["mc2"]["high"]
    assert "| Other | " in benchmark.markdown(mean, one.meters)


@pytest.mark.parametrize("method", [ITI(), CAA()])
@pytest.mark.parametrize("knobs", [{"alpha": 1.0}, {"alpha": 1.0, "k": 3}, {"alpha": 1.0, "top_k": 1, "rank": 1}])
def test_knobs_that_a_method_does_not_have_are_refused_by_name(method, knobs):
    model, tokenizer, questions = tiny_model(), tiny_tokenizer(), tiny_questions(4)
    with pytest.raises(BadValue, match=f"{method.name} takes the knobs (top_k|rank) and alpha, got {', '.join(knobs)}"):
        method.fit(model, tokenizer, questions, knobs=knobs)


@pytest.mark.parametrize("direction", ["mass_mean", "probe"])
def test_the_method_is_the_fit_by_hand_on_the_statements_of_its_questions(direction):
    model, tokenizer, questions = tiny_model(), tiny_tokenizer(), tiny_questions(10)
    made = ITI(direction).fit(model, tokenizer, questions, knobs={"top_k": 4, "alpha": 2}, seed=1)
    train, ranking = questions.split(test=RANKING, seed=1)
    acts, held = (tt.capture_heads(model, tokenizer, part.statements()) for part in (train, ranking))
    probes = tt.probes.fit_logistic(acts, validation=held, seed=1)
    by_hand = tt.steer.fit_shift(acts, probes, top_k=4, direction=direction).scaled(2)
    assert (made.heads, made.strength) == (by_hand.heads, 2)
    torch.testing.assert_close(made.directions, by_hand.directions)
    # the spread is that of true and false statements alike (Li et al. 2023, section 3.1)
    for head, unit, sigma in zip(made.heads, made.directions, made.sigma, strict=True):
        along = acts.values[:, acts.layers.index(head.layer), head.head].double() @ unit.double()
        assert float(sigma) == pytest.approx(float(along.std(correction=0)), rel=1e-5)
        assert float(sigma) != pytest.approx(float(along[acts.labels].std(correction=0)), rel=1e-3)
