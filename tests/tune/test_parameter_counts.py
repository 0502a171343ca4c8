"""Parameter counts of the papers, from configs without weights (Hu et al. 2022, table 3, and its arithmetic)."""

from __future__ import annotations

import pytest
from transformers import GPT2Config, LlamaConfig, T5Config

from tests.families import FAMILIES
from trimtab.errors import UnsupportedModel
from trimtab.models.plain import skeleton
from trimtab.peft.methods.base import TuningMethod
from trimtab.peft.methods.bottleneck import Bottleneck
from trimtab.peft.methods.full import FullFineTuning
from trimtab.peft.methods.head_offsets import HeadOffsets, HeadScalings
from trimtab.peft.methods.intrinsic import IntrinsicDimension
from trimtab.peft.methods.prefix_tuning import PrefixTuning
from trimtab.peft.methods.prompt_tuning import PromptTuning

MEDIUM = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
LARGE = GPT2Config(n_embd=1280, n_layer=36, n_head=20)
LLAMA_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8,
)  # fmt: skip

PUBLISHED: list[tuple[str, TuningMethod, GPT2Config | LlamaConfig, int]] = [
    ("Adapter-L 0.37M", Bottleneck("lin", 6), MEDIUM, 368_784),
    ("Adapter-L 11.09M", Bottleneck("lin", 224), MEDIUM, 11_089_152),
    ("Adapter-L 0.88M", Bottleneck("lin", 8), LARGE, 875_808),
    ("Adapter-L 23.00M", Bottleneck("lin", 248), LARGE, 23_002_848),
    ("Adapter-H 11.09M", Bottleneck("houlsby", 112), MEDIUM, 11_064_576),
    ("prefix of 10, medium", PrefixTuning(10), MEDIUM, 491_520),
    ("prefix of 10, large", PrefixTuning(10), LARGE, 921_600),
    ("prompt of 100, medium", PromptTuning(100), MEDIUM, 102_400),
    ("prompt of 100, large", PromptTuning(100), LARGE, 128_000),
    ("FT 354.92M", FullFineTuning(), MEDIUM, 354_823_168),
    ("FT 774.03M", FullFineTuning(), LARGE, 774_030_080),
    ("FT-Top2 25.19M", FullFineTuning(2), MEDIUM, 25_192_448),
    ("SAID's 207 of RoBERTa-large on MRPC", IntrinsicDimension(207, structure_aware=True), MEDIUM, 207),
    ("keys and values of grouped queries", PrefixTuning(10), LLAMA_8B, 10 * 32 * 2 * 8 * 128),
    ("48 heads, as many as ITI shifts", HeadOffsets(48), LLAMA_8B, 48 * 128),
    ("a scaling of every head", HeadScalings(), LLAMA_8B, 32 * 32 * 128),
    ("a pfeiffer adapter", Bottleneck("pfeiffer", 64), LLAMA_8B, 32 * (2 * 4096 * 64 + 64 + 4096)),
    (
        "a prefix through a network",
        PrefixTuning(10, reparameterised=True),
        MEDIUM,
        10 * 1024 + 1024 * 512 + 512 + 512 * 49152 + 49152,
    ),
]


@pytest.mark.parametrize(("method", "config", "expected"), [p[1:] for p in PUBLISHED], ids=[p[0] for p in PUBLISHED])
def test_counts_are_the_papers(method, config, expected):
    assert method.parameter_count(config) == expected


def test_counting_makes_no_weights():
    assert {p.device.type for p in skeleton(MEDIUM).parameters()} == {"meta"}


def test_prompts_of_t5_xxl_have_as_many_parameters_as_their_paper_says():
    # Lester et al. 2021, section 2: 20,480 at length 5; a config alone is enough, whatever the architecture
    assert PromptTuning(5).parameter_count(T5Config(d_model=4096)) == 20_480


def test_a_model_counts_like_its_config():
    assert FullFineTuning().parameter_count(skeleton(MEDIUM)) == 354_823_168


def test_what_counts_on_one_width_of_heads_refuses_layers_that_differ():
    config = FAMILIES["Gemma 4 (text)"].config()
    assert FullFineTuning().parameter_count(config) > 0
    for method in (PrefixTuning(10), HeadOffsets()):
        with pytest.raises(UnsupportedModel, match="the heads of gemma4_text are 16 or 24 wide, by layer"):
            method.parameter_count(config)
