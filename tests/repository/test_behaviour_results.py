"""What the pages say of `fit` on shipped behaviours follows from the records of its draws."""

from __future__ import annotations

import json
import lzma
import re

import numpy as np
from scipy.stats import fisher_exact, mannwhitneyu

from tests.repository.published_records import RESULTS, program, tables
from tests.repository.source import PACKAGE
from trimtab.datasets.behaviours import BEHAVIOURS, behaviour
from trimtab.intervals import bootstrap_mean


def page_text():
    return (RESULTS / "behaviours.md").read_text(encoding="utf-8")


def record_of_draws():
    return json.loads(lzma.decompress((RESULTS / "behaviours.json.xz").read_bytes()))


def fits(name):
    return json.loads((PACKAGE.parent / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


CONTROLS = ("random_directions", "random_places")


def counted(units, control=None):
    """Return the count of each unit's answers, or the mean of those under its controls."""
    return np.array([
        np.mean(u["after"]["counts"]) if control is None else np.mean([np.mean(c["counts"]) for c in u[control]])
        for u in units
    ])  # fmt: skip


def of_behaviour(units, name):
    return [unit for unit in units if unit["behaviour"] == name]


def test_the_tables_of_what_fit_finds_are_made_from_its_record():
    held, page, made_of = record_of_draws(), page_text(), program("behaviour_tables").tables
    made = {
        name: "\n".join(made_of(held[name])).strip().split("\n\n") for name in ("sweeps", "embedded", "gemma_earlier")
    }
    made["gemma_earlier"].pop()  # what a version before said of itself
    made["embedded"].pop(1)  # its controls are not all at the fits' drift
    drifts = [(one["kl"], u["kl"]) for u in held["sweeps"] + held["gemma_earlier"] for k in CONTROLS for one in u[k]]
    assert all(0.95 < control / fit < 1.05 for control, fit in drifts)
    assert all(table in page for of in made.values() for table in of)
    half, _, both = (
        sum(int(x.split(" | ")[n].split()[0]) for x in made["sweeps"][0].splitlines()[2:]) for n in (5, 6, 7)
    )
    assert half == both and len(held["sweeps"]) == 30
    for name in ("README.md", "docs/how-to/own-data.md"):
        text = " ".join((PACKAGE.parent / name).read_text(encoding="utf-8").split())
        assert f"{half} of thirty draws" in text and "all of them coherently" in text
    styles = [x.split(" | ")[7].strip(" |") for x in made["sweeps"][0].splitlines()[2:4]]
    choosing = (PACKAGE.parent / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert styles == ["10 of 10"] * 2 and "in all of twenty draws of thirty pairs, coherently" in choosing
    assert {(u["consistent"], u["dealt"]["consistent"]) for u in held["earlier"]} == {(True, False)}
    assert all(u["consistent"] for u in held["sweeps"]) and "is said of none" in page
    limit = program("behaviour_tables").REPEATS
    passed = [
        sum(u["after"] - u["before"] >= (u["best"] - u["before"]) / 2 for u in of_behaviour(held["earlier"], name))
        for name in BEHAVIOURS
    ]
    assert "passed in {}, {} and {}.".format(*passed) in page
    assert all(u["repeated"][1] <= u["repeated"][0] + limit for u in held["earlier"])


def test_how_far_fit_is_ahead_of_random_layers_is_in_the_record():
    held, page = record_of_draws()["sweeps"], " ".join(page_text().split())
    ahead = []
    for name in ("cheerful", "casual"):
        of = of_behaviour(held, name)
        by = bootstrap_mean((counted(of) - counted(of, "random_places")).tolist())
        ahead.append(f"{float(by):.2f} [{by.low:.2f}, {by.high:.2f}]")
    assert "{} and {} words per ten".format(*ahead) in page


def test_what_is_said_of_gemma_is_in_the_record():
    held, page = record_of_draws(), " ".join(page_text().split())
    (table,) = (t for t in tables(page_text()) if "best of the earlier sweeps" in t[0])
    best_of = program("behaviour_tables").best_of
    for name, cells in zip(BEHAVIOURS, table[1:], strict=True):
        of, earlier = (of_behaviour(held[key], name) for key in ("gemma", "gemma_earlier"))
        after, before = counted(of), np.mean(of[0]["before"]["counts"])
        best = np.mean([best_of(u) for u in earlier])
        repeated = [f"{100 * np.mean([u[when]['repetition'] for u in of]):.0f} %" for when in ("before", "after")]
        said = [u["verdict"] for u in of]
        assert cells[0].startswith(name) and cells[1:] == [
            f"{np.mean([u['kl'] for u in of]):.2f}", *(f"{x:.2f}" for x in (before, after.mean(), best)),
            f"{(after - before >= (best - before) / 2).sum()} of 10", " -> ".join(repeated),
            ", ".join(str(said.count(verdict)) for verdict in ("works", "works weakly", "does not work")),
        ]  # fmt: skip
    now, earlier = (of_behaviour(held[key], "cheerful") for key in ("gemma", "gemma_earlier"))
    assert [[u["layers"] for u in of].count([17]) for of in (now, earlier)] == [6, 4]
    best = [max(u["sweep"], key=lambda row: row["mean"])["layer"] for u in earlier]
    assert best.count(17) == 9
    p = mannwhitneyu(counted(now), counted(earlier)).pvalue
    means = counted(now).mean(), counted(earlier).mean()
    assert (
        "({:.2f} in place of {:.2f}) ten draws of each do not show (Mann-Whitney, p = {:.2f})".format(*means, p) in page
    )
    unsure, of = behaviour("unsure"), of_behaviour(held["gemma"], "unsure")
    less = [np.mean([unsure.count(t.replace("no comment", "")) for t in u["after"]["texts"]]) for u in of]
    words = "Without it {} of these ten draws count nothing, and all ten together an eighth of the answers"
    words += f" in place of {counted(of).mean():.2f}"
    assert words.format({5: "five"}[less.count(0)]) in page and np.isclose(np.mean(less), 1 / 8)
    assert [sum("no comment" in t for t in u["before"]["texts"]) for u in of] == [1] * 10


def test_what_is_said_of_the_embedded_model_is_in_the_record():
    held, earlier = (record_of_draws()[name] for name in ("embedded", "embedded_earlier"))
    page = " ".join(page_text().split())
    truthful = of_behaviour(held, "truthful")
    no_direction = [u["consistent"] for u in truthful].count(False)
    assert "in all five draws, and `fit` says" in page and no_direction == len(truthful) == 5
    passed = [
        sum(u["after"] - u["before"] >= (u["best"] - u["before"]) / 2 - 1e-4 for u in of_behaviour(earlier, name))
        for name in ("reserved", "truthful")
    ]
    assert passed == [9, 9] and "passed in nine and nine" in page
    reserved = of_behaviour(held, "reserved")
    drifts = [one["kl"] / u["kl"] for u in reserved for one in u["random_directions"]]
    assert f"at {min(drifts):.1f} to {max(drifts):.1f} times the drift" in page


def test_how_answers_are_read_is_in_its_record():
    held = fits("readers.json")
    (table,) = (t for t in tables(page_text()) if "standardised" in t[0])
    rows = [(model, row) for model in ("smollm2", "gemma3-270m") for row in held[model]["rows"]]
    for cells, (model, row) in zip(table[1:], rows, strict=True):
        label = {"smollm2": "SmolLM2", "gemma3-270m": "Gemma-3-270M"}[model]
        figures = (f"{row[kind]:.2f}" for kind in ("plain", "standardised"))
        assert cells == [f"{label}, {row['behaviour']}", str(row["answers"]), *figures]


def test_what_a_budget_of_drift_buys_is_in_the_record():
    held, earlier = (record_of_draws()[name] for name in ("budgets", "earlier"))
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
    fresh = [u["repeated"][1] > u["repeated"][0] + limit for u in of_behaviour(earlier, "unsure")]
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
