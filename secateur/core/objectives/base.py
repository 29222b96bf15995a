"""What a good choice of tokens is, as functions of a set.

An objective answers two questions, `value(S)` and `gain(S, j)`. The built-in ones also keep a
*tracker*, which follows a growing set and knows every candidate's gain at a small cost per pick.
Objectives of your own need `size`, `sample` and `value`; `secateur.testing` checks the rest.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from secateur.core.arrays import (
    Array,
    device,
    each_row,
    like,
    namespace,
    rounding,
    spell,
    to_numpy,
    wide,
)
from secateur.core.similarity import (
    row_positions,
)


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

    Subclass it with `size`, `sample` and `value` for an objective of your own.
    """

    size: int
    """How many tokens there are, N."""
    sample: Array
    """Any array of the library and device that answers should come in."""
    batch_shape: tuple[int, ...] = ()
    submodular: ClassVar[bool] = False
    """Whether gains shrink as the set grows; lazy greedy relies on it."""
    monotone: ClassVar[bool] = False
    """Whether no token ever lowers the value, and the empty set has value 0."""

    @abstractmethod
    def value(self, indices: Any) -> Array:
        """The value (...) of the sets at `indices` (..., T), one a row; -1 stands for no token.

        An objective of your own is given a list of distinct ints and may answer with a float.
        """

    def gain(self, indices: Any, j: Any) -> Array:
        """What `j` adds to the set at `indices`: value(S + j) - value(S).

        `j` is one index, or M of them for M answers.
        """
        picks = [int(p) for p in to_numpy(indices)]
        before = float(self.value(picks))
        asked = to_numpy(j)
        gains = [float(self.value([*picks, int(c)])) - before for c in np.ravel(asked)]
        together = np.asarray(gains).reshape(asked.shape)
        return like(together, self.sample, dtype=wide(namespace(self.sample)))

    def margin(self, best: float) -> float:
        """How far below the best gain another may lie and still count as equal.

        What rounding can do to a sum of N terms; gains that close go to the lowest index.
        """
        return 0.0 if math.isinf(best) else 4.0 * self.size * self._rounding * abs(best)

    @property
    def _rounding(self) -> float:
        return rounding(namespace(self.sample))

    def tracker(self) -> Tracker:
        """A tracker that starts from the empty set; this one asks `gain` anew every time."""
        return _AskAgain(self)

    def rows(self) -> Sequence[Objective]:
        """The objectives of the rows of the batch."""
        return (self,)


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


class _ByRow(Objective):
    """An objective that knows one image and treats a batch as a row of such objectives."""

    def value(self, indices: Any) -> Array:
        return self._each(indices, lambda f, picks: f._value(picks))

    def gain(self, indices: Any, j: Any) -> Array:
        host = _checked_indices(j, self.size, "j", least=0)
        asked = _beside(host.reshape(-1), self.sample)
        answer = self._each(indices, lambda f, picks: f._gain(picks, asked))
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
    def rows(self) -> Sequence[Self]: ...

    @abstractmethod
    def _value(self, picks: Array) -> Array: ...

    @abstractmethod
    def _gain(self, picks: Array, candidates: Array) -> Array: ...


def _checked_indices(
    indices: Any, n: int, name: str, least: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    host = to_numpy(indices)
    if host.size and (
        host.dtype.kind not in "iu" or not (least <= int(host.min()) and int(host.max()) < n)
    ):
        raise ValueError(f"{name}: expected tokens {max(0, least)} .. {n - 1}, got {host.tolist()}")
    return host.astype(np.int64)


def _beside(indices: Any, sample: Array) -> Array:
    """Indices on the host as an index array beside `sample`."""
    return like(indices, sample, dtype=row_positions(1, sample).dtype)
