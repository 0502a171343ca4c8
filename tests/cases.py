"""One list each of every edit, method, control and judge, small and quick: whoever stands here keeps every contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import peft as hf_peft
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.foreign import Nudge, Nudging, Shuffled, Surprise, Vowels
from tests.tiny import tiny_questions
from trimtab import NoEdit, Prompted, Stacked, peft
from trimtab.activations import Head
from trimtab.compare import RandomTries, Ready, ShuffledLabels, Stack, Widened
from trimtab.datasets import Fact, FactSet, Neighbour
from trimtab.datasets.behaviours import behaviour
from trimtab.datasets.e2e import Meaning, MeaningSet
from trimtab.datasets.pairs import ContrastPair, PairSet
from trimtab.datasets.prompt_set import PromptSet
from trimtab.edits import DirectionalAblation, Eraser, HeadShift, MemoryEdit, ResidualShift, Retrieved, WeightEdit
from trimtab.engine.beam_search import BeamSettings
from trimtab.evaluate import exact_judge
from trimtab.evaluate.contrast import ScoredTexts, contrast_meters, pair_margin
from trimtab.evaluate.cost import cost_meters
from trimtab.evaluate.counted import behaviour_meter, counted_meters, refusal_meters
from trimtab.evaluate.drift import NeutralTexts, drift_meters
from trimtab.evaluate.elsewhere import capability_meters, off_target_meters
from trimtab.evaluate.factual import LikelyFacts, SaidFacts, fact_meters
from trimtab.evaluate.generation import JudgedAnswers, judged_meters, strict_meters
from trimtab.evaluate.multiple_choice import choice_meters
from trimtab.evaluate.reference_texts import reference_meters
from trimtab.evaluate.two_way import TwoWayChoices
from trimtab.evaluate.wording import wording_meters
from trimtab.knowledge import (
    EMMET,
    GRACE,
    MEMIT,
    ROME,
    AlphaEdit,
    FineTuneL,
    InBatches,
    ValueSearch,
    combined,
    task_vector,
)
from trimtab.models.identity import fingerprint
from trimtab.models.weights import LowRank
from trimtab.peft import TunedEdit, TuningMethod
from trimtab.prompting import FactsInContext, FewShot, Instruction, RetrievedFewShot, RetrievedPassages
from trimtab.protocols import Control, Edit, Judge, Meter, Method, Verdict, as_judge
from trimtab.steer import ACE, CAA, ITI, LEACE, Ablation, RandomDirection
from trimtab.steer.reading import ReadAnswers, Reader

FEW_SHOT = Prompted((("What is snow?", "Snow is white."),))

# --- methods ----------------------------------------------------------------------------------------------------------

# a step that tiny random models feel, few of them
QUICK = peft.Recipe(max_steps=4, batch_size=8, learning_rate=0.02)
HEADS = (Head(2, 3), Head(0, 1), Head(2, 0))

TUNING: dict[str, TuningMethod] = {
    "lora": peft.LoRA(r=4, recipe=QUICK),
    "lora qv": peft.LoRA(r=4, targets="qv", recipe=QUICK),
    "rslora": peft.LoRA(r=4, rslora=True, recipe=QUICK),
    "dora": peft.LoRA(r=4, dora=True, recipe=QUICK),
    "ia3": peft.IA3(recipe=QUICK),
    "peft vera": peft.Adapter(hf_peft.VeraConfig(r=8, target_modules=["o_proj", "c_proj"]), recipe=QUICK),
    "houlsby": peft.Bottleneck("houlsby", 4, recipe=QUICK),
    "pfeiffer": peft.Bottleneck("pfeiffer", 4, recipe=QUICK),
    "lin": peft.Bottleneck("lin", 4, recipe=QUICK),
    "heads": peft.HeadOffsets(heads=HEADS, recipe=QUICK),
    "head scalings": peft.HeadScalings(recipe=QUICK),
    "prompt": peft.PromptTuning(5, recipe=QUICK),
    "prefix": peft.PrefixTuning(5, recipe=QUICK),
    "prefix mlp": peft.PrefixTuning(5, reparameterised=True, d_hidden=16, recipe=QUICK),
    "intrinsic": peft.IntrinsicDimension(60, recipe=QUICK),
    "said": peft.IntrinsicDimension(60, structure_aware=True, recipe=QUICK),
    "full": peft.FullFineTuning(recipe=QUICK),
    "top 2": peft.FullFineTuning(2, recipe=QUICK),
}
NO_STRENGTH = {name for name, method in TUNING.items() if not method.capabilities.scaling}
"""Ways of tuning whose effect cannot be multiplied."""
VARIANTS = {"lora qv", "rslora", "dora", "peft vera"}
"""Settings of one implementation, PEFT's: laws over several architectures take them in the slow run."""

