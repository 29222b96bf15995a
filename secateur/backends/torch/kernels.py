"""Greedy in Triton kernels: all picks of an image in one launch, on the device from end to end.

One program keeps an image's state in its own scratch and loops over the picks; a large image is
shared by several programs, each with its own columns of the matrix. State in global memory is
written and read by the same program between barriers, so that it needs no other program's
finishing; gains, which the programs of an image exchange, go through `history`, one row a pick,
never overwritten within a launch. There are no sums by atomics: the same input takes the same
steps on every run.

A kernel is compiled anew only for another N divisible by 16 or not, another dtype and another
set of constants, not for another k.

Every loop is a `for` over a range, or says what bounds it. NaN is not looked for: an entry that
is NaN compares with nothing, so it serves nobody, and gains that overflow still leave a lowest
open token to pick. Maxima are written as comparisons where NaN may come: `tl.maximum` leaves
open what becomes of it.

Sums are in float64. The rule for ties and the second look at all who could be the best are
those of `secateur.core.maximize.incremental`.
"""

from __future__ import annotations

import triton
import triton.language as tl

EPSILON: tl.constexpr = tl.constexpr(2.0**-52)
MINUS: tl.constexpr = tl.constexpr(float("-inf"))
PLUS: tl.constexpr = tl.constexpr(float("inf"))
LOWEST: tl.constexpr = tl.constexpr(-1.7e308)
"""Below the gain of every open token, above that of those picked."""


@triton.jit
def _weights(w_ptr, i, mask, WEIGHTED: tl.constexpr):  # type: ignore[no-untyped-def]
    if WEIGHTED:
        w = tl.load(w_ptr + i, mask=mask, other=0.0).to(tl.float64)
    else:
        w = tl.where(mask, 1.0, 0.0).to(tl.float64)
    return w


@triton.jit
def _rise(entry, served):  # type: ignore[no-untyped-def]
    return tl.where(entry > served, entry - served, 0.0)


@triton.jit
def _number(x):  # type: ignore[no-untyped-def]
    """0 where x is NaN, the difference of two infinities."""
    return tl.where(x == x, x, 0.0)


@triton.jit
def _floor(level):  # type: ignore[no-untyped-def]
    """A level that every open token's gain may reach, should it be NaN or minus infinity."""
    return tl.where(level > LOWEST, level, LOWEST)


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
        total += w[:, None] * tl.where(s > 0.0, s, 0.0).to(tl.float64)
    tl.store(history_ptr + image * rows * n + j, _number(tl.sum(total, 0)), mask=inside)


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
        total += w * _rise(s.to(tl.float64), m.to(tl.float64))
    return _number(tl.sum(total, 0))


@triton.jit
def _alone(counter_ptr, expected, patience):  # type: ignore[no-untyped-def]
    """Wait until all programs of the image have come here; True when patience ran out."""
    tl.debug_barrier()
    seen = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") + 1
    tries = tl.zeros((), tl.int32)
    # At most `patience` rounds, whatever became of the others.
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
        reach = _number(tl.sum(weight, 0) * (ROUNDING * EPSILON))
    tl.debug_barrier()

    for t in range(begin, tl.minimum(end, budget)):
        now_ptr = history_ptr + (t - origin).to(tl.int64) * n
        slack = 4.0 * EPSILON * terms.to(tl.float64) * largest + reach
        best = _largest(now_ptr, n, BLOCK, CACHE)
        least = _floor(best - 2.0 * slack - (4.0 * EPSILON * n * tl.abs(best) + reach))
        pick = _next_hopeful(now_ptr, -1, least, n, BLOCK, CACHE)
        rival = _next_hopeful(now_ptr, pick, least, n, BLOCK, CACHE)
        if rival < n:
            rival = pick
            most = tl.full((), MINUS, tl.float64)
            # At most n rounds: each rival lies past the one before.
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
            enough = _floor(most - (4.0 * EPSILON * n * tl.abs(most) + reach))
            first = tl.zeros((BLOCK,), tl.int32) + n
            for start in range(0, n, BLOCK):
                column = start + tl.arange(0, BLOCK)
                inside = column < n
                g = tl.load(now_ptr + column, mask=inside, other=MINUS, cache_modifier=CACHE)
                worked_out = tl.load(exact_ptr + column, mask=inside, other=MINUS)
                level = (g >= least) & (worked_out >= enough) & inside
                first = tl.minimum(first, tl.where(level, column, n))
            pick = tl.min(first, 0)
        # An open token is left, as t < budget <= n, and it reaches the floor; should it not,
        # stay within the matrix.
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
                held = tl.where(s > low[:, None], s, low[:, None])
                held = tl.minimum(held, high[:, None])
                fall = w[:, None] * (held.to(tl.float64) - low.to(tl.float64)[:, None])
                # Narrow tiles spread a column over warps, which then add up only once.
                if PARTS > 1:
                    lost += fall
                else:
                    lost += tl.sum(fall, 0)[None, :]
            before = tl.load(now_ptr + j, mask=own, other=MINUS, cache_modifier=CACHE)
            gone = (j == pick) | (before == MINUS)
            after = tl.where(gone, MINUS, _number(before - tl.sum(lost, 0)))
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
    """The value of the picks and the smallest bound of their prefixes. Grid: images.

    Where a sum overflowed, 0 and infinity, which certify nothing.
    """
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
    total = tl.sum(value, 0)
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
    limit = tl.min(bound, 0)
    known = (tl.abs(total) < PLUS) & (limit == limit)
    tl.store(value_ptr + image, tl.where(known, total, 0.0))
    tl.store(bound_ptr + image, tl.where(known, limit, PLUS))


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
        d = tl.load(d_ptr + entry, mask=wanted, other=PLUS)
        smallest = tl.where(d < smallest, d, smallest)
    tl.store(nearest_ptr + image * n + j, tl.min(smallest, 0), mask=j < n)


