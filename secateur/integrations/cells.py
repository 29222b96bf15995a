"""Arrays in the cells of Parquet columns: read cell by cell or a whole column, and written."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.core.extras import extra

with extra("ray", "secateur.integrations.corpus"):
    import pyarrow as pa
    import pyarrow.compute

Numbers = np.ndarray[Any, np.dtype[Any]]


RAYS = ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")
"""The names of Ray's own tensors of one shape, whose numbers lie one after the other in lists."""


def lists(values: Any, counts: Numbers) -> pa.Array:
    """Lists of so many of the values each, one after the other."""
    # Refused by Arrow, and not wrapped round, where there are more than it can count.
    ends = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pa.ListArray.from_arrays(ends, pa.array(values))


def block(column: pa.ChunkedArray | pa.Array) -> Numbers | None:
    """A whole column (B, ...), where nothing is missing and all cells have one shape, else None."""
    level = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(level, pa.ChunkedArray):
        level = level.chunk(0) if level.num_chunks == 1 else pa.concat_arrays(level.chunks)
    if level.null_count:
        return None
    if isinstance(level, pa.FixedShapeTensorArray):
        tensors: Numbers = level.to_numpy_ndarray()
        return tensors
    if getattr(level.type, "extension_name", "") in RAYS:
        flat = block(level.storage)
        return None if flat is None else flat.reshape(len(level), *level.type.shape)
    if not is_list(level.type):
        return None
    shape = [len(level)]
    while is_list(level.type):
        long = length(level)
        if not long:
            return None
        shape.append(long)
        level = level.flatten()
    if level.null_count or isinstance(level, pa.ExtensionArray):
        return None
    x: Numbers = level.to_numpy(zero_copy_only=False).reshape(shape)
    return x


def length(lists: pa.Array) -> int | None:
    """How long every one of the lists is; None where they differ or one is missing."""
    lengths = pa.compute.unique(pa.compute.list_value_length(lists)).to_pylist()
    return lengths[0] if len(lengths) == 1 else None


def array(value: pa.Scalar) -> Numbers | None:
    """The array in a cell: a tensor, or nested lists of one shape. None where the cell is null."""
    if not value.is_valid:
        return None
    if isinstance(value, pa.ExtensionScalar):
        return np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value.as_py())
    if not hasattr(value, "values"):
        return np.asarray(value.as_py())
    level, shape = value.values, [len(value.values)]
    if not len(level):
        raise ValueError("the list is empty")
    while is_list(level.type):
        long = length(level)
        if long is None:
            raise ValueError("rows of unlike length within one image")
        shape.append(long)
        level = level.flatten()
    if level.null_count:
        raise ValueError("a number is missing")
    x: Numbers = level.to_numpy(zero_copy_only=False).reshape(shape)
    return x


def holds_numbers(kind: pa.DataType) -> bool:
    """Whether a column can hold an array; of one of nulls alone, the rows say what is missing."""
    while is_list(kind):
        kind = kind.value_type
    if isinstance(kind, pa.BaseExtensionType):
        return True
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(number or pa.types.is_boolean(kind) or pa.types.is_null(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether cells are lists, of whatever kind."""
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
