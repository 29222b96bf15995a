"""Loops that Numba compiles, cached on disk.

Each is the inner part of an operation of the NumPy driver. None runs threads of its own: all
release the interpreter's lock, so that images of a batch run side by side.

Compiled code checks no bounds, and a loop that never ends cannot be interrupted. Every loop here
is a `for` over a range, or says what bounds it. NaN meets only kernels marked `sees_nan` or
`exact`, which keep it or count it; those marked `regroup` come after `summable` has let the
gains pass, and where these are finite no entry with a weight is NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

EPSILON = float(np.finfo(np.float64).eps)
TINY = float(np.finfo(np.float64).tiny)

STRIDE = 64
"""Numbers looked at together, in vector lanes, before one is looked at alone."""

# Sums may be regrouped into vector lanes; infinities stay meaningful.
sees_nan = njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
regroup = njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "nnan", "contract"})
exact = njit(cache=True, nogil=True)


@sees_nan
def gains_of_rows(s: Any, w: Any, g: Any) -> None:
    """Set g_j to sum_i w_i max(0, s_ij), for rows (H, N). NaN stays NaN: 0 > NaN is false."""
    h, n = s.shape
    g[:] = 0.0
    whole = h - h % 4
    for i in range(0, whole, 4):
        a, b, c, d = s[i], s[i + 1], s[i + 2], s[i + 3]
        wa, wb, wc, wd = w[i], w[i + 1], w[i + 2], w[i + 3]
        for j in range(n):
            sa = 0.0 if 0.0 > a[j] else a[j]
            sb = 0.0 if 0.0 > b[j] else b[j]
            sc = 0.0 if 0.0 > c[j] else c[j]
            sd = 0.0 if 0.0 > d[j] else d[j]
            g[j] += wa * sa + wb * sb + wc * sc + wd * sd
    for i in range(whole, h):
        for j in range(n):
            g[j] += w[i] * (0.0 if 0.0 > s[i, j] else s[i, j])


@sees_nan
def first_gains(s: Any, w: Any, g: Any) -> bool:
    """Set g_j to sum_i w_i r_ij with r = max(0, s); whether r is symmetric but for rounding.

    NaN stays NaN: 0 > NaN is false.

    One pass: r is symmetric if r z = r^T z for a random z in [1, 2), unless entries that differ
    cancel to 15 digits. What is no square is not asked.
    """
    n = len(g)
    if len(s) != n:
        gains_of_rows(s, w, g)
        return False
    z = np.empty(n)
    state = np.uint64(1)
    for j in range(n):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        z[j] = 1.0 + (state >> np.uint64(11)) * 2.0**-53
    by_row = np.empty(n)
    by_column = np.zeros(n)
    g[:] = 0.0
    whole = n - n % 4
    for i in range(0, whole, 4):
        a, b, c, d = s[i], s[i + 1], s[i + 2], s[i + 3]
        wa, wb, wc, wd = w[i], w[i + 1], w[i + 2], w[i + 3]
        za, zb, zc, zd = z[i], z[i + 1], z[i + 2], z[i + 3]
        ra = rb = rc = rd = 0.0
        for j in range(n):
            sa = 0.0 if 0.0 > a[j] else a[j]
            sb = 0.0 if 0.0 > b[j] else b[j]
            sc = 0.0 if 0.0 > c[j] else c[j]
            sd = 0.0 if 0.0 > d[j] else d[j]
            g[j] += wa * sa + wb * sb + wc * sc + wd * sd
            by_column[j] += za * sa + zb * sb + zc * sc + zd * sd
            ra += sa * z[j]
            rb += sb * z[j]
            rc += sc * z[j]
            rd += sd * z[j]
        by_row[i], by_row[i + 1], by_row[i + 2], by_row[i + 3] = ra, rb, rc, rd
    for i in range(whole, n):
        by_row[i] = 0.0
        for j in range(n):
            r = 0.0 if 0.0 > s[i, j] else s[i, j]
            g[j] += w[i] * r
            by_column[j] += z[i] * r
            by_row[i] += z[j] * r
    differ = 0
    for j in range(n):
        alike = by_row[j] < math.inf and abs(by_row[j] - by_column[j]) <= 64.0 * EPSILON * by_row[j]
        differ += not alike
    return differ == 0


@exact
def summable(g: Any) -> bool:
    """Whether all gains are numbers, and what greedy adds up of them stays within float64.

    No set is worth more than all gains together, and no bound adds up more than twice that.
    """
    total = 0.0
    for j in range(len(g)):
        total += g[j]
    return math.isfinite(4.0 * total)


@regroup
def fetch_column(s: Any, symmetric: bool, j: int, column: Any) -> None:
    """Column j, which is row j of a symmetric matrix."""
    if symmetric:
        row = s[j]
        for i in range(len(column)):
            column[i] = row[i]
    else:
        for i in range(len(column)):
            column[i] = s[i, j]


@regroup
def gain_of(column: Any, m: Any, w: Any) -> float:
    """sum_i w_i max(0, s_ij - m_i)."""
    gain = 0.0
    for i in range(len(m)):
        gain += w[i] * max(column[i] - m[i], 0.0)
    return gain


@regroup
def best_of(g: Any) -> float:
    """The largest number. Eight running ones: one would wait for itself at every step."""
    n = len(g)
    a = b = c = d = e = f = p = q = -math.inf
    whole = n - n % 8
    for j in range(0, whole, 8):
        a, b, c, d = max(a, g[j]), max(b, g[j + 1]), max(c, g[j + 2]), max(d, g[j + 3])
        e, f, p, q = max(e, g[j + 4]), max(f, g[j + 5]), max(p, g[j + 6]), max(q, g[j + 7])
    for j in range(whole, n):
        a = max(a, g[j])
    return max(max(max(a, b), max(c, d)), max(max(e, f), max(p, q)))


@regroup
def lower_dense(s: Any, rows: Any, low: Any, high: Any, w: Any, g: Any) -> None:
    """Take from g_j what rows no longer give: w_i (min(max(s_ij, low_i), high_i) - low_i).

    `low` and `high` in the dtype of s: single numbers are held between them many at a time, and
    made double ones after.
    """
    n = len(g)
    count = len(rows)
    whole = count - count % 8
    for t in range(0, whole, 8):
        a, b, c, d = s[rows[t]], s[rows[t + 1]], s[rows[t + 2]], s[rows[t + 3]]
        e, f, p, q = s[rows[t + 4]], s[rows[t + 5]], s[rows[t + 6]], s[rows[t + 7]]
        la, lb, lc, ld = low[t], low[t + 1], low[t + 2], low[t + 3]
        le, lf, lp, lq = low[t + 4], low[t + 5], low[t + 6], low[t + 7]
        ha, hb, hc, hd = high[t], high[t + 1], high[t + 2], high[t + 3]
        he, hf, hp, hq = high[t + 4], high[t + 5], high[t + 6], high[t + 7]
        wa, wb, wc, wd = w[t], w[t + 1], w[t + 2], w[t + 3]
        we, wf, wp, wq = w[t + 4], w[t + 5], w[t + 6], w[t + 7]
        for j in range(n):
            four = wa * (np.float64(min(max(a[j], la), ha)) - np.float64(la))
            four += wb * (np.float64(min(max(b[j], lb), hb)) - np.float64(lb))
            four += wc * (np.float64(min(max(c[j], lc), hc)) - np.float64(lc))
            four += wd * (np.float64(min(max(d[j], ld), hd)) - np.float64(ld))
            more = we * (np.float64(min(max(e[j], le), he)) - np.float64(le))
            more += wf * (np.float64(min(max(f[j], lf), hf)) - np.float64(lf))
            more += wp * (np.float64(min(max(p[j], lp), hp)) - np.float64(lp))
            more += wq * (np.float64(min(max(q[j], lq), hq)) - np.float64(lq))
            g[j] -= four + more
    for t in range(whole, count):
        row, lo, hi, weight = s[rows[t]], low[t], high[t], w[t]
        for j in range(n):
            g[j] -= weight * (np.float64(min(max(row[j], lo), hi)) - np.float64(lo))


@regroup
def sum_above(g: Any, level: float) -> tuple[int, float]:
    """How many gains exceed a level, and their sum."""
    count = 0
    total = 0.0
    for j in range(len(g)):
        above = g[j] > level
        count += above
        total += g[j] if above else 0.0
    return count, total


@regroup
def leaders(g: Any, least: float) -> tuple[int, int]:
    """How many gains reach a level, and the sum of their places: the place, if it is one."""
    count = 0
    places = 0
    for j in range(len(g)):
        reaches = g[j] >= least
        count += reaches
        places += j if reaches else 0
    return count, places


@exact
def within(x: Any, low: float, high: float, found: Any) -> int:
    """Places, ascending, of the numbers in (low, high]."""
    count = 0
    for j in range(len(x)):
        if low < x[j] <= high:
            found[count] = j
            count += 1
    return count


@regroup
def exceeding(x: Any, y: Any, found: Any) -> int:
    """Places, ascending, where x exceeds y. Most stretches hold none and are passed over."""
    n = len(x)
    count = 0
    whole = n - n % STRIDE
    for start in range(0, whole, STRIDE):
        here = 0
        for t in range(STRIDE):
            here += x[start + t] > y[start + t]
        if here > 0:
            for t in range(STRIDE):
                found[count] = start + t
                count += x[start + t] > y[start + t]
    for j in range(whole, n):
        found[count] = j
        count += x[j] > y[j]
    return count


@exact
def top_sum(g: Any, k: int, level: float, work: Any, places: Any) -> tuple[float, float]:
    """The sum of the k largest positive gains, and a level that at most k gains exceed.

    The gains are finite, or minus infinity.

    Gains only shrink, so the level of an earlier call still holds. Going down from there in
    growing steps encloses the k-th, and halving by proportion finds a level that exactly k
    exceed, or leaves a few between two levels, ties for instance, to choose from.
    """
    above, total = sum_above(g, level)
    if above > k:
        # A gain worked out anew may rise by its rounding.
        level = best_of(g)
        above, total = 0, 0.0
    step = max(1e-3 * level, TINY)
    # Six rounds at most: the step begins at a thousandth of the level, or above it, and grows
    # fourfold, while the level falls.
    while True:
        lower = max(level - step, 0.0)
        count, more = sum_above(g, lower)
        if count >= k or lower == 0.0:
            break
        level, above, total = lower, count, more
        step *= 4.0
    if count <= k:
        return more, lower
    if above == k:
        return total, level
    for _ in range(8):
        middle = lower + (level - lower) * (count - k) / (count - above)
        if not lower < middle < level:
            break
        here, sums = sum_above(g, middle)
        if here == k:
            return sums, middle
        if here > k:
            lower, count = middle, here
        else:
            level, above, total = middle, here, sums
    found = within(g, lower, level, places)
    for place in range(found):
        work[place] = g[places[place]]
    wanted = k - above
    select(work, found, wanted)
    for place in range(wanted):
        total += work[place]
        level = min(level, work[place])
    return total, level


@exact
def select(x: Any, n: int, k: int) -> None:
    """Bring the k largest of the first n numbers, none NaN, to the front, in no order.

    The inner loops stop at the pivot, or at what an earlier swap has put in their way; a round
    ends with low < i or j < high, so that the stretch low .. high shrinks.
    """
    low, high = 0, n - 1
    while low < high:
        pivot = x[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while x[i] > pivot:
                i += 1
            while x[j] < pivot:
                j -= 1
            if i <= j:
                x[i], x[j] = x[j], x[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            return


@exact
def greedy_dense(
    s: Any, w: Any, k: int, rounding: float, picks: Any, gains: Any
) -> tuple[float, float]:
    """Greedy facility location on a matrix (H, N): fills picks and gains; value and upper bound.

    Gains closer than `rounding`, what that of the entries can do to a gain, count as equal. Where
    the gains are not `summable` nothing is picked, and value and bound are NaN.
    """
    h, n = s.shape
    g = np.empty(n)
    m = np.zeros(h)
    column = np.empty(h)
    work = np.empty(n)
    places = np.empty(max(h, n) + 1, dtype=np.int64)
    low = np.empty(h, dtype=s.dtype)
    high = np.empty(h, dtype=s.dtype)
    heavy = np.empty(h)
    symmetric = first_gains(s, w, g)
    if not summable(g):
        return math.nan, math.nan
    # From here on gains are finite, but for minus infinity where a token is picked. At pick
    # step < k <= n an open one is left: the best gain and the levels below it are finite, and
    # the best one reaches them, so that there is a leader at every pick.
    # The gains last worked out exactly; one that still equals its g_j needs no second look.
    known = g.copy()
    largest = best_of(g)
    level = largest
    terms = h
    share = 4.0 * max(h, n) * EPSILON
    total = 0.0
    bound = math.inf
    for step in range(k):
        slack = 4.0 * EPSILON * terms * largest
        top, level = top_sum(g, k, level, work, places)
        bound = min(bound, total + k * slack + top)
        best = best_of(g)
        least = best - 2.0 * slack - share * abs(best) - rounding
        at_hand = -1
        hopeful, pick = leaders(g, least)
        if hopeful > 1:
            hopeful = within(g, np.nextafter(least, -math.inf), math.inf, places)
        else:
            places[0] = pick
        best = -math.inf
        for place in range(hopeful):
            j = places[place]
            if g[j] != known[j]:
                fetch_column(s, symmetric, j, column)
                at_hand = j
                g[j] = gain_of(column, m, w)
                known[j] = g[j]
            best = max(best, g[j])
        least = best - share * abs(best) - rounding
        place = 0
        while place < hopeful - 1 and g[places[place]] < least:
            place += 1
        pick = places[place]
        picks[step] = pick
        gains[step] = g[pick]
        total += g[pick]
        g[pick] = -math.inf
        if at_hand != pick:
            fetch_column(s, symmetric, pick, column)
        count = exceeding(column, m, places)
        for place in range(count):
            i = places[place]
            low[place] = m[i]
            high[place] = column[i]
            heavy[place] = w[i]
            m[i] = column[i]
        terms += count
        lower_dense(s, places[:count], low[:count], high[:count], heavy[:count], g)
    slack = 4.0 * EPSILON * terms * largest
    top, level = top_sum(g, k, level, work, places)
    bound = min(bound, total + k * slack + top)
    value = 0.0
    for i in range(h):
        value += w[i] * m[i]
    return value, bound


@regroup
def lower_rows(s: Any, low: Any, high: Any, w: Any, g: Any) -> None:
    """The same for rows s (M, N) at hand."""
    lower_dense(s, np.arange(len(low)), low, high, w, g)


@regroup
def lower_both(s: Any, high: Any, w: Any, g: Any) -> None:
    """Take from gains what rows served by none before no longer give.

    Entries s (M, N) are those of the first M rows; what they say of the other rows and the first M
    candidates is taken as well.
    """
    count, n = s.shape
    whole = count - count % 4
    for i in range(0, whole, 4):
        a, b, c, d = s[i], s[i + 1], s[i + 2], s[i + 3]
        ha, hb, hc, hd = high[i], high[i + 1], high[i + 2], high[i + 3]
        wa, wb, wc, wd = w[i], w[i + 1], w[i + 2], w[i + 3]
        for j in range(n):
            g[j] -= (
                wa * min(a[j], ha) + wb * min(b[j], hb) + wc * min(c[j], hc) + wd * min(d[j], hd)
            )
        ta, tb, tc, td = 0.0, 0.0, 0.0, 0.0
        for j in range(count, n):
            limit, weight = high[j], w[j]
            ta += weight * min(a[j], limit)
            tb += weight * min(b[j], limit)
            tc += weight * min(c[j], limit)
            td += weight * min(d[j], limit)
        g[i] -= ta
        g[i + 1] -= tb
        g[i + 2] -= tc
        g[i + 3] -= td
    for i in range(whole, count):
        row = s[i]
        for j in range(n):
            g[j] -= w[i] * min(row[j], high[i])
        total = 0.0
        for j in range(count, n):
            total += w[j] * min(row[j], high[j])
        g[i] -= total


@exact
def count_above(s: Any, limit: Any, count: Any) -> None:
    """How many entries of each row of s (M, N) exceed its limit."""
    for i in range(len(s)):
        row, least = s[i], limit[i]
        above = 0
        for j in range(len(row)):
            above += row[j] > least
        count[i] = above


@exact
def note_above(s: Any, limit: Any, starts: Any, near: Any, level: Any) -> None:
    """Write which these are, and the entries, from `starts` on; not where one is negative."""
    for i in range(len(s)):
        if starts[i] >= 0:
            row, least, place = s[i], limit[i], starts[i]
            for j in range(len(row)):
                if row[j] > least:
                    near[place] = j
                    level[place] = row[j]
                    place += 1


@exact
def drop_overtaken(rows: Any, limit: Any, near: Any, level: Any, starts: Any, count: Any) -> int:
    """Move entries that exceed their row's limit to the front; how many they are.

    `rows` come as their lists lie in memory.
    """
    used = 0
    for i in rows:
        first, last, least = starts[i], starts[i] + count[i], limit[i]
        starts[i] = used
        for place in range(first, last):
            if level[place] > least:
                near[used] = near[place]
                level[used] = level[place]
                used += 1
        count[i] = used - starts[i]
    return used


@exact
def turn_lists(
    near: Any,
    level: Any,
    first: Any,
    count: Any,
    m: Any,
    w: Any,
    starts: Any,
    rows: Any,
    gains: Any,
    heavy: Any,
) -> None:
    """Lists of rows by candidate: `starts` (N + 1,), all zero at first, and `rows`, ascending.

    To gains, what each candidate would add to coverage m of these rows is added, and to heavy
    what they weigh.
    """
    size = len(gains)
    for i in range(len(first)):
        for place in range(first[i], first[i] + count[i]):
            starts[near[place] + 1] += 1
    for j in range(size):
        starts[j + 1] += starts[j]
    at = starts[:size].copy()
    for i in range(len(first)):
        for place in range(first[i], first[i] + count[i]):
            j = near[place]
            rows[at[j]] = i
            at[j] += 1
            gains[j] += w[i] * max(level[place] - m[i], 0.0)
            heavy[j] += w[i]


@exact
def lower_by_lists(
    g: Any, near: Any, level: Any, starts: Any, count: Any, w: Any, low: Any, high: Any
) -> None:
    """Take from gains what rows, listed at `starts` in flat arrays, no longer give."""
    for each in range(len(starts)):
        lo, hi, weight = low[each], high[each], w[each]
        for place in range(starts[each], starts[each] + count[each]):
            s = level[place]
            if s > lo:
                g[near[place]] -= weight * (min(s, hi) - lo)


@sees_nan
def shift(cosine: Any) -> None:
    """Write (1 + cos) / 2 over cosines, held within [0, 1] against rounding; NaN stays NaN."""
    flat = cosine.reshape(-1)
    half, zero, one = flat.dtype.type(0.5), flat.dtype.type(0.0), flat.dtype.type(1.0)
    for place in range(len(flat)):
        entry = half * flat[place] + half
        entry = zero if zero > entry else entry
        flat[place] = one if one < entry else entry


@sees_nan
def cosine_of(x: Any, y: Any) -> Any:
    """The product of two unit vectors, in their dtype."""
    total = x.dtype.type(0.0)
    for d in range(len(x)):
        total += x[d] * y[d]
    return total


@sees_nan
def wide_cosine_of(x: Any, y: Any) -> float:
    """The same in float64."""
    total = 0.0
    for d in range(len(x)):
        total += np.float64(x[d]) * np.float64(y[d])
    return total


@regroup
def similarities_to(x: Any, j: int, column: Any) -> None:
    """(1 + cos) / 2 of unit vectors (N, D) with the j-th."""
    half, zero, one = x.dtype.type(0.5), x.dtype.type(0.0), x.dtype.type(1.0)
    for i in range(len(x)):
        column[i] = min(max(half * cosine_of(x[i], x[j]) + half, zero), one)


@regroup
def similarities_at(x: Any, rows: Any, j: int, column: Any) -> None:
    """The same at some rows."""
    half, zero, one = x.dtype.type(0.5), x.dtype.type(0.0), x.dtype.type(1.0)
    for place in range(len(rows)):
        cosine = cosine_of(x[rows[place]], x[j])
        column[place] = min(max(half * cosine + half, zero), one)


@sees_nan
def unit_rows(x: Any, out: Any) -> None:
    """Rows scaled to length one; zero rows stay zero, rows with NaN or infinity get NaN.

    Squares are summed in float64.
    """
    for r in range(len(x)):
        row, to = x[r], out[r]
        squares = 0.0
        for d in range(len(row)):
            squares += np.float64(row[d]) * np.float64(row[d])
        if 1e-200 < squares < 1e200:
            length = row.dtype.type(math.sqrt(squares))
            for d in range(len(row)):
                to[d] = row[d] / length
            continue
        # Out of the range of squares: by the largest entry first.
        largest = row.dtype.type(0.0)
        for d in range(len(row)):
            largest = max(largest, abs(row[d]))
        squares = 0.0
        for d in range(len(row)):
            to[d] = row[d] / largest if largest > 0.0 else row[d]
            squares += np.float64(to[d]) * np.float64(to[d])
        length = row.dtype.type(math.sqrt(squares)) if squares > 0.0 else row.dtype.type(1.0)
        for d in range(len(row)):
            to[d] /= length


@exact
def explain_row(factor: Any, rank: int, pick: int, length: float) -> None:
    """Make a row of the kernel, the one of a pick, that of its Cholesky factor."""
    row = factor[rank]
    n = len(row)
    whole = rank - rank % 4
    for t in range(0, whole, 4):
        a, b, c, d = factor[t], factor[t + 1], factor[t + 2], factor[t + 3]
        pa, pb, pc, pd = a[pick], b[pick], c[pick], d[pick]
        for j in range(n):
            row[j] = (((row[j] - a[j] * pa) - b[j] * pb) - c[j] * pc) - d[j] * pd
    for t in range(whole, rank):
        a = factor[t]
        pa = a[pick]
        for j in range(n):
            row[j] -= a[j] * pa
    for j in range(n):
        row[j] /= length


@exact
def explain(kernel: Any, k: int, epsilon: float, picks: Any, gains: Any) -> None:
    """Greedy log-determinant by incremental Cholesky, in the order of the reference.

    What is left that is not a number counts as spent.
    """
    n = len(kernel)
    left = np.empty(n)
    noise = np.empty(n)
    opened = np.ones(n, dtype=np.bool_)
    factor = np.empty((k, n))
    rank = 0
    for j in range(n):
        left[j] = kernel[j, j]
        noise[j] = 128.0 * epsilon * left[j]
    for step in range(k):
        best = -1.0
        for j in range(n):
            if opened[j]:
                best = max(best, left[j] if left[j] > noise[j] else 0.0)
        least = best * math.exp(-4.0 * n * EPSILON)
        # Some token is open, as step < k <= n, and the best of them reaches the level.
        pick = 0
        while not opened[pick] or (left[pick] if left[pick] > noise[pick] else 0.0) < least:
            pick += 1
        opened[pick] = False
        picks[step] = pick
        gains[step] = -math.inf
        if not left[pick] > noise[pick]:
            continue
        gains[step] = math.log(left[pick])
        row = factor[rank]
        for j in range(n):
            row[j] = kernel[pick, j]
        explain_row(factor, rank, pick, math.sqrt(left[pick]))
        for j in range(n):
            left[j] -= row[j] * row[j]
        rank += 1


@exact
def most_left(left: Any, opened: Any, level: float) -> int:
    """The lowest open place of the largest number, those of a share `level` of it included."""
    best = -math.inf
    for j in range(len(left)):
        if opened[j]:
            best = max(best, left[j])
    for j in range(len(left)):
        if opened[j] and left[j] >= best * level:
            return j
    return 0


@exact
def explain_left(rows: Any, rank: int, pick: int, left: Any, noise: Any, rest: float) -> None:
    """Take from what is left what a pick explains; see `volume.Steps.explain`."""
    explain_row(rows, rank, pick, math.sqrt(left[pick]))
    row = rows[rank]
    for j in range(len(left)):
        less = left[j] - row[j] * row[j]
        left[j] = less if less > noise[j] else rest


@sees_nan
def nearest_other(distance: Any, nearest: Any) -> int:
    """The smallest entry of every column but for the diagonal; how many entries are NaN."""
    n = len(distance)
    nearest[:] = math.inf
    lost = 0
    for i in range(n):
        row, own = distance[i], nearest[i]
        for j in range(n):
            nearest[j] = row[j] if row[j] < nearest[j] else nearest[j]
            lost += row[j] != row[j]
        nearest[i] = own
    return lost


@sees_nan
def farthest(distance: Any, k: int, start: int, picks: Any, gains: Any) -> int:
    """Farthest-first over a matrix; a negative start stands for none. How much NaN it met."""
    n = len(distance)
    nearest = np.empty(n, dtype=distance.dtype)
    lost = 0
    if start < 0:
        lost = nearest_other(distance, nearest)
        start = first_largest(nearest)
        gain = nearest[start]
    else:
        gain = distance.dtype.type(math.inf)
        for i in range(n):
            if i != start:
                gain = min(gain, distance[i, start])
    nearest[:] = math.inf
    pick = start
    for step in range(k):
        if step > 0:
            pick = first_largest(nearest)
            gain = nearest[pick]
        picks[step] = pick
        gains[step] = gain
        for i in range(n):
            away = distance[i, pick]
            nearest[i] = away if away < nearest[i] else nearest[i]
            lost += away != away
        for t in range(step + 1):
            nearest[picks[t]] = -math.inf
    return lost


@regroup
def smallest_of(g: Any) -> float:
    """The smallest number, as `best_of` finds the largest."""
    n = len(g)
    a = b = c = d = e = f = p = q = math.inf
    whole = n - n % 8
    for j in range(0, whole, 8):
        a, b, c, d = min(a, g[j]), min(b, g[j + 1]), min(c, g[j + 2]), min(d, g[j + 3])
        e, f, p, q = min(e, g[j + 4]), min(f, g[j + 5]), min(p, g[j + 6]), min(q, g[j + 7])
    for j in range(whole, n):
        a = min(a, g[j])
    return min(min(min(a, b), min(c, d)), min(min(e, f), min(p, q)))


@regroup
def farthest_surely(
    cosines: Any, nearest: Any, picks: Any, begun: int, width: float, limit: float
) -> int:
    """Farthest-first from a step on, while nothing is in doubt; see `farthest.Run`."""
    n = len(nearest)
    for step in range(begun, len(picks)):
        level = nearest.dtype.type(smallest_of(nearest) + width)
        if level >= limit:
            return step
        near = place = 0
        for i in range(n):
            reaches = nearest[i] <= level
            near += reaches
            place += i if reaches else 0
        if near != 1:
            return step
        picks[step] = place
        row = cosines[place]
        if step == 0:
            nearest[:] = row
        else:
            for i in range(n):
                nearest[i] = max(nearest[i], row[i])
        nearest[place] = math.inf
    return len(picks)


@sees_nan
def first_largest(x: Any) -> int:
    """The lowest place of the largest number."""
    n = len(x)
    best = -math.inf
    for j in range(n):
        best = x[j] if x[j] > best else best
    place = 0
    while place < n - 1 and not x[place] >= best:
        place += 1
    return place


@exact
def scan(
    x: Any, order: Any, k: int, step: float, tau_max: float, rounding: float, kept: Any
) -> int:
    """AgilePruner's scan: each token is compared with those kept until one drives it away.

    A distance that is NaN drives it away. One so near to the threshold that float32 cannot tell
    is taken again in float64.
    """
    unsure = 0.125 * len(x[0]) * rounding
    found = 0
    for j in order:
        if found == k:
            break
        near = False
        for i in range(found):
            limit = min(tau_max, (i + 1) * step) - rounding
            distance = 1.0 - float(cosine_of(x[j], x[kept[i]]))
            if abs(distance - limit) < unsure:
                distance = 1.0 - wide_cosine_of(x[j], x[kept[i]])
            distance = 0.0 if distance < 0.0 else distance
            if not distance >= limit:
                near = True
                break
        if not near:
            kept[found] = j
            found += 1
    return found


RED, GREEN, BLUE = np.float32(0.299), np.float32(0.587), np.float32(0.114)
BLACK, WHITE = np.float32(0.0), np.float32(255.0)


@exact
def grey_row(pixels: Any, levels: Any) -> None:
    """Grey values of a row of pixels (W, 3), in float32 and without fused steps."""
    for x in range(len(levels)):
        red = RED * np.float32(pixels[x, 0])
        green = GREEN * np.float32(pixels[x, 1])
        blue = BLUE * np.float32(pixels[x, 2])
        levels[x] = np.uint8(min(max((red + green) + blue, BLACK), WHITE))


@exact
def patch_histograms(image: Any, patch: int, terms: Any, h: Any) -> None:
    """Entropies h (rows, columns) of patches of an image (H, W, 3); terms[n] is p log p."""
    rows, columns = h.shape
    levels = np.empty(columns * patch, dtype=np.uint8)
    counts = np.empty((columns, 256), dtype=np.int32)
    for row in range(rows):
        counts[:] = 0
        for y in range(row * patch, (row + 1) * patch):
            grey_row(image[y], levels)
            for column in range(columns):
                histogram = counts[column]
                for x in range(column * patch, (column + 1) * patch):
                    histogram[levels[x]] += 1
        for column in range(columns):
            total = 0.0
            for level in range(256):
                total -= terms[counts[column, level]]
            h[row, column] = total
