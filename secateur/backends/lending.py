"""What every driver does with what it is lent: budgets, batches, padding, products.

One pool of threads works on lent memory. Threads that have just worked spin for a while, waiting
for more, and two pools spin against each other on the same cores. So a small product is taken by
the calling thread alone, where `threadpoolctl` is installed to say so to the BLAS behind NumPy:
it is done before a second thread would be awake, and nobody waits for one that another process
keeps from running. A large product is taken by the pool of the library whose memory it is, if
that has a second thread: alone, NumPy's product is the faster one.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from secateur.core.arrays import Array, device, each_row, like, namespace
from secateur.core.maximize import Picks

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
Indices = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]
Solve = Callable[[tuple[int, ...], int], tuple[Indices, Floats, float, float]]


def budgets(k: Any, batch: tuple[int, ...]) -> tuple[np.ndarray[Any, np.dtype[np.int64]], int]:
    """One budget an image (B,) on the host, and the longest of them."""
    host = np.broadcast_to(np.asarray(k, dtype=np.int64), batch).reshape(-1)
    return np.ascontiguousarray(host), int(np.max(k, initial=0))


def flat(x: Array, axes: int) -> Array:
    """The leading axes in one: (B, ...) with `axes` axes kept."""
    return x.reshape(math.prod(x.shape[: x.ndim - axes]), *x.shape[x.ndim - axes :])


def blank(images: int, longest: int, sample: Array) -> tuple[Array, Array]:
    """Indices (B, K) of -1 and gains (B, K) of 0 beside `sample`: nothing picked yet."""
    xp, place = namespace(sample), device(sample)
    indices = xp.full((images, longest), -1, dtype=xp.int64, device=place)
    return indices, xp.zeros((images, longest), dtype=xp.float64, device=place)


def answer(
    batch: tuple[int, ...], indices: Array, gains: Array, value: Array, bound: Array | None = None
) -> Picks:
    """The answer for a batch from those of its images, (B, K) and (B,); without a bound, none."""
    if bound is None:
        bound = namespace(value).full_like(value, math.inf)
    listed = (*batch, int(indices.shape[-1]))
    return Picks(
        indices.reshape(listed), gains.reshape(listed), value.reshape(batch), bound.reshape(batch)
    )


def in_parts(
    features: Array,
    weights: Array | None,
    k: Any,
    room: int,
    solve: Callable[[Array, Array | None, Any], Picks],
) -> Picks:
    """Answers of `solve` about at most `room` images of features (..., N, D) at a time."""
    batch, n = tuple(features.shape[:-2]), int(features.shape[-2])
    images = math.prod(batch)
    if images <= room:
        return solve(features, weights, k)
    x = flat(features, 2)
    w = weights
    if weights is not None:
        w = flat(namespace(weights).broadcast_to(weights, (*batch, n)), 1)
    host, longest = budgets(k, batch)
    indices, gains = blank(images, longest, features)
    value, bound = like(np.zeros((2, images)), features)
    for start in range(0, images, room):
        part = slice(start, start + room)
        # One number for all of them is known to the host; numbers would have to travel.
        picks = solve(
            x[part], None if w is None else w[part], longest if np.ndim(k) == 0 else host[part]
        )
        width = int(picks.indices.shape[-1])
        indices[part, :width], gains[part, :width] = picks.indices, picks.gains
        value[part], bound[part] = picks.value, picks.bound
    return answer(batch, indices, gains, value, bound)


def over_batch(batch: tuple[int, ...], k: Any, solve: Solve, workers: int = 1) -> Picks:
    """Answers of `solve(position, budget)` for every row of a batch, padded together."""
    budgets = np.broadcast_to(np.asarray(k, dtype=np.int64), batch)
    longest = int(np.max(k, initial=0))
    indices = np.full((*batch, longest), -1, dtype=np.int64)
    gains = np.zeros((*batch, longest))
    value = np.zeros(batch)
    bound = np.full(batch, math.inf)

    def one(position: tuple[int, ...]) -> None:
        budget = int(budgets[position])
        picks, gained, total, limit = solve(position, budget)
        indices[position][:budget] = picks
        gains[position][:budget] = gained
        value[position] = total
        bound[position] = limit

    if workers > 1 and len(batch) > 0:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, each_row(batch)))
    else:
        for position in each_row(batch):
            one(position)
    return Picks(indices, gains, value, bound)


def weights_at(weights: Floats | None, position: tuple[int, ...]) -> Floats | None:
    """The weights of one image."""
    return None if weights is None else weights[position]


class Pool(NamedTuple):
    """Who multiplies large matrices of NumPy arrays."""

    product: Callable[[Floats, Floats], Floats]
    eigenvalues: Callable[[Floats], Floats]
    threads: Callable[[], int] | None = None
    """How many threads it has; None where nobody needs to know."""


NUMPY = Pool(np.matmul, np.linalg.eigvalsh)
_pool: ContextVar[Pool] = ContextVar("pool", default=NUMPY)

SMALL = 1 << 27
"""Multiplications up to which a product is left to one thread: 576 tokens of 384 channels."""
LINKED = 1 << 32
"""The same for eigenvalues, of some 1,600 tokens. Threads meet at each of thousands of steps there:
that gains little, and beside other work a call waits for seconds."""


@contextmanager
def worked_on_by(pool: Pool) -> Iterator[None]:
    """Within the block, memory is lent by a library whose pool takes the large products."""
    token = _pool.set(pool)
    try:
        yield
    finally:
        _pool.reset(token)


def product(x: Floats, y: Floats, out: Floats | None = None) -> Floats:
    """x @ y, by one thread or by all of one pool, in `out` where there is one."""
    rows = x.size // x.shape[-1] if x.ndim > 1 else 1
    if _alone(rows * x.shape[-1] * (y.shape[-1] if y.ndim > 1 else 1), SMALL):
        with _one:
            small: Floats = np.matmul(x, y, out=out)
        return small
    large = _pool.get().product(x, y)
    if out is None:
        return large
    out[...] = large
    return out


def eigenvalues(x: Floats) -> Floats:
    """Eigenvalues (..., N), ascending, of symmetric matrices (..., N, N); as `product`."""
    if _alone(x.size * x.shape[-1], LINKED):
        with _one:
            small: Floats = np.linalg.eigvalsh(x)
        return small
    return _pool.get().eigenvalues(x)


def _alone(work: int, small: int) -> bool:
    """Whether the calling thread does so many multiplications by itself."""
    threads = _pool.get().threads
    return _one.possible and (work <= small or (threads is not None and threads() == 1))


class _OneThread:
    """The BLAS behind NumPy on one thread, as long as anybody is within.

    The setting is the process's, so those within are counted: the first one changes it and the
    last one restores it. A large product that another thread starts meanwhile is only slower.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._before: list[int] = []

    @functools.cached_property
    def _libraries(self) -> list[Any] | None:
        """Those with a second thread; None where that cannot be told."""
        if importlib.util.find_spec("threadpoolctl") is None:
            return None
        from threadpoolctl import ThreadpoolController

        found = ThreadpoolController().select(user_api="blas").lib_controllers
        return [each for each in found if each.num_threads > 1]

    @property
    def possible(self) -> bool:
        """Whether there is a way to say so."""
        return self._libraries is not None

    def __enter__(self) -> None:
        with self._lock:
            self._within += 1
            if self._within == 1:
                self._before = [each.num_threads for each in self._libraries or ()]
                for each in self._libraries or ():
                    each.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                for each, threads in zip(self._libraries or (), self._before, strict=True):
                    each.set_num_threads(threads)


_one = _OneThread()


def handed(found: Any, over: Callable[[Array], Array]) -> Any:
    """What a driver found, each of its arrays handed over by `over`."""
    if found is NotImplemented or found is None:
        return found
    if isinstance(found, Picks):
        return Picks(*(handed(x, over) for x in found))
    if isinstance(found, tuple):
        return tuple(handed(x, over) for x in found)
    return over(found)
