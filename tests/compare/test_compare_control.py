"""The random control: ITI's heads and norms in several random directions, nothing chosen, an interval over draws."""

from __future__ import annotations

import html
import json

import numpy as np
import pytest
import torch

from tests.comparing import METERS, FailsInFoldOf, SpyMethod, tiny_run
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.cli.comparison_methods import method_of
from trimtab.compare import Comparison, Design, Job
from trimtab.compare.design import Unit, named
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadValue
from trimtab.intervals import share
from trimtab.protocols import Control
from trimtab.report.html import to_html
from trimtab.report.markdown import to_markdown
from trimtab.steer import ITI, RandomDirection

STEERING = ITI(top_ks=(2, 4), alphas=(1, 400))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("control") / "run"
    # the control stands first: it waits for what it follows
    return folder, tiny_run(folder, [RandomDirection(draws=3), STEERING], seeds=(0, 1))


def draws_of(folder, fold, seed):
    found = sorted((folder / "records").glob(f"random-direction-*-fold{fold}-seed{seed}/trial-*.json"))
    return [json.loads(path.read_text()) for path in found]


def test_it_takes_the_setting_that_iti_chose_in_the_same_fold_and_seed_on_the_same_heads(done):
    folder, result = done
    for test in result.of("ITI"):
        chosen = result.trial(test, test["best"])["knobs"]
        shifted = test["measured"][str(test["best"])]["edit"]
        draws = draws_of(folder, test["fold"], test["seed"])
        assert [d["knobs"] for d in draws] == [{**chosen, "draw": i} for i in range(3)]
        for draw in draws:
            assert draw["measured"]["edit"]["heads"] == shifted["heads"]
            assert draw["measured"]["edit"]["strength"] == shifted["strength"]
            assert draw["measured"]["edit"]["direction"] == "random"


def test_every_draw_has_a_seed_of_its_own_made_of_seed_and_fold(done):
    folder, _ = done
    drawn = [d["measured"]["edit"]["seed"] for s in (0, 1) for f in (0, 1) for d in draws_of(folder, f, s)]
    assert drawn == [[s, f, i] for s in (0, 1) for f in (0, 1) for i in range(3)]


def test_a_draw_keeps_heads_and_norms_and_changes_only_the_directions():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    shift = STEERING.fit(model, tokenizer, tiny_questions(6), knobs={"top_k": 4, "alpha": 3})
    control = RandomDirection()
    one, again, fold, other = (
        [*control.edits(shift, number + 1, seed=s)][number]
        for s, number in (((0, 0), 0), ((0, 0), 0), ((0, 1), 0), ((0, 0), 1))
    )
    assert one.heads == shift.heads and torch.equal(one.sigma, shift.sigma)
    for head, delta in one.deltas.items():
        torch.testing.assert_close(delta.norm(), shift.deltas[head].norm(), rtol=1e-5, atol=0)
    assert torch.equal(one.directions, again.directions)
    for different in (fold, other, shift):
        assert not torch.allclose(one.directions, different.directions, atol=1e-2)


def test_its_row_is_the_mean_over_draws_with_an_interval_over_them_and_no_test(done):
    folder, result = done
    row = result.row("Random direction")
    scores = []
    for seed in (0, 1):
        for fold in (0, 1):
            for draw in draws_of(folder, fold, seed):
                said = draw["measured"]["rows"]["generated"].values()
                scores.append(np.mean([q["true"] for q in said]) * np.mean([q["informative"] for q in said]))
    assert sorted(row.draws) == pytest.approx(sorted(scores)) and len(scores) == 12
    expected = share(row.draws)
    assert row.metrics["true_info"].estimate.as_dict() == expected.as_dict()
    assert expected.n == 12  # draws, not questions
    assert row.metrics["kl"].estimate.n == 12 and float(row.metrics["kl"].estimate) > 0
    assert row.differences == {}
    assert result.row("ITI").differences  # the control
    # one test for each metric, so that Holm's correction has nothing to correct
    assert result.row("ITI").differences["mc1"].p_holm == result.row("ITI").differences["mc1"].p
    assert (row.n_done, row.n_units, row.n_kept) == (4, 4, None)


