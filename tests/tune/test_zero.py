"""DeepSpeed's ZeRO 1 and 2 on the CPU: two processes learn what they learn without it, and resume to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_distributed import found, launched

pytest.importorskip("deepspeed")
KNOBS = {"batch_size": 2, "micro_batch": 1, "epochs": 2, "save_every": 4, "max_grad_norm": 0.1, "weight_decay": 0.1}


def tune(folder: Path, stage: int | None, monkeypatch: pytest.MonkeyPatch, name: str = "lora", **knobs: object) -> str:
    """Tune in two processes, under DeepSpeed where a stage is given, and return what they said if they failed."""
    with monkeypatch.context() as m:
        if stage is not None:
            m.setenv("ACCELERATE_USE_DEEPSPEED", "true")
            m.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
            if not torch.cuda.is_available():
                m.setenv("DS_ACCELERATOR", "cpu")
        folder.mkdir(exist_ok=True)
        result = launched("tests.launched_tuning", 2, str(folder), json.dumps({**KNOBS, **knobs}), name)
    return "" if result.returncode == 0 else result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name"), [(1, "lora"), (2, "lora"), (2, "houlsby"), (2, "full")])
def test_zero_learns_what_plain_processes_learn_and_resumes_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, name: str
) -> None:
    plain, zero = tmp_path / "plain", tmp_path / "zero"
    assert not tune(plain, None, monkeypatch, name)
    assert not tune(zero, stage, monkeypatch, name)
    ours, theirs = found(zero, 0), found(plain, 0)
    assert ours == found(zero, 1)
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    for key, values in theirs["tensors"].items():
        torch.testing.assert_close(torch.tensor(ours["tensors"][key]), torch.tensor(values), rtol=1e-3, atol=1e-4)
    # pickles of the Trainer's, none of DeepSpeed's
    kept = {p.name for p in (zero / "run/checkpoint-6").rglob("*") if p.suffix in (".pt", ".pth")}
    assert kept == {"rng_state_0.pth", "rng_state_1.pth", "scheduler.pt"}
    (zero / "run/checkpoint-6/complete.json").unlink()
    assert not tune(zero, stage, monkeypatch, name)
    assert found(zero, 0) == ours
    # its checkpoints hold each process's share, which no other launch reads
    assert "another specification (deepspeed differ" in tune(zero, None, monkeypatch, name)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "knobs", "words"), [
    (3, {}, "stage 3; to split the weights as well, launch with FSDP"),
    (0, {}, "not under stage 0"),
    (2, {"optimizer": "adamw_8bit"}, "DeepSpeed splits the state of AdamW alone"),
])  # fmt: skip
def test_what_deepspeed_cannot_do_here_is_refused_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, knobs: dict[str, Any], words: str
) -> None:
    assert words in tune(tmp_path, stage, monkeypatch, **knobs)
