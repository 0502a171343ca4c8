"""TunedEdit: applied, scaled, saved, loaded, exchanged with Hugging Face PEFT, and merged."""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import nullcontext
from itertools import product
from unittest.mock import patch

import peft as hf_peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, LlamaConfig

from tests.observing import generated, state_of
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from tests.tuning import MERGEABLE, METHODS, QUICK, default_of, fitted, logits, quantised, some, some_tokens
from trimtab import peft
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.prompts import Prompted
from trimtab.errors import BadValue, Incompatible
from trimtab.evaluate import multiple_choice
from trimtab.export import checkpoint
from trimtab.models import load_model
from trimtab.models.plain import dequantized
from trimtab.peft.parts.fused import fused_rows

EXACT_AT_ZERO = [name for name, method in METHODS.items() if method.capabilities.scaling]
PROMPTS = ["Q: What is the colour of the sky?\nA:", "Q: Why?\nA:"]
IN_PEFT = ["lora", "lora qv", "rslora", "dora", "ia3", "peft vera", "prompt", "prefix", "prefix mlp"]


def relative_difference(a, b) -> float:
    return float((a - b).norm() / b.norm())


def written(model, edit, out, **given):
    """Return the checkpoint's figures and the model that plain loading gives."""
    # tests/export/ has more continued
    with patch.object(sys.modules[checkpoint.__module__], "CONTINUED", 1):
        found = checkpoint(model, tiny_tokenizer(), edit, out, prompts=PROMPTS, **given)
    return found, load_model(out).model


@pytest.fixture(scope="module")
def tuned():
    """Each method's edit of the same tiny model."""
    edits = {}

    def get(name, family="llama-gqa"):
        if (name, family) not in edits:
            edits[name, family] = fitted(name, tiny_model(family))
        return edits[name, family]

    return get


# --- applying ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", default_of("lora", "ia3", "houlsby", "heads", "prefix", "full", "peft vera"))
def test_an_edit_acts_while_it_is_applied_and_leaves_no_trace(name, tuned):
    model, edit = tiny_model("llama-gqa"), tuned(name)
    before, plain = state_of(model), logits(model)
    with edit.applied(model) as edited:
        assert float((logits(edited) - plain).abs().max()) > 1e-3
    assert state_of(model) == before
    with pytest.raises(ZeroDivisionError), edit.applied(model):
        1 / 0  # noqa: B018
    assert state_of(model) == before
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("name", some(EXACT_AT_ZERO, "lora", "pfeiffer", "intrinsic", "full"))
def test_scaled_by_zero_is_the_base_to_the_bit_and_by_two_goes_further(name, tuned):
    model, edit = tiny_model("llama-gqa"), tuned(name)
    plain = logits(model)
    moved = {}
    for factor in (0, 0.5, 1, 2):
        with edit.scaled(factor).applied(model) as edited:
            moved[factor] = float((logits(edited) - plain).norm())
    assert moved[0] == 0
    assert 0 < moved[0.5] < moved[1] < moved[2]


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(EXACT_AT_ZERO)))
def test_methods_whose_effect_has_no_strength_refuse_to_be_scaled(name, tuned):
    with pytest.raises(BadValue, match="cannot be scaled"):
        tuned(name).scaled(2)


def test_scaled_takes_finite_numbers_and_is_described(tuned):
    with pytest.raises(BadValue, match="finite"):
        tuned("lora").scaled(float("nan"))
    assert tuned("lora").scaled(2).scaled(3).describe()["strength"] == 6


@pytest.mark.parametrize("name", default_of("lora", "ia3", "houlsby", "prompt", "prefix"))
def test_a_left_padded_batch_generates_as_one_by_one(name, tuned):
    model, edit = tiny_model("llama-gqa"), tuned(name)
    model.generation_config.eos_token_id = None
    lengths = (4, 9, 6)
    ids, padding = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, 9 - length :], padding[row, 9 - length :] = some_tokens(3)[row, :length], 1
    with edit.applied(model) as edited:
        together, scores = generated(edited, ids, padding)
        for row, length in enumerate(lengths):
            alone, alone_scores = generated(edited, ids[row : row + 1, 9 - length :])
            assert torch.equal(together[row, 9:], alone[0, length:])
            assert torch.allclose(scores[row], alone_scores[0], atol=1e-4)


