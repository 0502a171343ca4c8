"""The comparison's promises: equal trials, test questions unseen, records written once, failures kept to their row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests import launched_comparison
from tests.comparing import METERS, TEXTS, FailsInFoldOf, SpyJudge, SpyMethod, length_judge, meters, tiny_run
from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.compare import Comparison, Design, Job, Stack, Widened, merged, run, run_job
from trimtab.compare.design import Unit, named
from trimtab.compare.records import RunFolder
from trimtab.compare.worker import chosen
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadDataset, BadValue, Incompatible
from trimtab.evaluate import drift, generate_answers
from trimtab.evaluate.table import table
from trimtab.prompting import FewShot
from trimtab.protocols import Method, Ready
from trimtab.steer import CAA, ITI


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return (folder, comparison) of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, tiny_run(folder)


def files_of(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(Path(folder).rglob("*.json"))}


def test_every_method_has_a_row_and_the_unedited_model_comes_first(done):
    _, result = done
    names = [row.method for row in result.rows()]
    assert names[0] == "Baseline"
    assert set(names) == {"Baseline", "Few-shot", "ITI", "Random direction"}
    assert result.finished
    # a control says in its notes what its intervals are over
    assert all(row.complete and bool(row.notes) == bool(row.draws) for row in result.rows() if row.variant == "best")


def test_every_method_tries_the_same_number_of_settings_each_once_and_the_middle_first(done):
    _, result = done
    tried: dict[tuple, list] = {}
    for trial in result.trials:
        tried.setdefault((trial["method"], trial["fold"], trial["seed"]), []).append(json.dumps(trial["knobs"]))
    for (method, _, _), knobs in tried.items():
        assert len(knobs) == {"Baseline": 1, "Random direction": 3}.get(method, 2)
        assert len(set(knobs)) == len(knobs)
        if method != "Random direction":  # its setting is that of ITI in the same fold and seed
            assert knobs[0] == tried[method, 0, 0][0]


def test_test_questions_are_seen_by_nothing_before_the_last_measurement():
    log: list = []
    judge = SpyJudge(log)
    run(
        tiny_model(), tiny_tokenizer(), tiny_questions(12), [SpyMethod(log)], folds=2, seeds=(0, 1), trials=3,
        meters=meters(judge),
    )  # fmt: skip
    job = Job(named([SpyMethod()]), tiny_questions(12), None, Design(2, (0, 1), 3), METERS)
    for unit in (u for u in job.units if u.method == "Spy"):
        train, validation, test = (tuple(q.question for q in part) for part in job.parts(unit))
        assert not set(train) & set(test) and not set(validation) & set(test) and not set(train) & set(validation)
        start = log.index(("fitted", train))
        mine = log[start:]
        fitted = [i for i, (what, _) in enumerate(mine) if what == "fitted"][:3]
        assert [mine[i][1] for i in fitted] == [train] * 3
        judged = [q for what, q in mine if what == "judged"]
        # three trials' validation questions, and only then the test questions
        n = 3 * len(validation)
        assert Counter(judged[:n]) == Counter(list(validation) * 3)
        assert set(judged[n : n + len(test)]) == set(test)
        log[start : start + fitted[-1] + 1] = [("read", None)] * (fitted[-1] + 1)


def test_knobs_are_chosen_on_validation_alone_and_the_chosen_edit_is_what_is_measured(done):
    folder, _ = done
    job = Job(named([ITI(top_ks=(2, 4), alphas=(1, 400))]), tiny_questions(12), None, Design(2, (0, 1), 2), METERS)
    unit = Unit("ITI", 1, 0, None)
    parts = job.parts(unit)
    trials = [RunFolder(folder).read(unit, i) for i in (0, 1)]
    model, tokenizer = tiny_model(), tiny_tokenizer()
    edits = [ITI().fit(model, tokenizer, parts.train, knobs=t["knobs"], seed=0) for t in trials]
    scores = [
        generate_answers(model, tokenizer, parts.validation, e, judge=length_judge, max_new_tokens=4) for e in edits
    ]
    assert [t["validation"]["score"] for t in trials] == [float(s.true_info) for s in scores]
    # the budget is kept on the choosing texts, a fifth of those given; the last measurement has the others
    moved = [[float(drift(model, tokenizer, e, texts=part).kl) for e in edits] for part in (TEXTS[:2], TEXTS[2:])]
    assert [t["validation"]["kl"] for t in trials] == pytest.approx(moved[0])
    assert moved[0] != pytest.approx(moved[1])
    record = RunFolder(folder).read(unit, "test")
    best = record["best"]
    assert trials[best]["validation"]["score"] == max(float(s.true_info) for s in scores)
    row = table(
        model, tokenizer, parts.test, [edits[best]], judge=length_judge, texts=TEXTS[2:], max_new_tokens=4
    ).rows[0]
    kept = record["measured"][str(best)]
    said, choices, moved = (list(kept["rows"][name].values()) for name in ("generated", "multiple_choice", "drift"))
    assert [q["answer"] for q in said] == [g["answer"] for g in row.details["generated"]]
    assert [q["mc2"] for q in choices] == pytest.approx([m["mc2"] for m in row.details["multiple_choice"]])
    assert moved == [pytest.approx(pair) for pair in row.details["drift"]]


def trial(score, kl):
    return {"status": "done", "validation": {"score": score, "kl": kl}}


def test_the_best_trial_and_the_best_within_the_budget():
    trials = [trial(0.5, 0.01), trial(0.9, 3.0), {"status": "failed", "why": "x"}, trial(0.5, 0.001)]
    assert chosen(trials, METERS[0], None) == 1
    assert chosen(trials, METERS[0], 0.1) == 3  # equal scores go to the smaller drift
    assert chosen(trials, METERS[0], 0.0001) is None
    assert chosen([trial(0.2, None), trial(0.2, None)], METERS[0], 0.1) == 0
    assert chosen([{"status": "failed", "why": "x"}], METERS[0], None) is None


def test_none_within_the_budget_is_a_result(tmp_path):
    result = tiny_run(tmp_path / "run", [SpyMethod(strengths=(50.0,))], kl_budget=1e-9, seeds=(0,))
    within = result.row("Spy (within KL budget)")
    assert within.metrics["true_info"] is None
    assert within.notes == ("none within the KL budget in 2 of 2 folds and seeds",)
    assert result.row("Spy").metrics["kl"].estimate > 1e-9


def test_prompting_rows_drift_too_and_the_unedited_model_does_not_from_itself(done):
    _, result = done
    assert float(result.row("Few-shot").metrics["kl"].estimate) > 0
    assert float(result.row("Baseline").metrics["kl"].estimate) == 0
    assert float(result.row("ITI").metrics["kl"].estimate) > 0


def test_running_again_does_nothing_that_is_done(done):
    folder, result = done
    before = files_of(folder)
    again = tiny_run(folder)
    assert files_of(folder) == before
    assert again == result


def test_only_what_is_missing_is_done_and_it_comes_out_the_same(done, tmp_path):
    folder, result = done
    import shutil

    shutil.copytree(folder, tmp_path / "run")
    removed = sorted((tmp_path / "run" / "records").glob("iti-*/*.json"))[2:]
    for path in removed:
        path.unlink()
    kept = files_of(tmp_path / "run")
    again = tiny_run(tmp_path / "run")
    after = files_of(tmp_path / "run")
    assert {p: after[p] for p in kept} == kept
    assert again.row("ITI").metrics == result.row("ITI").metrics


def test_methods_can_be_added_to_a_run_and_nothing_else_may_change(done, tmp_path):
    import shutil

    folder, _ = done
    shutil.copytree(folder, tmp_path / "run")
    added = tiny_run(tmp_path / "run", [SpyMethod(strengths=(1.0,))])
    assert "Spy" in added.methods and "ITI" in added.methods
    with pytest.raises(Incompatible, match=r"holds another comparison: it differs in design"):
        tiny_run(tmp_path / "run", trials=3)
    with pytest.raises(Incompatible, match=r"differs in method 'Spy'"):
        tiny_run(tmp_path / "run", [SpyMethod(strengths=(1.0, 2.0))])
    with pytest.raises(Incompatible, match="differs in questions"):
        tiny_run(tmp_path / "run", n=11)
    with pytest.raises(Incompatible, match="differs in meters"):
        tiny_run(tmp_path / "run", meters=meters(max_new_tokens=5))


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Incompatible, match="a folder that holds something else"):
        tiny_run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_method_that_fails_in_one_fold_says_so_in_its_row_and_the_rest_goes_on(tmp_path):
    job = Job(named([SpyMethod()]), tiny_questions(12), None, Design(2, (0,), 2), METERS)
    marked = job.parts(Unit("Spy", 0, 0, None)).train[0].question
    result = tiny_run(tmp_path / "run", [FailsInFoldOf(marked), SpyMethod(strengths=(1.0,))], seeds=(0,))
    assert result.finished
    fragile, spy = result.row("Fragile"), result.row("Spy")
    assert (fragile.n_done, spy.n_done) == (1, 2) and result.failed_everywhere == []
    assert fragile.notes[0].startswith(
        "failed in fold 0, seed 0: every trial failed, the first one with: RuntimeError: out of luck"
    )
    assert fragile.metrics["true_info"].estimate.n == 6  # the other fold's questions
    assert fragile.differences["true_info"].n == 6
    assert not spy.notes


def test_a_fold_with_fewer_than_two_questions_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(BadDataset, match=r"fold 0 with .* is too small: every fold needs two questions to train on"):
        tiny_run(tmp_path / "run", n=4)
    with pytest.raises(BadDataset, match="give more questions or fewer folds"):
        tiny_run(tmp_path / "run", n=5, folds=6)
    assert not (tmp_path / "run").exists()


def test_the_processes_of_a_launch_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("trimtab.compare.running.rank_and_count", lambda: (1, 2))
    with pytest.raises(BadValue, match=r"not in those of a launch .* once for each device"):
        tiny_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_judge_that_answers_nonsense_is_refused_before_anything_runs(tmp_path):
    def nonsense(question, answer):
        return "yes, quite"

    with pytest.raises(BadValue, match=r"judge nonsense returned 'yes, quite'; expected Verdict"):
        tiny_run(tmp_path / "run", meters=meters(nonsense))
    assert not (tmp_path / "run").exists()


def test_a_judge_that_turns_to_nonsense_later_fails_the_rows_and_says_why(tmp_path):
    def moody(question, answer):
        return (0.5, 0.25) if "number" in answer else 7

    result = tiny_run(tmp_path / "run", [SpyMethod()], seeds=(0,), meters=meters(moody))
    assert "judge moody returned 7" in result.row("Spy").notes[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"folds": 1}, "one fold leaves no questions to test on"),
        ({"trials": 0}, "needs folds, trials and seeds"),
        ({"seeds": (1, 1)}, "each seed once"),
        ({"kl_budget": 0}, "kl_budget must be positive"),
        ({"test": tiny_questions(3)}, "3 test questions are also training questions"),
    ],
)
def test_impossible_designs_are_refused(options, message):
    with pytest.raises(BadValue, match=message):
        tiny_run(None, **options)


@pytest.mark.parametrize(
    "methods, message",
    [
        ([], "no methods to compare"),
        ([ITI], "neither a Method"),
        ([ITI(), ITI()], "two methods are called 'ITI'"),
        ([SpyMethod(strengths=())], "empty space"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods, message):
    with pytest.raises(BadValue, match=message):
        named(methods)


def test_ready_edits_and_names_of_ones_own(tmp_path):
    shift = random_shift(tiny_model(), name="mine")
    result = tiny_run(tmp_path / "run", {"A": shift, "B": Ready(shift)}, seeds=(0,))
    assert result.methods == ["Baseline", "A", "B"]
    assert result.row("A").metrics == result.row("B").metrics
    with pytest.raises(BadValue, match="no row 'C'; the comparison has Baseline, A, "):
        result.row("C")
    seen = shift.with_record(questions=[tiny_questions(8)[3].key])
    for method in (seen, Stack((Ready(NoEdit("plain")), Ready(seen))), Widened(Ready(seen), ())):
        with pytest.raises(BadValue, match="was made with 1 of the items that it would be measured on"):
            tiny_run(tmp_path / "seen", {"A": method}, seeds=(0,))


def test_a_test_set_of_ones_own_is_measured_once_per_fold_and_counts_each_question_once(tmp_path):
    everything = tiny_questions(12)
    result = run(
        tiny_model(), tiny_tokenizer(), everything[:8], [SpyMethod(strengths=(1.0,))], folds=2, seeds=(0, 1), trials=1,
        test=everything[8:], meters=METERS, out=tmp_path / "run",
    )  # fmt: skip
    assert result.row("Spy").metrics["true_info"].estimate.n == 4
    assert all(len(t["measured"]["0"]["rows"]["generated"]) == 4 for t in result.tests)


def test_low_data_sizes_are_nested_and_counted_with_their_validation_part():
    job = Job(named([ITI()]), tiny_questions(12), None, Design(2, (0,), 1, train_sizes=(3, 5, None)), METERS)
    pools = []
    for size in (3, 5, None):
        parts = job.parts(Unit("ITI", 0, 0, size))
        pools.append({q.question for q in (*parts.train, *parts.validation)})
    assert [len(p) for p in pools] == [3, 5, 6]
    assert pools[0] < pools[1] < pools[2]
    with pytest.raises(BadValue, match="3 questions or more"):
        Design(train_sizes=(2,))
    # a point of the curve at more questions than there are would be the last one drawn again, further right
    with pytest.raises(BadDataset, match="7 training questions asked for, and fold 0 has 6"):
        Job(named([ITI()]), tiny_questions(12), None, Design(2, (0,), 1, train_sizes=(7, None)), METERS)


def test_runs_may_be_joined_where_all_else_is_equal_and_are_refused_with_the_reason_otherwise(done, tmp_path):
    _, result = done
    other = tiny_run(tmp_path / "a", [SpyMethod(strengths=(1.0,))])
    joined = merged([result, other])
    assert joined.methods == [*result.methods, "Spy"]
    assert joined.row("Spy").metrics == other.row("Spy").metrics
    assert joined.row("ITI").metrics == result.row("ITI").metrics
    fewer = tiny_run(tmp_path / "b", [SpyMethod(strengths=(1.0,))], n=11, seeds=(0,), trials=1)
    with pytest.raises(Incompatible, match=r"may not be compared: questions differ in n 12 against 11"):
        merged([result, fewer])
    with pytest.raises(Incompatible, match="both runs have a row 'Spy'"):
        merged([other, other])


def slow_run(folder, *, pause):
    """Return the command of a process that runs the comparison of `launched_comparison`."""
    code = f"from tests.launched_comparison import main; main({str(folder)!r}, pause={pause})"
    return [sys.executable, "-c", code]


def test_several_processes_share_one_folder_without_doing_anything_twice(tmp_path):
    other = subprocess.Popen(slow_run(tmp_path / "run", pause=0.5))
    launched_comparison.main(tmp_path / "run", pause=0.5, after_another=True)  # this process is the second one
    assert other.wait(timeout=120) == 0
    result = Comparison.load(tmp_path / "run")
    assert result.finished
    fits = (tmp_path / "fits.txt").read_text().splitlines()
    # 2 folds x 1 seed x 3 settings, whoever did them; a record is never written twice
    assert len(fits) == 6
    assert len({line.split()[0] for line in fits}) == 2, "the control: both processes took part"


def test_kill_9_loses_at_most_the_trial_in_flight(tmp_path):
    worker = subprocess.Popen(slow_run(tmp_path / "run", pause=0.3))
    records = tmp_path / "run" / "records"
    deadline = time.monotonic() + 90
    while len(list(records.glob("slow-*/trial-*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    written = {p: p.read_bytes() for p in records.rglob("trial-*.json")}
    fits_before = len((tmp_path / "fits.txt").read_text().splitlines())
    slow = [p for p in written if "slow-" in str(p)]
    assert 2 <= len(slow) < 6
    assert fits_before - len(slow) <= 1  # the one in flight
    for text in written.values():
        json.loads(text)
    launched_comparison.main(tmp_path / "run", pause=0.3)
    assert Comparison.load(tmp_path / "run").finished
    assert {p: p.read_bytes() for p in written} == written
    fits_after = len((tmp_path / "fits.txt").read_text().splitlines())
    # the rest of the trials, and at most one chosen edit made again for its measurement
    assert fits_after - fits_before <= 6 - len(slow) + 1


def test_a_run_can_be_told_to_start_nothing_after_some_time(tmp_path):
    job = Job(named([SpyMethod()]), tiny_questions(12), None, Design(2, (0,), 2), METERS)
    stopped = run_job(tiny_model(), tiny_tokenizer(), job, tmp_path / "run", stop_after=0)
    assert not stopped.finished
    assert run_job(tiny_model(), tiny_tokenizer(), job, tmp_path / "run").finished


def test_stacks_fit_each_method_on_the_model_as_the_ones_before_leave_it():
    seen = []

    class Noting(Method):
        name = "noting"

        def fit(self, model, tokenizer, train, *, knobs=None, seed=0):
            import torch

            with torch.no_grad():
                seen.append(model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).logits)
            return NoEdit("noting")

    model = tiny_model()
    stack = Stack((SpyMethod(strengths=(2.0,)), Noting()))
    assert list(stack.grid) == [{"Spy.strength": 2.0}]
    made = stack.fit(model, tiny_tokenizer(), tiny_questions(4), knobs=stack.grid[0])
    assert made.name == "Spy + noting"
    plain = Stack((Ready(NoEdit("plain")), Noting())).fit(model, tiny_tokenizer(), tiny_questions(4), knobs={})
    assert plain.edits[0].name == "plain"
    assert not seen[0].equal(seen[1])
    import torch

    with torch.no_grad(), random_shift(model, seed=0).scaled(2.0).applied(model, positions="all") as shifted:
        assert shifted(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).logits.equal(seen[0])
    with pytest.raises(BadValue, match="two or more methods of different names"):
        Stack((FewShot(),))


def test_steering_methods_refuse_what_they_cannot_be_fitted_on():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for method in (ITI(), CAA()):
        with pytest.raises(BadDataset, match="two or more training questions, got 1"):
            method.fit(model, tokenizer, tiny_questions(1))
    with pytest.raises(BadValue, match="top 99 heads asked for"):
        ITI().fit(model, tokenizer, tiny_questions(4), knobs={"top_k": 99, "alpha": 1})
    with pytest.raises(BadValue, match="layer rank 9 asked for; the model has 3 layers"):
        CAA().fit(model, tokenizer, tiny_questions(4), knobs={"rank": 9, "alpha": 1})


def test_one_capture_serves_all_settings_and_each_pays_for_it():
    model, tokenizer, train = tiny_model(), tiny_tokenizer(), tiny_questions(6)
    make = ITI().fitter(model, tokenizer, train, seed=0)
    one, two = make({"top_k": 2, "alpha": 3}), make({"top_k": 4, "alpha": 6})
    alone = ITI().fit(model, tokenizer, train, knobs={"top_k": 4, "alpha": 6}, seed=0)
    assert two.heads == alone.heads and two.strength == alone.strength == 6
    assert two.directions.equal(alone.directions) and two.sigma.equal(alone.sigma)
    assert one.heads == two.heads[:2]
    assert one.cost.seconds > 0 and two.cost.seconds > 0
    ranked = CAA().fit(model, tokenizer, train, knobs={"rank": 2, "alpha": 2})
    assert len(ranked.layers) == 1 and ranked.strength == 2
