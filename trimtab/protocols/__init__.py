"""Edit, Method, Control, Meter, Judge: everything that is ever asked of them stands here, with its default.

A class of your own that derives from one of these is a full citizen: applied, scaled, stacked, saved, measured,
compared and reported as trimtab's own are. Each attribute may be a class attribute, a dataclass field or a property.
"""

from trimtab.protocols.control import Control
from trimtab.protocols.costs import Cost, stopwatch
from trimtab.protocols.edit import ALL_LAYERS, Edit
from trimtab.protocols.entrants import Ready, as_edit_class, as_entrant, methods_and_controls, require_order
from trimtab.protocols.judge import CallableJudge, Judge, Verdict, as_judge
from trimtab.protocols.meter import Measured, Meter, as_meter
from trimtab.protocols.method import Findings, Knobs, Method, settings, settings_of
from trimtab.protocols.positions import EnterAt, Positions, TokenMask

__all__ = [
    "ALL_LAYERS",
    "CallableJudge",
    "Control",
    "Cost",
    "Edit",
    "EnterAt",
    "Findings",
    "Judge",
    "Knobs",
    "Measured",
    "Meter",
    "Method",
    "Positions",
    "Ready",
    "TokenMask",
    "Verdict",
    "as_edit_class",
    "as_entrant",
    "as_judge",
    "as_meter",
    "methods_and_controls",
    "require_order",
    "settings",
    "settings_of",
    "stopwatch",
]
