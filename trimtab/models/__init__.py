"""All that touches a live transformer: loading, finding heads, hooks, capture."""

from trimtab.models.capture import capture_heads
from trimtab.models.capture_store import capture_to_store
from trimtab.models.heads import HeadSite, find_heads
from trimtab.models.hooks import add_to_heads
from trimtab.models.loading import LoadedModel, load_model

__all__ = ["HeadSite", "LoadedModel", "add_to_heads", "capture_heads", "capture_to_store", "find_heads", "load_model"]
