"""Beyond one machine: corpora and huge ground sets on Ray.

`prune` maps a method over a `ray.data.Dataset`; `prune_corpus` does it from Parquet to Parquet,
restartable; `maximize` picks from millions of points by distributed greedy. All three use Ray
through its own interfaces: datasets, actors, retries, progress are Ray's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core.dispatch import wake
from secateur.core.extras import extra
from secateur.core.maximize import maximize as maximize_here
from secateur.core.methods import Method
from secateur.core.objectives import FacilityLocation
from secateur.core.similarity import shifted, unit
from secateur.integrations.corpus import (
    Done,
    Numbers,
    Pruner,
    open_corpus,
    prune_shard,
    split,
    write_bad,
)
from secateur.integrations.shards import Shard, check_counts

with extra("ray", "secateur.integrations.ray"):
    import pyarrow as pa
    import ray
    import ray.data

GREEDY_FACTOR = 1.0 - 1.0 / math.e

SAMPLE = 20_000
"""Points on which the answers of the two rounds are compared."""


class PruneBatch:
    """The actor of `prune`: keeps the pruner, and with it compiled kernels, between batches."""

    def __init__(self, pruner: Pruner, bad: str | None) -> None:
        # Many images will come, for which loading Numba pays.
        wake("numpy")
        self._pruner = pruner
        self._bad = bad

    def __call__(self, table: pa.Table) -> pa.Table:
        """Prune a batch; bad rows go to the side output."""
        results = self._pruner(table)
        if self._bad is None:
            return results
        good, failed = split(results)
        if failed.num_rows:
            write_bad(failed, self._bad)
        return good


def prune(
    dataset: ray.data.Dataset,
    method: Method,
    features: str = "features",
    *,
    columns: Mapping[str, str] | None = None,
    keep_features: bool = False,
    bad: str | None = None,
    workers: int | tuple[int, int] = (1, 2),
    batch_size: int = 64,
    library: str = "numpy",
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> ray.data.Dataset:
    """Prune every image of a dataset.

    Parameters
    ----------
    dataset
        One row an image; columns as in `secateur.integrations.corpus`.
    method
        Which tokens to keep.
    features
        The column of visual features, (N, D) a row, N as it comes.
    columns
        The columns of other inputs where these are not named like the fields of `Tokens`.
    keep_features
        Whether results hold the kept features as well.
    bad
        A folder that all workers can write to, for rows that cannot be pruned, with the reason in
        `error`. Without it they stay in the dataset, `error` set and `kept` null.
    workers
        How many actors: a number, or the least and the most.
    batch_size
        Rows an actor takes at a time; rows of one size among them are chosen in one call.
    library
        ``"numpy"``, ``"torch"`` or ``"cupy"``.
    num_cpus, num_gpus
        What an actor occupies. With a GPU, torch tensors go to it.

    Returns
    -------
    ray.data.Dataset
        Lazy, streaming. The columns that the method does not read, and `kept` (ascending token
        indices), `gains`, `guarantee`, `error` (without `bad`), `kept_features` (on request).
    """
    pruner = Pruner(
        method,
        {**(columns or {}), "features": features},
        keep_features,
        library,
        "cuda" if num_gpus and library == "torch" else "cpu",
    )
    return dataset.map_batches(
        PruneBatch,
        fn_constructor_args=(pruner, bad),
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=_pool(workers),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        max_restarts=-1,
        max_task_retries=-1,
    )


class _PruneShard:
    def __init__(self, pruner: Pruner, batch_size: int) -> None:
        wake("numpy")
        self._pruner = pruner
        self._batch_size = batch_size

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = Shard(
            row["source"],
            tuple(int(g) for g in row["row_groups"]),
            row["target"],
            row["bad"],
            int(row["rows"]),
        )
        return asdict(prune_shard(shard, self._pruner, self._batch_size))


def prune_corpus(
    source: str | Path,
    target: str | Path,
    pruner: Pruner,
    *,
    workers: int | tuple[int, int] = (1, 2),
    batch_size: int = 64,
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> Iterator[Done]:
    """Prune what is left to do of a corpus, shards spread over the cluster.

    Parquet in, Parquet out, on a file system that all workers share; the same files as
    `secateur.integrations.corpus.prune_corpus` writes. A shard whose worker dies is taken up by
    another; a finished one is not redone when the run is started again.
    """
    pool = _pool(workers)
    every, todo = open_corpus(source, target, pruner)
    if not todo:
        check_counts(every)
        return
    items = [{**asdict(shard), "row_groups": list(shard.row_groups)} for shard in todo]
    done = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _PruneShard,
        fn_constructor_args=(pruner, batch_size),
        compute=pool,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        max_restarts=-1,
        max_task_retries=-1,
    )
    for row in done.iter_rows():
        yield Done(row["target"], int(row["images"]), int(row["bad"]), float(row["seconds"]))
    check_counts(every)


def _pool(workers: int | tuple[int, int]) -> Any:
    least = workers[0] if isinstance(workers, tuple) else workers
    if least < 1 or (isinstance(workers, tuple) and workers[1] < least):
        raise ValueError(f"workers: expected at least 1, or the least and the most, got {workers}")
    if isinstance(workers, tuple):
        return ray.data.ActorPoolStrategy(min_size=workers[0], max_size=workers[1])
    return ray.data.ActorPoolStrategy(size=workers)


@dataclass(frozen=True, eq=False)
class Picked:
    """What distributed greedy found.

    Attributes
    ----------
    indices
        The picks (k,) in order: row numbers of the dataset.
    value
        The facility-location value of the picks over all points, or its estimate.
    error
        Half the width of the 95 % confidence interval of `value`; 0 when worked out in full.
    bound
        The share of the best possible value that is certain: 1 - 1/e or the data's own
        certificate on one machine, (1 - 1/e) / 2 in expectation for random partitions.
    candidates
        How many candidates the second round chose from.
    partitions
        How many machines' worth of points the first round was split into.
    """

    indices: Numbers
    value: float
    error: float
    bound: float
    candidates: int
    partitions: int


@ray.remote
class _Worker:
    """Some partitions of the points: picks candidates in each, then follows everybody's gains.

    The second round runs on all workers together. Each keeps how well its own points are served
    and what each candidate would still add on them; a pick changes only the points it serves
    better.
    """

    def __init__(self, parts: Sequence[tuple[Numbers, Numbers]]) -> None:
        self._places = [places for places, _ in parts]
        self._parts = [unit(np.asarray(x, dtype=np.float32)) for _, x in parts]
        self._x = np.concatenate(self._parts)

    def pick(self, k: int) -> list[tuple[Numbers, Numbers]]:
        """The k picks of greedy on each partition alone: their places and unit features."""
        found = []
        for places, x in zip(self._places, self._parts, strict=True):
            chosen = maximize_here(FacilityLocation.from_features(x), min(k, len(x))).indices
            found.append((places[chosen], x[chosen]))
        return found

    def start(self, candidates: Numbers, share: float, seed: int) -> Numbers:
        """Begin the second round: the gain (C,) of every candidate on (a share of) the points."""
        self._c = candidates
        self._rows = self._x
        if share < 1.0:
            count = max(1, round(share * len(self._x)))
            dice = np.random.default_rng(seed)
            self._rows = self._x[np.sort(dice.choice(len(self._x), count, False))]
        self._m = np.zeros(len(self._rows), dtype=np.float32)
        self._g = np.zeros(len(candidates))
        for rows in _blocks(len(self._rows), len(candidates)):
            self._g += shifted(self._rows[rows] @ candidates.T).sum(axis=0, dtype=np.float64)
        return self._g

    def add(self, pick: int) -> Numbers:
        """Add a candidate: the gains (C,) of all candidates after it."""
        served = shifted(self._rows @ self._c[pick])
        improved = np.flatnonzero(served > self._m)
        for block in _blocks(len(improved), len(self._c)):
            rows = improved[block]
            s = shifted(self._rows[rows] @ self._c.T)
            low, high = self._m[rows, None], served[rows, None]
            np.clip(s, low, high, out=s)
            s -= low
            self._g -= s.sum(axis=0, dtype=np.float64)
        np.maximum(self._m, served, out=self._m)
        return self._g

    def served(self, kept: Numbers, share: float, seed: int) -> tuple[float, float, int]:
        """Sum, sum of squares and number of how well (a share of) the points are served."""
        x = self._x
        if share < 1.0:
            count = max(1, round(share * len(x)))
            x = x[np.sort(np.random.default_rng(seed).choice(len(x), count, False))]
        m = np.zeros(len(x), dtype=np.float32)
        for rows in _blocks(len(x), len(kept)):
            m[rows] = shifted(x[rows] @ kept.T).max(axis=1)
        wide = m.astype(np.float64)
        return float(wide.sum()), float((wide**2).sum()), len(x)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, (1 << 23) // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def maximize(
    dataset: ray.data.Dataset | Numbers,
    k: int,
    features: str = "features",
    *,
    partitions: int | None = None,
    rows: int | None = None,
    evaluate: int | None = None,
    fits: int = 20_000,
    seed: int = 0,
    num_cpus: float = 1,
) -> Picked:
    r"""Pick k of millions of points by facility location, in two rounds of greedy.

    Points are dealt to partitions at random. Greedy picks k candidates from each by itself;
    then greedy picks k of all candidates, and here a candidate's gain is on *all* points, which
    the workers add up. The better of that answer and the best partition's own is returned:
    RandGreeDi. Where all points fit on one machine, plain greedy answers.

    Parameters
    ----------
    dataset
        One row a point with features (D,), or a NumPy array (N, D).
    k
        How many to pick.
    features
        The column of features.
    partitions
        How many; by default :math:`\sqrt{N / k}`, at least one for each worker.
    rows
        Take the gains of the second round on a random sample of so many points instead of all:
        facility location is a sum over points, so a sample estimates it.
    evaluate
        Work out the value on a random sample of so many points instead of all.
    fits
        Up to so many points one machine does it alone.
    seed
        The same seed deals the points in the same way.
    num_cpus
        What a worker occupies; there are as many as the cluster's CPUs allow.

    Returns
    -------
    Picked
        The picks, their value, and the bound that holds.

    Notes
    -----
    With m partitions the first round works out a few times :math:`N^2 / m` similarities, the
    second a few times :math:`N m k`; :math:`m = \sqrt{N / k}` balances them. Each pick of the
    second round is one exchange of m k numbers between the driver and every worker. The driver
    holds the points once, as float32.

    References
    ----------
    B. Mirzasoleiman, A. Karbasi, R. Sarkar and A. Krause, "Distributed submodular maximization:
    identifying representative elements in massive data", NeurIPS 2013. R. Barbosa, A. Ene,
    H. Nguyen and J. Ward, "The power of randomization: distributed submodular maximization on
    massive datasets", ICML 2015: (1 - 1/e) / 2 in expectation.
    """
    x = dataset if isinstance(dataset, np.ndarray) else _gather(dataset, features)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"features: expected points (N, D), got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("features: contains NaN or infinity")
    if not 1 <= k <= len(x):
        raise ValueError(f"k: expected 1 .. {len(x)}, got {k}")
    if len(x) <= fits:
        kept = maximize_here(FacilityLocation.from_features(x), k)
        return Picked(kept.indices, _number(kept.value), 0.0, _number(kept.guarantee), len(x), 1)
    room = max(1, int(ray.cluster_resources().get("CPU", 1) // num_cpus))
    if partitions is None:
        partitions = max(room, round(math.sqrt(len(x) / k)))
    places = np.array_split(np.random.default_rng(seed).permutation(len(x)), partitions)
    workers = [
        _Worker.options(num_cpus=num_cpus).remote(  # type: ignore[attr-defined]
            [(p, x[p]) for p in places[first::room]]
        )
        for first in range(min(room, partitions))
    ]
    local = [each for found in ray.get([w.pick.remote(k) for w in workers]) for each in found]
    owners = np.concatenate([found for found, _ in local])
    candidates = np.concatenate([directions for _, directions in local])
    share = 1.0 if rows is None else min(1.0, rows / len(x))
    chosen = _second_round(workers, candidates, k, share, seed)
    answers = [owners[chosen], *(found for found, _ in local if len(found) == k)]
    compared = min(1.0, SAMPLE / len(x))
    best = max(answers, key=lambda picks: _value(workers, x[picks], compared, len(x), seed)[0])
    final = 1.0 if evaluate is None else min(1.0, evaluate / len(x))
    value, error = _value(workers, x[best], final, len(x), seed + 1)
    return Picked(best, value, error, GREEDY_FACTOR / 2, len(candidates), partitions)


def _number(x: Any) -> float:
    return float(x)


def _second_round(
    workers: Sequence[Any], candidates: Numbers, k: int, share: float, seed: int
) -> Numbers:
    """Greedy over the candidates with gains summed over all workers."""
    shared = ray.put(candidates)
    gains = _total([worker.start.remote(shared, share, seed) for worker in workers])
    chosen: list[int] = []
    for _ in range(k):
        gains[chosen] = -np.inf
        pick = int(np.argmax(gains))
        chosen.append(pick)
        gains = _total([worker.add.remote(pick) for worker in workers])
    return np.asarray(chosen)


def _total(parts: Sequence[Any]) -> Numbers:
    total: Numbers = np.sum(ray.get(list(parts)), axis=0)
    return total


def _value(
    workers: Sequence[Any], kept: Numbers, share: float, n: int, seed: int
) -> tuple[float, float]:
    """The value of a set over all points, and half of a 95 % interval where it is a sample's."""
    shared = ray.put(unit(np.asarray(kept, dtype=np.float32)))
    parts = ray.get([worker.served.remote(shared, share, seed) for worker in workers])
    total, squares, count = (sum(part[i] for part in parts) for i in range(3))
    if share >= 1.0:
        return total, 0.0
    mean = total / count
    spread = math.sqrt(max(0.0, squares / count - mean**2))
    return n * mean, 1.96 * n * spread / math.sqrt(count)


def _gather(dataset: ray.data.Dataset, features: str) -> Numbers:
    """The features of all points, in the order of the dataset, as float32 on the driver."""
    column = dataset.select_columns([features])
    # Row numbers are the answer, so blocks must come in order.
    column.context.execution_options.preserve_order = True
    blocks = [
        np.stack([np.asarray(v, dtype=np.float32) for v in batch[features]])
        for batch in column.iter_batches(batch_size=65_536, batch_format="numpy")
    ]
    return np.concatenate(blocks) if blocks else np.empty((0, 0), dtype=np.float32)
