"""The training run: what is learned, that it is learned exactly, and that nothing fails silently."""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from tests.observing import state_of
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from tests.tuning import METHODS, QUICK, default_of, fitted, on, quantised
from trimtab import peft, progress
from trimtab.datasets import SftExample
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadDataset, BadValue, Incompatible
from trimtab.evaluate import multiple_choice
from trimtab.peft.methods.full import require_room_on_cpu
from trimtab.peft.parts.attached import Trained
from trimtab.peft.train.checks import GradientCheck
from trimtab.peft.train.examples import IGNORED, Batches, Collator, encode_examples, first_fit
from trimtab.peft.train.masters import Masters
from trimtab.peft.train.memory import estimate_memory, require_memory
from trimtab.peft.train.packing import packs_exactly
from trimtab.peft.train.plan import make_plan
from trimtab.peft.train.trainer_run import _require_scalable, n_steps
from trimtab.peft.train.training import Tuned, signed_loss

PAIRS = [SftExample(f"Q: What is {i}?\nA:", " " + "yes " * (1 + 3 * i % 7)) for i in range(8)]


def batch_of(model, recipe=QUICK, *, packing=False, pairs=PAIRS):
    data = encode_examples(model, tiny_tokenizer(), pairs, recipe)
    return Collator(0, packing)([data[i] for i in range(len(data))])


def loss_and_gradients(attached, batch):
    """The Trainer's loss, written out."""
    model = Tuned(attached)
    inputs = {k: batch[k] for k in ("input_ids", "position_ids", "attention_mask", "columns") if k in batch}
    labels = batch["labels"][:, batch["columns"]]
    chosen = labels != IGNORED
    logits = model(**inputs)[chosen]
    loss = signed_loss(logits, labels[chosen]) / chosen.sum()
    for parameter in attached.trainable().values():
        parameter.grad = None
    loss.backward()
    return loss.detach(), {k: p.grad.clone() for k, p in attached.trainable().items()}


def moved(attached):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in attached.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return attached


# --- what is learned ------------------------------------------------------------------------------------------------


def test_labels_are_the_completion_and_the_end_token_by_position():
    tokenizer, model = tiny_tokenizer(), tiny_model()
    batch = batch_of(model)
    for row, pair in enumerate(PAIRS):
        labels = batch["labels"][row]
        assert tokenizer.decode(labels[labels != IGNORED]) == pair.completion + tokenizer.eos_token
        # each label is the token that stands one place later
        places = (labels != IGNORED).nonzero()[:, 0]
        last = int(batch["attention_mask"][row].sum()) - 1
        assert torch.equal(batch["input_ids"][row, places + 1], labels[places])
        assert int(places[-1]) == last - 1
    assert batch["n_tokens"] == int(batch["attention_mask"].sum())
    # padding on the left would be rows of queries that see nothing, which GPU kernels turn into NaN gradients
    assert bool(batch["attention_mask"][:, 0].all())


def test_a_pad_token_that_is_the_end_token_hides_no_label():
    tokenizer = tiny_tokenizer(pad=False)
    data = encode_examples(tiny_model(), tokenizer, PAIRS, QUICK)
    labels = Collator(tokenizer.eos_token_id, packing=False)([data[i] for i in range(len(data))])["labels"]
    assert [int((row == tokenizer.eos_token_id).sum()) for row in labels] == [1] * len(PAIRS)


def test_answers_are_learned_in_the_form_in_which_they_are_measured():
    model, tokenizer, questions = tiny_model(), tiny_tokenizer(), tiny_questions(3)
    end = tokenizer.eos_token
    measured = [
        (tokenizer.bos_token + row.prompt, f" {answer.text}{end}")
        for row in multiple_choice(model, tokenizer, questions).rows
        for answer in row.answers
        if answer.label
    ]
    learned = encode_examples(model, tokenizer, questions, QUICK).encoded
    assert [(tokenizer.decode(e.ids[: e.start]), tokenizer.decode(e.ids[e.start :])) for e in learned] == measured


def test_examples_are_tokenised_together_as_each_alone():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    together = encode_examples(model, tokenizer, tiny_questions(3), QUICK).encoded
    alone = [encode_examples(model, tokenizer, tiny_questions(3)[i : i + 1], QUICK).encoded for i in range(3)]
    assert together == tuple(one for some in alone for one in some)
    assert len({len(one.ids) for one in together}) > 1


