"""What a good choice of tokens is: an objective and its tracker a file."""

from secateur.core.objectives.base import ByRow, Objective, Tracker
from secateur.core.objectives.blocks import SoftmaxBlock
from secateur.core.objectives.coverage import FacilityLocation
from secateur.core.objectives.dispersion import Dispersion
from secateur.core.objectives.marginal import MarginalRelevance
from secateur.core.objectives.salience import SalientCoverage
from secateur.core.objectives.volume import LogDeterminant

__all__ = [
    "ByRow",
    "Dispersion",
    "FacilityLocation",
    "LogDeterminant",
    "MarginalRelevance",
    "Objective",
    "SalientCoverage",
    "SoftmaxBlock",
    "Tracker",
]
