"""What the probes read, as a picture and as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from trimtab.activations.labelled import Head
from trimtab.errors import BadValue
from trimtab.probes.head_probes import HeadProbes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHADES = " .:-=+*#%@"


def heat_map(probes: HeadProbes, *, marked: tuple[Head, ...] = (), title: str = "Probe accuracy per head") -> Figure:
    """Return a figure of validation accuracy by layer and head; `marked` heads are framed.

    Raises:
        BadValue: a marked head that the probes do not have.
    """
    label = "validation accuracy (%)"
    return head_map(100 * probes.accuracy, probes.layers, marked=marked, title=title, label=label, lowest=50)


def head_map(
    values: Float[Tensor, "layer head"],
    layers: tuple[int, ...],
    *,
    marked: tuple[Head, ...] = (),
    title: str,
    label: str,
    lowest: float | int,
) -> Figure:
    """Return a figure of one number a head, in colours from `lowest` on; `marked` heads are framed.

    Raises:
        BadValue: a marked head that is not there.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    n_layers, n_heads = values.shape
    figure = Figure(figsize=(1.8 + 0.42 * n_heads, 1.4 + 0.36 * n_layers), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values.numpy(), cmap="cividis", vmin=lowest, origin="lower", aspect="auto")
    step = max(1, n_heads // 16)
    axes.set(xlabel="head", ylabel="layer", title=title, xticks=range(0, n_heads, step))
    step = max(1, n_layers // 16)
    axes.set_yticks(range(0, n_layers, step), [str(layer) for layer in layers[::step]])
    for layer, head in marked:
        if layer not in layers or not 0 <= head < n_heads:
            raise BadValue(
                f"cannot mark: no head {head} in layer {layer}; the probes have layers "
                f"{', '.join(map(str, layers))} of {n_heads} heads each"
            )
        box = (head - 0.5, layers.index(layer) - 0.5)
        axes.add_patch(Rectangle(box, 1, 1, fill=False, edgecolor="red", linewidth=1.6))
    figure.colorbar(image, label=label)
    return figure


def text_map(probes: HeadProbes) -> str:
    """Return the accuracies as lines of shades, one line per layer (last layer first), darkest at 100 %."""
    lines = []
    for row in reversed(range(len(probes.layers))):
        cells = ((float(a) - 0.5) * 2 for a in probes.accuracy[row])
        shades = (SHADES[max(0, min(len(SHADES) - 1, int(c * len(SHADES))))] for c in cells)
        best = float(probes.accuracy[row].max())
        lines.append(f"layer {probes.layers[row]:3d} |{''.join(shades)}| best {100 * best:.1f} %")
    scale = f"50 % '{SHADES[0]}' to 100 % '{SHADES[-1]}', heads 0-{probes.accuracy.shape[1] - 1} from left to right"
    return "\n".join([*lines, scale])
