"""load_model: which folders and names it takes, and how it refuses the others."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.by_hand import prompt_ids
from tests.families import family_model
from tests.tiny import COMMON, FAMILIES, tiny_model, tiny_tokenizer
from trimtab.errors import BadValue, UnsupportedModel
from trimtab.models.heads import find_heads
from trimtab.models.load import checkpoints as loading
from trimtab.models.load.checkpoints import load_config, load_model

SMALL = {k: v for k, v in COMMON.items() if k != "initializer_range"}


def saved(folder: Path, model: Any = None, *, tokenizer: bool = True) -> Path:
    (tiny_model("llama-gqa") if model is None else model).save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a whole tiny model."""
    return saved(tmp_path / "model")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_gives_back_the_same_model_and_tokenizer(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    loaded = load_model(saved(tmp_path / "model", model))
    assert type(loaded.model) is type(model)
    with torch.no_grad():
        assert torch.equal(loaded.model(prompt_ids(6)).logits, model(prompt_ids(6)).logits)
    text = "Q: the sky?\nA: blue"
    assert loaded.tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert len(find_heads(loaded.model)) == 3


def test_the_model_comes_in_evaluation_mode_and_as_a_pair(folder: Path) -> None:
    model, tokenizer = load_model(folder)
    assert not any(module.training for module in model.modules())
    assert tokenizer.pad_token_id == 0


@pytest.mark.parametrize("name", [str, Path, lambda p: f"{p}/", lambda p: p.parent / "elsewhere" / ".." / p.name])
def test_a_folder_may_be_given_as_text_or_path(folder: Path, name: Callable[[Path], Any]) -> None:
    (folder.parent / "elsewhere").mkdir()
    assert load_model(name(folder)).model.config.hidden_size == 48


def test_a_folder_may_be_given_relative_to_here_or_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for name in ("model", "./model", "~/model"):
        assert load_model(name).model.config.hidden_size == 48


def test_a_folder_wins_over_a_hub_id_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "organisation" / "model")
    monkeypatch.chdir(tmp_path)
    calls = spied(monkeypatch)
    load_model("organisation/model")
    assert calls and all(local for _, local in calls)


DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    torch.bfloat16: torch.bfloat16,
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_asked_for_is_the_dtype_of_every_weight(folder: Path, dtype: Any) -> None:
    model = load_model(folder, dtype=dtype).model
    assert {p.dtype for p in model.parameters()} == {DTYPES[dtype]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_dtype_the_checkpoint_keeps_its_own(tmp_path: Path, dtype: torch.dtype) -> None:
    path = saved(tmp_path / "model", tiny_model("llama", dtype=dtype))
    assert {p.dtype for p in load_model(path).model.parameters()} == {dtype}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_a_dtype_that_no_model_runs_in_is_refused(folder: Path, dtype: Any) -> None:
    with pytest.raises(BadValue, match=f"dtype {dtype} is not one that a model can run in; choose float32"):
        load_model(folder, dtype=dtype)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_dtype_is_refused_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(BadValue, match="unknown dtype 'int3'; choose float32, bfloat16, float16, float64"):
        load_model(folder, dtype="int3")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "auto", None])
