"""What is said of transfer between two sets of questions, and of learning rates, follows from the records beside it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import norm

from tests.repository.published_records import RESULTS, by_style, cells_of, gain, printed_in, smollm2, style_of
from trimtab.cells import figure as shown_figure
from trimtab.cells import number, p_text
from trimtab.compare.statistics import RESAMPLES, holm, paired
from trimtab.report.markdown import to_markdown
from trimtab.report.verdict import about, conclusions

pytestmark = pytest.mark.usefixtures("unchecked")
ROWS = ("Few-shot", "Retrieved few-shot", "ITI", "CAA", "LoRA r=8", "Random tries (ITI)", "Random tries (CAA)")
OWN = ["LoRA 0.0005", "Full 0.00002", "Adapter 0.001", "IA3 0.005", "Prefix 0.01", "Prompt 0.03", "Head offsets 0.01"]
"""Each method at its own learning rate."""


def home(method):
    """Return the run and the row of a method fitted on TruthfulQA and measured there: LoRA at its settings here."""
    return (smollm2("rates"), "LoRA 0.0015") if method == "LoRA r=8" else (smollm2("truthfulqa"), method)


def against_unedited(run, method):
    """Return a row's tested difference of MC1 to the unedited model."""
    return run.row(method, run.sizes[-1]).differences["mc1"]


def as_columns(gained):
    """Return question -> a row of one number, as tests take them."""
    return {question: np.array([value]) for question, value in gained.items()}


def said(difference):
    """Return a difference in points, with its interval."""
    return shown_figure(difference, "share", signed=True)


def on_the_same_questions():
    """Return lines: what is gained on TruthfulQA, fitted there and on folklore, the difference, and Holm's p of it."""
    back, lines = smollm2("back"), []
    found = [paired(as_columns(gain(back, m)), as_columns(gain(*home(m)))) for m in ROWS]
    adjusted = holm([p for _, p in found])
    for method, (difference, p), p_holm in zip(ROWS, found, adjusted, strict=True):
        each = (against_unedited(*home(method)).difference, against_unedited(back, method).difference, difference)
        p_said = p_text(p_holm, at_floor=p <= 2 / (RESAMPLES + 1))
        lines.append(f"| {method} | {' | '.join([*map(said, each), p_said])} |")
    return lines


def on_folklore():
    """Return lines: what is gained on folklore, fitted there and on TruthfulQA, Holm's p, and what would be found.

    A gain is found in four of five draws of as many questions if it lies above the first step of Holm's ladder by
    0.84 standard errors, those of the difference over questions.
    """
    run, lines = smollm2("there"), []
    n_tested = len([row for row in run.rows(run.sizes[-1]) if row.differences])
    for method in ROWS:
        gained = np.array([*gain(run, method).values()])
        reach = (norm.ppf(1 - 0.05 / n_tested / 2) + norm.ppf(0.8)) * gained.std(ddof=1) / len(gained) ** 0.5
        far = against_unedited(run, method)
        each = (against_unedited(smollm2("folklore"), method).difference, far.difference)
        cells = [*map(said, each), p_text(far.p_holm, at_floor=far.at_floor), number(reach, "share")]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def over_rates():
    """Return lines: each method's row at each learning rate."""
    run = smollm2("rates")
    cells, lines = cells_of(to_markdown(run)), []
    for line in by_style(run, style_of(smollm2("truthfulqa"))):
        name, right, wrong, _ = line.strip("| ").split(" | ")
        gained = [cells[name, head] for head in ("MC1", "MC1 \N{MINUS SIGN} baseline", "p (Holm)")]
        moved = f"{100 * run.row(name).metrics['hidden_states'].estimate:.0f} %"
        lines.append(f"| {' | '.join([name, *gained, right, wrong, cells[name, 'KL'], moved])} |")
    return lines


def rows_of(page, heading):
    """Return the rows of a page's table under a heading, without what heads it."""
    lines = [line for line in printed_in(page, heading) if line.startswith("| ")]
    return [line for line in lines if not line.startswith(("| --", "|  |"))]


def unfounded(page):
    """Return figures that a page's text tells and none of its tables and tests' sentences holds."""
    text = (RESULTS / page).read_text(encoding="utf-8").partition("## What follows")[2]
    held = {figure for line in printed_in(page) for figure in re.findall(r"\d+\.\d+", line)}
    return set(re.findall(r"\d+\.\d+", text.partition("\n## ")[0])) - held


@pytest.mark.parametrize("page", ["transfer.md", "learning-rates.md"])
def test_what_follows_holds_no_figure_that_its_tables_have_not(page):
    assert unfounded(page) == set()


@pytest.mark.slow
def test_what_carries_over_between_two_sets_follows_from_their_records():
    assert rows_of("transfer.md", "## On TruthfulQA") == on_the_same_questions()
    assert rows_of("transfer.md", "## Where style") == by_style(smollm2("back"), style_of(smollm2("truthfulqa")))
    assert rows_of("transfer.md", "## On folklore") == on_folklore()
    chosen = {settings for settings, _ in smollm2("there").row("CAA", 395).settings}
    assert chosen == {'{"layer": 18, "alpha": 4}', '{"layer": 18, "alpha": 8}'}


@pytest.mark.slow
def test_what_learning_rates_do_follows_from_their_record():
    run = smollm2("rates")
    assert rows_of("learning-rates.md", "## Every rate") == over_rates()
    printed = printed_in("learning-rates.md", "## What its tests say")
    assert len(printed) == 6 and printed == [about(run), *(f"- {text}" for text in conclusions(run))]
    apart = {frozenset((c.one, c.other)) for c in run.contrasts("mc1") if c.apart}
    rates = [m for m in run.methods if m != "Baseline"]
    by_method = [rates[i : i + 4] for i in range(0, len(rates), 4)]  # a third, once, three times, ten times
    assert [four[1] for four in by_method if {four[1], four[3]} in apart] == OWN[:5]
    assert [four[1] for four in by_method if {four[2], four[3]} in apart] == ["Prefix 0.01"]
    assert [four[1] for four in by_method] == OWN
