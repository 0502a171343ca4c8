"""What can be done to a model: prompts, and vectors added to heads and to the residual stream."""

from trimtab.edits.disk import load_shift
from trimtab.edits.prompts import Prompted
from trimtab.edits.residual import ResidualShift
from trimtab.edits.retrieval import Retrieved
from trimtab.edits.shifts import HeadShift

__all__ = ["HeadShift", "Prompted", "ResidualShift", "Retrieved", "load_shift"]
