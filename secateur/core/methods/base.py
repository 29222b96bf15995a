"""What all methods share: parameters that can be printed and stored, inputs that are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, overload

from secateur.core.arrays import Array, checked, resolve_keep
from secateur.core.arrays import backend as backend_choice
from secateur.core.selection import Selection
from secateur.core.tokens import Tokens

_NON_NEGATIVE = frozenset({"attention", "attention_shallow"})


@dataclass(frozen=True)
class Method(ABC):
    """A way to choose visual tokens: a frozen record of its parameters.

    Parameters
    ----------
    keep
        How many tokens to keep: a count (int), or a share of them (float in (0, 1]).
    """

    keep: int | float = 64

    name: ClassVar[str]
    """What `secateur.method` calls it."""
    complexity: ClassVar[str]
    """Time of one image, for the table of methods."""
    reference: ClassVar[str]
    """Authors, venue, year, arXiv number."""

    def __post_init__(self) -> None:
        resolve_keep(self.keep, 1)

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """The fields of `Tokens` this method, with these parameters, works from."""

    @abstractmethod
    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Choose k of the tokens; inputs are there and checked, 1 <= k <= N."""

    def budget(self, size: int) -> int:
        """How many of `size` tokens it keeps."""
        return resolve_keep(self.keep, size)

    @overload
    def select(
        self, tokens: Tokens, *, check_finite: bool = ..., backend: str | None = ...
    ) -> Selection: ...
    @overload
    def select(
        self, tokens: Sequence[Tokens], *, check_finite: bool = ..., backend: str | None = ...
    ) -> list[Selection]: ...

    def select(
        self,
        tokens: Tokens | Sequence[Tokens],
        *,
        check_finite: bool = True,
        backend: str | None = None,
    ) -> Selection | list[Selection]:
        """Choose tokens.

        Parameters
        ----------
        tokens
            The tokens of an image, of a batch of images (leading axes), or a list of `Tokens`
            for images of different sizes.
        check_finite
            Whether to refuse NaN and infinity in what the method works from.
        backend
            Overrides who computes, as `secateur.backend` does.

        Returns
        -------
        Selection or list of Selection
            One for each `Tokens` given.

        Raises
        ------
        MissingInputError
            When an input in `needs` is absent.
        """
        if not isinstance(tokens, Tokens):
            return [
                self.select(each, check_finite=check_finite, backend=backend) for each in tokens
            ]
        tokens.require(type(self).__name__, *sorted(self.needs))
        if check_finite:
            _check(tokens, self.needs | {"features"})
        with nullcontext() if backend is None else backend_choice(backend):
            return self.choose(tokens, self.budget(tokens.size))

    def to_dict(self) -> dict[str, Any]:
        """The method as plain values that JSON can hold; `Method.from_dict` reads them."""
        stored: dict[str, Any] = {"method": self.name}
        for item in fields(self):
            stored[item.name] = _plain(getattr(self, item.name))
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """The method that `to_dict` wrote."""
        from secateur.core.methods import methods

        known = methods()
        name = stored.get("method")
        if name not in known:
            raise ValueError(f"method: expected one of {', '.join(sorted(known))}; got {name!r}")
        kind = known[name]
        if not issubclass(kind, cls):
            raise ValueError(f"method: {name!r} is no {cls.__name__}")
        return kind(**{key: _rich(item) for key, item in stored.items() if key != "method"})


def _plain(x: Any) -> Any:
    if hasattr(x, "to_dict"):
        return x.to_dict()
    if isinstance(x, (tuple, list)):
        return [_plain(each) for each in x]
    return x


def _rich(x: Any) -> Any:
    if isinstance(x, Mapping) and "method" in x:
        return Method.from_dict(x)
    if isinstance(x, list):
        return tuple(_rich(each) for each in x)
    return x


def _check(tokens: Tokens, names: frozenset[str]) -> None:
    for name in sorted(names - {"grid", "text", "text_global", "text_mask"}):
        x: Array | None = getattr(tokens, name)
        if x is not None:
            checked(x, name, non_negative=name in _NON_NEGATIVE)


def require_share(name: str, value: float, *, zero: bool = True) -> None:
    """Refuse a parameter outside [0, 1], or outside (0, 1] when zero makes no sense."""
    if not (0.0 <= value <= 1.0) or (value == 0.0 and not zero):
        raise ValueError(f"{name}: expected a share in {'[' if zero else '('}0, 1], got {value!r}")


def require_positive(name: str, value: float, *, zero: bool = False) -> None:
    """Refuse a parameter that is not a positive finite number (or zero, where allowed)."""
    if not (value > 0 or (zero and value == 0)) or value == float("inf"):
        least = "of at least 0" if zero else "above 0"
        raise ValueError(f"{name}: expected a finite number {least}, got {value!r}")
