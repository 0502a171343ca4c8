"""Where sublayers end, by architecture, and adapters against bare hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
)

from tests.by_hand import projection_name
from tests.tiny import tiny_model
from tests.tune.test_own_methods import attached, logits, shake
from trimtab.errors import UnsupportedModel
from trimtab.models.anatomy import base_of
from trimtab.peft.methods.bottleneck import Bottleneck
from trimtab.peft.parts.sublayers import attention_blocks, config_of, feed_forward

SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS = {
    "opt": (OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32), "model.decoder.layers.1.fc2"),
    "bloom": (BloomConfig(vocab_size=99, hidden_size=32, n_layer=2, n_head=4), "transformer.h.1.mlp.dense_4h_to_h"),
    "falcon": (FalconConfig(**SMALL), "transformer.h.1.mlp.dense_4h_to_h"),
    "phi": (PhiConfig(**SMALL, intermediate_size=48), "model.layers.1.mlp.fc2"),
    "mixtral": (
        MixtralConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, num_local_experts=4),
        "model.layers.1.mlp",
    ),
}
FAMILIES = {
    "llama-gqa": "model.layers.1.mlp.down_proj",
    "gpt2": "transformer.h.1.mlp.c_proj",
    "gpt-neox": "gpt_neox.layers.1.mlp.dense_4h_to_h",
    "gemma2": "model.layers.1.mlp.down_proj",
}


def found(model: Any) -> str:
    _, block, projection = attention_blocks(model)[1]
    module = feed_forward(block, projection)
    return next(name for name, m in base_of(model).named_modules() if m is module)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_feed_forward_network_is_found(family):
    assert found(tiny_model(family)) == FAMILIES[family]


@pytest.mark.parametrize("kind", OTHERS)
def test_it_is_found_in_other_architectures_where_adapters_start_from_the_base(kind):
    config, expected = OTHERS[kind]
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(3, 9)[None]
    before = logits(model, ids)
    assert found(model) == expected
    with attached(Bottleneck("houlsby", 4), model) as parts:
        assert torch.equal(logits(parts.model, ids), before)
        shake(parts)
        assert float((logits(parts.model, ids) - before).abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_do_what_their_formula_says_at_the_places_of_the_paper(family):
    model = tiny_model(family)
    with attached(Bottleneck("houlsby", 4), model) as parts:
        shake(parts)
        expected, w = logits(parts.model), {k: t.clone() for k, t in parts.tensors().items()}
    handles = []
    for layer in range(3):
        places = {
            "attention": projection_name(family, layer),
            "feed_forward": FAMILIES[family].replace("1", str(layer), 1),
        }
        for place, name in places.items():

            def add(module: Any, args: Any, x: torch.Tensor, at: str = f"layers.{layer}.{place}") -> torch.Tensor:
                inner = torch.nn.functional.gelu(x @ w[f"{at}.down.weight"].T + w[f"{at}.down.bias"])
                return x + inner @ w[f"{at}.up.weight"].T + w[f"{at}.up.bias"]

            handles.append(model.get_submodule(name).register_forward_hook(add))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=5e-5)
    for handle in handles:
        handle.remove()


def test_a_layer_without_feed_forward_network_and_a_thing_without_config_are_refused():
    _, block, projection = attention_blocks(tiny_model("llama"))[0]
    del block.mlp
    with pytest.raises(UnsupportedModel, match="no feed-forward network found in a LlamaDecoderLayer"):
        feed_forward(block, projection)
    with pytest.raises(UnsupportedModel, match="got a dict"):
        config_of({"hidden_size": 3})
