"""All that touches one live transformer: loading, anatomy, finding heads, hooks."""

from trimtab.models.adding import add_to_heads
from trimtab.models.heads import HeadSite, find_heads
from trimtab.models.load.checkpoints import LoadedModel, load_model

__all__ = ["HeadSite", "LoadedModel", "add_to_heads", "find_heads", "load_model"]
