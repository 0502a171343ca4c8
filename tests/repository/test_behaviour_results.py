"""What the pages say of `fit` on shipped behaviours follows from the records of its draws."""

from __future__ import annotations

import json
import lzma
import re

import numpy as np
from scipy.stats import fisher_exact

from tests.repository.published_records import RESULTS, program, tables
from tests.repository.source import PACKAGE
from trimtab.datasets.behaviours import BEHAVIOURS, behaviour
from trimtab.intervals import bootstrap_mean
from trimtab.steer.outcome import VISIBLE


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


def passes(row):
    """Return whether a row of a record, of a draw with a sweep, reaches half of its best, coherently."""
    moved, most = row["after"] - row["before"], row["best"] - row["before"]
    coherent = row["repeated"][1] <= row["repeated"][0] + program("behaviour_tables").REPEATS
    return coherent and moved > 0 and moved >= most / 2 - 1e-4  # the record's rounding


def passing(rows, name, first):
    """Return how many of the ten draws from a first one pass."""
    of = [row for row in of_behaviour(rows, name) if first <= row["draw"] < first + 10]
    assert len(of) == 10
    return sum(map(passes, of))


def test_the_tables_of_what_fit_finds_are_made_from_its_record():
    held, page, made_of = record_of_draws(), page_text(), program("behaviour_tables").tables
    made = {name: "\n".join(made_of(held[name])).strip().split("\n\n") for name in ("sweeps", "embedded", "gemma")}
    assert all(table in page for of in made.values() for table in of)
    drifts = [(one["kl"], u["kl"]) for name in made for u in held[name] for k in CONTROLS for one in u[k]]
    assert all(0.94 < control / fit < 1.06 for control, fit in drifts)
    assert all(u["hooks_agree"] == 1 for name in made for u in held[name])
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


