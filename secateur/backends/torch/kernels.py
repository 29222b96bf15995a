"""Greedy in Triton kernels: all picks of an image in one launch, on the device from end to end.

One program keeps an image's state in its own scratch and loops over the picks; a large image is
shared by several programs, each with its own columns of the matrix. State in global memory is
written and read by the same program between barriers, so that it needs no other program's
finishing; gains, which the programs of an image exchange, go through `history`, one row a pick,
never overwritten within a launch. There are no sums by atomics: the same input takes the same
steps on every run.

A kernel is compiled anew only for another N divisible by 16 or not, another dtype and another
set of constants, not for another k.

Sums are in float64. The rule for ties and the second look at all who could be the best are
those of `secateur.core.maximize.incremental`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import warnings
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from secateur.backends.torch import greedy as plain
from secateur.core.maximize import Picks

Tensor = Any

EPSILON: tl.constexpr = tl.constexpr(2.0**-52)
MINUS: tl.constexpr = tl.constexpr(float("-inf"))
PLUS: tl.constexpr = tl.constexpr(float("inf"))

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""Whether Triton runs the kernels on the host, one program after the other."""
SHARED = 128
"""Columns of a large image that one program looks after."""
ALONE = 1024
"""Tokens up to which one program looks after a whole image."""
HISTORY = 1 << 30
"""Bytes that the gains noted down for the certificate may take."""
PATIENCE = 1 << 24
"""How often a program asks whether the others have come: seconds, where that takes microseconds."""


@triton.jit
def _weights(w_ptr, i, mask, WEIGHTED: tl.constexpr):  # type: ignore[no-untyped-def]
    if WEIGHTED:
        w = tl.load(w_ptr + i, mask=mask, other=0.0).to(tl.float64)
    else:
        w = tl.where(mask, 1.0, 0.0).to(tl.float64)
    return w


