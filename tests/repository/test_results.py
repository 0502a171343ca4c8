"""Every figure of the published tables follows from the per-question rows that lie beside them."""

from __future__ import annotations

import json
import lzma
import re
import tarfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tests.repository.published_records import (
    RESULTS,
    answers_of,
    by_style,
    cells_of,
    packed_run,
    printed_in,
    program,
    smollm2,
    style_of,
    table_of,
    tables,
)
from tests.repository.source import PACKAGE
from trimtab.cells import figure as shown_figure
from trimtab.cells import number, p_text
from trimtab.compare.comparison import Comparison
from trimtab.compare.search import Search, Tried
from trimtab.evaluate.factual import fact_meters
from trimtab.intervals import Estimate
from trimtab.report.markdown import to_markdown
from trimtab.report.verdict import conclusions

# what is held here is what records say; annotations are checked where comparisons and reports are tested
pytestmark = pytest.mark.usefixtures("unchecked")
PAGES = {"editing.md": "editing", "low-data.md": "low_data"}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def true_info_of(run, method, size):
    """Return the True*Info of each of a method's searches in %, by seed and fold."""
    found = {}
    for test in run.of(method, size):
        rows = run.measurements(test, "best")[0]["rows"]["generated"].values()
        true, informative = (np.mean([row[name] for row in rows]) for name in ("true", "informative"))
        found[test["seed"], test["fold"]] = f"{100 * true * informative:.1f}"
    return [found[place] for place in sorted(found)]


def difference(run, pair, meter, size):
    """Return the tested difference of two rows, and its p after Holm's correction over all pairs."""
    one, other = pair.split(" - ")
    found = next(c for c in run.contrasts(meter, size) if {c.one, c.other} == {one, other})
    turn = 1 if found.one == one else -1
    value = found.tested.difference
    shown = [number(n, "share", signed=True) for n in (turn * value, *sorted((turn * value.low, turn * value.high)))]
    p = p_text(found.tested.p_holm, at_floor=found.tested.at_floor)
    return f"{shown[0]} [{shown[1]}, {shown[2]}], p {p}"


def made_from(runs):
    """Return every line that is made from comparisons, conclusions by each tested meter among them."""
    lines = {line for run in runs for line in to_markdown(run).splitlines()}
    return lines | {f"- {said}" for run in runs for m in run.summed if not m.collateral for said in conclusions(run, m)}


def test_every_line_about_the_real_model_is_made_from_its_records(tmp_path):
    with tarfile.open(RESULTS / "real.tar.xz") as held:
        held.extractall(tmp_path, filter="data")
    made = made_from([Comparison.load(tmp_path / run) for run in ("behaviour", "folklore")])
    printed = printed_in("real.md")
    assert len(printed) > 40 and [line for line in printed if line not in made] == []
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8").partition("`make real` asks")[2]
    rows = {cells[0]: cells[1].split()[0] for line in printed if len(cells := line.strip("| ").split(" | ")) == 3}
    counted = [f"{float(n):.2f}" for name, n in rows.items() if "[" not in n and "." in n and "budget" not in name]
    assert len(counted) == 8 and [figure for figure in counted if figure not in readme] == []


@pytest.mark.parametrize(
    "page, heading, run",
    [
        ("smollm2.md", "## Cheerful", "cheerful"),
        ("smollm2.md", "## Casual", "casual"),
        ("smollm2.md", "## Unsure", "unsure"),
        pytest.param("facts.md", "## One fact", "facts50", marks=pytest.mark.slow),
        pytest.param("facts.md", "## Eight", "facts8", marks=pytest.mark.slow),
        ("facts.md", "## Sixty-four", "facts64"),
        pytest.param("facts.md", "## Two hundred", "facts256", marks=pytest.mark.slow),
        pytest.param("folklore.md", "## Every row", "folklore", marks=pytest.mark.slow),
        pytest.param("truthfulqa.md", "## Every row", "truthfulqa", marks=pytest.mark.slow),
        pytest.param("transfer.md", "## From TruthfulQA to folklore, every row", "there", marks=pytest.mark.slow),
        pytest.param("transfer.md", "## From folklore to TruthfulQA, every row", "back", marks=pytest.mark.slow),
    ],
)
def test_every_line_of_a_gpu_s_comparison_is_made_from_its_records(page, heading, run):
    made, printed = made_from([smollm2(run)]), printed_in(page, heading)
    assert len(printed) > 20 and [line for line in printed if line not in made] == []


