"""Greedy in whole-tensor steps: batched over images, never waiting for the device.

What the PyTorch driver falls back on where Triton is missing, and what the kernels of
`kernels` are compared with before they are trusted. Every function follows the core's
definition to the letter, on any device with float64: dense gains at each pick, no bookkeeping
that could drift.

Nothing here asks the device whether it met NaN. An entry that is NaN serves nobody, a gain that
is NaN comes last, and what is certain of a value that is no number is nothing: the picks are
always distinct tokens. All loops run over the budget or over blocks of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from secateur.backends import lending
from secateur.backends.lending import answer, blank, flat
from secateur.core.maximize import Picks

Tensor = Any

EPSILON = torch.finfo(torch.float64).eps
DISTANCE_ROUNDING = 16 * EPSILON
"""How well 1 - cos is known, in float64."""
BLOCK = 1 << 22
"""Numbers that a block of similarities may hold while it is worked on."""


def budgets(k: Any, batch: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """One budget an image (B,) on the device, and the longest, known to the host."""
    host, longest = lending.budgets(k, batch)
    if np.ndim(k) == 0:
        return torch.full((host.size,), longest, device=device), longest
    return on_device(host, device), longest


def row_weights(weights: Tensor | None, batch: tuple[int, ...], n: int, like: Tensor) -> Tensor:
    """Weights (B, N) in float64."""
    if weights is None:
        return torch.ones(math.prod(batch), n, dtype=torch.float64, device=like.device)
    return flat(weights.detach().expand(*batch, n), 1).double()


class _Record:
    """Picks of a batch as they are made, padded where a budget is spent."""

    def __init__(self, batch: tuple[int, ...], n: int, k: Any, device: torch.device) -> None:
        self.batch = batch
        self.budget, self.longest = budgets(k, batch, device)
        images = len(self.budget)
        self.places = torch.arange(n, device=device)
        self.taken = torch.zeros(images, n, dtype=torch.bool, device=device)
        self.indices, self.gains = blank(images, self.longest, self.places)

    def leader(self, gains: Tensor, margin: Tensor | float) -> Tensor:
        """The lowest open place (B,) whose gain equals the best but for `margin`."""
        masked = gains.masked_fill(self.taken | gains.isnan(), -math.inf)
        best = masked.amax(-1)
        least = torch.where(best.isinf(), best, best - margin)
        # Not "at least": where the margin is NaN, nobody lies below.
        level = ~self.taken & ~(masked < least[:, None])
        return self.first(level).clamp(max=len(self.places) - 1)

    def first(self, mask: Tensor) -> Tensor:
        """The first place (B,) where the mask holds, N where it holds nowhere."""
        n = len(self.places)
        return torch.where(mask, self.places, n).amin(-1)

    def pick(self, step: int, place: Tensor, gains: Tensor) -> Tensor:
        """Note the picks (B,) of a step; which images (B,) had budget left for them."""
        live = self.budget > step
        gain = gains.gather(1, place[:, None])[:, 0]
        self.indices[:, step] = torch.where(live, place, -1)
        self.gains[:, step] = torch.where(live, gain, 0.0)
        self.taken.scatter_(1, place[:, None], True)
        return live

    def picks(self, value: Tensor, bound: Tensor | None = None) -> Picks:
        return answer(self.batch, self.indices, self.gains, value, bound)


def largest_sum(gains: Tensor, budget: Tensor, longest: int) -> Tensor:
    """The sum (B,) of each row's `budget` largest gains, negative ones as 0."""
    top = gains.clamp(min=0.0).topk(longest, dim=-1).values
    return top.cumsum(-1).gather(1, budget[:, None] - 1)[:, 0]


