"""Every family that trimtab promises, as a tiny random model, with its attention modules named by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers

from tests.tiny import COMMON, with_random_biases

SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
GQA = {**COMMON, "num_key_value_heads": 2}
PLAIN = {k: v for k, v in COMMON.items() if k not in ("hidden_size", "intermediate_size", "max_position_embeddings")}
TOKENS = {k: COMMON[k] for k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")}


class Family(NamedTuple):
    """How to make a family's tiny model and where its attention stands."""

    config: Callable[[], Any]
    attention: str = "model.layers.{}.self_attn"
    """The path of each layer's attention module."""
    d_head: int = 12
    layers: tuple[int, ...] = (0, 1, 2)
    """The layers that attend."""
    adds_residual: bool = False
    """Whether the attention module returns the residual stream with its output added."""
    left_out: str = "have no attention heads and are left out"
    """What is said of the other layers."""


def _llava() -> Any:
    return transformers.LlavaConfig(
        vision_config=_vision(), text_config=transformers.LlamaConfig(**GQA), image_token_index=290
    )


def _vision() -> Any:
    return transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )


def _qwen_vl() -> Any:
    text = {**GQA, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}}
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 48, "patch_size": 4,
    }  # fmt: skip
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)


FAMILIES = {
    "Llama": Family(lambda: transformers.LlamaConfig(**GQA)),
    "Mistral": Family(lambda: transformers.MistralConfig(**GQA, sliding_window=4)),
    "Mixtral": Family(lambda: transformers.MixtralConfig(**GQA, num_local_experts=3, num_experts_per_tok=2)),
    "Qwen2": Family(lambda: transformers.Qwen2Config(**GQA)),
    "Qwen3": Family(lambda: transformers.Qwen3Config(**GQA, head_dim=16), d_head=16),
    "Qwen3-MoE": Family(lambda: transformers.Qwen3MoeConfig(**GQA, **EXPERTS, num_experts=3, head_dim=16), d_head=16),
    "Gemma": Family(lambda: transformers.GemmaConfig(**GQA, head_dim=16), d_head=16),
    "Gemma 2": Family(lambda: transformers.Gemma2Config(**GQA, head_dim=16, **SLIDING), d_head=16),
    "Gemma 3 (text)": Family(lambda: transformers.Gemma3TextConfig(**GQA, head_dim=16, **SLIDING), d_head=16),
    "Gemma 4 (text)": Family(
        lambda: transformers.Gemma4TextConfig(
            **GQA, head_dim=16, global_head_dim=24, sliding_window=4, hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=300, layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        ),
        d_head=16, layers=(0, 1),
        left_out="have heads of another size than most layers and are left out; heads= takes those by name",
    ),
    "Phi": Family(lambda: transformers.PhiConfig(**COMMON)),
    "Phi-3": Family(lambda: transformers.Phi3Config(**GQA)),
    "GPT-2": Family(
        lambda: transformers.GPT2Config(n_embd=48, n_layer=3, n_head=4, n_positions=256, **TOKENS),
        "transformer.h.{}.attn",
    ),
    "GPT-J": Family(
        lambda: transformers.GPTJConfig(n_embd=48, n_layer=3, n_head=4, n_positions=256, rotary_dim=8, **TOKENS),
        "transformer.h.{}.attn",
    ),
    "GPT-NeoX / Pythia": Family(lambda: transformers.GPTNeoXConfig(**COMMON), "gpt_neox.layers.{}.attention"),
    "GPT-OSS": Family(
        lambda: transformers.GptOssConfig(
            **GQA, head_dim=16, num_local_experts=3, num_experts_per_tok=2, **SLIDING,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        d_head=16,
    ),
    "OPT": Family(
        lambda: transformers.OPTConfig(
            hidden_size=48, ffn_dim=64, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=256,
            word_embed_proj_dim=48, vocab_size=300, bos_token_id=1, eos_token_id=2, pad_token_id=0, init_std=0.15,
        ),
        "model.decoder.layers.{}.self_attn",
    ),
    "BLOOM": Family(
        lambda: transformers.BloomConfig(hidden_size=48, n_layer=3, n_head=4, **TOKENS),
        "transformer.h.{}.self_attention",
        adds_residual=True,
    ),
    "Falcon (one key head, parallel)": Family(
        lambda: transformers.FalconConfig(
            **PLAIN, hidden_size=48, multi_query=True, parallel_attn=True, new_decoder_architecture=False, bias=False
        ),
        "transformer.h.{}.self_attention",
    ),
    "Falcon (grouped heads, new layout)": Family(
        lambda: transformers.FalconConfig(
            **PLAIN, hidden_size=48, num_kv_heads=2, new_decoder_architecture=True, bias=False
        ),
        "transformer.h.{}.self_attention",
    ),
    "Falcon-RW (ALiBi)": Family(
        lambda: transformers.FalconConfig(
            **PLAIN, hidden_size=48, multi_query=False, alibi=True, parallel_attn=False, new_decoder_architecture=False
        ),
        "transformer.h.{}.self_attention",
    ),
    "MPT": Family(
        lambda: transformers.MptConfig(d_model=48, n_heads=4, n_layers=3, max_seq_len=256, **TOKENS),
        "transformer.blocks.{}.attn",
    ),
    "StableLM": Family(lambda: transformers.StableLmConfig(
            **GQA, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
        )),
    "StarCoder2": Family(lambda: transformers.Starcoder2Config(**GQA)),
    "OLMo": Family(lambda: transformers.OlmoConfig(**GQA)),
    "OLMo 2": Family(lambda: transformers.Olmo2Config(**GQA)),
    "Cohere": Family(lambda: transformers.CohereConfig(**GQA)),
    "Granite": Family(lambda: transformers.GraniteConfig(**GQA)),
    "SmolLM3": Family(lambda: transformers.SmolLM3Config(**GQA)),
    "DeepSeek-V3 (MLA)": Family(
        lambda: transformers.DeepseekV3Config(
            **{**COMMON, "num_key_value_heads": 4}, **EXPERTS, q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=8,
            qk_nope_head_dim=8, v_head_dim=10, n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1,
        ),
        d_head=10,
    ),
    "Llama 4 (text)": Family(
        lambda: transformers.Llama4TextConfig(
            **GQA, head_dim=16, intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=8,
            layer_types=["chunked_attention", "full_attention", "chunked_attention"],
        ),
        d_head=16,
    ),
    "LLaVA (text tower)": Family(_llava, "model.language_model.layers.{}.self_attn"),
    "Qwen2.5-VL (text tower)": Family(_qwen_vl, "model.language_model.layers.{}.self_attn"),
    "Cohere 2": Family(lambda: transformers.Cohere2Config(**GQA)),
    "GLM-4": Family(lambda: transformers.Glm4Config(**GQA, head_dim=12)),
    "GPT-Neo": Family(
        lambda: transformers.GPTNeoConfig(
            hidden_size=48, num_layers=3, num_heads=4, attention_types=[[["global", "local", "global"], 1]],
            window_size=4, **TOKENS,
        ),
        "transformer.h.{}.attn",
    ),
    "GPT-BigCode (StarCoder)": Family(
        lambda: transformers.GPTBigCodeConfig(n_embd=48, n_layer=3, n_head=4, n_positions=256, **TOKENS),
        "transformer.h.{}.attn",
    ),
    "Bamba (hybrid)": Family(
        lambda: transformers.BambaConfig(
            **GQA, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=12, mamba_n_groups=1, mamba_d_state=8,
            mamba_chunk_size=8,
        ),
        layers=(1,),
    ),
    "Qwen3-Next (gated, hybrid)": Family(
        lambda: transformers.Qwen3NextConfig(
            **GQA, **EXPERTS, num_experts=3, shared_expert_intermediate_size=16, head_dim=16,
            linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
        ),
        d_head=16, layers=(1,),
    ),
    "Jamba (hybrid)": Family(
        lambda: transformers.JambaConfig(
            **GQA, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
            num_experts=2, use_mamba_kernels=False, mamba_d_state=4, mamba_d_conv=2, mamba_expand=1,
        ),
        layers=(1,),
    ),
    "Falcon-H1 (attention beside Mamba)": Family(
        lambda: transformers.FalconH1Config(
            **GQA, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8
        ),
    ),
    "LFM2 (convolutions)": Family(
        lambda: transformers.Lfm2Config(**GQA, layer_types=["conv", "full_attention", "conv"]), layers=(1,)
    ),
}  # fmt: skip


def family_model(name: str, *, seed: int = 0, **options: Any) -> Any:
    """Return a family's fresh random model in evaluation mode, in float32."""
    config = FAMILIES[name].config()
    kind = transformers.AutoModelForCausalLM
    if type(config) not in kind._model_mapping:
        kind = transformers.AutoModelForImageTextToText
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return with_random_biases(kind.from_config(config, **options)).eval()
