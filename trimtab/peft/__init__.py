"""Tuning: each method fits to an Edit that is measured through the same door as a shift."""

from trimtab.peft.bottleneck import Bottleneck
from trimtab.peft.configured import Adapter
from trimtab.peft.edit import TunedEdit
from trimtab.peft.full import FullFineTuning
from trimtab.peft.head_offsets import HeadOffsets, HeadScalings
from trimtab.peft.ia3 import IA3
from trimtab.peft.intrinsic import IntrinsicDimension
from trimtab.peft.lora import LoRA
from trimtab.peft.method import Attached, Capabilities, TuningMethod
from trimtab.peft.prefix import PrefixTuning
from trimtab.peft.prompt import PromptTuning
from trimtab.peft.quantization import bits_per_parameter
from trimtab.peft.recipe import Recipe

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