@triton.jit(do_not_specialize=["rows"])
def first_gains(  # type: ignore[no-untyped-def]
    s_ptr,
    w_ptr,
    history_ptr,
    n,
    rows,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Row 0 of an image's history: g_j = sum_i w_i max(0, s_ij). Grid: images, column blocks."""
    image = tl.program_id(0).to(tl.int64)
    s_ptr += image * n * n
    w_ptr += image * n
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = j < n
    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    for start in range(0, n, ROWS):
        i = start + tl.arange(0, ROWS)
        there = i < n
        place = i.to(tl.int64)[:, None] * n + j[None, :]
        s = tl.load(s_ptr + place, mask=there[:, None] & inside[None, :], other=0.0)
        w = _weights(w_ptr, i, there, WEIGHTED)
        total += w[:, None] * tl.maximum(s, 0.0).to(tl.float64)
    tl.store(history_ptr + image * rows * n + j, tl.sum(total, 0), mask=inside)


@triton.jit
def _largest(row_ptr, n, BLOCK: tl.constexpr, CACHE: tl.constexpr):  # type: ignore[no-untyped-def]
    best = tl.full((BLOCK,), MINUS, tl.float64)
    for start in range(0, n, BLOCK):
        j = start + tl.arange(0, BLOCK)
        g = tl.load(row_ptr + j, mask=j < n, other=MINUS, cache_modifier=CACHE)
        best = tl.maximum(best, g)
    return tl.max(best, 0)


@triton.jit
def _next_hopeful(  # type: ignore[no-untyped-def]
    row_ptr, after, least, n, BLOCK: tl.constexpr, CACHE: tl.constexpr
):
    """The first place past `after` whose gain is at least `least`, n where there is none."""
    first = tl.zeros((BLOCK,), tl.int32) + n
    for start in range(0, n, BLOCK):
        j = start + tl.arange(0, BLOCK)
        g = tl.load(row_ptr + j, mask=j < n, other=MINUS, cache_modifier=CACHE)
        first = tl.minimum(first, tl.where((g >= least) & (j > after) & (j < n), j, n))
    return tl.min(first, 0)


@triton.jit
def _exact_gain(  # type: ignore[no-untyped-def]
    s_ptr, w_ptr, m_ptr, j, n, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr
):
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        there = i < n
        s = tl.load(s_ptr + i.to(tl.int64) * n + j, mask=there, other=0.0)
        m = tl.load(m_ptr + i, mask=there, other=0.0)
        w = _weights(w_ptr, i, there, WEIGHTED)
        total += w * tl.maximum(s.to(tl.float64) - m.to(tl.float64), 0.0)
    return tl.sum(total, 0)


@triton.jit
def _alone(counter_ptr, expected, patience):  # type: ignore[no-untyped-def]
    """Wait until all programs of the image have come here; True when patience ran out."""
    tl.debug_barrier()
    seen = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") + 1
    tries = tl.zeros((), tl.int32)
    while (seen < expected) & (tries < patience):
        seen = tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu")
        tries += 1
    tl.debug_barrier()
    return seen < expected


@triton.jit(do_not_specialize=["longest", "rows", "origin", "begin", "end", "patience"])
def greedy_steps(  # type: ignore[no-untyped-def]
    s_ptr,
    w_ptr,
    budget_ptr,
    history_ptr,
    m_ptr,
    low_ptr,
    high_ptr,
    heavy_ptr,
    known_ptr,
    exact_ptr,
    listed_ptr,
    terms_ptr,
    largest_ptr,
    indices_ptr,
    gains_ptr,
    counter_ptr,
    n,
    longest,
    rows,
    origin,
    begin,
    end,
    span,
    patience,
    WEIGHTED: tl.constexpr,
    ROUNDING: tl.constexpr,
    PARTS: tl.constexpr,
    WAIT: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CACHE: tl.constexpr,
):
    """Picks `begin` .. `end` - 1 of facility location. Grid: images, programs an image.

    Every program of an image makes the same picks from the same gains and follows the coverage
    m for itself; of the gains that a pick leaves it writes its own `span` columns. `history`
    holds the gains before pick t in row t - `origin`; `listed` the rows that a pick serves
    better, with how well they were served before and after, `low` and `high`, and their weights,
    `heavy`; `known` the gains that were worked out exactly and
    `exact` what came out, so that ties which nothing has touched are not worked out again.
    """
    image = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    s_ptr += image * n * n
    w_ptr += image * n
    history_ptr += image * rows * n
    scratch = (image * PARTS + part) * n
    m_ptr += scratch
    low_ptr += scratch
    high_ptr += scratch
    heavy_ptr += scratch
    known_ptr += scratch
    exact_ptr += scratch
    listed_ptr += scratch
    indices_ptr += image * longest
    gains_ptr += image * longest
    terms_ptr += image * (longest + 1)
    counter_ptr += image
    budget = tl.load(budget_ptr + image).to(tl.int32)

    if begin == 0:
        for start in range(0, n, BLOCK):
            column = start + tl.arange(0, BLOCK)
            g0 = tl.load(history_ptr + column, mask=column < n, other=MINUS)
            unserved = tl.zeros((BLOCK,), m_ptr.dtype.element_ty)
            tl.store(m_ptr + column, unserved, mask=column < n)
            tl.store(known_ptr + column, g0, mask=column < n)
            tl.store(exact_ptr + column, g0, mask=column < n)
        largest = _largest(history_ptr, n, BLOCK, CACHE)
        terms = tl.zeros((), tl.int64) + n
        if part == 0:
            tl.store(largest_ptr + image, largest)
            tl.store(terms_ptr, terms)
            for start in range(0, longest, BLOCK):
                late = start + tl.arange(0, BLOCK)
                spare = (late >= budget) & (late < longest)
                tl.store(indices_ptr + late, tl.full((BLOCK,), -1, tl.int64), mask=spare)
                tl.store(gains_ptr + late, tl.zeros((BLOCK,), tl.float64), mask=spare)
    else:
        largest = tl.load(largest_ptr + image)
        terms = tl.load(terms_ptr + begin)
    reach = tl.zeros((), tl.float64)
    if ROUNDING > 0:
        weight = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, n, BLOCK):
            row = start + tl.arange(0, BLOCK)
            weight += _weights(w_ptr, row, row < n, WEIGHTED)
        reach = ROUNDING * EPSILON * tl.sum(weight, 0)
    tl.debug_barrier()

    for t in range(begin, tl.minimum(end, budget)):
        now_ptr = history_ptr + (t - origin).to(tl.int64) * n
        slack = 4.0 * EPSILON * terms.to(tl.float64) * largest + reach
        best = _largest(now_ptr, n, BLOCK, CACHE)
        least = best - 2.0 * slack - (4.0 * EPSILON * n * tl.abs(best) + reach)
        pick = _next_hopeful(now_ptr, -1, least, n, BLOCK, CACHE)
        rival = _next_hopeful(now_ptr, pick, least, n, BLOCK, CACHE)
        if rival < n:
            rival = pick
            most = tl.full((), MINUS, tl.float64)
            while rival < n:
                kept = tl.load(now_ptr + rival, cache_modifier=CACHE)
                gain = tl.load(exact_ptr + rival)
                if tl.load(known_ptr + rival) != kept:
                    gain = _exact_gain(s_ptr, w_ptr, m_ptr, rival, n, WEIGHTED, BLOCK)
                most = tl.maximum(most, gain)
                # All threads have read what is stored next, and see it afterwards.
                tl.debug_barrier()
                tl.store(known_ptr + rival, kept)
                tl.store(exact_ptr + rival, gain)
                tl.debug_barrier()
                rival = _next_hopeful(now_ptr, rival, least, n, BLOCK, CACHE)
            enough = most - (4.0 * EPSILON * n * tl.abs(most) + reach)
            first = tl.zeros((BLOCK,), tl.int32) + n
            for start in range(0, n, BLOCK):
                column = start + tl.arange(0, BLOCK)
                inside = column < n
                g = tl.load(now_ptr + column, mask=inside, other=MINUS, cache_modifier=CACHE)
                worked_out = tl.load(exact_ptr + column, mask=inside, other=MINUS)
                level = (g >= least) & (worked_out >= enough) & inside
                first = tl.minimum(first, tl.where(level, column, n))
            pick = tl.min(first, 0)
        # Gains that are no numbers have no leader; whatever is returned, stay within the matrix.
        pick = tl.minimum(pick, n - 1)

        count = tl.zeros((), tl.int32)
        rise = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, n, BLOCK):
            row = start + tl.arange(0, BLOCK)
            there = row < n
            served = tl.load(s_ptr + row.to(tl.int64) * n + pick, mask=there, other=0.0)
            m = tl.load(m_ptr + row, mask=there, other=0.0)
            better = (served > m) & there
            more = tl.where(better, served.to(tl.float64) - m.to(tl.float64), 0.0)
            heavy = _weights(w_ptr, row, there, WEIGHTED)
            rise += heavy * more
            place = count + tl.cumsum(better.to(tl.int32), 0) - 1
            tl.store(listed_ptr + place, row, mask=better)
            tl.store(low_ptr + place, m, mask=better)
            tl.store(high_ptr + place, served, mask=better)
            tl.store(heavy_ptr + place, heavy, mask=better)
            tl.store(m_ptr + row, served, mask=better)
            count += tl.sum(better.to(tl.int32), 0)
        terms += count
        if part == 0:
            tl.store(indices_ptr + t, pick.to(tl.int64))
            tl.store(gains_ptr + t, tl.sum(rise, 0))
            tl.store(terms_ptr + t + 1, terms)
        tl.debug_barrier()

        stop = tl.minimum(n, (part + 1) * span)
        for base in range(part * span, stop, COLUMNS):
            j = base + tl.arange(0, COLUMNS)
            own = j < stop
            lost = tl.zeros((1, COLUMNS), tl.float64)
            if PARTS > 1:
                lost = tl.zeros((ROWS, COLUMNS), tl.float64)
            for start in range(0, count, ROWS):
                r = start + tl.arange(0, ROWS)
                listed = r < count
                i = tl.load(listed_ptr + r, mask=listed, other=0)
                low = tl.load(low_ptr + r, mask=listed, other=0.0)
                high = tl.load(high_ptr + r, mask=listed, other=0.0)
                w = tl.load(heavy_ptr + r, mask=listed, other=0.0)
                entry = i.to(tl.int64)[:, None] * n + j[None, :]
                s = tl.load(s_ptr + entry, mask=listed[:, None] & own[None, :], other=0.0)
                # max(0, s - low) - max(0, s - high): what row i no longer gives.
                held = tl.minimum(tl.maximum(s, low[:, None]), high[:, None])
                fall = w[:, None] * (held.to(tl.float64) - low.to(tl.float64)[:, None])
                # Narrow tiles spread a column over warps, which then add up only once.
                if PARTS > 1:
                    lost += fall
                else:
                    lost += tl.sum(fall, 0)[None, :]
            before = tl.load(now_ptr + j, mask=own, other=MINUS, cache_modifier=CACHE)
            after = tl.where(j == pick, MINUS, before - tl.sum(lost, 0))
            tl.store(now_ptr + n + j, after, mask=own, cache_modifier=CACHE)
        if WAIT:
            # An answer must not pass for one where programs lost each other.
            if _alone(counter_ptr, (t - begin + 1) * PARTS, patience):
                tl.store(gains_ptr + t, tl.full((), float("nan"), tl.float64))
        else:
            tl.debug_barrier()


