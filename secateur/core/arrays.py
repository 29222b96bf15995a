"""The array protocol: whose array is it, what do its numbers count as, and may it come in.

Core code is written against the Python array API standard; what a library can do better than the
standard allows is in `secateur.core.dispatch`.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any, cast

import array_api_compat as compat
import numpy as np

Array = Any
"""An array of any library that the array API standard knows."""


Namespace = Any
"""The module of array functions that belongs to an array."""


def library(x: Array) -> str:
    """Top-level name of the library an array belongs to, ``"numpy"`` or ``"torch"``."""
    name = type(x).__module__.partition(".")[0]
    return "jax" if name == "jaxlib" else name


_namespaces: dict[type, Namespace] = {np.ndarray: np} if hasattr(np, "astype") else {}
"""By the type of arrays, of NumPy and PyTorch alone.

NumPy follows the standard itself, as from 2.1 on. The compatible namespace looks up every name
that NumPy has, and so loads packages of it that nothing here uses: a tenth of a second before the
first choice.
"""


def namespace(*arrays: Array) -> Namespace:
    """The array API namespace all the arrays share; absent ones (None) are passed over."""
    kinds = {type(x) for x in arrays}
    kinds.discard(NoneType)
    kind = kinds.pop() if len(kinds) == 1 else NoneType
    if kind in _namespaces:
        return _namespaces[kind]
    given = [x for x in arrays if x is not None and not is_sparse(x)]
    plain = given and all(isinstance(x, (np.ndarray, np.generic)) for x in given)
    if plain and np.ndarray in _namespaces:
        return np
    try:
        found = compat.array_namespace(*given)
    except TypeError:
        names = " and ".join(sorted({library(x) for x in given}))
        raise ValueError(f"arrays of one library are expected in one call, got {names}") from None
    if given and kind is type(given[0]) and compat.is_torch_array(given[0]):
        _namespaces[kind] = found
    return found


def device(x: Array) -> Any:
    """Where an array lives."""
    return compat.device(x)


def is_sparse(x: Any) -> bool:
    """Whether `x` is a SciPy sparse matrix or array. Does not import SciPy."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(x))


def wide(xp: Namespace) -> Any:
    """The dtype for sums that decide a pick: float64, float32 where the library has no more."""
    if _narrow(xp):
        return xp.float32
    return xp.float64


def index_dtype(xp: Namespace) -> Any:
    """The dtype of indices: int64, int32 where the library has no more."""
    return xp.int32 if _narrow(xp) else xp.int64


def _narrow(xp: Namespace) -> bool:
    if not compat.is_jax_namespace(xp):
        return False
    return not sys.modules["jax"].config.jax_enable_x64


def epsilon(x: Array) -> float:
    """Distance from 1 to the next number in the array's dtype."""
    return float(namespace(x).finfo(x.dtype).eps)


def rounding(xp: Namespace) -> float:
    """Distance from 1 to the next number in the dtype of sums."""
    return float(xp.finfo(wide(xp)).eps)


def constant(x: Array) -> Array:
    """The array without its history of gradients: a choice of tokens has no derivative."""
    return x.detach() if compat.is_torch_array(x) else x


def is_half(x: Array) -> bool:
    """Whether an array has 16-bit floats, which computations widen to float32."""
    if isinstance(x, np.ndarray) and x.dtype.kind == "f":
        return bool(x.dtype.itemsize == 2)
    return str(x.dtype).rpartition(".")[2] in ("float16", "bfloat16")


def widened(x: Array) -> Array:
    """The array in the dtype it is computed in: half to float32, integers to the widest float.

    Of NumPy's dtypes long double becomes float64, and any byte order this machine's.
    """
    xp = namespace(x)
    if isinstance(x, np.ndarray):
        # Subclasses redefine arithmetic; neither loops nor LAPACK know another byte order, or
        # more than float64.
        if type(x) is not np.ndarray or not x.dtype.isnative:
            x = np.asarray(x, dtype=x.dtype.newbyteorder("="))
        if x.dtype == np.longdouble:
            x = x.astype(np.float64)
        if x.dtype.kind == "f" and x.dtype.itemsize > 2:
            return x
    if is_half(x):
        return xp.astype(x, xp.float32)
    if xp.isdtype(x.dtype, "real floating"):
        return x
    if xp.isdtype(x.dtype, ("integral", "bool")):
        return xp.astype(x, wide(xp))
    raise ValueError(f"expected real numbers, got dtype {x.dtype}")


