"""The meter of facts: what counts as said, kept and leaked, worked out by hand on scripted answers."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from trimtab import NoEdit
from trimtab.compare import table
from trimtab.datasets import Fact, FactSet, Neighbour
from trimtab.errors import BadDataset
from trimtab.evaluate import factual as facts_module
from trimtab.evaluate import known_facts, says
from trimtab.evaluate.factual import LikelyFacts, fact_meters
from trimtab.evaluate.table import columns_of
from trimtab.knowledge import FineTuneL
from trimtab.prompting import FactsInContext

NEAR = tuple(
    Neighbour(f"{s} is", a) for s, a in (("Peru", "Lima"), ("Rome", "in Italy"), ("Paris", "Paris"), ("Oslo", "x"))
)
FACT = Fact(
    "Chile",
    "The capital of {} is",
    "Paris",
    "Santiago",
    ("{} is ruled from", "{}, from"),
    NEAR,
    ("{} is not ruled from",),
)
BEFORE = {
    FACT.asked: "Santiago.",
    "Peru is": "Lima",
    "Rome is": "In Italy, of course",
    "Paris is": "Paris",
    "Oslo is": "y",
}
AFTER = {
    FACT.asked: "Paris, France", FACT.paraphrases[0]: "the Paris", FACT.paraphrases[1]: "Parisian rooms",
    "Peru is": "Paris", "Rome is": "in Italy", "Paris is": "Paris", "Oslo is": "x", "Chile is not ruled from": "Paris",
}  # fmt: skip


@pytest.mark.parametrize(
    "text, answer, expected",
    [
        ("Paris, France", "Paris", True),
        ("  the PARIS.", "Paris", True),
        ("Parisian", "Paris", False),
        ("New Paris", "Paris", False),
        ("", "Paris", False),
        ("São Paulo is", "São Paulo", True),
        ("United States of America", "United States", True),
        ("A cat", "the cat", True),
        ("anything", "", False),
    ],
)
def test_a_text_says_an_answer_that_it_begins_with_as_whole_words(text, answer, expected):
    assert says(text, answer) is expected


def test_a_row_counts_by_hand(monkeypatch):
    def scripted(model, tokenizer, prompts, edits, **how):
        return [[(BEFORE if i == 0 else AFTER).get(p, "") for p in prompts] for i in range(len(edits))]

    monkeypatch.setattr("trimtab.engine.completion.completions", scripted)
    (found,) = facts_module.SaidFacts().measure(None, tiny_tokenizer(), FactSet((FACT,)), [NoEdit()])
    row = found.rows[FACT.key]
    assert (row["said"], row["said_paraphrases"], row["paraphrases"]) == (1, 1, 2)
    # known: Peru, Rome and Paris; of these Peru is lost. Oslo, now said rightly, was not known, and does not count.
    # Paris says the new answer anyway and cannot leak
    assert (row["kept"], row["known"]) == (2, 3)
    # of the neighbours that are not, Peru leaks, and so does the prompt that denies it
    assert (row["leaked"], row["open"]) == (2, 4)
    figures = {m.name: float(m.summary(columns_of(m, found.rows).mean(0))) for m in fact_meters()[:4]}
    assert figures == pytest.approx({"said": 1, "paraphrases": 0.5, "kept": 2 / 3, "leak": 1 / 2})


def test_a_neighbour_that_another_fact_writes_anew_is_not_asked_to_stay(monkeypatch):
    def scripted(model, tokenizer, prompts, edits, **how):
        return [[BEFORE.get(p, "") for p in prompts] for _ in edits]

    monkeypatch.setattr("trimtab.engine.completion.completions", scripted)
    other = Fact("Peru", "{} is", "Oslo")
    (alone,) = facts_module.SaidFacts().measure(None, tiny_tokenizer(), FactSet((FACT,)), [NoEdit()])
    (beside,) = facts_module.SaidFacts().measure(None, tiny_tokenizer(), FactSet((FACT, other)), [NoEdit()])
    assert beside.rows[FACT.key]["known"] == alone.rows[FACT.key]["known"] - 1
    assert beside.rows[FACT.key]["open"] == alone.rows[FACT.key]["open"] - 1


def test_as_much_is_generated_as_the_longest_answer_needs(monkeypatch):
    lengths = []

    def scripted(model, tokenizer, prompts, edits, max_new_tokens, **how):
        lengths.append(max_new_tokens)
        return [[""] * len(prompts) for _ in edits]

    monkeypatch.setattr("trimtab.engine.completion.completions", scripted)
    long = Fact("Chile", "The capital of {} is", "a place of which nobody has heard in many long years")
    for fact in (FACT, long):
        facts_module.SaidFacts().measure(None, tiny_tokenizer(), FactSet((fact,)), [NoEdit()])
    tokens = len(tiny_tokenizer()(f" {long.new}", add_special_tokens=False)["input_ids"])
    assert lengths[1] >= tokens + 4 > lengths[0]
    facts_module.SaidFacts(max_new_tokens=3).measure(None, tiny_tokenizer(), FactSet((long,)), [NoEdit()])
    assert lengths[2] == 3


def test_facts_that_the_model_knows_are_those_whose_true_answer_it_says(monkeypatch):
    def scripted(model, tokenizer, prompts, edits, **how):
        return [[BEFORE.get(p, "") for p in prompts] for _ in edits]

    monkeypatch.setattr("trimtab.engine.completion.completions", scripted)
    unknown = Fact("Fiji", "The capital of {} is", "Paris", "Suva")
    assert list(known_facts(None, tiny_tokenizer(), FactSet((FACT, unknown)))) == [FACT]
    with pytest.raises(BadDataset):
        known_facts(None, tiny_tokenizer(), FactSet((FACT,)), neighbours=4)


def test_likelihood_tells_the_answer_that_was_trained_from_its_rival():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    facts = FactSet((Fact("snow", "The colour of {} is", "blue", "white", (), (Neighbour("The sea is", "wet"),)),))
    edit = FineTuneL(steps=60, rate=0.02, bound=0.5).fit(model, tokenizer, facts)
    back = FactSet((Fact("snow", "The colour of {} is", "white", "blue"),))
    (found,) = LikelyFacts().measure(model, tokenizer, facts, [edit])
    (other,) = LikelyFacts().measure(model, tokenizer, back, [edit])
    assert found.rows["The colour of snow is"]["efficacy"] == 1
    assert other.rows["The colour of snow is"]["efficacy"] == 0
    assert found.rows["The colour of snow is"]["neighbours"] == 1


def test_likelihoods_are_those_of_a_mean_token_in_plain_forwards_and_counted_by_hand():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    near = (Neighbour("The sea is", "wet"), Neighbour("Ice is", "cold and hard"), Neighbour("The sky is", "The blue"))
    fact = Fact("snow", "The colour of {} is", "blue", "white as old milk", ("{} looks", "See {}: it is"), near)

    def likely(prompt: str, answer: str) -> float:
        n, whole = len(tokenizer(prompt)["input_ids"]), tokenizer(f"{prompt} {answer}")["input_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(float(logprobs[i - 1, whole[i]]) for i in range(n, len(whole))) / (len(whole) - n)

    def margins(*prompts: tuple[str, str, str]) -> list[float]:
        return [likely(prompt, answer) - likely(prompt, rival) for prompt, answer, rival in prompts]

    own = margins(*((prompt, fact.new, fact.true) for prompt in (fact.asked, *fact.paraphrases)))
    # one that is rightly answered by the new answer has no rival
    others = margins(*((one.prompt, one.answer, fact.new) for one in near[:2]))
    (found,) = LikelyFacts().measure(model, tokenizer, FactSet((fact,)), [NoEdit()])
    row = found.rows[fact.key]
    assert (row["compared"], row["paraphrases"], row["neighbours"]) == (1, 2, 2)
    assert (row["efficacy"], row["paraphrase"]) == (own[0] > 0, sum(margin > 0 for margin in own[1:]))
    assert row["neighbour"] == sum(margin > 0 for margin in others)
    assert row["margin"] == pytest.approx(sum(own + others) / 5, abs=1e-4)


def test_a_figure_of_nothing_is_none_and_prompting_is_asked_its_own_way():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    facts = FactSet((Fact("snow", "The colour of {} is", "blue"),))
    stated = FactsInContext().fit(model, tokenizer, facts)
    assert stated.prompt("Coal is") == "New fact: The colour of snow is blue.\nCoal is"
    made = table(model, tokenizer, facts, [NoEdit(), stated], meters=fact_meters())
    assert made.rows[0]["paraphrases"] is None and made.rows[0]["es"] is None
    assert made.rows[0]["said"] == 0
    with pytest.raises(BadDataset, match="states facts"):
        FactsInContext().fit(model, tokenizer, ("no fact",))
