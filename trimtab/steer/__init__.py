"""Steering: directions, shifts of heads and of the residual stream, the choice of strength, baking and export."""

from trimtab.edits.disk import load_shift
from trimtab.edits.residual import ResidualShift
from trimtab.edits.shifts import HeadShift
from trimtab.steer.agreement import Agreement, agreement
from trimtab.steer.directions import MassMean
from trimtab.steer.head_shifts import fit_shift
from trimtab.steer.methods import CAA, ITI, RandomDirection
from trimtab.steer.pipeline import Fitted, fit
from trimtab.steer.residual_shifts import fit_residual_shift
from trimtab.steer.strength import choose_strength, sweep_figure

__all__ = [
    "CAA",
    "ITI",
    "Agreement",
    "Fitted",
    "HeadShift",
    "MassMean",
    "RandomDirection",
    "ResidualShift",
    "agreement",
    "choose_strength",
    "fit",
    "fit_residual_shift",
    "fit_shift",
    "load_shift",
    "sweep_figure",
]
