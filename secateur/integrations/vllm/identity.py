"""What tells one method's encoded images from another's, wherever caches are shared."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version

from secateur.core.methods import Method


def digest(method: Method, newlines: str | None = None) -> str:
    """A short name for everything that decides what a method picks.

    Its name, settings and calibration, and which newline tokens stay; the release that computes
    it, since one release may pick otherwise than the next; and, for a method of somebody else's,
    where it is defined and which release of that package is installed.
    """
    kind = type(method)
    told = json.dumps(
        [
            method.to_dict(),
            newlines,
            release("secateur"),
            kind.__module__,
            kind.__qualname__,
            release(kind.__module__.partition(".")[0]),
        ],
        sort_keys=True,
    )
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def release(package: str) -> str:
    """Of an installed package; nothing for code that belongs to none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
