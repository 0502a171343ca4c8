"""Models, tokenizer and questions of the golden record: a frozen copy, apart from those of the tests. Do not change."""

from functools import cache

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

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
    "initializer_range": 0.15,
}
GQA = {**COMMON, "num_key_value_heads": 2}
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GQA),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=48, n_layer=3, n_head=4, n_positions=256, initializer_range=0.15,
        bos_token_id=1, eos_token_id=2,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GQA, head_dim=16, **SLIDING),
    "mixtral": lambda: transformers.MixtralConfig(**GQA, num_local_experts=3, num_experts_per_tok=2),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
        **GQA, moe_intermediate_size=16, num_experts_per_tok=2, num_experts=3, head_dim=16
    ),
}  # fmt: skip


def fresh_model(family, seed=0):
    """Return a random model of a family in evaluation mode, whose generation never ends by itself."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).float().eval()
    model.generation_config.eos_token_id = None
    return model


@cache
def model_of(family):
    """Return one model of a family for all sections, each of which must leave it as it was."""
    return fresh_model(family)


@cache
def tokenizer_of(*, chat=False):
    """Return a byte-level BPE tokenizer of VOCAB tokens that puts `<bos>` first; with `chat` it has a template."""
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
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    if chat:
        made.chat_template = (
            "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}[assistant] {% endif %}"
        )
    return made


def questions_of(n=12):
    """Return n made-up questions with two true and two false answers each."""
    from trimtab.datasets import Question, QuestionSet

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


PAIRS = [
    {"prompt": "The sky today is", "positive": "bright and kind", "negative": "dark and cruel"},
    {"prompt": "My neighbour was", "positive": "kind to me", "negative": "cruel to me"},
    {"prompt": "They spoke", "positive": "softly and with care", "negative": "loudly and in anger"},
    {"prompt": "The letter was", "positive": "warm", "negative": "cold"},
    {"prompt": "She answered", "positive": "with a smile", "negative": "with a frown"},
    {"prompt": "The dog", "positive": "wagged its tail", "negative": "bared its teeth"},
]
TEXTS = tuple(f"The sky was grey and the road was {i} miles long." for i in range(10))


def tokens(batch=2, length=9, seed=7):
    """Return random tokens, batch seq."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, ids=None, **given):
    """Return a model's logits without a cache."""
    return model(input_ids=tokens() if ids is None else ids, use_cache=False, **given).logits
