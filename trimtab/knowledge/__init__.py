"""Facts into weights: where an MLP keeps them, what it should give instead, and the change of weights that does it."""

from trimtab.knowledge.batches import InBatches
from trimtab.knowledge.editors import ROME
from trimtab.knowledge.fine_tuning import FineTuneL
from trimtab.knowledge.layer_choice import LayerChoice, choose_layer
from trimtab.knowledge.mass_editors import EMMET, MEMIT, AlphaEdit
from trimtab.knowledge.moments import KeyStatistics, key_statistics
from trimtab.knowledge.traced import Trace, TracedFact
from trimtab.knowledge.tracing import Tracing, trace
from trimtab.knowledge.value import ValueSearch

__all__ = [
    "EMMET",
    "MEMIT",
    "ROME",
    "AlphaEdit",
    "FineTuneL",
    "InBatches",
    "KeyStatistics",
    "LayerChoice",
    "Trace",
    "TracedFact",
    "Tracing",
    "ValueSearch",
    "choose_layer",
    "key_statistics",
    "trace",
]
