"""What transformers reports of a load: weights that are missing, do not fit, or have no place in the model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from trimtab.errors import UnsupportedModel

BUFFERS = re.compile(r"(attn|attention)\.(masked_)?bias$|\.rotary_emb\.")
"""Causal masks and rotary tables, which older releases saved among the weights and models now make themselves."""


def require_all_weights(report: Mapping[str, Any], where: str) -> None:
    """Raise `UnsupportedModel` for weights that do not fit or are missing; warn of those that have no place."""
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        weight, stored, expected = mismatched[0]
        raise UnsupportedModel(
            f"{len(mismatched)} weights of {where} do not fit its config.json ({weight} is {tuple(stored)}, expected "
            f"{tuple(expected)}); give a folder whose config and weights were saved together"
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UnsupportedModel(
            f"{where} lacks {len(missing)} of the model's weights ({', '.join(missing[:3])}), which would be random; "
            "give a folder that was saved from a causal language model"
        )
    left_out = sorted(name for name in report["unexpected_keys"] if not BUFFERS.search(name))
    if left_out:  # no mistake in itself: value heads, heads for several tokens ahead, layers that a config cuts off
        warnings.warn(
            f"{where} holds weights that a model of its config.json does not have (first of {len(left_out)}: "
            f"{left_out[0]}); they are left out, so check that the config belongs to these weights",
            stacklevel=2,
        )
