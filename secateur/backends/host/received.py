"""Attention that keys receive, on the host."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from secateur.backends.host.sources import BLOCK, Floats, Indices
from secateur.backends.lending import product, side_by_side
from secateur.core.arrays import each_row, widened

FEW = 32
"""Queries that all heads ask at once at least; where fewer fit, heads ask one after the other."""
OF_A_HEAD = 1 << 19
"""Weights of one head at a time: its keys and these stay in the cache."""

Part = tuple[slice, slice]
"""Groups of heads, and heads of a group."""


def attention_received(
    queries: Floats,
    keys: Floats,
    *,
    scale: float | None = None,
    query_weights: Floats | None = None,
    key_mask: np.ndarray[Any, Any] | None = None,
    positions: Indices | None = None,
) -> Floats:
    """Attention each key receives; blocks of weights that stay in cache, keys seen only.

    Where the weights of all heads leave no room for more than a few queries, every block would
    read all keys again for these few, so heads ask one after the other, or side by side on as
    many threads as large products have.
    """
    queries, keys = widened(queries), widened(keys)
    *batch, heads, count, size = queries.shape
    groups, length = keys.shape[-3:-1]
    if heads % groups:
        return cast("Floats", NotImplemented)
    factor = 1.0 / math.sqrt(size) if scale is None else scale
    queries = queries.reshape(*batch, groups, heads // groups, count, size)
    received = np.zeros((*batch, length))
    step = max(1, BLOCK // max(1, heads * length))
    parts: list[Part] = [(slice(None), slice(None))]
    if step < min(count, FEW):
        step = max(1, OF_A_HEAD // length)
        every = np.ndindex(groups, heads // groups)
        parts = [(slice(group, group + 1), slice(head, head + 1)) for group, head in every]

    def paid(at: tuple[int, ...], part: Part) -> Floats:
        """What some heads' queries of one row pay in all."""
        asking, turned = queries[at][part], np.swapaxes(keys[at][part[0]], -1, -2)[:, None]
        found = np.zeros(length)
        for start in range(0, count, step):
            block = slice(start, min(start + step, count))
            last = None if positions is None else positions[at][block]
            seen = length if last is None else min(length, max(0, int(last.max()) + 1))
            logits = product(factor * asking[..., block, :], turned[..., :seen])
            if last is not None:
                logits[..., np.arange(seen) > last[:, None]] = -math.inf
            if key_mask is not None:
                logits[..., ~key_mask[at][:seen]] = -math.inf
            peak = logits.max(axis=-1, keepdims=True, initial=-math.inf)
            # A query that sees nothing gives nothing.
            peak[peak == -math.inf] = 0.0
            logits -= peak
            weight = np.exp(logits, out=logits)
            total = weight.sum(axis=-1)
            total[total == 0.0] = 1.0
            share = 1.0 / (heads * total)
            if query_weights is not None:
                share = share * query_weights[at][block]
            found[:seen] += share.reshape(-1) @ weight.reshape(-1, seen)
        return found

    jobs = [(at, part) for at in each_row(tuple(batch)) for part in parts]
    work = math.prod(batch) * heads * count * length * size
    for (at, _), one in zip(jobs, side_by_side(paid, jobs, work), strict=True):
        received[at] += one
    return received.astype(queries.dtype, copy=False)
