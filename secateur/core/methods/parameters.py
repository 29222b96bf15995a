"""The types of parameters, checked against their declaration."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

LARGEST = 2**63 - 1
"""What an array can count to."""


def check_types(method: Any) -> None:
    """Refuse parameters of a dataclass that are of another type than their fields declare.

    Once for all methods, so that none has to ask whether a number is a number. Where a field
    takes a record (another method, a calibration), what `to_dict` made of it passes: its owner
    reads it.
    """
    for name, declared in _declared(type(method)).items():  # type: ignore[arg-type]
        given = getattr(method, name)
        if not _fits(given, declared):
            words = spelt(declared)
            pause = ";" if words.startswith("one of") else ","
            raise ValueError(f"{name}: expected {words}{pause} got {given!r}")


@cache
def _declared(kind: Hashable) -> dict[str, Any]:
    try:
        known = get_type_hints(cast("type[Any]", kind))
    except NameError:
        # A method of somebody's own, with names that its module imports for type checkers alone.
        return {}
    return {item.name: known[item.name] for item in fields(cast("type[Any]", kind))}


def _fits(given: Any, declared: Any) -> bool:
    origin, inner = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        return any(_fits(given, each) for each in inner)
    if origin is Literal:
        return isinstance(given, str | bool | int | NoneType) and given in inner
    if origin is tuple:
        if not isinstance(given, tuple | list):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_fits(each, inner[0]) for each in given)
        return len(given) == len(inner) and all(map(_fits, given, inner))
    if declared is float:
        return _is_number(given)
    if declared is int:
        return _is_number(given) and (isinstance(given, Integral) or given == round(given))
    if declared is bool:
        return isinstance(given, bool | np.bool_)
    if not isinstance(declared, type):
        return True
    if isinstance(given, Mapping) and hasattr(declared, "to_dict"):
        return True
    return isinstance(given, declared)


def _is_number(given: Any) -> bool:
    """A real number that a float can hold; no flag, though Python counts with those too."""
    if not isinstance(given, Real) or isinstance(given, bool):
        return False
    return not isinstance(given, Integral) or abs(int(given)) <= LARGEST


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
    known = {float: "a number", int: "a whole number", bool: "True or False", str: "a word"}
    return known.get(declared) or f"a {getattr(declared, '__name__', declared)}"
