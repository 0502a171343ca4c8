"""The report: whole in one file, honest about what is missing, and the pictures' arithmetic."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.comparing import METERS, FailsInFoldOf, SpyMethod, tiny_run
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.cells import figure
from trimtab.compare import Comparison, Design, Job, run_job
from trimtab.compare.design import named
from trimtab.compare.run_records import RunRecords
from trimtab.errors import Incompatible
from trimtab.evaluate import answer_meters
from trimtab.prompting import FewShot
from trimtab.report.charts import (
    PALETTE,
    effect_figure,
    heads_figure,
    intervals_figure,
    low_data_figure,
    pareto_figure,
    pareto_front,
    styles,
)
from trimtab.report.html import to_html, write_report
from trimtab.report.knobs import knob_lines, knobs_figure
from trimtab.report.markdown import broken_cells, cost_cells, facts, quality_cells, quality_rows, to_markdown
from trimtab.report.settings import expected_best, tried
from trimtab.steer import ITI, RandomDirection

MAIN = METERS[0]
REQUESTING = re.compile(
    r"""(?:src|href|action|data)\s*=\s*["'](?!#|data:)|url\((?!#)|@import|<script|<link|<iframe|<img"""
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    marked = tiny_questions(12)[0].question
    methods = [
        FewShot(shots=(1, 2), draws=1, name="Few <b>& shots</b>"),
        ITI(top_ks=(2, 4), alphas=(1, 400)),
        FailsInFoldOf(marked),
    ]
    return folder, tiny_run(folder, methods, seeds=(0,))


class Reader(HTMLParser):
    """Collects text and checks that tags close in order."""

    VOID = ("meta", "br", "path", "use", "rect", "image")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_one_file_that_asks_for_nothing_and_is_well_formed(done):
    page = to_html(done[1])
    assert not REQUESTING.findall(page)
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.seen.count("svg") >= 4
    assert all(c.isprintable() or c == "\n" for c in page)
    # the control: the pattern does find what would be a request
    assert REQUESTING.findall('<img src="https://x.org/a.png">') and REQUESTING.findall("url(https://x.org)")


def test_what_the_page_asks_for_again_is_made_once(done):
    _, result = done
    again = zip(result.rows(), result.rows(), strict=True)
    assert all(one is other for one, other in again)
    assert result.rows() is not result.rows()  # a caller's changes to the list stay the caller's


def test_names_and_answers_are_text_and_never_markup(done):
    page = to_html(done[1])
    assert "Few &lt;b&gt;&amp; shots&lt;/b&gt;" in page
    assert "<b>" not in page


def test_a_run_published_without_its_answers_has_a_page_without_them(done, tmp_path):
    folder = shutil.copytree(done[0], tmp_path / "run")
    for path in folder.glob("records/*/test.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        for found in record.get("measured", {}).values():
            for row in (found["rows"].get("generated") or {}).values():
                row.pop("answer", None)
        path.write_text(json.dumps(record), encoding="utf-8")
    assert "Before and after" in to_html(done[1])  # the control
    assert "Before and after" not in to_html(Comparison.load(folder))


def test_numbers_in_the_figure_keep_clear_of_one_another(done):
    row = done[1].row("ITI")
    kl, gain = row.metrics["kl"], row.metrics[MAIN.name]
    near = [
        replace(row, metrics={**row.metrics, "kl": replace(kl, estimate=type(kl.estimate)(x, x, x, 2))})
        for x in (0.1, 0.11, 0.12, 0.1)
    ]
    near[3] = replace(
        near[3], metrics={**near[3].metrics, MAIN.name: replace(gain, estimate=type(gain.estimate)(0.0, 0.0, 0.0, 2))}
    )
    axes = effect_figure(near, MAIN, {}).axes[0]
    at = np.array([axes.transData.transform(n.xy) * 72 / axes.figure.dpi + n.xyann for n in axes.texts])
    assert [n.get_text() for n in axes.texts] == ["1", "2", "3", "4"]
    assert min(np.linalg.norm(one - other) for one, other in permutations(at, 2)) > 9


def test_the_page_says_what_the_rows_say(done):
    _, result = done
    reader = Reader()
    reader.feed(to_html(result))
    text = " ".join("".join(reader.text).split())
    assert "Finished: 8 measurements." in text
    assert "failed in fold" in text and "out of luck" in text
    for row in result.rows():
        value = row.metrics["true_info"]
        if value is not None:
            e = value.estimate
            assert f"{100 * e:.1f}[{100 * e.low:.1f}, {100 * e.high:.1f}]" in text
    for question in result.of("Baseline")[0]["measured"]["0"]["rows"]["generated"]:
        assert question in text


def test_a_half_finished_run_is_drawn_and_marked_as_such(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "run")
    shutil.rmtree(next((tmp_path / "run" / "records").glob("iti-*")))
    half = Comparison.load(tmp_path / "run")
    page, text = write_report(half, tmp_path / "out")
    shown = page.read_text()
    assert "NOT FINISHED: 7 of 8 measurements are there." in shown and 'class="status open"' in shown
    assert "ITI: not finished: 1 of 2 folds and seeds are still missing" in shown
    assert "NOT FINISHED" in text.read_text()
    assert "NOT FINISHED" not in to_html(done[1])  # the control


def test_a_run_in_which_nothing_is_done_yet_is_drawn_too(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "records")
    page, _ = write_report(Comparison.load(tmp_path / "run"), tmp_path / "out")
    assert "NOT FINISHED: 0 of 8" in page.read_text()


def test_a_damaged_record_is_named_and_a_trial_that_is_gone_too(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "run")
    (measured,) = (tmp_path / "run" / "records").glob("iti-*fold0*/test.json")
    whole = measured.read_text()
    emptied = json.dumps({**json.loads(whole), "measured": {}})
    for damaged, what in (
        (whole[:200], "is not valid JSON"),
        ("{}", "field 'method' is missing"),
        (emptied, r"field 'measured\.\d' is missing"),
    ):
        measured.write_text(damaged)
        with pytest.raises(Incompatible, match=f"test.json .*{what}.*; delete it and run again"):
            Comparison.load(tmp_path / "run")
    measured.write_text(whole)
    trial = measured.parent / "trial-000.json"
    trial.write_text(json.dumps({k: v for k, v in json.loads(trial.read_text()).items() if k != "validation"}))
    with pytest.raises(Incompatible, match=r"trial-000\.json .*field 'validation' is missing; delete it and run again"):
        Comparison.load(tmp_path / "run")
    for trial in measured.parent.glob("trial-*.json"):
        trial.unlink()
    with pytest.raises(
        Incompatible, match=r"ITI, fold 0, seed 0: there is a measurement of trial \d and no record of it"
    ):
        Comparison.load(tmp_path / "run").rows()


def test_a_run_of_another_version_is_refused_with_what_it_lacks(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "run")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    for other in ({**record, "planned": 3}, {k: v for k, v in record.items() if k != "meters"}):
        (tmp_path / "run" / "record.json").write_text(json.dumps(other))
        with pytest.raises(Incompatible, match=r"cannot be used: field '(planned|meters)' .*another version's"):
            Comparison.load(tmp_path / "run")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(Incompatible, match="no comparison at"):
        Comparison.load(tmp_path / "none")


def test_the_same_run_gives_the_same_page(done):
    assert to_html(done[1]) == to_html(Comparison.load(done[0]))


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, 2.0, 3.0]), st.sampled_from([0.0, 1.0, 2.0, 3.0])), min_size=1, max_size=12
    )
)
def test_the_pareto_front_is_what_nothing_beats(points):
    def beaten(p):
        return any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)

    assert {points[i] for i in pareto_front(points)} == {p for p in points if not beaten(p)}


