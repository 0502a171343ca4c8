"""Steering: directions from activations, shifts of attention heads, and the choice of their strength."""

from trimtab.steer.fitting import fit_shift
from trimtab.steer.methods import ITI
from trimtab.steer.shifts import HeadShift
from trimtab.steer.strength import choose_strength, sweep_figure

__all__ = ["ITI", "HeadShift", "choose_strength", "fit_shift", "sweep_figure"]
