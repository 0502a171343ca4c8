"""LEACE, ACE and Ablation: a concept that two sets of texts differ in, taken out of a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from trimtab.activations.captured import HeadActivations
from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.questions import Statement
from trimtab.edits.ablation import DirectionalAblation
from trimtab.edits.combined import NoEdit
from trimtab.edits.erasure import Eraser
from trimtab.edits.sited import SiteEdit
from trimtab.engine.capture import Places, Site, capture_heads
from trimtab.errors import BadValue
from trimtab.models.adding import Affine
from trimtab.models.anatomy import decoder_layers, text_config
from trimtab.models.hooks import on_outputs
from trimtab.models.writes import COMPONENTS, projection
from trimtab.protocols import Cost, Edit, Knobs, Method, stopwatch
from trimtab.steer.leace import Shrinkage, leace
from trimtab.steer.sites import Position, StatementForm, read_at


@dataclass(frozen=True, kw_only=True)
class Removal(Method):
    """What ways of removing a concept share: where it is read and where it is taken out."""

    layers: tuple[int, ...] | None = None
    """Where it is taken out, counted from 0; the method's usual layers if not given."""
    position: Position | None = None
    """Where texts are read: `"last"` token or `"mean_answer"`; the latter of pairs if not given."""
    format: StatementForm = None

    def fit(
        self,
        model: Any,
        tokenizer: Any,
        train: ItemSet[Any],
        *,
        knobs: Knobs | None = None,
        seed: int = 0,  # noqa: ARG002
    ) -> Any:
        """Return the edit fitted on the statements of questions, pairs or labelled texts.

        Raises:
            BadDataset: texts of one kind only, or too few.
            BadValue: a layer that the model does not have; NaN activations; knobs that the method does not have.
        """
        statements = train.statements(self.format)
        position = self.position or read_at(train)
        chosen, n = self.setting(knobs), len(decoder_layers(model))
        layers = self.usual_layers(n) if self.layers is None else self.layers
        wrong = [layer for layer in layers if not 0 <= layer < n]
        if wrong or not layers:
            raise BadValue(f"no layer {wrong[0] if wrong else 'named'}: the model has layers 0-{n - 1}")
        with stopwatch() as seconds:
            made = self._made(_Texts(model, tokenizer, statements, position), layers, chosen)
        record = {
            **made.record,
            "method": self.describe(),
            "position": position,
            "n_statements": len(statements),
            "questions": sorted({s.group for s in statements}),
        }
        numbers = sum(tensor.numel() for tensor in made.tensors.values())
        return replace(made, name=self.name, cost=Cost(seconds[0], numbers), record=record)

    def usual_layers(self, n: int) -> tuple[int, ...]:
        """Return where a concept is taken out of n layers if nobody says: everywhere."""
        return tuple(range(n))

    @abstractmethod
    def _made(self, texts: _Texts, layers: Sequence[int], knobs: Knobs) -> SiteEdit:
        """Return the edit at these layers."""


@dataclass(frozen=True, kw_only=True)
class LEACE(Removal):
    """Concept scrubbing (Belrose et al. 2023, section 5.1): an eraser at each layer, lowest first, each fitted on what
    the texts are with those below in place."""

    shrinkage: Shrinkage = "ledoit-wolf"
    """See `leace`."""
    name: str = "LEACE"

    def _made(self, texts: _Texts, layers: Sequence[int], knobs: Knobs) -> Eraser:  # noqa: ARG002
        return texts.scrubbed(layers, lambda x, labels: leace(x, labels[:, None].double(), shrinkage=self.shrinkage))


@dataclass(frozen=True, kw_only=True)
class ACE(Removal):
    """Affine concept editing (Marshall et al. 2024): what lies along the difference of means is set to what it is on
    average in the negative texts, `x - r r.(x - mean)`.

    After one layer at three fifths of the depth if none is named. Several are fitted one after another, as `LEACE` does
    it; in all layers it breaks small models. At strength 1 the concept is as in the negative
    texts, at 0 as it was.
    """

    name: str = "ACE"

    def usual_layers(self, n: int) -> tuple[int, ...]:
        """Return one layer."""
        return (round(0.6 * (n - 1)),)

    def _made(self, texts: _Texts, layers: Sequence[int], knobs: Knobs) -> Eraser:  # noqa: ARG002
        return texts.scrubbed(layers, lambda x, labels: projection(difference(x, labels), centre=x[~labels].mean(0)))


@dataclass(frozen=True, kw_only=True)
class Ablation(Removal):
    """Directional ablation (Arditi et al. 2024): the difference of means at one layer, taken out of all that is written
    to the stream."""

    depths: tuple[float, ...] = (0.3, 0.45, 0.6, 0.75)
    """Where the direction may be read, as shares of the depth: the knob `depth`, for whoever compares to choose."""
    components: tuple[str, ...] = COMPONENTS
    name: str = "Ablation"

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """The depth at which the direction is read."""
        return {"depth": self.depths}

    def _made(self, texts: _Texts, layers: Sequence[int], knobs: Knobs) -> DirectionalAblation:
        if not 0 <= knobs["depth"] <= 1:
            raise BadValue(f"depth is a share from 0 (the first layer) to 1 (the last), got {knobs['depth']}")
        layer = round(knobs["depth"] * (texts.n_layers - 1))
        acts = texts.read(layer)
        direction = difference(acts.values[:, 0, 0].double(), acts.labels).float()
        record = {"model": acts.record["model"], "read_at_layer": layer}
        return DirectionalAblation(
            tuple(layers), direction.repeat(len(layers), 1), components=self.components, record=record
        )


def difference(x: Float[Tensor, "example width"], labels: Bool[Tensor, " example"]) -> Float[Tensor, " width"]:
    """Return the unit vector from the mean of the negative examples to that of the positive ones.

    Raises:
        BadValue: the two means are one.
    """
    between = x[labels].mean(0) - x[~labels].mean(0)
    if not bool(between.any()):
        raise BadValue("positive and negative texts have one mean: there is no direction to take out; give other texts")
    return normalize(between, dim=0)


@dataclass(frozen=True)
class _Texts:
    """Labelled texts, read at a layer with what is erased so far in place."""

    model: Any
    tokenizer: Any
    statements: Sequence[Statement]
    position: Position
    n_layers: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_layers", len(decoder_layers(self.model)))

    def read(self, layer: int, edit: Edit | None = None) -> HeadActivations:
        with (edit or NoEdit()).applied(self.model, "all") as edited:
            acts = capture_heads(
                edited, self.tokenizer, self.statements, position=self.position, site=residual_after(layer)
            )
        return acts.require_both_labels()

    def scrubbed(self, layers: Sequence[int], fit: Callable[[Tensor, Tensor], Affine]) -> Eraser:
        eraser: Eraser | None = None
        changes: dict[int, Affine] = {}
        for layer in sorted(set(layers)):
            acts = self.read(layer, eraser)
            changes[layer] = Affine(*(t.float() for t in fit(acts.values[:, 0, 0].double(), acts.labels)))
            left, right, centre = (torch.stack(parts) for parts in zip(*changes.values(), strict=True))
            eraser = Eraser(tuple(changes), left, right, centre, record={"model": acts.record["model"]})
        assert eraser is not None
        return eraser


def residual_after(*layers: int) -> Site:
    """Return the site of the residual stream after some layers only, for `capture_heads`; the others need not run."""

    def places(model: Any) -> Places:
        found = decoder_layers(model)
        return Places(layers, tuple(found[layer] for layer in layers), (1, text_config(model).hidden_size))

    return Site("residual", on_outputs, places)
