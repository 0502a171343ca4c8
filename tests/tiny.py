"""Tiny random models and a tiny tokenizer, made from configs: no files, no network, no seeds left to chance."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from trimtab.datasets import Question, QuestionSet

VOCAB = 300
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # far larger than usual, so that random weights make every position and head matter
    "initializer_range": 0.15,
}

CONFIGS = {
    "llama": lambda: LlamaConfig(**COMMON),
    "llama-gqa": lambda: LlamaConfig(**COMMON, num_key_value_heads=2),
    "llama-odd-head-dim": lambda: LlamaConfig(**COMMON, num_key_value_heads=2, head_dim=10),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=48, n_layer=3, n_head=4, n_positions=256, initializer_range=0.15,
        bos_token_id=1, eos_token_id=2,
    ),
    "gpt-neox": lambda: GPTNeoXConfig(**COMMON),
    "qwen3": lambda: Qwen3Config(**COMMON, num_key_value_heads=2, head_dim=16),
    "gemma2": lambda: Gemma2Config(**COMMON, num_key_value_heads=2, head_dim=16),
}  # fmt: skip
FAMILIES = tuple(CONFIGS)


def tiny_model(
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    vocab_size: int = VOCAB,
    context: int = 256,
    width: int | None = None,
) -> Any:
    """Return a fresh random model of a family, in evaluation mode.

    A width of 64 makes every row a whole block of 4-bit weights: bitsandbytes misreads others on some CPUs.
    """
    config = CONFIGS[family]()
    if width is not None:
        config.hidden_size = width
        if getattr(config, "head_dim", None):
            config.head_dim = width // config.num_attention_heads
    config.vocab_size, config.max_position_embeddings = vocab_size, context
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return with_random_biases(AutoModelForCausalLM.from_config(config)).to(dtype).eval()


@torch.no_grad()
def with_random_biases(model: Any) -> Any:
    """Move every bias and norm weight of a fresh model, which starts at exactly 0 or 1: no test would see them else."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or parameter.dim() == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tiny_tokenizer(*, pad: bool = True) -> Any:
    """Return a byte-level BPE tokenizer of VOCAB tokens that puts `<bos>` first; one of its own for every caller."""
    return copy.deepcopy(_tiny_tokenizer(pad))


@cache
def _tiny_tokenizer(pad: bool) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Q: What is the colour of the sky?\nA: The sky is blue."] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    special = {"bos_token": "<bos>", "eos_token": "<eos>", **({"pad_token": "<pad>"} if pad else {})}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def tiny_questions(n: int = 12) -> QuestionSet:
    """Return n made-up questions with two true and two false answers each."""
    things = ("sky", "sea", "grass", "snow", "coal", "sun", "rose", "leaf", "sand", "milk", "plum", "rust")
    return QuestionSet(
        tuple(
            Question(
                f"What is the colour of {things[i % 12]} number {i}?",
                (f"The colour is number {i}.", f"Its colour is {i}."),
                (f"The colour is number {i + 1}.", f"Its colour is {i + 1}."),
            )
            for i in range(n)
        ),
        name="tiny",
    )