# few steps, and the statistics of the identity, since the texts of random models say nothing
EDITING: dict[str, Method] = {
    "ROME": ROME(moment="identity", before=2, search=ValueSearch(steps=4)),
    "MEMIT": MEMIT(moment="identity", before=2, layers=(1, 2), search=ValueSearch(steps=4, measured_by="layer")),
    "EMMET": EMMET(moment="identity", before=2, search=ValueSearch(steps=4, measured_by="layer")),
    "AlphaEdit": AlphaEdit(
        cache=None, n_tokens=80, before=2, free=0.5, search=ValueSearch(steps=4, measured_by="layer")
    ),
    "FT-L": FineTuneL(steps=4),
    "GRACE": GRACE(steps=4),
    "in batches": InBatches(editor=ROME(moment="identity", before=0, search=ValueSearch(steps=4)), size=1),
}
FACTS = FactSet(
    (
        Fact(
            "snow",
            "The colour of {} is",
            "blue",
            "white",
            ("What colour is {}? It is",),
            (Neighbour("Coal is", "black"),),
        ),
        Fact(
            "The sun",
            "{} is",
            "green",
            "hot",
            ("{} is now",),
            (Neighbour("The sea is", "wet"), Neighbour("Ice is", "cold")),
        ),
    ),
    "tiny facts",
)

METHODS: dict[str, Method] = {
    "ITI": ITI(top_ks=(2, 4), alphas=(1, 4)),
    "ITI (probe weights)": ITI("probe", top_ks=(2,), alphas=(1, 4)),
    "CAA": CAA(ranks=(1, 2), alphas=(1, 2)),
    "CAA at layers": CAA(layers=(0, 2), alphas=(1, 2), name="CAA at layers"),
    "LEACE": LEACE(layers=(0, 1)),
    "ACE": ACE(position="mean_answer", layers=(0, 2)),
    "ablation": Ablation(depths=(0.5, 1.0), layers=(1, 2)),
    "instruction": Instruction(("Say what is true.", "Be brief.")),
    "few-shot": FewShot(shots=(1, 2), draws=2),
    "random tries": RandomTries(ITI(top_ks=(2, 4), alphas=(1, 4))),
    "shuffled labels": ShuffledLabels(ITI(top_ks=(2, 4), alphas=(1, 4))),
    "retrieved few-shot": RetrievedFewShot(shots=(1, 2)),
    "passages": RetrievedPassages((__file__,), passages=(1, 2)),
    "prompts and vectors": Stack((FewShot(shots=(1,)), ITI(top_ks=(2,), alphas=(1, 4)))),
    "vectors on tuned": Stack((peft.LoRA(r=4, recipe=QUICK), ITI(top_ks=(2,), alphas=(1, 4)))),
    "wider": Widened(peft.LoRA(r=4, recipe=QUICK), (("strength", (0.5, 1)),)),
    "ready": Ready(FEW_SHOT),
    "foreign": Nudging(),
    "facts in the prompt": FactsInContext(),
    **EDITING,
    **TUNING,
}

# --- edits ------------------------------------------------------------------------------------------------------------

RETRIEVED = Retrieved(
    ("What is snow?", "What is coal?"), ("Q: What is snow?\nA: White.", "Q: What is coal?\nA: Black."), 1
)


def projections(model: Any) -> list[Any]:
    """Name the attention output projections by hand, independently of how the product finds them."""
    kind = model.config.model_type
    if kind == "gpt2":
        return [block.attn.c_proj for block in model.transformer.h]
    if kind == "gpt_neox":
        return [block.attention.dense for block in model.gpt_neox.layers]
    return [block.self_attn.o_proj for block in model.model.layers]


