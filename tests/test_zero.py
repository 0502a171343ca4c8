"""DeepSpeed's ZeRO 1 and 2 on the CPU: two processes learn what they learn without it, and resume to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.test_distributed import found, launched

pytest.importorskip("deepspeed")
KNOBS = {"batch_size": 2, "micro_batch": 1, "epochs": 2, "save_every": 4, "max_grad_norm": 0.1, "weight_decay": 0.1}


def tune(folder: Path, stage: int | None, monkeypatch: pytest.MonkeyPatch, **knobs: object) -> str:
    """Tune in two processes, under DeepSpeed where a stage is given, and return what they said."""
    with monkeypatch.context() as m:
        if stage is not None:
            m.setenv("ACCELERATE_USE_DEEPSPEED", "true")
            m.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
            m.setenv("DS_ACCELERATOR", "cpu")
        folder.mkdir(exist_ok=True)
        result = launched("tests.launched_tuning", 2, str(folder), json.dumps({**KNOBS, **knobs}))
    return "" if result.returncode == 0 else result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_zero_learns_what_plain_processes_learn_and_resumes_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    plain, zero = tmp_path / "plain", tmp_path / "zero"
    assert not tune(plain, None, monkeypatch)
    assert not tune(zero, stage, monkeypatch)
    ours, theirs = found(zero, 0), found(plain, 0)
    assert ours == found(zero, 1)
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    for name, values in theirs["tensors"].items():
        torch.testing.assert_close(torch.tensor(ours["tensors"][name]), torch.tensor(values), rtol=1e-3, atol=1e-4)
    kept = {p.name for p in (zero / "run/checkpoint-6").rglob("*") if p.suffix in (".pt", ".pth")}
    assert kept == {
        "rng_state_0.pth",
        "rng_state_1.pth",
        "scheduler.pt",
    }  # pickles of the Trainer's, none of DeepSpeed's
    (zero / "run/checkpoint-6/complete.json").unlink()
    assert not tune(zero, stage, monkeypatch)
    assert found(zero, 0) == ours


@pytest.mark.slow
def test_zero_3_is_refused_with_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "use ZeRO stage 1 or 2" in tune(tmp_path, 3, monkeypatch)
