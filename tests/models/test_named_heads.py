"""A model of the user's own, whose heads are named by hand and held to the same check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft as hf_peft
import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from tests.by_hand import N_LAYERS, projection_name, prompt_ids, seen_inputs
from tests.tiny import VOCAB, tiny_model, tiny_questions, tiny_tokenizer
from trimtab.activations import Head
from trimtab.edits.vectors import HeadShift
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadValue, UnsupportedModel
from trimtab.evaluate import drift, generate_answers, multiple_choice
from trimtab.models.adding import add_to_heads
from trimtab.models.heads import find_heads
from trimtab.probes import fit_logistic
from trimtab.steer import fit_shift

WIDTH, N_HEADS, D_HEAD = 24, 3, 8


class OwnConfig(PretrainedConfig):
    model_type = "trimtab-test-own"

    def __init__(self, blocks: int = 2, **rest: Any) -> None:
        self.blocks, self.initializer_range = blocks, 0.3
        super().__init__(**rest)


class Mix(nn.Module):
    """A projection that is no Linear and says nothing of its width."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.look, self.mix = nn.Linear(WIDTH, 3 * WIDTH), Mix()
        self.think = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.look(x).unflatten(-1, (N_HEADS, 3 * D_HEAD)).transpose(1, 2).chunk(3, dim=-1)
        heads = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.mix(heads.transpose(1, 2).flatten(2))
        return x + self.think(x).tanh()


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(VOCAB, WIDTH)
        self.deep = nn.ModuleDict({f"block{i}": Block() for i in range(config.blocks)})
        self.say = nn.Linear(WIDTH, VOCAB)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> CausalLMOutput:
        n = input_ids.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None].bool() | torch.eye(n, dtype=torch.bool)
        x = self.words(input_ids)
        for block in self.deep.values():
            x = block(x, mask)
        return CausalLMOutput(logits=self.say(x))


HEADS = {i: (f"deep.block{i}.mix", N_HEADS) for i in range(2)}


def own(blocks: int = 2) -> Any:
    torch.manual_seed(0)
    return OwnModel(OwnConfig(blocks)).eval()


def test_without_names_it_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="OwnModel is not a decoder with attention heads"):
        find_heads(own())


def test_named_heads_are_taken_with_the_width_that_they_have() -> None:
    model = own()
    sites = find_heads(model, HEADS)
    assert [(s.layer, s.name, s.n_heads, s.d_head) for s in sites] == [
        (0, "deep.block0.mix", 3, 8),
        (1, "deep.block1.mix", 3, 8),
    ]
    assert [s.module for s in sites] == [b.mix for b in model.deep.values()]


def test_a_model_of_one_layer_will_do() -> None:
    assert len(find_heads(own(1), {0: HEADS[0]})) == 1


def test_names_give_what_the_finder_gives_where_it_finds_something() -> None:
    model = tiny_model("gpt2")
    names = {i: (projection_name("gpt2", i), 4) for i in range(N_LAYERS)}
    assert find_heads(model, names) == find_heads(model)
    assert find_heads(model, {1: names[1]}) == find_heads(model)[1:2]


def test_the_whole_way_works_on_named_heads(tmp_path: Path) -> None:
    model, tokenizer, questions = own(), tiny_tokenizer(), tiny_questions(8)
    acts = capture_heads(model, tokenizer, questions.statements(), site=HEADS, batch_size=3)
    for row, statement in zip(acts.values, questions.statements(), strict=True):
        ids = torch.tensor([tokenizer(statement.text)["input_ids"]])
        seen = seen_inputs(model, {"x": model.deep["block1"].mix}, lambda ids=ids: model(input_ids=ids))
        assert torch.allclose(row[1].flatten(), seen["x"][0, -1], atol=1e-5)
    fit_shift(acts, fit_logistic(acts), top_k=2).scaled(20).save(tmp_path / "shift")
    shift = HeadShift.load(tmp_path / "shift")
    ids = prompt_ids(6)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with shift.applied(model, "all"):
            found = model(input_ids=ids).logits
        with add_to_heads(model, shift.deltas, "all", heads=find_heads(model, HEADS)):
            expected = model(input_ids=ids).logits
    assert torch.equal(found, expected) and (found - plain).abs().max() > 0.01
    scores = [multiple_choice(model, tokenizer, questions, edit) for edit in (None, shift)]
    assert scores[0].rows[0].answers[0].logprob != scores[1].rows[0].answers[0].logprob
    assert drift(model, tokenizer, shift, texts=["The sky is blue."]).kl > 1e-4
    with pytest.raises(
        UnsupportedModel, match="OwnModel cannot generate; derive it from transformers' GenerationMixin"
    ):
        generate_answers(model, tokenizer, questions, shift)
    with pytest.raises(UnsupportedModel, match="no list of num_hidden_layers layers found in OwnModel"):
        capture_heads(model, tokenizer, questions.statements(), site="residual")


def test_an_adapted_model_is_seen_through_its_wrapper() -> None:
    model = tiny_model("llama")
    config = hf_peft.LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
    wrapped = hf_peft.get_peft_model(model, config)
    names = {i: (projection_name("llama", i), 4) for i in range(N_LAYERS)}
    assert find_heads(wrapped, names) == find_heads(wrapped)


REFUSED = {
    "no such module": ({0: ("deep.block7.mix", 3)}, BadValue, r"no module 'deep\.block7\.mix'; .*deep\.block0\.mix"),
    "nothing": ({}, BadValue, "heads is empty"),
    "before attention": (
        {0: ("deep.block0.look", 3)},
        UnsupportedModel,
        "does not depend on earlier positions|another",
    ),
    "after the projection": ({0: ("deep.block0.think", 3)}, UnsupportedModel, "is not the projection after attention"),
    "not so many heads": ({0: ("deep.block0.mix", 5)}, UnsupportedModel, "is 24 wide, which is not 5 heads"),
    "no heads": ({0: ("deep.block0.mix", 0)}, UnsupportedModel, "is 24 wide, which is not 0 heads"),
    "a fraction of heads": ({0: ("deep.block0.mix", 1.5)}, BadValue, r"heads must be \{layer: .*got \{0: .*1\.5"),
    "names alone": ({0: "deep.block0.mix"}, BadValue, r"heads must be \{layer: \(module name, number of heads\)\}"),
    "a list": ([("deep.block0.mix", 3)], BadValue, "heads must be"),
    "a layer below the first": ({-1: ("deep.block0.mix", 3)}, BadValue, "heads must be"),
    "one module twice": ({0: HEADS[0], 1: HEADS[0]}, BadValue, r"module 'deep\.block0\.mix' for several layers"),
    "other heads in each layer": (
        {0: ("deep.block0.mix", 3), 1: ("deep.block1.mix", 6)},
        UnsupportedModel,
        r"differ in size \(layer 0: 3 x 8, layer 1: 6 x 4\); name layers of one size",
    ),
    "a layer": ({0: ("deep.block0", 3)}, UnsupportedModel, "stands in no layer of its own"),
    "the embedding": ({0: ("words", 3)}, UnsupportedModel, "stands in no layer of its own"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_pass_the_check_is_refused_by_name(case: str) -> None:
    heads, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        find_heads(own(), heads)


def test_a_shift_needs_heads_that_are_there() -> None:
    with (
        pytest.raises(BadValue, match="no head 3 in layer 1"),
        add_to_heads(own(), {Head(1, 3): torch.ones(8)}, "all", heads=find_heads(own(), HEADS)),
    ):
        pass
