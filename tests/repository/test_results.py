"""Every figure of the published tables follows from the per-question rows that lie beside them."""

from __future__ import annotations

import importlib.util
import json
import lzma
import re
import sys
import tarfile

import numpy as np
import pytest

from tests.repository.source import PACKAGE
from trimtab.cells import figure as shown_figure
from trimtab.compare.comparison import Comparison
from trimtab.compare.search import Search, Tried
from trimtab.compare.statistics import holm, over_draws, paired, question_means, spread
from trimtab.intervals import bootstrap
from trimtab.report.markdown import to_markdown
from trimtab.report.verdict import conclusions

RESULTS = PACKAGE.parent / "docs" / "results"
PAGES = {"README.md": "comparison.json.xz", "editing.md": "editing.json.xz"}
ROWS = {
    page: {row["name"]: row for row in json.loads(lzma.decompress((RESULTS / file).read_bytes()))["rows"]}
    for page, file in PAGES.items()
}
FIGURES = {"true_info": ("true", "informative"), "mc1": ("mc1",), "mc2": ("mc2",), "kl": ("kl",)}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def lines_of(page, width):
    """Return first cell -> the others, of a page's tables of this many columns."""
    text = (RESULTS / page).read_text(encoding="utf-8")
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return {cells[0].split(" (60 draws)")[0]: cells[1:] for cells in found if len(cells) == width and cells[0]}


def figure_of(means, figure):
    return means[..., 0] * means[..., 1] if figure == "true_info" else means[..., 0]


def columns_of(unit, figure):
    """Return (item, column) of one unit's rows, those of digits from 0 to 1."""
    if any(unit[name] is None for name in FIGURES[figure]):
        return None
    return np.array([[float(value) for value in unit[name]] for name in FIGURES[figure]]).T


def values_of(row, figure):
    values: dict[int, dict[str, list[list[float]]]] = {}
    for unit in row["units"]:
        for i, measured in enumerate(columns_of(unit, figure)):
            values.setdefault(unit["seed"], {}).setdefault(str(i), []).append(list(measured))
    return values


def interval(row, figure):
    """Return what the row's figure is, with its interval: over questions, or over draws for a control."""
    units = row["units"]
    if not units or columns_of(units[0], figure) is None:
        return None
    if row["control"]:
        drawn = [float(figure_of(columns_of(unit, figure).mean(0), figure)) for unit in units]
        return over_draws([unit["seed"] for unit in units], drawn).estimate
    return spread(values_of(row, figure), lambda means: figure_of(means, figure)).estimate


def program(name):
    """Return a module of benchmarks/."""
    spec = importlib.util.spec_from_file_location(f"trimtab_{name}", PACKAGE.parent / "benchmarks" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_from(runs):
    """Return every line that is made from comparisons, conclusions by each tested meter among them."""
    lines = {line for run in runs for line in to_markdown(run).splitlines()}
    return lines | {f"- {said}" for run in runs for m in run.summed if not m.collateral for said in conclusions(run, m)}


def printed_in(page, heading=""):
    """Return the lines of a page (from a heading to the next of its rank) that a record must have made."""
    text = (RESULTS / page).read_text(encoding="utf-8")
    text = text.partition(heading)[2].partition("\n## ")[0] if heading else text
    return [line for line in text.splitlines() if line.startswith(("|", "- ", "SmolLM2-135M-Instruct.", "smollm2 on"))]


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
        pytest.param("truthfulqa.md", "## Every row", "truthfulqa", marks=pytest.mark.slow),
    ],
)
def test_every_line_of_a_gpu_s_comparison_is_made_from_its_records(page, heading, run, tmp_path):
    program("packed").unpack(RESULTS / f"smollm2_{run}.json.xz", tmp_path / "run")
    made, printed = made_from([Comparison.load(tmp_path / "run")]), printed_in(page, heading)
    assert len(printed) > 30 and [line for line in printed if line not in made] == []


def answers_of(run, method, instrument, columns):
    """Return (question, columns) -> values of a method's best settings, one list for each measurement."""
    found: dict[str, list[list[float]]] = {}
    for unit in (t for t in run.of(method, None) if t["status"] == "done"):
        for question, row in unit["measured"][str(unit["best"])]["rows"][instrument].items():
            found.setdefault(question, []).append([float(row[column]) for column in columns])
    return found


def by_style(run):
    """Return lines: what MC1 gains on questions where the answers' style alone picks right, and on the others."""
    style: dict[str, list[float]] = {}
    for unit in run.tests:
        for question, row in (unit.get("without_model") or {}).get("multiple_choice", {}).items():
            style.setdefault(question, []).append(row["mc1"])
    mc1 = {m: {q: np.mean(v) for q, v in answers_of(run, m, "multiple_choice", ["mc1"]).items()} for m in run.methods}
    lines = []
    for method in STYLED:
        gains = [
            [mc1[method][q] - mc1["Baseline"][q] for q in mc1[method] if (np.mean(style[q]) > 0.5) == right]
            for right in (True, False)
        ]
        cells = [shown_figure(bootstrap(np.array(g)[:, None]), "share", signed=True) for g in gains]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


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


