"""tune, methods and merge on the command line."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.activations import Head
from trimtab.cli import app
from trimtab.cli.method_names import METHODS, TUNING
from trimtab.cli.tune import _parsed
from trimtab.peft import LoRA


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model("llama-gqa", width=64).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    data = folder.parent / "data.jsonl"
    rows = [
        {"question": f"What is {i}?", "correct": [f"It is {i}."], "incorrect": [f"It is {i + 1}."]} for i in range(10)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    return folder, data


def test_a_tuned_adapter_is_written_reported_and_merged(small, tmp_path):
    model, data = small
    made = run(
        "tune", "--model", model, "--data", data, "--rank", 4, "--set", "max_steps=4", "--set", "targets=qv",
        "--out", tmp_path / "lora", "--json",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "⟦ It is" in made.stderr  # the plan, though stderr is no terminal
    record = json.loads(made.stdout)
    assert record["name"] == "LoRA r=4" and record["steps"] == 4 and record["method"]["targets"] == "qv"
    assert set(record["seconds"]) == {"prepare", "train", "load", "evaluate"}
    assert record["measured"]["questions"] == 2
    assert {p.name for p in (tmp_path / "lora").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "record.json",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["lora"]
    measured = run(
        "evaluate", "--model", model, "--data", data, "--edit", tmp_path / "lora", "--choices-only", "--json"
    )
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout)["rows"][0]["name"] == "LoRA r=4"
    asked = ("generate", "What is 3?", "--model", model, "--max-new-tokens", 3, "--json")
    half = run(*asked, "--edit", f"{tmp_path / 'lora'}:0", "--compare")
    assert half.exit_code == 0, half.output
    said = json.loads(half.stdout)
    assert said["edited"] == said["unedited"]
    merged = run("merge", "--edit", tmp_path / "lora", "--model", model, "--out", tmp_path / "merged", "--json")
    assert merged.exit_code == 0, merged.output
    assert json.loads(merged.stdout)["relative"] < 1e-3
    assert (tmp_path / "merged/model.safetensors").is_file()


def test_a_run_on_4_bits_says_what_it_did_in_words(small, tmp_path):
    model, data = small
    made = run(
        "tune", "--model", model, "--data", data, "--method", "pfeiffer", "--quantization", "nf4-dq", "--epochs", 1,
        "--test", 0, "--out", tmp_path / "p",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    for words in (
        "Pfeiffer adapter w=16:",
        "steps are few, and what was learned may not show",
        "seconds: prepare",
        "peak memory: process",
        "a generated token",
        "Written to",
    ):
        assert words in made.output


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("learning_rate=5e-4", {"learning_rate": 5e-4}),  # text by YAML 1.1
        ("targets=[q_proj, v_proj]", {"targets": ["q_proj", "v_proj"]}),
        ("weight-decay=1", {"weight_decay": 1}),
    ],
)
def test_settings_mean_what_they_say(said, meant):
    assert _parsed([said]) == meant
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in meant.items()}
    assert TUNING["lora"].made(_parsed([said]), "here") == LoRA().with_knobs(given)


def test_heads_are_given_as_pairs():
    method = TUNING["heads"].made(_parsed(["heads=[[0, 1], [2, 3]]"]), "here")
    assert method.heads == (Head(0, 1), Head(2, 3))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "retrieved passages"])
def test_every_name_makes_what_it_names(name):
    made = METHODS[name].made({}, name)
    assert all(getattr(made, key) == value for key, value in METHODS[name].preset.items())


def test_methods_lists_every_method_with_what_it_can_do():
    listed = run("methods", "--json")
    assert listed.exit_code == 0, listed.output
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert tuple(rows) == tuple(TUNING)
    assert not rows["full"]["four_bit"] and rows["lora"]["mergeable"]
    assert rows["full"]["trainable_parameters"] > rows["lora"]["trainable_parameters"] > 0
    assert "parameter composition" in run("methods", "--no-count").output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tune", "--method", "lorra"), "unknown tuning method 'lorra'; did you mean lora"),
        (("tune", "--set", "rank=3"), "the method 'lora': unknown key 'rank'"),
        (("tune", "--set", "rank"), "takes NAME=VALUE"),
        (("tune", "--rank", "0"), "rank must be at least 1"),
        (("tune", "--set", "r=["), "--set r: '[' cannot be read as a value"),
        (("tune", "--set", "r=2.5"), "the method 'lora': field 'r' is 2.5, expected a valid integer"),
        (("tune", "--set", "targets=[1, 2]"), "field 'targets[0]' is 1, expected a valid string"),
        (("tune", "--set", "targets=[]"), "one target or more"),
        (("tune", "--set", "alpha=-1"), "alpha must be a number above 0, got -1"),
        (("tune", "--set", "dora=maybe"), "field 'dora' is 'maybe', expected a valid boolean"),
        (("tune", "--set", "learning_rate=fast"), "field 'recipe.learning_rate' is 'fast', expected a valid number"),
        (("tune", "--set", "max_grad_norm=-1"), "max_grad_norm must be a number of 0 or more, got -1"),
        (("tune", "--method", "heads", "--set", "heads=[0, 1]"), "field 'heads[0]' is 0, expected an array"),
        (("tune", "--method", "full", "--rank", "3"), "the method 'full': unknown key 'r'"),
        (("tune", "--method", "full", "--quantization", "nf4", "--limit", "5"), "cannot run on 4-bit weights"),
        (("tune", "--data", "nowhere.jsonl"), "no data set or file"),
        (("merge", "--edit", "nowhere"), "expected an edit at nowhere, there is none"),
    ],
)
def test_a_user_s_mistake_is_one_sentence_and_exit_code_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert words in re.sub(r"\s+", " ", result.output)
    assert "Traceback" not in result.output


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, "nf4-dq"])
def test_lora_and_qlora_on_the_embedded_model_take_under_two_minutes(quantization, tmp_path):
    import time

    start = time.perf_counter()
    extra = ("--quantization", quantization) if quantization else ()
    made = run("tune", "--out", tmp_path / "e", "--json", *extra)
    assert made.exit_code == 0, made.output
    assert time.perf_counter() - start < 120
    scores = json.loads(made.stdout)["measured"]
    assert scores["tuned"]["mc1"]["mean"] > scores["untuned"]["mc1"]["high"]
