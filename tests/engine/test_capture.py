"""capture_heads against one plain forward for each prompt, with a pre-hook on the projection."""

from __future__ import annotations

import copy
import json
from typing import Any

import peft as hf_peft
import pytest
import torch
from tokenizers import processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.by_hand import GEOMETRY, N_HEADS, N_LAYERS, delta, hook_counts, projection, prompt_ids, seen_inputs
from tests.tiny import FAMILIES, tiny_model, tiny_questions, tiny_tokenizer
from trimtab.activations import Head, HeadActivations
from trimtab.datasets import ContrastPair, PairSet, Statement
from trimtab.engine import sharing as prefix_mode
from trimtab.engine.capture import Places, Site, _Gather, capture_heads
from trimtab.errors import BadDataset, BadValue, Incompatible, UnsupportedModel
from trimtab.models.adding import add_to_heads
from trimtab.models.hooks import on_inputs
from trimtab.models.identity import fingerprint
from trimtab.models.tokens import tokenize_answer

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(autouse=True)
def tried_for_any_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_mode, "TRYING", {"cpu": 1, "cuda": 1})


def statements() -> list[Statement]:
    """Return statements of very different lengths, in an order that is not that of their lengths."""
    listed = tiny_questions(4).statements()[:7]
    listed[1] = Statement("Q: " + "the colour of the sky? " * 6 + "\nA:", "The sky is blue.", True, "long prompt")
    listed[2] = Statement("Q:", "x", False, "short")
    listed[4] = Statement("Q: What?\nA:", "The sky is the colour of the sky " * 4, True, "long answer")
    return listed


def answer_span(statement: Statement) -> slice:
    """Return the tokens from the first one that reaches into the answer."""
    ids, skipped = tiny_tokenizer()(statement.text)["input_ids"], len(statement.text) - len(statement.answer)
    return slice(
        next(i for i in range(1, len(ids)) if len(tiny_tokenizer().decode(ids[1 : i + 1])) > skipped), len(ids)
    )


def by_hand(model: Any, family: str, listed: list[Statement], position: str = "last") -> Tensor:
    """Return `example layer head d_head` from one forward of each statement alone."""
    modules = {str(i): projection(model, family, i) for i in range(N_LAYERS)}
    rows = []
    for statement in listed:
        ids = torch.tensor([tiny_tokenizer()(statement.text)["input_ids"]])
        seen = seen_inputs(model, modules, lambda ids=ids: model(ids))
        x = torch.stack([seen[str(i)][0] for i in range(N_LAYERS)])
        rows.append(x[:, -1] if position == "last" else x[:, answer_span(statement)].mean(1))
    return torch.stack(rows).unflatten(-1, (N_HEADS, GEOMETRY[family].d_head))


