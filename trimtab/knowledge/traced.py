"""Trace: what restoring one state of a corrupted run does, by token and layer: means, intervals, table and picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from typing_extensions import TypedDict

from trimtab.errors import BadValue
from trimtab.fields import checked
from trimtab.intervals import Estimate, resampled_means
from trimtab.storage import load_record, save_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = "trace"
Restored: TypeAlias = Literal["layer", "mlp", "attention"]
RESTORED: tuple[Restored, ...] = ("layer", "mlp", "attention")
"""What is restored: a layer's output, or the outputs of the MLPs or of the attentions of a window of layers."""
ROLES = (
    "first subject token", "middle subject tokens", "last subject token",
    "first token after", "further tokens", "last token",
)  # fmt: skip
"""A prompt's last token is that alone, whatever else it is, and a subject's only token is its last."""


@dataclass(frozen=True)
class TracedFact:
    """One fact: probabilities of the first token of its answer, and what restoring adds to the corrupted one."""

    fact: str
    """The prompt."""
    answer: str
    """The token whose probability is given."""
    clean: float
    corrupted: float
    """Mean over samples of noise."""
    tokens: tuple[str, ...]
    """From the subject's first on: what stands before is not corrupted, and restoring it does nothing."""
    roles: tuple[str, ...]
    effects: Mapping[str, tuple[tuple[float, ...], ...]]
    """What is restored -> token -> layer -> mean over samples of the restored probability, less the corrupted one."""


class _Saved(TypedDict):
    facts: list[Any]
    skipped: Mapping[str, str]
    layers: list[int]
    window: int
    made: Mapping[str, Any]