def test_a_tuned_model_stacks_with_few_shot_prompts_and_is_refused_a_second_adapter(tuned):
    model, questions = tiny_model("llama-gqa"), tiny_questions(3)
    few_shot = Prompted((("What is snow?", "White."),))
    both = Stacked((few_shot, tuned("lora")))
    scores = [
        [a.logprob for row in multiple_choice(model, tiny_tokenizer(), questions, e).rows for a in row.answers]
        for e in (NoEdit(), few_shot, tuned("lora"), both)
    ]
    assert all(scores[i] != scores[j] for i in range(4) for j in range(i))
    with pytest.raises(Incompatible, match="carries an adapter already"):
        Stacked((tuned("lora"), tuned("ia3"))).applied(model).__enter__()


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    default_of("lora", "lora qv", "dora", "ia3", "peft vera", "houlsby", "heads", "prompt", "prefix mlp", "full"),
)
def test_a_saved_and_loaded_edit_is_the_same_to_the_bit(name, tuned, tmp_path):
    model, edit = tiny_model("llama-gqa"), tuned(name)
    edit.save(tmp_path / "edit")
    loaded = peft.TunedEdit.load(tmp_path / "edit")
    with edit.applied(model) as edited:
        expected = logits(edited)
    with loaded.applied(model) as edited:
        assert torch.equal(logits(edited), expected)
    assert loaded.describe() == json.loads(json.dumps(edit.describe()))
    assert loaded.method == edit.method or name == "peft vera"
    assert loaded.cost.bytes_on_disk == sum(f.stat().st_size for f in (tmp_path / "edit").iterdir())
    assert (tmp_path / "edit/adapter_config.json").is_file() == (name in IN_PEFT)


@pytest.mark.parametrize("name", ["lora", "heads"])  # a PEFT folder, and one of trimtab's own
@pytest.mark.parametrize(
    ("change", "telling"),
    [
        ({"seconds": None}, "field 'seconds' is missing"),
        ({"trainable_parameters": "many"}, "field 'trainable_parameters' is 'many', expected a valid integer"),
        ({"method": {"rank": 8}}, "field 'method.method' is missing"),
        ({"recipe": {"learning_pace": 1}}, "describes no method: .*learning_pace"),
    ],
)
def test_a_damaged_record_is_refused_by_its_field(name, change, telling, tuned, tmp_path):
    tuned(name).save(tmp_path / "edit")
    file = tmp_path / "edit/record.json"
    record = json.loads(file.read_text()) | change
    file.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    with pytest.raises(Incompatible, match=telling):
        peft.TunedEdit.load(tmp_path / "edit")


@pytest.mark.parametrize(
    ("family", "name"),
    some(
        list(product(["llama-gqa", "gpt2"], ["lora", "lora qv", "rslora", "dora", "ia3", "prompt", "prefix"])),
        ("llama-gqa", "lora"), ("llama-gqa", "dora"), ("llama-gqa", "prompt"), ("llama-gqa", "prefix"),
        ("gpt2", "lora qv"), ("gpt2", "rslora"), ("gpt2", "ia3"),
    ),
)  # fmt: skip
def test_peft_loads_what_was_saved_and_gives_the_same_logits(family, name, tuned, tmp_path):
    edit = tuned(name, family)
    edit.save(tmp_path / "edit")
    with edit.applied(tiny_model(family)) as edited:
        expected = logits(edited)
    theirs = hf_peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / "edit").eval()
    # PEFT puts virtual tokens into the sequence: its logits stand for them too, and are right without padding
    got = logits(theirs)[:, -expected.shape[1] :]
    assert torch.allclose(got, expected, atol=2e-4)


@pytest.mark.parametrize(
    "config",
    [
        hf_peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", init_lora_weights=False),
        hf_peft.LoraConfig(
            r=4, target_modules=["v_proj", "embed_tokens"], task_type="CAUSAL_LM", init_lora_weights=False
        ),
        hf_peft.IA3Config(
            target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM", init_ia3_weights=False
        ),
        hf_peft.VeraConfig(r=4, target_modules=["o_proj"], task_type="CAUSAL_LM"),
        hf_peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        hf_peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    ],
    ids=lambda c: f"{c.peft_type.value}-{'-'.join(sorted(getattr(c, 'target_modules', ())))}",
)
def test_adapters_made_elsewhere_load_here(config, tmp_path):
    torch.manual_seed(0)
    theirs = hf_peft.get_peft_model(tiny_model("llama-gqa"), config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path / "theirs")
    edit = peft.TunedEdit.load(tmp_path / "theirs")
    with edit.applied(tiny_model("llama-gqa")) as edited:
        got = logits(edited)
    assert torch.allclose(got, logits(theirs)[:, -got.shape[1] :], atol=1e-4)


