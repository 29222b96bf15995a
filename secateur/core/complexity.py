"""How complex an image is beside others: the mean over a set, and an image's share of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from secateur.core.arrays import to_numpy
from secateur.core.inputs import MissingInputError, Tokens
from secateur.core.measures import attention_entropy, effective_rank
from secateur.core.parameters import typed

Measure = Literal["erank", "entropy"]
MEASURES: tuple[Measure, ...] = ("erank", "entropy")


def complexity(tokens: Tokens, measure: Measure = "erank") -> np.ndarray[Any, Any]:
    """The effective rank of the features, or the entropy of the attention, of each image (...).

    On the host in float64: the numbers steer thresholds and budgets.
    """
    if measure == "erank":
        answer = effective_rank(tokens.features, check_finite=False)
    elif tokens.attention is None:
        raise MissingInputError("complexity by attention entropy", "attention")
    else:
        answer = attention_entropy(tokens.attention, check_finite=False)
    return to_numpy(answer).astype(np.float64)


@dataclass(frozen=True)
class Calibration:
    """The mean complexity of a set of images.

    Made once for a model with `Calibration.of`, kept as JSON, and given to the methods that
    adapt to an image: `AgilePruner` and `Mixture`.

    Attributes
    ----------
    erank
        Mean effective rank of the features.
    entropy
        Mean entropy of the attention in nats; None where images came without attention.
    images
        Over how many images.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> images = [sc.Tokens(features=np.eye(4)), sc.Tokens(features=np.eye(8))]
    >>> calibration = sc.Calibration.of(images)
    >>> round(calibration.erank, 6), calibration.images
    (6.0, 2)
    """

    erank: float
    entropy: float | None = None
    images: int = 1

    def __post_init__(self) -> None:
        for name in ("erank", "entropy"):
            mean = getattr(self, name)
            if not (mean is None and name == "entropy") and not _is_mean(mean):
                source = "features" if name == "erank" else "attention"
                raise ValueError(f"{name}: expected a mean above 0, got {mean!r} of {source}")
        count: Any = self.images
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise ValueError(f"images: expected a count of at least 1, got {count!r}")

    @classmethod
    @typed
    def of(cls, images: Iterable[Tokens]) -> Calibration:
        """The means over images, one `Tokens` or batch of them after the other.

        Memory stays that of one `Tokens`: pass a generator over a large set.
        """
        running = RunningCalibration()
        for tokens in several(images):
            running.see(tokens)
        if running.so_far is None:
            raise ValueError("images: expected at least one to calibrate on, got none")
        return running.so_far

    @typed
    def mean(self, measure: Measure = "erank") -> float:
        """The mean of a measure."""
        if measure == "erank":
            return self.erank
        if self.entropy is None:
            raise ValueError(
                "entropy: the calibration images came without attention, so that their mean "
                "attention entropy is not known"
            )
        return self.entropy

    @typed
    def including(self, tokens: Tokens) -> Calibration:
        """The means with the images of `tokens` counted in."""
        return self._joined(*_means(tokens))

    def _joined(self, erank: float, entropy: float | None, images: int) -> Calibration:
        if images == 0:
            return self
        together = self.images + images
        if self.entropy is not None and entropy is not None:
            entropy = (self.images * self.entropy + images * entropy) / together
        else:
            entropy = None
        mean = (self.images * self.erank + images * erank) / together
        return Calibration(mean, entropy, together)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Any) -> Calibration:
        """The calibration that `to_dict` wrote."""
        if not isinstance(stored, Mapping) or "erank" not in stored:
            raise ValueError(f"erank: expected a record with a mean of this name, got {stored!r}")
        known = {item.name for item in fields(cls)}
        if unknown := sorted(str(name) for name in stored if name not in known):
            raise ValueError(
                f"{unknown[0]}: expected the fields {', '.join(sorted(known))} alone, "
                f"got {unknown[0]!r}"
            )
        return cls(**stored)

    @typed
    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    @typed
    def load(cls, path: str | PathLike[str]) -> Calibration:
        """Read what `save` wrote."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no calibration: {error}") from None


def several(images: Iterable[Tokens]) -> Iterator[Tokens]:
    """The images one after the other, each looked at when its turn comes: whether it is Tokens."""
    if getattr(images, "ndim", 1) == 0:
        raise ValueError("images: expected several Tokens, got a number")
    for place, tokens in enumerate(images):
        if not isinstance(tokens, Tokens):
            raise ValueError(
                f"images: expected Tokens, got {type(tokens).__name__} at place {place}"
            )
        yield tokens


