"""`trimtab compare`, `report` and `reproduce`: files read, plans printed, mistakes named in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.comparing import TEXTS
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.cli import app
from trimtab.cli.comparison_file import job_of, method_of, quick, read_comparison_file
from trimtab.compare import FewShot, OnQuantized, RetrievedPassages, Stack, Widened
from trimtab.errors import BadValue
from trimtab.peft import LoRA
from trimtab.steer import ITI, RandomDirection

CONFIG = """\
model: {model}
questions: {questions}
folds: 2
seeds: [0]
trials: 1
max_new_tokens: 3
texts: {texts}
methods:
  - few-shot: {{shots: [1]}}
  - iti: {{top_ks: [2], alphas: [1]}}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with a model, questions and a configuration."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [
        {"question": q.question, "correct": list(q.correct), "incorrect": list(q.incorrect)} for q in tiny_questions(8)
    ]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    (folder / "c.yaml").write_text(
        CONFIG.format(model=folder / "model", questions=folder / "mine.jsonl", texts=folder / "texts.txt")
    )
    return folder


def trimtab(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def said(result):
    return " ".join((result.output + getattr(result, "stderr", "")).split())


@pytest.mark.slow
def test_compare_runs_a_file_and_report_makes_the_page(files, tmp_path):
    plan = trimtab("compare", "--config", files / "c.yaml", "--out", tmp_path / "run", "--dry-run")
    assert plan.exit_code == 0, plan.output
    assert "| ITI | 1 | 2 | 2 |" in plan.output
    assert "3 to train on, 1 to choose on, 4 to test on." in said(plan)
    assert not (tmp_path / "run").exists()
    ran = trimtab("compare", "--config", files / "c.yaml", "--out", tmp_path / "run", "--json")
    assert ran.exit_code == 0, ran.output
    record = json.loads(ran.stdout)
    assert record["finished"]
    assert [r["method"] for r in record["rows"] if r["variant"] == "best"] == ["Baseline", "Few-shot", "ITI"]
    page = trimtab("report", tmp_path / "run")
    assert page.exit_code == 0, page.output
    assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "run" / "report.md").exists()
    again = trimtab("compare", "--config", files / "c.yaml", "--out", tmp_path / "run", "--dry-run", "--json")
    assert json.loads(again.stdout)["seconds"] == 0
    # a page beside the records does not keep the run from going on
    assert trimtab("compare", "--config", files / "c.yaml", "--out", tmp_path / "run").exit_code == 0


def test_entries_of_a_file_are_methods():
    assert method_of("iti") == ITI()
    assert method_of({"few-shot": {"shots": [1, 2]}}) == FewShot(shots=(1, 2))
    assert method_of("few-shot + iti") == Stack((FewShot(), ITI()))
    assert method_of({"lora": {"r": 4}}) == LoRA(r=4)
    assert method_of({"lora": {"grid": {"epochs": [2, 4]}}}) == Widened(LoRA(), (("epochs", (2, 4)),))
    assert method_of("qlora") == OnQuantized(LoRA())
    assert method_of({"retrieved passages": {"paths": ["notes.txt"]}}) == RetrievedPassages(("notes.txt",))
    tuned = method_of({"stack": [{"lora": {"r": 4}}, "iti"]})
    assert tuned == Stack((LoRA(r=4), ITI()))
    assert method_of({"random direction": {"draws": 4}}) == RandomDirection(draws=4)


@pytest.mark.parametrize(
    "entry, message",
    [
        ("itti", "unknown method 'itti'; did you mean iti"),
        ({"iti": {"heads": 3}}, "the method 'iti' cannot be made from"),
        ({"lora": {"rank": 3}}, "has no knob 'rank'"),
        (["iti"], "unknown method"),
        ({"iti": {"grid": [3]}}, "cannot be made"),
    ],
)
def test_entries_that_mean_nothing_are_refused(entry, message):
    with pytest.raises(BadValue, match=message):
        method_of(entry)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [", "cannot be read as YAML"),
        ("- iti", "must hold keys"),
        ("modle: embedded", "unknown key 'modle'; the keys are model, questions"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(BadValue, match=message):
        read_comparison_file(tmp_path / "c.yaml")


def test_a_number_that_is_none_is_refused_with_exit_code_2(files, tmp_path):
    (tmp_path / "c.yaml").write_text((files / "c.yaml").read_text() + "train_sizes: [few]\n")
    result = trimtab("compare", "--config", tmp_path / "c.yaml", "--dry-run")
    assert result.exit_code == 2
    assert "the comparison's numbers cannot be used" in said(result)


def test_the_shipped_configuration_is_read_whole_and_gives_every_method_its_trials():
    path = Path(__file__).parents[1] / "benchmarks" / "comparison.yaml"
    job = job_of(read_comparison_file(path))
    assert job.test is not None and job.test.name == "folklore"
    names = list(job.methods)
    for part in ("Few-shot", "ITI", "Random direction", "LoRA", "IA3", "on nf4", "LoRA r=8 + ITI", "Few-shot + ITI"):
        assert any(part in name for name in names), part
    assert len(names) == 17
    assert all(len(job.settings(name)) == min(job.design.trials, len(list(job.methods[name].grid))) for name in names)
    assert len(job_of(quick()).units) == 7


def test_mistakes_are_one_sentence_with_exit_code_2(files, tmp_path):
    for arguments, message in (
        (("compare", "--quick", "--config", files / "c.yaml"), "--quick is a comparison of its own"),
        (("compare", "--config", tmp_path / "none.yaml"), "there is no file"),
        (("report", tmp_path / "none"), "no comparison at"),
        (("reproduce", "iti-table-2"), "unknown protocol 'iti-table-2'; did you mean iti-table-1"),
        (("reproduce", "iti-2fold", "--judge", "me"), "unknown judge 'me'"),
    ):
        result = trimtab(*arguments)
        assert result.exit_code == 2, result.output
        assert message in said(result)
        assert "Traceback" not in said(result)


@pytest.mark.slow
def test_reproduce_runs_a_protocol_on_any_model(files, tmp_path):
    big = tmp_path / "model"
    tiny_model(context=2048).save_pretrained(big)
    tiny_tokenizer().save_pretrained(big)
    result = trimtab(
        "reproduce", "iti-2fold", "--model", big, "--data", files / "mine.jsonl", "--judge", "exact",
        "--texts", files / "texts.txt", "--top-k", 2, "--alpha", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "No figures were published for" in result.output
    assert "Known deviations:" in result.output
    assert json.loads((tmp_path / "out" / "iti-2fold.json").read_text())["name"] == "iti-2fold"