@pytest.mark.parametrize("completion", ["", "  "])
def test_an_example_without_a_token_to_learn_is_named(completion):
    pairs = [*PAIRS[:2], SftExample("Q: Why?\nA:", completion)]
    with pytest.raises(BadDataset, match=r"example 3 \('Q: Why\?.*no token to learn"):
        METHODS["lora"].fit(tiny_model(), tiny_tokenizer(), pairs)


def test_no_examples_and_too_long_ones_are_refused():
    with pytest.raises(BadDataset, match="no examples to tune on"):
        METHODS["lora"].fit(tiny_model(), tiny_tokenizer(), [])
    with pytest.raises(BadDataset, match=r"example 2 .* more than the 20 that fit"):
        METHODS["lora"].fit(tiny_model(), tiny_tokenizer(), PAIRS[:2], knobs={"max_length": 20})


def test_the_sft_of_the_iti_paper_takes_false_answers_with_their_sign_and_plain_text():
    recipe = replace(QUICK, objective="true_and_false")
    data = encode_examples(tiny_model(), tiny_tokenizer(), tiny_questions(3), recipe)
    signs = [e.sign for e in data.encoded]
    assert (signs.count(1), signs.count(-1)) == (6 + 3, 6)
    assert [e.start for e in data.encoded[-3:]] == [1, 1, 1]
    with pytest.raises(BadValue, match="needs questions with false answers"):
        encode_examples(tiny_model(), tiny_tokenizer(), PAIRS, recipe)


def test_the_sft_of_the_iti_paper_moves_towards_true_and_away_from_false_answers():
    model, questions = tiny_model(), tiny_questions(4)
    edit = METHODS["lora"].fit(
        model,
        tiny_tokenizer(),
        questions,
        knobs={"objective": "true_and_false", "max_steps": 40, "learning_rate": 0.03, "batch_size": 10},
    )

    def gap(one):
        rows = multiple_choice(model, tiny_tokenizer(), questions, one).rows
        return sum((a.logprob if a.label else -a.logprob) for row in rows for a in row.answers)

    assert gap(edit) > gap(NoEdit()) + 5


def test_moving_away_is_bounded_and_moving_towards_is_cross_entropy():
    logits = torch.tensor([[100.0, 0.0], [0.0, 0.0]], requires_grad=True)
    towards = signed_loss(logits, torch.tensor([0, 0]))
    assert torch.equal(towards, signed_loss(logits, torch.tensor([0, 0]), torch.tensor([1.0, 1.0])))
    assert float(towards.detach()) == pytest.approx(math.log(2), abs=1e-5)
    away = signed_loss(logits, torch.tensor([0, 0]), torch.tensor([-1.0, -1.0]))
    away.backward()
    assert math.isfinite(float(away.detach())) and bool(logits.grad.isfinite().all())


