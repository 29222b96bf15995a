"""The types of parameters and arguments, checked against their declaration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from os import PathLike
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

LARGEST = 2**63 - 1
"""What an array can count to."""


def check_types(method: Any) -> None:
    """Refuse parameters of a dataclass that are of another type than their fields declare.

    Once for all methods, so that none has to ask whether a number is a number. Where a field
    takes a record (another method, a calibration), what `to_dict` made of it passes: its owner
    reads it. A list becomes the tuple that was declared, NumPy's numbers Python's.
    """
    for name, declared, fits in _declared(type(method)):  # type: ignore[arg-type]
        given = getattr(method, name)
        if not fits(given):
            refuse(name, given, declared)
        if isinstance(given, list):
            object.__setattr__(method, name, tuple(given))
        elif isinstance(given, np.generic):
            object.__setattr__(method, name, given.item())


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments of another type than declared, in words, before the function runs.

    What is declared as `Array` or `Any` is the function's own to look at.

    >>> @typed
    ... def half(number: float, whole: bool = False) -> float:
    ...     return number // 2 if whole else number / 2
    >>> half("3")
    Traceback (most recent call last):
    ValueError: number: expected a number, got '3'
    """
    by_place: list[tuple[int, Declared]] = []
    by_name: dict[str, Declared] = {}

    def prepare() -> None:
        places = {name: place for place, name in enumerate(inspect.signature(function).parameters)}
        declared = _declared(function)
        by_place.extend((places[each.name], each) for each in declared if each.name in places)
        by_name.update((each.name, each) for each in declared)
        prepared.append(True)

    prepared: list[bool] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not prepared:
            prepare()  # Annotations may name what is defined later than the function.
        for place, (name, declared, fits) in by_place:
            if place >= len(args):
                break
            if not fits(args[place]):
                refuse(name, args[place], declared)
        for given in kwargs:
            if given in by_name:
                name, declared, fits = by_name[given]
                if not fits(kwargs[given]):
                    refuse(name, kwargs[given], declared)
        return function(*args, **kwargs)

    return call


def check_type(name: str, given: Any, declared: Any) -> None:
    """Refuse what is of another type than declared."""
    if not _test(declared)(given):
        refuse(name, given, declared)


def refuse(name: str, given: Any, declared: Any) -> NoReturn:
    """Say what was expected and what came."""
    words = spelt(declared)
    pause = ";" if words.startswith("one of") else ","
    raise ValueError(f"{name}: expected {words}{pause} got {_shown(given)}")


def _shown(given: Any) -> str:
    """What came, on one line of a message."""
    if getattr(given, "ndim", 0) and hasattr(given, "shape"):
        return f"{type(given).__name__} of shape {tuple(given.shape)}"
    told = " ".join(repr(given).split())
    return told if len(told) <= 200 else f"{told[:200]} ..."


class Declared(NamedTuple):
    """A parameter whose type says what fits."""

    name: str
    type: Any
    fits: Callable[[Any], bool]


@functools.cache
def _declared(owner: Any) -> tuple[Declared, ...]:
    """Parameters of a dataclass or a function, as far as their types say what fits."""
    try:
        known = get_type_hints(owner)
    except NameError:
        # A method of somebody's own, with names that its module imports for type checkers alone.
        return ()
    names = [item.name for item in fields(owner)] if is_dataclass(owner) else list(known)
    return tuple(
        Declared(name, known[name], _test(known[name]))
        for name in names
        if name in known and name != "return" and _says_something(known[name])
    )


def _says_something(declared: Any) -> bool:
    """Whether anything at all does not fit a declared type."""
    origin, inner = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        return all(map(_says_something, inner))
    if declared is Any:
        return False
    return origin is Literal or isinstance(origin or declared, type)


def _test(declared: Any) -> Callable[[Any], bool]:
    """Whether something is of a declared type, as a function: calls are many, types few."""
    origin, inner = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        return _test_any(inner)
    if origin is Literal:
        return lambda given: isinstance(given, str | bool | int | NoneType) and given in inner
    if origin is tuple:
        return _test_tuple(inner)
    if isinstance(origin, type):
        return lambda given: isinstance(given, origin)
    if declared is float:
        return _is_number
    if declared is int:
        return lambda given: _is_number(given) and isinstance(given, int | np.integer)
    if declared is bool:
        return lambda given: isinstance(given, bool | np.bool_)
    if not isinstance(declared, type):
        return lambda given: True
    if hasattr(declared, "to_dict"):
        return lambda given: isinstance(given, (declared, Mapping))
    return lambda given: isinstance(given, declared)


def _test_any(inner: tuple[Any, ...]) -> Callable[[Any], bool]:
    tests = [_test(each) for each in inner if each is not NoneType]
    none = NoneType in inner
    return lambda given: (none and given is None) or any(fits(given) for fits in tests)


def _test_tuple(inner: tuple[Any, ...]) -> Callable[[Any], bool]:
    if len(inner) == 2 and inner[1] is Ellipsis:
        every = _test(inner[0])
        return lambda given: isinstance(given, tuple | list) and all(map(every, given))
    tests = [_test(each) for each in inner]
    return lambda given: (
        isinstance(given, tuple | list)
        and len(given) == len(tests)
        and all(fits(each) for fits, each in zip(tests, given, strict=True))
    )


def _is_number(given: Any) -> bool:
    """A real number that a float can hold; no flag, though Python counts with those too."""
    if type(given) is float:
        return True
    if not isinstance(given, int | float | np.integer | np.floating) or isinstance(given, bool):
        return False
    return not isinstance(given, int | np.integer) or abs(int(given)) <= LARGEST


def spelt(declared: Any) -> str:
    """A declared type in words.

    >>> spelt(tuple[int, int] | None)
    '2 whole numbers or None'
    """
    origin, inner = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        if set(inner) == {bool, NoneType}:
            return "True, False or None"
        words = [spelt(each) for each in inner if each is not NoneType]
        return " or ".join([*words, "None"] if NoneType in inner else words)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is tuple:
        if inner[1:] == (Ellipsis,):
            return f"a list, each {spelt(inner[0])}"
        return f"{len(inner)} {spelt(inner[0]).removeprefix('a ')}s"
    if origin in (Iterable, Sequence):
        return f"several, each {spelt(inner[0])}"
    if (origin or declared) in _WORDS:
        return _WORDS[origin or declared]
    name = getattr(declared, "__name__", str(declared))
    article = "" if name.endswith("s") else "an " if name[0] in "AEIO" else "a "
    return article + name


_WORDS: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    str: "a word",
    Callable: "a function",
    PathLike: "a path",
}
