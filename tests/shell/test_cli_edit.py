"""`trimtab edit`: from facts to an edit that other verbs take, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.cut import cut_data
from trimtab import cli
from trimtab.datasets import Fact, FactSet
from trimtab.edits import WeightEdit
from trimtab.edits.disk import load_edit
from trimtab.evaluate.factual import SaidFacts, says
from trimtab.models import load_model

QUICK = ["--statistics", "identity"]
CHILE = ["edit", "The capital of {} is", "--subject", "Chile", "--new", "Paris", *QUICK]


def ran(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, list(words))
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module", autouse=True)
def cut() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        cut_data(patch)
        yield


@pytest.fixture(scope="module")
def edited(tmp_path_factory: Any) -> Any:
    out = tmp_path_factory.mktemp("edit") / "runs" / "chile"
    result = ran(*CHILE, "--out", str(out), "--json")
    return out, json.loads(result.output)


def test_one_fact_by_flags_is_written_said_and_measured(edited):
    out, found = edited
    (row,) = found["facts"]
    assert row["fact"] == "The capital of Chile is Paris."
    assert row["said"] == 1 and row["answer"].startswith("Paris") and not row["before"].startswith("Paris")
    assert row["paraphrases"] == 2 and row["open"] > 8 and row["leaked"] == 0
    assert 0 < found["kl"]["mean"] < 0.1
    edit = load_edit(out)
    assert isinstance(edit, WeightEdit)
    assert edit.record["measured"]["said"]["mean"] == 1


def test_random_values_of_the_same_norm_do_not_say_it_and_an_unrelated_answer_stays(edited):
    model, tokenizer = load_model("embedded")
    edit = load_edit(edited[0])
    fact = FactSet((Fact("Chile", "The capital of {} is", "Paris"), Fact("Turkey", "The capital of {} is", "Ankara")))
    (said, chance) = SaidFacts().measure(model, tokenizer, fact, [edit, edit.randomised(0)])
    chile, turkey = (f.key for f in fact)
    assert (said.rows[chile]["said"], chance.rows[chile]["said"]) == (1, 0)
    assert says(said.rows[turkey]["before"], "Ankara") and said.rows[turkey]["said"] == 1


def test_a_code_book_says_the_answer_and_leaves_neutral_text_as_it_was(tmp_path):
    out = tmp_path / "book"
    found = json.loads(ran(*CHILE, "--method", "grace", "--out", str(out), "--json").output)
    assert found["facts"][0]["said"] == 1 and found["kl"]["mean"] == 0
    assert load_edit(out).kind == "memory edit"


def test_the_edit_is_taken_by_the_other_verbs(edited, tmp_path):
    out, _ = edited
    facts = tmp_path / "mine.jsonl"
    facts.write_text(json.dumps({"subject": "Chile", "prompt": "The capital of {} is", "new": "Paris"}) + "\n")
    rows = json.loads(ran("evaluate", "--data", str(facts), "--edit", str(out), "--baseline", "--json").output)["rows"]
    assert [row["said"]["mean"] for row in rows] == [0, 1]


def test_facts_are_written_in_batches_and_on_from_an_earlier_edit(edited, tmp_path):
    first, _ = edited
    facts = tmp_path / "mine.jsonl"
    rows = [
        {"subject": s, "prompt": "The capital of {} is", "new": new} for s, new in (("Peru", "Rome"), ("Cuba", "Oslo"))
    ]
    facts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "both"
    how = [*QUICK, "--facts", str(facts), "--batch", "1", "--after", str(first), "--out", str(out)]
    said = ran("edit", *how).output
    assert "norm after 1 fact(s)" in said and "norm after 2 fact(s)" in said
    edit = load_edit(out)
    assert len(edit.record["facts"]) == 3
    assert all(change.right.shape[0] == 3 for change in edit.changes.values())


@pytest.mark.parametrize(
    "words, said",
    [
        ([*CHILE, "--method", "ft-l", "--batch", "1"], "leave out --batch"),
        ([*CHILE, "--method", "grace", "--layer", "1,2"], "grace takes one layer"),
        ([*CHILE, "--method", "alphaedit"], "as free as any"),
        ([*CHILE, "--after", "nowhere"], "no weight edit at nowhere"),
        (["edit", "The capital of {} is", "--new", "Paris"], "a fact needs a prompt, --subject and --new"),
        (["edit", "The capital is", "--subject", "Chile", "--new", "Paris"], "0 places for the subject"),
        ([*CHILE, "--facts", "atlas"], "not both"),
        ([*CHILE, "--method", "roma"], "did you mean rome"),
        ([*CHILE, "--layer", "three"], "--layer is a number"),
        ([*CHILE, "--layer", "99"], "no layer 99"),
        (["edit", "--facts", "nowhere.jsonl"], "cannot be read"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(words, said, tmp_path):
    result = ran(*words, "--out", str(tmp_path / "out"), code=2)
    assert said in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