def shape_of(x: Array) -> tuple[int, ...]:
    """The shape as a plain tuple of ints."""
    return tuple(int(n) for n in x.shape)


def spell(shape: Sequence[int]) -> str:
    """A shape as people write it."""
    return "(" + ", ".join(str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"


def checked(
    x: Any,
    name: str,
    layout: str = "(...)",
    *,
    check_finite: bool = True,
    non_negative: bool = False,
    beside: Array | None = None,
) -> Array:
    """Let an argument in as an array to compute on, or refuse it in words.

    Parameters
    ----------
    x
        An array of any library, or a list or tuple of numbers, which becomes an array of
        NumPy, or of the library and on the device of `beside`.
    name
        The argument's name, for the message.
    layout
        The expected shape as the message prints it, e.g. ``"(..., N, D)"``; its named axes
        must be there and must not be empty.
    check_finite
        Whether to refuse NaN and infinity. Costs a pass over the data and, on a GPU, a
        synchronisation.
    non_negative
        Whether to refuse negative numbers.
    """
    x = widened(shaped(x, name, layout, beside=beside))
    xp = namespace(x)
    if check_finite and not _finite(x):
        raise ValueError(f"{name}: contains NaN or infinity (check_finite=False skips this check)")
    if non_negative and bool(xp.any(x < 0)):
        least = float(constant(xp.min(x)))
        raise ValueError(f"{name}: expected no negative numbers, smallest is {least}")
    return x


def shaped(x: Any, name: str, layout: str = "(...)", *, beside: Array | None = None) -> Array:
    """Let an argument in as an array of real numbers that has the axes of `layout`; see `checked`.

    Looks at no number.
    """
    if isinstance(x, (list, tuple, int, float)):
        x = _from_numbers(x, name, layout)
        if beside is not None:
            x = like(x, beside)
    refuse_kind(x, name)
    if not compat.is_array_api_obj(x):
        raise ValueError(f"{name}: expected an array of shape {layout}, got {type(x).__name__}")
    axes = [axis for axis in layout.strip("()").split(",") if axis.strip() not in ("...", "")]
    shape = shape_of(x)
    fits = len(shape) >= len(axes) if "..." in layout else len(shape) == len(axes)
    if not fits or (axes and axes[-1].strip() == "3" and shape[-1] != 3):
        raise ValueError(f"{name}: expected shape {layout}, got {spell(shape)}")
    if axes and 0 in shape[len(shape) - len(axes) :]:
        raise ValueError(f"{name}: expected shape {layout} without empty axes, got {spell(shape)}")
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiub":
        return x
    if not namespace(x).isdtype(x.dtype, ("real floating", "integral", "bool")):
        raise ValueError(f"{name}: expected real numbers, got dtype {x.dtype}")
    return x


def refuse_kind(x: Any, name: str) -> None:
    """Refuse what looks like an array and has no plain numbers behind every place."""
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError(
            f"{name}: masked arrays are not supported; fill it or select from it first"
        )
    if not compat.is_torch_array(x):
        return
    if x.layout is not sys.modules["torch"].strided:
        raise ValueError(f"{name}: sparse tensors are not supported, got layout {x.layout}")
    if x.is_meta:
        raise ValueError(f"{name}: a tensor on the device 'meta' has no numbers to choose by")
    functorch = getattr(sys.modules["torch"]._C, "_functorch", None)
    if functorch is not None and functorch.is_batchedtensor(x):
        raise ValueError(f"{name}: cannot be mapped by torch.vmap; give a batch as leading axes")


def _from_numbers(x: Any, name: str, layout: str) -> np.ndarray[Any, Any]:
    try:
        values = np.asarray(x)
        if values.dtype.kind == "u":  # whole numbers of Python beyond int64
            return values.astype(np.float64)
        if values.dtype.kind in "bif":
            return values
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"{name}: expected an array of shape {layout}, got a {type(x).__name__} that is no array "
        "of real numbers"
    )


def _finite(x: Array) -> bool:
    x = lent(x)
    xp = namespace(x)
    # One pass without a mask: NaN and infinity survive a sum. A sum may overflow, so only a
    # finite one settles it.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(xp.isfinite(_total(x))) or bool(xp.all(xp.isfinite(x)))


def _total(x: Array) -> Array:
    """The sum of all numbers, roughly: `einsum` adds up sooner than `sum`, which adds in pairs."""
    if isinstance(x, np.ndarray) and x.flags.forc and x.dtype in (np.float32, np.float64):
        return np.einsum("n->", x.ravel(order="K"))
    return namespace(x).sum(x)