def test_an_adapter_with_other_embeddings_is_refused(tmp_path):
    """PEFT stores the base's embeddings beside an adapter on them, which may have been changed there."""
    theirs = hf_peft.get_peft_model(tiny_model(), hf_peft.LoraConfig(r=4, target_modules=["embed_tokens"]))
    with torch.no_grad():
        theirs.get_base_model().model.embed_tokens.base_layer.weight.add_(1)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(Incompatible, match=r"embed_tokens.base_layer.weight' of its own, which is not this model's"):
        peft.TunedEdit.load(tmp_path / "theirs").applied(tiny_model()).__enter__()


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{oops", "cannot be read"),
        ('{"r": 1, "r": 2}', r"cannot be read \(the key 'r' stands twice"),
        ("[1]", "holds no settings of an adapter"),
    ],
)
def test_a_damaged_adapter_config_is_refused(text, words, recorded, tuned, tmp_path):
    tuned("lora").save(tmp_path / "edit")
    (tmp_path / "edit/adapter_config.json").write_text(text)
    if not recorded:
        (tmp_path / "edit/record.json").unlink()
    with pytest.raises(Incompatible, match=f"adapter_config.json at .* {words}"):
        peft.TunedEdit.load(tmp_path / "edit")


def test_values_of_another_kind_in_an_adapter_config_are_refused(tuned, tmp_path):
    tuned("lora").save(tmp_path / "edit")
    (tmp_path / "edit/record.json").unlink()
    file = tmp_path / "edit/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "r": "four"}))
    with pytest.raises(BadValue, match="PEFT LORA does not fit the model"):
        peft.TunedEdit.load(tmp_path / "edit").applied(tiny_model("llama-gqa")).__enter__()


def _altered(folder, change):
    file = folder / (
        "adapter_model.safetensors" if (folder / "adapter_config.json").is_file() else "tensors.safetensors"
    )
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize("name", ["lora", "houlsby"])
def test_a_file_with_a_missing_or_unexpected_tensor_is_refused(name, tuned, tmp_path):
    tuned(name).save(tmp_path / "edit")
    _altered(tmp_path / "edit", lambda t: t.pop(next(iter(t))))
    with pytest.raises(Incompatible, match=r"not the one that|are not those that"):
        peft.TunedEdit.load(tmp_path / "edit")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(next(iter(t))), "lacks 'base_model"),
        (lambda t: t.update(stray=torch.zeros(1)), "has the unexpected 'stray'"),
        (lambda t: t.update({k: v[:1].clone() for k, v in t.items()}), "this model needs"),
    ],
)
def test_a_foreign_adapter_with_other_tensors_is_an_error_not_the_base_model(change, words, tuned, tmp_path):
    tuned("lora").save(tmp_path / "edit")
    (tmp_path / "edit/record.json").unlink()  # as another tool would have left it
    _altered(tmp_path / "edit", change)
    model = tiny_model("llama-gqa")
    before = state_of(model)
    with pytest.raises(Incompatible, match=words):
        peft.TunedEdit.load(tmp_path / "edit").applied(model).__enter__()
    assert state_of(model) == before


def test_an_edit_for_another_model_is_refused(tuned):
    with pytest.raises(Incompatible, match="made for another"):
        tuned("lora").applied(tiny_model("llama-gqa", seed=1)).__enter__()
    with pytest.raises(Incompatible, match="made for another model"):
        tuned("lora").applied(tiny_model("gpt2")).__enter__()


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(Incompatible, match="no tuned edit at"):
        peft.TunedEdit.load(tmp_path / "nothing")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/adapter_config.json").write_text(json.dumps({"peft_type": "NEVER_HEARD", "r": 1}))
    save_file({"a": torch.zeros(1)}, tmp_path / "odd/adapter_model.safetensors")
    with pytest.raises(Incompatible, match="cannot use the adapter"):
        peft.TunedEdit.load(tmp_path / "odd")


# --- LoRA and IA3 on fused projections; bad values --------------------------------------------------------------------


