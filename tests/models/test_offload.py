"""Models that are larger than their device: weights on meta until their layer runs, from the CPU's memory or disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model

from tests.by_hand import padded, prompt_ids
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.activations import Head
from trimtab.edits.vectors import HeadShift
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadValue, UnsupportedModel
from trimtab.evaluate import drift, generate_answers, multiple_choice
from trimtab.models.heads import find_heads
from trimtab.models.identity import fingerprint
from trimtab.models.load.checkpoints import load_model
from trimtab.peft import Bottleneck, FullFineTuning, HeadOffsets, LoRA, PromptTuning

LAYERS = {f"model.layers.{i}": "cpu" for i in range(3)}
OTHERS = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
SPLIT = {**OTHERS, **LAYERS, "model.layers.1": "disk"}


def on_cpu_offloaded(path: Path) -> Any:
    return cpu_offload(tiny_model("llama-gqa"), execution_device=torch.device("cpu"))


def on_disk(path: Path) -> Any:
    return disk_offload(tiny_model("llama-gqa"), str(path), execution_device=torch.device("cpu"))


def partly_on_disk(path: Path) -> Any:
    return dispatch_model(tiny_model("llama-gqa"), SPLIT, main_device="cpu", offload_dir=str(path))


SPLITS = {"cpu": on_cpu_offloaded, "disk": on_disk, "one layer on disk": partly_on_disk}


@pytest.fixture(params=SPLITS)
def split(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return the tiny model with weights that are not in their modules between forwards."""
    model = SPLITS[request.param](tmp_path)
    assert any(p.device.type == "meta" for p in model.parameters())
    return model


def the_shift(model: Any) -> HeadShift:
    heads, unit = (Head(0, 1), Head(1, 3), Head(2, 0)), torch.full((3, 12), 12**-0.5)
    return HeadShift(heads, unit, torch.ones(3), 3.0, record={"model": fingerprint(model)})


def test_heads_are_found_where_they_are_in_the_whole_model(split: Any) -> None:
    whole = tiny_model("llama-gqa")
    assert [(s.layer, s.name) for s in find_heads(split)] == [(s.layer, s.name) for s in find_heads(whole)]
    assert [p.device.type for p in split.parameters()].count("meta") > 0


def test_captured_heads_are_those_of_the_whole_model(split: Any) -> None:
    statements = tiny_questions(3).statements()
    found, expected = (
        capture_heads(m, tiny_tokenizer(), statements, batch_size=4).values for m in (split, tiny_model("llama-gqa"))
    )
    assert torch.allclose(found, expected, atol=1e-5)


def test_scores_answers_and_drift_are_those_of_the_whole_model(split: Any) -> None:
    seen = []
    for model in (split, tiny_model("llama-gqa")):
        model.generation_config.eos_token_id = None
        # fitted on the whole model: an offloaded one is the same checkpoint
        shift = the_shift(tiny_model("llama-gqa"))
        scores = multiple_choice(model, tiny_tokenizer(), tiny_questions(3), shift)
        answers = generate_answers(model, tiny_tokenizer(), tiny_questions(3), shift, max_new_tokens=6)
        numbers = [a.logprob for row in scores.rows for a in row.answers]
        numbers += [
            x for pair in drift(model, tiny_tokenizer(), shift, texts=["The sky is blue."]).per_text for x in pair
        ]
        seen.append((torch.tensor(numbers), [row.answer for row in answers.rows]))
    assert torch.allclose(seen[0][0], seen[1][0], atol=1e-4)
    assert seen[0][1] == seen[1][1]


def test_a_shift_moves_the_split_model_as_it_moves_the_whole_one(split: Any) -> None:
    ids, mask = padded([prompt_ids(9), prompt_ids(5)], "right")
    whole = tiny_model("llama-gqa")
    with torch.no_grad():
        plain = split(input_ids=ids, attention_mask=mask).logits
        with the_shift(split).applied(split, "all"):
            found = split(input_ids=ids, attention_mask=mask).logits
        with the_shift(whole).applied(whole, "all"):
            expected = whole(input_ids=ids, attention_mask=mask).logits
        after = split(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(found, expected, atol=1e-4) and torch.equal(after, plain)
    assert (found - plain).abs().max() > 0.1


def test_the_fingerprint_of_a_split_model_is_that_of_the_whole(split: Any) -> None:
    here, there = fingerprint(split), fingerprint(tiny_model("llama-gqa"))
    assert here["geometry"] == there["geometry"] and here["sample"].items() <= there["sample"].items()


def test_a_device_map_may_be_given_to_load_model(tmp_path: Path) -> None:
    tiny_model("llama-gqa").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path, device={"": "cpu"}).model
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert len(find_heads(model)) == 3


def test_a_layer_may_be_left_on_disk_and_reads_the_same(tmp_path: Path) -> None:
    tiny_model("llama-gqa").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path, device=SPLIT).model
    assert {n.split(".")[2] for n, p in model.named_parameters() if p.is_meta} == {"1"}
    statements = tiny_questions(2).statements()
    found, expected = (capture_heads(m, tiny_tokenizer(), statements).values for m in (model, tiny_model("llama-gqa")))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_device_map_that_cannot_be_followed_is_refused_in_its_own_words(tmp_path: Path) -> None:
    tiny_model("llama-gqa", width=64).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for place in ("gpu", "meta", 99):
        with pytest.raises(BadValue, match=r"device '.*' is not available here; try 'cpu' or leave it out"):
            load_model(tmp_path, device={"": "cpu", "lm_head": place})
    with pytest.raises(
        UnsupportedModel, match=r"bitsandbytes keeps no weights on disk or beside a GPU; .* out of the map"
    ):
        load_model(tmp_path, device=SPLIT, quantization="nf4")


@pytest.mark.parametrize(
    "method",
    [LoRA(r=4), PromptTuning(), HeadOffsets(heads=(Head(0, 1),)), Bottleneck(), FullFineTuning()],
    ids=lambda m: m.name,
)
def test_tuning_an_offloaded_model_is_refused_by_name(tmp_path: Path, method: Any) -> None:
    model = partly_on_disk(tmp_path)
    with pytest.raises(BadValue, match=r"need every weight on a device, and model\.layers\.1\..* is offloaded"):
        method.fit(model, tiny_tokenizer(), tiny_questions(3))
    assert len(find_heads(model)) == 3
    for either in (model, on_cpu_offloaded(tmp_path)):
        with pytest.raises(BadValue, match="is offloaded"):
            method.attach(either, seed=0)