@triton.jit(do_not_specialize=["longest", "forced"])
def farthest_steps(  # type: ignore[no-untyped-def]
    d_ptr,
    nearest_ptr,
    budget_ptr,
    indices_ptr,
    gains_ptr,
    value_ptr,
    n,
    longest,
    forced,
    ROUNDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All picks of farthest-first, the first one `forced` unless negative. Grid: images.

    The value is the smallest distance between two picks, infinity where there are no two.

    A token that was picked is marked by a distance of minus infinity; a distance that is NaN
    counts as infinite, so that those of open tokens are numbers above it.
    """
    image = tl.program_id(0).to(tl.int64)
    d_ptr += image * n * n
    nearest_ptr += image * n
    indices_ptr += image * longest
    gains_ptr += image * longest
    budget = tl.load(budget_ptr + image).to(tl.int32)
    between = tl.full((BLOCK,), PLUS, d_ptr.dtype.element_ty)
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
            known = tl.full((BLOCK,), PLUS, d_ptr.dtype.element_ty)
            if t > 0:
                known = tl.load(nearest_ptr + row, mask=there, other=0.0)
            picked = known == MINUS
            back = tl.load(d_ptr + pick.to(tl.int64) * n + row, mask=picked, other=PLUS)
            between = tl.where(picked & (d < between), d, between)
            between = tl.where(back < between, back, between)
            d = tl.where(d < known, d, known)
            tl.store(nearest_ptr + row, tl.where(row == pick, MINUS, d), mask=there)
        tl.debug_barrier()
    tl.store(value_ptr + image, tl.min(between, 0).to(tl.float64))


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
    order_ptr,
    budget_ptr,
    indices_ptr,
    filled_ptr,
    n,
    longest,
    BLOCK: tl.constexpr,
):
    """AgilePruner's scan over cosines of tokens in the order of attention. Grid: images.

    `limits` holds tau_max and the rounding of a distance, `order` which token stands where. Slots
    that the scan leaves go to the first places of the order that it did not keep.
    """
    image = tl.program_id(0).to(tl.int64)
    cosine_ptr += image * n * n
    remains_ptr += image * n
    order_ptr += image * n
    indices_ptr += image * longest
    budget = tl.load(budget_ptr + image).to(tl.int32)
    slope = tl.load(slope_ptr + image)
    tau_max = tl.load(limits_ptr)
    rounding = tl.load(limits_ptr + 1)
    count = tl.zeros((), tl.int32)
    place = tl.zeros((), tl.int32)
    # At most n rounds: the next place lies past this one.
    while (count < budget) & (place < n):
        tl.store(indices_ptr + count, place.to(tl.int64))
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
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)
        tl.store(remains_ptr + column, tl.full((BLOCK,), 1, tl.int8), mask=column < n)
    tl.debug_barrier()
    for t in range(0, count):
        at = tl.load(indices_ptr + t)
        tl.store(remains_ptr + at, 0)
        tl.store(indices_ptr + t, tl.load(order_ptr + at))
    tl.debug_barrier()
    slot = count
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)
        free = tl.load(remains_ptr + column, mask=column < n, other=0).to(tl.int32)
        at = slot + tl.cumsum(free, 0) - 1
        token = tl.load(order_ptr + column, mask=column < n, other=0)
        tl.store(indices_ptr + at, token, mask=(free != 0) & (at < budget))
        slot += tl.sum(free, 0)
    tl.store(filled_ptr + image, (budget - count).to(tl.int64))
