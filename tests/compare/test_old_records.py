"""A run folder of the version before meters were declared: reported on as it was, and not gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.comparing import METERS, SpyMethod, tiny_run
from trimtab.compare import Comparison
from trimtab.errors import Incompatible
from trimtab.report.markdown import to_markdown


def as_before(measured: dict[str, Any]) -> dict[str, Any]:
    rows = measured["rows"]
    both = ((key, said, rows["multiple_choice"][key]) for key, said in rows["generated"].items())
    questions = [{"question": key, **said, **choice} for key, said, choice in both]
    drift = rows["drift"] and [[row["ce"], row["kl"]] for row in rows["drift"].values()]
    rest = {key: value for key, value in measured.items() if key not in ("rows", "values", "records")}
    return {"questions": questions, "drift": drift, "ms_per_token": measured["values"].get("ms_per_token"), **rest}


def rewritten(folder: Path) -> None:
    """Write a run's folder as the version before wrote it."""
    record = json.loads((folder / "record.json").read_text())
    del record["design"]["choose_by"]
    record["meters"] = {
        "judge": "length_judge", "convention": "plain", "metric": "true_info", "texts": "0123", "max_new_tokens": 4,
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record))
    for unit in (folder / "records").iterdir():
        sizes = {}  # then part of what making took
        for path in sorted(unit.glob("*.json")):  # test.json before trial-000.json
            one = json.loads(path.read_text())
            if "measured" in one:
                own = one["measured"]
                several = {path.stem[-1]: own} if "rows" in own else own
                sizes |= {n: m["values"].get("bytes_on_disk") for n, m in several.items()}
                one["measured"] = as_before(own) if "rows" in own else {n: as_before(m) for n, m in own.items()}
            if "made" in one:
                one["made"]["bytes_on_disk"] = sizes.get(path.stem[-1])
            path.write_text(json.dumps(one))


def test_an_old_folder_gives_the_same_rows_and_is_not_gone_on_with(tmp_path):
    from trimtab.prompting import FewShot
    from trimtab.steer import ITI, RandomDirection

    methods = [FewShot(shots=(1,), draws=1), ITI(top_ks=(2,), alphas=(1,)), RandomDirection(draws=2)]
    made = tiny_run(tmp_path / "run", methods, seeds=(0,))
    rewritten(tmp_path / "run")
    old = Comparison.load(tmp_path / "run")
    known = [meter.name for meter in old.meters]
    assert known == ["true_info", "true", "info", "unmatched", "mc1", "mc2", "ce", "kl"]
    for before, now in zip(old.rows(), made.rows(), strict=True):
        figures = {name: made.metrics[name] for made in (now,) for name in known}
        assert before.metrics == figures
        assert {**before.as_dict(), "metrics": {}} == {**now.as_dict(), "metrics": {}}
    assert "judge length_judge" in to_markdown(old) and "Chosen by: True*Info" in to_markdown(old)
    with pytest.raises(Incompatible, match="was begun by the version before: it can be reported on, not gone on with"):
        tiny_run(tmp_path / "run", [SpyMethod()], seeds=(0,), meters=METERS)
