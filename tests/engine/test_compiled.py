"""Edits that compilation keeps: equal to the same edit uncompiled, inside a compiled graph too, and gone afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CompileConfig

from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.edits.combined import NoEdit
from trimtab.engine.generate import Decoding, compiled_steps, continuations
from trimtab.errors import Incompatible
from trimtab.models.hooks import is_compiled

pytestmark = pytest.mark.usefixtures("unchecked")
IDS = torch.randint(5, 290, (2, 7), generator=torch.Generator().manual_seed(1))
EVERYWHERE = CompileConfig(backend="eager")
EVERYWHERE._compile_all_devices = True  # generation compiles on GPUs only unless told
STATIC = {"cache_implementation": "static", "compile_config": EVERYWHERE}


def generated(model: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    out = model.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False, pad_token_id=0,
        eos_token_id=None, output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("family", ["llama-gqa", "gemma2"])
def test_a_compiled_step_holds_the_shift(family: str) -> None:
    model = tiny_model(family)
    shift = random_shift(model)
    plain = generated(model)[1]
    with shift.applied(model):
        expected = generated(model)
    with compiled_steps(model), shift.applied(model):
        found = generated(model, **STATIC)
        assert is_compiled(model)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert (found[1] - plain).abs().max() > 0.1


def test_the_shift_is_part_of_one_whole_graph() -> None:
    model = tiny_model("llama")
    shift = random_shift(model)
    with torch.no_grad():
        plain = model(IDS).logits
        with shift.applied(model, "all"):
            found = torch.compile(model.forward, backend="aot_eager", fullgraph=True)(IDS, use_cache=False).logits
            eager = model(IDS, use_cache=False).logits
    torch.testing.assert_close(found, eager, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 0.1


def test_other_edits_can_be_applied_after_compiled_generation() -> None:
    model = tiny_model("llama")
    shift = random_shift(model)
    with shift.applied(model):
        expected = generated(model)[1]
    with compiled_steps(model):
        generated(model, **STATIC)
        assert is_compiled(model)
    with shift.applied(model):
        torch.testing.assert_close(generated(model)[1], expected)
    # the control: outside the block the compiled step stays, and edits are refused
    generated(model, **STATIC)
    with pytest.raises(Incompatible, match="compiled before the edit was applied"), shift.applied(model):
        pass


def test_continuations_of_several_edits_compiled_are_those_uncompiled() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    edits = [NoEdit(), random_shift(model)]
    prompts = [[5, 6, 7, 8], [9, 10, 11]]
    expected = continuations(model, tokenizer, prompts, edits, Decoding(6))
    found = continuations(model, tokenizer, prompts, edits, Decoding(6, {"compile_config": EVERYWHERE}, compiled=True))
    assert found == expected and found[0] != found[1]
    assert not is_compiled(model)
