"""Facts into weights, and weights as vectors: what tuning added to them, added up, taken away and merged."""

from trimtab.knowledge.arithmetic import combined, cosine, task_vector, task_vector_between
from trimtab.knowledge.batches import InBatches
from trimtab.knowledge.editors import ROME
from trimtab.knowledge.fine_tuning import FineTuneL
from trimtab.knowledge.layer_choice import LayerChoice, choose_layer
from trimtab.knowledge.mass_editors import EMMET, MEMIT, AlphaEdit
from trimtab.knowledge.memory import GRACE
from trimtab.knowledge.merge_rules import DARE, TIES, MergeRule
from trimtab.knowledge.moments import KeyStatistics, key_statistics
from trimtab.knowledge.traced import Trace, TracedFact
from trimtab.knowledge.tracing import Tracing, trace
from trimtab.knowledge.value import ValueSearch

__all__ = [
    "DARE",
    "EMMET",
    "GRACE",
    "MEMIT",
    "ROME",
    "TIES",
    "AlphaEdit",
    "FineTuneL",
    "InBatches",
    "KeyStatistics",
    "LayerChoice",
    "MergeRule",
    "Trace",
    "TracedFact",
    "Tracing",
    "ValueSearch",
    "choose_layer",
    "combined",
    "cosine",
    "key_statistics",
    "task_vector",
    "task_vector_between",
    "trace",
]
