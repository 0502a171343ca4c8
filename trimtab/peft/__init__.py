"""Tuning: each method fits to an Edit that is measured through the same door as a shift."""

from trimtab.noise import without_kernel_advice

with without_kernel_advice():  # it loads bitsandbytes
    import peft as hf_peft  # noqa: F401

from trimtab.models.stored_bits import bits_per_parameter
from trimtab.peft.methods.base import TuningMethod
from trimtab.peft.methods.bottleneck import Bottleneck
from trimtab.peft.methods.configured import Adapter
from trimtab.peft.methods.full import FullFineTuning
from trimtab.peft.methods.head_offsets import HeadOffsets, HeadScalings
from trimtab.peft.methods.ia3 import IA3
from trimtab.peft.methods.intrinsic import IntrinsicDimension
from trimtab.peft.methods.lora import LoRA
from trimtab.peft.methods.prefix_tuning import PrefixTuning
from trimtab.peft.methods.prompt_tuning import PromptTuning
from trimtab.peft.parts.attached import Attached
from trimtab.peft.recipe import Recipe
from trimtab.peft.tunable import Capabilities
from trimtab.peft.tuned_edit import TunedEdit

__all__ = [
    "IA3",
    "Adapter",
    "Attached",
    "Bottleneck",
    "Capabilities",
    "FullFineTuning",
    "HeadOffsets",
    "HeadScalings",
    "IntrinsicDimension",
    "LoRA",
    "PrefixTuning",
    "PromptTuning",
    "Recipe",
    "TunedEdit",
    "TuningMethod",
    "bits_per_parameter",
]
