"""The tuning methods by the names that flags use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.peft import TuningMethod

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
        BadValue: no such method or setting; the nearest names are offered.
    """
    from trimtab.cli.setup import nearest
    from trimtab.errors import BadValue

    methods = tuning_methods()
    if name not in methods:
        raise BadValue(f"no tuning method {name!r}{nearest(name, methods)}")
    return methods[name].with_knobs(settings)