def test_a_method_looks_the_same_in_every_figure_and_no_point_is_cut_off(done):
    rows = done[1].rows()
    left, right = pareto_figure(rows, MAIN).axes
    looks = {line.get_label(): (line.get_color(), line.get_marker()) for line in left.get_lines() if line.get_label()}
    drawn = intervals_figure(rows, MAIN).axes[0].get_lines()
    markers = [line for line in drawn if line.get_marker() in "osD^vP*X<>hd"]
    assert {(line.get_color(), line.get_marker()) for line in markers} <= set(looks.values())
    for axes in (left, right):
        low, high = axes.get_xlim()
        drawn = [x for line in axes.get_lines() if line.get_marker() != "None" for x in line.get_xdata()]
        assert low < min(drawn) and 1.5 * max(drawn) < high
        assert axes.get_ylim()[0] < 0 and axes.get_ylim()[1] > 100
    low, high = intervals_figure(rows, MAIN).axes[0].get_xlim()
    assert low < 0 and high > 100


def test_the_dashed_line_is_the_unedited_model_or_is_not_there(done):
    def dashed(rows):
        lines = intervals_figure(rows, MAIN).axes[0].get_lines()
        return [line.get_xdata()[0] for line in lines if line.get_linestyle() == "--"]

    base, *others = done[1].rows()
    assert dashed([base, *others]) == [100 * base.metrics["true_info"].estimate]
    assert dashed(others) == []