@dataclass(frozen=True)
class Trace:
    """Causal traces of facts (Meng et al. 2022, section 2)."""

    facts: tuple[TracedFact, ...]
    skipped: Mapping[str, str]
    """Prompt -> why it was not traced."""
    layers: tuple[int, ...]
    """In which states were restored; a window lies around each."""
    window: int
    """Layers whose MLPs, or attentions, are restored together, fewer at the ends; a layer's output stands alone."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: the model's fingerprint, samples, the noise's standard deviation, the seed."""

    def by_role(self, restored: Restored) -> Float[np.ndarray, "fact role layer"]:
        """Return the effects, averaged over a fact's tokens of a role; NaN where it has none.

        Raises:
            BadValue: it was not traced what restoring that does.
        """
        if restored not in self.facts[0].effects:
            known = ", ".join(self.facts[0].effects)
            raise BadValue(f"{restored!r} was not restored in this trace; it has {known}")
        found = np.full((len(self.facts), len(ROLES), len(self.layers)), np.nan)
        for i, fact in enumerate(self.facts):
            effects = np.array(fact.effects[restored])
            for j, role in enumerate(ROLES):
                own = [t for t, of_token in enumerate(fact.roles) if of_token == role]
                if own:
                    found[i, j] = effects[own].mean(0)
        return found

    def estimates(self, restored: Restored) -> dict[str, list[Estimate]]:
        """Return role -> the mean effect in each layer over the facts that have such a token, with its interval.

        Intervals are over facts (95 %, bootstrap); roles that no fact has are left out.
        """
        found = {}
        for j, role in enumerate(ROLES):
            values = self.by_role(restored)[:, j]
            values = values[~np.isnan(values[:, 0])]
            if len(values):
                low, high = np.percentile(resampled_means(values), [2.5, 97.5], axis=0)
                columns = zip(values.mean(0), low, high, strict=True)
                found[role] = [Estimate(float(m), float(a), float(b), len(values)) for m, a, b in columns]
        return found

    @property
    def clean(self) -> float:
        """Mean probability of the answer in the clean run."""
        return float(np.mean([fact.clean for fact in self.facts]))

    @property
    def corrupted(self) -> float:
        """Mean probability of the answer in the corrupted run."""
        return float(np.mean([fact.corrupted for fact in self.facts]))

    @property
    def headings(self) -> tuple[str, ...]:
        """The headings of `cells`."""
        return ("restored", "token", "most in layer", "effect there (95 %)", "mean of layers", "facts")

    @property
    def cells(self) -> list[list[str]]:
        """A row for each kind of state and role: the layer of the largest mean effect, and that effect."""
        rows = []
        for restored in self.facts[0].effects:
            for role, own in self.estimates(restored).items():  # pyright: ignore[reportArgumentType]
                at = int(np.argmax(own))
                best = own[at]
                interval = f"{best:.3f} ({best.low:.3f} to {best.high:.3f})"
                rows.append(
                    [self._named(restored), role, str(self.layers[at]), interval, f"{np.mean(own):.3f}", str(best.n)]
                )
        return rows

    def to_markdown(self) -> str:
        """Return a table of the largest effects; each interval is of one layer, as if it had been named beforehand."""
        lines = [self.headings, ["---"] * len(self.headings), *self.cells]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        said = f"Probability of the answer: clean {self.clean:.3f}, corrupted {self.corrupted:.3f}"
        left = f"; {len(self.skipped)} skipped" if self.skipped else ""
        return f"{said} ({len(self.facts)} fact(s){left}).\n\n{table}\n"

    def plot(self) -> Figure:
        """Return the picture: token by layer, a panel for each kind of state; of several facts, roles for tokens."""
        from matplotlib.figure import Figure

        kinds: Any = list(self.facts[0].effects)
        if len(self.facts) == 1:
            labels = [token.strip() or repr(token) for token in self.facts[0].tokens]
            values = {kind: np.array(self.facts[0].effects[kind]) for kind in kinds}
        else:
            means = {kind: self.estimates(kind) for kind in kinds}
            labels = list(means[kinds[0]])
            values = {kind: np.array(list(of_kind.values())) for kind, of_kind in means.items()}
        low, high = min(0.0, *(v.min() for v in values.values())), max(v.max() for v in values.values())
        figure = Figure(figsize=(2.2 + 4.2 * len(kinds), 1.8 + 0.34 * len(labels)), layout="constrained")
        axes = figure.subplots(1, len(kinds), squeeze=False)[0]
        image: Any = None
        for panel, (kind, shown) in zip(axes, values.items(), strict=True):
            image = panel.imshow(shown, cmap="cividis", vmin=low, vmax=high, aspect="auto")
            step = max(1, len(self.layers) // 10)
            panel.set_xticks(range(0, len(self.layers), step), [str(layer) for layer in self.layers[::step]])
            panel.set(xlabel="layer", title=f"Restored: {self._named(kind)}")
            panel.set_yticks(range(len(labels)), labels if panel is axes[0] else [""] * len(labels))
        what = f"{self.facts[0].fact!r}" if len(self.facts) == 1 else f"Mean of {len(self.facts)} facts"
        figure.suptitle(f"{what}: P(answer) {self.clean:.2f} clean, {self.corrupted:.2f} corrupted")
        figure.colorbar(image, ax=axes, label="gain in P(answer)")
        return figure

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        facts = [asdict(fact) for fact in self.facts]
        own = {"layers": list(self.layers), "window": self.window, "made": dict(self.record)}
        return {"facts": facts, "skipped": dict(self.skipped), **own}

    def save(self, path: str | Path) -> None:
        """Write the trace to a folder as JSON; raises `Incompatible` if it holds something else."""
        save_result(path, KIND, self.as_dict(), {})

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        record = load_record(path, KIND, fields=_Saved)
        facts = tuple(checked(fact, TracedFact) for fact in record["facts"])
        return cls(facts, record["skipped"], tuple(record["layers"]), record["window"], record["made"])

    def _named(self, restored: str) -> str:
        if restored == "layer":
            return "layer output"
        return f"{'MLP' if restored == 'mlp' else restored}, window of {self.window}"
