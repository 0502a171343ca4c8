"""What can be done to a model: prompts, vectors added, directions and concepts erased, weights, and stacks."""

from trimtab.edits.ablation import DirectionalAblation
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.disk import load_edit, load_shift
from trimtab.edits.erasure import Eraser
from trimtab.edits.memory_edit import MemoryEdit
from trimtab.edits.prompts import Prompted
from trimtab.edits.retrieval import Retrieved
from trimtab.edits.vectors import HeadShift, ResidualShift
from trimtab.edits.weight_edit import WeightEdit

__all__ = [
    "DirectionalAblation",
    "Eraser",
    "HeadShift",
    "MemoryEdit",
    "NoEdit",
    "Prompted",
    "ResidualShift",
    "Retrieved",
    "Stacked",
    "WeightEdit",
    "load_edit",
    "load_shift",
]
