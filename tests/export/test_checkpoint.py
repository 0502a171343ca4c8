"""Shifts as biases in a stock checkpoint that does what they do live, or a refusal, with what hangs on a model."""

from __future__ import annotations

import copy
import functools
import json
import re
import resource
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPTJConfig,
    LlamaForCausalLM,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
)

from tests.measuring import random_shift
from tests.tiny import COMMON, FAMILIES, VOCAB, tiny_model, tiny_tokenizer
from trimtab import progress
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.prompts import Prompted
from trimtab.edits.vectors import HeadShift, ResidualShift
from trimtab.errors import BadValue, Incompatible, UnsupportedModel
from trimtab.export.checkpoint import checkpoint

export = sys.modules["trimtab.export.checkpoint"]  # the package exports a function of the same name
PROMPTS = ["Q: What is the colour of the sky?\nA:", "Q: Why?\nA:"]
GQA = {**COMMON, "num_key_value_heads": 2}
OTHERS = {
    "mistral": lambda: MistralConfig(**GQA, sliding_window=None),
    "mistral (sliding window)": lambda: MistralConfig(**GQA, sliding_window=64),
    "qwen2": lambda: Qwen2Config(**GQA),
    "phi3": lambda: Phi3Config(**GQA),
    "gptj": lambda: GPTJConfig(
        vocab_size=VOCAB, n_embd=48, n_layer=3, n_head=4, n_positions=256, rotary_dim=8, bos_token_id=1, eos_token_id=2
    ),
    "mixtral": lambda: MixtralConfig(**GQA, num_local_experts=2),
}
TABLE = Path(__file__).parents[2] / "docs" / "baking.md"


def model_of(family: str):
    if family in FAMILIES:
        return tiny_model(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(OTHERS[family]()).eval()


def residual(model, strength: float = 1.0) -> ResidualShift:
    generator = torch.Generator().manual_seed(0)
    return ResidualShift((1,), 0.3 * torch.randn(1, model.config.hidden_size, generator=generator), strength)


def outcome(model, shift, out) -> str:
    try:
        with patch.object(export, "CONTINUED", 1):  # more is continued below
            return checkpoint(model, tiny_tokenizer(), shift, out, prompts=PROMPTS).architecture
    except UnsupportedModel as refusal:
        return f"refused: {str(refusal).split(': ')[-1].split(';')[0]}"


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_the_documented_table_is_what_happens(family, tmp_path):
    model = model_of(family)
    given = (
        outcome(model, random_shift(model, strength=0.7), tmp_path / "h"),
        outcome(model, residual(model), tmp_path / "r"),
    )
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", TABLE.read_text(encoding="utf-8"), re.M)
    table = {row[0].strip(): (row[1].strip(), row[2].strip()) for row in rows}
    assert table[family] == given
    # a Gemma's copy says under what terms it stands
    assert (tmp_path / "h" / "NOTICE").exists() == (family == "gemma2")


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "qwen2"])
def test_plain_transformers_gives_the_live_logits_at_all_positions(family, tmp_path):
    model, ids = model_of(family), torch.randint(3, VOCAB, (2, 11), generator=torch.Generator().manual_seed(1))
    shift = random_shift(model, strength=0.7)
    baked = checkpoint(model, tiny_tokenizer(), shift, tmp_path / "baked", prompts=PROMPTS)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
    with torch.no_grad():
        plain = model(ids).logits
        with shift.applied(model, "all"):
            live = model(ids).logits
        assert torch.allclose(loaded(ids).logits, live, atol=1e-4)
        assert not torch.allclose(plain, live, atol=1e-2)  # the control: there was something to bake
    assert baked.relative < 1e-4
    assert baked.kl_all > 0 < baked.kl_generated
    record = json.loads((tmp_path / "baked" / "record.json").read_text())
    assert record["kind"] == "merged model"
    assert record["relative"] == baked.relative


