"""Tuning on weights that two processes split (FSDP2, gloo on a CPU) learns what one process learns."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft as hf_peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.models.test_distributed import launched
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tuning import METHODS, QUICK, fitted
from trimtab.errors import BadValue
from trimtab.models.processes import all_or_none
from trimtab.models.twin import is_twin, twin_of
from trimtab.peft import Adapter, TunedEdit
from trimtab.peft.parts.attached import Trained
from trimtab.peft.train.memory import estimate_memory
from trimtab.peft.train.sharding import Sharding

SPLIT = [name for name, method in METHODS.items() if method.capabilities.sharding]
HALF = Sharding(2, torch.device("cpu"), reshard=True, offload=False)


def split(folder: Path, what: str, family: str = "llama-gqa") -> subprocess.CompletedProcess[str]:
    return launched("tests.launched_sharding", 2, str(folder), what, family, by="fsdp")


def found(folder: Path, name: str, rank: int) -> dict[str, Any]:
    return json.loads((folder / name / f"found-{rank}.json").read_text())


def assert_learned(folder: Path, name: str, family: str) -> None:
    """Hold that a split run's losses and numbers are those of one process with the whole batch."""
    alone = fitted(name, tiny_model(family))
    ours, theirs = (found(folder, name, rank) for rank in range(2))
    assert ours == theirs
    assert (ours["steps"], ours["tokens_seen"]) == (alone.record["steps"], alone.record["tokens_seen"])
    assert ours["losses"] == pytest.approx(alone.record["losses"], rel=1e-4)
    for rank in range(2):
        tensors = load_file(folder / name / f"tensors-{rank}.safetensors")
        assert tensors.keys() == alone.tensors.keys()
        for key, values in tensors.items():
            torch.testing.assert_close(values, alone.tensors[key], rtol=1e-3, atol=1e-3)
    assert TunedEdit.load(folder / name / "edit").tensors.keys() == alone.tensors.keys()
    # the control: a run of fewer steps differs by more
    fewer = fitted(name, tiny_model(family), max_steps=2)
    assert max(float((t - fewer.tensors[key]).abs().max()) for key, t in alone.tensors.items()) > 5e-3


def test_split_weights_learn_what_whole_ones_learn(tmp_path: Path) -> None:
    result = split(tmp_path, "full")
    assert result.returncode == 0, result.stderr
    assert_learned(tmp_path, "full", "llama-gqa")


@pytest.mark.slow
def test_a_split_run_resumes_to_the_bit(tmp_path: Path) -> None:
    names = ["full", "lora", "prefix mlp"]
    assert split(tmp_path, ",".join(names)).returncode == 0
    before = {name: load_file(tmp_path / name / "tensors-1.safetensors") for name in names}
    for name in names:
        # cut off between two checkpoints: the last one was not finished
        (tmp_path / name / "run/checkpoint-4/complete.json").unlink()
    assert split(tmp_path, ",".join(names)).returncode == 0
    for name, tensors in before.items():
        again = load_file(tmp_path / name / "tensors-1.safetensors")
        assert all(torch.equal(again[key], values) for key, values in tensors.items()), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gemma2", [name for name in SPLIT if name != "lora qv"]),  # ties its embeddings
        ("gpt-neox", ["lora qv", "full", "prefix"]),  # queries, keys and values in one projection
    ],
)
def test_every_method_that_can_trains_on_split_weights(tmp_path: Path, family: str, names: list[str]) -> None:
    result = split(tmp_path, ",".join(names), family)
    assert result.returncode == 0, result.stderr
    for name in names:
        assert_learned(tmp_path, name, family)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("fsdp", "torchrun"), ("torchrun", "fsdp")])
