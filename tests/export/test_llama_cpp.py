"""What trimtab reads from GGUF files and writes into them, against llama.cpp itself (`make test-engines`)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import trimtab as tt
from tests.gguf_files import written_gguf
from tests.tiny import VOCAB, tiny_model, tiny_tokenizer
from trimtab.activations import Head
from trimtab.datasets import folklore
from trimtab.edits.vectors import HeadShift
from trimtab.errors import UnsupportedModel
from trimtab.export import gguf_biases
from trimtab.export.gguf_biases import gguf_with_biases
from trimtab.models.load.checkpoints import gguf_source
from trimtab.models.tokens import encode
from trimtab.protocols import Edit

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore:.*weights are dequantised")]
ROOT = Path(__file__).resolve().parents[2]


def in_llama_cpp(file: Path, prompts: Sequence[Any]) -> list[dict[str, Any]]:
    python = ROOT / ".venv-engines" / "bin" / "python"
    if not python.exists():
        pytest.skip("llama.cpp's environment is not there: make test-engines makes it")
    done = subprocess.run(
        [python, ROOT / "tests" / "run_llama_cpp.py", file],
        input=json.dumps(list(prompts)),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.rpartition("FOUND ")[2])


def live(model: Any, ids: Sequence[int], edit: Edit) -> torch.Tensor:
    with edit.applied(model, "all") as edited, torch.no_grad():
        return edited(torch.tensor([list(ids)])).logits[0, -1].log_softmax(-1)


def gaps(model: Any, prompts: Sequence[Sequence[int]], edit: Edit, found: Sequence[dict[str, Any]]) -> list[float]:
    """Return how far the engine's five likeliest log-probabilities are from those of the live edit at all positions."""
    pairs = zip(prompts, found, strict=True)
    return [
        abs(value - float(live(model, ids, edit)[int(token)]))
        for ids, one in pairs
        for token, value in one["top"].items()
    ]


PROMPTS = [[1, *range(start, start + 9)] for start in range(40, 240, 20)]
UNITS = torch.nn.functional.normalize(torch.randn(2, 12, generator=torch.Generator().manual_seed(0)))
SHIFT = HeadShift((Head(0, 1), Head(2, 3)), UNITS, torch.tensor([1.0, 2.0]), 4.0)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = written_gguf(tmp_path / "tiny.gguf", tiny_model("llama-gqa"), tiny_tokenizer(), tokens=VOCAB)
    return file, tt.load_model(file).model


def test_a_tiny_file_runs_alike_in_both(tiny: tuple[Path, Any]) -> None:
    file, model = tiny
    assert max(gaps(model, PROMPTS, tt.NoEdit(), in_llama_cpp(file, PROMPTS))) < 0.02


def test_a_written_shift_runs_as_the_live_one_and_a_wrong_bias_does_not(tiny: tuple[Path, Any]) -> None:
    file, model = tiny
    out = file.with_name("steered.gguf")
    gguf_with_biases(file, model, SHIFT, out)
    assert max(gaps(model, PROMPTS, SHIFT, in_llama_cpp(out, PROMPTS))) < 0.02
    moved = gaps(model, PROMPTS, tt.NoEdit(), in_llama_cpp(out, PROMPTS))
    assert sum(moved) / len(moved) > 0.3
    for wrong in (SHIFT.scaled(-1), HeadShift((Head(1, 1), Head(2, 3)), SHIFT.directions, SHIFT.sigma, 4.0)):
        gguf_with_biases(file, model, wrong, out)
        assert max(gaps(model, PROMPTS, SHIFT, in_llama_cpp(out, PROMPTS))) > 0.3


def test_an_architecture_that_the_engine_does_not_load_with_biases_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "tiny.gguf", tmp_path / "steered.gguf"
    written_gguf(file, tiny_model("qwen3"), tiny_tokenizer(), architecture="qwen3", tokens=VOCAB)
    model = tiny_model("qwen3")  # transformers passes over the width of a file's heads
    assert max(gaps(model, PROMPTS, tt.NoEdit(), in_llama_cpp(file, PROMPTS))) < 0.02
    shift = HeadShift((Head(0, 1),), torch.eye(16)[:1], torch.ones(1), 4.0)
    with pytest.raises(UnsupportedModel, match="architecture 'qwen3'"):
        gguf_with_biases(file, model, shift, out)
    monkeypatch.setattr(gguf_biases, "READ_BY_LLAMA_CPP", ("qwen3",))
    gguf_with_biases(file, model, shift, out)
    with pytest.raises(subprocess.CalledProcessError):
        in_llama_cpp(out, PROMPTS[:1])


@pytest.fixture(scope="module")
def real() -> tuple[Path, Any, Any]:
    try:
        found = gguf_source("smollm2")
    except UnsupportedModel as why:
        pytest.skip(str(why))
    assert found is not None
    return found[0], *tt.load_model("smollm2")


@pytest.mark.real
def test_a_real_file_is_tokenised_and_run_alike_in_both(real: tuple[Path, Any, Any]) -> None:
    file, model, tokenizer = real
    texts = [*tt.datasets.neutral_texts(10), *(f"Q: {q.question}\nA:" for q in folklore()[:190])]
    ids = [encode(tokenizer, text) for text in texts]
    found = in_llama_cpp(file, texts)
    assert [one["prompt_tokens"] for one in found] == [len(encode(tokenizer, text)) for text in texts]
    some = gaps(model, ids[100:120], tt.NoEdit(), found[100:120])
    # the engine quantises activations too
    assert sum(some) / len(some) < 0.1 and sorted(some)[int(0.95 * len(some))] < 0.3


@pytest.mark.real
@pytest.mark.parametrize("quantised", [False, True])
def test_a_shift_in_a_real_file_moves_what_the_live_one_moves(
    real: tuple[Path, Any, Any], tmp_path: Path, *, quantised: bool
) -> None:
    file, model, tokenizer = real
    if not quantised:
        file = written_gguf(tmp_path / "float32.gguf", model, tokenizer)
    units = torch.nn.functional.normalize(torch.randn(6, 64, generator=torch.Generator().manual_seed(0)))
    places = [(layer, head) for layer in (8, 12, 16) for head in (0, 4)]

    def at(further: int) -> HeadShift:
        return HeadShift(tuple(Head(layer + further, head) for layer, head in places), units, torch.ones(6), 6.0)

    whole = [encode(tokenizer, f"Q: {q.question}\nA:") for q in folklore()[:12]]
    ids = [row[:n] for row in whole for n in (len(row) // 2, len(row) - 2, len(row))]
    shift = at(0)
    before, after = ([live(model, row, edit) for row in ids] for edit in (tt.NoEdit(), shift))

    def share_alike(written: HeadShift) -> float:
        """Return the share of likely tokens that are as likely in the engine as here, of those that the shift moves."""
        out, alike = tmp_path / "steered.gguf", []
        gguf_with_biases(file, model, written, out)
        for plain, steered, one in zip(before, after, in_llama_cpp(out, ids), strict=True):
            for token, value in one["top"].items():
                move = abs(float(steered[int(token)] - plain[int(token)]))
                if move > 0.3:
                    alike.append(abs(value - float(steered[int(token)])) <= max(0.15, 0.15 * move))
        assert len(alike) >= 50
        return sum(alike) / len(alike)

    # with quantised weights the engine quantises activations too, which alone makes up to a quarter of a nat
    assert share_alike(shift) >= (0.8 if quantised else 1)
    assert share_alike(shift.scaled(-1)) < 0.3
    assert share_alike(at(1)) < 0.3
