"""Head activations on disk: more than memory holds, read one layer at a time."""

from trimtab.store.shards import ActivationStore

__all__ = ["ActivationStore"]