STYLED = (
    "Instruction", "Few-shot", "Retrieved few-shot", "ITI", "ITI (probe weights)", "CAA", "Random tries (ITI)",
    "Shuffled labels (ITI)", "LoRA r=8", "Prefix tuning n=10", "Full fine-tuning",
)  # fmt: skip


def test_where_style_picks_right_and_what_the_judge_makes_of_length_follow_from_the_records(tmp_path):
    program("packed").unpack(RESULTS / "smollm2_truthfulqa.json.xz", tmp_path / "run")
    run = Comparison.load(tmp_path / "run")
    printed = [x for h in ("## MC1", "## True") for x in printed_in("truthfulqa.md", h) if x.startswith("| ")]
    made = [*by_style(run), *by_end(run)]
    readme = " ".join((PACKAGE.parent / "README.md").read_text(encoding="utf-8").split()).partition("[TruthfulQA]")[2]
    mc1 = ("Baseline", "ITI", "Random tries (ITI)", "Retrieved few-shot", "LoRA r=8")
    said = re.match(
        r".*?MC1 goes from (N) to (N) by ITI .*? tries (N)\), to (N) by .*? (N) by LoRA".replace("N", r"\d+\.\d"),
        readme,
    )
    found = [answers_of(run, method, "multiple_choice", ["mc1"]).values() for method in mc1]
    assert said and list(said.groups()) == [f"{100 * np.mean([np.mean(v) for v in each]):.1f}" for each in found]
    assert [x for x in printed if not x.startswith(("| --", "|  |"))] == made


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
    expected = {q: {"kl": round(row["kl"], 3), "words": row["words"], "true": row["true"]} for q, row in rows.items()}
    style["multiple_choice"]["q"]["mc1"] = 0.123
    measured["3"] = {"rows": {"drift": expected}, "made": {}}
    assert back == {"why": "Out of it", "measured": measured, "without_model": style}


def test_the_tables_of_thirty_draws_are_made_from_them():
    units = json.loads((PACKAGE.parent / "benchmarks/results/behaviours.json").read_text())["units"]
    made, printed = program("behaviours").tables(units), [x for x in printed_in("behaviours.md") if x[0] == "|"]
    assert len(units) == 30 and printed == [line for line in made if line]
    half, _, both = (sum(int(line.split(" | ")[n].split()[0]) for line in made[2:5]) for n in (5, 6, 7))
    for page in (PACKAGE.parent / "README.md", PACKAGE.parent / "docs" / "how-to" / "own-data.md"):
        text = " ".join(page.read_text(encoding="utf-8").split())
        assert f"{half} of thirty draws" in text and f"{both} of them coherently" in text


@pytest.mark.parametrize("page", PAGES)
def test_the_table_has_the_rows_of_the_record(page):
    assert list(ROWS[page]) == list(lines_of(page, 7))


@pytest.mark.parametrize("page, name", [(page, name) for page, rows in ROWS.items() for name in rows])
def test_every_printed_figure_is_that_of_the_rows(page, name):
    row = ROWS[page][name]
    *shares, kl, fitted, _ = lines_of(page, 7)[name]
    for figure, cell in zip(("true_info", "mc1", "mc2"), shares, strict=True):
        found, printed = interval(row, figure), [float(n) for n in NUMBER.findall(cell)]
        share = [] if found is None else [round(100 * found, 1), round(100 * found.low), round(100 * found.high)]
        assert printed == share
    found = interval(row, "kl")
    assert kl == ("-" if found is None else f"{found:.3f}")
    assert fitted == ("-" if row["fitted_numbers"] is None else f"{row['fitted_numbers']:,.0f}")


def test_the_printed_differences_and_p_values_are_those_of_the_rows():
    printed, rows = lines_of("editing.md", 4), ROWS["editing.md"]
    names = [difference.split(" - ") for difference in printed]
    assert len(names) == 7
    for column, figure in enumerate(("true_info", "mc1", "mc2")):
        tested = [
            paired(
                *(question_means(values_of(rows[name], figure)) for name in pair),
                lambda means, figure=figure: figure_of(means, figure),
            )
            for pair in names
        ]
        for cells, (found, _), p in zip(printed.values(), tested, holm([p for _, p in tested]), strict=True):
            said = [float(n) for n in NUMBER.findall(cells[column])]
            expected = [round(100 * found, 1), round(100 * found.low), round(100 * found.high)]
            assert said[:3] == expected
            assert said[3] == (0.0014 if "<=" in cells[column] else round(p, 3))
            assert ("<=" in cells[column]) == (p < 0.0015)


GRIDS = {
    name: found
    for name, found in json.loads((PACKAGE.parent / "benchmarks/results/search_grid.json").read_text())[
        "methods"
    ].items()
    if found
}


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
            for number in range(search.n):
                at = search.knobs(number, tried)["place"]
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
