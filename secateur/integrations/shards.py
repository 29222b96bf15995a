"""The files of a corpus: its shards, where their results go, what tells them from others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.core.extras import extra

with extra("ray", "secateur.integrations.corpus"):
    import pyarrow as pa
    import pyarrow.parquet as pq


@dataclass(frozen=True)
class Shard:
    """A piece of a corpus that is pruned and written in one go."""

    source: str
    row_groups: tuple[int, ...]
    target: str
    bad: str
    rows: int
    """How many images it holds."""


RECORD = "_secateur.json"
BAD = "_bad"
"""What lies beside the results, under names that readers of Parquet folders pass over."""


def shards(source: str | Path, target: str | Path) -> list[Shard]:
    """The shards of a corpus: every row group of every Parquet file below `source`.

    A shard's results go to a file of its own below `target`, in the folder and under the name of
    its source, and its bad rows to one below ``target/_bad``. Names depend on nothing else, so a
    run that was interrupted finds what it has finished.
    """
    root, out = Path(source), Path(target)
    found = []
    for file in parquet_files(root):
        name = result_name(file, root)
        metadata = opened(file).metadata
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if rows:
                own = f"{name}-{group:05d}.parquet"
                found.append(Shard(str(file), (group,), str(out / own), str(out / BAD / own), rows))
    return found


def parquet_files(root: Path) -> list[Path]:
    """All Parquet files of a corpus, by name."""
    files = sorted(root.rglob("*.parquet")) if root.is_dir() else [root]
    if not files or not files[0].exists():
        raise FileNotFoundError(f"{root}: no Parquet file there")
    return files


def result_name(file: Path, root: Path) -> str:
    """Where the results of a file go: its relative path, no part of it hidden from readers."""
    relative = file.relative_to(root) if root.is_dir() else Path(file.name)
    shown = []
    for part in relative.with_suffix("").parts:
        part = part.replace("%", "%25")
        if part[0] in "_.":
            part = f"%{ord(part[0]):02X}{part[1:]}"
        shown.append(part)
    return "/".join(shown)


def opened(file: str | Path) -> pq.ParquetFile:
    """A Parquet file, or an error that names it."""
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from None


def fingerprint(file: Path) -> str:
    """What tells a file from others: its size, and its footer with all counts and statistics."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(0, size - 8))
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(max(0, size - 8 - length))
        footer = opened.read()
    return f"{size}:{hashlib.sha256(footer).hexdigest()[:24]}"


def check_counts(every: Sequence[Shard]) -> None:
    """Refuse a finished corpus that holds other than one result or one reason for each image."""
    for shard in every:
        there = 0
        for path in (shard.target, shard.bad):
            if Path(path).exists():
                there += opened(path).metadata.num_rows
        if there != shard.rows:
            raise ValueError(
                f"{shard.target}: {shard.rows} images went in from {shard.source}, {there} came "
                "out; remove the file and start again"
            )
