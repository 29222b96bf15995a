"""What tells one method's encoded images from another's, wherever caches are shared."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version

import secateur
from secateur.core.methods import Method


def digest(method: Method) -> str:
    """A short name for everything that decides what a method picks.

    Its name, settings and calibration; the release that computes it, since one release may pick
    otherwise than the next; and, for a method of somebody else's, where it is defined and which
    release of that package is installed.
    """
    kind = type(method)
    told = json.dumps(
        [method.to_dict(), secateur.__version__, kind.__module__, kind.__qualname__, _theirs(kind)],
        sort_keys=True,
    )
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _theirs(kind: type[Method]) -> str:
    package = kind.__module__.partition(".")[0]
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
