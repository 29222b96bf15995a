"""The result of every method: what was kept, in which order, how good it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from secateur.core.arrays import (
    Array,
    device,
    index_dtype,
    like,
    namespace,
    refuse_kind,
    shape_of,
    shaped,
    spell,
    to_numpy,
    wide,
    widened,
)
from secateur.core.parameters import check_type, typed

Numbers = np.ndarray[Any, np.dtype[Any]]

TOGETHER = 32
"""Kept tokens whose contents are worked out in one product."""


class Shares(NamedTuple):
    """What goes into what, one entry a contribution, for tokens that go into several others.

    Each array is (..., M); an entry whose `target` is -1 is padding.
    """

    source: Array
    """The token that gives."""
    target: Array
    """The kept token that takes."""
    weight: Array
    """Its weight there."""


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Which tokens were kept, of how many, and what is known about the choice.

    Rows of a batch may keep different numbers: `indices` is then padded with -1 on the right
    and `count` says how many are real. The same holds for every array shaped like `indices`.

    Attributes
    ----------
    indices
        Kept tokens (..., K), in the order they were picked.
    count
        How many each row kept (...).
    size
        How many tokens there were to choose from, N.
    gains
        What each pick added (..., K), 0 in padding; None where a method has no such thing.
    value
        The objective's value of the kept set (...).
    upper_bound
        A number (...) that no set of the same size exceeds.
    scores
        The method's score of every token (..., N), for pictures and reports.
    folded
        Merging methods only: for every token (..., N) the kept token it went into (its own
        index when kept, -1 when dropped).
    fold_weights
        Merging methods only: its weight (..., N) in the token it went into; a kept token's own
        weight need not be 1.
    shares
        Merging methods only, where a token goes into several: all contributions, those of kept
        tokens to themselves included. `folded` then names each token's largest one.
    info
        Counts and measures a method reports, e.g. ``{"filled": 3}``.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> kept = sc.maximize(sc.FacilityLocation(np.eye(4), np.array([1.0, 4.0, 2.0, 3.0])), 2)
    >>> kept
    Selection(2 of 4 tokens, value=7, guarantee=1)
    >>> kept.indices, kept.sorted(), kept.mask()
    (array([1, 3]), array([1, 3]), array([False,  True, False,  True]))
    >>> kept.gather(np.array([[0.0], [10.0], [20.0], [30.0]]))
    array([[10.],
           [30.]])
    """

    indices: Array
    count: Array
    size: int
    gains: Array | None = None
    value: Array | None = None
    upper_bound: Array | None = None
    scores: Array | None = None
    folded: Array | None = None
    fold_weights: Array | None = None
    shares: Shares | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, indices: Array, size: int, **more: Any) -> Selection:
        """A selection in which every row keeps all of `indices` (..., K)."""
        xp = namespace(indices)
        indices = xp.astype(indices, index_dtype(xp))
        count = xp.full(
            indices.shape[:-1],
            int(indices.shape[-1]),
            dtype=index_dtype(xp),
            device=device(indices),
        )
        return cls(indices, count, size, **more)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes."""
        return shape_of(self.indices)[:-1]

    @property
    def guarantee(self) -> Array | None:
        """value / upper_bound (...): the share of the best possible value that is certain.

        At least 1 - 1/e for exact greedy on a monotone submodular objective; 1 where the
        bound is zero. None where no bound is known.
        """
        if self.value is None or self.upper_bound is None:
            return None
        xp = namespace(self.value)
        one = xp.ones_like(self.value)
        bounded = self.upper_bound > 0
        share = self.value / xp.where(bounded, self.upper_bound, one)
        return xp.where(bounded, xp.minimum(share, one), one)

    def sorted(self) -> Array:
        """Kept tokens (..., K) in ascending order; padding stays on the right."""
        xp = namespace(self.indices)
        last = xp.full_like(self.indices, self.size)
        moved = xp.sort(xp.where(self.indices < 0, last, self.indices), axis=-1)
        return xp.where(moved == self.size, xp.full_like(moved, -1), moved)

    @typed
    def mask(self, n: int | None = None) -> Array:
        """True at the kept tokens: (..., n), n = all tokens unless given."""
        n = self.size if n is None else int(n)
        if n < self.size:
            raise ValueError(f"n: expected at least the {self.size} tokens chosen from, got {n}")
        xp = namespace(self.indices)
        rows, dtype = math.prod(self.batch_shape), self.indices.dtype
        places = xp.arange(rows * n, dtype=dtype, device=device(self.indices))
        if rows * n == 0 or int(self.indices.shape[-1]) == 0:
            return xp.zeros((*self.batch_shape, n), dtype=xp.bool, device=device(self.indices))
        # All rows one after the other, padding behind the last: a sorted list to look places up in.
        start = xp.reshape(places[::n], (*self.batch_shape, 1))
        behind = xp.full_like(self.indices, rows * n)
        kept = xp.sort(xp.reshape(xp.where(self.indices < 0, behind, self.indices + start), (-1,)))
        found = xp.searchsorted(kept, places)
        found = xp.clip(found, max=int(kept.shape[0]) - 1)
        return xp.reshape(xp.take(kept, found, axis=0) == places, (*self.batch_shape, n))

    def gather(self, x: Array, axis: int = -2, *, ordered: bool = False) -> Array:
        """The kept tokens' rows of `x`, in ascending token order as a model wants them.

        Parameters
        ----------
        x
            An array whose `axis` runs over the tokens; axes before it match the batch.
        axis
            -2 for features (..., N, D), -1 for scores (..., N).
        ordered
            Take them in the order of picking instead.

        Returns
        -------
        Array
            `x` with K in place of N; padding is filled with zeros.
        """
        refuse_kind(x, "x")
        check_type("ordered", ordered, bool)
        xp = namespace(x)
        if not _is_whole(axis) or not -x.ndim <= axis < x.ndim:
            raise ValueError(
                f"axis: expected one that runs over the tokens of x {spell(x.shape)}, got {axis!r}"
            )
        axis = axis % x.ndim
        if int(x.shape[axis]) != self.size:
            raise ValueError(
                f"x: expected {self.size} tokens along axis {axis}, got shape {spell(x.shape)}"
            )
        batch = self.batch_shape
        if axis != len(batch) or shape_of(x)[:axis] != batch:
            raise ValueError(
                f"x: expected leading axes {spell(batch)} before the tokens, "
                f"got shape {spell(x.shape)}"
            )
        chosen = self.indices if ordered else self.sorted()
        if namespace(chosen) is not xp or device(chosen) != device(x):
            chosen = like(to_numpy(chosen), x)
        safe = xp.where(chosen < 0, xp.zeros_like(chosen), chosen)
        k, rest = int(safe.shape[-1]), shape_of(x)[axis + 1 :]
        rows = math.prod(batch)
        flat = xp.reshape(x, (rows * self.size, *rest))
        start = xp.arange(rows, dtype=safe.dtype, device=device(x)) * self.size
        places = xp.reshape(xp.reshape(safe, (rows, k)) + start[:, None], (rows * k,))
        taken = xp.reshape(xp.take(flat, places, axis=0), (*batch, k, *rest))
        there = xp.reshape(chosen >= 0, (*batch, k, *(1 for _ in rest)))
        return xp.where(there, taken, xp.zeros_like(taken))

    def merge(self, features: Array) -> Array:
        """Kept features (..., K, D) with what was folded into each, in ascending token order.

        Each kept token becomes the weighted sum of the tokens folded into it, itself included,
        with the weights of `fold_weights`, or of `shares` where there are some. Where nothing
        was folded this is `gather`. O(N D) time beside a few small products; no K x N matrix.
        """
        features = shaped(features, "features", "(..., N, D)")
        xp, batch = namespace(features), self.batch_shape
        if shape_of(features)[:-1] != (*batch, self.size):
            raise ValueError(
                f"features: expected shape {spell((*batch, self.size))[:-1].rstrip(',')}, D), "
                f"got {spell(features.shape)}"
            )
        contributions = self._contributions()
        if contributions is None:
            return self.gather(features)
        source, target, weight = contributions
        size, width = shape_of(features)[-2:]
        rows, picks = math.prod(batch), int(self.indices.shape[-1])
        kept = to_numpy(self.sorted()).reshape(rows, picks)
        # Each kept token has a place in the answer; contributions are put in order of theirs.
        place = np.full((rows, size + 1), -1, dtype=np.int64)
        row, column = np.nonzero(kept >= 0)
        place[row, kept[row, column]] = row * picks + column
        goes = np.take_along_axis(place, target, axis=-1).ravel()
        gives = (source + size * np.arange(rows)[:, None]).ravel()
        order = np.argsort(goes, kind="stable")
        starts = np.arange(0, rows * picks, TOGETHER)
        edges = np.searchsorted(goes[order], [*starts, rows * picks])
        flat, weights = xp.reshape(features, (rows * size, width)), weight.ravel()
        parts = [xp.reshape(flat[:0, :], (0, width))]
        for start, low, high in zip(starts, edges, edges[1:], strict=False):
            own = order[low:high]
            share = np.zeros((min(TOGETHER, rows * picks - int(start)), len(own)))
            share[goes[own] - start, np.arange(len(own))] = weights[own]
            given = xp.take(flat, like(gives[own], features), axis=0)
            parts.append(like(share, features, dtype=features.dtype) @ given)
        return xp.reshape(xp.concat(parts, axis=0), (*batch, picks, width))

    def _contributions(self) -> tuple[Numbers, Numbers, Numbers] | None:
        """Tokens, kept tokens they go into (or -1) and weights there: (rows, M), on the host."""
        if self.shares is not None:
            source, target, weight = (to_numpy(x) for x in self.shares)
        elif self.folded is not None and self.fold_weights is not None:
            target, weight = to_numpy(self.folded), to_numpy(self.fold_weights)
            source = np.broadcast_to(np.arange(self.size), target.shape)
        else:
            return None
        shape = (math.prod(self.batch_shape), target.shape[-1])
        return source.reshape(shape), target.reshape(shape), weight.reshape(shape)

    @typed
    def per_frame(self, frames: int) -> Array:
        """How many tokens each of the `frames` of a video kept: (..., T).

        >>> import numpy as np
        >>> Selection.of(np.array([0, 5, 1]), 6).per_frame(3)
        array([2, 0, 1])
        """
        if frames < 1 or self.size % frames:
            raise ValueError(
                f"frames: expected a whole number that divides the {self.size} tokens, "
                f"got {frames!r}"
            )
        xp = namespace(self.indices)
        kept = xp.astype(self.mask(), self.indices.dtype)
        shape = (*self.batch_shape, frames, self.size // frames)
        return xp.sum(xp.reshape(kept, shape), axis=-1)

    def row(self, *position: int) -> Selection:
        """One row of a batch, without padding."""
        if len(position) != len(self.batch_shape):
            raise ValueError(
                f"position: expected one index for each of {spell(self.batch_shape)}, "
                f"got {spell(position)}"
            )
        for place, length in zip(position, self.batch_shape, strict=True):
            if not _is_whole(place) or not -length <= place < length:
                raise ValueError(
                    f"position: expected one of the rows {spell(self.batch_shape)}, "
                    f"got {spell(position)}"
                )
        count = int(self.count[position]) if position else int(self.count)
        cut: dict[str, Any] = {}
        for name in ("indices", "gains"):
            x = getattr(self, name)
            cut[name] = None if x is None else x[(*position, slice(0, count))]
        for name in ("count", "value", "upper_bound", "scores", "folded", "fold_weights"):
            x = getattr(self, name)
            cut[name] = None if x is None else x[(*position, ...)]
        if self.shares is not None:
            cut["shares"] = Shares(*(x[(*position, ...)] for x in self.shares))
        batch = self.batch_shape
        info = {
            key: item[(*position, ...)]
            if batch and hasattr(item, "shape") and shape_of(item)[: len(batch)] == batch
            else item
            for key, item in self.info.items()
        }
        return replace(self, **cut, info=info)

    def __repr__(self) -> str:
        kept = to_numpy(self.count)
        many = f"{int(kept)}" if kept.ndim == 0 else f"{spell(kept.shape)} rows of {_span(kept)}"
        parts = [f"{many} of {self.size} tokens"]
        for name in ("value", "guarantee"):
            number = getattr(self, name)
            if number is not None and to_numpy(number).ndim == 0:
                parts.append(f"{name}={float(number):.4g}")
        parts += [f"{key}={item}" for key, item in self.info.items() if np.ndim(item) == 0]
        return f"Selection({', '.join(parts)})"


def taken_back(chosen: Selection, change: Callable[[Any], Any]) -> Selection:
    """The same, each array put through `change`: to another library or device."""
    changes: dict[str, Any] = {
        each.name: change(x)
        for each in fields(chosen)
        if each.name not in ("size", "shares", "info")
        and (x := getattr(chosen, each.name)) is not None
    }
    if chosen.shares is not None:
        changes["shares"] = Shares(*map(change, chosen.shares))
    told = {name: change(x) if hasattr(x, "shape") else x for name, x in chosen.info.items()}
    return replace(chosen, **changes, info=told)


def _is_whole(given: Any) -> bool:
    return isinstance(given, int | np.integer) and not isinstance(given, bool)


def _span(counts: np.ndarray[Any, Any]) -> str:
    if counts.size == 0:
        return "0"
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


def stack(rows: Sequence[Selection], batch: tuple[int, ...]) -> Selection:
    """One selection from those of the rows of a batch, padded to the longest.

    Fields that some rows lack are left out; numbers in `info` become arrays.
    """
    first = rows[0]
    if not batch:
        return first
    xp = namespace(first.indices)
    longest = max(int(row.indices.shape[-1]) for row in rows)

    def joined(name: str, fill: int) -> Array | None:
        parts = [getattr(row, name) for row in rows]
        if any(part is None for part in parts):
            return None
        if fill != 0 or name == "gains":
            parts = [_padded(part, longest, fill) for part in parts]
        together = xp.stack(parts, axis=0)
        return xp.reshape(together, (*batch, *together.shape[1:]))

    shares = None
    if all(row.shares is not None for row in rows):
        most = max(int(row.shares.target.shape[-1]) for row in rows)  # type: ignore[union-attr]
        padded = [
            xp.stack([_padded(getattr(row.shares, name), most, fill) for row in rows], axis=0)
            for name, fill in (("source", 0), ("target", -1), ("weight", 0))
        ]
        shares = Shares(*(xp.reshape(x, (*batch, most)) for x in padded))
    info: dict[str, Any] = {}
    for key in first.info:
        items = [row.info[key] for row in rows]
        values = [item if hasattr(item, "shape") else like(item, first.indices) for item in items]
        if len({shape_of(x) for x in values}) > 1:
            widest = max(int(x.shape[-1]) for x in values)
            values = [_padded(x, widest, 0) for x in values]
        together = xp.stack(values, axis=0)
        info[key] = xp.reshape(together, (*batch, *together.shape[1:]))
    return Selection(
        joined("indices", -1),
        joined("count", 0),
        first.size,
        gains=joined("gains", 0),
        value=joined("value", 0),
        upper_bound=joined("upper_bound", 0),
        scores=joined("scores", 0),
        folded=joined("folded", 0),
        fold_weights=joined("fold_weights", 0),
        shares=shares,
        info=info,
    )


def _padded(x: Array, length: int, fill: int) -> Array:
    xp = namespace(x)
    missing = length - int(x.shape[-1])
    if missing == 0:
        return x
    tail = xp.full((*x.shape[:-1], missing), fill, dtype=x.dtype, device=device(x))
    return xp.concat([x, tail], axis=-1)


def from_mask(mask: Array, order: Array | None = None, **more: Any) -> Selection:
    """A selection of the true places of a mask (..., N), counts differing by row.

    Parameters
    ----------
    mask
        True at kept tokens.
    order
        Scores (..., N): picks are listed from high to low. Ascending index without them.
    """
    xp = namespace(mask)
    n = int(mask.shape[-1])
    rank = xp.astype(mask, wide(xp)) if order is None else widened(order)
    rank = xp.where(mask, rank, xp.full_like(rank, -xp.inf))
    listed = xp.astype(xp.argsort(-rank, axis=-1, stable=True), index_dtype(xp))
    count = xp.sum(xp.astype(mask, index_dtype(xp)), axis=-1)
    longest = int(to_numpy(count).max(initial=0))
    listed = listed[..., :longest]
    places = xp.arange(longest, dtype=count.dtype, device=device(mask))
    real = places < count[..., None]
    return Selection(xp.where(real, listed, xp.full_like(listed, -1)), count, n, **more)


def folding(chosen: Selection, joined: Array, weights: Array) -> Selection:
    """A selection that also says where every dropped token went, for `Selection.merge`.

    Parameters
    ----------
    chosen
        What is kept; each kept token counts itself once.
    joined
        For every token (..., N) the kept one it joins, -1 for none; read for dropped ones only.
    weights
        Their weights (..., N) there.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.selection import Selection, folding
    >>> kept = Selection.of(np.array([2, 0]), 4)
    >>> both = folding(kept, np.array([0, 2, 2, -1]), np.array([9.0, 0.5, 9.0, 9.0]))
    >>> both.folded, both.fold_weights
    (array([ 0,  2,  2, -1]), array([1. , 0.5, 1. , 0. ]))
    """
    xp = namespace(chosen.indices)
    kept = chosen.mask()
    places = xp.arange(chosen.size, dtype=chosen.indices.dtype, device=device(chosen.indices))
    folded = xp.where(kept, places, xp.astype(joined, places.dtype))
    shares = xp.astype(weights, wide(xp))
    shares = xp.where(folded < 0, xp.zeros_like(shares), shares)
    return replace(chosen, folded=folded, fold_weights=xp.where(kept, xp.ones_like(shares), shares))


def sharing(chosen: Selection, shares: Shares) -> Selection:
    """A selection that also says what goes into what; tokens may go into several.

    Parameters
    ----------
    chosen
        What is kept, without a batch.
    shares
        All contributions (M,), those of kept tokens to themselves included.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.selection import Selection, Shares, sharing
    >>> goes = np.array([0, 1, 2, 2]), np.array([0, 1, 0, 1]), np.array([1, 1, 0.5, 0.25])
    >>> both = sharing(Selection.of(np.array([0, 1]), 3), Shares(*goes))
    >>> both.merge(np.array([[1.0], [2.0], [4.0]])), both.folded
    (array([[3.],
           [3.]]), array([0, 1, 0]))
    """
    source, target, weight = (to_numpy(x) for x in shares)
    folded = np.full(chosen.size, -1, dtype=np.int64)
    weights = np.zeros(chosen.size)
    several = len(np.unique(source)) < len(source)
    # The largest contribution of each token comes last and stays; a kept token is its own.
    order = np.lexsort((-np.arange(len(weight)), weight, source == target))
    folded[source[order]], weights[source[order]] = target[order], weight[order]
    return replace(
        chosen,
        folded=like(folded, chosen.indices, dtype=chosen.indices.dtype),
        fold_weights=like(weights, shares.weight),
        shares=shares if several else None,
    )
