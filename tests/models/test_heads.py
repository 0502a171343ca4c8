"""find_heads: the attention output projection of every layer, and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import peft as hf_peft
import pytest
import torch
import transformers
from torch import nn

from tests.by_hand import (
    GEOMETRY,
    N_HEADS,
    N_LAYERS,
    delta,
    hook_counts,
    projection,
    projection_name,
    prompt_ids,
    seen_inputs,
)
from tests.tiny import COMMON, FAMILIES, tiny_model
from trimtab.activations import Head
from trimtab.errors import BadValue, UnsupportedModel
from trimtab.models.adding import add_to_heads
from trimtab.models.heads import find_heads

SMALL = {k: v for k, v in COMMON.items() if k != "initializer_range"}


def names(model: Any) -> list[str]:
    return [site.name for site in find_heads(model)]


def from_config(config: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, torch.float32) for family in FAMILIES]
    + [(family, dtype) for family in ("llama", "gpt2") for dtype in (torch.bfloat16, torch.float16, torch.float64)],
)
def test_exactly_the_attention_output_projections_are_found_in_layer_order(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype)
    sites = find_heads(model)
    assert [s.layer for s in sites] == list(range(N_LAYERS))
    assert [s.name for s in sites] == [projection_name(family, layer) for layer in range(N_LAYERS)]
    assert all(s.module is projection(model, family, s.layer) for s in sites)
    assert {(s.n_heads, s.d_head) for s in sites} == {(N_HEADS, GEOMETRY[family].d_head)}


@pytest.mark.parametrize(("family", "group"), [("llama-gqa", 2), ("llama-odd-head-dim", 2), ("llama", 1)])
def test_each_slice_of_the_found_input_is_the_head_that_its_values_come_from(family: str, group: int) -> None:
    model = tiny_model(family)
    site = find_heads(model)[1]
    value_head, d = 1, site.d_head
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[value_head * d : (value_head + 1) * d] = 0
    x = seen_inputs(model, {"x": site.module}, lambda: model(prompt_ids(6)))["x"]
    silent = (x.unflatten(-1, (site.n_heads, d)).abs().amax((0, 1, 3)) == 0).nonzero().flatten().tolist()
    assert silent == list(range(value_head * group, (value_head + 1) * group))


def test_a_head_width_that_belongs_to_the_values_alone_is_taken_from_the_config() -> None:
    config = transformers.DeepseekV3Config(
        **SMALL, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=10, n_routed_experts=2, num_experts_per_tok=1, n_group=1, topk_group=1, moe_intermediate_size=16,
    )  # fmt: skip
    sites = find_heads(from_config(config))
    assert [(s.name, s.n_heads, s.d_head) for s in sites] == [
        (f"model.layers.{layer}.self_attn.o_proj", 4, 10) for layer in range(N_LAYERS)
    ]


def test_one_layer_and_two_layers_are_found_too() -> None:
    for n in (1, 2):
        config = transformers.LlamaConfig(**{**COMMON, "num_hidden_layers": n})
        assert names(from_config(config)) == [f"model.layers.{i}.self_attn.o_proj" for i in range(n)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_tokens_that_share_one_embedding_do_not_hide_the_heads(family: str) -> None:
    model = tiny_model(family)
    expected = names(model)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[:] = table[7].clone()
    assert names(model) == expected
    with torch.no_grad():
        table.zero_()
    assert names(model) == expected


def test_a_vocabulary_of_three_tokens_is_enough() -> None:
    config = transformers.LlamaConfig(**{**COMMON, "vocab_size": 3})
    assert len(find_heads(from_config(config))) == N_LAYERS


def test_a_model_without_its_language_model_head_has_the_same_heads() -> None:
    model = tiny_model("llama").model
    assert names(model) == [f"layers.{i}.self_attn.o_proj" for i in range(N_LAYERS)]


def test_every_modules_mode_is_restored() -> None:
    model = tiny_model("gpt2").train()
    model.transformer.h[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert set(before.values()) == {True, False}
    find_heads(model)
    assert {name: module.training for name, module in model.named_modules()} == before


def test_dropout_in_training_mode_does_not_look_like_attention() -> None:
    config = transformers.GPT2Config(vocab_size=300, n_embd=48, n_layer=3, n_head=4, embd_pdrop=0.5, resid_pdrop=0.5)
    model = from_config(config).train()
    assert names(model) == [projection_name("gpt2", i) for i in range(N_LAYERS)]


def test_hooks_weights_gradients_and_random_numbers_are_left_as_they_were() -> None:
    # in training mode, so that a forward with dropout would draw random numbers
    model = tiny_model("gpt2").train()
    model(prompt_ids(4)).logits.sum().backward()
    model.transformer.h[0].register_forward_pre_hook(lambda *_: None)
    projection(model, "gpt2", 0).register_forward_hook(lambda *_: None)
    hooks = hook_counts(model)
    weights = {n: (p.clone(), p.grad.clone(), p.requires_grad) for n, p in model.named_parameters()}
    random = torch.random.get_rng_state()
    find_heads(model)
    assert hook_counts(model) == hooks
    assert torch.equal(torch.random.get_rng_state(), random)
    for name, p in model.named_parameters():
        weight, grad, requires = weights[name]
        assert torch.equal(p, weight) and torch.equal(p.grad, grad) and p.requires_grad == requires


def test_a_forward_that_fails_leaves_no_hooks_and_the_modes_as_they_were() -> None:
    model = tiny_model("llama").train()

    def fail(*args: Any) -> None:
        raise RuntimeError("out of order")

    model.model.norm.register_forward_pre_hook(fail)
    hooks = hook_counts(model)
    with pytest.raises(RuntimeError, match="out of order"):
        find_heads(model)
    assert hook_counts(model) == hooks
    assert all(module.training for module in model.modules())


def hybrid_with_convolutions() -> Any:
    kinds = ["conv", "full_attention", "conv"]
    return from_config(transformers.Lfm2Config(**SMALL, num_key_value_heads=2, layer_types=kinds))


def hybrid_with_recurrence() -> Any:
    kinds = ["recurrent", "attention", "recurrent"]
    config = transformers.RecurrentGemmaConfig(**SMALL, num_key_value_heads=1, lru_width=48, block_types=kinds)
    return from_config(config)


@pytest.mark.parametrize(
    ("make", "name"),
    [(hybrid_with_convolutions, "self_attn.out_proj"), (hybrid_with_recurrence, "temporal_block.o_proj")],
)
def test_layers_that_mix_positions_without_attention_are_left_out_with_a_warning(
    make: Callable[[], Any], name: str
) -> None:
    model = make()
    with pytest.warns(UserWarning, match=r"layers \[0, 2\] have no attention heads"):
        sites = find_heads(model)
    assert [(s.layer, s.name) for s in sites] == [(1, f"model.layers.1.{name}")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = model.model.layers[1].register_forward_hook(lambda *_: None)  # heads are looked for again
        assert find_heads(model) == sites
        handle.remove()
        assert find_heads(model) == sites


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_attends_in_every_layer_gives_no_warning(family: str) -> None:
    model = tiny_model(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_heads(model)


def without_layer_list() -> Any:
    model = tiny_model("llama")
    model.model.layers = nn.Sequential(*model.model.layers)
    return model


def without_matching_width() -> Any:
    model = tiny_model("llama")
    model.config.num_attention_heads = 6
    return model


def encoder_decoder() -> Any:
    config = transformers.T5Config(vocab_size=300, d_model=48, d_kv=12, d_ff=64, num_layers=2, num_heads=4)
    return transformers.T5ForConditionalGeneration(config)


UNSUPPORTED = {
    "no attention": (
        lambda: from_config(transformers.MambaConfig(vocab_size=300, hidden_size=48, num_hidden_layers=2)),
        "MambaForCausalLM is not a decoder with attention heads",
    ),
    "encoder and decoder": (encoder_decoder, "T5ForConditionalGeneration is not a decoder"),
    "no layer list": (without_layer_list, "no list of 3 layers found in LlamaForCausalLM"),
    "not from transformers": (lambda: nn.Sequential(nn.Linear(3, 3)), "Sequential has no transformers config"),
    "another width": (without_matching_width, r"6 x 12 inputs, found \{'model.layers.0.self_attn.o_proj': 48"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_model_without_findable_heads_is_refused_by_name(case: str) -> None:
    make, words = UNSUPPORTED[case]
    with pytest.raises(UnsupportedModel, match=words):
        find_heads(make())


@pytest.mark.parametrize("part", ["self_attn.v_proj", "input_layernorm"])
def test_weights_that_are_nan_before_the_projection_name_their_layer(part: str) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].get_submodule(part).weight.view(-1)[5] = float("nan")
    with pytest.raises(BadValue, match="layer 1 gives NaN or infinite values"):
        find_heads(model)


@pytest.mark.parametrize(("family", "target"), [("llama", "o_proj"), ("gpt2", "c_proj"), ("gpt-neox", "dense")])
def test_with_adapters_on_the_projection_the_adapted_module_is_found(family: str, target: str) -> None:
    model = tiny_model(family)
    wrapped = hf_peft.get_peft_model(model, hf_peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False))
    sites = find_heads(wrapped)
    assert [s.name for s in sites] == [projection_name(family, i) for i in range(N_LAYERS)]
    assert all(isinstance(s.module, hf_peft.tuners.lora.LoraLayer) for s in sites)
    assert {(s.n_heads, s.d_head) for s in sites} == {(N_HEADS, GEOMETRY[family].d_head)}


def test_a_compiled_models_heads_are_those_of_the_model_inside() -> None:
    model = tiny_model("llama")
    expected = [s.module for s in find_heads(model)]
    assert [s.module for s in find_heads(torch.compile(model, backend="eager"))] == expected


@pytest.mark.parametrize("positions", ["generated", torch.ones(1, 6, dtype=torch.bool)], ids=["generated", "mask"])
def test_heads_are_found_inside_an_edit_which_goes_on_acting(positions: Any) -> None:
    model, ids = tiny_model("llama"), prompt_ids(6)
    deltas = {Head(0, 1): delta("llama", 0, torch.float32)}
    cached = {"past_key_values": transformers.DynamicCache()} if isinstance(positions, str) else {}
    with torch.no_grad():
        plain = model(ids).logits
        with add_to_heads(model, deltas, positions):
            assert names(model) == [projection_name("llama", i) for i in range(N_LAYERS)]
            edited = model(ids, **cached).logits
    assert (edited - plain).abs().max() > 0.01


def test_a_masked_language_model_is_refused_though_its_layers_hold_attention():
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    with pytest.raises(UnsupportedModel, match="BertForMaskedLM is not a decoder with attention heads"):
        find_heads(transformers.BertForMaskedLM(config))


def test_a_model_remembers_its_heads_until_a_module_of_it_is_another():
    model, forwards = tiny_model(), []
    handle = model.get_decoder().register_forward_hook(lambda *_: forwards.append(1))
    first = find_heads(model)
    asked = len(forwards)
    assert asked and find_heads(model) == first and len(forwards) == asked
    projection = first[1].module
    other = torch.nn.Linear(projection.in_features, projection.out_features, bias=False)
    model.get_submodule(first[1].name.rpartition(".")[0]).o_proj = other
    assert find_heads(model)[1].module is other and len(forwards) > asked
    asked = len(forwards)
    handle.remove()
    find_heads(model)
    assert len(forwards) == asked  # the hook is gone, so the forward of a new search is not counted