def test_parameter_counts_are_the_papers_arithmetic_from_configs_alone():
    medium, large = GPT2Config(n_embd=1024, n_layer=24, n_head=16), GPT2Config(n_embd=1280, n_layer=36, n_head=20)
    for config, counts in (
        (medium, (393_216, 147_456, 491_520, 102_400)),
        (large, (737_280, 276_480, 921_600, 128_000)),
    ):
        methods = (peft.LoRA(r=4, targets="qv"), peft.IA3(), peft.PrefixTuning(10), peft.PromptTuning(100))
        assert tuple(m.parameter_count(config) for m in methods) == counts
    assert peft.Bottleneck("lin", 6).parameter_count(medium) == 368_784
    assert peft.Bottleneck("lin", 224).parameter_count(medium) == 11_089_152
    assert peft.Bottleneck("houlsby", 112).parameter_count(medium) == 11_064_576
    assert peft.FullFineTuning().parameter_count(medium) == 354_823_168


@pytest.mark.parametrize(("family", "interleaved"), [("gpt2", False), ("gpt-neox", True)])
def test_queries_keys_and_values_of_a_fused_projection_are_found(family, interleaved):
    model = tiny_model(family)
    module = (
        model.transformer.h[0].attn.c_attn if family == "gpt2" else model.gpt_neox.layers[0].attention.query_key_value
    )
    rows = fused_rows(model, module)
    blocks = torch.arange(144) // 12
    for n, kind in enumerate("qkv"):
        expected = blocks % 3 == n if interleaved else blocks // 4 == n
        assert torch.equal(rows[kind], expected)


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox"])
@pytest.mark.parametrize(("name", "left_alone"), [("lora qv", "k"), ("ia3", "q")])
def test_the_part_of_a_fused_projection_that_is_not_a_target_is_unchanged_by_training(family, name, left_alone):
    model = tiny_model(family)
    edit = fitted(name, model, weight_decay=0.1)
    module = (
        model.transformer.h[0].attn.c_attn if family == "gpt2" else model.gpt_neox.layers[0].attention.query_key_value
    )
    rows = fused_rows(model, module)
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))
    before = module(x)
    with edit.applied(model) as edited:
        inner = edited.get_base_model()
        wrapped = (
            inner.transformer.h[0].attn.c_attn
            if family == "gpt2"
            else inner.gpt_neox.layers[0].attention.query_key_value
        )
        after = wrapped(x)
    for kind in "qkv":
        same = torch.equal(after[..., rows[kind]], before[..., rows[kind]])
        assert same == (kind == left_alone)


def test_lora_on_q_and_v_of_a_fused_projection_equals_two_separate_updates():
    model, method = tiny_model("gpt2"), METHODS["lora qv"]
    edit = fitted("lora qv", model)
    key = "base_model.model.transformer.h.0.attn.c_attn.lora_"
    a, b = edit.tensors[f"{key}A.weight"], edit.tensors[f"{key}B.weight"]
    scale = 2.0  # alpha / r of each update
    expected = torch.zeros(144, 48)
    expected[:48] = scale * b[:48, :4] @ a[:4]
    expected[96:] = scale * b[96:, 4:] @ a[4:]
    with edit.applied(model) as edited:
        delta = edited.get_base_model().transformer.h[0].attn.c_attn.get_delta_weight("default")
    assert torch.allclose(delta.T, expected, atol=1e-6)
    assert method.parameter_count(model) == edit.cost.trainable_parameters == 3 * 2 * 4 * (48 + 48)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: peft.LoRA(r=0), "at least 1"),
        (lambda: peft.LoRA(targets="everything"), "unknown targets"),
        (lambda: peft.LoRA(dropout=1.0), "dropout"),
        (
            lambda: peft.LoRA(r=49).attach(tiny_model(), seed=0),
            r"rank 49 is larger than the layer .*q_proj \(48 x 48\)",
        ),
        (
            lambda: peft.LoRA(targets=("q_porj",)).attach(tiny_model(), seed=0),
            "no module 'q_porj'; the nearest are q_proj",
        ),
        (lambda: peft.IA3(targets=("k_prj",)).attach(tiny_model(), seed=0), "nearest are k_proj"),
        (lambda: peft.IA3(targets=("k_proj",), feedforward=("up",)), "not among targets"),
        (lambda: peft.Adapter(3), "takes a configuration"),
        (lambda: peft.Adapter(hf_peft.PromptTuningConfig(num_virtual_tokens=3)), "PromptTuning or PrefixTuning"),
        (
            lambda: peft.Adapter(hf_peft.LoraConfig(target_modules=["nope"])).attach(tiny_model(), seed=0),
            "does not fit the model",
        ),
    ],
)
def test_bad_values_are_refused_in_one_sentence(make, words):
    with pytest.raises(BadValue, match=words):
        make()


