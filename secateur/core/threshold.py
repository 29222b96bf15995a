"""AgilePruner's scan: by attention, past everything too close to what is kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.core.arrays import (
    Array,
    check_lengths,
    checked,
    constant,
    descending,
    device,
    each_row,
    epsilon,
    index_dtype,
    like,
    namespace,
    on_host,
    resolve_budget,
    shape_of,
    spell,
    to_numpy,
)
from secateur.core.dispatch import eager, operation
from secateur.core.parameters import typed
from secateur.core.selection import Selection
from secateur.core.similarity import unit


@eager
@typed
def greedy_threshold(
    features: Array,
    attention: Array,
    k: Any,
    step: Any = 0.01,
    tau_max: float = 1.0,
    *,
    check_finite: bool = True,
    backend: str | None = None,
) -> Selection:
    r"""Keep tokens by attention, each driving away those that look like it.

    Tokens are visited from high to low attention. The i-th kept token (i = 1, 2, ...) removes
    every later token whose distance :math:`1 - \cos(X_i, X_j)` is below

    .. math:: \tau_i = \min(\tau_{\max}, i \cdot \text{step})

    by more than rounding, and the next one that remains is kept, until there are k. If none
    remains first, the removed tokens of highest attention fill up.

    Parameters
    ----------
    features
        Visual tokens (..., N, D).
    attention
        Attention (..., N) each receives.
    k
        A count, a share, or a count for each row.
    step
        How fast the threshold grows; a number or one for each row (...). AgilePruner takes
        0.01 erank / mean erank, so that complex images drive more tokens away.
    tau_max
        The largest threshold; distances lie in [0, 2].

    Returns
    -------
    Selection
        k picks in order of keeping, those filled up at the end; ``info["filled"]`` says how
        many these are, and `scores` holds the attention.

    Notes
    -----
    O(k N D) time, O(N) memory. With ``step=0`` nothing is removed: top-k by attention.

    References
    ----------
    AgilePruner, ICLR 2026, arXiv 2603.01236.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> sc.greedy_threshold(x, np.array([0.5, 0.4, 0.1]), 2, step=0.1).indices
    array([0, 2])
    """
    features = checked(features, "features", "(..., N, D)", check_finite=check_finite)
    attention = checked(
        attention, "attention", "(..., N)", check_finite=check_finite, beside=features
    )
    xp = namespace(features, attention)
    check_lengths(features=int(features.shape[-2]), attention=int(attention.shape[-1]))
    batch = shape_of(features)[:-2]
    if shape_of(attention)[:-1] != batch:
        raise ValueError(
            f"attention: expected shape {spell(shape_of(features)[:-1])} beside features "
            f"{spell(shape_of(features))}, got {spell(shape_of(attention))}"
        )
    if not tau_max >= 0:
        raise ValueError(f"tau_max: expected a distance of at least 0, got {tau_max}")
    steps = on_host(step, "step").astype(np.float64)
    if steps.shape not in ((), batch):
        raise ValueError(
            f"step: expected a number or one for each of the rows {spell(batch)}, "
            f"got {spell(steps.shape)}"
        )
    if not bool(np.all(np.isfinite(steps) & (steps >= 0))):
        raise ValueError(f"step: expected finite numbers of at least 0, got {steps.tolist()}")
    steps = np.broadcast_to(steps, batch)
    n = int(features.shape[-2])
    budget = resolve_budget(k, n, batch)
    chosen: dict[str, Any] = {} if backend is None else {"backend": backend}
    indices, filled = threshold_scan(
        constant(features), constant(attention), budget, steps, float(tau_max), **chosen
    )
    count = like(
        np.broadcast_to(np.asarray(budget, dtype=np.int64), batch), indices, dtype=index_dtype(xp)
    )
    return Selection(indices, count, n, scores=attention, info={"filled": filled})


@operation
def threshold_scan(
    features: Array, attention: Array, k: Any, step: np.ndarray[Any, Any], tau_max: float
) -> tuple[Array, Array]:
    """The scan over a batch: indices (..., K) padded with -1, and how many were filled up (...).

    `k` is an int or an int64 NumPy array (...), `step` a float64 NumPy array (...).
    """
    xp = namespace(features)
    batch = shape_of(features)[:-2]
    budgets = np.broadcast_to(np.asarray(k), batch)
    longest = int(np.max(k, initial=0))
    indices = np.full((*batch, longest), -1, dtype=np.int64)
    filled = np.zeros(batch, dtype=np.int64)
    for position in each_row(batch):
        budget = int(budgets[position])
        picks, extra = _scan(
            unit(features[(*position, ...)]),
            attention[(*position, ...)],
            budget,
            float(step[position]),
            tau_max,
        )
        indices[position][:budget] = picks
        filled[position] = extra
    dtype = index_dtype(xp)
    return like(indices, features, dtype=dtype), like(filled, features, dtype=dtype)


def _scan(
    directions: Array, attention: Array, k: int, step: float, tau_max: float
) -> tuple[list[int], int]:
    xp = namespace(directions)
    order = [int(j) for j in to_numpy(descending(attention))]
    remains = xp.ones(len(order), dtype=xp.bool, device=device(directions))
    rounding = 8 * epsilon(directions)
    kept: list[int] = []
    for j in order:
        if len(kept) == k:
            break
        if not bool(remains[j]):
            continue
        kept.append(j)
        tau = min(tau_max, len(kept) * step)
        distance = 1.0 - xp.sum(directions * directions[j, :], axis=-1)
        # A duplicate's distance may come out below 0: within rounding is not below.
        remains = remains & (distance >= tau - rounding)
    kept_already = set(kept)
    removed = [j for j in order if j not in kept_already]
    fill = removed[: k - len(kept)]
    return kept + fill, len(fill)
