"""Edited models as files that other programs read."""

from trimtab.export.bake import Baked, bake
from trimtab.export.lm_eval import to_lm_eval

__all__ = ["Baked", "bake", "to_lm_eval"]
