"""`trimtab combine`: adapters, weight edits and checkpoints of one base added up, taken away and merged."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.cases import TUNING, one_tuned
from tests.cut import cut_data
from tests.observing import logits
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab import cli
from trimtab.edits import NoEdit, Prompted, WeightEdit
from trimtab.edits.disk import load_edit


def ran(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, list(words))
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def runs(tmp_path_factory: Any) -> Any:
    """Return a folder of a base, two adapters of it, a tuned checkpoint and what is none of these."""
    place = tmp_path_factory.mktemp("runs")
    model, tokenizer = tiny_model("llama-gqa"), tiny_tokenizer()
    one_tuned(TUNING["lora"])(model).save(place / "a")
    one_tuned(TUNING["lora qv"])(model).save(place / "b")
    one_tuned(TUNING["lora"])(tiny_model("llama-gqa", seed=1)).save(place / "stranger")
    Prompted((("What is snow?", "White."),)).save(place / "prompt")
    others = {"base": model, "tuned": one_tuned(TUNING["full"])(model).scaled(0.05).merged(model)}
    others["wider"] = tiny_model("llama-gqa", vocab_size=310)
    for name, other in others.items():
        other.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    (place / "empty").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        cut_data(patch)
        yield place


def said(place: Any, edit: Any) -> torch.Tensor:
    model = tiny_model("llama-gqa")
    with edit.applied(model, "all") as edited:
        return logits(edited)


def test_adapters_are_added_and_taken_away_on_their_factors(runs, tmp_path):
    out = tmp_path / "out"
    parts = ["--add", f"{runs / 'a'}", "--subtract", f"{runs / 'b'}:0.5"]
    found = json.loads(ran("combine", "-m", str(runs / "base"), *parts, "--out", str(out), "--json").output)
    assert [row["weight"] for row in found["parts"]] == [1, -0.5]
    assert found["kl"] > 0 and found["parts"][0]["cosine"] > 0.5
    made = load_edit(out)
    assert isinstance(made, WeightEdit) and all(rank != "full" for rank in found["ranks"].values())
    again = ran("combine", "-m", str(runs / "base"), "--add", str(out), "--add", f"{runs / 'b'}:0.5", "--out",
                str(tmp_path / "back"))  # fmt: skip
    assert "all of low rank" in again.output
    torch.testing.assert_close(
        said(runs, load_edit(tmp_path / "back")), said(runs, load_edit(runs / "a")), rtol=0, atol=5e-5
    )


@pytest.mark.parametrize("rule", [["ties", "--density", "0.3", "--trim", "vector"], ["dare", "--density", "0.5"]])
def test_a_checkpoint_of_the_base_is_a_part_like_any_other(runs, tmp_path, rule):
    words = ["--add", str(runs / "tuned"), "--add", str(runs / "a"), "--method", *rule, "--scale", "0.5"]
    found = json.loads(ran("combine", "-m", str(runs / "base"), *words, "--out", str(tmp_path / "o"), "--json").output)
    assert found["rule"].lower() == rule[0] and found["strength"] == 0.5
    assert set(found["ranks"].values()) == {"full"}
    assert float((said(runs, load_edit(tmp_path / "o")) - said(runs, NoEdit())).abs().max()) > 0.01


@pytest.mark.parametrize(
    "words, words_said",
    [
        ([], "nothing to combine"),
        (["--add", "{}/nowhere"], "there is none"),
        (["--add", "{}/empty"], "there is none"),
        (["--add", "{}/prompt"], "changes no weight of the model|as it is"),
        (["--add", "{}/stranger"], "made for another checkpoint"),
        (["--add", "{}/wider"], "another vocabulary"),
        (["--add", "{}/base"], "changes no weight"),
        (["--add", "{}/a:nan"], "finite number"),
        (["--add", "{}/a", "--method", "tias"], "did you mean ties"),
        (["--add", "{}/a", "--method", "ties", "--density", "0"], "above 0 and at most 1"),
        (["--add", "{}/a", "--method", "dare", "--density", "0"], "p = 1 - density"),
        (["--add", "{}/a", "--density", "0.5"], "a sum keeps everything"),
        (["--add", "{}/a", "--trim", "vector"], "leave it out"),
        (["--add", "{}/a", "--scale", "0"], "--scale must be"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(runs, tmp_path, words, words_said):
    words = [word.format(runs) for word in words]
    result = ran("combine", "-m", str(runs / "base"), *words, "--out", str(tmp_path / "out"), code=2)
    assert any(part in result.output for part in words_said.split("|"))
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
