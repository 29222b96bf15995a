"""The PyTorch driver: the core's hot operations on tensors, wherever they live.

CPU tensors share their memory with NumPy, so the drivers of NumPy arrays serve them, Numba's loops
included, without a copy. On CUDA devices greedy is batched over images and never waits for the
device between picks: in Triton kernels where Triton is installed and its kernels agree with
whole-tensor steps, in those steps otherwise. Tensors on other devices go to the host and back.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch

from secateur.backends import lending
from secateur.backends.lending import Pool, handed, in_parts, worked_on_by
from secateur.backends.torch import greedy, spectrum
from secateur.core import (
    arrays,
    attention,
    maximize,
    measures,
    relevance,
    similarity,
    threshold,
)
from secateur.core.dispatch import Operation, backend
from secateur.core.maximize import Picks
from secateur.core.objectives import (
    ByRow,
    Dispersion,
    FacilityLocation,
    LogDeterminant,
    MarginalRelevance,
    SalientCoverage,
)

__all__ = [
    "attention_received",
    "cosine_similarity",
    "determinant",
    "determinant_factors",
    "determinant_span",
    "facility_location",
    "facility_location_features",
    "facility_location_kernel",
    "facility_location_rows",
    "farthest_first",
    "farthest_first_features",
    "likeness_factors",
    "marginal_relevance",
    "patch_entropy",
    "salient_coverage",
    "singular_entropy",
    "singular_values",
    "smallest",
    "text_relevance",
    "threshold_scan",
    "unit",
]
"""The operations it offers."""

Tensor = Any

MATRIX = 1 << 31
"""Bytes of the float64 matrices that may be built from features on a CUDA device at once."""
BLOCK = 1 << 24
"""Attention weights held at once."""
_HALF = (torch.float16, torch.bfloat16)


def _by_pool(step: Callable[..., Tensor]) -> Callable[..., Any]:
    """A step on tensors, for arrays of NumPy."""

    def run(*arrays: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return cast("np.ndarray[Any, Any]", step(*map(torch.from_numpy, arrays)).numpy())

    return run


POOL = Pool(_by_pool(torch.matmul), _by_pool(torch.linalg.eigvalsh), torch.get_num_threads)
"""PyTorch's threads: on memory lent by it they take the products."""


