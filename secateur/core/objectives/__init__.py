"""What a good choice of tokens is: an objective and its tracker a file."""

from secateur.core.objectives.base import Objective, Tracker
from secateur.core.objectives.coverage import FacilityLocation
from secateur.core.objectives.dispersion import Dispersion
from secateur.core.objectives.volume import LogDeterminant

__all__ = ["Dispersion", "FacilityLocation", "LogDeterminant", "Objective", "Tracker"]
