"""Tuning: each method fits to an Edit that is measured through the same door as a shift."""

from trimtab.peft.adapters import Adapter
from trimtab.peft.edit import TunedEdit
from trimtab.peft.ia3 import IA3
from trimtab.peft.lora import LoRA
from trimtab.peft.method import Attached, Capabilities, TuningMethod
from trimtab.peft.recipe import Recipe

__all__ = ["IA3", "Adapter", "Attached", "Capabilities", "LoRA", "Recipe", "TunedEdit", "TuningMethod"]
