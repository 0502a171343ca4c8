"""How much memory is free: a container's or a job's limit counts."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from trimtab.devices import free_on_cpu, is_crowded, ran_out_of_memory
from trimtab.errors import BadValue, OutOfMemory


@pytest.mark.parametrize(
    ("line", "files", "taken"),
    [
        (
            "0::/job/step",
            {"job/memory.max": "9000", "job/memory.current": "7000", "job/memory.stat": "inactive_file 30"},
            2030,
        ),
        ("0::/elsewhere", {"memory.max": "9000", "memory.current": "9900", "memory.stat": "anon 1"}, 0),
        (
            "4:memory:/job",
            {f"memory/{k}": v for k, v in {
                "memory.limit_in_bytes": "9000", "memory.usage_in_bytes": "8000",
                "memory.stat": "inactive_file 1\ntotal_inactive_file 500\ntotal_active_file 100",
            }.items()},
            1600,
        ),
        ("0::/", {"memory.max": "max", "memory.current": "7000", "memory.stat": ""}, None),
        ("4:cpu:/job", {"job/memory.max": "1"}, None),
    ],
)  # fmt: skip
def test_a_containers_limit_counts_as_the_end_of_memory(tmp_path, monkeypatch, line, files, taken):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**6))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(f"7:pids:/\n{line}\n")
    assert free_on_cpu(tmp_path, tmp_path / "own") == (10**6 if taken is None else taken)


@pytest.mark.parametrize(
    ("mistake", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 762.00 MiB."), True),
        (torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (OutOfMemory("a step would take about 2.5 GB beyond the weights, 2.2 GB are free"), True),
        (BadValue("micro_batch must be at least 1"), False),
    ],
)
def test_too_little_memory_is_told_from_other_failures_in_whatever_words(mistake, is_one):
    assert ran_out_of_memory(mistake) == is_one


def test_what_torch_says_of_an_impossible_size_on_this_cpu_is_too_little_memory():
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert ran_out_of_memory(found.value)


HELD = "import torch; held = torch.empty({n}, dtype=torch.uint8, device='cuda'); print('held', flush=True); input()"


@pytest.mark.gpu
def test_a_gpu_is_crowded_by_other_processes_and_not_by_this_ones_own_memory():
    device = torch.device("cuda")
    half = torch.cuda.mem_get_info(device)[0] * 6 // 10
    assert not is_crowded(device)
    own = torch.empty(half, dtype=torch.uint8, device=device)
    assert not is_crowded(device)
    del own
    torch.cuda.empty_cache()
    command = [sys.executable, "-c", HELD.format(n=half)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert is_crowded(device)
        with pytest.raises(Exception, match="memory") as caught:
            torch.empty(half, dtype=torch.uint8, device=device)
        assert ran_out_of_memory(caught.value)
        other.communicate(b"\n")
    assert not is_crowded(device)