def test_what_five_hundred_facts_in_batches_end_in_follows_from_their_rows():
    held = json.loads(lzma.decompress((RESULTS / "smollm2_facts500.json.xz").read_bytes()))
    text = (RESULTS / "facts.md").read_text(encoding="utf-8").partition("## Five hundred")[2]
    lines, ends = [[str(50 * i)] for i in range(1, 11)], []
    for name, found in held.items():
        said = np.array([row["said"] for row in found["facts"]])
        assert len(said) == 500 and said.mean() == pytest.approx(found["said"]["mean"])
        assert f"{name} ends at {100 * said.mean():.1f} % said and a KL of {found['kl']['mean']:.1f}" in text
        shares = [shown_figure(Estimate(**found[m.name]), "share") for m in fact_meters()]
        ends.append([name, *shares, shown_figure(Estimate(**found["kl"]), "nats")])
        for line, batch, left in zip(lines, found["batches"], said.reshape(10, 50).mean(1), strict=True):
            assert line[0] == str(batch["facts"])
            line += [f"{batch['norms']['3']:.0f}", f"{batch['norms']['7']:.0f}", f"{100 * left:.0f} %"]
    assert list(held) == ["MEMIT", "AlphaEdit"] and [table[1:] for table in tables(text)] == [ends, lines]


def test_what_pages_say_of_facts_stands_in_their_tables():
    heads = {"One": "1", "Eight": "8", "Sixty-four": "64", "Two": "256", "Five": "500"}
    cells = {}
    for section in (RESULTS / "facts.md").read_text(encoding="utf-8").split("\n## ")[2:]:
        for columns, *rows in tables(section):
            for name, *row in rows:
                cells |= {(heads[section.split()[0]], name, c): v for c, v in zip(columns[1:], row, strict=True)}

    def figure_at(place):
        n, row, column = place[1].replace("kept", "neighbours kept").split("|")
        cell = cells[n, row, column.rstrip("~.")].split()[0]
        return cell if column == "KL" or column.endswith(".") else f"{float(cell):.0f}"

    lines = (Path(__file__).parent / "facts_said.txt").read_text(encoding="utf-8").splitlines()
    for page, said in (line.split(": ", 1) for line in lines):
        text = " ".join((RESULTS.parent / page).read_text(encoding="utf-8").split())
        assert re.sub(r"\[(\d+\|[^]]+)\]", figure_at, said) in text


def told_apart(name):
    """Return (meter, row, row) -> whether the page of facts says that the two are told apart in this run."""
    loras, control = ("LoRA r=8, 2e-4", "LoRA r=8, 1e-3", "LoRA r=8"), "Random tries (MEMIT)"
    every = ("said", "paraphrases", "kept", "leak")
    said = {(meter, "MEMIT", "AlphaEdit"): False for meter in every} | {("said", "MEMIT", control): True}
    if name == "facts50":
        said = {(m, *pair): False for m in every for pair in combinations(("ROME", "MEMIT", "AlphaEdit"), 2)}
        said |= {("kept", "ROME", "ROME, C = I"): True, ("paraphrases", "ROME", "In context"): True}
        said |= {("said", "ROME", "In context"): False, ("said", "ROME", "Random tries (ROME)"): True}
        said |= {(meter, "ROME", lora): True for meter in ("kept", "leak") for lora in loras}
        said |= {("paraphrases", "ROME", lora): True for lora in loras[:2]}
    elif name == "facts64":
        said[("kept", "MEMIT", control)] = False
    elif name == "facts256":
        said |= {("kept", "MEMIT", control): True, ("said", "MEMIT", "EMMET"): True}
        others = [
            row.name for row in smollm2(name).rows() if row.name not in ("Baseline", "GRACE") and row.variant == "best"
        ]
        said |= {(meter, "GRACE", other): True for meter in ("said", "kept") for other in others}
    return said


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("facts50", "facts8", "facts256")), "facts64"]
)
def test_what_is_called_tested_of_facts_is_told_apart_and_nothing_else(name):
    run, told = smollm2(name), told_apart(name)
    found = {(meter, c.one, c.other): c.apart for meter, *_ in told for c in run.contrasts(meter)}
    found |= {(meter, other, one): apart for (meter, one, other), apart in found.items()}
    assert {pair: found[pair] for pair in told} == told


