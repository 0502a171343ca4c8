"""What the pages say of `fit` on shipped behaviours follows from the records of its draws."""

from __future__ import annotations

import json
import lzma
import re

import numpy as np
from scipy.stats import fisher_exact

from tests.repository.published_records import RESULTS, printed_in, program, tables
from tests.repository.source import PACKAGE
from trimtab.datasets.behaviours import behaviour
from trimtab.intervals import bootstrap_mean


def page_text():
    return (RESULTS / "behaviours.md").read_text(encoding="utf-8")


def record_of_draws():
    return json.loads(lzma.decompress((RESULTS / "behaviours.json.xz").read_bytes()))


def fits(name):
    return json.loads((PACKAGE.parent / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def test_the_tables_of_what_fit_finds_are_made_from_its_record():
    held = record_of_draws()
    made_of, sweeps = program("behaviour_tables").tables, held["sweeps"]
    made = [line for of in (sweeps, held["gemma"], held["embedded"]) for line in made_of(of) if line]
    printed = [x for x in printed_in("behaviours.md") if x[0] == "|"]
    assert len(sweeps) == 60 and printed[: len(made)] == made  # others follow
    half, _, both = (sum(int(line.split(" | ")[n].split()[0]) for line in made[2:5]) for n in (5, 6, 7))
    assert half == both
    for page in (PACKAGE.parent / "README.md", PACKAGE.parent / "docs" / "how-to" / "own-data.md"):
        text = " ".join(page.read_text(encoding="utf-8").split())
        assert f"{half} of sixty draws" in text and "all of them coherently" in text
    assert {(u["consistent"], u["dealt"]["consistent"]) for u in sweeps} == {(True, False)}
    truthful = [u["consistent"] for u in held["embedded"] if u["behaviour"] == "truthful"]
    assert truthful.count(False) == 8 and "in eight of the ten draws" in page_text()


def test_what_a_budget_of_drift_buys_is_in_the_record():
    held, sweeps = (record_of_draws()[name] for name in ("budgets", "sweeps"))
    limit, page = program("behaviour_tables").REPEATS, page_text()
    coherent = {id(of): of["repeated"][1] <= of["repeated"][0] + limit for of in held}
    (table,) = (t for t in tables(page) if "budget" in t[0])
    for name, draws, budget, *cells in table[1:]:
        first, last = map(int, draws.split(" to "))
        of = [u for u in held if (u["behaviour"], u["budget"]) == (name, float(budget)) and first <= u["draw"] <= last]
        assert sorted(u["draw"] for u in of) == list(range(first, last + 1))
        repeated = [f"{100 * np.mean([u['repeated'][i] for u in of]):.0f} %" for i in (0, 1)]
        assert cells == [
            *(f"{np.mean([u[x] for u in of]):.2f}" for x in ("kl", "before", "after")),
            f"{sum(coherent[id(u)] for u in of)} of {len(of)}", " -> ".join(repeated),
        ]  # fmt: skip
    fresh = [u["after"]["repetition"] > u["before"]["repetition"] + limit for u in sweeps if u["behaviour"] == "unsure"]
    loops = {
        budget: [not coherent[id(u)] for u in held if (u["behaviour"], u["budget"]) == ("unsure", budget)]
        for budget in (0.2, 0.25)
    }
    loops[0.2] += fresh
    assert [(sum(of), len(of)) for of in loops.values()] == [(1, 60), (4, 40)]
    p = fisher_exact([[sum(of), len(of) - sum(of)] for of in loops.values()]).pvalue
    assert f"p = {p:.2f}" in page
    by = {(u["budget"], u["draw"]): u for u in held if u["behaviour"] == "unsure" and u["draw"] < 40}
    more = bootstrap_mean([by[0.2, i]["after"] - by[0.25, i]["after"] for i in range(20)])
    assert f"{float(more):.2f} more at 0.2 [{more.low:.2f}, {more.high:.2f}]" in page
    less = bootstrap_mean([by[0.2, i]["repeated"][1] - by[0.15, i]["repeated"][1] for i in range(40)])
    assert "{:.1f} points less [{:.1f}, {:.1f}]".format(*(100 * x for x in (float(less), less.low, less.high))) in page


def test_what_three_fits_came_to_is_in_their_record():
    held = fits("behaviour_fits.json")
    page, trouble = (
        (RESULTS.parent / name).read_text(encoding="utf-8") for name in ("how-to/own-data.md", "troubleshooting.md")
    )
    (table,) = (t for t in tables(page) if "answers read" in t[0])
    for cells, of in zip(table[1:], held["fits"], strict=True):
        assert cells[:-1] == [
            of["behaviour"], f"{of['seconds']:.0f}", f"layer {of['layer']}", f"{of['strength']:.2f}, {of['kl']:.2f}",
            f"{of['before']:.2f} -> {of['after']:.2f}",
            *(f"{of[x]:.2f}" for x in ("random directions", "random places")),
        ]  # fmt: skip
        assert cells[-1].split(":")[0] == of["verdict"]
    greedy, *sampled = held["repetition"].values()
    figures = [f"{100 * of[who]:.1f}" for who in ("shifted", "unedited") for of in (greedy, *sampled)]
    pattern = (
        r"(N) % of word triples\s+came again greedily, (N) and (N) % in two samplings; unedited (N), and (N) and (N)"
    )
    said = re.search(pattern.replace("N", r"\d+\.\d"), trouble)
    assert said is not None and list(said.groups()) == figures


def test_what_is_said_of_gemma_and_the_embedded_model_is_in_the_record():
    held, page = record_of_draws(), " ".join(page_text().split())
    of = {name: [u for u in held["gemma"] if u["behaviour"] == name] for name in ("cheerful", "casual", "unsure")}

    def ahead(units, control):
        by = bootstrap_mean([u["after"]["mean"] - np.mean([one["mean"] for one in u[control]]) for u in units])
        return f"{abs(float(by)):.2f}", f"[{by.low:.2f}, {by.high:.2f}]"

    assert (
        "cheerful by {} more than these {}, casual by {} {}, unsure by {} {}".format(
            *(said for units in of.values() for said in ahead(units, "random_places"))
        )
        in page
    )
    assert (
        "by {} ({} less {})".format(
            "0.11", *ahead([u for u in held["embedded"] if u["behaviour"] == "truthful"], "random_directions")
        )
        in page
    )
    drifted = program("behaviour_tables").SAME
    best = [
        max((r for r in u["sweep"] if r["kl"] <= drifted * u["kl"]), key=lambda r: r["mean"]) for u in of["cheerful"]
    ]
    assert [row["layer"] for row in best].count(17) == 9
    assert [u["layers"] for u in of["cheerful"]].count([17]) == 4
    unsure = behaviour("unsure")
    less = [np.mean([unsure.count(t.replace("no comment", "")) for t in u["after"]["texts"]]) for u in of["unsure"]]
    assert (
        less.count(0) == 6
        and f"{np.mean(less):.2f} in place of {np.mean([u['after']['mean'] for u in of['unsure']]):.2f}" in page
    )
    assert [sum("no comment" in t for t in u["before"]["texts"]) for u in of["unsure"]] == [1] * 10
