"""Messages of other libraries that a user can do nothing about, kept from him; all others reach him."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without_kernel_advice() -> Iterator[None]:
    """Drop what bitsandbytes says at import, here or later, of a 4-bit kernel that is not installed.

    trimtab would not use it (`models.load.quantization.keep_unpacked`).
    """

    def keeps(record: logging.LogRecord) -> bool:  # one for each block, which may stand in another
        return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward")

    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.addFilter(keeps)
    try:
        yield
    finally:
        logger.removeFilter(keeps)


@contextlib.contextmanager
def without_bars_in_pipes() -> Iterator[None]:
    """Switch transformers' progress bars off inside the block unless a terminal shows them."""
    from transformers.utils import logging as hf_logging

    off = hf_logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if off:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if off:
            hf_logging.enable_progress_bar()