def test_a_pipe_is_told_how_far_reading_and_comparing_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    model = tiny_model("llama-gqa")
    checkpoint(model, tiny_tokenizer(), random_shift(model, strength=0.7), tmp_path / "baked", prompts=PROMPTS)
    err, n = capsys.readouterr().err, len(PROMPTS) + 8
    for what in ("reading the live edit", "comparing what was written"):
        assert f"trimtab: {what}: 1 of {n}, about " in err


def test_the_bias_is_w_o_times_the_shift_and_the_others_are_zero(tmp_path):
    model = tiny_model("llama-gqa")
    shift = random_shift(model, strength=0.7)
    checkpoint(model, tiny_tokenizer(), shift, tmp_path / "baked", prompts=PROMPTS)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "baked")
    for index, layer in enumerate(loaded.model.layers):
        whole = torch.zeros(4, 12)
        for head, delta in shift.deltas.items():
            if head.layer == index:
                whole[head.head] = delta
        expected = model.model.layers[index].self_attn.o_proj.weight @ whole.flatten()
        assert torch.allclose(layer.self_attn.o_proj.bias, expected, atol=1e-6)
        assert not any(getattr(layer.self_attn, f"{p}_proj").bias.any() for p in "qkv")
    assert not hasattr(model.config, "attention_bias") or not model.config.attention_bias  # the caller's is untouched


class Wrong(HeadShift):
    """A shift whose constants are not what it adds."""

    def constants(self, model):
        return {name: 1.05 * vector for name, vector in super().constants(model).items()}


def test_a_bake_that_does_not_do_what_the_shift_does_is_refused_and_leaves_nothing(tmp_path):
    model = tiny_model()
    right = random_shift(model, strength=0.7)
    shift = Wrong(right.heads, right.directions, right.sigma, right.strength)
    with pytest.raises(Incompatible, match="does not do what the edit does live"):
        checkpoint(model, tiny_tokenizer(), shift, tmp_path / "baked", prompts=PROMPTS)
    assert list(tmp_path.iterdir()) == []


def test_half_precision_is_baked_within_its_own_rounding(tmp_path):
    model = tiny_model(dtype=torch.bfloat16)
    baked = checkpoint(model, tiny_tokenizer(), random_shift(model), tmp_path / "baked", prompts=PROMPTS)
    assert baked.relative < 0.1 and baked.dtype == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "baked").dtype == torch.bfloat16


def test_four_bit_weights_are_dequantised(tmp_path):
    pytest.importorskip("bitsandbytes")
    from trimtab.models import load_model

    tiny_model(width=64).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    model, tokenizer = load_model(tmp_path / "m", quantization="nf4", dtype="float32", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint(model, tokenizer, random_shift(model, strength=0.7), tmp_path / "baked", prompts=PROMPTS)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
    assert loaded.model.layers[0].self_attn.o_proj.weight.shape == (64, 64)
    assert model.is_quantized  # the caller's model stays as it was


def test_nothing_to_bake_adapters_and_other_folders_are_refused(tmp_path):
    model = tiny_model()
    shift = random_shift(model)
    with pytest.raises(BadValue, match="nothing to merge"):
        checkpoint(model, tiny_tokenizer(), shift.scaled(0), tmp_path / "baked", prompts=PROMPTS)
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(Incompatible, match="something else"):
        checkpoint(model, tiny_tokenizer(), shift, tmp_path, prompts=PROMPTS)
    model.peft_config = {"default": None}
    with pytest.raises(UnsupportedModel, match="carries adapters"):
        checkpoint(model, tiny_tokenizer(), shift, tmp_path / "baked", prompts=PROMPTS)


@pytest.mark.parametrize("family", ["llama-gqa", "mistral"])
def test_a_checkpoint_keeps_what_hangs_on_model_and_tokenizer(family, tmp_path):
    model, tokenizer = model_of(family), tiny_tokenizer()
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 7], pad_token_id=0, do_sample=True, top_k=20
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    found = checkpoint(model, tokenizer, random_shift(model, strength=0.7), tmp_path / "c", prompts=PROMPTS)
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "c").generation_config
    assert (kept.eos_token_id, kept.do_sample, kept.top_k) == ([2, 7], True, 20)
    assert AutoTokenizer.from_pretrained(tmp_path / "c").chat_template == tokenizer.chat_template
    assert found.same_continuation == 1


