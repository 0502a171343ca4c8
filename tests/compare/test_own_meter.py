"""A meter of the user's own is measured, tested, chosen by, drawn and reported as trimtab's are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.comparing import METERS, SpyMethod, tiny_run
from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.compare import Comparison, Design, Job
from trimtab.compare.design import named
from trimtab.datasets import ContrastPair, PairSet
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadValue, Incompatible
from trimtab.evaluate import pair_meters
from trimtab.evaluate.table import table
from trimtab.protocols import Measured, Meter
from trimtab.report.html import to_html
from trimtab.report.markdown import to_markdown


class Words(Meter):
    """How strong the edit is, and a number that differs from question to question: known, so that it can be checked."""

    name = "words"
    heading = "Words per answer"
    unit = "words"
    better = "down"
    columns = ("words",)

    def measure(self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Any], *, asking="plain", seed=0):
        return [
            Measured({item.key: {"words": 10.0 * edit.strength + len(item.asked) % 3} for item in items})
            if edit.name != "Baseline"
            else Measured({item.key: {"words": 1.0 + len(item.asked) % 2} for item in items})
            for edit in edits
        ]


class Ratio(Words):
    """The same with a summary of its own."""

    name = "ratio"
    heading = "Ratio"
    columns = ("words", "words")

    def summary(self, means):
        return means[..., 0] / (1 + means[..., 1])


class Size(Meter):
    """A meter without rows."""

    name = "size"
    heading = "How large"
    unit = "bytes"
    better = "down"

    def measure(self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Any], *, asking="plain", seed=0):
        return [Measured(value=2000.0) for _ in edits]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "run"
    meters = (*METERS, Words(), Size())
    methods = [SpyMethod(strengths=(2.0, 1.0))]
    return folder, tiny_run(folder, methods, seeds=(0,), meters=meters, choose_by="words")


def test_it_chooses_the_smallest_and_is_tested_as_the_others_are(done):
    _, result = done
    row = result.row("Spy")
    assert row.settings == (('{"strength": 1.0}', 2),)
    assert 30 <= float(row.metrics["words"].estimate) <= 32
    assert row.differences["words"].p < 0.01 and row.differences["words"].n == 12
    assert set(row.differences) == {"true_info", "mc1", "words"}
    assert row.costs["size"] == 2000.0


def test_pages_show_it_in_its_own_unit(done):
    folder, result = done
    text, page = to_markdown(result), to_html(result)
    for shown in (text, page):
        assert "Words per answer" in shown and "How large" in shown and "2 kB" in shown
    value = result.row("Spy").metrics["words"].estimate
    assert f"| {float(value):.3g} [{value.low:.3g}, {value.high:.3g}]" in text
    assert "Chosen by: Words per answer" in text
    assert to_markdown(Comparison.load(folder)) == text, "records alone say the same"


def test_a_table_holds_it():
    model = tiny_model()
    edits = [NoEdit(), random_shift(model)]
    made = table(model, tiny_tokenizer(), tiny_questions(3), edits, meters=[Words(), Ratio(), Size()])
    assert made.rows[1].words == made["ITI"]["words"]
    assert made["ITI"]["size"] == 2000.0
    assert float(made["ITI"].ratio) == pytest.approx(float(made["ITI"].words) / (1 + float(made["ITI"].words)))
    assert made.headings == ["", "Words per answer", "Ratio", "How large"]


def test_a_summary_of_its_own_is_asked_for_where_records_alone_cannot_say_it(tmp_path):
    made = tiny_run(tmp_path / "run", [SpyMethod(strengths=(1.0,))], seeds=(0,), meters=[Ratio()], trials=1)
    with pytest.raises(Incompatible, match=r"meter ratio sums up its rows by code of its own; give it"):
        Comparison.load(tmp_path / "run")
    again = Comparison.load(tmp_path / "run", meters=[Ratio()])
    assert again.row("Spy").metrics == made.row("Spy").metrics


def test_what_cannot_be_measured_or_chosen_by_is_refused():
    for choose_by, words in (("bleu", "chosen by 'bleu'; choose true_info"), ("unmatched", "chosen by 'unmatched'")):
        with pytest.raises(BadValue, match=words):
            Job(named([SpyMethod()]), tiny_questions(12), None, Design(choose_by=choose_by), METERS)
    with pytest.raises(BadValue, match="meters of different names, got words, words"):
        table(tiny_model(), tiny_tokenizer(), tiny_questions(2), [NoEdit()], meters=[Words(), Words()])


def test_contrast_pairs_are_compared_by_the_meters_that_speak_of_them(tmp_path):
    from trimtab.compare import run

    pairs = PairSet(tuple(ContrastPair(f"Snow {i} is", ("white.",), ("black.",)) for i in range(12)))
    texts = tuple(f"The road was {i} miles long." for i in range(5))
    result = run(
        tiny_model(), tiny_tokenizer(), pairs, [SpyMethodOnPairs(strengths=(1.0,))], seeds=(0,), trials=1,
        meters=pair_meters(texts=texts, divide_texts=True), out=tmp_path / "run",
    )  # fmt: skip
    row = result.row("Spy")
    assert 0 < float(row.metrics["pair_probability"].estimate) < 1
    assert set(row.differences) == {"pair_probability"} and np.isfinite(row.differences["pair_probability"].p)
    assert "P(positive)" in to_markdown(result)


class SpyMethodOnPairs(SpyMethod):
    def fit(self, model, tokenizer, train, *, knobs=None, seed=0):
        return random_shift(model, seed=seed, name=self.name).scaled(knobs["strength"])
