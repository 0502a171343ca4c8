"""The methods that flags and files know by name, each made from the fields of its dataclass."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple


class Named(NamedTuple):
    """Where a method's class stands, and the fields that the name sets."""

    place: str
    preset: Mapping[str, Any] = {}

    @property
    def type(self) -> Any:
        """The class."""
        module, _, name = self.place.rpartition(".")
        return getattr(import_module(module), name)

    def made(self, options: Mapping[str, Any], where: str) -> Any:
        """Return the method with these fields of its own or of its recipe; raises `BadValue` as `checking.made`."""
        from trimtab.cli.checking import made

        return made(self.type, {**self.preset, **options}, where)


TUNING: Mapping[str, Named] = {
    "lora": Named("trimtab.peft.LoRA"),
    "lora-qv": Named("trimtab.peft.LoRA", {"targets": "qv"}),
    "rslora": Named("trimtab.peft.LoRA", {"rslora": True}),
    "dora": Named("trimtab.peft.LoRA", {"dora": True}),
    "ia3": Named("trimtab.peft.IA3"),
    "houlsby": Named("trimtab.peft.Bottleneck", {"style": "houlsby"}),
    "pfeiffer": Named("trimtab.peft.Bottleneck", {"style": "pfeiffer"}),
    "prompt": Named("trimtab.peft.PromptTuning"),
    "prefix": Named("trimtab.peft.PrefixTuning"),
    "prefix-mlp": Named("trimtab.peft.PrefixTuning", {"reparameterised": True}),
    "heads": Named("trimtab.peft.HeadOffsets"),
    "intrinsic": Named("trimtab.peft.IntrinsicDimension"),
    "said": Named("trimtab.peft.IntrinsicDimension", {"structure_aware": True}),
    "full": Named("trimtab.peft.FullFineTuning"),
    "top2": Named("trimtab.peft.FullFineTuning", {"layers": 2}),
}
"""What `trimtab tune` offers; a comparison may set their fields, and try several values of them."""

EDITORS: Mapping[str, Named] = {
    "rome": Named("trimtab.knowledge.ROME"),
    "memit": Named("trimtab.knowledge.MEMIT"),
    "emmet": Named("trimtab.knowledge.EMMET"),
    "alphaedit": Named("trimtab.knowledge.AlphaEdit"),
    "ft-l": Named("trimtab.knowledge.FineTuneL"),
    "grace": Named("trimtab.knowledge.GRACE"),
}
"""Ways of writing facts into weights."""

METHODS: Mapping[str, Named] = {
    **TUNING,
    **EDITORS,
    "facts in context": Named("trimtab.prompting.FactsInContext"),
    "none": Named("trimtab.edits.combined.NoEdit"),
    "instruction": Named("trimtab.prompting.Instruction"),
    "persona": Named("trimtab.prompting.Persona"),
    "few-shot": Named("trimtab.prompting.FewShot"),
    "retrieved few-shot": Named("trimtab.prompting.RetrievedFewShot"),
    "retrieved passages": Named("trimtab.prompting.RetrievedPassages"),
    "iti": Named("trimtab.steer.ITI"),
    "iti probe": Named("trimtab.steer.ITI", {"direction": "probe"}),
    "random direction": Named("trimtab.steer.RandomDirection"),
    "caa": Named("trimtab.steer.CAA"),
    "leace": Named("trimtab.steer.LEACE"),
    "ace": Named("trimtab.steer.ACE"),
    "ablation": Named("trimtab.steer.Ablation"),
}
"""What a comparison's file may name."""