def assert_equal(found: Tensor, expected: Tensor, tolerance: float = 0.0) -> None:
    """Hold that the largest difference is within the tolerance of the largest activation."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    tolerance = max(tolerance, TOLERANCE[expected.dtype])
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def padded_tolerance(family: str) -> float:
    # Gemma 2 takes its softmax in float32 whatever its dtype, and the sum's rounding depends on the padded length
    return 1e-6 if family == "gemma2" else 0.0


@pytest.mark.parametrize("position", ["last", "mean_answer"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_one_plain_forward_for_each_statement(family: str, dtype: torch.dtype, position: Any) -> None:
    model, listed = tiny_model(family, dtype=dtype), statements()
    found = capture_heads(model, tiny_tokenizer(), listed, position=position, batch_size=3)
    expected = by_hand(model, family, listed, position)
    assert_equal(found.values, expected, padded_tolerance(family))
    # the control: the positions are far apart
    other = capture_heads(
        model, tiny_tokenizer(), listed, position="last" if position == "mean_answer" else "mean_answer"
    )
    assert (other.values - expected).abs().max() > 0.01 * expected.abs().max()


def test_without_padding_the_family_whose_softmax_is_in_float32_is_read_exactly_too() -> None:
    model = tiny_model("gemma2", dtype=torch.float64)
    found = capture_heads(model, tiny_tokenizer(), statements(), batch_size=1)
    assert_equal(found.values, by_hand(model, "gemma2", statements()))


@pytest.mark.parametrize(("family", "batch_size"), [("llama", 1), ("llama", 100), ("gpt2", 2)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_padding_side_nor_batch_size_matters(family: str, side: str, batch_size: int) -> None:
    model, tokenizer = tiny_model(family, dtype=torch.float64), copy.copy(tiny_tokenizer())
    tokenizer.padding_side = side
    found = capture_heads(model, tokenizer, statements(), batch_size=batch_size)
    assert_equal(found.values, by_hand(model, family, statements()))
    assert tokenizer.padding_side == side


def test_results_stand_in_the_order_of_the_statements() -> None:
    model, listed = tiny_model("llama", dtype=torch.float64), statements()
    order = [4, 0, 6, 2, 1, 5, 3]
    straight = capture_heads(model, tiny_tokenizer(), listed, batch_size=3)
    shuffled = capture_heads(model, tiny_tokenizer(), [listed[i] for i in order], batch_size=3)
    assert_equal(shuffled.values, straight.values[order])
    assert shuffled.groups == tuple(straight.groups[i] for i in order)
    assert torch.equal(shuffled.labels, straight.labels[order])
    assert straight.labels.tolist() == [s.label for s in listed]


def test_a_statement_met_twice_has_the_same_activations_twice() -> None:
    found = capture_heads(tiny_model("llama"), tiny_tokenizer(), statements()[:1] * 3, batch_size=2)
    assert torch.equal(found.values[0], found.values[1])
    assert len(found) == 3


def residual_by_hand(model: Any, listed: list[Statement]) -> Tensor:
    rows = []
    for statement in listed:
        ids = torch.tensor([tiny_tokenizer()(statement.text)["input_ids"]])
        with torch.no_grad():
            # without the last entry, which has been through the final norm
            rows.append(torch.stack([h[0, -1] for h in model(ids, output_hidden_states=True).hidden_states[1:-1]]))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_site_holds_the_layers_outputs(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype)
    found = capture_heads(model, tiny_tokenizer(), statements(), site="residual", batch_size=4)
    assert found.values.shape == (7, N_LAYERS, 1, 48)
    assert found.layers == tuple(range(N_LAYERS))
    assert_equal(found.values[:, :-1, 0], residual_by_hand(model, statements()), padded_tolerance(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layers_residual_is_what_the_final_norm_gets(family: str) -> None:
    model, listed = tiny_model(family, dtype=torch.float64), statements()
    norm = model.get_submodule(
        {"gpt2": "transformer.ln_f", "gpt-neox": "gpt_neox.final_layer_norm"}.get(family, "model.norm")
    )
    found = capture_heads(model, tiny_tokenizer(), listed, site="residual").values[:, -1, 0]
    for statement, row in zip(listed, found, strict=True):
        ids = torch.tensor([tiny_tokenizer()(statement.text)["input_ids"]])
        seen = seen_inputs(model, {"norm": norm}, lambda ids=ids: model(ids))
        assert_equal(row, seen["norm"][0, -1], padded_tolerance(family))


def chat(question: str, answer: str) -> str:
    return f"<user>{question}</user>\n<bot> {answer}"


def chat_with_trailer(question: str, answer: str) -> str:
    return chat(question, answer) + "</bot>\n<user>"


@pytest.mark.parametrize("position", ["last", "mean_answer"])
def test_a_chat_templates_trailer_changes_nothing(position: Any) -> None:
    model = tiny_model("llama")
    found, expected = (
        capture_heads(model, tiny_tokenizer(), tiny_questions(3).statements(form), position=position)
        for form in (chat_with_trailer, chat)
    )
    assert torch.equal(found.values, expected.values)


def variant(template: str, **special: str) -> PreTrainedTokenizerFast:
    backend = copy.deepcopy(tiny_tokenizer().backend_tokenizer)
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<bos>", 1), ("<eos>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.mark.parametrize("position", ["last", "mean_answer"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_end_token_that_the_tokenizer_appends_is_not_the_last_token_of_the_answer(
    family: str, position: Any
) -> None:
    model = tiny_model(family, dtype=torch.float64)
    tokenizer = variant("<bos> $A <eos>", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    found = capture_heads(model, tokenizer, statements(), position=position, batch_size=3)
    assert_equal(found.values, by_hand(model, family, statements(), position))


@pytest.mark.parametrize("special", [{"eos_token": "<eos>"}, {}], ids=["end token only", "no special token"])
def test_a_tokenizer_without_a_pad_token_will_do(special: dict[str, str]) -> None:
    model, tokenizer = tiny_model("llama", dtype=torch.float64), variant("<bos> $A", **special)
    assert tokenizer.pad_token_id is None
    found = capture_heads(model, tokenizer, statements(), batch_size=3)
    assert_equal(found.values, by_hand(model, "llama", statements()))
    assert tokenizer.pad_token_id is None


def test_contrast_pairs_without_a_prompt_need_no_start_token() -> None:
    model, tokenizer = tiny_model("llama", dtype=torch.float64), variant("$A", eos_token="<eos>")
    pairs = PairSet((ContrastPair("", ("The sky is blue.",), ("The sky",)),)).statements()
    found = capture_heads(model, tokenizer, pairs).values
    for row, text in zip(found, ("The sky is blue.", "The sky"), strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        seen = seen_inputs(model, {"x": projection(model, "llama", 1)}, lambda ids=ids: model(ids))
        assert_equal(row[1].flatten(), seen["x"][0, -1])


def test_a_half_precision_model_gives_float32_values() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    for position in ("last", "mean_answer"):
        found = capture_heads(model, tiny_tokenizer(), statements(), position=position)
        assert found.values.dtype == torch.float32
    last = capture_heads(model, tiny_tokenizer(), statements(), batch_size=1).values
    expected = by_hand(model, "llama", statements()).float()
    torch.testing.assert_close(last, expected, rtol=2**-6, atol=2**-6)  # bfloat16 has 8 bits


def test_the_record_says_how_the_activations_were_made() -> None:
    model, listed = tiny_model("llama-odd-head-dim"), statements()
    found = capture_heads(model, tiny_tokenizer(), listed, position="mean_answer")
    ids = [(tokenize_answer(tiny_tokenizer(), s.text, s.answer_start), s) for s in listed]
    beginnings = {tuple(t.ids[:i]) for t, _ in ids for i in range(1, t.end + 1)}
    n_tokens = found.record["tokens_computed"]
    # every beginning once; less than every statement by itself
    assert len(beginnings) <= n_tokens < sum(t.end for t, _ in ids)
    assert found.record == {
        "model": fingerprint(model), "position": "mean_answer", "site": "heads", "tokens_computed": n_tokens,
    }  # fmt: skip
    assert json.loads(json.dumps(found.record)) == found.record
    assert found.layers == (0, 1, 2)
    assert (found.n_heads, found.d_head) == (4, 10)


def test_the_values_come_free_of_the_forward_for_use_in_any_training() -> None:
    found = capture_heads(tiny_model("llama"), tiny_tokenizer(), statements())
    assert found.values.device.type == "cpu" and not found.values.requires_grad
    weight = torch.ones(12, requires_grad=True)
    (found.values @ weight).sum().backward()
    assert weight.grad is not None and bool(weight.grad.abs().sum() > 0)


def test_the_models_hooks_modes_gradients_and_random_numbers_are_left_as_they_were() -> None:
    model, calls = tiny_model("gpt2").train(), []
    model.transformer.h[1].eval()
    model(prompt_ids(4)).logits.sum().backward()
    model.transformer.h[0].register_forward_hook(lambda *_: calls.append("theirs"))
    hooks, modes = hook_counts(model), [m.training for m in model.modules()]
    before = [(p.clone(), p.grad.clone()) for p in model.parameters()]
    random = torch.random.get_rng_state()
    for site in ("heads", "residual"):
        calls.clear()
        capture_heads(model, tiny_tokenizer(), statements(), site=site)
        assert calls
    assert hook_counts(model) == hooks
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    for p, (weight, grad) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, weight) and torch.equal(p.grad, grad)


def test_a_model_in_training_mode_is_read_without_dropout() -> None:
    model = tiny_model("gpt2")
    expected = capture_heads(model, tiny_tokenizer(), statements()).values
    assert torch.equal(capture_heads(model.train(), tiny_tokenizer(), statements()).values, expected)


@pytest.mark.parametrize("site", ["heads", "residual"])
def test_an_adapted_model_is_read_through_its_wrapper(site: Any) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    plain = capture_heads(model, tiny_tokenizer(), statements(), site=site)
    config = hf_peft.LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False, lora_alpha=8)
    adapted = hf_peft.get_peft_model(model, config).double().eval()
    found = capture_heads(adapted, tiny_tokenizer(), statements(), site=site)
    merged = capture_heads(adapted.merge_and_unload(), tiny_tokenizer(), statements(), site=site)
    assert_equal(found.values, merged.values)
    assert (found.values - plain.values).abs().max() > 0.01


@pytest.mark.parametrize("site", ["heads", "residual"])
def test_a_wrapper_that_adds_tokens_is_refused(site: Any) -> None:
    config = hf_peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    longer = hf_peft.get_peft_model(tiny_model("llama"), config)
    with pytest.raises(Incompatible, match=r"activations of shape \(\d+, \d+, 48\); give the model without what adds"):
        capture_heads(longer, tiny_tokenizer(), statements(), site=site)


def test_an_edited_model_is_read_as_edited() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    plain = capture_heads(model, tiny_tokenizer(), statements()).values
    with add_to_heads(model, {Head(0, 1): delta("llama", 0)}, "all"):
        edited = capture_heads(model, tiny_tokenizer(), statements()).values
        assert_equal(edited, by_hand(model, "llama", statements()))
    moved = (edited - plain).abs().amax((0, 3)) > 0.01
    # the edit's own hook stands before the reading one
    assert moved[0].tolist() == [False, True, False, False]
    assert moved[1:].all()


@pytest.mark.usefixtures("unchecked")
def test_a_compiled_model_gives_what_the_model_inside_gives() -> None:
    model, some = tiny_model("llama", dtype=torch.float64), statements()[:1]  # every length is compiled anew
    expected = capture_heads(model, tiny_tokenizer(), some).values
    assert_equal(capture_heads(torch.compile(model, backend="eager"), tiny_tokenizer(), some).values, expected)


# refusals


def capture(listed: list[Statement] | None = None, **options: Any) -> HeadActivations:
    model = options.pop("model", None) or tiny_model("llama", context=64)
    return capture_heads(model, tiny_tokenizer(), statements()[3:4] if listed is None else listed, **options)


def test_no_statements_are_refused() -> None:
    with pytest.raises(BadDataset, match="no statements to capture activations for"):
        capture([])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("given", "name"), [(tiny_questions(2), "Question"), (["a text"], "str")])
def test_what_are_no_statements_is_refused_by_name(given: Any, name: str) -> None:
    with pytest.raises(BadDataset, match=f"expected statements, got a {name}; make them"):
        capture(given)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"position": "first"}, "position must be 'last' or 'mean_answer', got 'first'"),
        ({"site": "mlp"}, "site must be 'heads' or 'residual', named heads or a Site, got 'mlp'"),
    ],
)
def test_an_unknown_position_or_site_is_refused_with_the_known_ones(options: dict[str, str], words: str) -> None:
    with pytest.raises(BadValue, match=words):
        capture(**options)


def test_a_site_of_ones_own_is_captured_like_the_known_ones() -> None:
    model = tiny_model("llama")
    projections = [layer.mlp.down_proj for layer in model.model.layers]

    def places(_: Any) -> Places:
        return Places((0, 1, 2), tuple(projections), (1, projections[0].in_features))

    found = capture_heads(model, tiny_tokenizer(), statements(), site=Site("mlp keys", on_inputs, places))
    seen: list[Tensor] = []
    with on_inputs([(module, lambda x: seen.append(x[0, -1].clone())) for module in projections]), torch.no_grad():
        for statement in statements():
            model(torch.tensor([tiny_tokenizer()(statement.text)["input_ids"]]))
    expected = torch.stack(seen).reshape(len(statements()), 3, 1, -1)
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-5)
    assert found.record["site"] == "mlp keys"


def test_a_statement_longer_than_the_context_is_refused_by_name() -> None:
    long = Statement("Q: " + "z" * 80, "zz", True, "g")
    with pytest.raises(BadValue, match=r"does not fit the model's context of 64: 'Q: zzzz"):
        capture([*statements()[3:4], long])


def test_an_answer_without_tokens_is_refused() -> None:
    with pytest.raises(BadValue, match="no answer token"):
        capture([Statement("Q: x", "", True, "g")])


def test_a_batch_size_of_zero_is_refused() -> None:
    with pytest.raises(BadValue, match="batch_size must be at least 1, got 0"):
        capture(batch_size=0)


def broken(part: str, layer: int = 1, value: float = float("nan")) -> Any:
    model = tiny_model("llama", context=64)
    with torch.no_grad():
        model.model.layers[layer].get_submodule(part).weight.view(-1)[5] = value
    return model


@pytest.mark.parametrize(
    ("part", "site", "words"),
    [
        ("self_attn.v_proj", "heads", "layer 1 gives NaN"),
        ("input_layernorm", "heads", "layer 1 gives NaN"),
        # what breaks after a layer's heads shows in the heads of the next
        ("self_attn.o_proj", "heads", r"layer\(s\) 2: they come from layer 2 or from right before it;"),
        ("mlp.down_proj", "heads", r"layer\(s\) 2: they come from layer 2 or from right before it;"),
        ("self_attn.o_proj", "residual", r"layer\(s\) 1, 2: they come from layer 1;"),
        ("mlp.down_proj", "residual", r"layer\(s\) 1, 2: they come from layer 1;"),
    ],
)
def test_weights_that_are_nan_are_refused_with_the_layer(part: str, site: Any, words: str) -> None:
    with pytest.raises(BadValue, match=words):
        capture(model=broken(part), site=site)


def test_infinite_activations_are_refused_like_nan() -> None:
    with pytest.raises(BadValue, match="layer 1 gives NaN or infinite values"):
        capture(model=broken("self_attn.v_proj", value=float("inf")))


def test_a_model_without_findable_heads_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="Linear has no transformers config"):
        capture_heads(torch.nn.Linear(2, 2), tiny_tokenizer(), statements())


def test_layers_that_are_not_called_as_modules_are_an_error() -> None:
    model = tiny_model("llama", context=64)
    layer = model.model.layers[2]
    layer.__class__ = type("Fused", (type(layer),), {"__call__": lambda self, x, **options: self.forward(x, **options)})
    with pytest.raises(Incompatible, match=r"nothing was read in layer\(s\) \[2\]: .* use the uncompiled model"):
        capture(model=model, site="residual")


@pytest.mark.parametrize("n", [4, 40])
def test_no_forward_holds_more_than_the_token_budget_whatever_the_number_of_statements(n: int) -> None:
    model, sizes = tiny_model("llama"), []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[:2].numel()))
    capture_heads(model, tiny_tokenizer(), tiny_questions(n).statements(), token_budget=300)
    assert max(sizes) <= 300
    assert n == 4 or len(sizes) > 10


def test_what_follows_the_last_read_runs_in_the_first_forward_only() -> None:
    model, runs = tiny_model("llama"), {0: 0, N_LAYERS - 1: 0}
    for layer in runs:
        model.model.layers[layer].mlp.register_forward_hook(lambda *_, i=layer: runs.update({i: runs[i] + 1}))
    listed = [Statement(f"Q: {word}?\nA:", "The sky.", True, word) for word in ("What", "Who", "Is it snow", "Why")]
    capture_heads(model, tiny_tokenizer(), listed)  # the first time, the model is tried out too
    runs.update(dict.fromkeys(runs, 0))
    found = capture_heads(model, tiny_tokenizer(), listed, batch_size=1)
    assert runs[0] - runs[N_LAYERS - 1] == len(listed) - 1
    assert_equal(found.values, by_hand(model, "llama", listed))


def test_a_projection_that_is_called_again_is_read_again_in_every_forward() -> None:
    model, listed = tiny_model("llama"), tiny_questions(4).statements()
    projection = model.model.layers[-1].self_attn.o_proj
    model.model.norm.register_forward_pre_hook(lambda _, args: projection(args[0][..., : projection.in_features]) * 0)
    found = capture_heads(model, tiny_tokenizer(), listed, batch_size=1)
    assert_equal(found.values, capture_heads(model, tiny_tokenizer(), listed).values, tolerance=1e-5)


def test_what_is_kept_of_a_forward_does_not_grow_with_the_texts() -> None:
    model, held = tiny_model("llama", context=2000), []
    gathered = _Gather.stacked

    def spy(self: Any) -> Tensor:
        held.append(sum(t.untyped_storage().nbytes() for t in self.read))
        return gathered(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Gather, "stacked", spy)
        for words in (5, 200):
            capture_heads(model, tiny_tokenizer(), [Statement("Q: " + "sky " * words, "blue", True, "g")] * 2)
    assert held[0] == held[1]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_fetched_beside_the_next_forward_are_those_of_one_forward_a_row(dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr("trimtab.engine.staging.CHUNK", 4096)  # several chunks for every batch
    model, listed = tiny_model(dtype=dtype).cuda(), tiny_questions(40).statements()
    found = capture_heads(model, tiny_tokenizer(), listed, token_budget=200)
    single = capture_heads(model, tiny_tokenizer(), listed, batch_size=1)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found.values, single.values, rtol=tolerance, atol=tolerance)
