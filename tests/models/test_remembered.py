"""What a model remembers of itself goes as soon as something changes that it rests on."""

from __future__ import annotations

import copy
import io
import types
from typing import Any

import numpy as np
import peft as hf_peft
import pytest
import torch
import transformers

from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.edits.combined import NoEdit
from trimtab.engine.score import Scores, score_answers
from trimtab.errors import BadValue
from trimtab.models.heads import find_heads
from trimtab.models.identity import remembered, traits
from trimtab.models.tokens import AnswerTokens

pytestmark = pytest.mark.filterwarnings("ignore:.*prefixes are not shared", "ignore:Position ids are not supported")
ITEMS = [AnswerTokens([*range(5, 105), i, i], 100, 102) for i in range(9, 17)]


def scored(model: Any) -> Scores:
    return score_answers(model, tiny_tokenizer(), ITEMS, [NoEdit()])


def shares(model: Any) -> bool:
    """Return whether the prompt was computed once; the numbers are those of one row after the other in any case."""
    scores = scored(model)
    for item, found in zip(ITEMS, scores.logprobs[0], strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([item.ids[:-1]])).logits[0, -2:].log_softmax(-1)
        assert found == pytest.approx(float(logits[[0, 1], item.ids[-2:]].sum()), abs=1e-4)
    return not scores.notes


def without_mask(attention: Any) -> Any:
    """Return the attention's forward without the mask over ancestors, so that nothing can be shared."""
    forward = type(attention).forward
    return lambda self, *args, **options: forward(self, *args, **{**options, "attention_mask": None})


def test_a_forward_in_the_place_of_a_freed_one_is_another() -> None:
    model = tiny_model()
    attention = model.model.layers[1].self_attn
    attention.forward = types.MethodType(type(attention).forward, attention)
    assert shares(model)
    unmasked = without_mask(attention)
    freed = id(attention.__dict__["forward"])
    del attention.forward
    others = [types.MethodType(unmasked, attention)]
    while id(others[-1]) != freed and len(others) < 1000:  # one of them soon stands where the other stood
        others.append(types.MethodType(unmasked, attention))
    attention.forward = others[-1]
    assert not shares(model)


def test_a_class_whose_forward_is_replaced_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    assert shares(model)
    attention = model.model.layers[1].self_attn
    with monkeypatch.context() as patched:
        patched.setattr(type(attention), "forward", without_mask(attention))
        assert not shares(model)
    assert shares(model)


@pytest.mark.parametrize("kind", [hf_peft.PromptTuningConfig, hf_peft.PrefixTuningConfig])
def test_virtual_tokens_that_come_back_are_noticed(kind: Any) -> None:
    wrapper = hf_peft.get_peft_model(tiny_model(), kind(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    with wrapper.disable_adapter():
        assert shares(wrapper)
    assert scored(wrapper).notes
    assert shares(wrapper.get_base_model())


def test_any_value_may_stand_in_the_config_and_a_change_of_it_is_noticed() -> None:
    model = tiny_model()
    model.config.note = np.float32(1)
    assert len(find_heads(model)) == 3
    before = traits(model)
    assert traits(model) == before
    model.config.note = np.float32(2)
    assert traits(model) != before


def test_the_attention_of_a_part_is_noticed() -> None:
    text = transformers.Gemma3TextConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=16, vocab_size=50
    )
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    model = transformers.Gemma3ForConditionalGeneration(config)
    before = traits(model)
    model.set_attn_implementation({"text_config": "eager"})
    assert traits(model) != before


@pytest.mark.parametrize("copied", ["copy", "pickle"])
def test_copies_and_pickles_remember_nothing(copied: str) -> None:
    model = tiny_model()
    assert remembered(model, "number", 1, lambda: 1) == remembered(model, "number", 1, lambda: 2) == 1
    if copied == "copy":
        other = copy.deepcopy(model)
    else:
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert remembered(other, "number", 1, lambda: 3) == 3
    assert remembered(model, "number", 1, lambda: 4) == 1


def test_a_trial_that_gives_nan_is_neither_warned_of_nor_remembered(recwarn: pytest.WarningsRecorder) -> None:
    model = tiny_model()
    weight = model.lm_head.weight.data.clone()
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(BadValue, match="log-probabilities of answers came out as NaN"):
        scored(model)
    assert not [w for w in recwarn if "prefixes" in str(w.message)]
    model.lm_head.weight.data.copy_(weight)
    assert shares(model)
