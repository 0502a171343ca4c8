"""GGUF files of tiny Llamas and Qwen 3s as llama.cpp's converter would write them: what trimtab reads, backwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def written_gguf(
    path: Path, model: Any, tokenizer: Any, *, architecture: str = "llama", tokens: int | None = None
) -> Path:
    """Write a Llama or Qwen 3 as an F32 GGUF file; `tokens`: how many of the tokenizer's to write, none at all if 0."""
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)
    if tokens != 0:
        add_tokenizer(writer, tokenizer, tokens)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    llama = architecture == "llama"
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if llama else {}
    for name, tensor in model.state_dict().items():
        data = tensor.float().numpy()
        own = name.removeprefix("model.")
        if own.startswith("layers."):
            _, layer, rest = own.split(".", 2)
            module, kind = rest.rsplit(".", 1)
            n = heads.get(module.rsplit(".", 1)[-1])
            # in a Llama llama.cpp turns neighbouring pairs, transformers halves
            data = data if n is None else data.reshape(n, 2, -1, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
            target = f"blk.{layer}.{NAMES[module]}.{kind}"
        else:
            places = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
            target = places[own.rsplit(".", 1)[0]] + ".weight"
        writer.add_tensor(target, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, n: int | None) -> None:
    """Write a byte-level BPE tokenizer's tokens, merges and special tokens."""
    held = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])[:n]
    by_id += [(f"<more {i}>", i) for i in range(len(by_id), n or 0)]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in by_id])
    writer.add_token_types([control if token in tokenizer.all_special_tokens else normal for token, _ in by_id])
    writer.add_token_merges([" ".join(pair) for pair in held["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)