def test_the_report_says_what_the_row_is(done):
    _, result = done
    low, high = (100 * f(result.row("Random direction").draws) for f in (min, max))
    note = f"12 random draws with ITI's heads and norms, True*Info {low:.0f} to {high:.0f} %"
    for text in (to_html(result), to_markdown(result)):
        assert note in html.unescape(text)
    tested = to_markdown(result).split("| questions |")[1].split("fitted or stored")[0]
    assert "ITI" in tested and "Random direction" not in tested


def test_a_killed_control_loses_only_the_draw_in_flight(done, tmp_path):
    import shutil

    folder, result = done
    shutil.copytree(folder, tmp_path / "run")
    unit = next((tmp_path / "run" / "records").glob("random-direction-*-fold1-seed1"))
    for name in ("test.json", "trial-002.json"):
        (unit / name).unlink()
    kept = (unit / "trial-001.json").read_bytes()
    again = tiny_run(tmp_path / "run", [RandomDirection(draws=3), STEERING], seeds=(0, 1))
    assert (unit / "trial-001.json").read_bytes() == kept
    assert again.row("Random direction").draws == pytest.approx(result.row("Random direction").draws)


def test_it_fails_where_what_it_follows_failed_and_says_so(tmp_path):
    job = Job(named([SpyMethod()]), tiny_questions(12), None, Design(2, (0,), 2), METERS)
    marked = job.parts(Unit("Spy", 0, 0, None)).train[0].question
    result = tiny_run(
        tmp_path / "run", [FailsInFoldOf(marked), RandomDirection(draws=2, follows="Fragile")], seeds=(0,)
    )
    row = result.row("Random direction")
    assert (row.n_done, len(row.draws)) == (1, 2)
    assert row.notes[0].startswith("failed in fold 0, seed 0: Fragile, whose setting it takes, failed here")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: tiny_run(None, [RandomDirection()]), "takes the setting that 'ITI' chose, which is not among"),
        (lambda: RandomDirection(draws=1), "two or more draws"),
        (lambda: ITI(direction="random"), "must be mass_mean or probe, got 'random'; RandomDirection is the control"),
        (lambda: method_of("few-shot + random direction"), "cannot be part of a stack"),
        (lambda: next(RandomDirection().edits(NoEdit(), 1, seed=(0,))), "Baseline has no random counterpart"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(BadValue, match=message):
        make()


def test_it_is_a_control_and_methods_are_none():
    assert isinstance(RandomDirection(), Control)
    assert not isinstance(ITI(), Control)


def test_a_method_whose_settings_changed_is_done_anew_only_when_asked_and_takes_its_control_with_it(done, tmp_path):
    import shutil

    from trimtab.compare import run_job
    from trimtab.errors import Incompatible

    folder, _ = done
    shutil.copytree(folder, tmp_path / "run")
    methods = named([RandomDirection(draws=3), ITI(top_ks=(4,), alphas=(2,))])
    job = Job(methods, tiny_questions(12), None, Design(2, (0, 1), 2), METERS)
    both = tiny_model(), tiny_tokenizer()
    before = Comparison.load(tmp_path / "run")
    with pytest.raises(Incompatible, match=r"differs in method 'ITI', method 'Random direction'.*--redo-changed"):
        run_job(*both, job, tmp_path / "run")
    assert Comparison.load(tmp_path / "run") == before
    again = run_job(*both, job, tmp_path / "run", redo_changed=True)
    assert {t["knobs"]["alpha"] for t in again.trials if t["method"] != "Baseline"} == {2}
    assert again.of("Baseline") == before.of("Baseline")
    done_again = Comparison.load(tmp_path / "run")
    assert run_job(*both, job, tmp_path / "run", redo_changed=True) == done_again  # nothing has changed since
