"""Steering: directions, shifts of heads and of the residual stream, and the choice of strength."""

from trimtab.edits.disk import load_shift
from trimtab.edits.vectors import HeadShift, ResidualShift
from trimtab.steer.agreement import Agreement, agreement
from trimtab.steer.caa import CAA
from trimtab.steer.depth_choice import TriedDepth, choose_depth
from trimtab.steer.directions import MassMean
from trimtab.steer.effect import SiteRanking, rank_sites
from trimtab.steer.fitting import fit_residual_shift, fit_shift
from trimtab.steer.iti import ITI
from trimtab.steer.leace import leace
from trimtab.steer.meters import judged_metric
from trimtab.steer.pipeline import Fitted, fit
from trimtab.steer.random import RandomDirection
from trimtab.steer.readable import readable
from trimtab.steer.removal import ACE, LEACE, Ablation
from trimtab.steer.spec import ShiftSpec
from trimtab.steer.strength import Sweep, choose_strength, sweep_figure

__all__ = [
    "ACE",
    "CAA",
    "ITI",
    "LEACE",
    "Ablation",
    "Agreement",
    "Fitted",
    "HeadShift",
    "MassMean",
    "RandomDirection",
    "ResidualShift",
    "ShiftSpec",
    "SiteRanking",
    "Sweep",
    "TriedDepth",
    "agreement",
    "choose_depth",
    "choose_strength",
    "fit",
    "fit_residual_shift",
    "fit_shift",
    "judged_metric",
    "leace",
    "load_shift",
    "rank_sites",
    "readable",
    "sweep_figure",
]
