"""All that touches one live transformer: loading, anatomy, finding heads, hooks."""

from trimtab.models.adding import add_to_heads
from trimtab.models.heads import HeadSite, find_heads
from trimtab.models.load.checkpoints import LoadedModel, load_model
from trimtab.models.mlp import MlpSite, find_mlp_outputs

__all__ = ["HeadSite", "LoadedModel", "MlpSite", "add_to_heads", "find_heads", "find_mlp_outputs", "load_model"]
