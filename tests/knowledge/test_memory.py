"""A code book answers where a key is met and nowhere else, and its values are what makes the answers said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.cases import FACTS, memory_edit
from tests.observing import random_state, state_of
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab import NoEdit
from trimtab.datasets import Fact, FactSet
from trimtab.edits import MemoryEdit
from trimtab.edits.disk import load_edit
from trimtab.errors import BadDataset, BadValue, Incompatible
from trimtab.evaluate import drift
from trimtab.evaluate.factual import SaidFacts
from trimtab.knowledge import GRACE

LONG = FactSet((Fact("snow", "The colour of {} is", "blue and green"), Fact("The sun", "{} is", "grey")))
FEW = GRACE(steps=60, rate=0.3)


def answers(model: Any, edit: Any, facts: FactSet) -> dict[str, str]:
    (found,) = SaidFacts().measure(model, tiny_tokenizer(), facts, [edit])
    return {key: row["answer"] for key, row in found.rows.items()}


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gemma2"])
def test_answers_of_several_tokens_are_said_and_nothing_else_is_moved(family, tmp_path):
    model = tiny_model(family)
    model.generation_config.eos_token_id = None
    before, draws = state_of(model), random_state()
    edit = FEW.fit(model, tiny_tokenizer(), LONG)
    assert (state_of(model), random_state()) == (before, draws)
    for fact in LONG:
        assert answers(model, edit, LONG)[fact.key].startswith(fact.new)
        assert not answers(model, edit.randomised(0), LONG)[fact.key].startswith(fact.new)  # the control
    others = FactSet((Fact("coal", "The colour of {} is", "blue"), Fact("The sea", "{} is", "blue")))
    assert answers(model, edit, others) == answers(model, NoEdit(), others)
    assert float(drift(model, tiny_tokenizer(), edit, texts=["The sky was grey.", "Snow fell."]).kl) == 0
    edit.save(tmp_path / "edit")
    loaded = load_edit(tmp_path / "edit")
    assert isinstance(loaded, MemoryEdit)
    assert answers(model, loaded, LONG) == answers(model, edit, LONG)
    assert loaded.record["facts"] == [fact.key for fact in LONG]


def test_an_entry_for_each_token_of_an_answer_is_near_itself_and_not_its_decoys():
    model = tiny_model()
    edit = GRACE(steps=1, layer=1).fit(model, tiny_tokenizer(), FACTS)
    n = [len(tiny_tokenizer()(f" {fact.new}", add_special_tokens=False)["input_ids"]) for fact in FACTS]
    assert len(edit) == sum(n) and edit.layer == 1 and edit.unchanged_layers == 1
    ids = tiny_tokenizer()(FACTS[0].asked, return_tensors="pt")["input_ids"]
    seen: list[torch.Tensor] = []
    handle = model.model.layers[1].register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        model(ids)
        model(tiny_tokenizer()("The colour of water is", return_tensors="pt")["input_ids"])
    handle.remove()
    torch.testing.assert_close(edit.keys[0], seen[0][0, -1], rtol=0, atol=1e-4)
    assert float((seen[1][0, -1] - edit.keys[0]).norm()) >= 2 * float(edit.radii[0]) * (1 - 1e-4)
    wide = GRACE(steps=1, layer=1, reach=1.0).fit(model, tiny_tokenizer(), FACTS)
    torch.testing.assert_close(wide.radii, 2 * edit.radii)


def test_facts_that_share_forwards_get_the_values_that_they_get_alone():
    model, short = tiny_model(), replace(FEW, steps=5)
    together = short.fit(model, tiny_tokenizer(), LONG)
    apart = [short.fit(model, tiny_tokenizer(), LONG[i : i + 1]) for i in range(2)]
    values = torch.cat([edit.values for edit in apart])
    torch.testing.assert_close(together.values, values, rtol=1e-3, atol=1e-3)
    one_by_one = replace(short, batch_size=1).fit(model, tiny_tokenizer(), LONG)
    torch.testing.assert_close(together.radii, one_by_one.radii, rtol=1e-3, atol=1e-4)


def test_within_the_radius_the_output_goes_the_strength_s_part_of_the_way():
    model = tiny_model(dtype=torch.float64)
    ids, mask = torch.arange(3, 9)[None], torch.zeros(1, 6, dtype=torch.bool)
    mask[0, 3:5] = True
    layer, seen = model.model.layers[1], []
    handle = layer.register_forward_hook(lambda m, a, out: seen.append(out[0].clone()))
    with torch.no_grad():
        model(ids)
        plain = seen.pop()
        book = MemoryEdit(1, plain[[3, 0]].float(), torch.ones(2, 48), torch.full((2,), 1e-3), 0.25)
        with book.applied(model, mask):
            model(ids)
    # hooks run in the order in which they came: what is seen is before the edit, so look behind the next layer's input
    handle.remove()
    kept: list[torch.Tensor] = []
    with book.applied(model, mask), torch.no_grad():
        handle = model.model.layers[2].register_forward_pre_hook(lambda m, a: kept.append(a[0][0].clone()))
        model(ids)
        handle.remove()
    # the fourth is met; the fifth is far from any key, and the first is met but not among the positions
    expected = plain.clone()
    expected[3] = plain[3] + 0.25 * (1 - plain[3])
    torch.testing.assert_close(kept[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda m: GRACE(steps=0), BadValue, "steps"),
        (lambda m: GRACE(reach=2), BadValue, "reach"),
        (lambda m: GRACE(layer=9).fit(m, tiny_tokenizer(), FACTS), BadValue, "no layer 9"),
        (lambda m: GRACE().fit(m, tiny_tokenizer(), tiny_questions(2)), BadDataset, "takes facts"),
        (lambda m: MemoryEdit(1, torch.ones(2, 4), torch.ones(2, 4), torch.zeros(2)), BadValue, "radii above 0"),
        (lambda m: memory_edit(tiny_model(seed=1)).applied(m, "all"), Incompatible, "another"),
        (lambda m: replace(memory_edit(m), layer=7).applied(m, "all"), BadValue, "no layer 7"),
    ],
)
def test_what_makes_no_code_book_is_refused_in_one_sentence(make, error, words):
    with pytest.raises(error, match=words):
        make(tiny_model())
