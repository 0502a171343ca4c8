"""What the tests of tuning share: one small instance of every method, runs on a tiny model, and 4-bit models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft as hf_peft
import pytest
import torch
from torch import Tensor

from tests.tiny import VOCAB, tiny_model, tiny_questions, tiny_tokenizer
from trimtab import peft
from trimtab.activations import Head
from trimtab.models import load_model

# a step that tiny random models feel, few of them
QUICK = peft.Recipe(max_steps=4, batch_size=8, learning_rate=0.02)
HEADS = (Head(2, 3), Head(0, 1), Head(2, 0))

METHODS: dict[str, peft.TuningMethod] = {
    "lora": peft.LoRA(r=4, recipe=QUICK),
    "lora qv": peft.LoRA(r=4, targets="qv", recipe=QUICK),
    "rslora": peft.LoRA(r=4, rslora=True, recipe=QUICK),
    "dora": peft.LoRA(r=4, dora=True, recipe=QUICK),
    "ia3": peft.IA3(recipe=QUICK),
    "peft vera": peft.Adapter(hf_peft.VeraConfig(r=8, target_modules=["o_proj", "c_proj"]), recipe=QUICK),
    "houlsby": peft.Bottleneck("houlsby", 4, recipe=QUICK),
    "pfeiffer": peft.Bottleneck("pfeiffer", 4, recipe=QUICK),
    "heads": peft.HeadOffsets(heads=HEADS, recipe=QUICK),
    "prompt": peft.PromptTuning(5, recipe=QUICK),
    "prefix": peft.PrefixTuning(5, recipe=QUICK),
    "prefix mlp": peft.PrefixTuning(5, reparameterised=True, d_hidden=16, recipe=QUICK),
    "intrinsic": peft.IntrinsicDimension(60, recipe=QUICK),
    "said": peft.IntrinsicDimension(60, structure_aware=True, recipe=QUICK),
    "full": peft.FullFineTuning(recipe=QUICK),
    "top 2": peft.FullFineTuning(2, recipe=QUICK),
}
ON_FOUR_BITS = [name for name, method in METHODS.items() if method.capabilities.four_bit]
MERGEABLE = [name for name, method in METHODS.items() if method.capabilities.mergeable]


def some(every: Sequence[Any], *chosen: Any) -> list[Any]:
    """Return all of a test's parameters, those that were not chosen for the slow run only."""
    assert set(chosen) <= set(every)
    return [
        one if one in chosen else pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.slow)
        for one in every
    ]


def default_of(*chosen: str) -> list[Any]:
    """Return every method as a test's parameter, those that were not chosen for the slow run only."""
    return some(list(METHODS), *chosen)


def fitted(name: str, model: Any, *, seed: int = 0, out: Path | None = None, **knobs: Any) -> peft.TunedEdit:
    """Return a short run of a method on the tiny questions."""
    return METHODS[name].fit(model, tiny_tokenizer(), tiny_questions(6), knobs=knobs, seed=seed, out=out)


def quantised(folder: Path, family: str, kind: str = "nf4-dq", dtype: str = "float32") -> Any:
    """Return a tiny model in 4 or 8 bits."""
    tiny_model(family, width=64).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_model(folder, quantization=kind, dtype=dtype, device="cpu").model


def some_tokens(batch: int = 2, length: int = 9) -> Tensor:
    """Return random tokens, batch seq."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits(model: Any, ids: Tensor | None = None, **given: Any) -> Tensor:
    """Return a model's logits without a cache."""
    return model(input_ids=some_tokens() if ids is None else ids, use_cache=False, **given).logits