def test_a_refused_attachment_leaves_the_model_as_it_was():
    model = tiny_model()
    before = state_of(model)
    for method in (peft.LoRA(r=49), peft.Adapter(hf_peft.LoraConfig(target_modules=["nope"]))):
        with pytest.raises(BadValue):
            method.attach(model, seed=0)
        assert state_of(model) == before


def test_the_configuration_a_user_gives_is_not_written_into():
    config = hf_peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    before = config.to_dict()
    peft.Adapter(config).attach(tiny_model(), seed=0).detach()
    assert config.to_dict() == before


def configured(kind=hf_peft.LoraConfig, targets=("c_attn",), **options):
    return peft.Adapter(kind(task_type="CAUSAL_LM", target_modules=list(targets), **options), recipe=QUICK)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_peft_trains_in_place_are_put_back_and_have_no_strength(bias):
    """Adapters on GPT-2 with `bias=` train the model's own biases."""
    model = tiny_model("gpt2")
    before = state_of(model)
    edit = configured(bias=bias).fit(model, tiny_tokenizer(), tiny_questions(6))
    assert state_of(model) == before
    with edit.applied(model) as edited:
        tuned = logits(edited)
    assert state_of(model) == before
    with pytest.raises(BadValue, match="cannot be scaled"):
        edit.scaled(0)
    assert relative_difference(logits(edit.merged(model)), tuned) < 1e-5


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora", "eva"])
def test_starts_that_overwrite_the_model_or_read_data_are_refused(start):
    with pytest.raises(BadValue, match=f"LoRA's start '{start}' .*choose init_lora_weights=True, 'gaussian'"):
        configured(init_lora_weights=start)


def test_a_finished_adapter_needs_no_start_from_data(tmp_path):
    config = hf_peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    hf_peft.get_peft_model(tiny_model(), config).save_pretrained(tmp_path)
    for start, refused in (("eva", False), ("pissa", True)):
        file = tmp_path / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "init_lora_weights": start}))
        with pytest.raises(Incompatible, match="start 'pissa'") if refused else nullcontext():
            peft.TunedEdit.load(tmp_path).applied(tiny_model()).__enter__()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: configured(hf_peft.AdaLoraConfig, total_step=9), "ADALORA prunes its ranks in a training loop"),
        (lambda: configured(hf_peft.LilyConfig), "LILY averages over all tokens"),
        (
            lambda: configured(hf_peft.PolyConfig, ["q_proj"]).attach(tiny_model(), seed=0),
            "POLY does not run on the model: PEFT says 'task_ids should not be None.'",
        ),
        (
            lambda: configured(hf_peft.ShadowConfig, ["q_proj"]).attach(tiny_model(), seed=0),
            "SHADOW does not run on the model",
        ),
    ],
)
def test_peft_methods_that_would_not_be_themselves_here_are_refused(make, words):
    with pytest.raises(BadValue, match=words):
        make()


def test_hooks_that_peft_leaves_behind_are_taken_off():
    model = tiny_model()
    kept = model.register_forward_hook(lambda *_: None)
    before = state_of(model)
    with pytest.raises(BadValue):  # Shadow hooks the model itself
        configured(hf_peft.ShadowConfig, ["q_proj"]).attach(model, seed=0)
    assert state_of(model) == before
    kept.remove()


def test_a_peft_method_without_a_merge_of_its_own_says_so():
    edit = configured(hf_peft.BeftConfig, ["v_proj"]).fit(tiny_model(), tiny_tokenizer(), tiny_questions(6))
    with pytest.raises(BadValue, match=r"PEFT BEFT cannot be merged: PEFT says .*use it as it is"):
        edit.merged(tiny_model())


def test_lora_that_a_token_switches_on_is_not_packed():
    assert configured().capabilities.packing
    assert not configured(alora_invocation_tokens=[5]).capabilities.packing


