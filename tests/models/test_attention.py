"""Attention implementations, caches, windows and compilation: the same results, or a refusal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, StaticCache

from tests.by_hand import delta, padded, prompt_ids
from tests.families import GQA, family_model
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.activations import Head
from trimtab.edits.vectors import HeadShift
from trimtab.engine.capture import capture_heads
from trimtab.errors import Incompatible
from trimtab.evaluate import multiple_choice
from trimtab.models.adding import add_to_heads
from trimtab.models.heads import find_heads
from trimtab.models.identity import fingerprint
from trimtab.protocols import TokenMask

BOTH_WAYS = ["Llama", "Mistral", "Qwen3", "Gemma 3 (text)", "GPT-2", "GPT-NeoX / Pythia", "OPT", "Cohere"]
CLOSE = 2e-5


def the_shift(model: Any) -> HeadShift:
    site = find_heads(model)[0]
    directions = torch.nn.functional.normalize(torch.ones(2, site.d_head), dim=1)
    heads = (Head(0, 1), Head(2, 3))
    return HeadShift(heads, directions, torch.ones(2), 3.0, record={"model": fingerprint(model)})


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_eager_and_sdpa_capture_score_and_generate_the_same(name: str) -> None:
    statements, questions = tiny_questions(3).statements(), tiny_questions(2)
    seen = []
    for implementation in ("eager", "sdpa"):
        model = family_model(name, attn_implementation=implementation)
        assert model.config._attn_implementation == implementation
        model.generation_config.eos_token_id = None
        shift = the_shift(model)
        acts = capture_heads(model, tiny_tokenizer(), statements, batch_size=5).values
        rows = multiple_choice(model, tiny_tokenizer(), questions, shift).rows
        ids, mask = padded([prompt_ids(9), prompt_ids(5)], "left")
        with torch.no_grad(), shift.applied(model):
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, output_logits=True,
                return_dict_in_generate=True, pad_token_id=0,
            )  # fmt: skip
        logprobs = torch.tensor([a.logprob for row in rows for a in row.answers])
        seen.append((acts, logprobs, torch.stack(out.logits)))
    for eager, sdpa in zip(*seen, strict=True):
        assert relative(sdpa, eager) <= CLOSE


def window_model() -> Any:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**GQA, sliding_window=4)).eval()


@pytest.mark.parametrize("make", [window_model, lambda: tiny_model("gemma2"), lambda: tiny_model("llama-gqa")])
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_steps_with_any_cache_are_one_masked_forward(make: Callable[[], Any], kind: str) -> None:
    """A prompt longer than the window, in two chunks, then steps of one token."""
    model, ids = make(), prompt_ids(14)
    shift, mask = the_shift(model), TokenMask(torch.arange(14)[None] >= 8)
    with torch.no_grad():
        with shift.applied(model, mask):
            expected = model(input_ids=ids).logits[:, 8:]
        cache = (
            StaticCache(config=model.config, max_cache_len=20)
            if kind == "static"
            else DynamicCache(config=model.config)
        )
        steps = []
        with shift.applied(model, "generated"):
            for chunk in (ids[:, :9], *ids[:, 9:].split(1, dim=1)):
                steps.append(model(input_ids=chunk, past_key_values=cache, use_cache=True).logits[:, -1:])
    assert relative(torch.cat(steps, dim=1), expected) <= CLOSE


def test_generate_with_a_static_cache_gives_the_tokens_of_a_dynamic_one() -> None:
    model = tiny_model("llama-gqa")
    model.generation_config.eos_token_id = None
    ids, mask = padded([prompt_ids(9), prompt_ids(5)], "left")
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        plain = model.generate(ids, **options)
        with the_shift(model).scaled(3).applied(model):
            dynamic = model.generate(ids, **options)
            static = model.generate(ids, cache_implementation="static", **options)
    assert torch.equal(static, dynamic) and not torch.equal(dynamic, plain)


def test_windows_matter_in_these_models() -> None:
    """The control: with the window open the same weights say something else."""
    model, ids = window_model(), prompt_ids(14)
    wide = copy.deepcopy(model)
    wide.config.sliding_window = None
    with torch.no_grad():
        assert relative(model(ids).logits, wide(ids).logits) > 0.01


def forward_compiled() -> Any:
    model = tiny_model("llama")
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def layers_forward_compiled() -> Any:
    model = tiny_model("llama")
    model.model.layers[1].forward = torch.compile(model.model.layers[1].forward, backend="eager")
    return model


@pytest.mark.parametrize("make", [forward_compiled, layers_forward_compiled])
def test_a_model_whose_forward_was_compiled_before_is_refused(make: Callable[[], Any]) -> None:
    model = make()
    with (
        pytest.raises(Incompatible, match="compiled before the edit was applied"),
        add_to_heads(model, {Head(0, 1): delta("llama", 0, torch.float32)}, "all"),
    ):
        pass


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.slow), "aot_eager"])
def test_a_function_compiled_before_acts_inside_the_block_and_not_after_it(backend: str) -> None:
    model, ids = tiny_model("llama"), prompt_ids(6)
    compiled = torch.compile(lambda ids: model(ids).logits, backend=backend)
    with torch.no_grad():
        plain = compiled(ids)
        for head in (Head(0, 1), Head(1, 2)):
            with add_to_heads(model, {head: delta("llama", 0, torch.float32)}, "all"):
                expected, found = model(ids).logits, compiled(ids)
            assert relative(found, expected) <= CLOSE and relative(expected, plain) > 0.01
            assert relative(compiled(ids), plain) <= CLOSE


@pytest.mark.usefixtures("unchecked")
def test_a_function_compiled_inside_the_block_runs_edited() -> None:
    model, ids = tiny_model("llama"), prompt_ids(6)
    with torch.no_grad():
        plain = model(ids).logits
        with add_to_heads(model, {Head(0, 1): delta("llama", 0, torch.float32)}, "all"):
            expected = model(ids).logits
            found = torch.compile(lambda ids: model(ids).logits, backend="eager")(ids)
    assert relative(found, expected) <= CLOSE and relative(expected, plain) > 0.01