def by_end(run):
    """Return lines: how many answers end themselves and how many are cut, and how many of each are judged true."""
    lines = []
    for method in ("Baseline", "CAA", "Retrieved few-shot", "LoRA r=8", "Full fine-tuning"):
        found = answers_of(run, method, "generated", ["ended", "true", "words"]).values()
        ended, true, words = np.array([values for measured in found for values in measured]).T
        shares = [f"{100 * np.mean(ended == end):.0f} %" for end in (1, 0)]
        judged = [f"{100 * true[ended == end].mean():.0f} %" if sum(ended == end) >= 20 else "-" for end in (1, 0)]
        cells = [cell for pair in zip(shares, judged, strict=True) for cell in pair]
        lines.append(f"| {method} | {words.mean():.0f} | {' | '.join(cells)} |")
    return lines


def test_where_style_picks_right_and_what_the_judge_makes_of_length_follow_from_the_records():
    run = smollm2("truthfulqa")
    printed = [x for h in ("## MC1", "## True") for x in printed_in("truthfulqa.md", h) if x.startswith("| ")]
    made = [*by_style(run, style_of(run)), *by_end(run)]
    readme = " ".join((PACKAGE.parent / "README.md").read_text(encoding="utf-8").split()).partition("[TruthfulQA]")[2]
    mc1 = ("Baseline", "ITI", "Random tries (ITI)", "Retrieved few-shot", "LoRA r=8")
    said = re.match(
        r".*?MC1 goes from (N) to (N) by ITI \(.*?tries (N)\), to (N) by .*? (N) by LoRA".replace("N", r"\d+\.\d"),
        readme,
    )
    found = [answers_of(run, method, "multiple_choice", ["mc1"]).values() for method in mc1]
    assert said and list(said.groups()) == [f"{100 * np.mean([np.mean(v) for v in each]):.1f}" for each in found]
    assert [x for x in printed if not x.startswith(("| --", "|  |"))] == made


def test_what_the_published_protocols_gave_on_a_small_model_is_in_their_records():
    table_1, two_fold = (
        json.loads((PACKAGE.parent / f"benchmarks/results/iti_{name}.json").read_text(encoding="utf-8"))
        for name in ("table_1", "2fold")
    )
    units = {m["name"]: m["unit"] for m in table_1["setting"]["meters"]}
    rows = {("Baseline", 0): two_fold["48 heads"]["rows"]["Baseline"]}
    rows |= {(f"ITI, {heads}", 0): of["rows"]["ITI"] for heads, of in two_fold.items()}
    rows |= {(name, 1): row for name, row in table_1["rows"].items()}
    made = []
    for (name, _), row in rows.items():
        asked = ("true_info", "true", "info", "mc1", "mc2", "ce", "kl")
        found = [Estimate(*(row[m][k] for k in ("mean", "low", "high", "n"))) for m in asked]
        made.append(f"| {name} | {' | '.join(shown_figure(f, units[m]) for f, m in zip(found, asked, strict=True))} |")
    text = (RESULTS.parent / "published.md").read_text(encoding="utf-8").partition("## On a small model")[2]
    printed = [line for line in text.splitlines() if line.startswith("| ") and line[:5] not in ("| ---", "|  | ")]
    assert printed == made and len(printed) == 8


