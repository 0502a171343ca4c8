"""The plan of a comparison: what is missing and about how long it takes, without a look at the test questions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.comparing import SpyJudge, meters
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.compare import Design, Job, run_job
from trimtab.compare.design import named
from trimtab.compare.estimate import estimate
from trimtab.errors import Incompatible
from trimtab.peft import LoRA, Recipe
from trimtab.prompting import FewShot
from trimtab.steer import ITI, RandomDirection


def test_the_plan_times_validation_questions_and_never_shows_a_test_question(tmp_path):
    judge = SpyJudge()
    job = Job(
        named([FewShot(shots=(1,), draws=1), ITI(top_ks=(2,), alphas=(1,)), RandomDirection(draws=4)]),
        tiny_questions(12), tiny_questions(24)[12:], Design(1, (0,), 1), meters(judge, 3),
    )  # fmt: skip
    plan = estimate(tiny_model(), tiny_tokenizer(), job, tmp_path / "run")
    parts = job.parts(job.units[0])
    seen = {question for _, question in judge.log}
    assert seen and seen <= {q.question for q in parts.validation}
    assert not seen & {q.question for q in parts.test}
    assert plan.parts == {"train": 9, "choose": 3, "test": 12}
    rows = {row.method: row for row in plan.rows}
    assert rows["Random direction"].settings == 4
    assert rows["Random direction"].seconds > 0 and rows["ITI"].seconds > 0
    assert not (tmp_path / "run").exists()


def test_records_say_how_long_what_is_missing_takes(tmp_path):
    def job(shots, seeds):
        method = FewShot(shots=shots, draws=1)
        return Job(named([method]), tiny_questions(12), None, Design(2, seeds, 2), meters(SpyJudge(), 3))

    run_job(tiny_model(), tiny_tokenizer(), job((1, 2), (0,)), tmp_path / "run")
    for trial in (tmp_path / "run" / "records").glob("few-shot-*/trial-*.json"):
        record = json.loads(trial.read_text())
        trial.write_text(json.dumps({**record, "seconds": {"fit": 1000.0, "measure": 0.0}}))
    for last in (tmp_path / "run" / "records").glob("few-shot-*/t*[!1].json"):
        last.unlink()  # the first trials and the last measurements; the second trials stay
    (_, row) = estimate(tiny_model(), tiny_tokenizer(), job((1, 2), (0,)), tmp_path / "run").rows
    assert row.basis == "2 trial(s) on disk" and row.missing == 2
    assert 2000 <= row.seconds < 2500  # a trial in each of two units, and a last measurement


def test_timing_a_few_steps_of_tuning_gives_no_advice_to_take_more(tmp_path, recwarn):
    job = Job(
        named([LoRA(r=2, recipe=Recipe(batch_size=4))]), tiny_questions(12), tiny_questions(24)[12:],
        Design(1, (0,), 1), meters(SpyJudge(), 3),
    )  # fmt: skip
    plan = estimate(tiny_model(), tiny_tokenizer(), job, tmp_path / "run")
    assert plan.rows[-1].seconds > 0
    assert not [w for w in recwarn if "take more steps" in str(w.message)]


def test_a_low_data_curve_is_timed_on_the_questions_of_the_main_table(tmp_path):
    judge = SpyJudge()
    job = Job(
        named([FewShot(shots=(1,), draws=1)]), tiny_questions(12), tiny_questions(24)[12:],
        Design(1, (0,), 1, train_sizes=(3, None)), meters(judge, 3),
    )  # fmt: skip
    plan = estimate(tiny_model(), tiny_tokenizer(), job, tmp_path / "run")
    assert plan.parts == {"train": 9, "choose": 3, "test": 12}
    assert len({question for _, question in judge.log}) == 3  # at three training questions there is one to choose on
    assert [row.units for row in plan.rows] == [2, 2]


def test_of_few_questions_the_plan_counts_what_can_be_tried_on_them(tmp_path):
    job = Job(
        named([FewShot(shots=(1, 2, 4, 8), draws=1)]), tiny_questions(12), tiny_questions(24)[12:],
        Design(1, (0,), 4, train_sizes=(3, None)), meters(SpyJudge(), 3),
    )  # fmt: skip
    tries = {unit.size: job.n_tries(unit) for unit in job.units if unit.method == "Few-shot"}
    assert tries[3] == job.search(job.units[-1]._replace(size=3)).n < tries[None] == 4
    assert estimate(tiny_model(), tiny_tokenizer(), job, tmp_path / "run").rows[-1].settings == 4


def test_methods_on_disk_with_other_settings_count_as_missing(tmp_path):
    def job(shots):
        return Job(
            named([FewShot(shots=(shots,), draws=1)]), tiny_questions(12), tiny_questions(24)[12:],
            Design(1, (0,), 1), meters(SpyJudge(), 3),
        )  # fmt: skip

    run_job(tiny_model(), tiny_tokenizer(), job(1), tmp_path / "run")
    same, other = (estimate(tiny_model(), tiny_tokenizer(), job(n), tmp_path / "run").rows for n in (1, 2))
    assert [row.basis for row in same] == ["finished"] * 2
    assert [row.basis.endswith("on disk with other settings: needs --redo-changed") for row in other] == [False, True]
    assert other[1].missing == 1
    # another comparison that lies in the folder is not this one's
    run_job(tiny_model(), tiny_tokenizer(), job(2), tmp_path / "run" / "anew")
    inside = estimate(tiny_model(), tiny_tokenizer(), job(2), tmp_path / "run").rows[1]
    assert inside.missing == 1 and inside.basis.startswith("a few questions timed now")
    with pytest.raises(Incompatible, match="it differs in meters"):
        longer = replace(job(1), meters=meters(SpyJudge(), 4))
        estimate(tiny_model(), tiny_tokenizer(), longer, tmp_path / "run")
