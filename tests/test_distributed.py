"""Two processes on the CPU (gloo) give the numbers of one, write one store, and go on where a killed run stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.models.processes import rank_and_count, spread, wait
from trimtab.steer import HeadShift

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    whole = [sys.executable, *(launcher if processes > 1 else []), "-m", "tests.launched", str(folder), *arguments]
    return subprocess.run(whole, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


def found(folder: Path, rank: int | str) -> dict[str, Any]:
    return json.loads((folder / f"found-{rank}.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    assert run(folder, 1).returncode == 0
    return found(folder, "alone")


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Hold that two runs agree to float32's rounding, and in every word."""
    for name in ("values", "probes", "logprobs", "drift"):
        torch.testing.assert_close(torch.tensor(ours[name]), torch.tensor(theirs[name]), rtol=1e-4, atol=1e-4)
    assert (ours["answers"], ours["labels"]) == (theirs["answers"], theirs["labels"])


@pytest.mark.slow
def test_two_processes_split_the_work_and_give_the_numbers_of_one(tmp_path: Path, alone: dict[str, Any]) -> None:
    result = run(tmp_path, 2)
    assert result.returncode == 0, result.stderr
    both = [found(tmp_path, rank) for rank in range(2)]
    assert [b["shards written"] for b in both] == [5, 5]
    for one in both:
        assert_same(one, alone)
    assert len(HeadShift.load(tmp_path / "shift").heads) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["found-0.json", "found-1.json", "shift", "store"]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_killed_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, alone: dict[str, Any], before: int, after: int
) -> None:
    assert run(tmp_path, before, "2").returncode != 0
    assert 1 <= len(list((tmp_path / "store").glob("shard-*.safetensors"))) < 10
    result = run(tmp_path, after)
    assert result.returncode == 0, result.stderr
    ranks = ["alone"] if after == 1 else [0, 1]
    written = [found(tmp_path, rank)["shards written"] for rank in ranks]
    assert 0 < sum(written) < 10
    assert_same(found(tmp_path, ranks[-1]), alone)


def test_without_a_launcher_there_is_one_process_and_no_group_is_made() -> None:
    assert rank_and_count() == (0, 1)
    wait()
    assert spread([1, 2, 3], lambda part: [x * 10 for x in part]) == [10, 20, 30]
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_stretches_cover_every_item_once_and_in_order(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[list[int]] = []
    for rank in range(n):
        monkeypatch.setattr("trimtab.models.processes.rank_and_count", lambda rank=rank: (rank, n))
        monkeypatch.setattr(torch.distributed, "all_gather_object", lambda parts, mine: done.append(mine))
        spread([0, 1, 2, 3], lambda part: list(part))
    assert [x for part in done for x in part] == [0, 1, 2, 3]
    assert max(map(len, done)) - min(map(len, done)) <= 1
