"""Whether a model keeps examples apart that stand in one row, tried out on it."""

from __future__ import annotations

from typing import Any

import torch

from trimtab.models.anatomy import base_of, input_device
from trimtab.models.calling import inference


def packs_exactly(model: Any) -> bool:
    """Return whether two sequences in one row, told apart by restarting positions alone, give their own logits."""
    base = base_of(model)
    device, n = input_device(base), base.get_input_embeddings().weight.shape[0]
    ids = torch.randint(n, (2, 5), generator=torch.Generator().manual_seed(0)).to(device)
    places = torch.arange(5, device=device).expand(2, 5)
    with inference(base):
        apart = base(input_ids=ids, position_ids=places, use_cache=False).logits.flatten(0, 1)
        packed = base(input_ids=ids.view(1, -1), position_ids=places.reshape(1, -1), use_cache=False).logits[0]
        # the control: read as one sequence, the second half must differ, or nothing would be told
        whole = base(input_ids=ids.view(1, -1), use_cache=False).logits[0]
    error, control = (apart - packed).abs().max(), (apart - whole).abs().max()
    return bool(error <= 0.05 * control)