# --- exactness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gemma2", "gpt-neox"])
def test_the_loss_on_labelled_positions_equals_hugging_faces_loss_on_whole_rows(family):
    model = tiny_model(family)
    attached = moved(METHODS["lora"].attach(model, seed=0))
    batch = batch_of(model)
    loss, gradients = loss_and_gradients(attached, batch)
    whole = torch.full_like(batch["labels"], IGNORED)
    whole[:, 1:] = batch["labels"][:, :-1]
    given = {k: batch[k] for k in ("input_ids", "position_ids", "attention_mask")}
    expected = attached.model(**given, labels=whole, use_cache=False).loss
    for parameter in attached.trainable().values():
        parameter.grad = None
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for name, parameter in attached.trainable().items():
        assert torch.allclose(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_the_head_runs_on_labelled_columns_only():
    model = tiny_model()
    attached, batch, widths = METHODS["lora"].attach(model, seed=0), batch_of(tiny_model()), []
    handle = model.lm_head.register_forward_hook(lambda m, args, out: widths.append(out.shape[1]))
    loss_and_gradients(attached, batch)
    handle.remove()
    assert widths == [len(batch["columns"])]
    assert widths[0] < batch["input_ids"].shape[1]


@on(("llama-gqa", "gpt2", "gemma2"), [n for n, m in METHODS.items() if m.capabilities.packing])
def test_packed_rows_give_the_loss_and_gradients_of_padded_ones(name, family):
    if name == "peft vera" and family == "gpt2":
        pytest.skip("VeRA needs targets of one shape")
    model = tiny_model(family)
    assert packs_exactly(model)
    attached = moved(METHODS[name].attach(model, seed=0))
    padded, packed = batch_of(model), batch_of(model, packing=True)
    assert packed["input_ids"].shape[0] < padded["input_ids"].shape[0]
    loss, gradients = loss_and_gradients(attached, padded)
    packed_loss, packed_gradients = loss_and_gradients(attached, packed)
    assert float(packed_loss) == pytest.approx(float(loss), rel=1e-5)
    for key, gradient in gradients.items():
        assert torch.allclose(packed_gradients[key], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
    attached.detach()


def test_a_model_whose_attention_mixes_packed_rows_is_found_out(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    assert not packs_exactly(model)
    with pytest.raises(BadValue, match="mixes examples that share a row"):
        fitted("lora", model, packing=True)
    assert not fitted("lora", model).record["plan"]["packing"]


def test_first_fit_keeps_every_item_once_and_no_row_too_wide():
    lengths = [5, 9, 1, 3, 3, 8, 2, 9]
    rows = first_fit(lengths)
    assert sorted(i for row in rows for i in row) == list(range(8))
    assert max(sum(lengths[i] for i in row) for row in rows) == 9
    assert len(rows) < len(lengths)


@pytest.mark.parametrize("packing", [True, False])
def test_accumulated_micro_batches_equal_one_large_batch(packing):
    model = tiny_model("llama-gqa", dtype=torch.float64)
    whole = fitted("lora", model, packing=packing)
    parts = fitted("lora", model, packing=packing, micro_batch=2)
    single = fitted("lora", model, packing=packing, batch_size=2)  # the control: another batch is another result
    for key, tensor in whole.tensors.items():
        assert torch.allclose(parts.tensors[key], tensor, rtol=1e-3, atol=1e-5)
    assert any(not torch.allclose(single.tensors[k], t, rtol=1e-2, atol=1e-3) for k, t in whole.tensors.items())
    assert parts.record["losses"] == pytest.approx(whole.record["losses"], rel=1e-4)


def test_checkpointing_gives_the_same_result_and_is_switched_off_again():
    model = tiny_model("llama-gqa")
    before = state_of(model)
    plain, checkpointed = fitted("lora", model), fitted("lora", model, checkpointing=True)
    for key, tensor in plain.tensors.items():
        assert torch.allclose(checkpointed.tensors[key], tensor, rtol=1e-4, atol=1e-6)
    assert state_of(model) == before
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("name", default_of("lora"))
def test_autocast_trains_close_to_full_precision(name):
    model = tiny_model()
    full, half = (fitted(name, model, precision=p, learning_rate=0.005) for p in (None, "bf16"))
    assert half.record["losses"] == pytest.approx(full.record["losses"], rel=0.02)
    assert half.record["losses"] != full.record["losses"]


@pytest.mark.parametrize("name", default_of("lora qv", "ia3", "houlsby", "heads", "prompt", "prefix mlp", "full"))
def test_every_method_learns_and_leaves_the_model_as_it_was(name):
    model = tiny_model("llama-gqa")
    random, before = torch.random.get_rng_state(), state_of(model)
    edit = fitted(name, model, max_steps=10, learning_rate=max(METHODS[name].learning_rate, 1e-3))
    assert edit.record["losses"][-1] < edit.record["losses"][0]
    assert state_of(model) == before
    assert torch.equal(torch.random.get_rng_state(), random)
    assert edit.cost.trainable_parameters == METHODS[name].parameter_count(model.config)
    assert edit.record["examples_seen"] == 60 and edit.record["tokens_seen"] > 0
    assert {"prepare", "train"} <= set(edit.record["seconds"])
    assert edit.record["peak_bytes"]["process resident"] > 0


def test_the_same_seed_gives_the_same_edit_and_another_seed_another():
    model = tiny_model()
    one, again, other = fitted("lora", model), fitted("lora", model), fitted("lora", model, seed=1)
    assert all(torch.equal(one.tensors[k], again.tensors[k]) for k in one.tensors)
    assert any(not torch.equal(one.tensors[k], other.tensors[k]) for k in one.tensors)


# --- nothing fails silently -------------------------------------------------------------------------------------------


def test_the_plan_says_what_will_be_trained_on_what():
    model, method = tiny_model("llama-gqa"), METHODS["lora qv"]
    data = encode_examples(model, tiny_tokenizer(), tiny_questions(6), QUICK)
    attached = method.attach(model, seed=0)
    plan = make_plan(
        method, attached, tiny_tokenizer(), Batches(data, Collator(0, True)), steps=n_steps(len(data), QUICK)
    )
    attached.detach()
    assert plan.coverage["q_proj"] == (3, 3) and plan.coverage["k_proj"] == (0, 3)
    assert plan.n_trainable == method.parameter_count(model.config)
    assert plan.n_total == model.num_parameters()
    assert plan.bytes_on_disk == 4 * plan.n_trainable
    assert plan.n_labelled == sum(e.n_labelled for e in data.encoded)
    assert "A:⟦ The colour is number 0.<eos>⟧" in plan.example
    text = plan.to_text()
    assert "q_proj 3/3, v_proj 3/3" in text and "k_proj" not in text


def test_the_estimate_of_memory_is_the_arithmetic_of_its_parts():
    """Of a tiny LLaMA in float32; 8 rows of 64 tokens with logits at 16 of them."""
    model, recipe = tiny_model(), replace(QUICK, batch_size=8)
    config = model.config
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    given = {"length": 64, "columns": 16}
    found = estimate_memory(model, Trained(1000), recipe, **given)
    assert found.weights == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert (found.gradients, found.optimizer) == (4 * 1000, 2 * 4 * 1000)
    assert found.activations == layers * 8 * 64 * (8 * width + 4 * inner) * 4
    assert found.logits == 8 * 16 * config.vocab_size * (4 + 4 + 4)
    assert found.total == found.weights + found.added and found.untuned == 0
    half = estimate_memory(model, Trained(1000), replace(recipe, micro_batch=4, precision="bf16"), **given)
    cast = found.weights // 2  # autocast's copies of the weights
    assert (half.activations - cast) * 4 == found.activations and half.weights == found.weights
    both = replace(recipe, micro_batch=4, precision="bf16", checkpointing=True)
    assert estimate_memory(model, Trained(1000), both, **given).activations < half.activations - cast
    checkpointed = estimate_memory(model, Trained(1000), replace(recipe, checkpointing=True), **given)
    assert checkpointed.activations == found.activations // layers + layers * 8 * 64 * width * 4
    eight = estimate_memory(model, Trained(1000), replace(recipe, optimizer="paged_adamw_8bit"), **given)
    assert eight.optimizer == 2 * 1000


def test_weights_that_are_held_twice_are_counted():
    model, data = tiny_model(), encode_examples(tiny_model(), tiny_tokenizer(), tiny_questions(6), QUICK)
    weights = sum(p.nbytes for p in model.parameters())
    top = sum(p.nbytes for layer in model.model.layers[-2:] for p in layer.parameters())
    plans = {}
    for name in ("lora", "full", "top 2", "intrinsic"):
        attached = METHODS[name].attach(model, seed=0)
        plans[name] = make_plan(METHODS[name], attached, tiny_tokenizer(), Batches(data, Collator(0, False)), steps=4)
        attached.detach()
    found = {name: plan.memory for name, plan in plans.items()}
    assert [found[n].untuned for n in ("lora", "full", "top 2", "intrinsic")] == [0, weights, top, 0]
    assert found["full"].total == found["full"].weights + weights + found["full"].added
    assert found["intrinsic"].activations == found["full"].activations + weights
    on_gpu = replace(found["full"], on_cpu=False)
    assert on_gpu.total == found["full"].total - weights
    words = {replace(plans["full"], memory=on_gpu).to_text(), plans["full"].to_text(), plans["lora"].to_text()}
    assert sum("untuned" in text for text in words) == 2 and sum("not counted" in text for text in words) == 1
    with pytest.raises(BadValue, match=r"keeping the untuned weights takes .* are free; tune fewer"):
        require_room_on_cpu(weights, free=weights - 1)


def test_gradients_and_adam_take_the_dtype_of_what_is_trained():
    half = tiny_model(dtype=torch.bfloat16)
    attached = METHODS["full"].attach(half, seed=0)
    trained = attached.trained()
    optimizer = torch.optim.AdamW(attached.trainable().values())
    masters = Masters(attached.trainable())
    masters.take_over(optimizer)
    half(input_ids=torch.ones(1, 4, dtype=torch.long), use_cache=False).logits.float().sum().backward()
    gradients = sum(p.grad.nbytes for p in attached.trainable().values())
    optimizer.step()
    moments = sum(t.nbytes for t in masters.tensors().values())
    moments += sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.ndim)
    attached.detach()
    found = estimate_memory(half, trained, QUICK, length=8, columns=4)
    assert (found.gradients, found.optimizer) == (gradients, moments)


def test_the_estimate_counts_the_scales_of_quantised_weights(tmp_path):
    model = quantised(tmp_path / "m", "llama", "nf4")
    found = estimate_memory(model, Trained(1000), QUICK, length=8, columns=4).weights
    stored = sum(
        p.nbytes + (p.quant_state.absmax.nbytes if hasattr(p, "quant_state") else 0) for p in model.parameters()
    )
    assert found == stored + sum(b.nbytes for b in model.buffers())


def test_the_estimate_of_activations_and_logits_is_near_what_autograd_keeps():
    """Tensors kept for the backward pass of a LoRA step, counted as autograd saves them, are within a factor of two."""
    model, recipe, kept = tiny_model(), replace(QUICK, batch_size=len(PAIRS)), {}
    attached, batch = METHODS["lora"].attach(model, seed=0), batch_of(tiny_model())
    weights = {p.untyped_storage().data_ptr() for p in attached.model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_and_gradients(attached, batch)
    attached.detach()
    length, columns = batch["input_ids"].shape[1], len(batch["columns"])
    wanted = estimate_memory(model, Trained(1000), recipe, length=length, columns=columns)
    assert 0.5 < (wanted.activations + wanted.logits) / sum(kept.values()) < 2


def test_too_little_memory_says_what_would_fit():
    model = tiny_model()
    recipe = replace(QUICK, batch_size=16)
    wanted = estimate_memory(model, Trained(1000), recipe, length=64, columns=16)
    quarter = estimate_memory(model, Trained(1000), replace(recipe, micro_batch=4), length=64, columns=16)
    given = {"length": 64, "columns": 16}
    assert require_memory(model, Trained(1000), recipe, free=wanted.added, **given) == wanted
    with pytest.raises(BadValue, match=r"about .* are free; micro_batch=4 would fit"):
        require_memory(model, Trained(1000), recipe, free=quarter.added, **given)
    with pytest.raises(BadValue, match="no smaller micro_batch would fit"):
        require_memory(model, Trained(1000), recipe, free=1000, **given)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    model = tiny_model()
    before = state_of(model)
    with pytest.raises(BadValue, match=r"the loss of step \d+ is (nan|inf)") as stopped:
        fitted("full", model, out=tmp_path / "run", learning_rate=1e30, max_steps=8, save_every=1, warmup=0.5)
    step, last = (int(re.findall(rf"{word}(\d+)", str(stopped.value))[0]) for word in ("step ", "checkpoint-"))
    # the newest one holds the very weights that gave that loss
    assert last == step - 2
    assert (tmp_path / f"run/checkpoint-{step - 1}/complete.json").is_file()
    assert state_of(model) == before


@pytest.mark.parametrize(("variable", "engine"), [
    ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
])  # fmt: skip
def test_a_launch_under_an_engine_of_its_own_is_refused(monkeypatch, variable, engine):
    model = tiny_model()
    before = state_of(model)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(BadValue, match=rf"tuning does not run under {engine}: launch with FSDP.*torchrun"):
        fitted("lora", model)
    assert state_of(model) == before


def test_a_pipe_is_told_how_many_steps_are_done(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    made = peft.LoRA(r=2, recipe=replace(QUICK, max_steps=4)).fit(tiny_model(), tiny_tokenizer(), PAIRS)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trimtab: training: ")]
    assert made.record["steps"] == 4 and [line.split(",")[0].split(": ")[-1] for line in told] == [
        "1 of 4", "2 of 4", "3 of 4",
    ]  # fmt: skip


def test_weight_decay_leaves_the_models_norms_and_biases_alone(tmp_path):
    from trimtab.peft.train.trainer_run import make_trainer

    model = tiny_model("gpt2")
    method = peft.FullFineTuning(recipe=replace(QUICK, weight_decay=0.1))
    attached = method.attach(model, seed=0)
    data = encode_examples(model, tiny_tokenizer(), PAIRS, method.recipe)
    trainer = make_trainer(attached, method, Batches(data, Collator(0, False)), folder=tmp_path, keep=False)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared = ([names[id(p)] for p in g["params"]] for g in trainer.create_optimizer().param_groups)
    assert spared and all(name.endswith("bias") or ".ln_" in name for name in spared)
    assert decayed and not any(name.endswith("bias") or ".ln_" in name for name in decayed)
    attached.detach()


def test_gradients_that_are_not_numbers_stop_the_run_before_a_checkpoint_has_them(tmp_path, monkeypatch):
    """As those of fully masked rows on some GPU kernels: the loss of that step is a number still."""
    from trimtab.peft.train.training import TuningTrainer

    model, original = tiny_model(), TuningTrainer.training_step
    before = state_of(model)

    def poisoned(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        if self.state.global_step == 2:
            next(iter(self.attached.trainable().values())).grad.view(-1)[0] = math.nan
        return loss

    monkeypatch.setattr(TuningTrainer, "training_step", poisoned)
    message = r"loss of step 3 is a number but its gradients are not.*last good checkpoint is .*checkpoint-2"
    with pytest.raises(BadValue, match=message):
        fitted("lora", model, out=tmp_path / "run", save_every=1)
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "run/checkpoint-2/trimtab.safetensors")
    assert all(bool(t.isfinite().all()) for t in kept.values())
    assert state_of(model) == before


def test_fp16_is_refused_where_it_cannot_be_scaled(monkeypatch):
    model = tiny_model()
    before = state_of(model)
    with pytest.raises(BadValue, match='"fp16" needs a GPU'):
        fitted("lora", model, precision="fp16")
    assert state_of(model) == before
    # as on a GPU: parts in float32 may, weights in 16 bits may not
    for dtype, (name, refused) in product(("float16", "bfloat16"), (("lora", False), ("full", True))):
        attached = METHODS[name].attach(tiny_model(dtype=getattr(torch, dtype)), seed=0)
        with pytest.raises(BadValue, match=f"cannot train weights that are {dtype}") if refused else nullcontext():
            _require_scalable(attached, torch.device("cuda"))
        attached.detach()


def test_a_part_without_gradient_is_named_by_the_third_step():
    idle = torch.nn.Parameter(torch.zeros(3))
    used = torch.nn.Parameter(torch.zeros(3))
    used.grad = torch.ones(3)
    check = GradientCheck({"idle": idle, "used": used, "layers.0.experts.7.up": idle})

    class State:
        global_step = 0

    class Args:
        fp16 = False

    for step in (1, 2):
        check.on_pre_optimizer_step(Args, State, None)
        State.global_step = step
        check.on_step_end(Args, State, None)
    check.on_pre_optimizer_step(Args, State, None)
    State.global_step = 3
    with pytest.raises(BadValue, match="1 trainable tensors have had no gradient after 3 steps, idle"):
        check.on_step_end(Args, State, None)


def test_a_disconnected_target_is_caught_in_a_real_run(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(
        "trimtab.peft.methods.bottleneck.BottleneckModule.forward", lambda self, x: x + 0 * self.up.bias.sum()
    )
    with pytest.raises(BadValue, match="no gradient after 3 steps"):
        fitted("pfeiffer", model)


def test_a_run_too_short_for_the_check_warns_of_what_had_no_gradient_and_refuses_to_have_learned_nothing(monkeypatch):
    """B starts at zero, and the first of two steps has a learning rate of 0: A has no gradient yet."""
    model = tiny_model()
    with pytest.warns(UserWarning, match=r"21 of 42 trainable tensors have had no gradient in 2 steps, .*lora_A"):
        edit = fitted("lora", model, max_steps=2)
    assert any(bool(t.any()) for name, t in edit.tensors.items() if "lora_B" in name)
    monkeypatch.setattr(
        "trimtab.peft.methods.bottleneck.BottleneckModule.forward", lambda self, x: x + 0 * self.up.bias.sum()
    )
    with pytest.raises(BadValue, match=r"12 of 12 trainable .* in 1 steps: nothing was learned"):
        fitted("pfeiffer", model, max_steps=1)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_rises_over_the_warm_up_and_one_step_is_not_all_warm_up(schedule, tmp_path):
    from trimtab.peft.train.trainer_run import make_trainer

    model = tiny_model()
    data = encode_examples(model, tiny_tokenizer(), PAIRS, QUICK)
    rates = {}
    for steps in (1, 8):
        recipe = replace(QUICK, schedule=schedule, warmup=0.5, max_steps=steps)
        attached = METHODS["lora"].attach(model, seed=0)
        method = replace(METHODS["lora"], recipe=recipe)
        trainer = make_trainer(attached, method, Batches(data, Collator(0, False)), folder=tmp_path, keep=False)
        trainer.create_optimizer_and_scheduler(steps)
        rates[steps] = [trainer.lr_scheduler.get_last_lr()[0] / recipe.learning_rate]
        for _ in range(steps - 1):
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
            rates[steps].append(trainer.lr_scheduler.get_last_lr()[0] / recipe.learning_rate)
        attached.detach()
    assert rates[1] == [1]
    assert rates[8][:5] == [0, 0.25, 0.5, 0.75, 1]
    assert all(0 < rate <= 1 for rate in rates[8][5:]) and (rates[8][-1] == 1) == (schedule == "constant")


def test_full_and_intrinsic_tuning_refuse_4_bit_weights_by_name(tmp_path):
    model = quantised(tmp_path / "m", "llama")
    for name in ("full", "intrinsic"):
        with pytest.raises(BadValue, match=f"{METHODS[name].name} cannot run on 4-bit weights"):
            fitted(name, model)


def test_unknown_knobs_and_bad_recipes_are_refused():
    with pytest.raises(BadValue, match="no knob 'ranks'; choose among r, alpha"):
        METHODS["lora"].with_knobs({"ranks": 3})
    assert METHODS["lora"].with_knobs({"r": 2, "epochs": 1}).recipe.epochs == 1
    for bad in ({"epochs": 0}, {"micro_batch": 3}, {"schedule": "square"}, {"warmup": 1.0}, {"precision": "int8"}):
        with pytest.raises(BadValue):
            peft.Recipe(**bad)
    free, named = (replace(METHODS["lora"], recipe=peft.Recipe(learning_rate=rate)) for rate in (None, 5e-3))
    assert [k["learning_rate"] for k in free.grid] == pytest.approx([5e-4 / 3, 5e-4, 1.5e-3])
    assert list(named.grid) == [{}]  # what is named is taken, and nothing else tried


# --- resuming ---------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def _stop_after(monkeypatch, step):
    from trimtab.peft.train.training import TuningTrainer

    original = TuningTrainer.training_step

    def stopped(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(TuningTrainer, "training_step", stopped)


def test_small_steps_of_16_bit_weights_add_up_as_in_float32():
    start = torch.randn(64, generator=torch.Generator().manual_seed(0))
    half, other = nn.Parameter(start.bfloat16()), nn.Parameter(start.double())
    exact = nn.Parameter(half.detach().float())
    alone = nn.Parameter(half.detach().clone())
    masters = Masters({"half": half, "other": other})
    assert set(masters.tensors()) == {"half"}
    optimizers = [torch.optim.AdamW([p], lr=2e-5) for p in (half, exact, alone)]
    masters.take_over(optimizers[0])
    gradient = torch.randn(64, generator=torch.Generator().manual_seed(1)).bfloat16()
    for _ in range(200):
        for parameter, optimizer in zip((half, exact, alone), optimizers, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
            optimizer.step()
    assert torch.equal(masters.tensors()["half"], exact)
    assert torch.equal(half, exact.bfloat16())
    assert half.grad is None
    large = start.abs() > 0.1
    assert torch.equal(alone[large], start.bfloat16()[large])  # control: where no step is half of the spacing
    assert not torch.equal(half[large], start.bfloat16()[large])


def test_full_fine_tuning_of_16_bit_weights_learns():
    options = {"max_steps": 12, "batch_size": 4, "learning_rate": 3e-5, "warmup": 0.0, "schedule": "constant"}
    tuned = {dtype: fitted("full", tiny_model(dtype=dtype), **options) for dtype in (torch.float32, torch.bfloat16)}
    before = tiny_model().state_dict()
    moves = {
        dtype: torch.cat([(t.float() - before[k].to(dtype).float()).flatten() for k, t in edit.tensors.items()])
        for dtype, edit in tuned.items()
    }
    exact, half = moves[torch.float32], moves[torch.bfloat16]
    assert float(half @ exact / exact.square().sum()) > 0.5


def test_steps_that_are_lost_are_refused():
    with pytest.raises(
        BadValue, match=r"0 % of the trained numbers moved in step 3: .* raise the learning rate \(it was"
    ):
        fitted("full", tiny_model(), max_steps=4, learning_rate=1e-12)


def test_a_resumed_run_of_16_bit_weights_equals_one_that_was_not_cut_off_to_the_bit(tmp_path, monkeypatch):
    model = tiny_model(dtype=torch.bfloat16)
    options = {"max_steps": 6, "save_every": 2, "batch_size": 4}
    whole = fitted("full", model, **options)
    with monkeypatch.context() as patch:
        _stop_after(patch, 5)
        with pytest.raises(Killed):
            fitted("full", model, out=tmp_path / "run", **options)
    resumed = fitted("full", model, out=tmp_path / "run", **options)
    assert all(torch.equal(whole.tensors[k], resumed.tensors[k]) for k in whole.tensors)
    assert resumed.record["losses"] == whole.record["losses"]


@pytest.mark.parametrize("name", default_of("lora", "full"))
def test_a_resumed_run_equals_one_that_was_not_cut_off_to_the_bit(name, tmp_path, monkeypatch):
    # gpt2 has dropout, so that the random state counts
    model = tiny_model("gpt2" if name != "peft vera" else "llama")
    options = {"max_steps": 6, "save_every": 2, "batch_size": 4}
    whole = fitted(name, model, **options)
    with monkeypatch.context() as patch:
        _stop_after(patch, 5)
        with pytest.raises(Killed):
            fitted(name, model, out=tmp_path / "run", **options)
    resumed = fitted(name, model, out=tmp_path / "run", **options)
    assert all(torch.equal(whole.tensors[k], resumed.tensors[k]) for k in whole.tensors)
    assert resumed.record["losses"] == whole.record["losses"]
    for key in ("tokens_seen", "examples_seen", "steps"):
        assert resumed.record[key] == whole.record[key]


def fitted_until_half_a_checkpoint(run, die):
    """Fit until half of the second checkpoint is written, and die there."""
    from trimtab.peft.train.training import TuningTrainer

    original = TuningTrainer._save_checkpoint

    def cut(self, *args, **kwargs):
        if self.state.global_step == 4:
            self.save_model(str(Path(self.args.output_dir) / "checkpoint-4"), _internal_call=True)
            die()
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TuningTrainer, "_save_checkpoint", cut)
        fitted("lora", tiny_model("gpt2"), out=run, max_steps=6, save_every=2, batch_size=4)


def die():
    raise Killed


@pytest.mark.parametrize("by", ["an exception", pytest.param("kill -9", marks=pytest.mark.slow)])
def test_a_run_that_died_while_it_wrote_a_checkpoint_resumes_to_the_bit(by, tmp_path):
    run = tmp_path / "run"
    if by == "kill -9":
        code = "import os, signal; from tests.tune import test_tuning_training as tests; "
        code += f"tests.fitted_until_half_a_checkpoint({str(run)!r}, lambda: os.kill(os.getpid(), signal.SIGKILL))"
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        with pytest.raises(Killed):
            fitted_until_half_a_checkpoint(run, die)
    assert (run / "checkpoint-4").is_dir() and not (run / "checkpoint-4/complete.json").exists()
    options = {"max_steps": 6, "save_every": 2, "batch_size": 4}
    whole = fitted("lora", tiny_model("gpt2"), **options)
    resumed = fitted("lora", tiny_model("gpt2"), out=run, **options)
    assert all(torch.equal(whole.tensors[k], resumed.tensors[k]) for k in whole.tensors)


@pytest.mark.parametrize(
    ("place", "cause", "words"),
    [
        (
            "trimtab.peft.train.training.save_file",
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            r"step 4 in .* \(No space left on device.*; make room",
        ),
        ("torch.save", RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "make room"),
    ],
)
def test_a_disk_that_fills_while_a_checkpoint_is_written_is_one_sentence_and_the_last_one_serves(
    place, cause, words, tmp_path, monkeypatch
):
    from trimtab.peft.train.training import TuningTrainer

    model, options = tiny_model(), {"max_steps": 6, "save_every": 2, "batch_size": 4}
    original = TuningTrainer._save_optimizer_and_scheduler if place == "torch.save" else TuningTrainer.save_model
    name = original.__name__

    def full(*args, **kwargs):
        raise cause

    def save(self, *args, **kwargs):
        with monkeypatch.context() as patch:
            if self.state.global_step == 4:
                patch.setattr(place, full)
            return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TuningTrainer, name, save)
        with pytest.raises(Incompatible, match=words):
            fitted("lora", model, out=tmp_path / "run", **options)
    resumed, whole = fitted("lora", model, out=tmp_path / "run", **options), fitted("lora", model, **options)
    assert all(torch.equal(whole.tensors[k], resumed.tensors[k]) for k in whole.tensors)


def test_a_folder_with_another_run_is_refused_naming_what_differs(tmp_path):
    model = tiny_model()
    fitted("lora", model, out=tmp_path / "run", save_every=2)
    with pytest.raises(Incompatible, match=r"another specification \(recipe differ"):
        fitted("lora", model, out=tmp_path / "run", save_every=3)
    # a run that kept nothing leaves the place to the next one
    with pytest.raises(BadValue, match="needs a GPU"):
        fitted("lora", model, out=tmp_path / "failed", precision="fp16")
    assert (tmp_path / "failed/record.json").is_file()
    fitted("lora", model, out=tmp_path / "failed")
    # a method that takes two runs keeps them inside, and neither destroys the other's
    heads = peft.HeadOffsets(2, recipe=replace(QUICK, save_every=2))
    with pytest.raises(Incompatible, match="another specification"):
        heads.fit(model, tiny_tokenizer(), tiny_questions(6), out=tmp_path / "run")
    heads.fit(model, tiny_tokenizer(), tiny_questions(6), out=tmp_path / "two")
    with pytest.raises(Incompatible, match="another specification"):
        fitted("lora", model, out=tmp_path / "two")
    (tmp_path / "else").mkdir()
    (tmp_path / "else/notes.txt").write_text("mine")
    with pytest.raises(Incompatible, match="holds something else"):
        fitted("lora", model, out=tmp_path / "else")