def facility_location(similarity: Tensor, weights: Tensor | None, k: Any, rounding: float) -> Picks:
    """Greedy facility location from matrices (..., N, N), by dense gains: O(k N^2).

    `rounding` is the error of one entry, 0 for entries that are given.
    """
    batch, n = tuple(similarity.shape[:-2]), int(similarity.shape[-1])
    s = flat(similarity, 2)
    w = row_weights(weights, batch, n, s)
    record = _Record(batch, n, k, s.device)
    extra = rounding * w.sum(-1) if rounding else torch.zeros_like(w[:, 0])
    m = s.new_zeros(len(s), n)
    value = torch.zeros_like(extra)
    bound = torch.full_like(extra, math.inf)
    for step in range(record.longest + 1):
        gains = _gains(s, w, m)
        if record.longest:
            limit = value + largest_sum(gains, record.budget, record.longest)
            bound = torch.where(record.budget >= step, torch.minimum(bound, limit), bound)
        if step == record.longest:
            break
        best = gains.masked_fill(record.taken | gains.isnan(), -math.inf).amax(-1)
        place = record.leader(gains, 4.0 * n * EPSILON * best.abs() + extra)
        live = record.pick(step, place, gains)
        value = value + record.gains[:, step]
        column = s.gather(2, place[:, None, None].expand(-1, n, 1))[..., 0]
        m = torch.where(live[:, None], torch.fmax(m, column), m)
    return record.picks(*certain((w * m).sum(-1), bound))


