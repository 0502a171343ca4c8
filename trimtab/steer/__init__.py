"""Steering: directions, shifts of heads and of the residual stream, and the choice of strength."""

from trimtab.edits.disk import load_shift
from trimtab.edits.vectors import HeadShift, ResidualShift
from trimtab.steer.agreement import Agreement, agreement
from trimtab.steer.caa import CAA
from trimtab.steer.directions import MassMean
from trimtab.steer.effect import SiteRanking, rank_sites
from trimtab.steer.fitting import fit_residual_shift, fit_shift
from trimtab.steer.iti import ITI
from trimtab.steer.meters import judged_metric
from trimtab.steer.pipeline import Fitted, fit
from trimtab.steer.random import RandomDirection
from trimtab.steer.spec import ShiftSpec
from trimtab.steer.strength import Sweep, choose_strength, sweep_figure

__all__ = [
    "CAA",
    "ITI",
    "Agreement",
    "Fitted",
    "HeadShift",
    "MassMean",
    "RandomDirection",
    "ResidualShift",
    "ShiftSpec",
    "SiteRanking",
    "Sweep",
    "agreement",
    "choose_strength",
    "fit",
    "fit_residual_shift",
    "fit_shift",
    "judged_metric",
    "load_shift",
    "rank_sites",
    "sweep_figure",
]
