"""secateur: choose the visual tokens worth keeping.

Algorithms on anybody's arrays, drivers that make them fast, attachments that put them inside
vision-language models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import secateur.backends  # noqa: F401  (registers the drivers, loads none)
from secateur.calibration.search import calibrate
from secateur.core.budget import allocate
from secateur.core.complexity import Calibration, RunningCalibration
from secateur.core.density import density_clusters, density_peaks
from secateur.core.dispatch import backend
from secateur.core.frames import allocate_in_time
from secateur.core.inputs import MissingInputError, Tokens
from secateur.core.maximize import maximize
from secateur.core.measures import attention_entropy, effective_rank, entropy, patch_entropy
from secateur.core.methods import (
    DART,
    DUET,
    EADP,
    ERASE,
    EVS,
    FPS,
    SCOPE,
    AgilePruner,
    ApET,
    CDPruner,
    Cut,
    DivPrune,
    Downsample,
    DyCoke,
    FastV,
    FastVID,
    FlashVID,
    FLoC,
    HiPrune,
    HoliTom,
    IDPruner,
    InsideMethod,
    IVCPrune,
    Method,
    Mixture,
    MMTok,
    OTPrune,
    PixelPrune,
    Pool,
    PruMerge,
    PruMergePlus,
    PruneSID,
    PyramidDrop,
    Random,
    SparseVLM,
    TopK,
    UniformGrid,
    VidCom2,
    VisionSelector,
    VisionZip,
    VisPruner,
    ViTCoP,
    VScan,
    method,
    methods,
    published,
)
from secateur.core.objectives import (
    Dispersion,
    FacilityLocation,
    LogDeterminant,
    MarginalRelevance,
    Objective,
    SalientCoverage,
    SoftmaxBlock,
)
from secateur.core.relevance import dense_relevance, min_max, polarize, smooth
from secateur.core.selection import Selection
from secateur.core.threshold import greedy_threshold

if TYPE_CHECKING:
    from secateur.integrations.attach import attach as attach
    from secateur.integrations.attach import prune_inputs as prune_inputs
    from secateur.integrations.transformers.models import (
        UnsupportedModelError as UnsupportedModelError,
    )

__version__ = "0.1.0"

__all__ = [
    "DART",
    "DUET",
    "EADP",
    "ERASE",
    "EVS",
    "FPS",
    "SCOPE",
    "AgilePruner",
    "ApET",
    "CDPruner",
    "Calibration",
    "Cut",
    "Dispersion",
    "DivPrune",
    "Downsample",
    "DyCoke",
    "FLoC",
    "FacilityLocation",
    "FastV",
    "FastVID",
    "FlashVID",
    "HiPrune",
    "HoliTom",
    "IDPruner",
    "IVCPrune",
    "InsideMethod",
    "LogDeterminant",
    "MMTok",
    "MarginalRelevance",
    "Method",
    "MissingInputError",
    "Mixture",
    "OTPrune",
    "Objective",
    "PixelPrune",
    "Pool",
    "PruMerge",
    "PruMergePlus",
    "PruneSID",
    "PyramidDrop",
    "Random",
    "RunningCalibration",
    "SalientCoverage",
    "Selection",
    "SoftmaxBlock",
    "SparseVLM",
    "Tokens",
    "TopK",
    "UniformGrid",
    "VScan",
    "ViTCoP",
    "VidCom2",
    "VisPruner",
    "VisionSelector",
    "VisionZip",
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
]


_NEED_A_MODEL = ("UnsupportedModelError", "attach", "prune_inputs")
"""Names that bring PyTorch and Transformers with them: imported when first asked for."""


def __getattr__(name: str) -> Any:
    if name in _NEED_A_MODEL:
        return getattr(import_module("secateur.integrations.attach"), name)
    raise AttributeError(f"module 'secateur' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_NEED_A_MODEL])