def one_shift(model: Any) -> HeadShift:
    """Return a shift of two heads."""
    return _shift(model, (Head(0, 1), Head(1, 3)), seed=1)


def other_shift(model: Any) -> HeadShift:
    """Return another one, which shares one head with the first, so that sums have something to add up."""
    return _shift(model, (Head(1, 3), Head(2, 0)), seed=2)


def _shift(model: Any, heads: tuple[Head, ...], seed: int) -> HeadShift:
    generator = torch.Generator().manual_seed(seed)
    d_head = projections(model)[0].weight.numel() // model.config.hidden_size // 4
    directions = normalize(torch.randn(len(heads), d_head, generator=generator, dtype=torch.float64), dim=1)
    sigma = 1 + torch.rand(len(heads), generator=generator, dtype=torch.float64)
    return HeadShift(heads, directions, sigma, 2.0, record={"model": fingerprint(model)})


def residual_shift(model: Any) -> ResidualShift:
    """Return a shift of the residual stream after two layers."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(2, model.config.hidden_size, generator=generator, dtype=torch.float64)
    return ResidualShift((1, 0), values, 0.5, record={"model": fingerprint(model)})


def foreign_nudge(model: Any) -> Nudge:
    """Return an edit of a user's own."""
    values = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(4))
    return Nudge(tuple(values.tolist()), 0.5)


def down_projections(model: Any) -> list[str]:
    """Name the weights of the MLPs' last maps by hand."""
    kind, n = model.config.model_type, model.config.num_hidden_layers
    place = {"gpt2": "transformer.h.{}.mlp.c_proj", "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h"}
    return [f"{place.get(kind, 'model.layers.{}.mlp.down_proj').format(i)}.weight" for i in range(n)]


def weight_edit(model: Any, *, layers: Sequence[int] = (1, 2), seed: int = 5) -> WeightEdit:
    """Return changes of rank 2 of two MLPs' last maps."""
    generator, d_model = torch.Generator().manual_seed(seed), model.config.hidden_size
    d_in = model.get_parameter(down_projections(model)[0]).numel() // d_model

    def factors() -> LowRank:
        draw = (torch.randn(shape, generator=generator) for shape in ((d_model, 2), (2, d_in)))
        return LowRank(*(0.2 * factor for factor in draw))

    names = [down_projections(model)[layer] for layer in layers]
    record = {"model": fingerprint(model)}
    return WeightEdit({name: factors() for name in names}, 0.5, unchanged_layers=min(layers), record=record)


def whole_weight_edit(model: Any) -> WeightEdit:
    """Return a change of all of a norm and of an MLP's last map."""
    names = [down_projections(model)[0], next(n for n, p in model.named_parameters() if p.ndim == 1)]
    generator = torch.Generator().manual_seed(6)
    moved = {n: 0.1 * torch.randn(model.get_parameter(n).shape, generator=generator) for n in names}
    return WeightEdit(moved, record={"model": fingerprint(model)})


def vectors(shift: HeadShift, alpha: float = 1.0) -> dict[Head, Tensor]:
    """Write out what a shift adds, times alpha (Li et al. 2023, eq. 3)."""
    return {h: alpha * 2.0 * shift.sigma[i] * shift.directions[i] for i, h in enumerate(shift.heads)}


def total(a: dict[Head, Tensor], b: dict[Head, Tensor]) -> dict[Head, Tensor]:
    """Return the vectors of both added up."""
    zero = torch.zeros((), dtype=torch.float64)
    return {h: a.get(h, zero) + b.get(h, zero) for h in a.keys() | b.keys()}


def ablation(model: Any) -> DirectionalAblation:
    """Return the ablation of one direction in two layers."""
    direction = normalize(torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(9)), dim=0)
    return DirectionalAblation((0, 2), direction.repeat(2, 1), record={"model": fingerprint(model)})


