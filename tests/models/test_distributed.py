"""Two processes on the CPU (gloo) give the numbers and the weights of one, and go on where a killed run stopped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.edits.vectors import HeadShift
from trimtab.errors import Incompatible
from trimtab.models.processes import over_processes, rank_and_count, wait
from trimtab.peft import TunedEdit
from trimtab.peft.train.runs import TuningRunFolder

ROOT = Path(__file__).resolve().parents[2]


def launched(module: str, processes: int, *arguments: str, by: str = "torchrun") -> subprocess.CompletedProcess[str]:
    if by == "torchrun":
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    else:
        # with --cpu it starts several processes through MPI alone; where there is no GPU this way ends at gloo too
        kind = ["--use_fsdp", "--fsdp_version=2"] if by == "fsdp" else ["--multi_gpu"]
        launcher = ["-m", "accelerate.commands.launch", *kind, f"--num_processes={processes}"]
        launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        launcher += [f"--main_process_port={free_port()}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    whole = [sys.executable, *(launcher if processes > 1 else []), "-m", module, *arguments]
    return subprocess.run(whole, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def run(folder: Path, processes: int, *arguments: str, by: str = "torchrun") -> subprocess.CompletedProcess[str]:
    return launched("tests.launched", processes, str(folder), *arguments, by=by)


def tune(folder: Path, processes: int, batch_size: int) -> subprocess.CompletedProcess[str]:
    """Tune on 12 examples with 4 of them in a step on all processes."""
    knobs = {"batch_size": batch_size, "epochs": 2, "save_every": 2}
    return launched("tests.launched_tuning", processes, str(folder), json.dumps(knobs))


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
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_split_the_work_and_give_the_numbers_of_one(
    tmp_path: Path, alone: dict[str, Any], launcher: str
) -> None:
    result = run(tmp_path, 2, by=launcher)
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


@pytest.mark.slow
def test_two_processes_learn_the_weights_of_one_and_resume_to_the_bit(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, processes, batch_size in ((one, 1, 4), (two, 2, 2)):
        folder.mkdir()
        result = tune(folder, processes, batch_size)
        assert result.returncode == 0, result.stderr
    alone, both = found(one, "alone"), [found(two, rank) for rank in range(2)]
    assert both[0] == both[1]
    assert (alone["steps"], alone["examples_seen"]) == (6, 24)
    for key in ("planned", "steps", "tokens_seen", "examples_seen"):
        assert both[0][key] == alone[key]
    assert both[0]["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    for name, values in alone["tensors"].items():
        torch.testing.assert_close(torch.tensor(both[0]["tensors"][name]), torch.tensor(values), rtol=1e-3, atol=1e-4)
    # the control: there is something to agree on
    moved = [torch.tensor(v).abs().max() for k, v in alone["tensors"].items() if "lora_B" in k]
    assert min(moved) > 0.01
    # cut off between two checkpoints: the last one was not finished
    (two / "run/checkpoint-6/complete.json").unlink()
    assert tune(two, 2, 2).returncode == 0
    assert found(two, 0) == both[0]
    assert len(TunedEdit.load(two / "edit").tensors) == len(alone["tensors"])
    held = json.loads((two / "run/record.json").read_text())["specification"]
    assert held.pop("processes") == 2
    with pytest.raises(Incompatible, match=r"another specification \(processes differ\)"):  # noqa: SIM117
        with TuningRunFolder.opened(two / "run", held, resume=True):
            pass


def test_without_a_launcher_there_is_one_process_and_no_group_is_made() -> None:
    assert rank_and_count() == (0, 1)
    wait()
    assert over_processes([1, 2, 3], lambda part: [x * 10 for x in part]) == [10, 20, 30]
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_stretches_cover_every_item_once_and_in_order(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[list[int]] = []

    def gather(parts: list[Any], mine: list[int]) -> None:
        done.append(mine)
        parts[:] = [mine] * len(parts)

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for rank in range(n):
        monkeypatch.setattr("trimtab.models.processes.rank_and_count", lambda rank=rank: (rank, n))
        over_processes([0, 1, 2, 3], lambda part: list(part))
    assert [x for part in done for x in part] == [0, 1, 2, 3]
    assert max(map(len, done)) - min(map(len, done)) <= 1