def test_what_is_packed_comes_back_rounded_and_without_what_was_left_out(tmp_path):
    packed, run = program("packed"), tmp_path / "run"
    rows = {f"q{i}": {"kl": i / 7, "words": float(i), "true": float(i % 2), "answer": f"so {i}"} for i in range(12)}
    style = {"multiple_choice": {"q": {"mc1": 0.12345}}}
    measured = {"3": {"rows": {"drift": rows}, "made": {"losses": [1.0]}}}
    record = {"why": "Out of it. And more", "measured": measured, "without_model": style}
    (run / "records" / "a").mkdir(parents=True)
    for place in ("record.json", "records/a/test.json"):
        (run / place).write_text(json.dumps(record))
    (tmp_path / "file").write_bytes(packed.pack(run, decimals=3, coarse=["words"], without=["answer"]))
    packed.unpack(tmp_path / "file", tmp_path / "back")
    back = json.loads((tmp_path / "back/records/a/test.json").read_text())
    hidden = lzma.decompress(packed.pack(run, unnamed="drift")).decode()
    assert "so 3" in hidden and "q3" not in hidden and len(set(json.loads(hidden)["items"])) == 13
    drawn = {**record, "measured": record["measured"]["3"], "without_model": {"drift": rows}}
    (run / "records/a/test.json").write_text(json.dumps(drawn))
    (tmp_path / "file").write_bytes(packed.pack(run, decimals=3, coarse=["words"], without=["answer"]))
    packed.unpack(tmp_path / "file", tmp_path / "drawn")
    read = json.loads((tmp_path / "drawn/records/a/test.json").read_text())
    assert read["measured"] == back["measured"]["3"] and read["without_model"] == read["measured"]["rows"]
    expected = {q: {"kl": round(row["kl"], 3), "words": row["words"], "true": row["true"]} for q, row in rows.items()}
    style["multiple_choice"]["q"]["mc1"] = 0.123
    measured["3"] = {"rows": {"drift": expected}, "made": {}}
    assert back == {"why": "Out of it", "measured": measured, "without_model": style}


@pytest.mark.parametrize("page", PAGES)
def test_every_sentence_and_the_table_of_a_page_are_made_from_its_record(page):
    run = packed_run(PAGES[page])
    made = to_markdown(run)
    said = [line for line in (RESULTS / page).read_text(encoding="utf-8").splitlines() if line.startswith("- ")]
    assert len(said) > 4 and [line for line in said if line not in made.splitlines()] == []
    cells, printed = cells_of(made), table_of(page, "MC1")
    assert set(printed) == {row.name for row in run.rows(run.sizes[-1]) if row.n_done} | {"Answers' style alone"}
    wrong = {(n, h): c for n, row in printed.items() for h, c in row.items() if c != cells.get((n, h), "-")}
    assert wrong == {}


def test_the_readme_s_figures_of_the_embedded_model_are_those_of_the_page():
    figures = r"ITI reaches (N) %.*?unedited (N)\), few-shot examples (N), LoRA (N), a sentence .*?(N): .*? reach (N),"
    said = re.search(figures.replace("N", r"\d+\.\d"), (PACKAGE.parent / "README.md").read_text(encoding="utf-8"), re.S)
    names = ("ITI", "Baseline", "Few-shot", "LoRA r=8", "Persona", "Random tries (ITI)")
    table = table_of("editing.md", "MC1")
    assert said is not None and list(said.groups()) == [table[name]["True*Info"].split()[0] for name in names]


def test_the_printed_searches_and_differences_are_those_of_the_records():
    run = packed_run("editing")
    for name, row in table_of("editing.md", "seed 2, fold 1").items():
        assert list(row.values()) == true_info_of(run, name, None)
    for pair, row in table_of("editing.md", "MC2, difference").items():
        assert list(row.values()) == [difference(run, pair, meter, None) for meter in ("true_info", "mc1", "mc2")]
    run = packed_run("low_data")
    for name, row in table_of("low-data.md", "10, each draw").items():
        assert list(row.values()) == [", ".join(true_info_of(run, name, size)) for size in run.sizes]
    for pair, row in table_of("low-data.md", "40, difference").items():
        assert list(row.values()) == [difference(run, pair, "true_info", size) for size in run.sizes]


def test_what_is_said_of_the_trained_judge_is_in_its_record():
    record = json.loads((PACKAGE.parent / "benchmarks/results/judge.json").read_text(encoding="utf-8"))
    page = RESULTS.parent / "how-to" / "judges.md"
    (table,) = (t for t in tables(page.read_text(encoding="utf-8")) if "Cohen's kappa" in t[0])
    for (_, *cells), key in zip(table[1:], ("people", "people_on_other_answers"), strict=True):
        of = [record[key][kind] for kind in ("true", "informative")]
        said = [(shown_figure(Estimate(**one["agreement"]), "share"), f"{one['kappa']['mean']:.2f}"[1:]) for one in of]
        assert cells == [cell for pair in said for cell in pair]
    accepted = {kind: round(25 * of["both"]["mean"]) for kind, of in record["false_accepts"].items()}
    assert accepted == {"empty": 0, "letters": 0, "loop": 0, "another question's answer": 14}
    assert f"{record['seconds']} s" in page.read_text(encoding="utf-8")


