"""The layer to edit is the one that keeps and spreads most and leaks least, on facts that the model knows."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

from tests.cases import FACTS
from tests.observing import state_of
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.errors import BadDataset
from trimtab.knowledge import ROME, ValueSearch, choose_layer, editors, layer_choice
from trimtab.knowledge.moments import own_statistics

QUICK = ROME(moment="identity", before=0, search=ValueSearch(steps=2))


def test_every_layer_asked_for_is_tried_and_the_best_one_chosen(monkeypatch):
    monkeypatch.setattr(layer_choice, "known_facts", lambda model, tokenizer, facts, neighbours: facts)
    model = tiny_model()
    before = state_of(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*stayed unlikely")
        found = choose_layer(model, tiny_tokenizer(), QUICK, FACTS, n_facts=1, depths=(0.1, 0.7))
    assert [one.layer for one in found.tried] == [1, 2]
    best = max(found.tried, key=lambda one: one.kept + one.paraphrases - one.leak)
    assert found.layer == best.layer
    assert state_of(model) == before


def test_of_layers_that_do_as_well_otherwise_the_one_that_leaks_less_is_chosen(monkeypatch):
    figures = {1: {"paraphrases": 0.5, "kept": 0.8, "leak": 0.1}, 2: {"paraphrases": 0.6, "kept": 0.8, "leak": 0.7}}
    monkeypatch.setattr(layer_choice, "known_facts", lambda model, tokenizer, facts, neighbours: facts)
    monkeypatch.setattr(
        layer_choice, "measurements_of", lambda model, tokenizer, fact, edits, meters: [{"facts": edits[0].record}]
    )
    monkeypatch.setattr(layer_choice, "summed_up", lambda meter, record: figures[record["layers"][0]][meter.name])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*stayed unlikely")
        found = choose_layer(tiny_model(), tiny_tokenizer(), QUICK, FACTS, n_facts=2, depths=(0.1, 0.7))
    assert found.layer == 1
    assert {one.layer: pytest.approx(figures[one.layer]) for one in found.tried} == {
        one.layer: {"paraphrases": one.paraphrases, "kept": one.kept, "leak": one.leak} for one in found.tried
    }


def test_statistics_of_all_layers_are_taken_of_the_same_texts(monkeypatch):
    taken = []

    def noted(model, tokenizer, sites, **how):
        taken.append([site.layer for site in sites])
        return own_statistics(model, tokenizer, sites, **how)

    monkeypatch.setattr(editors, "own_statistics", noted)
    monkeypatch.setattr(layer_choice, "known_facts", lambda model, tokenizer, facts, neighbours: facts)
    quick = replace(QUICK, moment="own", n_tokens=80, cache=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*stayed unlikely")
        choose_layer(tiny_model(), tiny_tokenizer(), quick, FACTS, n_facts=1, depths=(0.1, 0.7))
    assert taken == [[1, 2]]


def test_a_model_that_knows_none_of_the_facts_is_refused():
    with pytest.raises(BadDataset):
        choose_layer(tiny_model(), tiny_tokenizer(), QUICK, FACTS)