@triton.jit(do_not_specialize=["longest", "rows", "origin"])
def largest_sums(  # type: ignore[no-untyped-def]
    history_ptr, budget_ptr, sums_ptr, n, longest, rows, origin, BLOCK: tl.constexpr
):
    """The sum of the k largest gains before each pick, negative ones as 0. Grid: images, rows."""
    image = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    k = tl.load(budget_ptr + image).to(tl.int32)
    if origin + row <= k:
        j = tl.arange(0, BLOCK)
        g = tl.load(history_ptr + (image * rows + row) * n + j, mask=j < n, other=0.0)
        g = tl.maximum(g, 0.0)
        # Between low, which at least k gains exceed or all do, and high, which fewer do.
        low = tl.zeros((), tl.float64)
        high = tl.max(g, 0)
        for _ in range(44):
            middle = 0.5 * (low + high)
            many = tl.sum((g > middle).to(tl.int32), 0) >= k
            low = tl.where(many, middle, low)
            high = tl.where(many, high, middle)
        above = g > high
        count = tl.sum(above.to(tl.int32), 0)
        level = tl.max(tl.where(above, 0.0, g), 0)
        total = tl.sum(tl.where(above, g, 0.0), 0) + (k - count).to(tl.float64) * level
        # Fewer than k positive gains: the level is the next smaller one, which is not theirs.
        positive = tl.sum((g > 0.0).to(tl.int32), 0)
        total = tl.where(positive <= k, tl.sum(g, 0), total)
        tl.store(sums_ptr + image * (longest + 1) + origin + row, total)


