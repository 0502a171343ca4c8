"""Facts in a comparison: what is written is what is asked, draw by draw, and settings are chosen by that alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.cases import EDITING, FACTS, weight_edit
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.cells import figure
from trimtab.cli.comparison_file import ComparisonFile, job_of
from trimtab.cli.user_code import hash_of_code
from trimtab.compare import Design, Job, RandomTries, run
from trimtab.compare.design import named
from trimtab.datasets import Fact, FactSet
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadValue, Incompatible
from trimtab.evaluate.defaults import facts_meters
from trimtab.evaluate.drift import NeutralTexts, drift_meters
from trimtab.evaluate.factual import fact_meters
from trimtab.evaluate.table import measurements_of
from trimtab.intervals import Estimate
from trimtab.prompting import FactsInContext
from trimtab.protocols import Edit, Method
from trimtab.report.markdown import to_markdown
from trimtab.report.verdict import conclusions

SIX = FactSet((*FACTS, *(Fact(thing, "{} is", "red", "grey") for thing in ("Coal", "A rose", "Rain", "Rust"))), "six")
QUICK = (*fact_meters(), *drift_meters(NeutralTexts(("Snow fell.",), ("The sky was grey.",))))


@dataclass(frozen=True)
class Spy(Method):
    """Notes which facts it is given."""

    log: list[tuple[str, ...]] = field(default_factory=list, compare=False, repr=False)
    name: str = "Spy"

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Any = None, seed: int = 0) -> Edit:
        self.log.append(tuple(fact.key for fact in train))
        return FactsInContext(name=self.name).fit(model, tokenizer, train)


def test_every_fact_is_written_and_asked_once_in_every_seed_s_draws(tmp_path):
    spy = Spy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*stayed unlikely")
        found = run(
            tiny_model(),
            tiny_tokenizer(),
            SIX,
            [spy, EDITING["ROME"], RandomTries(EDITING["ROME"])],
            meters=QUICK,
            folds=3,
            seeds=(0, 1),
            trials=1,
            out=tmp_path / "run",
        )
    assert [len(draw) for draw in spy.log] == [2] * 6
    for draws in (spy.log[:3], spy.log[3:]):
        assert sorted(key for draw in draws for key in draw) == sorted(fact.key for fact in SIX)
    assert set(spy.log[:3]) != set(spy.log[3:])
    told = to_markdown(found)
    assert "on 6 facts of" in told and "paired by fact" in told and "question" not in told.split("## What was run")[0]
    rows: Any = {row.method: row for row in found.rows()}
    assert rows["ROME"].metrics["said"].estimate.n == len(SIX)
    assert rows["ROME"].metrics["kl"].estimate > 0 == rows["Baseline"].metrics["kl"].estimate
    assert any("ROME is NOT told apart from its control Random tries (ROME)" in line for line in conclusions(found))


def test_all_that_a_comparison_measures_of_facts_unasked_can_be_measured():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    meters = facts_meters(texts=("Snow fell.",), broken=True)
    stated = FactsInContext().fit(model, tokenizer, SIX)
    plain, told = measurements_of(model, tokenizer, SIX, [NoEdit(), stated], meters)
    assert {"debris", "words", "kl", "ce"} < {meter.name for meter in meters}
    assert all(meter.instrument.name in plain for meter in meters)
    assert list(plain["counted"].rows) == list(told["counted"].rows) == [fact.key for fact in SIX]
    assert plain["counted"].rows != told["counted"].rows


def test_a_share_of_nothing_is_shown_as_none():
    nothing = Estimate(float("nan"), float("nan"), float("nan"), 6)
    assert figure(nothing, "share") == "-" != figure(Estimate(0.0, 0.0, 0.5, 6), "share")


def test_one_fold_writes_all_facts_into_one_model_and_sizes_are_numbers_of_facts():
    job = Job(named([FactsInContext()]), SIX, None, Design(folds=1, seeds=(0,), train_sizes=(3, None)), QUICK)
    for unit in job.units:
        parts = job.parts(unit)
        assert parts.train is parts.validation is parts.test
        assert len(parts.test) == (unit.size or len(SIX))


def test_facts_of_a_test_set_and_choosing_by_what_is_reported_are_refused():
    with pytest.raises(BadValue, match="leave out `test`"):
        Job(named([FactsInContext()]), SIX[:4], SIX[4:], Design(folds=1), QUICK)
    with pytest.raises(BadValue, match="cannot be chosen by 'leak'; choose said"):
        Job(named([FactsInContext()]), SIX, None, Design(choose_by="leak"), QUICK)


def test_a_file_may_name_edits_that_folders_hold(tmp_path):
    weight_edit(tiny_model()).save(tmp_path / "one")
    entries = [{"edit": str(tmp_path / "one")}, {"edit": {"folder": f"{tmp_path / 'one'}:0.25", "name": "Half"}}]
    methods: Any = job_of(ComparisonFile(questions="atlas", limit=6, methods=entries)).methods
    whole, half = (methods[name].edit for name in ("Weights", "Half"))
    assert (whole.kind, whole.strength, half.strength) == ("weight edit", 0.5, 0.25)
    found = [hash_of_code(entry) for entry in entries]
    weight_edit(tiny_model(), seed=7).save(tmp_path / "another")  # it looks alike, and is gone on with as another
    assert found[0] == found[1] != hash_of_code({"edit": str(tmp_path / "another")})
    with pytest.raises(BadValue, match="edit takes the folder of a saved edit"):
        job_of(ComparisonFile(questions="atlas", methods=[{"edit": {"folder": str(tmp_path / "one"), "strength": 3}}]))
    for wrong in ({"edit": None}, {"edit": {"name": "Mine"}}):
        with pytest.raises(BadValue, match="edit takes the folder of a saved edit"):
            job_of(ComparisonFile(questions="atlas", methods=[wrong]))
    with pytest.raises(Incompatible, match="expected an edit at nowhere, there is none"):
        job_of(ComparisonFile(questions="atlas", methods=[{"edit": "nowhere"}]))


def test_a_file_may_name_facts_and_editors():
    job = job_of(ComparisonFile(questions="atlas", limit=6))
    assert list(job.methods) == ["Baseline", "In context", "ROME", "MEMIT", "AlphaEdit", "FT-L", "LoRA r=8"]
    assert [meter.name for meter in job.meters][:4] == ["said", "paraphrases", "kept", "leak"]
    entry = {"rome": {"moment": "identity", "layers": [2], "steps": 3, "name": "mine"}}
    job = job_of(ComparisonFile(questions="atlas", limit=6, methods=[entry]))
    rome: Any = job.methods["mine"]
    assert (rome.moment, rome.layers, rome.search.steps) == ("identity", (2,), 3)
    with pytest.raises(BadValue, match="no judge is asked about atlas"):
        job_of(ComparisonFile(questions="atlas", limit=6, judge="http://localhost:1", judge_model="m"))
    with pytest.raises(BadValue, match="moment"):
        job_of(ComparisonFile(questions="atlas", methods=[{"rome": {"moment": "none"}}]))
