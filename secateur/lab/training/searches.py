"""Dense questions to learn from: the shape asked for is there as often as it only lies near by."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from secateur.lab.objects import SHAPES, Object, Question
from secateur.lab.questions import beyond, search, sides

SHARES = {"near": 7, "elsewhere": 2, "nowhere": 2}
"""Where a shape that is not there lies how often: on the side asked for but in another column or in
that column but on another side, elsewhere in the scene, or not in it. Whoever looks anywhere but in
the right places says yes to the first."""


def searches(rng: np.random.Generator, objects: Sequence[Object], many: int) -> list[Question]:
    """Draw up to `many` dense questions, without repetition.

    Half or more are answered yes where there are as many such; of no there are at most two more.

    Parameters
    ----------
    rng
        Chooses what is asked.
    objects
        The scene's, in reading order.
    many
        How many at most.
    """
    options: dict[str, list[tuple[Object, str, str]]] = {}
    for thing in (thing for thing in objects if not thing.is_label):
        for side, wanted in product(sides(thing), SHAPES):
            where = _where(objects, thing, side, wanted)
            options.setdefault(where, []).append((thing, side, wanted))
    for where, found in options.items():
        options[where] = [found[int(i)] for i in rng.permutation(len(found))]
    drawn = options.pop("there", [])[: many // 2]
    for _ in range(min(many - len(drawn), len(drawn) + 2)):
        left = [where for where in SHARES if options.get(where)]
        if not left:
            break
        shares = np.array([SHARES[where] for where in left], dtype=float)
        drawn.append(options[left[int(rng.choice(len(left), p=shares / shares.sum()))]].pop())
    return [search(objects, *chosen) for chosen in drawn]


def _where(objects: Sequence[Object], thing: Object, side: str, wanted: str) -> str:
    """Name the case of `SHARES` that a question would be, or ``"there"``."""
    found = [other for other in objects if other.name == wanted]
    if any(other in found for other in beyond(objects, thing, side)):
        return "there"
    for other in found:
        aside = other.row < thing.row if side == "above" else other.row > thing.row
        if aside or other.column == thing.column:
            return "near"
    return "elsewhere" if found else "nowhere"
