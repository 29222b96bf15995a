"""What a good choice of tokens is, as functions of a set.

What greedy needs is a *tracker*, which follows a growing set and knows every candidate's gain at
a small cost per pick. Most objectives also have a `value(S)`, of which a `gain(S, j)` is a
difference; for some a gain is something else. Objectives of your own need `size`, `sample` and
one of the three; `secateur.testing` holds them to what they declare.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from secateur.core.arrays import (
    Array,
    device,
    each_row,
    like,
    namespace,
    on_host,
    rounding,
    shape_of,
    shaped,
    spell,
    to_numpy,
    wide,
)
from secateur.core.similarity import row_positions
from secateur.core.tolerances import SUM


class Tracker(Protocol):
    """The gains of all candidates, kept current while picks are added one by one."""

    @property
    def slack(self) -> float:
        """How far `gains()` may be from exact; 0 where they are exact."""

    def gains(self) -> Array:
        """The gain (N,) of every token on top of the picks so far."""

    def add(self, pick: int) -> None:
        """Add a token to the picks."""


class Objective(ABC):
    """A function of sets of tokens 0 .. size - 1, for one image or for a batch.

    An objective of your own has `size`, `sample`, and one of `value`, `gain` and `tracker`: what
    greedy asks for beyond the one it is given is worked out from it. A value is enough where
    gains are differences of values. Where they are not, say `differences = False` and bring
    `gain` or `tracker`; a value may then be there or not.
    """

    size: int
    """How many tokens there are to pick from, N."""
    sample: Array
    """Any array of the library and device that answers should come in."""
    batch_shape: tuple[int, ...] = ()
    submodular: bool = False
    """Whether gains shrink as the set grows; lazy greedy relies on it."""
    monotone: bool = False
    """Whether no token ever lowers the value, and the empty set has value 0."""
    differences: bool = True
    """Whether a gain is a difference of values: value(S + j) - value(S)."""
    selectable: Array | None = None
    """False (..., N) at tokens that may not be picked; None where all may."""

    @property
    def form(self) -> str:
        """In which form it was given, where an operation is for one form only; see `solves`."""
        return ""

    @property
    def valued(self) -> bool:
        """Whether sets have a value."""
        return type(self).value is not Objective.value

    def value(self, indices: Any) -> Array:
        """The value (...) of the sets at `indices` (..., T), one a row; -1 stands for no token.

        An objective of your own is given a list of distinct ints and may answer with a float.
        """
        raise ValueError(f"{type(self).__name__} has gains, but sets have no value")

    def gain(self, indices: Any, j: Any) -> Array:
        """What `j` adds to the set at `indices`: value(S + j) - value(S) where that is a gain.

        `j` is one index, or M of them for M answers. Without a value, a tracker is led through
        the picks in their order.
        """
        picks = [int(p) for p in to_numpy(indices)]
        asked = to_numpy(j)
        if not (self.valued and self.differences):
            tracker = self.tracker()
            for pick in picks:
                tracker.add(pick)
            xp, current = namespace(self.sample), tracker.gains()
            together = xp.take(current, _beside(asked.reshape(-1), current))
            return xp.reshape(together, asked.shape)
        before = float(self.value(picks))
        gains = [float(self.value([*picks, int(c)])) - before for c in np.ravel(asked)]
        together = np.asarray(gains).reshape(asked.shape)
        return like(together, self.sample, dtype=wide(namespace(self.sample)))

    def margin(self, best: float) -> float:
        """How far below the best gain another may lie and still count as equal.

        What rounding can do to a sum of N terms; gains that close go to the lowest index.
        """
        return 0.0 if math.isinf(best) else SUM * self.size * self._rounding * abs(best)

    @property
    def _rounding(self) -> float:
        return rounding(namespace(self.sample))

    def tracker(self) -> Tracker:
        """A tracker that starts from the empty set; this one asks `gain` anew every time."""
        kind = type(self)
        if kind.gain is Objective.gain and not (self.valued and self.differences):
            raise ValueError(f"f: {kind.__name__} has neither value, gain nor tracker to go by")
        return _AskAgain(self)

    def rows(self) -> Sequence[Objective]:
        """The objectives of the rows of the batch."""
        return (self,)

    def open(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """True (..., N), on the host, at tokens that may be picked."""
        shape = (*self.batch_shape, self.size)
        if self.selectable is None:
            return np.ones(shape, dtype=bool)
        return np.broadcast_to(to_numpy(self.selectable).astype(bool), shape)


class _AskAgain:
    slack = 0.0

    def __init__(self, f: Objective) -> None:
        self._f = f
        self._picks: list[int] = []
        self._all = row_positions(f.size, f.sample)

    def gains(self) -> Array:
        return self._f.gain(self._picks, self._all)

    def add(self, pick: int) -> None:
        self._picks.append(pick)


ASKED = ("value", "gain", "coverage", "gains_over", "_value", "_gain")
"""What a subclass may answer in its own way, so that a tracker it inherits no longer knows."""


def keeps_track(f: Objective) -> bool:
    """Whether it brings a tracker that knows what its gains are.

    A subclass that changed what a gain is, and brought no tracker along, does not.
    """
    for kind in type(f).__mro__:
        if "tracker" in vars(kind):
            return kind is not Objective
        if any(name in vars(kind) for name in ASKED):
            return False
    return False


def tracker_of(f: Objective) -> Tracker:
    """An objective's own tracker where it knows the gains, else one that asks for them."""
    return f.tracker() if keeps_track(f) else Objective.tracker(f)