def eraser(model: Any) -> Eraser:
    """Return an oblique projection of rank 2 after two layers, about a centre of its own."""
    generator, width = torch.Generator().manual_seed(10), model.config.hidden_size
    right = torch.randn(2, 2, width, generator=generator)
    left = torch.linalg.pinv(right + 0.3 * torch.randn(2, 2, width, generator=generator))
    centre = torch.randn(2, width, generator=generator)
    return Eraser((0, 2), left, right, centre, record={"model": fingerprint(model)})


def memory_edit(model: Any) -> MemoryEdit:
    """Return a code book of two entries that every position is near to."""
    generator, width = torch.Generator().manual_seed(11), model.config.hidden_size
    keys, values = torch.randn(2, 2, width, generator=generator)
    return MemoryEdit(1, keys, values, torch.full((2,), 1e4), 0.5, record={"model": fingerprint(model)})


def one_tuned(method: TuningMethod) -> Callable[[Any], TunedEdit]:
    """Return what makes an edit of this method whose parts were moved at random instead of trained."""

    def make(model: Any) -> TunedEdit:
        attached, generator = method.attach(model, seed=0), torch.Generator().manual_seed(3)
        try:
            with torch.no_grad():
                for parameter in attached.trainable().values():
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            tensors = {name: t.clone() for name, t in attached.tensors().items()}
        finally:
            attached.detach()
        return TunedEdit(method, tensors, record={"model": fingerprint(model)})

    return make


class EditCase(NamedTuple):
    """How an edit is made for a model, what it ought to do, and which laws have a meaning for it."""

    make: Callable[[Any], Edit]
    adds: Callable[[Any], dict[Any, Tensor]] = lambda model: {}
    """What it adds: by head, or by layer (a number) to the residual stream."""
    tags: frozenset[str] = frozenset()
    """"vectors": adds vectors at positions; "erases": changes them by what stands there;
    "tunes": acts at all positions; "weights": changes weights, and acts there
    too; "prompts"; "residual"; "saves": has a form on disk; "scales": has a strength; "merges": can be worked into a
    plain model; "constants": is what vectors added to modules' outputs do; "draws": has random counterparts;
    "foreign": of a user's own."""
    at_zero: Callable[[Any], Edit] | None = None
    """The same at strength 0, where `scaled(0)` is not it."""


def tags(*names: str) -> frozenset[str]:
    """Return the tags of a case."""
    return frozenset(names)


SHIFT = tags("vectors", "saves", "scales", "merges", "constants", "draws")
ERASES = tags("erases", "saves", "scales")
WEIGHTS = tags("weights", "saves", "scales", "merges")
EDITS: dict[str, EditCase] = {
    "no edit": EditCase(lambda m: NoEdit(), tags=tags("scales", "saves", "merges")),
    "few-shot": EditCase(lambda m: FEW_SHOT, tags=tags("prompts", "saves")),
    "retrieved few-shot": EditCase(lambda m: RETRIEVED, tags=tags("prompts", "saves")),
    "shift": EditCase(one_shift, lambda m: vectors(one_shift(m)), SHIFT),
    "scaled": EditCase(lambda m: one_shift(m).scaled(2.5), lambda m: vectors(one_shift(m), 2.5), SHIFT),
    "negative": EditCase(
        lambda m: one_shift(m).scaled(-1),
        lambda m: vectors(one_shift(m), -1.0),
        SHIFT,
        lambda m: one_shift(m).scaled(-0.0),
    ),
    "sum": EditCase(
        lambda m: one_shift(m) + other_shift(m),
        lambda m: total(vectors(one_shift(m)), vectors(other_shift(m))),
        SHIFT,
    ),
    "residual": EditCase(
        residual_shift,
        lambda m: {layer: 0.5 * residual_shift(m).vectors[i] for i, layer in enumerate((1, 0))},
        SHIFT | {"residual"},
    ),
    "few-shot + shift": EditCase(
        lambda m: Stacked((FEW_SHOT, one_shift(m))),
        lambda m: vectors(one_shift(m)),
        tags("vectors", "prompts", "saves"),
        lambda m: Stacked((FEW_SHOT, one_shift(m).scaled(0))),
    ),
    "shift within a shift": EditCase(
        lambda m: Stacked((one_shift(m), other_shift(m))),
        lambda m: total(vectors(one_shift(m)), vectors(other_shift(m))),
        SHIFT - {"draws"},
    ),
    "weights": EditCase(weight_edit, tags=WEIGHTS),
    "whole weights": EditCase(whole_weight_edit, tags=WEIGHTS),
    "weights + weights": EditCase(lambda m: weight_edit(m) + weight_edit(m, layers=(2, 0), seed=7), tags=WEIGHTS),
    "task vectors": EditCase(
        lambda m: combined(m, [task_vector(m, one_tuned(TUNING["lora"])(m)), weight_edit(m)], [1, -1]), tags=WEIGHTS
    ),
    "weights within weights": EditCase(
        lambda m: Stacked((weight_edit(m), weight_edit(m, layers=(2, 0), seed=7))), tags=WEIGHTS
    ),
    "ablation": EditCase(ablation, tags=ERASES | {"merges"}),
    "eraser": EditCase(eraser, tags=ERASES),
    "memory": EditCase(memory_edit, tags=ERASES | {"draws"}),
    "foreign": EditCase(
        foreign_nudge,
        lambda m: {0: foreign_nudge(m).strength * torch.tensor(foreign_nudge(m).vector, dtype=torch.float64)},
        tags("vectors", "saves", "scales", "residual", "foreign"),
    ),
    **{
        name: EditCase(
            one_tuned(method),
            tags=tags("tunes", "saves")
            | tags(*(["scales"] if method.capabilities.scaling else []))
            | tags(*(["merges"] if method.capabilities.mergeable else [])),
        )
        for name, method in TUNING.items()
    },
}
QUICK_TUNED = {"lora", "ia3", "houlsby"}
"""The tuned edits that laws over several architectures take in the default run."""
UNLIKE = {"lora", "ia3", "houlsby", "heads", "prompt", "full"}
"""Ways of tuning that no other one stands for: those that laws which train take in the default run."""