def test_a_run_goes_on_split_or_whole(tmp_path: Path, first: str, then: str) -> None:
    knobs = json.dumps({"batch_size": 2, "epochs": 2, "save_every": 2})
    assert launched("tests.launched_tuning", 2, str(tmp_path), knobs, "full", by=first).returncode == 0
    before = json.loads((tmp_path / "found-0.json").read_text())
    (tmp_path / "run/checkpoint-6/complete.json").unlink()
    # a witness that it goes on from the other one
    state = tmp_path / "run/checkpoint-4/trainer_state.json"
    held = json.loads(state.read_text())
    held["log_history"][0]["loss"] = 99.0
    state.write_text(json.dumps(held))
    again = launched("tests.launched_tuning", 2, str(tmp_path), knobs, "full", by=then)
    assert again.returncode == 0, again.stderr
    after = json.loads((tmp_path / "found-0.json").read_text())
    assert after["losses"] == pytest.approx([99.0, *before["losses"][1:]], abs=2e-5)
    for name, values in before["tensors"].items():
        torch.testing.assert_close(torch.tensor(after["tensors"][name]), torch.tensor(values), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_what_cannot_be_split_is_refused_and_models_are_loaded_whole(tmp_path: Path) -> None:
    for one in (tiny_model(width=64), tiny_tokenizer()):
        one.save_pretrained(tmp_path / "saved")
    result = split(tmp_path, "refusals")
    assert result.returncode == 0, result.stderr
    said = [json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in range(2)]
    assert said[0] == said[1]
    wanted = {
        "prompt": "Prompt tuning n=5 cannot be trained on weights that are split",
        "four bit": "4-bit weights cannot be split over processes; launch the processes without FSDP",
        "other weights": "the processes hold different weights",
        "optimiser": "optimizer 'adamw_8bit' cannot train weights that are split",
        "precision": "precision 'fp16' cannot train weights that are split",
        "version": "version 1 of FSDP, trimtab shards with version 2: say --fsdp_version 2",
        "checkpointing": "fsdp_activation_checkpointing is the recipe's own matter",
    }
    assert wanted.keys() == said[0].keys()
    for name, words in wanted.items():
        assert words in said[0][name], name
    norms = [json.loads((tmp_path / f"norm-{rank}.json").read_text()) for rank in range(2)]
    assert norms[0] == norms[1] > 0


@pytest.mark.parametrize("name", ["full", "said", "houlsby", "dora"])
def test_a_twin_is_the_models_memory_and_what_is_attached_to_it_is_not_the_models(name: str) -> None:
    model = tiny_model("gpt2")
    parameters, modules = dict(model.named_parameters()), [type(m) for m in model.modules()]
    before = {key: p.detach().clone() for key, p in parameters.items()}
    twin = twin_of(model)
    assert is_twin(twin) and not is_twin(model)
    for key, parameter in twin.named_parameters():
        assert parameter is not parameters[key] and parameter.data_ptr() == parameters[key].data_ptr()
    tied: Any = twin
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    attached = METHODS[name].attach(twin, seed=0)
    assert attached.trained().untuned == 0
    assert all(p is parameters[key] and p.requires_grad for key, p in model.named_parameters())
    assert [type(m) for m in model.modules()] == modules
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


def test_methods_say_whether_they_train_on_split_weights() -> None:
    assert set(METHODS) - set(SPLIT) == {"prompt"}
    types = {True: hf_peft.HiraConfig(r=4), False: hf_peft.TrainableTokensConfig(token_indices=[3])}
    for known, config in types.items():
        assert Adapter(config).capabilities.sharding is known


def test_a_refusal_of_one_process_is_raised_in_every_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all_or_none(lambda: 3) == 3
    monkeypatch.setattr("trimtab.models.processes.from_all", lambda mine: [mine, "too little memory"])
    with pytest.raises(BadValue, match="process 1 of this launch stopped: too little memory"):
        all_or_none(lambda: 3)


def test_without_a_launch_that_asks_for_it_nothing_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert Sharding.asked() is None  # one process
    monkeypatch.setattr("trimtab.peft.train.sharding.rank_and_count", lambda: (0, 2))
    with pytest.raises(BadValue, match="say --fsdp_version 2"):
        Sharding.asked()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert Sharding.asked() is None


def test_a_setting_that_accelerate_cannot_read_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("trimtab.peft.train.sharding.rank_and_count", lambda: (0, 2))
    with pytest.raises(BadValue, match=r"invalid truth value full_shard.*--fsdp_reshard_after_forward true or false"):
        Sharding.asked()


def test_experts_that_are_modules_are_not_trained_on_split_weights() -> None:
    model = tiny_model()
    HALF.require_runs_on(METHODS["full"], model, "found")
    model.model.layers[1].mlp.experts = nn.ModuleList([nn.Linear(4, 4)])
    HALF.require_runs_on(METHODS["lora"], model, "found")
    with pytest.raises(BadValue, match="experts that are modules of their own cannot be trained on weights that are"):
        HALF.require_runs_on(METHODS["full"], model, "found")


def test_the_precision_of_a_run_is_the_recipes_and_not_a_launchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(BadValue, match=r"asks for mixed precision 'bf16', the recipe for none: .*--mixed_precision no"):
        fitted("lora", tiny_model())
    fitted("lora", tiny_model(), precision="bf16", max_steps=1)
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    fitted("lora", tiny_model(), max_steps=1)


def test_the_estimate_counts_a_processes_share() -> None:
    model = tiny_model()
    given: dict[str, Any] = {"length": 32, "columns": 8}
    all_weights = sum(p.numel() for p in model.parameters())
    trained = Trained(all_weights, in_place=True)
    whole, half = (estimate_memory(model, trained, QUICK, sharding=s, **given) for s in (None, HALF))
    assert half.sharded and not whole.sharded
    assert half.gradients == pytest.approx(whole.gradients / 2, rel=1e-3)
    assert half.optimizer == pytest.approx(whole.optimizer / 2, rel=1e-3)
    assert half.activations == whole.activations
    assert whole.weights / 2 < half.weights < 1.6 * whole.weights  # with what is gathered at a time
    assert half.added == half.total and whole.added == whole.total - whole.weights
    kept = estimate_memory(model, trained, QUICK, sharding=replace(HALF, reshard=False), **given)
    assert kept.weights == pytest.approx(1.5 * whole.weights, rel=1e-3)
    # on a GPU the optimiser's step takes as much again as a share, which here is more than the activations
    on_gpu = estimate_memory(model, trained, QUICK, sharding=replace(HALF, device=torch.device("cuda")), **given)
    assert on_gpu.step == half.gradients and half.step == 0
    assert on_gpu.added - half.added == max(0, on_gpu.step - half.activations - half.logits)
    # parts beside the weights are whole in every process
    beside = estimate_memory(model, Trained(1000), QUICK, sharding=HALF, **given)
    assert beside.gradients == 4000
