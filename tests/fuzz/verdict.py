"""The rule: a valid result, or a refusal of ours that names the argument."""

from __future__ import annotations

import dataclasses
import linecache
import math
import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import secateur as sc
from secateur.core.arrays import to_numpy
from secateur.core.inputs import INPUTS
from secateur.testing import assert_selection

HOME = str(Path(sc.__file__).parent)
GENERAL = (
    "lengths disagree: ",
    "arrays of one library are expected",
    "prunes inside the language model",
    "does not serve arrays of",
    "has gains, but sets have no value",
    "sums of similarities times weights leave the range of",
)
"""Sentences about the call as a whole, at which no one argument is at fault."""


class FaultError(AssertionError):
    """An answer that breaks the rule: `kind` is what counts it among others."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def check_refusal(error: BaseException, names: Iterable[str]) -> None:
    """Let a refusal pass that is a ValueError raised by us and names an argument.

    Python's own refusal of a call that does not fit the signature never gets here: calls are
    made by the signature.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = _place(frames)
    kind, told = type(error).__name__, str(error)
    lacking = isinstance(error, MemoryError | RuntimeError) and "allocate" in str(error)
    if lacking and any(len(name) > 8 and name.isdigit() for name in names):
        return  # as many numbers as were asked for
    if isinstance(error, OSError) and {"path", str(error.filename)} & {*names}:
        return
    if not isinstance(error, ValueError):
        raise FaultError(f"{kind} at {where}", told)
    ours = frames[-1].filename.startswith(HOME) and _raises(frames[-1])
    if not ours:
        raise FaultError(f"{kind} that is not ours at {where}", told)
    known = {*names, *INPUTS}
    named = known & {*re.findall(r"\w+", told), told.partition(" is no ")[0]}
    if not named and not any(each in told for each in GENERAL):
        raise FaultError(f"{kind} names no argument at {where}", told)


def _raises(frame: traceback.FrameSummary) -> bool:
    return linecache.getline(frame.filename, frame.lineno or 0).lstrip().startswith("raise")


def _place(frames: traceback.StackSummary) -> str:
    """The innermost line of ours."""
    for frame in reversed(frames):
        if frame.filename.startswith(HOME):
            return f"{frame.filename[len(HOME) + 1 :]}:{frame.lineno}"
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"


def check_result(answer: Any, finite: bool) -> None:
    """Refuse selections that are none, and numbers that are NaN or, if asked, infinite."""
    if isinstance(answer, sc.Selection):
        try:
            assert_selection(answer)
        except AssertionError as error:
            raise FaultError("no selection", str(error)) from None
        check_result(answer.guarantee, finite)
        for item in dataclasses.fields(answer):
            # Gains fall to minus infinity once a kernel's rank is spent.
            check_result(getattr(answer, item.name), finite and item.name in ("scores", "count"))
    elif isinstance(answer, Mapping):
        for each in answer.values():
            check_result(each, False)
    elif isinstance(answer, list | tuple):
        for each in answer:
            check_result(each, finite)
    elif isinstance(answer, float | np.floating) or hasattr(answer, "dtype"):
        numbers = to_numpy(answer)
        if numbers.dtype.kind != "f":
            return
        if np.isnan(numbers).any() or (finite and np.isinf(numbers).any()):
            raise FaultError("not finite", _short(numbers))


SPENT = -25.0
"""Log-determinants grow by so little once a kernel's rank is spent; what is left is rounding."""


def _sunk(answer: sc.Selection, other: sc.Selection) -> Any:
    """True at places of picks that rounding decides, from the first spent one on."""
    gains = [to_numpy(each.gains) for each in (answer, other) if each.gains is not None]
    if len(gains) < 2 or gains[0].shape != gains[1].shape:
        return np.array(False)
    # Where both have nothing left, which token is next is a rule, and no rounding.
    low = np.maximum(*gains) < SPENT
    if np.minimum(*gains).min(initial=0.0) >= 0.0:
        # Coverage by copies of what is picked: nothing, or what rounding made of it.
        low = np.maximum(*gains) <= 1e-12 * np.max(gains[1], axis=-1, initial=0.0, keepdims=True)
    decided = low & (gains[0] != gains[1])
    return np.logical_or.accumulate(decided, axis=-1)


def check_agreement(answer: Any, other: Any) -> None:
    """Refuse another answer from another backend: picks equal, numbers but for rounding."""
    if isinstance(answer, sc.Selection) and isinstance(other, sc.Selection):
        sunk = _sunk(answer, other)
        for name in ("count", "indices"):
            one, two = to_numpy(getattr(answer, name)), to_numpy(getattr(other, name))
            settled = ~sunk if name == "indices" and one.shape == sunk.shape else True
            if one.shape != two.shape or np.any((one != two) & settled):
                told = f"{name} {one.tolist()}, the reference says {two.tolist()}"
                raise FaultError("backends disagree", told)
        for name in ("scores",) if np.any(sunk) else ("value", "scores"):
            check_agreement(getattr(answer, name), getattr(other, name))
    elif isinstance(answer, list | tuple) and isinstance(other, list | tuple):
        if len(answer) != len(other):
            raise FaultError("backends disagree", f"{len(answer)} answers, {len(other)}")
        for one, two in zip(answer, other, strict=True):
            check_agreement(one, two)
    elif isinstance(answer, float | np.floating) or hasattr(answer, "dtype"):
        one, two = to_numpy(answer), to_numpy(other)
        if one.dtype.kind not in "biuf":
            return
        scale = float(np.max(np.abs(two), initial=0.0, where=np.isfinite(two)))
        room = 1e-6 * (scale if math.isfinite(scale) else 1.0) + 1e-12
        if one.shape == two.shape:
            spent = (one < SPENT) & (two < SPENT)  # of a kernel's rank, as `SPENT` says
            one, two = (np.where(spent, SPENT, x) for x in (one, two))
        if one.shape != two.shape or not np.allclose(one, two, rtol=1e-6, atol=room):
            raise FaultError("backends disagree", f"{_short(one)}, the reference {_short(two)}")


def _short(x: np.ndarray) -> str:
    return f"{x.dtype}{list(x.shape)} {np.array2string(x, threshold=8, precision=6)}"[:300]