def test_the_model_stands_on_the_device_asked_for(folder: Path, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {p.device.type for p in load_model(folder, device=device).model.parameters()} == {"cpu"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", torch.device("cuda"), "toaster", "meta"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(
    folder: Path, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spied(monkeypatch)
    with pytest.raises(BadValue, match=f"device '{device}' is not available here; try 'cpu'"):
        load_model(folder, device=device)
    assert calls == []


# names


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Record every (name, whether from local files only) with which transformers is asked for a config."""
    calls = []
    real = transformers.AutoConfig.from_pretrained

    def spy(name: str, **options: Any) -> Any:
        calls.append((name, options.get("local_files_only", False)))
        return real(name, **options)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", spy)
    return calls


NOT_IDS = [
    "gpt2",
    "a/b/c",
    "./model",
    "../model",
    "/nowhere/model",
    "~/nowhere",
    "C:\\models\\x",
    "a/",
    "/",
    "a b/c",
    ".",
]


@pytest.mark.parametrize("name", NOT_IDS)
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused_without_asking_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calls = spied(monkeypatch)
    with pytest.raises(UnsupportedModel, match=r"no model folder at|has no config\.json"):
        load_model(name)
    assert calls == []


def test_a_missing_folder_is_refused_with_what_may_be_given(tmp_path: Path) -> None:
    words = "no model folder at .*absent; give an existing folder, a GGUF file, a hub id such as .* or 'embedded'"
    for name in (tmp_path / "absent", str(tmp_path / "absent")):
        with pytest.raises(UnsupportedModel, match=words):
            load_model(name)


def test_a_file_in_place_of_a_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    calls = spied(monkeypatch)
    with pytest.raises(UnsupportedModel, match=r"model/config.json is a file, and no GGUF file; give a model folder"):
        load_model("model/config.json")
    assert calls == []


def test_a_path_object_is_never_taken_for_a_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied(monkeypatch)
    with pytest.raises(UnsupportedModel, match="no model folder at organisation/model"):
        load_model(Path("organisation/model"))
    assert calls == []


def test_a_hub_id_is_asked_for_at_its_revision_and_named_when_it_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def absent(name: str, **options: Any) -> Any:
        asked.append((name, options))
        raise OSError("We couldn't connect to the hub\nand more lines")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", absent)
    words = (
        r"the hub's organisation/model cannot be loaded .* \(We couldn't connect to the hub\); give the whole folder"
    )
    with pytest.raises(UnsupportedModel, match=words):
        load_model("organisation/model", revision="abc")
    assert asked == [("organisation/model", {"revision": "abc"})]


def hub_error(kind: str) -> Exception:
    from huggingface_hub import errors

    # without the response that their own constructors ask for, which is of one HTTP client or another
    error = getattr(errors, kind)
    return error.__new__(error)


@pytest.mark.parametrize(
    "kind, offline, words",
    [
        ("GatedRepoError", False, "is gated: accept its licence on its page, then log in with `hf auth login`"),
        ("RepositoryNotFoundError", False, "has no model organisation/model that you may see"),
        ("RevisionNotFoundError", False, "has no branch, tag or commit 'v9'"),
        ("LocalEntryNotFoundError", False, "the hub cannot be reached to download organisation/model: check the name"),
        ("OfflineModeIsEnabled", True, "HF_HUB_OFFLINE forbids the network: unset it, or give a model's folder"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(
    kind: str, offline: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, **options: Any) -> Any:
        # transformers wraps the hub's own errors
        raise OSError("a long story\nin lines") from hub_error(kind)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refused)
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: offline)
    for load in (load_model, load_config):
        with pytest.raises(UnsupportedModel, match=re.escape(words)) as caught:
            load("organisation/model", revision="v9")
        assert "\n" not in str(caught.value)


def test_the_embedded_model_is_read_from_the_package_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = saved(tmp_path / "weights", tiny_model("llama", dtype=torch.float16))
    monkeypatch.setattr(loading, "EMBEDDED_FOLDER", weights)
    calls = spied(monkeypatch)
    assert load_model().model.dtype == load_model("embedded").model.dtype == torch.float32
    assert load_model(dtype="float16").model.dtype == torch.float16
    assert set(calls) == {(str(weights), True)}


def test_an_installation_without_the_embedded_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "EMBEDDED_FOLDER", tmp_path / "weights")
    with pytest.raises(UnsupportedModel, match="the embedded model is missing"):
        load_model()


# folders


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_text_in(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def with_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def broken_pickle(folder: Path) -> None:
    without_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"no weights" * 50)


def directory_for_weights(folder: Path) -> None:
    without_weights(folder)
    (folder / "model.safetensors").mkdir()


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def without_tokens(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


BROKEN = {
    "no config": (without_config, r"has no config\.json; expected a Hugging Face model folder"),
    "config that is no JSON": (
        with_text_in("config.json", '{"a":'),
        r"cannot be loaded as a causal language model \(.*\); give the whole folder",
    ),
    "config of nothing": (with_text_in("config.json", "{}"), "cannot be loaded .*Unrecognized model"),
    "unknown architecture": (with_config(model_type="perceptron"), "cannot be loaded .*perceptron"),
    "weights cut short": (truncated, "cannot be loaded .*incomplete metadata, file not fully covered"),
    "weights of text": (with_text_in("model.safetensors", "hello" * 99), "cannot be loaded .*header"),
    "weights of nothing": (with_text_in("model.safetensors", ""), "cannot be loaded .*header"),
    "no weights": (without_weights, "cannot be loaded .*no file named model.safetensors"),
    "pickle of garbage": (broken_pickle, r"cannot be loaded as a causal language model \(.*\); give the whole folder"),
    "directory for weights": (
        directory_for_weights,
        r"cannot be loaded as a causal language model \(.*\); give the whole folder",
    ),
    "weights of another width": (
        with_config(intermediate_size=32),
        r"9 weights of .* do not fit its config\.json \(model\.layers\.0\.mlp\.down_proj\.weight is \(48, 64\), "
        r"expected \(48, 32\)\); give a folder whose config and weights were saved together",
    ),
    "weights of fewer layers": (
        with_config(num_hidden_layers=4),
        r"lacks 9 of the model's weights \(model\.layers\.3\..*, which would be random",
    ),
    "no tokenizer": (without_tokenizer, r"the tokenizer of the folder .* cannot be loaded \(.*\); save it there"),
    "no tokens": (without_tokens, r"the tokenizer of the folder .* cannot be loaded \(.*\); save it there"),
    "broken tokenizer": (with_text_in("tokenizer.json", '{"a":'), r"the tokenizer of the folder .* cannot be loaded"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_by_name_in_one_line(folder: Path, case: str) -> None:
    spoil, words = BROKEN[case]
    spoil(folder)
    with pytest.raises(UnsupportedModel, match=words) as refused:
        load_model(folder)
    message = str(refused.value)
    assert str(folder) in message and "\n" not in message
    assert message[-1] not in ": "
    assert message.count(". ") == 0
    assert "weights_only" not in message  # no advice to run what a stranger packed


def bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))


def t5() -> Any:
    config = transformers.T5Config(vocab_size=300, d_model=48, d_kv=12, d_ff=64, num_layers=2, num_heads=4)
    return transformers.T5ForConditionalGeneration(config)


def bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=300, d_model=48, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (bert, r"holds an encoder-only model \(bert\); trimtab edits decoder-only language models"),
        (t5, r"holds an encoder-decoder model \(t5\); trimtab edits decoder-only language models"),
        (bart, r"holds an encoder-decoder model \(bart\)"),
    ],
)
def test_a_model_that_is_no_decoder_is_refused_by_its_kind(tmp_path: Path, make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        load_model(saved(tmp_path / "model", make()))


def test_an_encoder_that_was_made_a_decoder_is_taken(tmp_path: Path) -> None:
    model = transformers.BertLMHeadModel(transformers.BertConfig(**SMALL, is_decoder=True))
    assert type(load_model(saved(tmp_path / "model", model)).model) is type(model)


def test_a_model_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(UnsupportedModel, match=r"holds another kind of model \(vit\); trimtab edits decoder-only"):
        load_model(saved(tmp_path / "model", transformers.ViTModel(config)))


def test_a_checkpoint_without_a_language_model_head_is_refused_since_the_head_would_be_random(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"lacks 1 of the model's weights \(lm_head\.weight\)"):
        load_model(saved(tmp_path / "headless", tiny_model("llama").model))


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (("model.layers.3.mlp.up_proj.weight", "v_head.weight"), "first of 2: model.layers.3.mlp.up_proj.weight"),
        (("model.layers.1.self_attn.q_proj.bias",), "first of 1: model.layers.1.self_attn.q_proj.bias"),
        # buffers that older releases saved
        (("model.layers.1.self_attn.rotary_emb.inv_freq", "model.layers.1.attn.attention.masked_bias"), None),
        ((), None),
    ],
)
def test_weights_that_the_model_has_no_place_for_are_named(
    folder: Path, extra: tuple[str, ...], named: str | None
) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, **{name: torch.ones(4) for name in extra}}, folder / "model.safetensors", {"format": "pt"})
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        load_model(folder)
    said = [str(w.message) for w in heard if "left out" in str(w.message)]
    assert len(said) == (named is not None)
    assert named is None or named in said[0]


def test_a_head_that_is_tied_to_the_embedding_is_not_missing(tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON, tie_word_embeddings=True))
    loaded = load_model(saved(tmp_path / "tied", model)).model
    assert torch.equal(loaded.lm_head.weight, model.model.embed_tokens.weight)


@pytest.mark.parametrize("family", ["LLaVA (text tower)", "Qwen2.5-VL (text tower)"])
def test_a_vision_language_model_is_taken_with_its_text_tower(tmp_path: Path, family: str) -> None:
    model = family_model(family)
    loaded = load_model(saved(tmp_path / "model", model)).model
    assert type(loaded) is type(model)
    assert [s.name for s in find_heads(loaded)] == [s.name for s in find_heads(model)]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=prompt_ids(6)).logits, model(input_ids=prompt_ids(6)).logits)