def _means(tokens: Tokens) -> tuple[float, float | None, int]:
    """Mean effective rank, mean entropy where there is attention, and of how many images."""
    erank = complexity(tokens, "erank")
    if erank.size == 0:
        return 0.0, None, 0
    entropy = None
    if tokens.attention is not None:
        entropy = float(complexity(tokens, "entropy").mean())
    return float(erank.mean()), entropy, erank.size


_PICTURE: ContextVar[dict[int, tuple[Calibration | None, Calibration | None]] | None] = ContextVar(
    "_PICTURE", default=None
)
"""By the `RunningCalibration`: what it was before the picture that is looked at, and the mean over
that picture's parts."""


@contextmanager
def one_picture() -> Iterator[None]:
    """What any `RunningCalibration` sees within are the parts of one picture, such as its crops.

    Together they count as one image, of the complexity that they have on average.
    """
    token = _PICTURE.set({})
    try:
        yield
    finally:
        _PICTURE.reset(token)


class RunningCalibration:
    """A calibration that counts in every image it sees, for when there is no set beforehand.

    A method that holds one adapts each image to those before it and itself, so that its answers
    depend on what came before: start a fresh one to repeat a run.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> running = sc.RunningCalibration()
    >>> for n in (4, 8):
    ...     running.see(sc.Tokens(features=np.eye(n)))
    ...     print(round(running.so_far.erank, 6))
    4.0
    6.0
    """

    @typed
    def __init__(self, so_far: Calibration | None = None) -> None:
        self.so_far = so_far

    @typed
    def see(self, tokens: Tokens) -> None:
        """Count in the images of `tokens`."""
        erank, entropy, count = _means(tokens)
        if count == 0:
            return
        pictures = _PICTURE.get()
        before = self.so_far
        if pictures is not None:
            # All parts so far are the one image, however often a method looks at them.
            before, parts = pictures.get(id(self), (before, None))
            more = (erank, entropy or None, count)
            parts = Calibration(*more) if parts is None else parts._joined(*more)
            pictures[id(self)] = before, parts
            erank, entropy, count = parts.erank, parts.entropy, 1
        if before is None:
            self.so_far = Calibration(erank, entropy or None, count)
        else:
            self.so_far = before._joined(erank, entropy, count)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {"running": None if self.so_far is None else self.so_far.to_dict()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunningCalibration) and self.so_far == other.so_far

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RunningCalibration({self.so_far or ''})"


def _is_mean(given: Any) -> bool:
    """A finite number above 0; neither a flag nor more than a float can hold."""
    if isinstance(given, bool) or not isinstance(given, (int, float, np.integer, np.floating)):
        return False
    try:
        return 0 < float(given) < math.inf
    except OverflowError:
        return False


Mean = float | Calibration | RunningCalibration
"""What a method may take as the mean complexity: a number, or what measured it."""


def as_mean(given: Any) -> Mean | None:
    """A mean as methods hold it; dictionaries that `to_dict` wrote become what they were."""
    if isinstance(given, Mapping):
        try:
            return _mean_of(given)
        except ValueError as error:
            raise ValueError(f"mean_erank: {error}") from None
    if given is None or isinstance(given, (Calibration, RunningCalibration)):
        return given
    if not _is_mean(given):
        raise ValueError(
            f"mean_erank: expected a mean above 0, a Calibration or a RunningCalibration, "
            f"got {given!r}"
        )
    return float(given)


def _mean_of(stored: Mapping[str, Any]) -> Mean:
    if "running" not in stored:
        return Calibration.from_dict(stored)
    before = stored["running"]
    if len(stored) > 1:
        raise ValueError(f"expected 'running' alone, got {stored!r}")
    return RunningCalibration(None if before is None else Calibration.from_dict(before))


def relative_complexity(
    tokens: Tokens, mean: Mean | None, measure: Measure = "erank"
) -> np.ndarray[Any, Any]:
    """Each image's complexity (...) as a share of the mean: 1 for an average image.

    A `RunningCalibration` counts the images in first.
    """
    if mean is None:
        raise ValueError(
            "mean_erank: how complex an image is shows beside others only; pass "
            "Calibration.of(images), RunningCalibration() or the mean itself"
        )
    if isinstance(mean, RunningCalibration):
        mean.see(tokens)
        if mean.so_far is None:
            return complexity(tokens, measure)  # of no images
        mean = mean.so_far
    average = mean.mean(measure) if isinstance(mean, Calibration) else mean
    own = complexity(tokens, measure)
    if np.isnan(own).any():
        raise ValueError(f"features, attention: contain NaN or infinity, which have no {measure}")
    return own / float(average)
