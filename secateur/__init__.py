"""secateur: choose the visual tokens worth keeping.

Algorithms on anybody's arrays, drivers that make them fast, attachments that put them inside
vision-language models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import secateur.backends  # noqa: F401  (registers the drivers, loads none)
from secateur.backends.warming import warm_up
from secateur.core.budget import allocate
from secateur.core.complexity import Calibration, RunningCalibration
from secateur.core.density import density_clusters, density_peaks
from secateur.core.dispatch import backend
from secateur.core.extras import extra
from secateur.core.frames import allocate_in_time
from secateur.core.inputs import MissingInputError, Tokens
from secateur.core.maps import min_max, polarize, smooth
from secateur.core.maximize import maximize
from secateur.core.measures import attention_entropy, effective_rank, entropy, patch_entropy
from secateur.core.methods import OWN, Cut, InsideMethod, Method, method, methods, published
from secateur.core.objectives import (
    Dispersion,
    FacilityLocation,
    LogDeterminant,
    MarginalRelevance,
    Objective,
    SalientCoverage,
    SoftmaxBlock,
)
from secateur.core.relevance import dense_relevance
from secateur.core.selection import Selection
from secateur.core.threshold import greedy_threshold

if TYPE_CHECKING:
    from secateur.calibration.search import calibrate as calibrate
    from secateur.core.methods import *  # noqa: F403
    from secateur.integrations.attach import attach as attach
    from secateur.integrations.attach import prune_inputs as prune_inputs
    from secateur.integrations.transformers.models import (
        UnsupportedModelError as UnsupportedModelError,
    )

__version__ = "0.2.0"

__all__ = [
    "Calibration",
    "Cut",
    "Dispersion",
    "FacilityLocation",
    "InsideMethod",
    "LogDeterminant",
    "MarginalRelevance",
    "Method",
    "MissingInputError",
    "Objective",
    "RunningCalibration",
    "SalientCoverage",
    "Selection",
    "SoftmaxBlock",
    "Tokens",
    "allocate",
    "allocate_in_time",
    "attention_entropy",
    "backend",
    "calibrate",
    "dense_relevance",
    "density_clusters",
    "density_peaks",
    "effective_rank",
    "entropy",
    "greedy_threshold",
    "maximize",
    "method",
    "methods",
    "min_max",
    "patch_entropy",
    "polarize",
    "published",
    "smooth",
    "warm_up",
]
__all__ += sorted(OWN)


_LATER = {
    "calibrate": "secateur.calibration.search",
    **dict.fromkeys(OWN, "secateur.core.methods"),
    **dict.fromkeys(
        ("UnsupportedModelError", "attach", "prune_inputs"), "secateur.integrations.attach"
    ),
}
"""Names that are imported when first asked for, and where from: some bring PyTorch with them."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    if name in OWN or name == "calibrate":
        return getattr(import_module(_LATER[name]), name)
    with extra("transformers", f"secateur.{name}"):
        return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_LATER})
