"""Edited models as files that other programs read."""

from trimtab.export.checkpoint import Exported, checkpoint
from trimtab.export.lm_eval import to_lm_eval

__all__ = ["Exported", "checkpoint", "to_lm_eval"]
