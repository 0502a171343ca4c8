"""Results whose record lacks a field, or has one of another type, are refused in one sentence that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NotRequired

import pytest
import torch
from typing_extensions import TypedDict

from trimtab.activations import Head, HeadActivations
from trimtab.edits.disk import load_shift
from trimtab.edits.vectors import HeadShift, ResidualShift
from trimtab.errors import Incompatible
from trimtab.fields import fault
from trimtab.probes import HeadProbes
from trimtab.steer import MassMean, SiteRanking
from trimtab.storage import RECORD

MODEL = {
    "name": "some/model", "geometry": {"n_layers": 2}, "sample": {"weight": [0.5, 0.25]}, "dtype": "float32",
    "quantization": None, "adapter": [],
}  # fmt: skip
GRIDS = [torch.full((2, 3), n / 8) for n in range(6)]
RESULTS: list[Any] = [
    HeadShift((Head(0, 1),), torch.ones(1, 4), torch.ones(1), record={"model": MODEL, "accuracy": [0.75]}),
    ResidualShift((1,), torch.ones(1, 4), record={"model": MODEL}),
    MassMean(torch.ones(2, 3, 4), (0, 1), "hash", MODEL),
    SiteRanking((Head(0, 1), Head(1, 2)), torch.ones(2), torch.ones(2), "effect", 3),
    HeadProbes(torch.zeros(2, 3, 4), *GRIDS, (0, 1), ("Why?",), {"C": 1.0}),
    HeadActivations(torch.zeros(2, 2, 3, 4), torch.tensor([True, False]), ("Why?", "Why?"), (0, 1), {}),
]


def fields(result: Any, path: Path) -> list[tuple[str, ...]]:
    result.save(path)
    record = json.loads((path / RECORD).read_text())
    own = [(k,) for k in record if k not in ("kind", "versions", "tensors")]
    return [*own, *(("record", "model", k) for k in record.get("record", {}).get("model", {}))]


CASES = [(r, wrong) for r in RESULTS for wrong in ("missing", "another type")]


@pytest.mark.parametrize(("result", "wrong"), CASES, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_every_field_is_needed_in_its_type_and_the_sentence_names_it(result, wrong, tmp_path):
    path = tmp_path / "a"
    assert type(type(result).load((result.save(path), path)[1])) is type(result)  # the control: whole, it loads
    names = fields(result, path)
    assert len(names) >= 3
    for *above, name in names:
        result.save(path)
        record = inside = json.loads((path / RECORD).read_text())
        for key in above:
            inside = inside[key]
        if wrong == "missing":
            del inside[name]
        else:
            inside[name] = {"list": 1} if isinstance(inside[name], list) else ["a list"]
            if name == "adapter":
                inside[name] = 3
        (path / RECORD).write_text(json.dumps(record))
        with pytest.raises(Incompatible) as caught:
            type(result).load(path)
        said = str(caught.value)
        assert f"{RECORD} of the" in said and str(path) in said and said.endswith("write it again")
        assert f"field '{'.'.join([*above, name])}" in said
        assert ("is missing" if wrong == "missing" else "expected") in said


@pytest.mark.parametrize("result", RESULTS, ids=lambda r: type(r).__name__)
def test_a_tensor_under_another_name_is_missed(result, tmp_path):
    from safetensors.torch import load_file, save_file

    result.save(tmp_path / "a")
    file = tmp_path / "a" / "tensors.safetensors"
    tensors, record = load_file(file), json.loads((tmp_path / "a" / RECORD).read_text())
    name = min(tensors)
    tensors["other"], record["tensors"]["other"] = tensors.pop(name), record["tensors"].pop(name)
    save_file(tensors, file)
    (tmp_path / "a" / RECORD).write_text(json.dumps(record))
    with pytest.raises(Incompatible, match=f"the tensor '{name}' is missing; write it again"):
        type(result).load(tmp_path / "a")


def test_a_head_of_three_numbers_and_a_strength_in_words_are_refused_by_place(tmp_path):
    for change, words in (
        ({"heads": [[0, 1, 2]]}, r"field 'heads\[0\]' is \[0, 1, 2\]; tuple should have at most 2 items"),
        ({"heads": [["0", 1]]}, r"field 'heads\[0\]\[0\]' is '0', expected a valid integer"),
        ({"strength": "strong"}, "field 'strength' is 'strong', expected a valid number"),
        ({"strength": True}, "field 'strength' is True, expected a valid number"),
    ):
        RESULTS[0].save(tmp_path / "a")
        record = json.loads((tmp_path / "a" / RECORD).read_text())
        (tmp_path / "a" / RECORD).write_text(json.dumps({**record, **change}))
        with pytest.raises(Incompatible, match=words):
            load_shift(tmp_path / "a")


def test_a_key_that_stands_twice_is_refused(tmp_path):
    RESULTS[0].save(tmp_path / "a")
    text = (tmp_path / "a" / RECORD).read_text()
    (tmp_path / "a" / RECORD).write_text(text.replace('"strength"', '"strength": 8.0, "strength"', 1))
    with pytest.raises(Incompatible, match=r"the key 'strength' stands twice"):
        load_shift(tmp_path / "a")


class Wanted(TypedDict):
    a: int
    b: NotRequired[dict[str, list[float]]]
    c: NotRequired[str | None]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": 1, "more": 2}, None),
        ({"a": 1, "b": {"x": [1, 2.5]}, "c": None}, None),
        ({"a": 1, "b": {"x": [1, "2"]}}, "field 'b.x[1]' is '2', expected a valid number"),
        ({"a": 1, "b": [1]}, "field 'b' is [1], expected an object"),
        ({"a": 1, "c": 3}, "field 'c' is 3, expected a valid string"),
        ({"a": 1.5}, "field 'a' is 1.5, expected a valid integer"),
        ({"b": {}}, "field 'a' is missing"),
        ([], "it is [], expected an object"),
    ],
)
def test_what_is_wrong_with_a_value(value, said):
    assert fault(value, Wanted) == said
