"""Steering: directions from activations, shifts of attention heads, and the choice of their strength."""

from trimtab.steer.agreement import Agreement, agreement
from trimtab.steer.fitting import fit_shift
from trimtab.steer.shifts import HeadShift
from trimtab.steer.strength import choose_strength, sweep_figure

__all__ = ["Agreement", "HeadShift", "agreement", "choose_strength", "fit_shift", "sweep_figure"]
