"""Results on disk: one folder each, written whole or not at all, and refused when it is anything else."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import storage
from trimtab.activations import Head, HeadActivations
from trimtab.errors import BadDataset, BadValue, Incompatible, ShapeError
from trimtab.storage import RECORD, TENSORS, check_writable, load_result, save_result, write_json, written_folder

DIRECTIONS = torch.arange(6, dtype=torch.float64).reshape(2, 3)


def save(path: Path, strength: float = 1.0) -> Path:
    save_result(path, "shift", {"strength": strength}, {"directions": DIRECTIONS * strength})
    return path


def assert_holds(path: Path, strength: float) -> None:
    record, tensors = load_result(path, "shift")
    assert record["strength"] == strength
    assert torch.equal(tensors["directions"], DIRECTIONS * strength)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def activations(n_questions: int = 6, dtype: torch.dtype = torch.float32) -> HeadActivations:
    """Return activations of two true and two false statements per question, in three layers of a hybrid model."""
    n = 4 * n_questions
    return HeadActivations(
        values=torch.randn(n, 3, 2, 5, dtype=dtype, generator=torch.Generator().manual_seed(0)),
        labels=torch.tensor([True, True, False, False] * n_questions),
        groups=tuple(f"Question {i // 4}?" for i in range(n)),
        layers=(0, 2, 5),
        record={"site": "heads", "position": "last", "tokens": 17},
    )


def assert_same(one: HeadActivations, other: HeadActivations) -> None:
    assert one.values.dtype == other.values.dtype
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.labels, other.labels)
    assert (one.groups, one.layers, one.record) == (other.groups, other.layers, other.record)


# ---- written whole


def test_a_result_is_loaded_as_it_was_saved_with_its_kind_and_the_versions(tmp_path):
    tensors = {"half": torch.ones(2, dtype=torch.bfloat16), "mask": torch.tensor([True]), "column": DIRECTIONS.T}
    save_result(tmp_path / "new" / "deep", "shift", {"heads": [[1, 2]], "name": "größer"}, tensors)
    record, loaded = load_result(str(tmp_path / "new" / "deep"), "shift")
    assert {k: record[k] for k in ("kind", "heads", "name")} == {"kind": "shift", "heads": [[1, 2]], "name": "größer"}
    assert record["versions"] == storage.versions()
    assert record["versions"]["torch"] == torch.__version__
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_a_result_is_one_json_and_one_safetensors_file_that_others_may_read(tmp_path):
    path = save(tmp_path / "a")
    assert names(path) == [RECORD, TENSORS]
    assert json.loads((path / RECORD).read_text())["kind"] == "shift"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert {stat.S_IMODE(p.stat().st_mode) for p in path.iterdir()} == {0o644}


def test_tensors_with_a_gradient_are_saved_by_their_values(tmp_path):
    save_result(tmp_path / "a", "shift", {}, {"directions": DIRECTIONS.clone().requires_grad_()})
    loaded = load_result(tmp_path / "a", "shift")[1]["directions"]
    assert torch.equal(loaded, DIRECTIONS)
    assert not loaded.requires_grad


def test_a_later_result_of_the_same_kind_takes_the_place_of_the_earlier_one_whole(tmp_path):
    path = save(tmp_path / "a")
    (path / "picture.png").write_bytes(b"of the earlier one")
    save(path, strength=2.0)
    assert_holds(path, 2.0)
    assert names(path) == [RECORD, TENSORS]
    assert names(tmp_path) == ["a"]


def test_an_empty_folder_may_be_written_to(tmp_path):
    (tmp_path / "a").mkdir()
    assert_holds(save(tmp_path / "a"), 1.0)
    assert names(tmp_path) == ["a"]


def test_a_link_to_a_folder_is_followed_and_kept(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk", target_is_directory=True)
    save(link)
    save(link, strength=2.0)
    assert link.is_symlink()
    assert_holds(tmp_path / "disk", 2.0)
    assert names(tmp_path) == ["disk", "link"]


def test_a_relative_path_is_written_where_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("a"))
    assert_holds(tmp_path / "a", 1.0)


# ---- or not at all


def fail_on_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(tensors, path):
        Path(path).write_bytes(b"half of the ten")
        raise OSError("No space left on device")

    monkeypatch.setattr(storage, "save_file", broken)


def fail_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.json, "dump", interrupted)


def fail_on_last_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if Path(target).name == "a" and not self.name.endswith(".old"):
            raise OSError("Directory not empty")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)


@pytest.mark.parametrize("fail", [fail_on_tensors, fail_on_record, fail_on_last_rename])
@pytest.mark.parametrize("earlier", [True, False], ids=["over a result", "fresh"])
def test_a_failure_while_writing_leaves_what_was_there_and_no_litter(tmp_path, monkeypatch, fail, earlier):
    if earlier:
        save(tmp_path / "a")
    with monkeypatch.context() as broken:
        fail(broken)
        with pytest.raises((Incompatible, KeyboardInterrupt)):
            save(tmp_path / "a", strength=2.0)
    assert names(tmp_path) == (["a"] if earlier else [])
    if earlier:
        assert_holds(tmp_path / "a", 1.0)
    # it was the planted failure that stopped it
    assert_holds(save(tmp_path / "a", strength=2.0), 2.0)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EIO, "name another folder"),
        (errno.EROFS, "name another folder"),
        (errno.EACCES, "name another folder"),
        (errno.ENAMETOOLONG, "name another folder"),
        (errno.ENOSPC, "make room or name another disk"),
    ],
)
@pytest.mark.parametrize("where", ["looking", "making", "tensors", "renaming"])
def test_whatever_the_disk_refuses_is_one_sentence(tmp_path, monkeypatch, number, advice, where):
    def refused(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    names = {"looking": (Path, "is_file"), "making": (storage.tempfile, "mkdtemp"), "tensors": (storage, "save_file")}
    monkeypatch.setattr(*names.get(where, (storage, "_replace")), refused)
    with pytest.raises(Incompatible) as caught:
        save(tmp_path / "a")
    said = str(caught.value)
    assert said.startswith(f"cannot write a shift to {tmp_path / 'a'}")
    assert os.strerror(number) in said
    assert said.endswith(advice)
    assert [p.name for p in tmp_path.iterdir()] == []


def test_a_name_that_no_disk_holds_is_refused_in_writing_and_reading(tmp_path):
    with pytest.raises(Incompatible, match=r"cannot write a shift to .*File name too long"):
        save(tmp_path / ("a" * 5000))
    with pytest.raises(Incompatible, match="no shift at"):
        load_result(tmp_path / ("a" * 5000), "shift")


def test_a_value_that_json_cannot_hold_is_named_and_leaves_no_litter(tmp_path):
    with pytest.raises(TypeError, match="set cannot be written as JSON"):
        save_result(tmp_path / "a", "shift", {"layers": {1, 2}}, {})
    assert names(tmp_path) == []
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError, match="set cannot be written as JSON"):
        write_json(tmp_path / "a.json", [1, {2}])
    assert names(tmp_path) == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


def test_the_folder_stands_only_when_the_block_has_ended(tmp_path):
    with written_folder(tmp_path / "a", "demo run") as folder:
        assert folder.parent == tmp_path
        assert not (tmp_path / "a").exists()
        (folder / "plots").mkdir()
        (folder / "plots" / "map.png").write_bytes(b"png")
        write_json(folder / RECORD, {"kind": "demo run"})
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "plots" / "map.png").read_bytes() == b"png"


# ---- JSON


def test_numpy_and_torch_values_and_paths_are_written_as_plain_json(tmp_path):
    value = {
        "array": np.arange(3),
        "scalars": [np.float32(0.5), np.float64(0.25), np.int64(7), np.bool_(True)],
        "tensor": torch.tensor([[1.5, 2.0]], dtype=torch.bfloat16),
        "zero-dimensional": torch.tensor(3),
        "dtype": torch.float16,
        "path": Path("a") / "b",
        "head": Head(1, 2),
        "text": "größer \u2028",
    }
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {
        "array": [0, 1, 2],
        "scalars": [0.5, 0.25, 7, True],
        "tensor": [[1.5, 2.0]],
        "zero-dimensional": 3,
        "dtype": "torch.float16",
        "path": "a/b",
        "head": [1, 2],
        "text": "größer \u2028",
    }
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644


# ---- what is refused


def foreign_file(path: Path) -> None:
    path.write_text("notes")


def foreign_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("all of it")


def foreign_record(path: Path) -> None:
    path.mkdir()
    (path / RECORD).write_text('["kind", "shift"]')


def numbered_record(path: Path) -> None:
    path.mkdir()
    (path / RECORD).write_text('{"kind": 5}')


def broken_record(path: Path) -> None:
    path.mkdir()
    (path / RECORD).write_bytes(b'{"kind": "shift\xff')


def other_kind(path: Path) -> None:
    save_result(path, "activations", {}, {"values": DIRECTIONS})


FOREIGN = {
    foreign_file: "it is a file; name a folder that does not exist yet",
    foreign_folder: "the folder holds something else; name another folder",
    foreign_record: "the folder holds something else; name another folder",
    numbered_record: "the folder holds something else; name another folder",
    broken_record: "the folder holds something else; name another folder",
    other_kind: "the folder holds activations; name another folder",
}


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("make", FOREIGN)
def test_a_place_that_holds_something_else_is_refused_and_left_alone(tmp_path, make):
    make(tmp_path / "a")
    before = contents(tmp_path)
    for write in (lambda: check_writable(tmp_path / "a", "shift"), lambda: save(tmp_path / "a")):
        with pytest.raises(Incompatible, match=re.escape(f"cannot write a shift to {tmp_path / 'a'}: {FOREIGN[make]}")):
            write()
    assert contents(tmp_path) == before


def test_places_that_may_be_written_pass_the_check(tmp_path):
    (tmp_path / "empty").mkdir()
    save(tmp_path / "shift")
    for name in ("absent", "empty", "shift"):
        check_writable(tmp_path / name, "shift")
    assert names(tmp_path) == ["empty", "shift"]


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(Incompatible, match=r"cannot write a shift to .*notes/a \(.*\); name another folder"):
        save(tmp_path / "notes" / "a")
    assert contents(tmp_path) == {"notes": b"mine"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no shift at .*: expected a folder written by trimtab"),
        (foreign_file, "no shift at .*: expected a folder written by trimtab"),
        (foreign_folder, r"expected a shift at .*, found no readable record\.json"),
        (foreign_record, r"expected a shift at .*, found no readable record\.json"),
        (numbered_record, r"expected a shift at .*, found no readable record\.json"),
        (broken_record, r"expected a shift at .*, found no readable record\.json"),
        (other_kind, "expected a shift at .*, found activations"),
    ],
)
def test_what_is_not_such_a_result_is_not_loaded(tmp_path, make, words):
    make(tmp_path / "a")
    with pytest.raises(Incompatible, match=words):
        load_result(tmp_path / "a", "shift")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def other_tensors(path: Path) -> None:
    path.write_bytes((save_elsewhere(path.parent.parent / "b") / TENSORS).read_bytes())


def save_elsewhere(path: Path) -> Path:
    save_result(path, "shift", {}, {"directions": DIRECTIONS[:1]})
    return path


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, r"the result at .* \(shift\) has no readable tensors\.safetensors: write it again"),
        (cut, r"has no readable tensors\.safetensors: write it again"),
        (lambda path: path.write_bytes(b""), r"has no readable tensors\.safetensors"),
        (lambda path: path.write_bytes(b"\x80\x04pickle" * 9), r"has no readable tensors\.safetensors"),
        (other_tensors, r"the tensors\.safetensors at .* are not those that its record\.json lists: write it again"),
    ],
)
def test_missing_damaged_or_exchanged_tensors_are_refused(tmp_path, damage, words):
    path = save(tmp_path / "a")
    assert_holds(path, 1.0)
    damage(path / TENSORS)
    with pytest.raises(Incompatible, match=words):
        load_result(path, "shift")
    # and writing again is the way out, as the message says
    assert_holds(save(path, strength=2.0), 2.0)


# ---- activations


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_are_loaded_as_they_were_saved(tmp_path, dtype):
    acts = activations(dtype=dtype)
    acts.save(tmp_path / "a")
    loaded = HeadActivations.load(tmp_path / "a")
    assert_same(loaded, acts)
    assert (len(loaded), loaded.n_heads, loaded.d_head, loaded.layers) == (24, 2, 5, (0, 2, 5))


def test_a_part_of_activations_is_saved_alone(tmp_path):
    part, _ = activations().split(test=0.5, seed=0)
    part.save(tmp_path / "a")
    assert_same(HeadActivations.load(tmp_path / "a"), part)


def test_another_kind_of_result_is_not_loaded_as_activations(tmp_path):
    with pytest.raises(Incompatible, match=r"expected activations at .*, found a shift"):
        HeadActivations.load(save(tmp_path / "a"))


def test_one_head_s_examples_are_its_values_labels_and_questions():
    acts = activations(dtype=torch.float64)
    x, y, groups = acts.head(5, 1)
    np.testing.assert_array_equal(x, acts.values[:, 2, 1].numpy())
    assert x.dtype == np.float64
    assert y.tolist() == acts.labels.tolist()
    assert tuple(groups) == acts.groups


@pytest.mark.parametrize(("layer", "head"), [(1, 0), (3, 0), (-1, 0), (0, 2), (0, -1)])
def test_a_head_that_was_not_captured_is_refused(layer, head):
    words = f"no head {head} in layer {layer}: these activations hold layers 0, 2, 5 with 2 heads each"
    with pytest.raises(BadValue, match=words):
        activations().head(layer, head)


def test_selected_examples_keep_their_order_dtype_and_record():
    acts = activations(dtype=torch.float64)
    part = acts.select(acts.labels)
    kept = [i for i, label in enumerate(acts.labels.tolist()) if label]
    assert torch.equal(part.values, acts.values[kept])
    assert part.values.dtype == torch.float64
    assert part.groups == tuple(acts.groups[i] for i in kept)
    assert bool(part.labels.all())
    assert (part.layers, part.record) == (acts.layers, acts.record)
    assert len(acts) == 24


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 12), test=st.floats(-0.2, 1.2), seed=st.integers(0, 2**32 - 1))
def test_a_split_of_activations_never_parts_a_question(n, test, seed):
    acts = activations(n)
    if not 0 < round(test * n) < n:
        with pytest.raises(BadDataset, match=rf"a test share of .* of {n} questions leaves one side empty"):
            acts.split(test=test, seed=seed)
        return
    rest, held = acts.split(test=test, seed=seed)
    assert set(rest.groups).isdisjoint(held.groups)
    assert len(set(held.groups)) == round(test * n)
    assert sorted(rest.groups + held.groups) == sorted(acts.groups)
    assert len(rest) + len(held) == len(acts)
    mask = torch.tensor([group in held.groups for group in acts.groups])
    assert_same(held, acts.select(mask))
    assert_same(rest, acts.select(~mask))
    assert_same(acts.split(test=test, seed=seed)[1], held)


def test_which_questions_are_held_out_does_not_hang_on_the_order_of_examples():
    acts = activations(12)
    backwards = HeadActivations(acts.values.flip(0), acts.labels.flip(0), acts.groups[::-1], acts.layers)
    assert set(acts.split(seed=1)[1].groups) == set(backwards.split(seed=1)[1].groups)
    assert len({acts.split(seed=s)[1].groups for s in range(5)}) > 1


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"labels": torch.ones(3, dtype=torch.bool)},
            "4 examples and 3 layers came with 3 labels, 4 groups and 3 layer",
        ),
        ({"groups": ("Q?",) * 5}, "4 examples and 3 layers came with 4 labels, 5 groups and 3 layer numbers"),
        ({"layers": (0, 2)}, "4 examples and 3 layers came with 4 labels, 4 groups and 2 layer numbers"),
        ({"values": torch.zeros(4, 3, 5)}, r"axes example, layer, head, d_head; got shape \[4, 3, 5\]"),
    ],
)
def test_parts_of_different_size_are_refused(parts, words):
    whole = activations(1)
    fields = {name: getattr(whole, name) for name in ("values", "labels", "groups", "layers")}
    # without the run's type checks, as a user meets it
    construct = inspect.unwrap(HeadActivations.__init__)
    construct(object.__new__(HeadActivations), **fields)
    with pytest.raises(ShapeError, match=words):
        construct(object.__new__(HeadActivations), **fields | parts)


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ShapeError, match="the mask has 3 entries for 24 examples; give one for each"):
        activations().select(torch.tensor([True, False, True]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_by_their_layers(bad):
    acts = activations()
    assert acts.require_finite() is acts
    acts.values[3, 1, 0, 2] = bad
    acts.values[5, 2, 1, 0] = bad
    with pytest.raises(
        BadValue,
        match=r"NaN or infinite values in layer\(s\) 2, 5: they come from layer 2 .*; load the model in float32",
    ):
        acts.require_finite()


@pytest.mark.parametrize(("label", "word"), [(True, "true"), (False, "false")])
def test_statements_of_one_kind_only_are_refused(label, word):
    acts = activations()
    assert acts.require_both_labels() is acts
    with pytest.raises(BadDataset, match=f"all 12 statements are {word}: give more of the other kind"):
        acts.select(acts.labels == label).require_both_labels()
    with pytest.raises(BadDataset, match="no examples: directions and probes need true and false statements"):
        acts.select(torch.zeros(24, dtype=torch.bool)).require_both_labels()
