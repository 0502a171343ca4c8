"""Running again: what failed is retried where asked, and only what is then done anew goes, after all checks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.comparing import METERS, SpyMethod, length_judge, meters, tiny_run
from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.compare import Comparison, Design, Job, run_job
from trimtab.compare.design import Unit, named
from trimtab.compare.machine import place
from trimtab.compare.records import RunFolder
from trimtab.errors import BadValue, Incompatible
from trimtab.evaluate import generation
from trimtab.protocols import Method
from trimtab.steer import RandomDirection

JOB = {"questions": tiny_questions(12), "test": None, "design": Design(2, (0,), 2), "meters": METERS}


@dataclass(frozen=True)
class Flaky(Method):
    """Fails at its second setting while `broken` says so."""

    broken: list[Exception] = field(default_factory=list, compare=False, repr=False)
    name: str = "Flaky"
    space: Mapping[str, Sequence[float]] = field(default_factory=lambda: {"strength": (1.0, 2.0)})

    def fit(self, model, tokenizer, train, *, knobs=None, seed=0):
        if self.broken and knobs["strength"] > 1:
            raise self.broken[0]
        return random_shift(model, seed=seed, name=self.name).scaled(knobs["strength"])


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """Return the folder of a run in which one trial failed in every unit, beside a method that never fails."""
    folder = tmp_path_factory.mktemp("again") / "run"
    tiny_run(folder, [Flaky([RuntimeError("out of luck")]), SpyMethod(strengths=(1.0,))], seeds=(0,))
    return folder


@pytest.fixture
def run(failed, tmp_path):
    """Return (folder, method) of a copy of that run and of the method that fails in it."""
    shutil.copytree(failed, tmp_path / "run")
    return tmp_path / "run", Flaky([RuntimeError("out of luck")])


def contents(folder: Path) -> dict[str, bytes]:
    kept = folder / "answers"  # of failed trials, until they are tried again
    files = (p for p in folder.rglob("*.json") if not p.is_relative_to(kept))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def again(folder, methods, **options):
    return run_job(tiny_model(), tiny_tokenizer(), Job(named(methods), **JOB), folder, **options)


def test_failed_trials_of_measured_units_are_done_again_with_their_measurement(run):
    folder, method = run
    before = contents(folder)
    assert sum(json.loads(v).get("status") == "failed" for v in before.values()) == 2
    method.broken.clear()
    result = again(folder, [method, SpyMethod(strengths=(1.0,))], retry_failed=True)
    assert result.finished
    assert [t["status"] for t in result.trials if t["method"] == "Flaky"] == ["done"] * 4
    assert not any(t["failed_trials"] for t in result.of("Flaky"))
    after = contents(folder)
    changed = {name for name in before if before[name] != after[name]}
    assert {Path(name).name for name in changed} == {"trial-001.json", "test.json"}
    assert all("flaky" in name for name in changed)


def test_without_being_asked_nothing_is_tried_again_and_methods_that_are_not_asked_for_are_left_alone(run):
    folder, method = run
    before = contents(folder)
    method.broken.clear()
    again(folder, [method, SpyMethod(strengths=(1.0,))])
    assert contents(folder) == before
    again(folder, [SpyMethod(strengths=(1.0,))], retry_failed=True)
    assert contents(folder) == before


def test_a_run_that_is_refused_loses_nothing(run):
    folder, method = run
    before = contents(folder)
    with pytest.raises(Incompatible, match="holds another comparison"):
        run_job(
            tiny_model(), tiny_tokenizer(), Job(named([method]), **{**JOB, "design": Design(2, (0,), 1)}), folder,
            retry_failed=True, redo_changed=True,
        )  # fmt: skip
    assert contents(folder) == before


def test_a_unit_that_another_process_works_on_is_left_alone(run):
    folder, method = run
    unit = Unit("Flaky", 0, 0, None)
    from trimtab.compare.running import forget_failures

    with RunFolder(folder).claim(unit):
        assert forget_failures(RunFolder(folder), Job(named([method]), **JOB)) == 2  # the other fold's two records
    assert not Comparison.load(folder).of("Flaky")[1:]


def test_sizes_may_be_added_to_a_run_for_some_methods_and_the_rest_stays(run, tmp_path):
    folder, method = run
    shutil.copytree(folder, tmp_path / "copy")
    # as written before there were numbers of training questions for single methods
    record = json.loads((tmp_path / "copy" / "record.json").read_text())
    for key in ("planned", "grids", "controls"):
        del record[key]
    (tmp_path / "copy" / "record.json").write_text(json.dumps(record))
    before = contents(tmp_path / "copy")
    job = Job(
        named([method, SpyMethod(strengths=(1.0,))]),
        **{**JOB, "design": Design(2, (0,), 2, train_sizes=(None, 4))},
        low_data=("Spy",),
    )
    result = run_job(tiny_model(), tiny_tokenizer(), job, tmp_path / "copy")
    assert result.finished and result.sizes == [4, None]
    assert [r.method for r in result.rows(4) if r.variant == "best"] == ["Baseline", "Spy"]
    assert {t["n"]["train"] + t["n"]["validation"] for t in result.of("Spy", 4)} == {4}
    after = contents(tmp_path / "copy")
    assert all(after[name] == text for name, text in before.items() if name != "record.json")


def test_records_name_the_machine_and_how_many_processes_shared_it(run):
    folder, _ = run
    result = Comparison.load(folder)
    assert {(r["machine"], r["workers"]) for r in (*result.trials, *result.tests)} == {("1 CPU threads (x86_64)", 1)}
    place = RunFolder(folder)
    with place.working("here"), place.working("here"), place.working("there"):
        assert (place.n_working("here"), place.n_working("there"), place.n_working("nowhere")) == (2, 1, 0)
    assert place.n_working("here") == 0
    assert not list((folder / "locks").glob("worker-*"))


class Grader:
    """A judge at some address that is gone after so many verdicts."""

    def __init__(self, left):
        self.record = {"name": "grader at http://127.0.0.1:9"}
        self.left, self.given = left, 0

    def __call__(self, question, answer):
        if self.given == self.left:
            raise BadValue("judge grader cannot be asked")
        self.given += 1
        return length_judge(question, answer)


def test_what_was_generated_and_judged_before_a_judge_broke_is_not_done_again(tmp_path, monkeypatch):
    methods = [SpyMethod(strengths=(1.0, 2.0))]
    generated = []

    def counted(inner):
        def count(*arguments, **options):
            generated.extend(map(len, arguments[2]))  # prompts of every edit
            return inner(*arguments, **options)

        return count

    monkeypatch.setattr(generation, "completions_of", counted(generation.completions_of))

    def compared(folder, judge, **options):
        job = Job(named(methods), **{**JOB, "meters": meters(judge)})
        return run_job(tiny_model(), tiny_tokenizer(), job, folder, **options)

    whole = Grader(1000)
    expected = compared(tmp_path / "whole", whole)
    in_one_go = sorted(generated)
    generated.clear()

    first, second = Grader(20), Grader(1000)
    broken = compared(tmp_path / "run", first)
    failed = [t["why"] for t in (*broken.tests, *broken.trials) if t["status"] == "failed"]
    assert any("verdicts are kept in" in why and "another try of the same goes on" in why for why in failed)
    assert list((tmp_path / "run" / "answers").iterdir())
    result = compared(tmp_path / "run", second, retry_failed=True)
    assert result.finished and not any(t["status"] == "failed" for t in (*result.tests, *result.trials))
    assert sorted(generated) == in_one_go
    assert first.given + second.given == whole.given + 2  # each run asks twice beforehand whether the judge judges
    assert [r.metrics for r in result.rows()] == [r.metrics for r in expected.rows()]
    assert not list((tmp_path / "run" / "answers").iterdir())


SHORTAGE = torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'")


def test_a_trial_that_lacked_memory_beside_other_processes_is_left_undone_and_alone_it_failed(tmp_path):
    method = Flaky([SHORTAGE])
    methods = [method, RandomDirection(draws=2, follows="Flaky"), SpyMethod(strengths=(1.0,))]
    with (
        RunFolder(tmp_path / "beside").working(place(tiny_model())),
        pytest.warns(UserWarning, match=r"4 .* were left undone.*Flaky, fold 0, seed 0: CUDA error: out of"),
    ):
        unfinished = again(tmp_path / "beside", methods)
    # the other method is measured, and so are the settings that had memory
    assert [t["status"] for t in unfinished.trials if t["method"] == "Flaky"] == ["done"] * 2
    assert {t["method"] for t in unfinished.tests} == {"Baseline", "Spy"}
    alone = again(tmp_path / "beside", methods)
    assert alone.finished
    assert ["CUDA error: out of memory" in t["failed_trials"][0] for t in alone.of("Flaky")] == [True, True]


def test_what_lacked_memory_is_tried_once_more_when_nothing_else_is_left(tmp_path):
    method = Flaky([SHORTAGE])
    last = SpyMethod(strengths=(1.0,), log=(log := []))
    log_once = log.append

    class Freeing(list):
        """Gives the memory back when the last method is fitted for the last time."""

        def append(self, entry):
            log_once(entry)
            if len(log) == 2:
                method.broken.clear()

    object.__setattr__(last, "log", Freeing())
    with RunFolder(tmp_path / "run").working(place(tiny_model())):
        found = again(tmp_path / "run", [method, last])
    assert found.finished
    assert not any(t["failed_trials"] for t in found.of("Flaky"))
