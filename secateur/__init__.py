"""secateur: choose the visual tokens worth keeping.

Algorithms on anybody's arrays, drivers that make them fast, attachments that put them inside
vision-language models.
"""

import secateur.backends  # noqa: F401  (registers the drivers, loads none)
from secateur.core.arrays import backend
from secateur.core.budget import allocate
from secateur.core.maximize import maximize
from secateur.core.measures import attention_entropy, effective_rank, entropy, patch_entropy
from secateur.core.methods import EADP, Method, method, methods
from secateur.core.objectives import Dispersion, FacilityLocation, LogDeterminant, Objective
from secateur.core.relevance import dense_relevance, min_max, polarize, smooth
from secateur.core.selection import Selection
from secateur.core.threshold import greedy_threshold
from secateur.core.tokens import MissingInputError, Tokens

__version__ = "0.1.0"

__all__ = [
    "EADP",
    "Dispersion",
    "FacilityLocation",
    "LogDeterminant",
    "Method",
    "MissingInputError",
    "Objective",
    "Selection",
    "Tokens",
    "allocate",
    "attention_entropy",
    "backend",
    "dense_relevance",
    "effective_rank",
    "entropy",
    "greedy_threshold",
    "maximize",
    "method",
    "methods",
    "min_max",
    "patch_entropy",
    "polarize",
    "smooth",
]


def __dir__() -> list[str]:
    return sorted(__all__)