def test_the_table_of_rounded_weights_is_that_of_its_record():
    record = json.loads((PACKAGE.parent / "benchmarks/results/rounded_weights.json").read_text(encoding="utf-8"))
    page = (RESULTS.parent / "tuning.md").read_text(encoding="utf-8")
    (table,) = (t for t in tables(page) if "weights that round back" in t[0])
    for (rate, *cells), row in zip(table[1:], record["rows"], strict=True):
        falls = [f"{row[name]:.3f}" for name in ("float32", "copies", "copies_rounded", "float32_rounded")]
        assert (float(rate), cells) == (
            row["rate"],
            [*falls, *(f"{100 * row[name]:.0f} %" for name in ("back", "left"))],
        )


def test_the_table_of_erased_styles_is_that_of_its_record():
    rows = json.loads((PACKAGE.parent / "benchmarks/results/erasing.json").read_text(encoding="utf-8"))["rows"]

    def read(found, layer):
        share = found["read"].get(layer)
        return "-" if share is None else f"{share[0]:.1f} [{share[1]:.1f}, {share[2]:.1f}]"

    def cells(found):
        return [f"{found['margin']:+.1f}", f"{found['kl']:.3f}"]

    made = [["Baseline", *(read(rows[0]["unedited"], n) for n in ("15", "29")), *cells(rows[0]["unedited"]), "-", "-"]]
    for row in rows:
        assert row["unedited"]["margin"] == rows[0]["unedited"]["margin"]
        edit = row["edit"]
        made.append([row["row"], read(edit, "15"), read(edit, "29"), *cells(edit), *cells(row["random"])])
    (table,) = (t for t in tables((RESULTS.parent / "erasing.md").read_text(encoding="utf-8")) if "KL" in t[0])
    assert table[1:] == made


def test_the_table_of_summed_tunings_is_that_of_its_record():
    held = json.loads((PACKAGE.parent / "benchmarks/results/summed_tunings.json").read_text(encoding="utf-8"))
    text = (RESULTS.parent / "weights.md").read_text(encoding="utf-8")
    (table,) = (t for t in tables(text) if "margin, cheerful against grumpy" in t[0])
    assert table[1:] == [
        [
            name,
            *("{mean:.1f} [{low:.1f}, {high:.1f}]".format(**row[margin]) for margin in ("cheerful", "formal")),
            f"{row['kl']['mean']:.3f}",
        ]
        for name, row in held["rows"].items()
    ]
    near = held["cosines"]
    assert f"{near['cheerful, grumpy']:.2f} (both" in text and f"with formal {near['cheerful, formal']:.2f}." in text


GRIDS = json.loads((PACKAGE.parent / "benchmarks/results/search_grid.json").read_text())["methods"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (len(f["shape"]) > 2)) for n, f in GRIDS.items()]
)
def test_eight_tries_come_within_three_points_of_the_best_of_a_measured_grid(name):
    found = GRIDS[name]
    folds = [{key: [float(n) for n in row.split()] for key, row in fold.items()} for fold in found["grid"]]
    settings, near = [{"place": i} for i in range(found["settings"])], 0
    for seed in range(10):
        gaps = []
        for fold, measured in enumerate(folds):
            search, tried = Search(settings, tuple(found["shape"]), min(8, len(settings)), (seed, 0, fold)), []
            for step in range(search.n):
                at = search.knobs(step, tried)["place"]
                tried.append(Tried({"place": at}, measured["score"][at], measured["kl"][at] <= 0.1))
            gaps.append(max(measured["score"]) - max(t.score for t in tried))
        near += np.mean(gaps) <= 0.03
    assert near == found["near"] >= 9


def test_the_table_of_the_search_is_that_of_its_record():
    text = (PACKAGE.parent / "docs/comparing.md").read_text(encoding="utf-8").split("## Does the search find")[1]
    printed = [line.strip("| ").split(" | ") for line in text.split("\n## ")[0].splitlines() if line.startswith("| ")][
        2:
    ]
    assert [row[0] for row in printed] == list(GRIDS)
    for name, *cells in printed:
        found, gap = GRIDS[name], GRIDS[name]["final_gap"]
        said = [found["settings"], found["near"], 10, found["validation_gap"], gap["mean"], gap["low"], gap["high"]]
        expected = [*map(float, said[:3]), *(round(100 * n, 1) for n in said[3:])]
        assert [float(n) for cell in cells for n in NUMBER.findall(cell)] == expected
