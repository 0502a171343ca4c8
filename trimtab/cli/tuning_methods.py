"""The tuning methods by the names that flags use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.peft.methods.base import TuningMethod

NAMES = (
    "lora",
    "lora-qv",
    "rslora",
    "dora",
    "ia3",
    "houlsby",
    "pfeiffer",
    "prompt",
    "prefix",
    "prefix-mlp",
    "heads",
    "intrinsic",
    "said",
    "full",
    "top2",
)


def tuning_methods() -> "dict[str, TuningMethod]":
    """Return each method with its usual settings."""
    from trimtab import peft

    return {
        "lora": peft.LoRA(),
        "lora-qv": peft.LoRA(targets="qv"),
        "rslora": peft.LoRA(rslora=True),
        "dora": peft.LoRA(dora=True),
        "ia3": peft.IA3(),
        "houlsby": peft.Bottleneck("houlsby"),
        "pfeiffer": peft.Bottleneck("pfeiffer"),
        "prompt": peft.PromptTuning(),
        "prefix": peft.PrefixTuning(),
        "prefix-mlp": peft.PrefixTuning(reparameterised=True),
        "heads": peft.HeadOffsets(),
        "intrinsic": peft.IntrinsicDimension(),
        "said": peft.IntrinsicDimension(structure_aware=True),
        "full": peft.FullFineTuning(),
        "top2": peft.FullFineTuning(2),
    }


def chosen_method(name: str, settings: dict[str, Any]) -> "TuningMethod":
    """Return the method of this name with settings of its own or of its recipe.

    Raises:
        BadValue: no such method or setting, the nearest names being offered; or a value of another kind.
    """
    from trimtab.cli.setup import nearest
    from trimtab.errors import BadValue

    methods = tuning_methods()
    if name not in methods:
        raise BadValue(f"no tuning method {name!r}{nearest(name, methods)}")
    return configured(methods[name], settings, f"the method {name!r}")


def configured(method: "TuningMethod", options: dict[str, Any], where: str) -> "TuningMethod":
    """Return the method with fields of its own or of its recipe set, as a user wrote them.

    Raises:
        BadValue: a field that it does not have, or a value that is not of the field's kind or range.
    """
    from dataclasses import fields

    from trimtab.activations.captured import Head
    from trimtab.cli.checking import check
    from trimtab.peft.recipe import Recipe

    own, shared = {f.name for f in fields(method)} - {"recipe"}, {f.name for f in fields(Recipe)}
    method.with_knobs({k: v for k, v in options.items() if k not in own | shared})  # refuses them, naming its own
    check({k: v for k, v in options.items() if k in own}, type(method), where)
    check({k: v for k, v in options.items() if k not in own}, Recipe, where)
    pairs = options.get("heads")
    return method.with_knobs(options if pairs is None else {**options, "heads": tuple(Head(*pair) for pair in pairs)})
