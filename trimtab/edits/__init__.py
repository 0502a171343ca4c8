"""What can be done to a model: prompts, vectors added to heads and to the residual stream, weights, and stacks."""

from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.disk import load_edit, load_shift
from trimtab.edits.prompts import Prompted
from trimtab.edits.retrieval import Retrieved
from trimtab.edits.vectors import HeadShift, ResidualShift
from trimtab.edits.weight_edit import WeightEdit

__all__ = [
    "HeadShift",
    "NoEdit",
    "Prompted",
    "ResidualShift",
    "Retrieved",
    "Stacked",
    "WeightEdit",
    "load_edit",
    "load_shift",
]