def test_dropout_is_live_only_in_training_mode():
    model = tiny_model()
    attached = peft.LoRA(r=4, dropout=0.5).attach(model, seed=0)
    assert not any(m.training for m in attached.model.modules())
    attached.detach()
    model.train()
    model.model.layers[1].eval()  # a model may be in both modes: what is attached follows it, its own modules stay
    before = {name: m.training for name, m in model.named_modules()}
    random = torch.random.get_rng_state()
    attached = peft.LoRA(r=4, dropout=0.5).attach(model, seed=0)
    modes = {name.replace(".base_layer", ""): m.training for name, m in model.named_modules() if ".lora_" not in name}
    assert {name: modes[name] for name in before} == before
    assert torch.equal(torch.random.get_rng_state(), random)
    attached.detach()


# --- merging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name"),
    some(
        list(product(["llama-gqa", "gpt2"], [n for n in MERGEABLE if n not in ("peft vera", "rslora", "said")])),
        ("llama-gqa", "dora"), ("llama-gqa", "ia3"), ("llama-gqa", "full"), ("gpt2", "lora"),
    ),
)  # fmt: skip
def test_a_merged_model_is_plain_and_gives_the_tuned_models_logits_when_reloaded(family, name, tuned, tmp_path):
    model, edit = tiny_model(family), tuned(name, family)
    before = state_of(model)
    found, again = written(model, edit, tmp_path / "merged")
    assert state_of(model) == before
    assert [n for n, _ in edit.merged(model).named_parameters()] == [n for n, _ in model.named_parameters()]
    assert state_of(model) == before
    with edit.applied(model) as edited:
        expected = logits(edited)
    assert torch.allclose(logits(again), expected, atol=1e-4)
    assert found.relative < 1e-3 and found.same_continuation == 1 and found.kl_between == 0
    assert float((logits(again) - logits(model)).abs().max()) > 1e-3  # the control


def test_a_scaled_edit_is_merged_at_its_strength(tuned):
    model, edit = tiny_model("llama-gqa"), tuned("lora").scaled(0.5)
    with edit.applied(model) as edited:
        expected = logits(edited)
    assert torch.allclose(logits(edit.merged(model)), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "family"),
    some(list(product(["nf4-dq", "fp4", "int8"], ["llama-gqa", "gpt2"])), ("nf4-dq", "llama-gqa"), ("int8", "gpt2")),
)
def test_merging_into_quantised_weights_dequantises_first(family, kind, tmp_path):
    model = quantised(tmp_path / "m", family, kind)
    edit = fitted("lora", model)
    with edit.applied(model) as edited:
        expected = logits(edited)
    _, merged = written(model, edit, tmp_path / "merged")
    error = relative_difference(logits(merged), expected)
    assert error < (0.1 if kind == "int8" else 1e-5)
    assert getattr(merged.config, "quantization_config", None) is None
    # the control: PEFT's own merge rounds the sum to 4 bits again
    if kind == "nf4-dq" and family == "llama-gqa":
        attached = edit.method.attach(model, seed=0)
        attached.load(edit.tensors)
        rounded = attached.model.merge_and_unload()
        assert relative_difference(logits(rounded), expected) > 100 * error


def test_a_merge_that_forgets_the_update_is_refused(tuned, tmp_path, monkeypatch):
    from trimtab.peft.methods.adapters import AttachedAdapter

    monkeypatch.setattr(AttachedAdapter, "merged", lambda self: self.model.unload())  # forgets the update
    with pytest.raises(Incompatible, match="does not do what the edit does live: its logits differ by 1 of the edit"):
        written(tiny_model("llama-gqa"), tuned("lora"), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tolerance": -1.0}, "tolerance is a share of the edit's effect, a number of 0 or more; got -1"),
        ({"tolerance": float("nan")}, "got nan"),
        ({"tolerance": 0.0}, "does not do what the edit does live"),  # and not the usual one
        ({"dtype": torch.int8}, "cannot merge into torch.int8; choose torch.float64"),
    ],
)
def test_tolerances_and_dtypes_that_cannot_be_are_refused(given, words, tuned, tmp_path):
    with pytest.raises((BadValue, Incompatible), match=words):
        written(tiny_model("llama-gqa"), tuned("lora"), tmp_path / "merged", **given)