def _on_host(operation: Operation[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The answer of the drivers of NumPy arrays, brought back to where the first tensor lives."""
    with backend("auto"), worked_on_by(POOL):
        answer = operation(*map(_to_host, args), **{k: _to_host(x) for k, x in kwargs.items()})
    return _to_device(answer, getattr(args[0], "sample", args[0]).device)


@contextmanager
def alone(work: int) -> Iterator[None]:
    """Around a choice from tensors; see `lending.alone`."""
    with worked_on_by(POOL), lending.alone(work):
        yield


def lends(x: Any) -> bool:
    """Whether a tensor's memory can be worked on as NumPy's array of the same numbers."""
    return (
        type(x) is torch.Tensor
        and x.device.type == "cpu"
        and x.layout is torch.strided
        and x.dtype not in _HALF
    )


def lend(x: Tensor) -> np.ndarray[Any, Any]:
    """The memory of a tensor as NumPy's array."""
    return cast("np.ndarray[Any, Any]", x.detach().resolve_neg().numpy())


def take_back(x: Any) -> Tensor:
    """What was found there, as a tensor."""
    found = np.asarray(x)
    if not found.flags.writeable or min(found.strides, default=0) < 0:
        found = found.copy()
    return torch.from_numpy(found)


def _to_host(x: Any) -> Any:
    if isinstance(x, ByRow):
        return x.with_arrays(_to_host)
    if not isinstance(x, torch.Tensor):
        return x
    x = _plain(x)
    return (x if x.is_cpu else x.cpu()).contiguous().numpy()


def _to_device(x: Any, device: torch.device) -> Any:
    def over(each: Any) -> Tensor:
        lifted = torch.from_numpy(np.asarray(each))
        return lifted if device.type == "cpu" else lifted.to(device)

    return handed(x, over)


def _plain(x: Tensor) -> Tensor:
    """Without its history of gradients; half precision widened."""
    x = x.detach()
    return x.float() if x.dtype in _HALF else x


def _derived(*tensors: Any) -> bool:
    """Whether a derivative may be asked for, which the references know how to take."""
    return torch.is_grad_enabled() and any(
        isinstance(x, torch.Tensor) and x.requires_grad for x in tensors
    )


def _cuda(x: Tensor) -> bool:
    return bool(x.device.type == "cuda")


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products in float32 on CUDA, even where the user lets his models use TF32."""
    setting = torch.backends.cuda.matmul
    # Before 2.9 PyTorch had one switch; to read it later on, beside its successor, is an error.
    settled: tuple[str, Any, Any] = ("fp32_precision", "tf32", "ieee")
    name, low, full = settled if hasattr(setting, settled[0]) else ("allow_tf32", True, False)
    if getattr(setting, name) != low:
        yield
        return
    setattr(setting, name, full)
    try:
        yield
    finally:
        setattr(setting, name, low)


@functools.cache
def kernels(device: torch.device) -> ModuleType | None:
    """The Triton kernels, once they have agreed with whole-tensor steps on a small problem."""
    if importlib.util.find_spec("triton") is None:
        return None
    launch = importlib.import_module("secateur.backends.torch.launch")
    try:
        wrong: str | None = launch.disagreement(device)
    except Exception as error:
        # Whatever a compiler or a driver can raise: the tokens can still be chosen.
        wrong = f"{type(error).__name__}: {error}"
    if wrong is None:
        return launch
    warnings.warn(
        f"Triton kernels are not used on {torch.cuda.get_device_name(device)} ({wrong}); "
        "greedy runs in plain PyTorch, correct but slower",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _solver(x: Tensor) -> Any:
    return kernels(x.device) or greedy


def unit(x: Tensor) -> Tensor:
    """Vectors (..., D) scaled to length one; a zero vector stays zero."""
    if _derived(x):
        return NotImplemented
    if not _cuda(x):
        return _on_host(similarity.unit, x)
    return _unit(_plain(x))


def _unit(x: Tensor) -> Tensor:
    # Nothing is divided by less than the smallest normal number: zeros stay zeros.
    least = torch.finfo(x.dtype).tiny
    out = x / torch.linalg.vector_norm(x, math.inf, dim=-1, keepdim=True).clamp_(min=least)
    return out.div_(torch.linalg.vector_norm(out, dim=-1, keepdim=True).clamp_(min=least))


def _shifted(cosine: Tensor) -> Tensor:
    return cosine.mul_(0.5).add_(0.5).clamp_(0.0, 1.0)


def cosine_similarity(features: Tensor) -> Tensor:
    """Similarities (1 + cos) / 2, shape (..., N, N), of features (..., N, D)."""
    if _derived(features):
        return NotImplemented
    if not _cuda(features):
        return _on_host(similarity.cosine_similarity, features)
    return _cosine_similarity(_plain(features))


def _cosine_similarity(features: Tensor) -> Tensor:
    directions = _unit(features)
    with full_precision():
        return _shifted(directions @ directions.mT)


def facility_location(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location from matrices (..., N, N)."""
    if not _cuda(f.sample):
        return cast(Picks, _on_host(maximize.facility_location, f, k))
    picks: Picks = _solver(f.sample).facility_location(f.matrix, f.weights, k, f.rounding)
    return picks


def facility_location_features(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location on (1 + cos) / 2 of features (..., N, D).

    On CUDA the similarities are those of float64, as the reference takes them, in a matrix: of
    as many images at a time as `MATRIX` has room for. An image without room is left to the
    reference, which stays in O(N D) memory and waits for the device at each pick.
    """
    features: Any = f.features
    if not _cuda(features):
        return cast(Picks, _on_host(maximize.facility_location_features, f, k))
    if not _room(features):
        return cast(Picks, NotImplemented)

    def solve(x: Tensor, w: Tensor | None, budget: Any) -> Picks:
        s = _cosine_similarity(x.double())
        # Entries carry the rounding of a cosine: whatever the gain, ties are that wide.
        rounding = 8 * greedy.EPSILON
        picks: Picks = _solver(x).facility_location(s, w, budget, rounding)
        return picks

    return in_parts(features, f.weights, k, _room(features), solve)


def _room(features: Tensor) -> int:
    """How many images' float64 matrices there may be at once."""
    return MATRIX // (8 * int(features.shape[-2]) ** 2)


def facility_location_kernel(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location on another similarity of features, from a matrix where it fits."""
    if not _cuda(f.sample):
        return cast(Picks, _on_host(maximize.facility_location_kernel, f, k))
    return maximize.by_squares(f, k, facility_location)


def facility_location_rows(f: FacilityLocation, k: Any) -> Picks:
    """Greedy facility location over rectangular, stacked or masked rows, from a square matrix."""
    if not _cuda(f.sample):
        return cast(Picks, _on_host(maximize.facility_location_rows, f, k))
    return maximize.by_squares(f, k, facility_location)


def likeness_factors(x: Tensor) -> Tensor:
    """OTPrune's factors; on CUDA left to the reference."""
    if _derived(x) or _cuda(x):
        return NotImplemented
    return _on_host(similarity.likeness_factors, x)


def determinant_factors(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of I + gamma Y Y^T; on CUDA left to the reference."""
    if not _cuda(f.sample):
        return cast(Picks, _on_host(maximize.determinant_factors, f, k))
    return cast(Picks, NotImplemented)


def determinant_span(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of Y Y^T from vectors (..., N, D), in O(N D) memory."""
    if not _cuda(f.sample):
        return cast(Picks, _on_host(maximize.determinant_span, f, k))
    vectors: Any = f.factors
    return greedy.determinant_span(vectors, cast(Any, f.selectable), k)


def determinant(f: LogDeterminant, k: Any) -> Picks:
    """Greedy log-determinant of kernels (..., N, N) by incremental Cholesky."""
    if not _cuda(f.sample):
        return cast(Picks, _on_host(maximize.determinant, f, k))
    if f.monotone or f.selectable is not None:
        return cast(Picks, NotImplemented)
    return cast(Picks, _solver(f.sample).determinant(f.kernel, k))


def farthest_first(f: Dispersion, k: Any, start: int | None = None) -> Picks:
    """Farthest-first over distances (..., N, N)."""
    if not _cuda(f.sample):
        return cast(Picks, _on_host(maximize.farthest_first, f, k, start))
    return cast(Picks, _solver(f.sample).farthest_first(f.distance, k, start))


def farthest_first_features(f: Dispersion, k: Any, start: int | None = None) -> Picks:
    """Farthest-first under 1 - cos of features (..., N, D).

    On CUDA in float64, from matrices of distances where `MATRIX` has room for them, otherwise
    in O(N D) memory with a product of a matrix and a vector a pick.
    """
    features: Any = f.features
    if not _cuda(features):
        return cast(Picks, _on_host(maximize.farthest_first_features, f, k, start))
    if not _room(features):
        return greedy.farthest_first_features(_unit(features.double()), k, start)

    def solve(x: Tensor, _: None, budget: Any) -> Picks:
        d = _cosine_similarity(x.double()).neg_().add_(1.0).mul_(2.0)
        picks: Picks = _solver(x).farthest_first(d, budget, start, greedy.DISTANCE_ROUNDING)
        return picks

    return in_parts(features, None, k, _room(features), solve)


def marginal_relevance(f: MarginalRelevance, k: Any) -> Picks:
    """Greedy marginal relevance, on the host."""
    if _cuda(f.sample):
        return cast(Picks, NotImplemented)
    return cast(Picks, _on_host(maximize.marginal_relevance, f, k))


def salient_coverage(f: SalientCoverage, k: Any) -> Picks:
    """Greedy coverage weighed by saliency, on the host."""
    if _cuda(f.sample):
        return cast(Picks, NotImplemented)
    return cast(Picks, _on_host(maximize.salient_coverage, f, k))


def threshold_scan(
    features: Tensor, attention: Tensor, k: Any, step: np.ndarray[Any, Any], tau_max: float
) -> tuple[Tensor, Tensor]:
    """AgilePruner's scan: picks (..., K) padded with -1, how many were filled up (...)."""
    if not _cuda(features):
        answer = _on_host(threshold.threshold_scan, features, attention, k, step, tau_max)
        return cast("tuple[Tensor, Tensor]", answer)
    solver = _solver(features) if _room(features) else greedy
    with full_precision():
        answer = solver.threshold_scan(
            _unit(_plain(features)), attention.detach(), k, step, tau_max
        )
    return cast("tuple[Tensor, Tensor]", answer)


def singular_values(features: Tensor) -> Tensor:
    """Singular values (..., min(N, D)); on CUDA, of less than float64, by the Gram matrix."""
    if _derived(features):
        return NotImplemented
    if not _cuda(features):
        return _on_host(measures.singular_values, features)
    if features.dtype == torch.float64:
        return torch.linalg.svdvals(features)
    x = features.double()
    tall = x.shape[-2] > x.shape[-1]
    squares = torch.linalg.eigvalsh(x.mT @ x if tall else x @ x.mT)
    return squares.flip(-1).clamp_(min=0.0).sqrt_().to(_plain(features).dtype)


def singular_entropy(features: Tensor) -> Tensor:
    """The entropy of singular values, on CUDA without an eigensolver; float64 gets the SVD."""
    if _derived(features) or not _cuda(features) or features.dtype == torch.float64:
        return NotImplemented
    return spectrum.singular_entropy(_plain(features))


def patch_entropy(image: Tensor, patch: int) -> Tensor:
    """Entropy of the grey values within each patch: one table of counts for all of them."""
    arrays.refuse_kind(image, "image")
    if not _cuda(image):
        return _on_host(measures.patch_entropy, image, patch)
    if image.dtype != torch.uint8:
        image = arrays.checked(image, "image", "(..., H, W, 3)")
    rows, columns = measures.check_image(image, patch)
    return _patch_entropy(image.detach(), patch, rows, columns)


def _patch_entropy(image: Tensor, patch: int, rows: int, columns: int) -> Tensor:
    pixels = image[..., : rows * patch, : columns * patch, :]
    batch = pixels.shape[:-3]
    levels = measures.grey_levels(pixels).long()
    row = torch.arange(rows * patch, device=image.device) // patch
    column = torch.arange(columns * patch, device=image.device) // patch
    images = torch.arange(math.prod(batch), device=image.device).view(*batch, 1, 1)
    place = (images * rows + row[:, None]) * columns + column
    patches = math.prod(batch) * rows * columns
    counts = torch.zeros(256 * patches, dtype=torch.int32, device=image.device)
    ones = torch.ones((), dtype=torch.int32, device=image.device).expand(levels.numel())
    counts.scatter_add_(0, (patches * levels + place).flatten(), ones)
    terms = torch.special.entr(counts.view(256, patches).double() / float(patch * patch))
    # Sums one after the other, as the reference adds them: patches that tie there tie here.
    return terms.cumsum(0)[-1].view(*batch, rows * columns)


def text_relevance(
    visual: Tensor, text: Tensor, text_global: Tensor, mask: Tensor, *more: Any
) -> Tensor:
    """The reference, with float32 products in float32."""
    if _derived(visual, text, text_global):
        return NotImplemented
    if not _cuda(visual):
        return _on_host(relevance.text_relevance, visual, text, text_global, mask, *more)
    with full_precision():
        return relevance.text_relevance.reference(visual, text, text_global, mask, *more)


def attention_received(
    queries: Tensor,
    keys: Tensor,
    *,
    scale: float | None = None,
    query_weights: Tensor | None = None,
    key_mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Attention each key receives, a block of queries at a time, with PyTorch's own softmax."""
    if _derived(queries, keys, query_weights):
        return NotImplemented
    more = {"query_weights": query_weights, "key_mask": key_mask, "positions": positions}
    if not _cuda(queries):
        return _on_host(attention.attention_received, queries, keys, scale=scale, **more)
    return _attention_received(_plain(queries), _plain(keys), scale, **more)


def _attention_received(
    queries: Tensor,
    keys: Tensor,
    scale: float | None,
    query_weights: Tensor | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> Tensor:
    *batch, heads, count, size = queries.shape
    groups, length = keys.shape[-3:-1]
    if heads % groups:
        raise ValueError(f"queries: {heads} heads are no multiple of the keys' {groups}")
    factor = 1.0 / math.sqrt(size) if scale is None else scale
    queries = queries.view(*batch, groups, heads // groups, count, size)
    turned = keys.mT.unsqueeze(-3)
    received = torch.zeros(*batch, length, dtype=torch.float64, device=queries.device)
    places = torch.arange(length, device=queries.device)
    step = max(1, BLOCK // max(1, math.prod(batch) * heads * length))
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        with full_precision():
            logits = torch.matmul(queries[..., part, :], turned).mul_(factor)
        if positions is not None:
            unseen = places > positions[..., part].unsqueeze(-1)
            logits.masked_fill_(unseen[..., None, None, :, :], -math.inf)
        if key_mask is not None:
            logits.masked_fill_(~key_mask[..., None, None, None, :], -math.inf)
        # A query that sees nothing has a softmax of NaN, and gives nothing.
        shares = torch.softmax(logits, -1).nan_to_num_(0.0).sum((-4, -3)).double()
        weight = torch.full_like(shares[..., 0], 1.0 / heads)
        if query_weights is not None:
            weight = weight * query_weights[..., part]
        received += (weight.unsqueeze(-2) @ shares).squeeze(-2)
    return received.to(queries.dtype)


def smallest(x: Tensor, k: int) -> Tensor:
    """The k smallest entries (..., k) of the last axis, ascending, without sorting the others."""
    return torch.topk(x, min(k, x.shape[-1]), dim=-1, largest=False, sorted=True).values
