"""What every driver does with what it is lent: budgets, batches, padding, products.

One pool of threads works on lent memory. Threads that have just worked spin for a while, waiting
for more, and two pools spin against each other on the same cores. So a small product is taken by
the calling thread alone, as threadpoolctl tells the BLAS behind NumPy: it is done before a second
thread would be awake, and nobody waits for one that another process keeps from running. A large
product is taken by the pool of the library whose memory it is, if that has a second thread: alone,
NumPy's product is the faster one. Tokens with themselves are not: threads of ours take blocks of
half of that product, on one thread of BLAS's each, and none of them spins. Nor are few of many
tokens with all of them, where the memory is lent: PyTorch takes longer for such a product. A whole
choice among few tokens is the calling thread's too, its large products aside: between them are
hundreds of small steps of the array library, and PyTorch's threads meet at each of them.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

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

SMALL = 3 << 28
"""Multiplications up to which a product is left to one thread: 576 tokens of 4,096 channels with
themselves, of which BLAS takes half."""
LINKED = 1 << 32
"""The same for eigenvalues, of some 1,600 tokens. Threads meet at each of thousands of steps there:
that gains little, and beside other work a call waits for seconds."""
WHOLE = 2 * SMALL
"""The same for a choice as a whole, as products of all its tokens: 576 tokens of 4,096 channels.
What it does beside its large products is one thread's for some ten milliseconds."""
PAIRS = 1 << 21
"""Pairs of tokens that are looked at together: of more, arrays are made anew in memory at each
step."""
MANY = 1 << 20
"""Numbers in a matrix from which on a product with it may be a part of a large one: a few of 50,000
tokens with all of them. 1,024 tokens of 1,024 channels are as many."""
PART = 1 << 24
"""Multiplications up to which such a part is left to one thread: some hundred microseconds."""
EACH = 1 << 20
"""Multiplications of an image up to which a batch of them is one call of BLAS's."""


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
    work = rows * x.shape[-1] * (y.shape[-1] if y.ndim > 1 else 1)
    within = _one.within
    if within and work <= SMALL:
        small: Floats = np.matmul(x, y, out=out)
        return small
    turned = work > min(PART, SMALL) and _turned(x, y)
    images = math.prod(x.shape[:-2])
    if turned and work > images * EACH:
        if images >= hands(WHOLE + 1) and images > 1 and not within:
            return _of_images(x, y, out, hands(WHOLE + 1))
        with _one.left():
            threads = hands(work)
            if threads > 1:
                return _of_themselves(x, y, out, threads)
    whole = turned and work > SMALL
    part = max(x.size, y.size) > MANY and not whole and not within
    with _taken_by(work // 2 if whole else work, PART if part else SMALL) as pool:
        if pool is NUMPY:
            found: Floats = np.matmul(x, y, out=out)
            return found
        if part and pool.threads is not None and x.ndim == y.ndim == 2:
            return _of_strips(x, y, out, pool.threads())
        large = pool.product(x, y)
    if out is None:
        return large
    out[...] = large
    return out


def _of_images(x: Floats, y: Floats, out: Floats | None, threads: int) -> Floats:
    """Images (..., N, D) with themselves, which threads share: half of a product for each image."""
    found = np.empty((*x.shape[:-1], y.shape[-1]), dtype=x.dtype) if out is None else out

    def some(images: list[tuple[int, ...]]) -> Floats:
        for at in images:
            np.matmul(x[at], y[at], out=found[at])
        return found

    images = [*each_row(x.shape[:-2])]
    side_by_side(some, [(images[i::threads],) for i in range(threads)], WHOLE + 1)
    return found


def _of_themselves(x: Floats, y: Floats, out: Floats | None, threads: int) -> Floats:
    """The same of few large images, each in blocks: those above the diagonal are mirrored."""
    found = np.empty((*x.shape[:-1], y.shape[-1]), dtype=x.dtype) if out is None else out
    count = 2 * threads
    ends = np.linspace(0, x.shape[-2], count + 1).astype(int).tolist()
    parts = [slice(*each) for each in itertools.pairwise(ends)]

    def block(at: tuple[int, ...], i: int, j: int) -> Floats:
        to, rows, columns = found[at], parts[i], parts[j]
        np.matmul(x[at][rows], y[at][:, columns], out=to[rows, columns])
        if i != j:
            to[columns, rows] = to[rows, columns].T
        return found

    # The large ones first, so that nobody waits long for the last one.
    places = [(i, j) for i in range(count) for j in range(i)] + [(i, i) for i in range(count)]
    jobs = [(at, *place) for at in each_row(x.shape[:-2]) for place in places]
    side_by_side(block, jobs, WHOLE + 1)
    return found


def _of_strips(x: Floats, y: Floats, out: Floats | None, threads: int) -> Floats:
    """Few vectors with many, in strips that threads take in turn."""
    height, width = x.shape[0], y.shape[1]
    found = np.empty((height, width), dtype=np.result_type(x, y)) if out is None else out
    # Several for each thread: one that another process keeps from running takes fewer.
    ends = np.linspace(0, max(height, width), 4 * threads + 1).astype(int).tolist()
    strips = [slice(*each) for each in itertools.pairwise(ends)]

    def strip(rows: slice, columns: slice) -> Floats:
        return np.matmul(x[rows], y[:, columns], out=found[rows, columns])

    whole = slice(None)
    jobs = [(each, whole) if height >= width else (whole, each) for each in strips]
    side_by_side(strip, jobs, WHOLE + 1)
    return found


def _turned(x: Floats, y: Floats) -> bool:
    """Whether y is x with its last axes exchanged, for which BLAS takes half of the product."""
    if x.ndim < 2 or x.shape[::-1][:2] != y.shape[-2:] or x.strides[::-1][:2] != y.strides[-2:]:
        return False
    return bool(x.__array_interface__["data"] == y.__array_interface__["data"])


def eigenvalues(x: Floats) -> Floats:
    """Eigenvalues (..., N), ascending, of symmetric matrices (..., N, N); as `product`."""
    with _taken_by(x.size * x.shape[-1], LINKED) as pool:
        return pool.eigenvalues(x)


def hands(work: int) -> int:
    """How many threads may share so many multiplications that come in parts: those of the pool."""
    if work <= WHOLE:
        return 1
    pool = _pool.get()
    if pool.threads is not None:
        return pool.threads()
    blas, _ = _libraries("torch" in sys.modules, "scipy.linalg" in sys.modules)
    return max((each.num_threads for each in blas), default=1)


def images_at_once(size: int) -> int:
    """How many images to choose from at once whose tokens make so many pairs."""
    return max(2 * hands(WHOLE + 1), PAIRS // size, 1)


def side_by_side(
    run: Callable[..., Floats], jobs: Sequence[tuple[Any, ...]], work: int
) -> list[Floats]:
    """What `run` makes of each job, on as many threads as share so many multiplications.

    The calling thread is one of them, so that one less is started.
    """
    threads = min(len(jobs), hands(work))
    if threads < 2:
        return [run(*job) for job in jobs]
    found: dict[int, Floats] = {}
    shared = iter([*enumerate(jobs)])

    def some() -> None:
        # Of whoever shares the work each is one thread, for large products too.
        with _one, _one.staying(), worked_on_by(NUMPY):
            for place, job in shared:
                found[place] = run(*job)

    with _one, ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(some) for _ in range(threads - 1)]
        some()
        for other in others:
            other.result()
    return [found[place] for place in range(len(jobs))]


def alone(work: int) -> AbstractContextManager[None]:
    """Around a choice whose tokens' products take so many multiplications: one thread's if few."""
    return _one if work <= WHOLE else nullcontext()


@contextmanager
def _taken_by(work: int, small: int) -> Iterator[Pool]:
    """Who does so many multiplications: NumPy on the calling thread, up to `small` of them."""
    if work <= small:
        with _one:
            yield NUMPY
    else:
        with _one.left():
            pool = _pool.get()
            if pool.threads is not None and pool.threads() == 1:
                with _one:
                    yield NUMPY
            else:
                yield pool


class _OneThread:
    """One thread, as long as anybody is within: of the BLAS behind NumPy, and of OpenMP.

    BLAS is set for the whole process, so the threads within are counted: the first one changes it
    and the last one restores it. A large product that another one starts meanwhile is only slower.
    OpenMP, whose threads are PyTorch's, is set for the calling thread and no other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._before: list[tuple[Any, int]] = []
        self._mine = _Mine()

    def __enter__(self) -> None:
        mine = self._mine
        mine.depth += 1
        if mine.depth > 1:
            return
        loaded = sys.modules
        blas, openmp = _libraries("torch" in loaded, "scipy.linalg" in loaded)
        mine.before = [(each, _set(each, 1)) for each in openmp]
        with self._lock:
            self._within += 1
            if self._within == 1:
                self._before = [(each, _set(each, 1)) for each in blas]

    def __exit__(self, *_: object) -> None:
        mine = self._mine
        mine.depth -= 1
        if mine.depth > 0:
            return
        with self._lock:
            self._within -= 1
            if self._within == 0:
                for each, threads in self._before:
                    _set(each, threads)
        for each, threads in mine.before:
            _set(each, threads)

    @property
    def within(self) -> bool:
        """Whether the caller is."""
        return self._mine.depth > 0

    @contextmanager
    def left(self) -> Iterator[None]:
        """All threads again within the block, whether or not the caller is within."""
        mine = self._mine
        if mine.stays:
            yield
            return
        depth, mine.depth = mine.depth, min(mine.depth, 1)
        if depth:
            self.__exit__()
        try:
            yield
        finally:
            if depth:
                self.__enter__()
            mine.depth = depth

    @contextmanager
    def staying(self) -> Iterator[None]:
        """Within the block the caller leaves for nothing: it is one of several at work."""
        mine = self._mine
        before, mine.stays = mine.stays, True
        try:
            yield
        finally:
            mine.stays = before


class _Mine(threading.local):
    """How deep the calling thread is within, and what its OpenMP was set to before."""

    depth, stays = 0, False
    before: Sequence[tuple[Any, int]] = ()


@functools.cache
def _libraries(*loaded: bool) -> tuple[list[Any], list[Any]]:
    """Those that do linear algebra and those that run OpenMP's threads, looked for once.

    And again when one of the packages has been `loaded` that bring their own.
    """
    found = ThreadpoolController()
    return (
        found.select(user_api="blas").lib_controllers,
        found.select(user_api="openmp").lib_controllers,
    )


def _set(library: Any, threads: int) -> int:
    """Give it so many threads; return how many it had.

    threadpoolctl lets one thread alone set OpenBLAS until that one is done, and others silently
    nothing. Who is within is counted here, and the last may be another one than the first.
    """
    before: int = library.num_threads
    yielded = getattr(library, "clear_controlling_thread", lambda force: None)
    yielded(force=True)
    library.set_num_threads(threads)
    yielded(force=True)
    return before


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