def test_what_was_written_is_loaded_again_and_compared(tuned, tmp_path, monkeypatch):
    other = tiny_model("llama-gqa", seed=3)
    save = type(other).save_pretrained
    monkeypatch.setattr(type(other), "save_pretrained", lambda self, folder: save(other, folder))
    with pytest.raises(Incompatible, match="what was written is another model"):
        written(tiny_model("llama-gqa"), tuned("lora"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", ["houlsby", "prompt", "prefix", "heads"])
def test_methods_that_are_no_change_of_weights_refuse_to_merge(name, tuned):
    with pytest.raises(BadValue, match="cannot be merged"):
        tuned(name).merged(tiny_model("llama-gqa"))


def tied_model():
    config = LlamaConfig.from_dict({**tiny_model().config.to_dict(), "tie_word_embeddings": True})
    torch.manual_seed(0)
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    "config, stays_tied",
    [
        (hf_peft.LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM"), False),
        (hf_peft.TrainableTokensConfig(token_indices=list(range(5, 40)), task_type="CAUSAL_LM"), True),
    ],
    ids=["lm_head", "tokens"],
)
def test_an_adapter_on_tied_embeddings_is_merged_as_it_acts(tmp_path, config, stays_tied):
    model = tied_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    edit = peft.Adapter(config, recipe=METHODS["lora"].recipe).fit(model, tiny_tokenizer(), tiny_questions(6))
    assert edit.record["plan"]["tied_embeddings"]
    with edit.applied(model) as edited:
        expected = logits(edited)
    assert not torch.allclose(expected, logits(model), atol=1e-2)
    _, merged = written(model, edit, tmp_path / "merged")
    assert merged.config.tie_word_embeddings is stays_tied
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_dequantised_copies_keep_ties_and_dtypes(tmp_path):
    model = quantised(tmp_path / "m", "gpt2", "nf4")
    plain = dequantized(model, torch.bfloat16)
    assert plain.dtype == torch.bfloat16 and plain.lm_head.weight is plain.transformer.wte.weight
    assert relative_difference(logits(plain).float(), logits(model)) < 0.03


def test_an_update_that_16_bits_round_away_is_refused_and_kept_in_float32(tmp_path):
    tiny_model("llama-gqa").save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    model = load_model(tmp_path / "m", dtype="bfloat16").model
    edit = fitted("lora", model).scaled(0.02)
    with pytest.raises(Incompatible, match=r"of the edit's effect .*bfloat16 weights.*merge into float32"):
        written(model, edit, tmp_path / "merged")
    found, _ = written(model, edit, tmp_path / "merged", dtype=torch.float32)
    assert found.relative < 1e-3 and found.dtype == "float32"


@pytest.mark.parametrize("name", ["full", "top 2"])
def test_full_fine_tuning_keeps_its_strength_on_disk(name, tuned, tmp_path):
    model, edit = tiny_model("llama-gqa"), tuned(name).scaled(0.5)
    edit.save(tmp_path / "half")
    loaded = peft.TunedEdit.load(tmp_path / "half")
    assert loaded.strength == 0.5
    with edit.applied(model) as one:
        expected = logits(one)
    with loaded.applied(model) as other:
        assert torch.equal(logits(other), expected)
    assert torch.allclose(logits(loaded.merged(model)), expected, atol=1e-5)


def test_an_edit_knows_its_losses_and_the_questions_that_it_was_tuned_on(tuned):
    edit = tuned("lora")
    assert list(edit.losses) == edit.record["losses"] and len(edit.losses) == 4
    assert list(edit.fitted_on) == [q.key for q in tiny_questions(6)]


def test_what_peft_says_of_an_adapter_that_it_cannot_merge_is_a_sentence(tmp_path, monkeypatch):
    model = tiny_model("llama-gqa")
    config = hf_peft.LoraConfig(r=2, lora_bias=True, target_modules=["up_proj", "o_proj"], init_lora_weights=False)
    with pytest.warns(UserWarning):  # PEFT's own, when it makes and writes one
        hf_peft.get_peft_model(tiny_model("llama-gqa"), config).save_pretrained(tmp_path / "theirs")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*invalid shape")
        edit, unedited = peft.TunedEdit.load(tmp_path / "theirs"), logits(model)
        with edit.applied(model) as tuned:
            assert not torch.equal(logits(tuned), unedited)
        edit.save(tmp_path / "ours")
    with pytest.raises(BadValue, match=r"cannot be merged: PEFT says 'Impossible to merge"):
        edit.merged(model)

    def broken(*args, **options):
        raise KeyError("weight")

    monkeypatch.setattr(hf_peft.PeftModel, "merge_and_unload", broken, raising=False)
    with pytest.raises(BadValue, match=r"cannot be merged: PEFT says .*weight"):
        fitted("lora", model).merged(model)