def lent(x: Array) -> Array:
    """The array of NumPy on the memory of a tensor on the CPU; any other array as it is.

    What is a pass or two over some megabytes, one thread does sooner than PyTorch's would wake,
    and they would go on spinning beside those of whoever works next.
    """
    if compat.is_torch_array(x) and x.device.type == "cpu" and not is_half(x):
        return x.detach().numpy()
    return x


def check_lengths(**sizes: int) -> None:
    """Refuse lengths that should agree and do not; the keywords name who has which."""
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(f"lengths disagree: {told}")


def whole(x: Any) -> int:
    """A whole number as an int, -1 for what is none."""
    if isinstance(x, bool):
        return -1
    try:
        return operator.index(x)
    except TypeError:
        return -1


def resolve_keep(keep: Any, n: int, name: str = "keep") -> int:
    """A budget in tokens from a count or a share of `n` tokens.

    >>> resolve_keep(64, 576), resolve_keep(0.25, 576), resolve_keep(1000, 576)
    (64, 144, 576)
    """
    if isinstance(keep, bool) or not isinstance(keep, (int, float, np.integer, np.floating)):
        raise ValueError(f"{name}: expected a count (int) or a share (float), got {keep!r}")
    if isinstance(keep, (float, np.floating)):
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"{name}: a share lies in (0, 1], got {keep!r}")
        return max(1, int(n * float(keep) + 1e-9))
    if keep < 1:
        raise ValueError(f"{name}: a count is at least 1, got {keep!r}")
    return min(int(keep), n)


def resolve_budget(k: Any, n: int, batch: tuple[int, ...], name: str = "k") -> Any:
    """One budget for all rows (an int) or one a row (an int64 NumPy array of shape `batch`)."""
    if not compat.is_array_api_obj(k) and not isinstance(k, (list, tuple, range)):
        return resolve_keep(k, n, name)
    budgets = on_host(list(k) if isinstance(k, range) else k, name)
    if budgets.ndim == 0:
        return resolve_keep(budgets.item(), n, name)
    shape = budgets.shape
    if shape != batch:
        raise ValueError(
            f"{name}: expected one budget for each of the rows {spell(batch)}, got {spell(shape)}"
        )
    if budgets.size and budgets.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected whole numbers, got {budgets.tolist()}")
    if budgets.size and int(budgets.min()) < 1:
        raise ValueError(f"{name}: a count is at least 1, got {int(budgets.min())}")
    return np.minimum(budgets.astype(np.int64), n)


def to_numpy(x: Any) -> np.ndarray[Any, Any]:
    """A copy or view on the host, for what Python itself must look at."""
    if compat.is_torch_array(x):
        x = x.detach().cpu()
        if is_half(x):
            x = x.float()
        return cast("np.ndarray[Any, Any]", x.numpy())
    if compat.is_cupy_array(x):
        return cast("np.ndarray[Any, Any]", x.get())
    if hasattr(x, "__array__") or isinstance(x, (list, tuple, int, float, np.generic)):
        return np.asarray(x)
    return np.from_dlpack(x)


def on_host(x: Any, name: str) -> np.ndarray[Any, Any]:
    """An argument that is a number, numbers in a list or an array, on the host; or refuse it."""
    refuse_kind(x, name)
    try:
        host = to_numpy(x)
    except (AttributeError, TypeError, ValueError, RuntimeError, BufferError):
        host = None
    if host is None or host.dtype.kind not in "buif":
        raise ValueError(
            f"{name}: expected a number, a list of them or an array, got {type(x).__name__}"
        )
    return host


def like(values: Any, x: Array, dtype: Any = None) -> Array:
    """Numbers from the host as an array of the library and on the device of `x`."""
    xp = namespace(x)
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()
    return xp.asarray(values, dtype=dtype, device=device(x))


def descending(x: Array) -> Array:
    """Indices that sort the last axis from high to low, ties in ascending index order."""
    xp = namespace(x)
    return xp.argsort(-x, axis=-1, stable=True)


def top(x: Array, k: int) -> Array:
    """Indices (..., k) of the largest entries, largest first, ties to the lowest index."""
    return descending(x)[..., :k]


def each_row(batch: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Positions of all rows of a batch; one empty position where there is no batch."""
    return iter(np.ndindex(*batch))