def moves(name: str) -> bool:
    """Return whether the edit changes what the model says to a prompt."""
    return bool(EDITS[name].tags & {"vectors", "tunes", "weights", "erases"})


def tagged(*wanted: str) -> list[str]:
    """Return the edits that have one of these tags."""
    return [name for name, case in EDITS.items() if case.tags & set(wanted)]


# --- controls ---------------------------------------------------------------------------------------------------------


class ControlCase(NamedTuple):
    """A control, an edit whose counterparts it draws, and one of which it has none."""

    control: Control
    after: Callable[[Any], Edit]
    none_of: Callable[[Any], Edit]


CONTROLS: dict[str, ControlCase] = {
    "random direction": ControlCase(RandomDirection(draws=3), one_shift, lambda m: FEW_SHOT),
    "foreign": ControlCase(Shuffled(), foreign_nudge, lambda m: FEW_SHOT),
}

# --- meters and judges ------------------------------------------------------------------------------------------------

TEXTS = ("The sky was grey and the road was long.", "Snow fell.", "Nobody came to the house by the lake that day.")
PAIRS = PairSet(
    (
        ContrastPair("Is the sea deep?", (" Yes, it is.",), (" No.", " It is not.")),
        ContrastPair("Is snow black?", (" No.",), (" Yes.",)),
        ContrastPair("Do leaves fall in autumn?", (" They do.",), (" They do not fall.",)),
    )
)
MEANINGS = MeaningSet(
    (
        Meaning("name : Blue Spice | area : riverside", ("Blue Spice is by the river.", "By the river is Blue Spice.")),
        Meaning("name : Aromi", ("Aromi is a place.",)),
    )
)


def length_judge(question: Any, answer: str) -> Verdict:
    """Judge by the answer's length, so that different answers get different verdicts."""
    return Verdict(float(len(answer) % 2), float(len(answer) % 3 > 0))


JUDGES: dict[str, Judge] = {
    "exact": exact_judge,
    "a function": as_judge(length_judge),
    "foreign": Vowels(),
}


class MeterCase(NamedTuple):
    """A meter, the items that it speaks of, and what its rows are of."""

    meter: Meter
    items: Any
    rows: Literal["items", "texts", "own", "none"] = "items"


