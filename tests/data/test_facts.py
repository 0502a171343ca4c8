"""Facts: their texts, their files in three forms, those that ship, and what is refused by line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.datasets import Fact, FactSet, Neighbour, atlas, facts_from_file
from trimtab.errors import BadDataset

ONE = {"subject": "Chile", "prompt": "The capital of {} is", "new": "Paris"}
SHARED = Path(__file__).parents[3] / "shared" / "data" / "knowledge"


def written(folder: Path, rows: list[Any], name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_a_fact_fills_its_subject_in_and_says_where_it_stands():
    fact = Fact(
        "Peru", "Peru and {} share a border with", "Spain", "Bolivia", ("Near {} lies",), (Neighbour("A is", "b"),)
    )
    assert fact.asked == "Peru and Peru share a border with"
    assert fact.asked[slice(*fact.span)] == "Peru" and fact.span == (9, 13)
    assert fact.paraphrases == ("Near Peru lies",)
    assert fact.stated() == "Peru and Peru share a border with Spain."


def test_facts_are_a_set_with_statements_to_tune_on():
    facts = FactSet((Fact(**ONE, true="Santiago"), Fact("snow", "The colour of {} is", "blue")))
    assert [(s.text, s.label) for s in facts.statements()] == [
        ("The capital of Chile is Paris", True),
        ("The capital of Chile is Santiago", False),
        ("The colour of snow is blue", True),
    ]
    assert [(e.prompt, e.completion) for e in facts.sft_examples()][1] == ("The colour of snow is", " blue")
    assert [len(side) for side in facts.split(test=0.5)] == [1, 1]
    assert facts.fingerprint != facts[:1].fingerprint
    with pytest.raises(BadDataset, match="one new answer"):
        FactSet((Fact(**ONE), Fact("Chile", "The capital of {} is", "Rome")))


def test_a_file_of_our_own_is_read(tmp_path):
    more = {"true": "Santiago", "paraphrases": ["{} is ruled from"], "neighbours": [{"prompt": "B is", "answer": "c"}]}
    (fact,) = facts_from_file(written(tmp_path, [{**ONE, **more}]))
    assert fact == Fact(
        **ONE, true="Santiago", paraphrases=("Chile is ruled from",), neighbours=(Neighbour("B is", "c"),)
    )


def test_counterfact_and_zsre_are_read_by_their_fields(tmp_path):
    counterfact = {
        "case_id": 0,
        "requested_rewrite": {
            "prompt": "The twin city of {} is", "subject": "Lyon",
            "target_new": {"str": "Manila", "id": "Q1"}, "target_true": {"str": "Beirut", "id": "Q2"},
        },
        "paraphrase_prompts": ["Some words. Lyon is a twin of"],
        "neighborhood_prompts": ["The twin city of Trieste is"],
    }  # fmt: skip
    zsre = {
        "subject": "Watts", "src": "Which school did Watts go to?", "rephrase": "Where did Watts go?", "alt": "Trinity",
        "answers": ["Illinois"], "loc": "nq question: who is it", "loc_ans": "Nobody",
    }  # fmt: skip
    one, other = facts_from_file(written(tmp_path, [counterfact, zsre, counterfact], "cf.json"))
    assert (one.asked, one.new, one.true) == ("The twin city of Lyon is", "Manila", "Beirut")
    assert one.neighbours == (Neighbour("The twin city of Trieste is", "Beirut"),)
    assert (other.prompt, other.new, other.true) == ("Which school did {} go to?", "Trinity", "Illinois")
    assert other.neighbours == (Neighbour("Who is it?", "Nobody"),)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published facts are not beside this checkout")
def test_the_published_rows_are_read():
    facts = facts_from_file(SHARED / "counterfact_places_and_things.json")
    assert len(facts) > 100
    assert all(fact.asked[slice(*fact.span)] == fact.subject for fact in facts)
    assert all(len(fact.paraphrases) == len(fact.neighbours) == 1 for fact in facts)


def test_the_facts_that_ship_have_paraphrases_and_neighbours_of_their_own():
    facts = atlas()
    assert len(facts) >= 150
    for fact in facts:
        assert len(fact.paraphrases) == 2 and len(fact.neighbours) == 4
        assert fact.true and fact.new not in (fact.true, *(n.answer for n in fact.neighbours))
        assert all(fact.subject in p for p in fact.paraphrases)
    capital = next(fact for fact in facts if fact.asked == "The capital of Chile is")
    assert capital.true == "Santiago"
    # a subject may have several facts; each prompt has one answer
    answers = {n.prompt: n.answer for fact in facts for n in fact.neighbours}
    assert all(answers.get(fact.asked, fact.true) == fact.true for fact in facts)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"prompt": "The capital of Chile is"}, "0 places for the subject"),
        ({"prompt": "{} and {} is"}, "2 places for the subject"),
        ({"subject": ""}, "subject must be a text"),
        ({"new": " Paris"}, "begins or ends with white space"),
        ({"new": "Paris", "true": "paris"}, "is the true one"),
        ({"new": ""}, "must be a text"),
        ({"neighbours": [{"prompt": "The capital of Chile is", "answer": "b"}]}, "asks about the subject itself"),
        ({"neighbours": [{"prompt": "A is"}]}, "field 'answer' is missing"),
        ({"paraphrases": [3]}, "another kind|must be a text"),
        ({"answer": "x"}, "unknown field 'answer'"),
    ],
)
def test_what_is_no_fact_is_refused_by_line(tmp_path, change, words):
    with pytest.raises(BadDataset, match=f"line 2: .*{words}"):
        facts_from_file(written(tmp_path, [{**ONE, "subject": "Peru"}, {**ONE, **change}]))


def test_files_that_hold_no_facts_are_refused(tmp_path):
    for rows, name, words in (([], "a.jsonl", "no facts"), ([], "a.json", "no facts"), ([{"a": 1}], "b.json", "row 1")):
        with pytest.raises(BadDataset, match=words):
            facts_from_file(written(tmp_path, rows, name))
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(BadDataset, match="list of facts"):
        facts_from_file(tmp_path / "c.json")