def certain(value: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Values and bounds (B,); 0 and infinity, which certify nothing, where sums overflowed."""
    known = value.isfinite() & ~bound.isnan()
    return torch.where(known, value, 0.0), torch.where(known, bound, math.inf)


def _gains(s: Tensor, w: Tensor, m: Tensor) -> Tensor:
    images, n = m.shape
    gains = torch.zeros(images, n, dtype=torch.float64, device=s.device)
    step = max(1, BLOCK // max(1, images * n))
    for start in range(0, n, step):
        i = slice(start, min(start + step, n))
        rise = (s[:, i].double() - m[:, i, None]).clamp_(min=0.0)
        rise.nan_to_num_(nan=0.0, posinf=math.inf)
        gains += (w[:, None, i] @ rise)[:, 0]
    return gains


def determinant(kernel: Tensor, k: Any) -> Picks:
    """Greedy log-determinant of kernels (..., N, N): a Cholesky row a pick, O(N k^2)."""
    batch, n = tuple(kernel.shape[:-2]), int(kernel.shape[-1])
    kernel = flat(kernel, 2)
    record = _Record(batch, n, k, kernel.device)
    left = kernel.diagonal(dim1=-2, dim2=-1).double()
    noise = 128 * torch.finfo(kernel.dtype).eps * left
    factor = left.new_zeros(len(kernel), record.longest, n)
    for step in range(record.longest):
        gains = torch.where(left > noise, left, 0.0).log()
        place = record.leader(gains, 4.0 * n * EPSILON)
        record.pick(step, place, gains)
        at = place[:, None]
        row = kernel.gather(1, at[:, :, None].expand(-1, 1, n))[:, 0].double()
        known = factor[:, :step].gather(2, at[:, None].expand(-1, step, 1))
        row = row - (known * factor[:, :step]).sum(1)
        rest = left.gather(1, at)
        row = torch.where(rest > noise.gather(1, at), row / rest.sqrt(), 0.0)
        factor[:, step] = row
        left = left - row * row
    return record.picks(record.gains.sum(-1))


def determinant_span(vectors: Tensor, selectable: Tensor | None, k: Any) -> Picks:
    """Greedy log-determinant of Y Y^T from vectors (..., N, D): O(N D) a pick.

    What a pick adds to the span of those before is made a direction in float64; what lies along
    it is multiplied in the precision of the vectors.
    """
    batch, (n, d) = tuple(vectors.shape[:-2]), vectors.shape[-2:]
    y = flat(vectors, 2)
    record = _Record(batch, n, k, y.device)
    if selectable is not None:
        record.taken |= ~flat(selectable.expand(*batch, n), 1)
    left = y.double().square().sum(-1)
    noise = 128 * torch.finfo(y.dtype).eps * left
    basis = left.new_zeros(len(y), min(record.longest, d), d)
    for step in range(record.longest):
        alive = left > noise if step < d else torch.zeros_like(record.taken)
        gains = torch.where(alive, left, 0.0).log()
        place = record.leader(gains, 4.0 * n * EPSILON)
        record.pick(step, place, gains)
        if step >= d:
            continue
        at = place[:, None]
        new = y.gather(1, at[:, :, None].expand(-1, 1, d)).double()
        known = basis[:, :step]
        for _ in range(2):  # once leaves what rounding left
            new = new - (new @ known.mT) @ known
        new = new / torch.linalg.vector_norm(new, dim=-1, keepdim=True)
        new = torch.where(alive.gather(1, at)[:, :, None], new, 0.0)
        basis[:, step] = new[:, 0]
        along = (y @ new.to(y.dtype).mT)[..., 0].double()
        left = left - along * along
    return record.picks(record.gains.sum(-1))


def farthest_first(distance: Tensor, k: Any, start: int | None, rounding: float = 0.0) -> Picks:
    """Farthest-first over distances (..., N, N) known to `rounding`."""
    batch, n = tuple(distance.shape[:-2]), int(distance.shape[-1])
    d = flat(distance, 2)
    itself = torch.eye(n, dtype=torch.bool, device=d.device)
    nearest = d.masked_fill(itself, math.inf).amin(-2)

    def column(place: Tensor) -> Tensor:
        return d.gather(2, place[:, None, None].expand(-1, n, 1))[..., 0]

    return _farthest(
        batch, nearest, column, lambda picks: smallest_between(d, picks), k, start, rounding
    )


def farthest_first_features(directions: Tensor, k: Any, start: int | None) -> Picks:
    """Farthest-first under 1 - cos of float64 unit vectors (..., N, D), in O(N D) memory."""
    batch, n = tuple(directions.shape[:-2]), int(directions.shape[-2])
    x = flat(directions, 2)
    step = max(1, BLOCK // max(1, len(x) * n))
    nearest = []
    for start_row in range(0, n, step):
        d = _distances(x @ x[:, start_row : start_row + step].mT)
        d.diagonal(-start_row, -2, -1)[...] = math.inf
        nearest.append(d.amin(-2))

    def chosen(place: Tensor) -> Tensor:
        return x.gather(1, place[:, :, None].expand(-1, -1, x.shape[-1]))

    def column(place: Tensor) -> Tensor:
        return _distances(x @ chosen(place[:, None]).mT)[..., 0]

    def value(indices: Tensor) -> Tensor:
        picks = chosen(indices.clamp(min=0))
        return _smallest(_distances(picks @ picks.mT), indices)

    return _farthest(batch, torch.cat(nearest, -1), column, value, k, start, DISTANCE_ROUNDING)


def _distances(cosine: Tensor) -> Tensor:
    # 2 (1 - s) with s = (1 + cos) / 2 in [0, 1], as the core takes them.
    similarity = cosine.mul_(0.5).add_(0.5).clamp_(0.0, 1.0)
    return similarity.neg_().add_(1.0).mul_(2.0)


def _farthest(
    batch: tuple[int, ...],
    nearest: Tensor,
    column: Callable[[Tensor], Tensor],
    value: Callable[[Tensor], Tensor],
    k: Any,
    start: int | None,
    margin: float,
) -> Picks:
    record = _Record(batch, int(nearest.shape[-1]), k, nearest.device)
    for step in range(record.longest):
        if step == 0 and start is not None:
            place = torch.full_like(record.budget, start)
        else:
            place = record.leader(nearest, margin)
        record.pick(step, place, nearest.double())
        d = column(place)
        nearest = d if step == 0 else torch.minimum(nearest, d)
    return record.picks(value(record.indices))


def smallest_between(d: Tensor, indices: Tensor) -> Tensor:
    """The smallest of distances d (B, N, N) between two picks of an image, in float64 (B,)."""
    picks = indices.clamp(min=0)
    rows = d.gather(1, picks[:, :, None].expand(-1, -1, d.shape[-1]))
    return _smallest(rows.gather(2, picks[:, None, :].expand(-1, picks.shape[1], -1)), indices)


def _smallest(d: Tensor, indices: Tensor) -> Tensor:
    """The smallest of distances (B, K, K) between picks (B, K), padded with -1."""
    there = indices >= 0
    pairs = there[:, :, None] & there[:, None, :]
    pairs = pairs & ~torch.eye(indices.shape[1], dtype=torch.bool, device=d.device)
    infinity = torch.full((), math.inf, dtype=d.dtype, device=d.device)
    if not indices.shape[1]:
        return infinity.double().expand(len(d))
    return torch.where(pairs & ~d.isnan(), d, infinity).amin((-2, -1)).double()


def threshold_scan(
    directions: Tensor, scores: Tensor, k: Any, step: np.ndarray[Any, Any], tau_max: float
) -> tuple[Tensor, Tensor]:
    """AgilePruner's scan on unit vectors (..., N, D), a product of a matrix and a vector a pick."""
    batch, n = tuple(directions.shape[:-2]), int(directions.shape[-2])
    x, order = by_score(directions, scores)
    budget, longest = budgets(k, batch, x.device)
    slope = on_device(step, x.device)
    rounding = 8 * torch.finfo(x.dtype).eps
    places = torch.arange(n, device=x.device)
    remains = torch.ones(len(x), n, dtype=torch.bool, device=x.device)
    kept = torch.full((len(x), longest), -1, device=x.device)
    for i in range(longest):
        place = torch.where(remains, places, n).amin(-1)
        live = (place < n) & (i < budget)
        kept[:, i] = torch.where(live, place, -1)
        at = place.clamp(max=n - 1)[:, None]
        chosen = x.gather(1, at[:, :, None].expand(-1, 1, x.shape[-1]))
        d = 1.0 - (x @ chosen.mT)[..., 0]
        least = ((i + 1) * slope).clamp(max=tau_max) - rounding
        survive = (d >= least.to(x.dtype)[:, None]) & (places > at)
        remains = remains & (survive | ~live[:, None])
    return filled_up(kept, order, budget, longest, batch)


def by_score(directions: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (B, N, D) with the best score first, and the order (B, N) that sorts them."""
    order = flat(scores, 1).argsort(dim=-1, descending=True, stable=True)
    x = flat(directions, 2)
    return x.gather(1, order[:, :, None].expand(-1, -1, x.shape[-1])), order


def on_device(x: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Numbers (B,) of the host on the device, without waiting for what it is busy with."""
    host = torch.from_numpy(x.reshape(-1).copy())
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def filled_up(
    kept: Tensor, order: Tensor, budget: Tensor, longest: int, batch: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Picks (..., K) from places kept (B, K) in `order`, and how many the removed ones filled."""
    images, n = order.shape
    there = kept >= 0
    count = there.sum(-1, keepdim=True)
    free = torch.ones(images, n + 1, dtype=torch.bool, device=order.device)
    free.scatter_(1, torch.where(there, kept, n), False)
    free = free[:, :n]
    slot = count + free.cumsum(-1) - 1
    slot = torch.where(free & (slot < budget[:, None]), slot, longest)
    spare = torch.nn.functional.pad(kept, (0, 1), value=-1)
    places = torch.arange(n, device=order.device).expand(images, n)
    places = spare.scatter(1, slot, places)[:, :longest]
    indices = order.gather(1, places.clamp(min=0))
    indices = torch.where(places >= 0, indices, -1)
    return indices.view(*batch, longest), (budget - count[:, 0]).view(batch)