def test_what_is_said_of_the_draws_before_is_in_the_record():
    held, page = record_of_draws(), " ".join(page_text().split())
    before = held["earlier"] + held["between"]
    (table,) = (t for t in tables(page_text()) if "60 to 69" in t[0])
    for name, cells in zip(BEHAVIOURS, table[1:], strict=True):
        assert cells == [name, *(f"{passing(before, name, first)} of 10" for first in range(60, 110, 10))]
        now = of_behaviour(held["sweeps"], name)
        best = np.mean([row["best"] for row in of_behaviour(held["between"], name)])
        start = np.mean(now[0]["before"]["counts"])
        assert (counted(now) - start >= (best - start) / 2).all()
    unsure = sum(passing(held["between"], "unsure", first) for first in (80, 90, 100))
    p = fisher_exact([[10, 0], [unsure, 30 - unsure]]).pvalue
    fifty = unsure + sum(passing(held["earlier"], "unsure", first) for first in (60, 70))
    choosing = (PACKAGE.parent / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert f"in all of ten draws, by versions before in {fifty} of fifty" in choosing
    assert unsure == 25 and f"Fisher's, p = {p:.2f}" in page
    assert {(u["consistent"], u["dealt"]["consistent"]) for u in held["earlier"]} == {(True, False)}
    assert all(u["consistent"] for u in held["sweeps"]) and "is said of none of these thirty" in page


def test_what_fit_would_say_by_its_limit_of_now_is_in_the_record():
    held, page, made_of = record_of_draws(), " ".join(page_text().split()), program("behaviour_tables")
    weak = re.compile(
        r"works weakly: answers moved (\d+) % of the way [^;]*; too little to show in most answers\. Try .*"
    )
    for name, more in (("sweeps", 4), ("gemma", 4)):
        found = [(u, weak.fullmatch(u["sentence"])) for u in held[name]]
        some = [u for u, match in found if match and int(match[1]) >= 25]
        assert len(some) == more
        for u in some:
            after, before = (np.mean(u[when]["counts"]) for when in ("after", "before"))
            assert after - before >= (made_of.best_of(u) - before) / 2
    works = [u["verdict"] for u in held["sweeps"]].count("works")
    assert works == 20 and VISIBLE["reading"] == 0.25 and f"so {works + 4} of these 30 would be right" in page


def test_how_far_fit_is_ahead_of_random_layers_is_in_the_record():
    held, page = record_of_draws()["sweeps"], " ".join(page_text().split())
    ahead, share = [], []
    for name in ("cheerful", "casual"):
        of = of_behaviour(held, name)
        by = bootstrap_mean((counted(of) - counted(of, "random_places")).tolist())
        ahead.append(f"{float(by):.2f} [{by.low:.2f}, {by.high:.2f}]")
        before = np.mean(of[0]["before"]["counts"])
        share.append(float((counted(of, "random_places") - before).mean() / (counted(of) - before).mean()))
    assert "{} and {} words per ten".format(*ahead) in page
    assert "{:.1f} and {:.1f} times as far".format(*share) in page


def test_what_is_said_of_gemma_is_in_the_record():
    held, page, best_of = record_of_draws(), " ".join(page_text().split()), program("behaviour_tables").best_of
    cheerful = of_behaviour(held["gemma"], "cheerful")
    assert [max(u["sweep"], key=lambda row: row["mean"])["layer"] for u in cheerful] == [17] * 10
    before = np.mean(cheerful[0]["before"]["counts"])
    reach = np.array(
        [after - before >= (best_of(u) - before) / 2 for u, after in zip(cheerful, counted(cheerful), strict=True)]
    )
    last = np.array([u["layers"] == [17] for u in cheerful])
    assert (last.sum(), (reach & last).sum(), (reach & ~last).sum()) == (6, 6, 2)
    assert [passing(held["gemma_earlier"], name, 0) for name in BEHAVIOURS] == [6, 10, 10]
    unsure, of = behaviour("unsure"), of_behaviour(held["gemma"], "unsure")
    less = [np.mean([unsure.count(t.replace("no comment", "")) for t in u["after"]["texts"]]) for u in of]
    words = "Without it one of these ten draws counts nothing, "
    words += "and all ten together {:.2f} of the answers in place of {:.2f}"
    assert less.count(0) == 1 and words.format(np.mean(less), counted(of).mean()) in page
    assert [sum("no comment" in t for t in u["before"]["texts"]) for u in of] == [1] * 10


def test_what_is_said_of_the_embedded_model_is_in_the_record():
    held, earlier = (record_of_draws()[name] for name in ("embedded", "embedded_earlier"))
    page, best_of = " ".join(page_text().split()), program("behaviour_tables").best_of
    reserved, truthful = (of_behaviour(held, name) for name in ("reserved", "truthful"))
    before = np.mean(reserved[0]["before"]["counts"])
    reach = [after - before >= (best_of(u) - before) / 2 for u, after in zip(reserved, counted(reserved), strict=True)]
    assert {(u["layers"][0], bool(of)) for u, of in zip(reserved, reach, strict=True)} == {(7, True), (5, False)}
    assert sum(reach) == 8 and "passes in eight of ten draws" in page
    of_before = [passing(earlier, "reserved", first) for first in (20, 30, 40, 50)]
    words = "{} (draws 20 to 29), {} (30 to 39), {} (40 to 49) and {} of ten (50 to 59)"
    assert words.format(*of_before) in page
    assert f"p = {fisher_exact([[8, 2], [of_before[-1], 10 - of_before[-1]]]).pvalue:.2f})" in page
    none = [u["consistent"] for u in truthful].count(False)
    assert f"of {('eight', 'nine')[none - 8]} draws `fit` says that the sides" in page
    assert all(u["verdict"] == "does not work" for u in truthful if not u["consistent"])


def test_how_few_neutral_texts_tell_the_drift_is_in_its_record():
    rms = {
        (model, row["texts"], row["tokens"]): row["rms"]
        for model, of in fits("drift_texts.json").items() for row in of["rows"]
    }  # fmt: skip
    few, many = (
        [f"{100 * rms[model, *how]:.0f}" for model in ("smollm2", "gemma3-270m")] for how in ((3, 96), (18, 48))
    )
    assert few == ["7", "7"] and many == ["13", "16"]
    page = " ".join(page_text().split())
    assert "three texts of 96 tokens are 7 % off" in page and "eighteen of 48 are 13 and 16 % off" in page
    assert {of["shifts"] for of in fits("drift_texts.json").values()} == {24, 15}


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
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    assert f"Thirty pairs, {held['readme']['seconds']:.0f} seconds on two idle CPU cores" in readme
    greedy, *sampled = held["repetition"].values()
    figures = [f"{100 * of[who]:.1f}" for who in ("shifted", "unedited") for of in (greedy, *sampled)]
    pattern = (
        r"(N) % of word triples\s+came again greedily, (N) and (N) % in two samplings; unedited (N), and (N) and (N)"
    )
    said = re.search(pattern.replace("N", r"\d+\.\d"), trouble)
    assert said is not None and list(said.groups()) == figures