class ByRow(Objective):
    """An objective that knows one image and treats a batch as a row of such objectives.

    A subclass says in `arrays` which of its attributes have the axes of the batch in front;
    anything else that it holds is shared by all images. It may also take `row` into its own
    hands.
    """

    arrays: ClassVar[tuple[str, ...]] = ("selectable",)
    """Attributes, arrays or None, with one row an image; a subclass adds its own to them."""

    def row(self, position: tuple[int, ...]) -> Self:
        """The objective of one image of the batch: a copy with that image's arrays."""
        one = self.with_arrays(lambda x: x[(*position, ...)])
        one.batch_shape = ()
        return one

    def rows(self) -> Sequence[Self]:
        """One objective an image; see `Objective.rows`."""
        if not self.batch_shape:
            return (self,)
        return [self.row(position) for position in each_row(self.batch_shape)]

    def with_arrays(self, change: Callable[[Any], Any]) -> Self:
        """A copy whose `arrays` went through `change`: to a row, a dtype, or a device."""
        one = copy(self)
        for name in self.arrays:
            x = getattr(self, name)
            if x is not None:
                setattr(one, name, change(x))
        one._settle()
        return one

    @abstractmethod
    def _settle(self) -> None:
        """Set `sample`, and forget what was worked out from other arrays."""

    def value(self, indices: Any) -> Array:
        """The value (...) of a set (T,), or of one (..., T) for each image of the batch."""
        return self._each(indices, lambda f, picks: f._value(picks))

    def gain(self, indices: Any, j: Any) -> Array:
        """What `j` adds to a set, in each image; see `Objective.gain`."""
        host = _checked_indices(j, self.size, "j", least=0)
        asked = _beside(host.reshape(-1), self.sample)
        answer = self._each(indices, lambda f, picks: f._gain(picks, asked))
        if 0 in self.batch_shape:
            shape = (*self.batch_shape, *host.shape)
            return namespace(answer).zeros(shape, dtype=answer.dtype, device=device(answer))
        return answer[..., 0] if host.ndim == 0 else answer

    def _each(self, indices: Any, ask: Any) -> Array:
        picks = _checked_indices(indices, self.size, "indices", least=-1)
        if picks.ndim == 0 or picks.shape[:-1] not in ((), self.batch_shape):
            raise ValueError(
                f"indices: expected a set (T,) or one for each of the rows "
                f"{spell(self.batch_shape)}, got shape {spell(picks.shape)}"
            )
        picks = np.broadcast_to(picks, (*self.batch_shape, picks.shape[-1]))
        answers = [
            ask(f, _beside(picks[position][picks[position] >= 0], self.sample))
            for f, position in zip(self.rows(), each_row(self.batch_shape), strict=True)
        ]
        if not self.batch_shape:
            return answers[0]
        if not answers:
            xp = namespace(self.sample)
            return xp.zeros(self.batch_shape, dtype=wide(xp), device=device(self.sample))
        together = namespace(answers[0]).stack(answers)
        return namespace(together).reshape(together, (*self.batch_shape, *together.shape[1:]))

    @abstractmethod
    def _value(self, picks: Array) -> Array: ...

    @abstractmethod
    def _gain(self, picks: Array, candidates: Array) -> Array: ...


def _checked_indices(
    indices: Any, n: int, name: str, least: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    host = on_host(indices, name)
    if host.size and (
        host.dtype.kind not in "iu" or not (least <= int(host.min()) and int(host.max()) < n)
    ):
        raise ValueError(f"{name}: expected tokens {max(0, least)} .. {n - 1}, got {host.tolist()}")
    return host.astype(np.int64)


def _beside(indices: Any, sample: Array) -> Array:
    """Indices on the host as an index array beside `sample`."""
    return like(indices, sample, dtype=row_positions(1, sample).dtype)


def checked_selectable(selectable: Any, f: Objective) -> Array | None:
    """The mask (..., N) of tokens that may be picked, None where all may, or refuse it."""
    if selectable is None:
        return None
    if isinstance(selectable, (list, tuple)):
        selectable = like(on_host(selectable, "selectable"), f.sample)
    selectable = shaped(selectable, "selectable", "(..., N)")
    xp = namespace(selectable, f.sample)
    shape, wanted = shape_of(selectable), (*f.batch_shape, f.size)
    if shape not in (wanted, wanted[-1:]):
        raise ValueError(f"selectable: expected shape {spell(wanted)}, got {spell(shape)}")
    mask = xp.broadcast_to(xp.astype(selectable, xp.bool), wanted)
    if not bool(xp.all(xp.any(mask, axis=-1))):
        raise ValueError("selectable: expected at least one token that may be picked, got none")
    return mask