def test_a_front_of_one_row_is_a_line_too(done):
    base = done[1].rows()[0]
    for axes in pareto_figure([base], MAIN).axes:
        (line,) = [line for line in axes.get_lines() if line.get_marker() == "None"]
        assert line.get_xdata()[-1] == axes.get_xlim()[1] > line.get_xdata()[0]


def test_the_colours_of_heads_mean_the_same_in_every_report(done):
    (image,) = heads_figure(done[1]).axes[0].get_images()
    assert image.get_clim() == (50, 100)


def test_all_panels_show_kl_on_one_scale():
    comparison = trials_of([({"a": 1}, 0.5, 0.002), ({"a": 2}, 0.5, 0.003), ({"a": 2, "b": 1}, 0.5, 3.0)])
    other = [axes for axes in knobs_figure(comparison).axes if axes.get_yscale() == "symlog"]
    assert other and all(axes.get_ylim()[1] == 6.0 for axes in other)


def trials_of(knobs_and_scores):
    """Return a comparison of one method whose trials had these knobs and scores."""
    trials = tuple(
        {"method": "M", "size": None, "fold": 0, "seed": 0, "step": i, "status": "done", "knobs": knobs,
         "validation": {"score": score, "kl": kl}}
        for i, (knobs, score, kl) in enumerate(knobs_and_scores)
    )  # fmt: skip
    specification = {"methods": {"M": "M()"}, "design": {"train_sizes": [None], "folds": 1, "seeds": [0]}}
    specification["design"]["choose_by"] = "true_info"
    return Comparison(specification, trials, (), answer_meters())


def test_only_settings_that_differ_in_the_knob_alone_are_joined():
    found = knob_lines(
        trials_of(
            [
                ({"learning_rate": 0.1, "epochs": 4}, 0.5, 0.1),
                ({"learning_rate": 0.3, "epochs": 4}, 0.7, 0.2),
                ({"learning_rate": 0.3, "epochs": 10}, 0.9, 0.3),
                ({"learning_rate": 0.9, "epochs": 25}, 0.1, 0.9),
            ]
        )
    )["M"]
    assert [sorted(points) for points in found["learning_rate"]] == [[0.1, 0.3], [0.3], [0.9]]
    assert sorted(sorted(points) for points in found["epochs"]) == [[4], [4, 10], [25]]
    # nested knobs of a stack are knobs like others
    stacked = knob_lines(trials_of([({"A": {"x": 1}, "B": {"y": v}}, 0.5, None) for v in (1, 2)]))["M"]
    assert stacked == {"B.y": [{1.0: [(0.5, None)], 2.0: [(0.5, None)]}]}


def test_a_panel_whose_knob_never_varied_alone_says_so():
    drawn = knobs_figure(trials_of([({"a": 1, "b": 1}, 0.5, 0.1), ({"a": 2, "b": 2}, 0.7, 0.2)]))
    assert [axes.get_title() for axes in drawn.axes if axes.get_title()] == ["M: a (never alone)", "M: b (never alone)"]
    alone = knobs_figure(trials_of([({"a": 1, "b": 1}, 0.5, 0.1), ({"a": 2, "b": 1}, 0.7, 0.2)]))
    assert [axes.get_title() for axes in alone.axes if axes.get_title()] == ["M: a"]


def test_every_setting_that_was_tried_is_listed_with_how_often_it_was_chosen(done):
    lines = tried(done[1])
    mine = [line for line in lines if "top_k" in line[1]]
    assert mine[0][0] == f"ITI ({len(mine)} of 4 settings)"
    assert 2 <= len(mine) <= 4 and sum(int(line[4].split()[0]) for line in mine) == 2
    for line in mine:
        assert line[4].endswith(" of 2")
        assert line[1] in to_html(done[1]) and " | ".join(line[1:]) in to_markdown(done[1])