def without_opening(folder: Path) -> None:
    said = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**said, "post_processor": None}), encoding="utf-8")


def with_other(file: str, **entries: object):
    def tamper(folder: Path) -> None:
        said = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps({**said, **entries}), encoding="utf-8")

    return tamper


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (with_other("generation_config.json", eos_token_id=2), "other generation defaults"),
        (with_other("generation_config.json", suppress_tokens=[3]), "other generation defaults"),
        (with_other("config.json", dtype="float16"), "other dtype in its config: torch.float32 became torch.float16"),
        (with_other("tokenizer_config.json", pad_token="<eos>"), "other special tokens"),
        (without_opening, "other tokens of a text"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "other chat template"),
    ],
)  # fmt: skip
def test_what_is_lost_on_the_way_to_a_checkpoint_is_noticed(tamper, words, tmp_path, monkeypatch):
    model, tokenizer = tiny_model(), copy.deepcopy(tiny_tokenizer())
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 9], pad_token_id=0)
    tokenizer.chat_template = "{{ messages[0].content }}"
    save = export.save_model
    monkeypatch.setattr(
        export, "save_model", lambda merged, tokenizer, folder: (save(merged, tokenizer, folder), tamper(folder))
    )
    with pytest.raises(Incompatible, match=words):
        checkpoint(model, tokenizer, random_shift(model), tmp_path / "c", prompts=PROMPTS)
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_that_goes_on_otherwise_is_refused(tmp_path, monkeypatch):
    model, load = tiny_model(), export._loaded

    def forgetful(*given):
        loaded = load(*given)
        forward = loaded.forward

        @functools.wraps(forward)
        def stepped(*args, **options):  # wrong where a cache is gone on from, which no single forward shows
            out = forward(*args, **options)
            out.logits = out.logits.roll(1, -1) if out.logits.shape[1] == 1 else out.logits
            return out

        loaded.forward = stepped
        return loaded

    monkeypatch.setattr(export, "_loaded", forgetful)
    with pytest.raises(Incompatible, match="continues a prompt otherwise; nothing was written"):
        checkpoint(model, tiny_tokenizer(), random_shift(model), tmp_path / "c", prompts=PROMPTS)


def test_a_stack_is_one_checkpoint_and_edits_that_are_none_are_refused(tmp_path):
    model, ids = model_of("llama-gqa"), torch.randint(3, VOCAB, (2, 11), generator=torch.Generator().manual_seed(1))
    stack = Stacked((random_shift(model, strength=0.7), residual(model, 0.5)))
    checkpoint(model, tiny_tokenizer(), stack, tmp_path / "c", prompts=PROMPTS)
    with torch.no_grad(), stack.applied(model, "all") as both:
        assert torch.allclose(
            AutoModelForCausalLM.from_pretrained(tmp_path / "c")(ids).logits, both(ids).logits, atol=1e-4
        )
    for edit, words in ((NoEdit(), "changes nothing"), (Prompted((), "Be brief."), "cannot be worked into weights")):
        with pytest.raises(BadValue, match=words):
            checkpoint(model, tiny_tokenizer(), edit, tmp_path / "d", prompts=PROMPTS)


def test_what_an_edit_adds_is_declared_by_the_edit():
    with pytest.raises(BadValue, match="adds no constant to what modules"):
        NoEdit().constants(tiny_model())
    assert list(residual(tiny_model()).constants(tiny_model())) == ["model.layers.1"]


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="limits the size of files as POSIX does")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    model, limits = tiny_model(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(Incompatible, match=r"cannot write a merged model to.*make room or name another disk"):
            checkpoint(model, tiny_tokenizer(), random_shift(model), tmp_path / "baked", prompts=["Q: Why?"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
