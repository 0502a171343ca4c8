"""How much memory is free: a container's or a job's limit counts."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from tests.planted import activations
from tests.tiny import tiny_questions
from trimtab.devices import free_on_cpu, is_crowded, ran_out_of_memory
from trimtab.errors import BadValue, OutOfMemory
from trimtab.evaluate.judges import TfidfJudge
from trimtab.evaluate.style import AnswerStyle
from trimtab.probes import fit_mass_mean
from trimtab.steer.leace import leace


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


def style(_):
    AnswerStyle(tiny_questions(4).statements())


def judge(folder):
    rows = [
        ("yes" if i % 2 else "no", f"Q: {i}?\nA: {'So it is.' if i % 2 else 'Nobody can say.'}\n") for i in range(60)
    ]
    for name, tail in (("truth", "True:"), ("info", "Helpful:")):
        lines = [json.dumps({"prompt": asked + tail, "completion": f" {said}"}) for said, asked in rows]
        (folder / f"finetune_{name}.jsonl").write_text("\n".join(lines))
    TfidfJudge.train(folder)


def erasing(_):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    leace(x, (x[:, :1] > 0).float(), shrinkage="ledoit-wolf")


@pytest.mark.parametrize(
    ("named", "act"),
    [
        ("sklearn.linear_model.LogisticRegression.fit", style),
        ("sklearn.linear_model.LogisticRegression.fit", judge),
        ("sklearn.covariance.ledoit_wolf_shrinkage", erasing),
        ("trimtab.probes.head_probes.resampled_means", lambda _: fit_mass_mean(activations(20))),
    ],
    ids=["style", "judge", "erasing", "probes"],
)
def test_small_regressions_run_on_one_thread_and_others_keep_theirs(tmp_path, monkeypatch, named, act):
    outer, _, name = named.rpartition(".")
    home, during = pkgutil.resolve_name(outer), []
    act(tmp_path)  # what it loads, and torch's own setting of a thread's first work
    plain = getattr(home, name)

    def threads():
        return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}

    monkeypatch.setattr(home, name, lambda *a, **options: during.append(threads()) or plain(*a, **options))
    with threadpool_limits(limits=2):
        before = threads()
        assert set(before.values()) == {2}  # the control
        act(tmp_path)
        assert before.items() <= threads().items()
    assert during and all(set(one.values()) == {1} for one in during)