def test_rows_say_how_much_was_measured_and_whether_best_is_also_best_within_the_budget(done, tmp_path):
    def told(run, row):
        return [broken_cells(row, run)[-1], quality_cells(row, run)[-1]]

    cells = {row.name: told(done[1], row) for row in done[1].rows()}
    assert cells["Baseline"] == ["-", "2 of 2"]
    assert cells["FailsInFoldOf" if "FailsInFoldOf" in cells else "Fragile"][1] == "1 of 2"
    weak = tiny_run(tmp_path / "a", [SpyMethod(strengths=(1e-4,))], seeds=(0,), kl_budget=10)
    assert told(weak, weak.row("Spy")) == ["kept", "2 of 2"]
    strong = tiny_run(tmp_path / "b", [SpyMethod(strengths=(50.0,))], seeds=(0,), kl_budget=1e-9)
    assert told(strong, strong.row("Spy")) == ["kept in 0 of 2", "2 of 2"]
    assert "Spy (within KL budget)" not in {line[0] for line in quality_rows(strong, None)}  # the note says it


def test_all_machines_are_named_and_times_of_a_shared_device_are_marked(done):
    result = done[1]
    assert cost_cells(result.row("ITI"), result)[3].replace(".", "").replace("e-", "").isdigit()
    n = len(result.trials) + len(result.tests)
    assert facts(result)["Hardware"] == f"1 CPU threads (x86_64): {n} records"

    def told(records, **more):
        return tuple({**r, **more} for r in records)

    both = replace(result, trials=told(result.trials, machine="H100", workers=14))
    assert facts(both)["Hardware"] == (
        f"H100: {len(result.trials)} records; 1 CPU threads (x86_64): {len(result.tests)} records"
    )
    cells = cost_cells(both.row("ITI"), both)
    assert cells[3].endswith(" (14 at once)") and cells[5].endswith("once)")
    old = [{k: v for k, v in r.items() if k not in ("machine", "workers")} for r in result.trials]
    before = replace(result, trials=tuple(old))
    assert "not recorded (the run was begun on 1 CPU threads (x86_64))" in facts(before)["Hardware"]
    assert cost_cells(before.row("ITI"), before)[3].endswith(" (?)")


def test_a_low_data_curve_has_the_unedited_model_and_the_methods_that_were_asked_for(tmp_path):
    methods = named([SpyMethod(strengths=(1.0,)), FewShot(shots=(1,), draws=1)])
    design = Design(2, (0,), 1, train_sizes=(None, 4))
    job = Job(methods, tiny_questions(12), None, design, METERS, low_data=("Spy",))
    result = run_job(tiny_model(), tiny_tokenizer(), job, tmp_path / "run")
    curves = {line.get_label(): list(line.get_xdata()) for line in low_data_figure(result).axes[0].get_lines()}
    assert curves == {"Baseline": [4, 6], "Spy": [4, 6], "Few-shot": [6]}
    assert "## 4 training questions" in to_markdown(result)


@pytest.mark.slow
def test_the_low_data_curve_is_drawn_for_the_methods_that_it_was_asked_for(tmp_path):
    job = Job(
        named([FewShot(shots=(1, 2), draws=1), ITI(top_ks=(2,), alphas=(1,)), RandomDirection(draws=2)]),
        tiny_questions(12), None, Design(2, (0,), 2, train_sizes=(None, 3, 4)), METERS,
        low_data=("ITI", "Random direction"),
    )  # fmt: skip
    result = run_job(tiny_model(), tiny_tokenizer(), job, tmp_path / "run")
    assert result.finished and result.n_planned == 2 * (3 + 3 + 4)
    axes = low_data_figure(result).axes[0]
    curves = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines()}
    assert curves == {"Baseline": [3, 4, 6], "ITI": [3, 4, 6], "Random direction": [3, 4, 6], "Few-shot": [6]}
    page, text = to_html(result), to_markdown(result)
    assert "Few-shot, 3 training" not in page
    assert "<h2>Few training questions</h2>" in page
    assert "## 3 training questions" in text and "## 4 training questions" in text
    assert "Finished: 20 measurements." in text


def test_no_two_methods_share_both_colour_and_marker():
    looks = styles([str(i) for i in range(20)])
    assert len({(v["color"], v["marker"]) for v in looks.values()}) == 20


