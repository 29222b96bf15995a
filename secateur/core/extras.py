"""What is not installed, told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(names: str, what: str) -> Iterator[None]:
    """Say of imports within which extras of this package bring what is missing.

    >>> with extra("ray", "secateur.integrations.ray"):
    ...     import no_such_package
    Traceback (most recent call last):
    ModuleNotFoundError: secateur.integrations.ray needs no_such_package: pip install 'secateur[ray]'
    """  # noqa: E501
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "secateur") or " needs " in str(error):
            raise
        raise ModuleNotFoundError(
            f"{what} needs {missing}: pip install 'secateur[{names}]'", name=error.name
        ) from None
