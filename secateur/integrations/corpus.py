"""Pruning whole corpora: tables of images in, tables of kept tokens out.

A row is an image. Its columns are named like the fields of `secateur.Tokens`; each holds nested
lists or tensors, and images may differ in size. This file works on one batch of rows or one
shard of a corpus in this process; `secateur.integrations.ray` spreads the same calls over a
cluster.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core.acts import Cuts
from secateur.core.arrays import to_numpy
from secateur.core.dispatch import wake
from secateur.core.extras import extra
from secateur.core.inputs import Tokens
from secateur.core.methods import Method
from secateur.integrations.cells import array, block, holds_numbers, lists
from secateur.integrations.shards import (
    BAD,
    RECORD,
    Shard,
    check_counts,
    fingerprint,
    opened,
    parquet_files,
    result_name,
    shards,
)

with extra("ray", "secateur.integrations.corpus"):
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet as pq

Numbers = np.ndarray[Any, np.dtype[Any]]

FIELDS = (
    "features",
    "embeds",
    "text",
    "text_global",
    "text_mask",
    "attention",
    "attention_shallow",
    "pixels",
    "keys",
)
"""The fields of `Tokens` that a column can hold as an array; `grid` is a pair of numbers."""

MANY = 2_000
"""Images for which loading Numba pays, which not every method does by itself."""

RESULTS = {
    "kept": pa.list_(pa.int64()),
    "gains": pa.list_(pa.float64()),
    "guarantee": pa.float64(),
    "error": pa.string(),
}
"""The columns that every result has. `gains` and `guarantee` are null where a method has none."""


@dataclass(frozen=True)
class Pruner:
    """How the rows of a table become results; plain data, so that it travels to workers.

    Parameters
    ----------
    method
        Which tokens to keep.
    columns
        The column of each input, such as ``{"features": "visual"}``; inputs that are absent here
        are looked up under their own names.
    keep_features
        Whether results also hold the kept features, `kept_features`, in ascending token order and
        as float32.
    library
        ``"numpy"``, ``"torch"`` or ``"cupy"``: who computes.
    device
        Where, for torch: ``"cpu"`` or ``"cuda"``.
    """

    method: Method
    columns: Mapping[str, str] = field(default_factory=dict)
    keep_features: bool = False
    library: str = "numpy"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.library not in ("numpy", "torch", "cupy"):
            raise ValueError(f"library: expected numpy, torch or cupy, got {self.library!r}")
        unknown = set(self.columns) - {*FIELDS, "grid"}
        if unknown:
            raise ValueError(f"columns: expected inputs of a method, got {sorted(unknown)}")
        if not self.method.prunes_before:
            where = "a language model" if isinstance(self.method, Cuts) else "an encoder"
            raise ValueError(
                f"method: {type(self.method).__name__} prunes inside {where}, of which a table "
                "knows nothing; take one that acts before the language model"
            )

    def column(self, name: str) -> str:
        """The column that holds an input."""
        return self.columns.get(name, name)

    def inputs(self) -> list[str]:
        """The inputs this method reads where a table has them."""
        wanted = self.method.needs | self.method.optional | {"features", "grid"}
        return [name for name in (*FIELDS, "grid") if name in wanted]

    def check(self, schema: pa.Schema) -> None:
        """Refuse a table without the columns the method needs, or with other things in them."""
        for name in sorted(self.method.needs):
            if self.column(name) not in schema.names:
                raise ValueError(
                    f"{type(self.method).__name__} needs a column {self.column(name)!r}, "
                    f"the table has {', '.join(schema.names)}"
                )
        for name in self.inputs():
            column = self.column(name)
            if column in schema.names and not holds_numbers(schema.field(column).type):
                raise ValueError(
                    f"{name}: expected nested lists of numbers or tensors in the column "
                    f"{column!r}, which holds {schema.field(column).type}"
                )

    def __call__(self, table: pa.Table) -> pa.Table:
        """Results of a batch of rows, in their order; a row that cannot be pruned says why.

        Columns that the method does not read are passed on.
        """
        found = [pa.table({name: pa.nulls(0, kind) for name, kind in self._schema().items()})]
        order: list[int] = []
        for group in self._read(table):
            found += self._prune(group)
            order += group.places
        results = pa.concat_tables(found)
        if order != list(range(table.num_rows)):
            results = results.take(np.argsort(order))
        inputs = {self.column(name) for name in self.inputs()}
        passed = table.select([c for c in table.column_names if c not in inputs | self._results()])
        for name in results.column_names:
            passed = passed.append_column(name, results[name])
        return passed

    def _schema(self) -> dict[str, pa.DataType]:
        if not self.keep_features:
            return RESULTS
        return {**RESULTS, "kept_features": pa.list_(pa.list_(pa.float32()))}

    def _results(self) -> set[str]:
        return set(self._schema())

    def _read(self, table: pa.Table) -> list[_Alike]:
        """All rows, those whose inputs have the same shapes together."""
        self.check(table.schema)
        columns = {
            name: table.column(self.column(name))
            for name in self.inputs()
            if self.column(name) in table.column_names
        }
        blocks = {name: block(column) for name, column in columns.items()}
        whole = {name: x for name, x in blocks.items() if x is not None and _one_grid(name, x)}
        if table.num_rows and len(whole) == len(columns):
            return [_Alike(list(range(table.num_rows)), whole)]
        groups: dict[Any, list[dict[str, Numbers]]] = {}
        places: dict[Any, list[int]] = {}
        for place in range(table.num_rows):
            try:
                row = {name: array(column[place]) for name, column in columns.items()}
                grid = row.get("grid")
                if grid is not None and grid.shape != (2,):
                    raise ValueError(f"grid: expected (h, w), got {grid.tolist()!r}")
                there = {name: x for name, x in row.items() if x is not None}
                key: Any = _shapes(there)
            except (ValueError, TypeError, pa.ArrowInvalid) as error:
                there, key = {}, f"unreadable: {error}"
            groups.setdefault(key, []).append(there)
            places.setdefault(key, []).append(place)
        return [
            _Alike(places[key], {}, key)
            if isinstance(key, str)
            else _Alike(places[key], {name: np.stack([r[name] for r in rows]) for name in rows[0]})
            for key, rows in groups.items()
        ]

    def _prune(self, group: _Alike) -> list[pa.Table]:
        """Results of rows of one shape, pruned together; when they fail together, one by one."""
        if group.error:
            return [self._failed(group)]
        try:
            return [self._select(group)]
        except (ValueError, ArithmeticError) as error:
            if len(group.places) == 1:
                why = f"{type(error).__name__}: {error}"
                return [self._failed(_Alike(group.places, {}, why))]
        return [
            table
            for at, place in enumerate(group.places)
            for table in self._prune(
                _Alike([place], {name: x[at : at + 1] for name, x in group.inputs.items()})
            )
        ]

    def _failed(self, group: _Alike) -> pa.Table:
        """Rows of nothing but the reason."""
        count = len(group.places)
        columns = {name: pa.nulls(count, kind) for name, kind in self._schema().items()}
        return pa.table({**columns, "error": pa.array([group.error] * count, pa.string())})

    def _select(self, group: _Alike) -> pa.Table:
        given = dict(group.inputs)
        grid = given.pop("grid", None)
        sides = None if grid is None else tuple(int(side) for side in grid[0])
        if "features" not in given:
            raise ValueError(f"no features in column {self.column('features')!r}")
        placed = {name: self._place(x) for name, x in given.items()}
        tokens = Tokens(grid=sides, **placed)  # type: ignore[arg-type]
        selection = self.method.select(tokens)
        kept, count = to_numpy(selection.sorted()), to_numpy(selection.count)
        there = np.arange(kept.shape[-1]) < count[:, None]
        columns = {"kept": lists(kept[there], count)}
        if selection.gains is not None:
            # Gains belong to the picks in order; `kept` is ascending, and so are they.
            picked = np.where(there, to_numpy(selection.indices), selection.size)
            order = np.argsort(picked, axis=-1, kind="stable")
            gains = np.take_along_axis(to_numpy(selection.gains), order, axis=-1)
            columns["gains"] = lists(gains[there].astype(np.float64, copy=False), count)
        if selection.guarantee is not None:
            shares = np.broadcast_to(to_numpy(selection.guarantee), count.shape)
            columns["guarantee"] = pa.array(shares.astype(np.float64, copy=False))
        if self.keep_features:
            features = to_numpy(selection.gather(tokens.features)).astype(np.float32, copy=False)
            vectors = features[there]
            widths = np.full(len(vectors), vectors.shape[-1])
            columns["kept_features"] = lists(lists(vectors.reshape(-1), widths), count)
        schema = self._schema()
        return pa.table(
            {
                name: columns[name] if name in columns else pa.nulls(len(count), kind)
                for name, kind in schema.items()
            },
            schema=pa.schema(schema),
        )

    def _place(self, x: Numbers) -> Any:
        if self.library == "torch":
            import torch

            return torch.from_numpy(x).to(self.device)
        if self.library == "cupy":
            import cupy

            return cupy.asarray(x)
        return x


@dataclass(frozen=True)
class _Alike:
    """Rows of a table whose inputs have the same shapes, or that share what is wrong with them."""

    places: list[int]
    inputs: dict[str, Numbers]
    """Every input of all of them, (M, ...)."""
    error: str = ""


def _one_grid(name: str, x: Numbers) -> bool:
    """Whether rows may go together as far as this input is concerned."""
    return name != "grid" or (x.shape[1:] == (2,) and bool((x == x[0]).all()))


def _shapes(row: Mapping[str, Numbers]) -> Any:
    """What rows that go together have in common: shapes of inputs, and the grid itself."""
    return tuple(
        (name, tuple(x.tolist()) if name == "grid" else (x.shape, str(x.dtype)))
        for name, x in sorted(row.items())
    )


@dataclass(frozen=True)
class Done:
    """What became of a shard."""

    target: str
    images: int
    bad: int
    seconds: float


def open_corpus(
    source: str | Path, target: str | Path, pruner: Pruner
) -> tuple[list[Shard], list[Shard]]:
    """All shards of a corpus, and those still to do.

    The settings and the files they were used on are kept beside the results: going on with
    others is refused, since it would mix results. Files may be added to a corpus. What a run
    that was killed had half written is removed.
    """
    root, out = Path(source), Path(target)
    inner, outer = out.resolve(), root.resolve()
    if root.is_dir() and (inner.is_relative_to(outer) or outer.is_relative_to(inner)):
        raise ValueError(f"target: expected a folder apart from the source {root}, got {out}")
    every = shards(source, target)
    for file in dict.fromkeys(shard.source for shard in every):
        try:
            pruner.check(opened(file).schema_arrow)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    settings: dict[str, Any] = {
        "method": pruner.method.to_dict(),
        "columns": dict(pruner.columns),
        "keep_features": pruner.keep_features,
    }
    prints = {result_name(file, root): fingerprint(file) for file in parquet_files(root)}
    _refuse_others(out, settings, prints)
    (out / BAD).mkdir(parents=True, exist_ok=True)
    for draft in out.rglob("*.part"):
        draft.unlink(missing_ok=True)
    written = {**settings, "source": str(outer), "files": prints}
    _write_text(out / RECORD, json.dumps(written, indent=1))
    return every, [shard for shard in every if not Path(shard.target).exists()]


def _refuse_others(out: Path, settings: Mapping[str, Any], prints: Mapping[str, str]) -> None:
    """Refuse a target that holds what other settings or another source left there."""
    record = out / RECORD
    if not any(out.rglob("*.parquet")):
        return
    if not record.exists():
        raise ValueError(f"{out}: holds Parquet files of another origin; choose an empty folder")
    try:
        earlier = json.loads(record.read_text(encoding="utf-8"))
        before, files = earlier.pop("source"), earlier.pop("files")
        changed = [name for name in files if prints.get(name) != files[name]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{record}: cannot be read; choose an empty folder") from None
    if earlier != json.loads(json.dumps(settings)):
        raise ValueError(
            f"{out}: holds results of other settings, {json.dumps(earlier)}; choose an empty folder"
        )
    if changed:
        raise ValueError(
            f"{out}: holds results of another source, {before}, whose {changed[0]}.parquet is not "
            "the one here; choose an empty folder"
        )


def prune_shard(shard: Shard, pruner: Pruner, batch_size: int = 64) -> Done:
    """Prune one shard and write its results, whole or not at all.

    Rows are read `batch_size` at a time, so memory does not grow with the shard. Results are
    written beside their place and moved there at the end: a worker that dies leaves nothing
    that counts as done.
    """
    from time import perf_counter

    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1 image, got {batch_size}")
    start = perf_counter()
    images = bad = 0
    for path in (shard.target, shard.bad):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    good_path, bad_path = _draft(shard.target), _draft(shard.bad)
    good_file: pq.ParquetWriter | None = None
    bad_file: pq.ParquetWriter | None = None
    try:
        for table in _tables(shard, batch_size):
            results = pruner(table)
            good, failed = split(results)
            good_file = good_file or pq.ParquetWriter(good_path, good.schema)
            good_file.write_table(good)
            if failed.num_rows:
                bad_file = bad_file or pq.ParquetWriter(bad_path, failed.schema)
                bad_file.write_table(failed)
            images += good.num_rows
            bad += failed.num_rows
    finally:
        for file in (good_file, bad_file):
            if file is not None:
                file.close()
    if images + bad != shard.rows:
        raise ValueError(
            f"{shard.source}: {shard.rows} images went in, {images + bad} came out of "
            f"{type(pruner.method).__name__}"
        )
    # Bad rows first: once the results are there the shard is done.
    if bad_file is not None:
        os.replace(bad_path, shard.bad)
    if good_file is not None:
        os.replace(good_path, shard.target)
    return Done(shard.target, images, bad, perf_counter() - start)


def _tables(shard: Shard, batch_size: int) -> Iterator[pa.Table]:
    """The rows of a shard, `batch_size` at a time, the next ones read while these are pruned."""
    reader = opened(shard.source)
    batches = reader.iter_batches(batch_size=batch_size, row_groups=list(shard.row_groups))
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(next, batches, None)
        while True:
            try:
                batch = coming.result()
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{shard.source} cannot be read as Parquet: {error}") from None
            if batch is None:
                return
            coming = ahead.submit(next, batches, None)
            yield pa.Table.from_batches([batch])


def split(results: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Results without their `error` column, and the rows that could not be pruned with theirs."""
    failed = pa.compute.is_valid(results["error"])
    dropped = [name for name in (*RESULTS, "kept_features") if name != "error"]
    bad = results.filter(failed)
    return (
        results.filter(pa.compute.invert(failed)).drop_columns("error"),
        bad.drop_columns([name for name in dropped if name in bad.column_names]),
    )


def write_bad(rows: pa.Table, folder: str | Path) -> None:
    """Write bad rows to a file named after what they hold: written twice, they are there once."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows.combine_chunks())
    name = hashlib.sha256(sink.getvalue()).hexdigest()[:24]
    path = Path(folder) / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(str(path))
    pq.write_table(rows, draft)
    os.replace(draft, path)


def prune_corpus(
    source: str | Path, target: str | Path, pruner: Pruner, batch_size: int = 64
) -> Iterator[Done]:
    """Prune what is left to do of a corpus in this process, shard by shard.

    The folder can then be read as one table, by ``pyarrow.parquet.read_table(target)``.
    """
    every, todo = open_corpus(source, target, pruner)
    if sum(shard.rows for shard in todo) > MANY:
        wake("numpy")
    for shard in todo:
        yield prune_shard(shard, pruner, batch_size)
    check_counts(every)


def _draft(path: str) -> str:
    return f"{path}.{os.getpid()}.part"


def _write_text(path: Path, text: str) -> None:
    draft = Path(_draft(str(path)))
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
