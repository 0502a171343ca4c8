"""The shift that compilation keeps: equal to the hook, inside a compiled graph too, and gone afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CompileConfig

from tests.measuring import random_shift
from tests.tiny import tiny_model
from trimtab.activations import Head
from trimtab.engine.compiled import ShiftedProjection, shifted_for_compilation
from trimtab.errors import BadValue, Incompatible
from trimtab.models.hooks import is_compiled

IDS = torch.randint(5, 290, (2, 7), generator=torch.Generator().manual_seed(1))


def generated(model: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    out = model.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False, pad_token_id=0,
        eos_token_id=None, output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gpt-neox", "gemma2"])
def test_it_equals_the_hook(family: str, cache: dict[str, str]) -> None:
    if family == "gpt2" and cache:
        pytest.skip("GPT-2's static cache is transformers' own affair")
    model = tiny_model(family)
    shift = random_shift(model)
    plain = generated(model)[1]
    with shift.applied(model):
        expected = generated(model)
    with shifted_for_compilation(model, shift.deltas):
        found = generated(model, **cache)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert (found[1] - plain).abs().max() > 0.1


def test_a_compiled_forward_inside_the_block_holds_the_shift() -> None:
    model = tiny_model("llama")
    shift = random_shift(model)
    with torch.no_grad():
        plain = model(IDS).logits[:, -1]
        with shifted_for_compilation(model, shift.deltas):
            compiled = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
            found = compiled(IDS, use_cache=False).logits[:, -1]
            eager = model(IDS, use_cache=False).logits[:, -1]
    torch.testing.assert_close(found, eager, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 0.1


def test_the_model_is_as_before_also_after_an_error() -> None:
    model = tiny_model("llama")
    modules, plain = dict(model.named_modules()), generated(model)
    with pytest.raises(RuntimeError, match="stop"), shifted_for_compilation(model, random_shift(model).deltas):
        assert any(isinstance(m, ShiftedProjection) for m in model.modules())
        raise RuntimeError("stop")
    assert dict(model.named_modules()) == modules
    assert not is_compiled(model)
    assert torch.equal(generated(model)[1], plain[1])


@pytest.mark.parametrize("steered", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_other_edits_can_be_applied_after_compiled_generation(steered: bool) -> None:
    model = tiny_model("llama")
    shift = random_shift(model)
    with shift.applied(model):
        expected = generated(model)[1]
    everywhere = CompileConfig(backend="eager")
    everywhere._compile_all_devices = True  # generation compiles on GPUs only unless told
    static = {"cache_implementation": "static", "compile_config": everywhere}
    with shifted_for_compilation(model, shift.deltas if steered else {}):
        generated(model, **static)
        assert is_compiled(model)
    with shift.applied(model):
        torch.testing.assert_close(generated(model)[1], expected)
    # the control: outside the block the compiled step stays, and edits are refused
    generated(model, **static)
    with pytest.raises(Incompatible, match="compiled before the edit was applied"), shift.applied(model):
        pass


def test_a_model_compiled_before_is_refused() -> None:
    model = tiny_model("llama")
    model.compile(backend="eager")
    entering = shifted_for_compilation(model, random_shift(model).deltas)
    with pytest.raises(Incompatible, match="compiled before the shift was placed"), entering:
        pass


@pytest.mark.parametrize("head", [Head(0, 9), Head(7, 0)])
def test_a_head_that_the_model_does_not_have_is_refused(head: Head) -> None:
    entering = shifted_for_compilation(tiny_model("llama"), {head: torch.ones(12)})
    with pytest.raises(BadValue, match="no head"), entering:
        pass
