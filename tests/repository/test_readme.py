"""The README's commands exist, its Python runs, and its table is the measured one."""

from __future__ import annotations

import re
import subprocess
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


def test_the_python_example_runs_as_it_stands(monkeypatch, tmp_path):
    cut_data(monkeypatch, development=8, final=4, texts=2)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["acts"].values.shape == (len(names["train"].statements()), 8, 8, 32)
    assert (tmp_path / "runs" / "mine" / "record.json").is_file()


def test_pictures_and_pages_that_the_readme_names_exist():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("row", ["Baseline", "Few-shot", "ITI", "LoRA r=8", "Random direction"])
def test_the_readme_s_table_is_the_measured_one(row):
    import json

    evidence = json.loads((ROOT / "benchmarks" / "results" / "embedded.json").read_text(encoding="utf-8"))
    measured = evidence["mean_over_seeds"][row]
    line = next(x for x in README.splitlines() if x.startswith(f"| {row} |"))
    cells = [c.strip() for c in line.strip("|").split("|")][1:]
    for cell, metric in zip(cells, ("true_info", "true", "info", "unmatched", "mc1", "mc2", "ce", "kl"), strict=True):
        if measured[metric] is None:
            assert cell == "-"
        else:
            value = measured[metric]["mean"]
            assert measured[metric]["low"] <= value <= measured[metric]["high"]
            assert cell == (f"{value:.3f}" if metric in ("ce", "kl") else f"{100 * value:.1f}")
