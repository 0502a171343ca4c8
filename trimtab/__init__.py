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
    from trimtab import (
        compare,
        datasets,
        edits,
        engine,
        evaluate,
        export,
        knowledge,
        models,
        peft,
        probes,
        prompting,
        published,
        steer,
    )
    from trimtab.activations.captured import HeadActivations
    from trimtab.activations.labelled import Head
    from trimtab.activations.shards import ActivationStore
    from trimtab.edits.combined import NoEdit, Stacked
    from trimtab.edits.disk import from_pretrained, load_edit
    from trimtab.edits.prompts import Prompted
    from trimtab.engine.capture import capture_heads
    from trimtab.engine.capture_store import capture_to_store
    from trimtab.errors import (
        BadDataset,
        BadValue,
        Incompatible,
        OutOfMemory,
        ShapeError,
        TrimtabError,
        UnsupportedModel,
    )
    from trimtab.models.adding import add_to_heads
    from trimtab.models.heads import find_heads
    from trimtab.models.load.checkpoints import load_model
    from trimtab.protocols import Control, Cost, Edit, Judge, Measured, Meter, Method, TokenMask, Verdict

_HOMES = {
    "compare": "",
    "datasets": "",
    "edits": "",
    "engine": "",
    "evaluate": "",
    "export": "",
    "models": "",
    "knowledge": "",
    "peft": "",
    "probes": "",
    "prompting": "",
    "published": "",
    "steer": "",
    "ActivationStore": "activations.shards",
    "Head": "activations.captured",
    "HeadActivations": "activations.captured",
    "Control": "protocols",
    "Cost": "protocols",
    "Edit": "protocols",
    "Judge": "protocols",
    "Measured": "protocols",
    "Meter": "protocols",
    "Method": "protocols",
    "NoEdit": "edits.combined",
    "Prompted": "edits.prompts",
    "Stacked": "edits.combined",
    "TokenMask": "protocols",
    "Verdict": "protocols",
    "BadDataset": "errors",
    "BadValue": "errors",
    "Incompatible": "errors",
    "OutOfMemory": "errors",
    "ShapeError": "errors",
    "TrimtabError": "errors",
    "UnsupportedModel": "errors",
    "add_to_heads": "models.adding",
    "capture_heads": "engine.capture",
    "capture_to_store": "engine.capture_store",
    "find_heads": "models.heads",
    "from_pretrained": "edits.disk",
    "load_edit": "edits.disk",
    "load_model": "models.load.checkpoints",
}

__all__ = [
    "ActivationStore",
    "BadDataset",
    "BadValue",
    "Control",
    "Cost",
    "Edit",
    "Head",
    "HeadActivations",
    "Incompatible",
    "Judge",
    "Measured",
    "Meter",
    "Method",
    "NoEdit",
    "OutOfMemory",
    "Prompted",
    "ShapeError",
    "Stacked",
    "TokenMask",
    "TrimtabError",
    "UnsupportedModel",
    "Verdict",
    "add_to_heads",
    "capture_heads",
    "capture_to_store",
    "compare",
    "datasets",
    "edits",
    "engine",
    "evaluate",
    "export",
    "find_heads",
    "from_pretrained",
    "knowledge",
    "load_edit",
    "load_model",
    "models",
    "peft",
    "probes",
    "prompting",
    "published",
    "steer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    home = _HOMES[name]
    return getattr(import_module(f"trimtab.{home}"), name) if home else import_module(f"trimtab.{name}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
