"""One case: what a seed calls, with what, and whether the answer keeps the rule."""

from __future__ import annotations

import bisect
import itertools
from functools import cache
from pathlib import Path
from typing import Any

from scene import Scene
from targets import Target, targets
from verdict import FaultError, check_agreement, check_refusal, check_result

import secateur as sc
from secateur.core.objectives import Objective

ODD = 0.45
"""How many cases have an argument, or two, that does not fit."""


@cache
def _schedule() -> tuple[list[Target], list[float]]:
    every = targets()
    return every, list(itertools.accumulate(each.turns for each in every))


class Case:
    """What a seed calls; in another library and with another backend if asked."""

    def __init__(self, seed: int, library: str | None = None, backend: str | None = None) -> None:
        self.scene = Scene(seed, library, backend)
        every, ends = _schedule()
        self.target = every[bisect.bisect(ends, self.scene.dice.random() * ends[-1])]

    def arguments(self) -> dict[str, Any]:
        """All arguments, some of which may not fit."""
        dice, makers = self.scene.dice, self.target.makers
        odd: set[str] = set()
        if makers and dice.random() < ODD:
            odd.update(dice.choices(sorted(makers), k=dice.choice([1, 1, 1, 2])))
        given = {}
        for name, maker in makers.items():
            wrong = name in odd and name != "self"
            given[name] = self.scene.odd(maker(self.scene)) if wrong else maker(self.scene)
        if isinstance(given.get("trials"), int):
            given["trials"] = min(given["trials"], 7)  # as many as asked for are made
        return given

    def run(self) -> Any:
        """The answer, or the refusal: an exception that keeps the rule. Others are faults."""
        try:
            given = self.arguments()
        except ValueError as error:
            # Numbers of this flavour do not even make what is asked: makers' own calls are cases
            # of their own.
            if self.scene.comparable:
                raise
            return error
        said = said_by(self.target.name, given)
        # Values of sets may be infinite: of one token's dispersion, of a spent kernel.
        asked = isinstance(given.get("self"), Objective)
        careful = given.get("check_finite", self.scene.clean) is not False
        try:
            with sc.backend(self.scene.backend):
                answer = self.target.call(self.scene, given)
        except FaultError:
            raise
        except Exception as error:
            check_refusal(error, said)
            return error
        if careful:
            finite = self.scene.clean and self.scene.flavour != "large"
            check_result(answer, finite and not asked)
        return answer


def said_by(target: str, given: dict[str, Any]) -> set[str]:
    """Words that name an argument: parameters, files, the function itself, its fields."""
    words = {target, *given, *(part for name in given for part in name.split("."))}
    words.update(str(value) for value in given.values() if isinstance(value, Path | str | int))
    if "stored" in given or "path" in given:
        words.update(("erank", "entropy", "images", "method", "keep", "over", "published"))
    return words


def judge(seed: int) -> str:
    """Run a case, and on the reference too where that has to say the same.

    Whether it was answered, refused, or answered as the reference answers.
    """
    case = Case(seed)
    answer = case.run()
    refused = isinstance(answer, Exception)
    plain = (case.scene.library, case.scene.backend) == ("numpy", "reference")
    if plain or not case.scene.comparable:
        return "refused" if refused else "answered"
    other = Case(seed, "numpy", "reference").run()
    if refused != isinstance(other, Exception):
        raise FaultError("backends disagree", f"{answer!r}, the reference: {other!r}"[:400])
    if refused:
        return "refused"
    check_agreement(answer, other)
    return "agreed"
