"""Tests between any two rows, p-values at the floor, and which questions moved which way."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest

from tests.comparing import SpyMethod, tiny_run
from trimtab.cells import number, p_text
from trimtab.compare import Comparison
from trimtab.compare.contrasts import every_two
from trimtab.compare.rows import corrected
from trimtab.compare.statistics import Moved, PairedDifference, holm, moved, paired
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadValue
from trimtab.evaluate.multiple_choice import choice_meters
from trimtab.intervals import Estimate
from trimtab.prompting import FewShot
from trimtab.protocols import Measured, Meter
from trimtab.report.verdict import conclusions
from trimtab.steer import RandomDirection


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    methods = [FewShot(shots=(1,), draws=1), SpyMethod(), RandomDirection(draws=2, follows="Spy")]
    return tiny_run(tmp_path_factory.mktemp("run") / "run", methods, seeds=(0, 1))


def test_every_two_rows_are_tested_and_corrected_over_all_pairs(done):
    found = done.contrasts("mc2")
    rows = [row.name for row in done.rows() if row.metrics["mc2"] is not None and row.method != "Random direction"]
    assert [(c.one, c.other) for c in found] == list(combinations(rows, 2))
    assert [c.tested.p_holm for c in found] == holm([c.tested.p for c in found])
    assert all(c.tested.p_holm >= c.tested.p for c in found)


def test_a_difference_to_the_unedited_model_is_the_row_s_own(done):
    for contrast in (c for c in done.contrasts("mc1") if c.one == "Baseline"):
        own = done.row(contrast.other).differences["mc1"]
        assert contrast.tested.difference == pytest.approx(-own.difference)
        assert contrast.tested.p == own.p
        assert contrast.tested.moved.right == own.moved.wrong
    assert done.contrast("Spy", "Baseline", "mc1").tested.p == done.row("Spy").differences["mc1"].p


def test_p_values_of_a_table_are_corrected_over_its_rows_meter_by_meter(done):
    rows, seen = [done.row("Few-shot"), done.row("Spy")], {"mc1": (0.01, 0.03), "mc2": (0.9, 0.04)}
    made = [
        replace(row, differences={name: replace(row.differences["mc1"], p=ps[i]) for name, ps in seen.items()})
        for i, row in enumerate(rows)
    ]
    found = corrected(made, done.meters)
    by_meter = {name: [row.differences[name].p_holm for row in found] for name in seen}
    assert by_meter == {"mc1": pytest.approx([0.02, 0.03]), "mc2": pytest.approx([0.9, 0.08])}


def test_a_row_is_held_against_the_unedited_model_in_its_own_folds_and_seeds_alone(tmp_path):
    tiny_run(tmp_path / "run", [SpyMethod(strengths=(4.0,))], meters=choice_meters())
    rows: dict[str, list[float]] = {"Spy": [], "Baseline": []}
    for file in sorted((tmp_path / "run" / "records").glob("*/test.json")):
        record = json.loads(file.read_text())
        (measured,) = record["measured"].values()
        said = measured["rows"]["multiple_choice"]
        if record["seed"] == 0:
            rows[record["method"]] += [said[question]["mc1"] for question in sorted(said)]
        elif record["method"] == "Spy":
            shutil.rmtree(file.parent)
        else:  # a figure that a row without this seed has nothing to do with
            for row in said.values():
                row["mc1"] = 1 - row["mc1"]
            file.write_text(json.dumps(record))
    found = Comparison.load(tmp_path / "run").row("Spy").differences["mc1"]
    assert found.n == 12
    assert float(found.difference) == pytest.approx(np.mean(np.subtract(rows["Spy"], rows["Baseline"])))


def test_what_has_no_questions_of_its_own_cannot_be_tested(done):
    with pytest.raises(BadValue, match="no row 'Random direction' with questions of its own"):
        done.contrast("Spy", "Random direction")


def test_two_rows_named_in_advance_are_tested_as_all_are_and_corrected_over_no_others(done):
    for pair in done.contrasts("mc2"):
        alone = done.contrast(pair.one, pair.other, "mc2").tested
        assert (alone.difference, alone.p, alone.moved) == (pair.tested.difference, pair.tested.p, pair.tested.moved)
        assert alone.p_holm == alone.p


def test_questions_move_the_way_that_is_better_the_other_way_or_not_at_all():
    ours = {"a": np.array([1.0]), "b": np.array([0.0]), "c": np.array([0.5]), "d": np.array([1.0])}
    theirs = {"a": np.array([0.0]), "b": np.array([0.5]), "c": np.array([0.5]), "e": np.array([1.0])}
    found = moved(ours, theirs)
    assert (found.right, found.wrong, found.n) == (("a",), ("b",), 3)
    assert found.shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert moved(ours, theirs, sign=-1).right == ("b",)
    # 1 - 23/24 - 1/24 is less than 0 in floating point, and was printed as -0 %
    assert number(Moved(tuple(map(str, range(23))), ("23",), 24).shares[2], "share", brief=True) == "0"


@pytest.mark.parametrize("n_rows", [3, 24])
def test_rows_that_differ_everywhere_are_told_apart_however_many_there_are(n_rows):
    means = {str(i): {str(q): np.array([i / n_rows]) for q in range(40)} for i in range(n_rows)}
    means["1"] = means["0"]  # control: two that differ nowhere
    found = every_two(means, choice_meters()[0])
    assert {frozenset((c.one, c.other)) for c in found if not c.apart} == {frozenset("01")}
    assert all(c.tested.at_floor == c.apart for c in found)


@pytest.mark.parametrize("n, floor", [(60, 0.0002), (8, 0.0)])
def test_a_p_value_as_small_as_the_test_can_say_is_printed_as_a_limit(n, floor):
    names = [str(i) for i in range(n)]
    ones, zeros = ({q: np.array([float(v)]) for q in names} for v in (1, 0))
    difference, p = paired(ones, zeros)
    tested = PairedDifference(difference, p, p, n)
    assert tested.floor == pytest.approx(floor)
    assert tested.at_floor == (n == 60)
    # control: exact where all swaps are few, so that the smallest p is no limit
    assert p == pytest.approx(2 / 2**8 if n == 8 else floor)
    assert p_text(p, at_floor=tested.at_floor) == ("<= 0.0002" if n == 60 else "0.0078")
    assert not PairedDifference(Estimate(0.1, 0.0, 0.2, n), 0.5, 0.5, n).at_floor


def test_a_tie_of_all_rows_has_no_leader(tmp_path):
    tied = tiny_run(tmp_path / "tied", {"Nothing": NoEdit(), "Nothing more": NoEdit()})
    assert conclusions(tied)[0].startswith(f"Nothing leads: {tied.main.heading} is ")


def test_rows_of_which_one_differs_have_a_leader(done):
    assert " has the highest " in conclusions(done)[0]


class Strength(Meter):
    """Finds stronger edits better."""

    name = "strength"
    unit = "units"

    def measure(self, model, tokenizer, items, edits, *, asking="plain", seed=0):
        found = [{"strength": float(getattr(edit, "strength", 0))} for edit in edits]
        return [Measured({item.key: row for item in items}) for row in found]


@dataclass(frozen=True)
class Luck(SpyMethod):
    control_of: str = "Spy"


def test_a_control_that_is_significantly_ahead_is_said_to_be(tmp_path):
    methods = {"Spy": SpyMethod(strengths=(2,)), **{f"x {n}": Luck(strengths=(n,)) for n in (1, 2, 3)}}
    told = conclusions(tiny_run(tmp_path / "run", methods, meters=(Strength(),), seeds=(0,)))
    less, same, more = (next(line for line in told if f"its control x {n} " in line) for n in (1, 2, 3))
    assert "Spy is ahead of " in less and "which may try" not in less and ": +3" in less
    assert "Spy is NOT told apart from " in same
    assert "Spy is BEHIND " in more and "has not what Spy claims to find: -3" in more
