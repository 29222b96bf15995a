"""What a server does before its first request: compile what the first choice would compile."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from secateur.core.arrays import whole
from secateur.core.dispatch import backend as backend_choice
from secateur.core.dispatch import drivers, wake
from secateur.core.maximize import maximize
from secateur.core.measures import effective_rank, patch_entropy
from secateur.core.objectives import Dispersion, FacilityLocation, LogDeterminant
from secateur.core.parameters import typed
from secateur.core.relevance import dense_relevance
from secateur.core.similarity import cosine_similarity
from secateur.core.threshold import greedy_threshold


@typed
def warm_up(backend: str = "auto", shapes: Iterable[tuple[int, int]] = ((576, 1024),)) -> None:
    """Call each operation once for every shape, so that the first request waits for no compiler.

    Parameters
    ----------
    backend
        A driver's name, or ``"auto"``: whoever serves the array libraries imported so far.
    shapes
        Features (N, D) that will come: on a GPU kernels are compiled for their sizes, elsewhere
        for dtypes only.

    Notes
    -----
    In float32 and float64, half precision being computed in float32. Numba keeps what it
    compiles on disk, so that only the first process of an installation takes seconds. Without
    this call it is loaded after the first few choices, which NumPy makes and which are the same;
    loading takes nearly half a second.

    Examples
    --------
    >>> import secateur as sc
    >>> sc.warm_up("numpy", [(16, 8)])
    """
    try:
        shapes = [(whole(n), whole(d)) for n, d in shapes]
    except (TypeError, ValueError):
        raise ValueError(f"shapes: expected pairs (N, D) of whole numbers, got {shapes}") from None
    if any(n < 1 or d < 1 for n, d in shapes):
        raise ValueError(f"shapes: expected (N, D) of at least 1, got {shapes}")
    with backend_choice(backend):  # refuses a name it does not know
        if backend in ("auto", "torch"):
            wake("numpy")
        for library, names in drivers().items():
            if backend in names or (backend == "auto" and library in sys.modules):
                for n, d in shapes:
                    for dtype in ("float32", "float64"):
                        _every_operation(library, n, d, dtype)


def _every_operation(library: str, n: int, d: int, dtype: str) -> None:
    dice = np.random.default_rng(0)
    x = _lifted(library, dice.standard_normal((n, d)).astype(dtype))
    weights = _lifted(library, dice.random(n).astype(dtype))
    k = min(4, n)
    s = cosine_similarity(x)
    narrow = x[:, : max(1, n // 8)]  # whose matrix is not built
    for f in (
        FacilityLocation(s, weights),
        FacilityLocation.from_features(x, weights),
        FacilityLocation.from_features(narrow, weights),
        LogDeterminant(s),
        LogDeterminant.from_factors(narrow),
        Dispersion(1.0 - s),
        Dispersion.from_features(x),
        Dispersion.from_features(narrow),
    ):
        maximize(f, k)
    greedy_threshold(x, weights, k)
    effective_rank(x)
    dense_relevance(x, x[: min(8, n)])
    patch_entropy(_lifted(library, dice.integers(0, 256, (28, 28, 3)).astype(np.uint8)), 14)


def _lifted(library: str, x: np.ndarray[Any, Any]) -> Any:
    """An array of the library, on its GPU where it has one."""
    if library == "numpy":
        return x
    module = importlib.import_module(library)
    if library == "torch":
        return module.asarray(x, device="cuda" if module.cuda.is_available() else "cpu")
    return module.asarray(x)
