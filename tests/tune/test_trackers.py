"""The Trainer's trackers: asked for by name, fed by every run, and no part of what a run is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations import integration_utils
from typer.testing import CliRunner

from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from tests.tuning import METHODS, QUICK, fitted
from trimtab import peft
from trimtab.cli import app
from trimtab.errors import BadValue


class Notebook(TrainerCallback):
    """A tracker that, like TensorBoard, writes what is logged into a folder below the run's own."""

    def on_log(self, args, state, control, logs: Any = None, model: Any = None, **kwargs):
        assert json.loads(model.config.to_json_string()) and not hasattr(model, "num_parameters")
        folder = Path(args.output_dir) / "notes"
        folder.mkdir(exist_ok=True)
        with (folder / "losses.jsonl").open("a") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


@pytest.fixture
def notebook(monkeypatch):
    """Install the tracker beside another one that transformers knows and does not find."""
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "notebook", Notebook)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["notebook"])
    return "notebook"


def losses(path):
    rows = [json.loads(line) for line in (path / "notes/losses.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_a_tracker_is_told_of_every_step_and_changes_nothing(notebook, tmp_path):
    model = tiny_model()
    plain = fitted("lora", model)
    told = fitted("lora", model, out=tmp_path / "run", report_to=notebook)
    assert (
        losses(tmp_path / "run") == pytest.approx(told.record["losses"], abs=1e-6) and len(told.record["losses"]) == 4
    )
    assert all(torch.equal(plain.tensors[k], told.tensors[k]) for k in plain.tensors)
    assert told.record["recipe"] == plain.record["recipe"] and "report_to" not in told.record["recipe"]
    told.save(tmp_path / "edit")
    assert "report_to" not in (tmp_path / "edit/record.json").read_text()
    assert peft.TunedEdit.load(tmp_path / "edit").method == METHODS["lora"]


def test_a_run_goes_on_under_another_tracker(notebook, tmp_path):
    model, out = tiny_model(), tmp_path / "run"
    fitted("lora", model, out=out, max_steps=4, save_every=2)
    gone_on = fitted("lora", model, out=out, max_steps=4, save_every=2, report_to=notebook)
    assert gone_on.record["steps"] == 4 and not losses(out)  # its four steps were done, and stand in the checkpoint


def test_recipes_that_differ_in_trackers_are_the_same_recipe(notebook):
    told = replace(QUICK, report_to=[notebook, notebook])
    assert told.report_to == (notebook,) == peft.Recipe(report_to=notebook).report_to
    assert told == QUICK and hash(told) == hash(QUICK)
    assert repr(told) == repr(QUICK)  # comparisons know their methods by it


def test_head_offsets_track_the_run_that_makes_them(notebook, tmp_path):
    heads = peft.HeadOffsets(2, recipe=replace(QUICK, report_to=notebook))
    edit = heads.fit(tiny_model(), tiny_tokenizer(), tiny_questions(6), out=tmp_path / "run")
    assert losses(tmp_path / "run/offsets") == pytest.approx(edit.record["losses"], abs=1e-6)
    assert not (tmp_path / "run/scalings/notes").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("notebok", "report_to=notebok does not run here: notebok is not supported"),
        (("notebook", "tensorbord"), "report_to=notebook, tensorbord does not run here: tensorbord is not supported"),
    ],
)
def test_trackers_that_cannot_be_had_are_refused_in_a_sentence(asked, words, notebook):
    with pytest.raises(BadValue, match=words):
        fitted("lora", tiny_model(), report_to=asked)


def test_what_a_tracker_writes_is_not_lost_with_a_temporary_folder(monkeypatch):
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", TrainerCallback)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["tensorboard"])
    for method in (METHODS["lora"], peft.HeadOffsets(2, recipe=QUICK)):
        with pytest.raises(BadValue, match=r"without one its files would be lost: give fit\(..., out=\)"):
            method.fit(tiny_model(), tiny_tokenizer(), tiny_questions(6), knobs={"report_to": "tensorboard"})


def test_trimtab_tune_keeps_what_trackers_wrote_beside_the_edit(notebook, tmp_path):
    tiny_model("llama-gqa", width=64).save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    row = {"question": "What is 1?", "correct": ["It is 1."], "incorrect": ["It is 2."]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    given = [
        "--model",
        tmp_path / "tiny",
        "--data",
        tmp_path / "data.jsonl",
        "--test",
        0,
        "--out",
        tmp_path / "new/lora",
    ]
    for said in (notebook, f"[{notebook}]"):
        settings = ["--set", "max_steps=4", "--set", "save_every=2", "--set", f"report_to={said}"]
        made = CliRunner().invoke(app, [str(a) for a in ("tune", "--overwrite", *given, *settings)])
        assert made.exit_code == 0, made.output
        assert {p.name for p in (tmp_path / "new").iterdir()} == {"lora", "lora.trackers"}
        found = [p for p in (tmp_path / "new/lora.trackers").rglob("*") if p.is_file()]
        assert found == [tmp_path / "new/lora.trackers/notes/losses.jsonl"]
        assert len(losses(tmp_path / "new/lora.trackers")) == 4


def test_transformers_tensorboard_runs(tmp_path):
    pytest.importorskip("tensorboard")
    fitted("lora", tiny_model(), out=tmp_path / "run", report_to="tensorboard")
    assert list((tmp_path / "run/runs").rglob("events.out.tfevents.*"))