@triton.jit(do_not_specialize=["longest", "parts"])
def certify(  # type: ignore[no-untyped-def]
    w_ptr,
    m_ptr,
    budget_ptr,
    gains_ptr,
    terms_ptr,
    largest_ptr,
    sums_ptr,
    value_ptr,
    bound_ptr,
    n,
    longest,
    parts,
    WEIGHTED: tl.constexpr,
    ROUNDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The value of the picks and the smallest bound of their prefixes. Grid: images."""
    image = tl.program_id(0).to(tl.int64)
    w_ptr += image * n
    m_ptr += image * parts * n
    gains_ptr += image * longest
    terms_ptr += image * (longest + 1)
    sums_ptr += image * (longest + 1)
    k = tl.load(budget_ptr + image).to(tl.int32)
    value = tl.zeros((BLOCK,), tl.float64)
    weight = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        w = _weights(w_ptr, i, i < n, WEIGHTED)
        value += w * tl.load(m_ptr + i, mask=i < n, other=0.0).to(tl.float64)
        weight += w
    tl.store(value_ptr + image, tl.sum(value, 0))
    reach = ROUNDING * EPSILON * tl.sum(weight, 0)
    largest = tl.load(largest_ptr + image)
    before = tl.zeros((), tl.float64)
    bound = tl.full((BLOCK,), PLUS, tl.float64)
    for start in range(0, k + 1, BLOCK):
        t = start + tl.arange(0, BLOCK)
        added = tl.load(gains_ptr + t - 1, mask=(t > 0) & (t <= k), other=0.0)
        terms = tl.load(terms_ptr + t, mask=t <= k, other=0).to(tl.float64)
        top = tl.load(sums_ptr + t, mask=t <= k, other=PLUS)
        slack = 4.0 * EPSILON * terms * largest + reach
        bound = tl.minimum(bound, before + tl.cumsum(added, 0) + k * slack + top)
        before += tl.sum(added, 0)
    tl.store(bound_ptr + image, tl.min(bound, 0))


@triton.jit
def nearest_other(  # type: ignore[no-untyped-def]
    d_ptr, nearest_ptr, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Each token's smallest distance to another: min over i of d_ij. Grid: images, columns."""
    image = tl.program_id(0).to(tl.int64)
    d_ptr += image * n * n
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    smallest = tl.full((ROWS, COLUMNS), PLUS, d_ptr.dtype.element_ty)
    for start in range(0, n, ROWS):
        i = start + tl.arange(0, ROWS)
        wanted = (i < n)[:, None] & (j < n)[None, :] & (i[:, None] != j[None, :])
        entry = i.to(tl.int64)[:, None] * n + j[None, :]
        smallest = tl.minimum(smallest, tl.load(d_ptr + entry, mask=wanted, other=PLUS))
    tl.store(nearest_ptr + image * n + j, tl.min(smallest, 0), mask=j < n)


@triton.jit(do_not_specialize=["longest", "forced"])
def farthest_steps(  # type: ignore[no-untyped-def]
    d_ptr,
    nearest_ptr,
    budget_ptr,
    indices_ptr,
    gains_ptr,
    n,
    longest,
    forced,
    ROUNDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All picks of farthest-first, the first one `forced` unless negative. Grid: images.

    A token that was picked is marked by a distance of minus infinity.
    """
    image = tl.program_id(0).to(tl.int64)
    d_ptr += image * n * n
    nearest_ptr += image * n
    indices_ptr += image * longest
    gains_ptr += image * longest
    budget = tl.load(budget_ptr + image).to(tl.int32)
    for t in range(0, budget):
        best = tl.full((BLOCK,), MINUS, d_ptr.dtype.element_ty)
        for start in range(0, n, BLOCK):
            column = start + tl.arange(0, BLOCK)
            best = tl.maximum(best, tl.load(nearest_ptr + column, mask=column < n, other=MINUS))
        least = tl.max(best, 0) - ROUNDING * EPSILON
        first = tl.zeros((BLOCK,), tl.int32) + n
        for start in range(0, n, BLOCK):
            column = start + tl.arange(0, BLOCK)
            apart = tl.load(nearest_ptr + column, mask=column < n, other=MINUS)
            level = (apart >= least) & (column < n)
            first = tl.minimum(first, tl.where(level, column, n))
        pick = tl.minimum(tl.min(first, 0), n - 1)
        if (t == 0) & (forced >= 0):
            pick = tl.zeros((), tl.int32) + forced
        tl.store(indices_ptr + t, pick.to(tl.int64))
        tl.store(gains_ptr + t, tl.load(nearest_ptr + pick).to(tl.float64))
        tl.debug_barrier()
        for start in range(0, n, BLOCK):
            row = start + tl.arange(0, BLOCK)
            there = row < n
            d = tl.load(d_ptr + row.to(tl.int64) * n + pick, mask=there, other=0.0)
            if t > 0:
                d = tl.minimum(d, tl.load(nearest_ptr + row, mask=there, other=0.0))
            tl.store(nearest_ptr + row, tl.where(row == pick, MINUS, d), mask=there)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["longest"])
def cholesky_steps(  # type: ignore[no-untyped-def]
    k_ptr,
    left_ptr,
    noise_ptr,
    opened_ptr,
    factor_ptr,
    budget_ptr,
    indices_ptr,
    gains_ptr,
    n,
    longest,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """All picks of greedy log-determinant, a row of the Cholesky factor each. Grid: images."""
    image = tl.program_id(0).to(tl.int64)
    k_ptr += image * n * n
    left_ptr += image * n
    noise_ptr += image * n
    opened_ptr += image * n
    factor_ptr += image * longest * n
    indices_ptr += image * longest
    gains_ptr += image * longest
    budget = tl.load(budget_ptr + image).to(tl.int32)
    rank = tl.zeros((), tl.int32)
    for t in range(0, budget):
        best = tl.full((BLOCK,), MINUS, tl.float64)
        for start in range(0, n, BLOCK):
            column = start + tl.arange(0, BLOCK)
            gain = _log_left(left_ptr, noise_ptr, opened_ptr, column, n)
            best = tl.maximum(best, gain)
        most = tl.max(best, 0)
        # Minus infinity less a margin is minus infinity: then every open token is level.
        least = most - 4.0 * EPSILON * n
        first = tl.zeros((BLOCK,), tl.int32) + n
        for start in range(0, n, BLOCK):
            column = start + tl.arange(0, BLOCK)
            gain = _log_left(left_ptr, noise_ptr, opened_ptr, column, n)
            opened = tl.load(opened_ptr + column, mask=column < n, other=0) != 0
            first = tl.minimum(first, tl.where(opened & (gain >= least), column, n))
        pick = tl.minimum(tl.min(first, 0), n - 1)
        rest = tl.load(left_ptr + pick)
        alive = rest > tl.load(noise_ptr + pick)
        tl.store(indices_ptr + t, pick.to(tl.int64))
        tl.store(gains_ptr + t, tl.where(alive, tl.log(tl.where(alive, rest, 1.0)), MINUS))
        tl.debug_barrier()
        tl.store(opened_ptr + pick, 0)
        if alive:
            for base in range(0, n, COLUMNS):
                j = base + tl.arange(0, COLUMNS)
                inside = j < n
                known = tl.zeros((ROWS, COLUMNS), tl.float64)
                for start in range(0, rank, ROWS):
                    r = start + tl.arange(0, ROWS)
                    there = r < rank
                    row_ptr = factor_ptr + r.to(tl.int64) * n
                    at_pick = tl.load(row_ptr + pick, mask=there, other=0.0)
                    both = there[:, None] & inside[None, :]
                    at_all = tl.load(row_ptr[:, None] + j[None, :], mask=both, other=0.0)
                    known += at_pick[:, None] * at_all
                entry = tl.load(k_ptr + pick.to(tl.int64) * n + j, mask=inside, other=0.0)
                fresh = (entry.to(tl.float64) - tl.sum(known, 0)) / tl.sqrt(rest)
                left = tl.load(left_ptr + j, mask=inside, other=0.0)
                tl.store(factor_ptr + rank.to(tl.int64) * n + j, fresh, mask=inside)
                tl.store(left_ptr + j, left - fresh * fresh, mask=inside)
            rank += 1
        tl.debug_barrier()


@triton.jit
def _log_left(left_ptr, noise_ptr, opened_ptr, column, n):  # type: ignore[no-untyped-def]
    inside = column < n
    left = tl.load(left_ptr + column, mask=inside, other=0.0)
    noise = tl.load(noise_ptr + column, mask=inside, other=0.0)
    opened = tl.load(opened_ptr + column, mask=inside, other=0) != 0
    alive = (left > noise) & opened
    return tl.where(alive, tl.log(tl.where(alive, left, 1.0)), MINUS)


@triton.jit(do_not_specialize=["longest"])
def scan_steps(  # type: ignore[no-untyped-def]
    cosine_ptr,
    slope_ptr,
    limits_ptr,
    remains_ptr,
    budget_ptr,
    kept_ptr,
    n,
    longest,
    BLOCK: tl.constexpr,
):
    """AgilePruner's scan over cosines of tokens in the order of attention. Grid: images.

    `limits` holds tau_max and the rounding of a distance.
    """
    image = tl.program_id(0).to(tl.int64)
    cosine_ptr += image * n * n
    remains_ptr += image * n
    kept_ptr += image * longest
    budget = tl.load(budget_ptr + image).to(tl.int32)
    slope = tl.load(slope_ptr + image)
    tau_max = tl.load(limits_ptr)
    rounding = tl.load(limits_ptr + 1)
    count = tl.zeros((), tl.int32)
    place = tl.zeros((), tl.int32)
    while (count < budget) & (place < n):
        tl.store(kept_ptr + count, place.to(tl.int64))
        count += 1
        least = tl.minimum(tau_max, count.to(tl.float64) * slope) - rounding
        least = least.to(cosine_ptr.dtype.element_ty)
        tl.debug_barrier()
        first = tl.zeros((BLOCK,), tl.int32) + n
        for start in range(0, n, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < n
            cosine = tl.load(cosine_ptr + place.to(tl.int64) * n + column, mask=inside, other=0.0)
            remains = tl.load(remains_ptr + column, mask=inside, other=0) != 0
            remains = remains & (1.0 - cosine >= least) & (column > place) & inside
            tl.store(remains_ptr + column, remains.to(tl.int8), mask=inside)
            first = tl.minimum(first, tl.where(remains, column, n))
        place = tl.min(first, 0)
        tl.debug_barrier()


def facility_location(
    similarity: Tensor,
    weights: Tensor | None,
    k: Any,
    rounding: float,
    parts: int | None = None,
    shape: tuple[int, int, int] | None = None,
) -> Picks:
    """Greedy facility location from matrices (..., N, N), as `torch_greedy.facility_location`.

    Parameters
    ----------
    parts
        Programs that share an image; chosen by its size when absent.
    shape
        Sizes (BLOCK, ROWS, COLUMNS) of the kernels' tiles; chosen when absent.
    """
    batch, n = tuple(similarity.shape[:-2]), int(similarity.shape[-1])
    s = plain.flat(similarity, 2).contiguous()
    images, device = len(s), s.device
    w = s
    if weights is not None:
        w = plain.flat(weights.detach().expand(*batch, n), 1).contiguous()
    budget, longest = plain.budgets(k, batch, device)
    wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
    indices = torch.empty(images, longest, dtype=torch.int64, device=device)
    gains = torch.empty(images, longest, **wide)
    if not indices.numel():
        nothing = torch.zeros(images, **wide)
        return _answer(batch, indices, gains, nothing, nothing)
    parts = _parts(images, n, device) if parts is None else parts
    block, tall, across = _tiles(n, parts, s.element_size()) if shape is None else shape
    weighted = {"WEIGHTED": weights is not None}
    constants = {**weighted, "ROUNDING": round(rounding / plain.EPSILON)}
    room = max(2, min(HISTORY, 4 * images * n * n) // (8 * images * n))
    rows = min(longest + 1, room)
    history = torch.empty(images, rows, n, **wide)
    with _on(device):
        grid = (images, triton.cdiv(n, 32))
        first_gains[grid](s, w, history, n, rows, **weighted, ROWS=64, COLUMNS=32)
        m, low, high = torch.empty(3, images, parts, n, dtype=s.dtype, device=device)
        heavy, known, exact = torch.empty(3, images, parts, n, **wide)
        listed = torch.empty(images, parts, n, dtype=torch.int32, device=device)
        terms = torch.empty(images, longest + 1, dtype=torch.int64, device=device)
        largest = torch.empty(images, **wide)
        sums = torch.empty(images, longest + 1, **wide)
        wait = parts > 1 and not INTERPRETED
        counters = listed
        for origin in range(0, longest, rows - 1):
            end = min(longest, origin + rows - 1)
            if origin:
                history[:, 0] = history[:, rows - 1]
            if wait:
                counters = torch.zeros(images, dtype=torch.int32, device=device)
            # Programs that cannot wait for each other make one pick a launch.
            stride = end - origin if wait or parts == 1 else 1
            for begin in range(origin, end, stride):
                greedy_steps[(images, parts)](
                    s,
                    w,
                    budget,
                    history,
                    m,
                    low,
                    high,
                    heavy,
                    known,
                    exact,
                    listed,
                    terms,
                    largest,
                    indices,
                    gains,
                    counters,
                    n,
                    longest,
                    rows,
                    origin,
                    begin,
                    begin + stride,
                    triton.cdiv(triton.cdiv(n, parts), 16) * 16,
                    PATIENCE,
                    **constants,
                    PARTS=parts,
                    WAIT=wait,
                    BLOCK=block,
                    ROWS=tall,
                    COLUMNS=across,
                    CACHE=".cg" if parts > 1 else "",
                    **_launch(8, wait),
                )
            largest_sums[(images, end - origin + 1)](
                history,
                budget,
                sums,
                n,
                longest,
                rows,
                origin,
                BLOCK=triton.next_power_of_2(n),
                **_launch(4 if n <= 4096 else 16),
            )
        value, bound = torch.empty(2, images, **wide)
        certify[(images,)](
            w,
            m,
            budget,
            gains,
            terms,
            largest,
            sums,
            value,
            bound,
            n,
            longest,
            parts,
            **constants,
            BLOCK=min(block, 1024),
            **_launch(4),
        )
    return _answer(batch, indices, gains, value, bound)


def farthest_first(distance: Tensor, k: Any, start: int | None, rounding: float = 0.0) -> Picks:
    """Farthest-first over distances (..., N, N), as `torch_greedy.farthest_first`."""
    batch, n = tuple(distance.shape[:-2]), int(distance.shape[-1])
    d = plain.flat(distance, 2).contiguous()
    budget, longest = plain.budgets(k, batch, d.device)
    indices, gains = _blank(len(d), longest, d.device)
    if len(d) and longest:
        nearest = torch.empty(len(d), n, dtype=d.dtype, device=d.device)
        with _on(d.device):
            nearest_other[(len(d), triton.cdiv(n, 32))](d, nearest, n, ROWS=64, COLUMNS=32)
            farthest_steps[(len(d),)](
                d,
                nearest,
                budget,
                indices,
                gains,
                n,
                longest,
                -1 if start is None else start,
                ROUNDING=round(rounding / plain.EPSILON),
                BLOCK=_block(n),
                **_launch(8),
            )
    value = plain.smallest_between(d, indices)
    return _answer(batch, indices, gains, value)


def determinant(kernel: Tensor, k: Any) -> Picks:
    """Greedy log-determinant of kernels (..., N, N), as `torch_greedy.determinant`."""
    batch, n = tuple(kernel.shape[:-2]), int(kernel.shape[-1])
    x = plain.flat(kernel, 2).contiguous()
    budget, longest = plain.budgets(k, batch, x.device)
    indices, gains = _blank(len(x), longest, x.device)
    if len(x) and longest:
        left = x.diagonal(dim1=-2, dim2=-1).double().contiguous()
        noise = 128 * torch.finfo(x.dtype).eps * left
        opened = torch.ones(len(x), n, dtype=torch.int8, device=x.device)
        factor = torch.empty(len(x), longest, n, dtype=torch.float64, device=x.device)
        with _on(x.device):
            cholesky_steps[(len(x),)](
                x,
                left,
                noise,
                opened,
                factor,
                budget,
                indices,
                gains,
                n,
                longest,
                BLOCK=_block(n),
                ROWS=8,
                COLUMNS=min(_block(n), 1024),
                **_launch(8),
            )
    return _answer(batch, indices, gains, gains.sum(-1))


def threshold_scan(
    directions: Tensor, scores: Tensor, k: Any, step: np.ndarray[Any, Any], tau_max: float
) -> tuple[Tensor, Tensor]:
    """AgilePruner's scan on unit vectors (..., N, D), as `torch_greedy.threshold_scan`."""
    batch, n = tuple(directions.shape[:-2]), int(directions.shape[-2])
    x, order = plain.by_score(directions, scores)
    budget, longest = plain.budgets(k, batch, x.device)
    kept = torch.full((len(x), longest), -1, device=x.device)
    if len(x) and longest:
        limits = np.asarray([tau_max, 8 * torch.finfo(x.dtype).eps])
        with _on(x.device):
            scan_steps[(len(x),)](
                x @ x.mT,
                plain.on_device(step, x.device),
                plain.on_device(limits, x.device),
                torch.ones(len(x), n, dtype=torch.int8, device=x.device),
                budget,
                kept,
                n,
                longest,
                BLOCK=_block(n),
                **_launch(8),
            )
    return plain.filled_up(kept, order, budget, longest, batch)


def _blank(images: int, longest: int, device: torch.device) -> tuple[Tensor, Tensor]:
    indices = torch.full((images, longest), -1, device=device)
    return indices, torch.zeros(images, longest, dtype=torch.float64, device=device)


def _answer(
    batch: tuple[int, ...],
    indices: Tensor,
    gains: Tensor,
    value: Tensor,
    bound: Tensor | None = None,
) -> Picks:
    if bound is None:
        bound = torch.full_like(value, math.inf)
    longest = indices.shape[1]
    return Picks(
        indices.view(*batch, longest),
        gains.view(*batch, longest),
        value.view(batch),
        bound.view(batch),
    )


def _block(n: int) -> int:
    """Numbers of a row that a program holds at once."""
    return max(32, min(4096, int(triton.next_power_of_2(n))))


def _tiles(n: int, parts: int, width: int) -> tuple[int, int, int]:
    """BLOCK, ROWS and COLUMNS of `greedy_steps` for entries of `width` bytes, in eight warps."""
    if parts == 1:
        # As many rows in flight as registers hold.
        return _block(n), 64 // width, min(_block(n), 1024)
    return _block(n), 32, SHARED


def _on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _launch(warps: int, together: bool = False) -> dict[str, Any]:
    """Options of a launch; `together` asks the device to run all its programs at once."""
    options: dict[str, Any] = {"num_warps": warps}
    if together:
        options["launch_cooperative_grid"] = True
    return options


def _parts(images: int, n: int, device: torch.device) -> int:
    """How many programs share an image: several where images are large and few."""
    if device.type != "cuda" or n <= ALONE:
        return 1
    parts = min(triton.cdiv(n, SHARED), _processors(device) // images)
    return int(parts) if parts > 1 and _share(device) else 1


@functools.cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _share(device: torch.device) -> bool:
    """Whether programs that wait for each other at every pick give the right answer here."""
    try:
        return _wrong_facility(device, 5) is None
    except Exception as error:
        warnings.warn(
            f"one program looks after each image, however large: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False


def _wrong_facility(device: torch.device, parts: int) -> str | None:
    """What is wrong with facility location on a small problem full of ties, if anything is."""
    i = torch.arange(4 * 97 * 97, device=device, dtype=torch.float64)
    s = (1.0 + torch.sin(i * i).view(4, 97, 97)) / 2.0
    s[1] = torch.round(3.0 * s[1])
    s[2, 50:] = s[2, :47]
    s[3] = 0.7
    w = (i[: 4 * 97].view(4, 97) % 5.0) / 4.0
    k = np.asarray([40, 97, 33, 5])
    for matrix in (s, s.float()):
        fast = facility_location(matrix, w, k, 0.0, parts)
        slow = plain.facility_location(matrix, w, k, 0.0)
        for name, x, y in zip(Picks._fields, fast, slow, strict=True):
            if not torch.allclose(x.double(), y.double(), rtol=1e-9, atol=1e-9):
                return f"facility location with {parts} programs an image: wrong {name}"
    return None


def disagreement(device: torch.device) -> str | None:
    """What the kernels get wrong on small problems on this device; None if nothing."""
    wrong = _wrong_facility(device, 1)
    if wrong is not None:
        return wrong
    i = torch.arange(2 * 61 * 5, device=device, dtype=torch.float64)
    x = torch.nn.functional.normalize(torch.sin(i * i).view(2, 61, 5), dim=-1)
    x[1, 40:50] = x[1, 3]
    k = np.asarray([61, 20])
    both = (sys.modules[__name__], plain)
    cosine = x @ x.mT
    # Far from singular: nothing hangs on how an error of rounding falls.
    kernel = cosine + 0.1 * torch.eye(61, dtype=torch.float64, device=device)
    step = np.asarray([0.01, 0.05])
    pairs = {
        "farthest-first": [each.farthest_first(1.0 - cosine, k, None) for each in both],
        "determinant": [each.determinant(kernel, k) for each in both],
        "threshold scan": [
            each.threshold_scan(x, i[: 2 * 61].view(2, 61) % 7.0, k, step, 0.5) for each in both
        ],
    }
    for name, (fast, slow) in pairs.items():
        for a, b in zip(fast, slow, strict=True):
            if not torch.allclose(a.double(), b.double(), rtol=1e-9, atol=1e-9):
                return f"wrong picks of {name}"
    return None
