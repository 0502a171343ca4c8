"""`trimtab erase`: from two kinds of texts to an edit, what is left of the concept, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.cut import cut_data
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab import cli
from trimtab.edits import DirectionalAblation, Eraser
from trimtab.edits.disk import load_edit


def ran(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, list(words))
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Any:
    """Return a folder of a tiny model, pairs, and texts of two kinds."""
    place = tmp_path_factory.mktemp("erase")
    tiny_model("llama-gqa").save_pretrained(place / "model")
    tiny_tokenizer().save_pretrained(place / "model")
    rows = [{"prompt": f"What is {i}?", "positive": f"The sky {i}.", "negative": f"COAL {i}!"} for i in range(16)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "one.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (place / "a.txt").write_text("".join(f"The sea is blue {i}.\n" for i in range(12)))
    (place / "b.txt").write_text("".join(f"ROCKS ARE {i}!\n" for i in range(9)))
    (place / "empty.txt").write_text("\n")
    with pytest.MonkeyPatch.context() as patch:
        cut_data(patch)
        yield place


@pytest.mark.parametrize("how", ["leace", "ace"])
def test_pairs_are_erased_layer_by_layer_and_measured_beside_random_directions(place, tmp_path, how):
    words = ["--pairs", str(place / "pairs.jsonl"), "--how", how, "--layers", "1-2", "--texts", "3"]
    found = json.loads(ran("erase", "-m", str(place / "model"), *words, "--out", str(tmp_path / "o"), "--json").output)
    plain, edited, control = found["rows"]
    assert list(plain["read"]) == ["1", "2"] and plain["read"]["2"] > 0.9
    assert edited["read"]["2"] < plain["read"]["2"] and control["edit"] == "Random erasure"
    assert plain["kl"] == 0 < edited["kl"] and plain["pair_margin"] != edited["pair_margin"]
    edit = load_edit(tmp_path / "o")
    assert isinstance(edit, Eraser) and edit.layers == (1, 2)
    assert len(edit.fitted_on) == 10  # six of sixteen are held out


def test_a_direction_of_lines_is_ablated_where_trying_says_and_merged(place, tmp_path):
    words = ["--positive", str(place / "a.txt"), "--negative", str(place / "b.txt"), "--how", "ablate", "--texts", "3"]
    shown = ran("erase", "-m", str(place / "model"), *words, "--out", str(tmp_path / "o")).output
    assert "direction read at depth" in shown and "Random ablation" in shown and "margin" not in shown
    edit = load_edit(tmp_path / "o")
    assert isinstance(edit, DirectionalAblation) and len(edit.record["tried"]) == 4
    ran("merge", "-m", str(place / "model"), "--edit", str(tmp_path / "o"), "--out", str(tmp_path / "merged"))
    chosen = ["--depth", "0.5", "--components", "attention,mlp", "--read", "mean"]
    shown = ran("erase", "-m", str(place / "model"), *words, *chosen, "--out", str(tmp_path / "p")).output
    assert "direction read at depth" not in shown
    assert load_edit(tmp_path / "p").components == ("attention", "mlp")


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "give the two kinds of texts"),
        (["--positive", "{}/a.txt"], "give the two kinds of texts"),
        (["--pairs", "{}/pairs.jsonl", "--positive", "{}/a.txt"], "give the two kinds of texts"),
        (["--pairs", "{}/nowhere.jsonl"], "cannot be read"),
        (["--positive", "{}/a.txt", "--negative", "{}/empty.txt"], "holds no text"),
        (["--positive", "{}/a.txt", "--negative", "{}/a.txt"], "keep it once"),
        (["--pairs", "{}/one.jsonl"], "leaves one side empty"),
        (["--pairs", "{}/pairs.jsonl", "--layers", "2,3"], "no layer 3: the model has layers 0-2"),
        (["--pairs", "{}/pairs.jsonl", "--layers", "most"], "--layers is all, or numbers"),
        (["--pairs", "{}/pairs.jsonl", "--layers", "2-1"], "--layers is all, or numbers"),
        (["--pairs", "{}/pairs.jsonl", "--how", "leece"], "did you mean leace"),
        (["--pairs", "{}/pairs.jsonl", "--read", "first"], "unknown place to read"),
        (["--pairs", "{}/pairs.jsonl", "--depth", "0.5"], "are of --how ablate"),
        (["--pairs", "{}/pairs.jsonl", "--how", "ablate", "--depth", "2"], "a share from 0"),
        (["--pairs", "{}/pairs.jsonl", "--how", "ablate", "--components", "heads", "--depth", "0.5"], "components are"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(place, tmp_path, words, said):
    words = [word.format(place) for word in words]
    result = ran("erase", "-m", str(place / "model"), *words, "--out", str(tmp_path / "out"), code=2)
    assert said in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
