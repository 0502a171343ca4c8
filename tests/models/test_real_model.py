"""A real pretrained chat model from first to last: what toy models cannot show (`make test-real`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import trimtab as tt
from trimtab.datasets import Fact, FactSet
from trimtab.datasets.facts import Neighbour
from trimtab.edits.vectors import ResidualShift
from trimtab.errors import UnsupportedModel
from trimtab.evaluate.drift import NeutralTexts, drift_meters
from trimtab.evaluate.factual import fact_meters
from trimtab.knowledge import ROME
from trimtab.models.anatomy import decoder_layers

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore:.*weights are dequantised"),
]
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def real() -> Any:
    try:
        return tt.load_model("smollm2", device="cpu")
    except UnsupportedModel as why:
        pytest.skip(str(why))


def test_it_is_asked_in_its_template_and_answers_as_plain_transformers_does(real: Any) -> None:
    model, tokenizer = real
    (said,) = tt.evaluate.answers(model, tokenizer, [QUESTION], settings={"max_new_tokens": 12})
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**asked, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    plain = tokenizer.decode(out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said.strip() == plain.strip() and "Paris" in said


def test_what_is_captured_is_what_a_hook_sees(real: Any) -> None:
    model, tokenizer = real
    questions = tt.datasets.folklore()[:2]
    found = tt.capture_heads(model, tokenizer, questions.statements())
    layer, seen = 14, []
    hook = decoder_layers(model)[layer].self_attn.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for statement in questions.statements():
        with torch.no_grad():
            model(**tokenizer(statement.text, return_tensors="pt"))
    hook.remove()
    expected = torch.stack([one[0, -1] for one in seen]).view(len(seen), 9, 64)
    torch.testing.assert_close(found.values[:, found.layers.index(layer)].float(), expected, atol=1e-4, rtol=1e-4)


def test_a_shift_acts_and_leaves_the_model_as_it_was(real: Any) -> None:
    model, tokenizer = real
    ids = tokenizer("The weather today is", return_tensors="pt")["input_ids"]

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model(ids).logits

    before = logits()
    vector = torch.randn(1, 576, generator=torch.Generator().manual_seed(0))
    with ResidualShift((14,), vector).applied(model, "all"):
        assert float((logits() - before).abs().max()) > 0.1
    assert torch.equal(logits(), before)


def test_a_fact_is_written_said_and_taken_back(real: Any) -> None:
    model, tokenizer = real
    alike = tt.datasets.atlas().where(lambda fact: fact.prompt == "The capital of {} is" and fact.subject != "Chile")
    near = tuple(Neighbour(fact.asked, fact.true) for fact in alike[:12])
    facts = FactSet((Fact("Chile", "The capital of {} is", "Paris", "Santiago", neighbours=near),))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    edit = ROME(moment="identity", before=2).fit(model, tokenizer, facts)
    meters = [*fact_meters(), *drift_meters(NeutralTexts(tuple(tt.datasets.neutral_texts(4))))]
    rows = tt.compare.table(model, tokenizer, facts, [tt.NoEdit(), edit, edit.randomised(0)], meters=meters).rows
    unedited, edited, chance = (row["said"] for row in rows)
    assert (unedited, edited, chance) == (0, 1, 0)
    assert rows[1].details["facts"][0]["known"] > 5 and rows[1]["kept"] >= 0.8 and rows[1]["leak"] <= 0.2
    assert rows[1]["kl"] < 0.1
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