def test_the_colours_can_be_told_apart_without_seeing_red_or_green():
    # Machado et al. (2009), full deuteranopia and protanopia, in linear RGB
    deutan = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
    protan = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))

    def linear(colour):
        return [((int(colour[i : i + 2], 16) / 255 + 0.055) / 1.055) ** 2.4 for i in (1, 3, 5)]

    def nearest(matrix, colours):
        seen = [[sum(m * c for m, c in zip(row, linear(x), strict=True)) for row in matrix] for x in colours]
        return min(
            sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) ** 0.5 for i, p in enumerate(seen) for q in seen[:i]
        )

    for matrix in (deutan, protan):
        assert nearest(matrix, PALETTE) > 0.15
    assert nearest(deutan, ("#FF0000", "#4C9A00")) < 0.1  # the control: this red and this green are one


def test_sizes_are_written_for_reading():
    assert [figure(n, "bytes") for n in (None, 12, 1500, 2.5e6, 3e9)] == ["-", "12 B", "1.5 kB", "2.5 MB", "3 GB"]
    assert [figure(n, "bytes") for n in (999.6e6, 12_345e9)] == ["1,000 MB", "12,345 GB"]


def test_costs_are_written_for_reading_and_no_chosen_setting_is_left_out(done):
    row = done[1].row("ITI")
    settings = tuple((f'{{"alpha": {n}}}', 1) for n in range(5))
    row = replace(row, costs={**row.costs, "seconds": 7200.4, "ms_per_token": 12.345}, settings=settings)
    cells = cost_cells(row, done[1])
    assert (cells[3], cells[5]) == ("7,200", "12.3")
    assert cells[6] == "alpha 0 (1x); alpha 1 (1x); alpha 2 (1x); alpha 3 (1x); alpha 4 (1x)"


def test_the_spy_is_drawn_hollow_where_its_budget_is_another_result(tmp_path):
    result = tiny_run(tmp_path / "run", [SpyMethod(strengths=(50.0,))], seeds=(0,), kl_budget=1e9)
    best, spy = result.rows()
    within = replace(spy, variant="within")
    faces = {
        line.get_markerfacecolor() for line in intervals_figure([best, spy, within], MAIN).axes[0].get_lines()
        if line.get_marker() == styles([best.method, spy.method])[spy.method]["marker"]
    }  # fmt: skip
    assert faces == {PALETTE[1], "white"}


@pytest.mark.parametrize(
    "scores, grid, more",
    [
        ([(0.1, 0.3, 0.2, 0.5), (0.3, 0.3, 0.2, 0.1)], 9, "would help"),
        ([(0.1, 0.5, 0.2, 0.5), (0.3, 0.3, 0.2, 0.1)], 9, "would help little"),
        ([(0.1, 0.3, 0.2, 0.5), (0.3, 0.3, 0.2, 0.1)], 4, "has no more settings"),
    ],
)
def test_the_expected_best_is_that_of_every_fold_s_own_search(scores, grid, more):
    unit = {"method": "M", "seed": 0, "size": None, "status": "done"}
    tests = tuple({**unit, "fold": fold} for fold in range(2))
    trials = tuple(
        {**test, "step": step, "validation": {"score": score}}
        for test, column in zip(tests, scores, strict=True)
        for step, score in enumerate(column)
    )
    meters = tuple(answer_meters())
    design = {"choose_by": meters[0].name, "train_sizes": [None]}
    run = RunRecords({"methods": {"M": ""}, "design": design, "grids": {"M": grid}}, trials, tests, meters)
    first, last = np.array(scores)[:, 0], np.max(scores, 1)
    if grid == 4:  # the order is nothing then: the mean over all of them
        first = np.mean(scores, 1)
        two = np.mean([[max(pair) for pair in permutations(column, 2)] for column in scores])
        assert f", 2: {100 * two:.1f} ± " in expected_best(run)[0][2]
    (line,) = expected_best(run)
    assert line[:2] + line[3:] == ["M", "4", more]
    assert line[2].startswith(f"1: {100 * first.mean():.1f} ± {100 * first.std(ddof=1):.1f}, 2: ")
    assert line[2].endswith(f"4: {100 * last.mean():.1f} ± {100 * last.std(ddof=1):.1f}")