QUESTIONS = tiny_questions(3)
PROMPTS = PromptSet.of(["Is snow black?", "Why?"])
LENGTHS = JudgedAnswers(judge=length_judge, max_new_tokens=3)
METERS: dict[str, MeterCase] = {
    **{m.name: MeterCase(m, QUESTIONS) for m in judged_meters(judge=length_judge, max_new_tokens=3)},
    "foreign judge": MeterCase(judged_meters(judge=Vowels(), max_new_tokens=3)[0], QUESTIONS),
    **{m.name: MeterCase(m, QUESTIONS) for m in (*strict_meters(LENGTHS), *wording_meters(LENGTHS))},
    **{f"{m.name} counted": MeterCase(m, PROMPTS) for m in counted_meters(behaviour("casual"), max_new_tokens=3)},
    **{m.name: MeterCase(m, QUESTIONS) for m in (*choice_meters(), TwoWayChoices())},
    **{m.name: MeterCase(m, QUESTIONS, "own") for m in capability_meters(tiny_questions(2))},
    **{m.name: MeterCase(m, QUESTIONS, "own") for m in off_target_meters(PAIRS)},
    **{m.name: MeterCase(m, QUESTIONS, "own") for m in refusal_meters(("Is snow black?", "Why?"), 3)},
    **{m.name: MeterCase(m, QUESTIONS, "texts") for m in drift_meters(NeutralTexts(TEXTS[1:], TEXTS[:1]))},
    **{m.name: MeterCase(m, PAIRS) for m in contrast_meters()},
    **{m.name: MeterCase(m, FACTS) for m in (SaidFacts(max_new_tokens=3), LikelyFacts(), *fact_meters())},
    "score": MeterCase(ScoredTexts(lambda pair, text: len(text) % 5 / 4, max_new_tokens=3), PAIRS),
    "reading": MeterCase(ReadAnswers(Reader(1, torch.ones(48).double(), (-1.0, 1.0), 1.0), max_new_tokens=3), PAIRS),
    "pair margin": MeterCase(pair_margin(), PAIRS),
    "counted": MeterCase(
        behaviour_meter(replace(behaviour("casual"), prompts=("Why?",)), max_new_tokens=3), PAIRS, "own"
    ),
    **{
        m.name: MeterCase(m, MEANINGS)
        for m in reference_meters(settings=BeamSettings(beams=2, max_new_tokens=4), java=False)
    },
    **{m.name: MeterCase(m, QUESTIONS, "none") for m in cost_meters()},
    "foreign": MeterCase(Surprise(), QUESTIONS),
}

# --- parameters -------------------------------------------------------------------------------------------------------


def slowly(names: Sequence[str], *slow: str) -> list[Any]:
    """Return the names as a test's parameters, some of them for the slow run only."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


def left_to_mend(names: Sequence[Any], *left: str) -> list[Any]:
    """Return the parameters, those that do not keep a law yet expected to break it: whoever mends one takes it out."""
    broken = pytest.mark.xfail(strict=True, reason="left to mend")
    return [pytest.param(name, marks=broken) if name in left else name for name in names]


# grouped queries; Conv1D and learned positions; parallel attention and MLP; soft caps, sliding windows, wide heads
FAMILIES = ("llama-gqa", "gpt2", "gpt-neox", "gemma2")
every_edit = pytest.mark.parametrize("name", slowly(list(EDITS), *VARIANTS))
every_edit_and_family = pytest.mark.parametrize(
    "family, name",
    [
        pytest.param(family, name, marks=pytest.mark.slow if slow else ())
        for family in FAMILIES
        for name in EDITS
        for slow in [name in TUNING and name not in QUICK_TUNED and (name not in UNLIKE or family != "gpt2")]
    ],
)
every_method = pytest.mark.parametrize("name", slowly(list(METHODS), "vectors on tuned", *(TUNING.keys() - UNLIKE)))
every_control = pytest.mark.parametrize("name", list(CONTROLS))
every_meter = pytest.mark.parametrize("name", list(METERS))
every_judge = pytest.mark.parametrize("name", list(JUDGES))
every_tuning = pytest.mark.parametrize("name", slowly(list(TUNING), *VARIANTS))
