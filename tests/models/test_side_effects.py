"""What an edit leaves alone: other compiled functions, the model's attributes, and other threads' models."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.engine.capture import capture_heads
from trimtab.engine.score import score_answers
from trimtab.errors import Incompatible
from trimtab.models.adding import changed_residual
from trimtab.models.heads import find_heads
from trimtab.models.tokens import AnswerTokens
from trimtab.peft.parts.attaching import frozen_base

IDS = torch.tensor([[5, 6, 7, 8]])


def counting(function: Callable[[Any], Any]) -> tuple[Any, list[int]]:
    """Return the function compiled, and a list that grows by each graph that is compiled for it."""
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(graphs))
        return graph.forward

    return torch.compile(function, backend=backend), graphs


@pytest.mark.usefixtures("unchecked")
def test_only_what_was_compiled_over_the_model_is_traced_again() -> None:
    model, bystander = tiny_model("llama"), tiny_model("gpt2")
    over, graphs = counting(lambda ids: model(ids, use_cache=False).logits)
    plain, plain_graphs = counting(lambda x: torch.tanh(x) * 2)
    beside, beside_graphs = counting(lambda ids: bystander(ids, use_cache=False).logits)
    shift = random_shift(model)
    with torch.no_grad():
        unedited, alone, apart = over(IDS), plain(torch.ones(3)), beside(IDS)
        before = len(graphs), len(plain_graphs), len(beside_graphs)
        for edit in (shift, shift.scaled(-2)):
            with edit.applied(model, "all"):
                assert torch.equal(over(IDS), model(IDS).logits)
                assert not torch.equal(over(IDS), unedited)
                assert torch.equal(plain(torch.ones(3)), alone) and torch.equal(beside(IDS), apart)
            # the graph without the edit is found again
            assert torch.equal(over(IDS), unedited)
    assert (len(plain_graphs), len(beside_graphs)) == before[1:]
    assert before[0] < len(graphs) <= 3 * before[0]


@pytest.mark.usefixtures("unchecked")
def test_of_functions_over_parts_only_those_over_an_edited_part_are_traced_again() -> None:
    model = tiny_model("llama")
    shift = random_shift(model)
    edited = {head.layer for head in shift.heads}
    assert 0 < len(edited) < 3
    x = torch.ones(1, 1, 48)
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            found, graphs = counting(layer.self_attn.o_proj)
            plain = found(x)
            with shift.applied(model, "all"):
                model(IDS)
                assert torch.equal(found(x), plain) != (index in edited)
            assert len(graphs) == 1 + (index in edited)


def attributes(model: nn.Module) -> dict[str, list[str]]:
    return {name: sorted(vars(module)) for name, module in model.named_modules()}


def test_no_attribute_is_left_on_the_model() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model.model.layers[0].self_attn.o_proj.forward = own = functools.partial(
        nn.Linear.forward, model.model.layers[0].self_attn.o_proj
    )
    before = attributes(model)
    shift = random_shift(model)
    find_heads(model)
    capture_heads(model, tokenizer, tiny_questions(3).statements())
    score_answers(model, tokenizer, [AnswerTokens([5, 6, 7, 8, 9], 3, 5)] * 2, [shift])
    with shift.applied(model), changed_residual(model, {1: torch.ones(48)}), shift.applied(model):
        pass
    assert attributes(model) == before
    assert vars(model.model.layers[0].self_attn.o_proj)["forward"] is own


def test_edits_may_end_in_any_order() -> None:
    model = tiny_model("llama")
    before, plain = attributes(model), model(IDS).logits
    one, other = (random_shift(model).scaled(a).applied(model, "all") for a in (1, 2))
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    with random_shift(model).scaled(2).applied(tiny_model("llama"), "all") as expected:
        assert torch.equal(model(IDS).logits, expected(IDS).logits)
    other.__exit__(None, None, None)
    assert attributes(model) == before and torch.equal(model(IDS).logits, plain)


@pytest.mark.parametrize("kind", ["vectors", "tuning parts"])
def test_a_second_threads_edit_is_refused_and_one_thread_may_nest(kind: str) -> None:
    model = tiny_model("llama")
    shift = random_shift(model)
    entering = {"vectors": lambda: shift.applied(model), "tuning parts": lambda: frozen_base(model)}[kind]
    refusals: list[BaseException] = []
    entered = threading.Event()

    def other() -> None:
        try:
            with entering():
                entered.set()
        except Incompatible as refusal:
            refusals.append(refusal)

    def run() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with shift.applied(model), shift.applied(model):
        run()
    assert [str(r).partition(" on")[0] for r in refusals] == ["another thread has an edit in place"]
    assert not entered.is_set()
    run()
    assert entered.is_set() and len(refusals) == 1
