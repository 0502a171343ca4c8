"""Other libraries' messages: those that a user can do nothing about are dropped, all others reach him."""

from __future__ import annotations

import logging

from transformers.utils import logging as hf_logging

from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.export.checkpoint import checkpoint
from trimtab.models import load_model
from trimtab.noise import without_kernel_advice


def test_a_script_that_loads_and_writes_models_says_nothing(tmp_path, capfd):
    hf_logging.enable_progress_bar()  # verbs of the shell, which ran in this process before, switch it off
    model = tiny_model()
    checkpoint(model, tiny_tokenizer(), random_shift(model), tmp_path / "c", prompts=["Why?"])
    load_model(tmp_path / "c")
    assert capfd.readouterr() == ("", "")
    assert hf_logging.is_progress_bar_enabled()
    model.save_pretrained(tmp_path / "own")  # control: the caller's own call does as it did
    assert "Writing model shards" in capfd.readouterr().err


def test_of_a_library_s_messages_one_is_dropped_and_only_inside(caplog):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    advice = "Failed to load CPU gemm_4bit_forward from kernels-community: %s."
    with without_kernel_advice():
        with without_kernel_advice():
            logger.warning(advice, "inside both")
        logger.warning(advice, "No module named 'kernels'")
        logger.warning("the library is broken")
    logger.warning(advice, "no")
    assert [r.msg for r in caplog.records] == ["the library is broken", advice]
