"""`trimtab trace`: the table, the folder and the picture, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from trimtab import cli
from trimtab.knowledge import Trace

TURKEY = ["trace", "The capital of {} is", "--subject", "Turkey", "--samples", "2"]


def ran(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, list(words))
    assert result.exit_code == code, result.output
    return result


def test_one_fact_by_flags_is_traced_drawn_and_kept(tmp_path):
    plot, out = tmp_path / "turkey.png", tmp_path / "trace"
    said = ran(*TURKEY, "--answer", "Ankara", "--plot", str(plot), "--out", str(out)).output
    assert "1 fact(s) traced, 0 skipped" in said
    assert plot.stat().st_size > 5000
    (fact,) = Trace.load(out).facts
    assert fact.clean > 0.2 > 0.02 > fact.corrupted  # the embedded model knows it, and not without the subject
    found = json.loads(ran(*TURKEY, "--out", str(out), "--overwrite", "--json").output)
    assert found["facts"][0]["clean"] == fact.clean  # by itself it says the same


@pytest.mark.parametrize(
    "words, said",
    [
        (["trace", "The capital of {} is"], "a fact needs a prompt and --subject"),
        (["trace", "The capital is", "--subject", "Chile"], "0 places for the subject"),
        ([*TURKEY, "--facts", "atlas"], "not both"),
        ([*TURKEY, "--answer", "Paris"], "true answer to none of 1 fact"),
        ([*TURKEY, "--plot", "picture.xyz"], "cannot draw picture.xyz"),
        (["trace", "--facts", "nowhere.jsonl"], "cannot be read"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(words, said, tmp_path):
    result = ran(*words, "--out", str(tmp_path / "out"), code=2)
    assert said in result.output
    assert "Traceback" not in result.output
