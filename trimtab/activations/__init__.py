"""Captured activations of attention heads and layers, in memory and in a store on disk."""

from trimtab.activations.captured import HeadActivations
from trimtab.activations.labelled import Head
from trimtab.activations.shards import ActivationStore

__all__ = ["ActivationStore", "Head", "HeadActivations"]
