"""Every verb of the shell takes an edit, a meter and a judge of a user's own by FILE.py:NAME."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests import foreign
from tests.cases import one_shift
from tests.comparing import TEXTS
from tests.cut import cut_data
from tests.foreign import Nudge
from tests.protocols.test_foreign import twin
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.cli import app

FILE = str(Path(foreign.__file__))
CLASS = ("--edit-class", f"{FILE}:Nudge")
ASKED = tiny_questions(12)


def trimtab(*arguments: Any, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


def said(*arguments: Any, stdin: str | None = None) -> str:
    result = trimtab(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with a model, questions, a foreign edit, its twin and a shift of heads."""
    folder, model = tmp_path_factory.mktemp("verbs"), tiny_model(context=1000)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [{"question": q.question, "correct": list(q.correct), "incorrect": list(q.incorrect)} for q in ASKED]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    vector = foreign.Nudging().fit(model, None, ASKED, knobs={"size": 1.0}).vector
    nudge = Nudge(vector, 1.0)
    nudge.save(folder / "nudge")
    twin(nudge).save(folder / "twin")
    one_shift(model).save(folder / "shift")
    return folder


def test_a_folder_never_names_code_so_that_the_class_must_be_given(files):
    refused = trimtab("generate", "Who?", "--model", files / "model", "--edit", files / "nudge")
    assert refused.exit_code == 2
    assert "found nudge; give the class that loads it" in " ".join(refused.stderr.split())


def test_what_is_given_as_the_class_and_is_none_is_said_in_one_sentence(files, unchecked):
    for name, words in (("first_layer", "is no class of edits"), ("Nudgee", "did you mean Nudge")):
        asked = ["generate", "Who?", "--model", files / "model", "--edit", files / "nudge"]
        refused = trimtab(*asked, "--edit-class", f"{FILE}:{name}")
        assert refused.exit_code == 2 and words in " ".join(refused.stderr.split()), refused.output


def test_generate_answers_with_it_at_a_strength_and_in_a_stack(files):
    asked = ["generate", ASKED[0].question, "--model", files / "model", "--max-new-tokens", 6, "--json"]
    plain = json.loads(said(*asked))["unedited"]
    mine = json.loads(said(*asked, "--edit", files / "nudge", *CLASS))["edited"]
    assert mine == json.loads(said(*asked, "--edit", files / "twin"))["edited"] != plain
    weak = json.loads(said(*asked, "--edit", f"{files / 'nudge'}:0", *CLASS))["edited"]
    assert weak == plain
    both = [said(*asked, "--edit", files / kind, "--edit", files / "shift", *CLASS) for kind in ("nudge", "twin")]
    assert both[0] == both[1]


def test_chat_answers_with_it(files):
    options = ["chat", "--model", files / "model", "--max-new-tokens", 6, "--json"]
    lines = f"{ASKED[0].question}\n/strength 0\n{ASKED[0].question}\n"
    mine, twins = (said(*options, "--edit", files / kind, *CLASS, stdin=lines) for kind in ("nudge", "twin"))
    assert [json.loads(line)["answer"] for line in mine.splitlines()] == [
        json.loads(line)["answer"] for line in twins.splitlines()
    ]


def test_evaluate_measures_it_by_a_meter_and_a_judge_of_ones_own(files, monkeypatch):
    cut_data(monkeypatch)
    options = ["evaluate", "--model", files / "model", "--data", files / "mine.jsonl", "--json"]
    own = ["--judge", f"{FILE}:Vowels", "--meter", f"{FILE}:Surprise"]
    mine, twins = (
        json.loads(said(*options, *own, "--edit", files / kind, *CLASS, "--answers", files / f"answers {kind}"))
        for kind in ("nudge", "twin")
    )
    (row,), (other,) = mine["rows"], twins["rows"]
    assert row["surprise"]["mean"] == pytest.approx(other["surprise"]["mean"], abs=1e-3)
    assert row["True"] == other["True"]
    assert "Vowels" in json.dumps(mine)


@pytest.mark.parametrize("verb", [["bake", "--out", "baked"], ["convert", "to-lm-eval", "--out", "steer.pt"]])
def test_what_it_cannot_become_is_said_in_one_sentence(verb, files, monkeypatch):
    monkeypatch.chdir(files)
    edit = [files / "nudge"] if verb[0] == "convert" else ["--edit", files / "nudge"]
    refused = trimtab(*verb, *edit, "--model", files / "model", *CLASS)
    assert refused.exit_code == 2, refused.output
    assert "use it as it is" in " ".join(refused.stderr.split())
    assert not (files / verb[-1]).exists()


def test_compare_and_report_take_methods_controls_meters_and_judges_of_ones_own(files, tmp_path):
    (tmp_path / "c.yaml").write_text(
        f"""
model: {files / "model"}
questions: {files / "mine.jsonl"}
folds: 2
seeds: [0]
trials: 1
max_new_tokens: 3
texts: {files / "texts.txt"}
judge: {FILE}:Vowels
meters: ["{FILE}:Surprise"]
metric: surprise
methods:
  - few-shot: {{shots: [1]}}
  - {FILE}:Nudging
  - {FILE}:Nudging: {{name: Strong nudging, sizes: [3.0]}}
  - {FILE}:Shuffled: {{draws: 1}}
"""
    )
    text = said("compare", "--config", tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert "surprise" in text and "failed" not in text  # a control knows the edits of its file, which is run once
    assert all(row in text for row in ("Few-shot", "Nudging", "Strong nudging", "Shuffled"))
    said("report", tmp_path / "run")
    pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "run").rglob("*.md")]
    assert pages and all("surprise" in page for page in pages)
