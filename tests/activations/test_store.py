"""The store on disk: what was captured comes back, runs go on where they stopped, and damage is told by name."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import signal
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.planted import PLANTED, activations
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.activations import HeadActivations
from trimtab.activations.manifest import Layout, Manifest
from trimtab.activations.shards import ActivationStore
from trimtab.engine import capture_store
from trimtab.engine.capture import capture_heads
from trimtab.engine.capture_store import capture_to_store
from trimtab.errors import BadDataset, BadValue, Incompatible, ShapeError
from trimtab.probes import fit_logistic, fit_mass_mean
from trimtab.steer import fit_shift

STATEMENTS = tiny_questions(6).statements()  # 24


def stored(path: Path, acts: HeadActivations, per_shard: int = 100) -> ActivationStore:
    layout = Layout(acts.layers, acts.n_heads, acts.d_head, str(acts.values.dtype).removeprefix("torch."), per_shard)
    store = ActivationStore.created(path, Manifest(acts.record, layout, tuple(acts.labels.tolist()), acts.groups))
    for shard in store.missing():
        places = store.manifest.examples_of(shard)
        store.write(shard, acts.values[places.start : places.stop])
    return ActivationStore.open(path)


def capture(path: Path, **options: Any) -> ActivationStore:
    return capture_to_store(tiny_model("llama"), tiny_tokenizer(), STATEMENTS, path, **{"per_shard": 5, **options})


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    """Return a store of five shards, the last one shorter."""
    return capture(tmp_path / "store")


def shards(path: Path) -> list[Path]:
    return sorted(path.glob("shard-*.safetensors"))


# what is stored


@pytest.mark.parametrize("options", [{}, {"position": "mean_answer"}, {"site": "residual"}])
def test_it_holds_what_capture_heads_gives(tmp_path: Path, options: dict[str, Any]) -> None:
    found = capture(tmp_path / "store", **options)
    expected = capture_heads(tiny_model("llama"), tiny_tokenizer(), STATEMENTS, **options)
    whole = found.load()
    assert torch.allclose(whole.values, expected.values, rtol=0, atol=1e-5 * float(expected.values.abs().max()))
    assert whole.values.dtype == expected.values.dtype and torch.equal(whole.labels, expected.labels)
    assert (whole.groups, whole.layers) == (expected.groups, expected.layers)
    same = ("model", "position", "site")
    assert [found.record[k] for k in same] == [expected.record[k] for k in same]
    assert len(shards(tmp_path / "store")) == 5 and len(found) == 24


def test_a_float64_model_is_stored_in_float64(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    found = capture_to_store(model, tiny_tokenizer(), STATEMENTS, tmp_path / "store").load().values
    assert found.dtype == torch.float64
    assert torch.allclose(found, capture_heads(model, tiny_tokenizer(), STATEMENTS).values, rtol=0, atol=1e-10)


def test_layers_heads_and_selections_are_those_of_the_whole(store: ActivationStore) -> None:
    whole = store.load()
    assert store.geometry == whole.geometry == (3, 4, 12)
    for layer in whole.layers:
        assert torch.equal(store.layer(layer).values, whole.layer(layer).values)
    assert torch.equal(torch.from_numpy(store.head(1, 2).X), whole.values[:, 1, 2])
    keep = torch.arange(24) % 3 == 0
    some = store.select(keep).select(torch.arange(8) % 2 == 1)
    expected = whole.select(keep).select(torch.arange(8) % 2 == 1)
    assert torch.equal(some.load().values, expected.values)
    assert (some.groups, some.labels.tolist()) == (expected.groups, expected.labels.tolist())
    for ours, theirs in zip(store.split(test=0.5, seed=3), whole.split(test=0.5, seed=3), strict=True):
        assert torch.equal(ours.load().values, theirs.values)
    with pytest.raises(ShapeError, match="the mask has 3 entries for 24 examples"):
        store.select(torch.ones(3, dtype=torch.bool))
    with pytest.raises(BadValue, match="no head 4 in layer 0"):
        store.head(0, 4)
    with pytest.raises(BadValue, match="no head 0 in layer 7"):
        store.layer(7)


@pytest.mark.parametrize("fit", [fit_logistic, fit_mass_mean])
@pytest.mark.parametrize("given", [False, True])
def test_probes_and_shifts_fitted_on_a_store_are_those_fitted_in_memory(tmp_path: Path, fit: Any, given: bool) -> None:
    acts, others = activations(60), activations(30, seed=5, prefix="other")
    store = stored(tmp_path / "store", acts)
    here, there = ({"validation": others}, {"validation": stored(tmp_path / "held", others)}) if given else ({}, {})
    found, expected = fit(store, seed=1, **there), fit(acts, seed=1, **here)
    for name in ("coef", "intercept", "accuracy", "accuracy_low", "accuracy_high", "auroc"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert found.layers == expected.layers and found.validation_questions == expected.validation_questions
    assert found.record == expected.record
    assert found.top(1) == (PLANTED,)
    for direction in ("mass_mean", "probe", "random"):
        ours, theirs = (fit_shift(a, found, top_k=3, direction=direction) for a in (store, acts))
        assert torch.equal(ours.directions, theirs.directions) and torch.equal(ours.sigma, theirs.sigma)


def test_probing_reads_one_layer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, alive = stored(tmp_path / "store", activations(60)), []
    real = ActivationStore.layer

    def layer(self: ActivationStore, which: int) -> HeadActivations:
        acts = real(self, which)
        alive[:] = [ref for ref in alive if ref() is not None]
        assert all(ref().layers == acts.layers for ref in alive), "an earlier layer is still held"
        alive.append(weakref.ref(acts))
        return acts

    monkeypatch.setattr(ActivationStore, "layer", layer)
    fit_logistic(store)
    assert alive


def test_a_store_of_one_label_or_other_layers_is_refused(tmp_path: Path) -> None:
    acts = activations(20)
    with pytest.raises(BadDataset, match="are true"):
        fit_logistic(stored(tmp_path / "one", replace(acts, labels=torch.ones(80, dtype=torch.bool))))
    other = activations(20, layers=(2, 5, 8), prefix="other")
    with pytest.raises(ShapeError, match=r"validation activations are of layers \(2, 5, 8\)"):
        fit_logistic(acts, validation=stored(tmp_path / "other", other))


# going on


def spied_capture(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """Record how many statements each call captures, and fail at one of the calls."""
    calls: list[int] = []

    def spy(model: Any, tokenizer: Any, statements: Any, **options: Any) -> HeadActivations:
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        calls.append(len(statements))
        return capture_heads(model, tokenizer, statements, **options)

    monkeypatch.setattr(capture_store, "capture_heads", spy)
    return calls


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spied_capture(monkeypatch, fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        capture(tmp_path / "store")
    good = {p.name: p.stat().st_mtime_ns for p in shards(tmp_path / "store")}
    assert len(good) == 2
    with pytest.raises(Incompatible, match="lacks 3 of its 5 shards; capture with the same settings"):
        ActivationStore.open(tmp_path / "store")
    calls = spied_capture(monkeypatch)
    # how many examples a shard has was settled when the store was begun
    found = capture(tmp_path / "store", per_shard=24)
    assert calls == [5, 5, 4]
    assert {p.name: p.stat().st_mtime_ns for p in shards(tmp_path / "store")}.items() >= good.items()
    expected = capture_heads(tiny_model("llama"), tiny_tokenizer(), STATEMENTS).values
    assert torch.allclose(found.load().values, expected, rtol=0, atol=1e-4)


def test_a_store_that_is_whole_is_not_captured_again(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied_capture(monkeypatch)
    assert torch.equal(capture(store.path).load().values, store.load().values)
    assert calls == []


def run(path: Path) -> None:
    statements = tiny_questions(16).statements()
    capture_to_store(tiny_model("llama"), tiny_tokenizer(), statements, path, per_shard=2)


def test_a_run_killed_at_random_moments_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    path = tmp_path / "store"
    for moment in torch.rand(3, generator=torch.Generator().manual_seed(0)).tolist():
        process = multiprocessing.get_context("fork").Process(target=run, args=(path,))
        process.start()
        had = len(shards(path))
        while len(shards(path)) == had and process.is_alive():
            time.sleep(0.001)
        time.sleep(0.1 * moment)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert had < len(shards(path))
    statements = tiny_questions(16).statements()
    for name in (".shard-left-behind", ".tmpLeftBehind"):
        (path / name).write_bytes(b"half a shard")
    found = capture_to_store(tiny_model("llama"), tiny_tokenizer(), statements, path)
    expected = capture_heads(tiny_model("llama"), tiny_tokenizer(), statements).values
    assert torch.allclose(found.load().values, expected, rtol=0, atol=1e-4)
    assert sorted(p.name for p in path.iterdir()) == ["record.json", *(p.name for p in shards(path))]


# damage


def test_a_shard_cut_short_is_named_and_only_it_is_made_again(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.load().values
    cut = shards(store.path)[3]
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(Incompatible, match="lacks 1 of its 5 shards"):
        ActivationStore.open(store.path)
    with pytest.raises(Incompatible, match=r"shard-00003\.safetensors is missing or damaged"):
        store.load()
    calls = spied_capture(monkeypatch)
    assert torch.equal(capture(store.path).load().values, before)
    assert calls == [5]


@pytest.mark.parametrize("what", ["labels", "position", "layers", "digest"])
def test_a_manifest_that_was_edited_is_refused_and_the_shards_stay(store: ActivationStore, what: str) -> None:
    file = store.path / "record.json"
    manifest = json.loads(file.read_text())
    if what == "labels":
        manifest["labels"][0] = not manifest["labels"][0]
    elif what == "position":
        manifest["record"]["position"] = "mean_answer"
    elif what == "layers":
        manifest["layout"]["layers"] = [0, 2, 1]
    else:
        manifest["digest"] = "0" * 64
    file.write_text(json.dumps(manifest))
    for use in (ActivationStore.open, capture):
        with pytest.raises(Incompatible, match=r"record\.json was changed after it was written"):
            use(store.path)
    assert len(shards(store.path)) == 5


def test_a_manifest_that_is_gone_or_garbage_is_refused(store: ActivationStore) -> None:
    file = store.path / "record.json"
    for text in ("{", "[]", None):
        file.unlink() if text is None else file.write_text(text)
        with pytest.raises(Incompatible, match="activation store at"):
            ActivationStore.open(store.path)
        with pytest.raises(Incompatible, match="the folder holds something else"):
            capture(store.path)
    assert len(shards(store.path)) == 5


def test_a_shard_from_another_store_or_place_is_refused(store: ActivationStore, tmp_path: Path) -> None:
    other = capture(tmp_path / "other", position="mean_answer")
    for source in (shards(other.path)[1], shards(store.path)[0]):
        shutil.copy(source, store.path / "shard-00001.safetensors")
        with pytest.raises(Incompatible, match=r"shard-00001\.safetensors belongs to another activation store"):
            ActivationStore.open(store.path)


def test_another_kind_of_folder_is_refused(tmp_path: Path) -> None:
    activations(20).save(tmp_path / "memory")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(Incompatible, match="holds activations; name another folder"):
        capture(tmp_path / "memory")
    with pytest.raises(Incompatible, match="holds something else; name another folder"):
        capture(tmp_path / "notes")
    with pytest.raises(Incompatible, match="found activations"):
        ActivationStore.open(tmp_path / "memory")
    with pytest.raises(Incompatible, match="no activation store at"):
        ActivationStore.open(tmp_path / "absent")
    with pytest.raises(Incompatible, match="expected activations at"):
        HeadActivations.load(capture(tmp_path / "store").path)


OTHERS = {
    "model": lambda path: capture_to_store(tiny_model("llama", seed=1), tiny_tokenizer(), STATEMENTS, path),
    "statements": lambda path: capture_to_store(tiny_model("llama"), tiny_tokenizer(), STATEMENTS[::-1], path),
    "position": lambda path: capture(path, position="mean_answer"),
    "site": lambda path: capture(path, site="residual"),
    "labels": lambda path: capture_to_store(
        tiny_model("llama"), tiny_tokenizer(), [replace(s, label=not s.label) for s in STATEMENTS], path
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_store_of_something_else_is_refused_by_what_differs(store: ActivationStore, what: str) -> None:
    with pytest.raises(Incompatible, match=f"differs in .*{what}.* from what is asked for"):
        OTHERS[what](store.path)
    assert torch.equal(ActivationStore.open(store.path).load().values, store.load().values)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow beyond 20 kB, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_told_and_the_good_shards_stay(tmp_path: Path) -> None:
    acts, path = activations(60), tmp_path / "store"
    store = stored(path, acts)
    shards(path)[1].unlink()
    good = [p.read_bytes() for p in shards(path)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with pytest.raises(Incompatible, match=r"cannot write activations to .*; make room and capture again"):
        store.write(1, acts.values[100:200])
    assert [p.read_bytes() for p in shards(path)] == good
    assert sorted(p.name for p in path.iterdir()) == ["record.json", *(p.name for p in shards(path))]


def test_a_shard_that_another_run_sweeps_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acts, path = activations(60), tmp_path / "store"
    store = stored(path, acts)

    def swept(tensors: Any, name: Any, metadata: Any) -> None:
        store.sweep()

    monkeypatch.setattr("trimtab.activations.shards.save_file", swept)
    with pytest.raises(Incompatible, match=r"another run writes there too: let it end and capture again"):
        store.write(1, acts.values[100:200])
    assert len(ActivationStore.open(path)) == 240


def test_a_store_is_shown_by_its_folder_and_layers(store: ActivationStore) -> None:
    assert repr(store).startswith(
        f"ActivationStore(path={store.path!r}, manifest=Manifest(layout=Layout(layers=(0, 1, 2), "
    )
    assert STATEMENTS[0].group not in repr(store)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Incompatible, match="cannot write"):
        capture(tmp_path / "file" / "store")
    with pytest.raises(Incompatible, match="it is a file"):
        capture(tmp_path / "file")


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_position_is_refused_before_the_folder_is_begun(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="position must be 'last' or 'mean_answer'"):
        capture(tmp_path / "store", position="first")
    assert not (tmp_path / "store").exists()


def test_no_statements_and_empty_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="no statements"):
        capture_to_store(tiny_model("llama"), tiny_tokenizer(), [], tmp_path / "store")
    with pytest.raises(BadValue, match="per_shard must be at least 1, got 0"):
        capture(tmp_path / "store", per_shard=0)
    store = stored(tmp_path / "planted", activations(20))
    with pytest.raises(ShapeError, match=r"shard 0 holds \(80, 3, 4, 8\)"):
        store.write(0, torch.zeros(2, 3, 4, 8))


def test_what_nan_activations_say_is_said_here_too(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(BadValue, match=r"NaN or infinite values"):
        capture_to_store(model, tiny_tokenizer(), STATEMENTS, tmp_path / "store")
