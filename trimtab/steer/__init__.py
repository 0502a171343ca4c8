"""Steering: directions, shifts of heads and of the residual stream, the choice of strength, baking and export."""

from trimtab.steer.agreement import Agreement, agreement
from trimtab.steer.bake import Baked, bake
from trimtab.steer.directions import MassMean
from trimtab.steer.export import to_lm_eval
from trimtab.steer.fitting import fit_shift
from trimtab.steer.loading import load_shift
from trimtab.steer.methods import CAA, ITI, RandomDirection
from trimtab.steer.recipe import Fitted, fit
from trimtab.steer.residual import ResidualShift, fit_residual_shift
from trimtab.steer.shifts import HeadShift
from trimtab.steer.strength import choose_strength, sweep_figure

__all__ = [
    "CAA",
    "ITI",
    "Agreement",
    "Baked",
    "Fitted",
    "HeadShift",
    "MassMean",
    "RandomDirection",
    "ResidualShift",
    "agreement",
    "bake",
    "choose_strength",
    "fit",
    "fit_residual_shift",
    "fit_shift",
    "load_shift",
    "sweep_figure",
    "to_lm_eval",
]
