"""Linear probes for all heads: pure tensors in, frozen results out."""

from trimtab.probes.head_probes import HeadProbes
from trimtab.probes.logistic import fit_logistic, fit_mass_mean, shuffled
from trimtab.probes.plots import heat_map, text_map

__all__ = ["HeadProbes", "fit_logistic", "fit_mass_mean", "heat_map", "shuffled", "text_map"]
