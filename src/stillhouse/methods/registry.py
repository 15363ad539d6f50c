"""From a method's name and settings to the method."""

from __future__ import annotations

from typing import Any

from stillhouse.catalogue import METHODS, find, settle
from stillhouse.methods.alm import ApproximateLikelihood
from stillhouse.methods.cdm import ContextualMapping
from stillhouse.methods.ctkd import CurriculumTemperature
from stillhouse.methods.distillm2 import Contrastive
from stillhouse.methods.dkd import Decoupled
from stillhouse.methods.dual_space import CrossModelDualSpace, DualSpace
from stillhouse.methods.dual_space_v2 import DualSpaceByHeads
from stillhouse.methods.gold import GeneralOnline
from stillhouse.methods.mcw_kd import MultiCostTransport
from stillhouse.methods.mcw_kd_dual import SemiDualTransport
from stillhouse.methods.method import Method
from stillhouse.methods.mined import MinimumEditDistance
from stillhouse.methods.minillm import PolicyGradient
from stillhouse.methods.multi_level_ot import MultiLevelTransport
from stillhouse.methods.on_policy import AdaptiveOffPolicy, GeneralizedKD, ImitationKD
from stillhouse.methods.taid import TAID
from stillhouse.methods.uld import UniversalLogit
from stillhouse.methods.word_level import Overlap, SupervisedFineTuning, WordLevel

_CLASSES: dict[str, type[Method]] = {
    "taid": TAID,
    "ctkd": CurriculumTemperature,
    "dkd": Decoupled,
    "cdm": ContextualMapping,
    "mined": MinimumEditDistance,
    "overlap": Overlap,
    "uld": UniversalLogit,
    "multi_level_ot": MultiLevelTransport,
    "gold": GeneralOnline,
    "alm": ApproximateLikelihood,
    "mcw_kd": MultiCostTransport,
    "mcw_kd_dual": SemiDualTransport,
    "dskd": DualSpace,
    "dskd_cma": CrossModelDualSpace,
    "dskd_v2": DualSpaceByHeads,
    "gkd": GeneralizedKD,
    "imitkd": ImitationKD,
    "distillm": AdaptiveOffPolicy,
    "distillm2": Contrastive,
    "minillm": PolicyGradient,
}


def build(name: str, **settings: Any) -> Method:
    """The method called `name` (or an alias), with the catalogue's defaults for what `settings` leaves out.

    A setting is a value or, where it is a number, a schedule (see `stillhouse.schedule`).

    Raises:
        Mistake: no such method or setting, or a value out of bounds.
    """
    entry = find("method", METHODS, name, "method.name")
    settled = settle(entry, settings, "method", schedules=True)
    if not entry.needs_teacher:
        return SupervisedFineTuning(entry.name)
    return _CLASSES.get(entry.name, WordLevel)(entry.name, settled)
