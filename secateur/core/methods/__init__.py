"""The methods, one file each, and how to find them by name.

A method of this library is one file and one line below; a method of another package registers
its class under the entry-point group ``secateur.methods``.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from secateur.core.methods.base import Method
from secateur.core.methods.eadp import EADP

_OWN: tuple[type[Method], ...] = (
    EADP,
)


def methods() -> dict[str, type[Method]]:
    """All methods by name: this library's, then those that installed packages register.

    >>> import secateur as sc
    >>> sc.methods()["eadp"]
    <class 'secateur.core.methods.eadp.EADP'>
    """
    known = {each.name: each for each in _OWN}
    for point in entry_points(group="secateur.methods"):
        if point.name not in known:
            known[point.name] = point.load()
    return known


def method(name: str, **parameters: Any) -> Method:
    """A method by name, with its parameters.

    >>> import secateur as sc
    >>> sc.method("eadp", keep=32).keep
    32
    """
    known = methods()
    if name not in known:
        raise ValueError(f"method: expected one of {', '.join(sorted(known))}; got {name!r}")
    return known[name](**parameters)


__all__ = ["EADP", "Method", "method", "methods"]
