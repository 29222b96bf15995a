"""Numbers for one case: arrays that fit each other, of one library, and values that do not fit.

Everything follows from the seed. The same seed with another library or backend gives the same
numbers, so that answers can be compared.
"""

from __future__ import annotations

import datetime
import decimal
import fractions
import functools
import importlib.util
import random
from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import scipy.sparse

DTYPES = ["float64"] * 6 + ["float32"] * 2 + ["float16", "int64"]
FLAVOURS = ["normal"] * 5 + ["rounded", "copies", "rounded", "zeros", "ones", "tiny", "large"]
"""What numbers look like: `rounded` and `copies` are full of ties."""

PATCH = 4
"""Pixels on a side of a token."""


@functools.cache
def torch() -> Any:
    """PyTorch, None where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    torch.set_num_threads(1)
    return torch


@functools.cache
def choices() -> tuple[tuple[str, str], ...]:
    """(library, backend) of everything that runs here without a GPU, likely ones repeatedly.

    JAX is left out: it compiles every operation for every shape.
    """
    own = [("numpy", "auto")] * 4 + [("numpy", "numpy")] * 2 + [("numpy", "reference")]
    if importlib.util.find_spec("numba") is not None:
        own += [("numpy", "numba")]
    if torch() is not None:
        own += [("torch", "auto")] * 3 + [("torch", "reference")]
    return (*own, ("array_api_strict", "auto"))


class Scene:
    """The sizes, the dtype and the library that the arguments of one call share."""

    def __init__(self, seed: int, library: str | None = None, backend: str | None = None) -> None:
        self.dice = random.Random(seed)
        drawn = self.dice.choice(choices())
        self.library = drawn[0] if library is None else library
        self.backend = drawn[1] if backend is None else backend
        self.numbers = np.random.default_rng(seed)
        self.height, self.width = self.dice.randint(1, 5), self.dice.randint(1, 5)
        self.size = self.height * self.width
        self.frames = self.dice.choice([None, None, None, 1, 2, 3])
        self.total = self.size * (self.frames or 1)
        self.channels, self.words = self.dice.randint(1, 8), self.dice.randint(1, 6)
        self.batch: tuple[int, ...] = self.dice.choice([()] * 8 + [(2,), (1, 2), (0,)])
        self.dtype = self.dice.choice(DTYPES)
        self.flavour = self.dice.choice(FLAVOURS)
        self.clean = True
        """Whether every argument is one that fits."""

    @property
    def comparable(self) -> bool:
        """Whether another backend has to give the same answer, ties included."""
        return self.clean and self.dtype == "float64" and self.flavour not in ("tiny", "large")

    def values(self, *shape: int, least: float | None = None) -> np.ndarray:
        """Numbers of the flavour, of any sign or not below `least`."""
        flavour = self.flavour
        if flavour in ("zeros", "ones"):
            x = np.full(shape, float(flavour == "ones"))
        else:
            x = self.numbers.standard_normal(shape)
        if flavour == "rounded":
            x = np.round(x)
        if flavour == "copies" and x.ndim and x.shape[0]:
            x = x[self.numbers.integers(0, max(1, x.shape[0] // 2), x.shape[0])]
        if flavour in ("tiny", "large") and self.dtype.startswith("float"):
            room = {"float16": 1e3, "float32": 1e30, "float64": 1e150}[self.dtype]
            x = x * (room if flavour == "large" else 1 / room)
        elif self.dtype == "int64":
            x = np.round(3 * x)
        return np.abs(x) if least is not None else x

    def array(self, *shape: int, least: float | None = None) -> Any:
        """An array of the library with numbers of the flavour, in the dtype."""
        return self.lifted(self.values(*shape, least=least).astype(self.dtype))

    def tokens(self, *rest: int, least: float | None = None) -> Any:
        """One entry a token: (..., N, *rest)."""
        return self.array(*self.batch, self.total, *rest, least=least)

    def lifted(self, x: np.ndarray) -> Any:
        """A NumPy array as one of the library."""
        if self.library == "torch":
            return torch().from_numpy(np.array(x))
        if self.library == "array_api_strict" and x.dtype != np.float16:
            return array_api_strict.asarray(np.array(x))
        return x

    def odd(self, value: Any) -> Any:
        """Something else in place of an argument: of another type, shape, dtype or library."""
        self.clean = False
        is_array = hasattr(value, "shape") and hasattr(value, "dtype")
        if is_array and self.dice.random() < 0.75:
            return self.dice.choice(ARRAYS)(self, _host(value))
        if isinstance(value, list) and value and self.dice.random() < 0.3:
            return [*value[:-1], self.odd(value[-1])]
        return self.dice.choice(VALUES)()


def _host(x: Any) -> np.ndarray:
    return x.detach().numpy() if hasattr(x, "detach") else np.array(x)


def _planted(bad: float) -> Callable[[Scene, np.ndarray], Any]:
    def plant(scene: Scene, x: np.ndarray) -> Any:
        x = x.astype(np.float64)
        if x.size:
            x.flat[scene.dice.randrange(x.size)] = bad
        return scene.lifted(x)

    return plant


def _as(dtype: str) -> Callable[[Scene, np.ndarray], Any]:
    def convert(scene: Scene, x: np.ndarray) -> Any:
        with np.errstate(all="ignore"):
            return x.astype(dtype)

    return convert


def _of_torch(scene: Scene, x: np.ndarray) -> Any:
    if torch() is None:
        return x
    tensor = torch().from_numpy(np.array(x))
    kind = scene.dice.choice(["plain", "meta", "sparse", "half", "gradient", "strided"])
    if kind == "meta":
        return tensor.to("meta")
    if kind == "sparse":
        return tensor.to_sparse()
    if kind == "half":
        return tensor.to(torch().bfloat16)
    if kind == "gradient":
        return tensor.to(torch().float64).requires_grad_()
    return tensor.transpose(0, -1) if kind == "strided" and tensor.ndim else tensor


def _readonly(scene: Scene, x: np.ndarray) -> Any:
    x = x.copy()
    x.flags.writeable = False
    return x


ARRAYS: list[Callable[[Scene, np.ndarray], Any]] = [
    *(_planted(bad) for bad in (np.nan, np.inf, -np.inf, 1e308, -1e308, -1.0, 1e-320)),
    *(_as(name) for name in ("bool", "uint8", "int8", "float16", "longdouble", ">f8", ">f4")),
    *(_as(name) for name in (">i2", "complex128", "object", "U3", "float32", "uint64")),
    lambda scene, x: np.full_like(x, 1e308, dtype=np.float64),
    lambda scene, x: scene.lifted(x[..., :0]),
    lambda scene, x: scene.lifted(x[:0] if x.ndim else x),
    lambda scene, x: scene.lifted(x[:-1] if x.ndim else x),
    lambda scene, x: scene.lifted(x[..., :-1] if x.ndim else x),
    lambda scene, x: scene.lifted(x[None]),
    lambda scene, x: scene.lifted(x[..., None]),
    lambda scene, x: scene.lifted(x[0] if x.ndim and len(x) else x),
    lambda scene, x: scene.lifted(np.concatenate([x, x]) if x.ndim else x),
    lambda scene, x: np.asfortranarray(x)[::-1] if x.ndim else x,
    lambda scene, x: np.ma.masked_array(x, mask=np.zeros(x.shape, dtype=bool)),
    lambda scene, x: np.asmatrix(x) if x.ndim == 2 else x,
    lambda scene, x: x.tolist(),
    lambda scene, x: tuple(x.tolist()) if x.ndim else x,
    lambda scene, x: scipy.sparse.csr_matrix(x.astype(float)) if x.ndim == 2 and x.size else x,
    lambda scene, x: array_api_strict.asarray(x.astype(np.float64)),
    _of_torch,
    _of_torch,
    _readonly,
]
"""What may come in place of an array that fits."""

VALUES: list[Callable[[], Any]] = [
    *(lambda value=value: value for value in (None, "x", "", b"x", True, False, -1, 0, 1, 2, 7)),
    *(lambda value=value: value for value in (10**30, -(10**30), 2**63, 2**31, -(2**63), 1.5)),
    *(lambda value=value: value for value in (np.nan, np.inf, -np.inf, 1e308, 1e-320, -0.0, 0.5)),
    *(lambda value=value: value for value in (3.0, 1j, "nan", "1", (), range(3), ..., int, len)),
    *(lambda value=value: value for value in (np.int64(3), np.float32("nan"), np.float16(0.5))),
    *(lambda value=value: value for value in (np.bool_(True), np.str_("x"), np.datetime64("now"))),
    *(lambda make=make: make() for make in (list, dict, set, object, lambda: [1], lambda: [None])),
    lambda: (1, 2),
    lambda: [[1, 2], [3]],
    lambda: ["a", "b"],
    lambda: {"a": 1},
    lambda: np.array(1.0),
    lambda: np.array(3),
    lambda: np.array([]),
    lambda: np.zeros((0, 3)),
    lambda: np.ones((2, 2, 2, 2)),
    lambda: np.array(["a"]),
    lambda: np.array([None]),
    lambda: np.ma.masked,
    lambda: decimal.Decimal("0.5"),
    lambda: fractions.Fraction(1, 2),
    lambda: datetime.timedelta(1),
    lambda: torch().ones(3) if torch() else None,
    lambda: torch().tensor(2) if torch() else None,
    lambda: (each for each in ()),
]
"""What may come in place of anything."""
