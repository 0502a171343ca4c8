"""trimtab: edit and steer language models, and compare that honestly with tuning them.

    import trimtab as tt

    model, tokenizer = tt.load_model("embedded")
    train, test = tt.datasets.folklore().split(test=0.5, seed=0)
    acts = tt.capture_heads(model, tokenizer, train.statements())
    probes = tt.probes.fit_logistic(acts)
    shift = tt.steer.fit_shift(acts, probes, top_k=8)
    shift = tt.steer.choose_strength(model, tokenizer, train, shift, kl_budget=0.1)
    with shift.applied(model) as steered:
        steered.generate(...)

Names are loaded on first use, so that `import trimtab` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from trimtab import compare, datasets, evaluate, models, peft, probes, steer
    from trimtab.activations import Head, HeadActivations
    from trimtab.edits import Cost, Edit, Method, NoEdit, Prompted, Stacked, TokenMask
    from trimtab.errors import (
        BadDataset,
        BadValue,
        Incompatible,
        ShapeError,
        TrimtabError,
        UnsupportedModel,
    )
    from trimtab.models import add_to_heads, capture_heads, find_heads, load_model

_HOMES = {
    "compare": "",
    "datasets": "",
    "evaluate": "",
    "models": "",
    "peft": "",
    "probes": "",
    "steer": "",
    "Head": "activations",
    "HeadActivations": "activations",
    "Cost": "edits",
    "Edit": "edits",
    "Method": "edits",
    "NoEdit": "edits",
    "Prompted": "edits",
    "Stacked": "edits",
    "TokenMask": "edits",
    "BadDataset": "errors",
    "BadValue": "errors",
    "Incompatible": "errors",
    "ShapeError": "errors",
    "TrimtabError": "errors",
    "UnsupportedModel": "errors",
    "add_to_heads": "models.hooks",
    "capture_heads": "models.capture",
    "find_heads": "models.heads",
    "load_model": "models.loading",
}

__all__ = [
    "BadDataset",
    "BadValue",
    "Cost",
    "Edit",
    "Head",
    "HeadActivations",
    "Incompatible",
    "Method",
    "NoEdit",
    "Prompted",
    "ShapeError",
    "Stacked",
    "TokenMask",
    "TrimtabError",
    "UnsupportedModel",
    "add_to_heads",
    "capture_heads",
    "compare",
    "datasets",
    "evaluate",
    "find_heads",
    "load_model",
    "models",
    "peft",
    "probes",
    "steer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    home = _HOMES[name]
    return getattr(import_module(f"trimtab.{home}"), name) if home else import_module(f"trimtab.{name}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
