"""What can be asked of a scene, with exact answers and the patches that hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from secateur.lab.objects import (
    BOARD,
    COLOURS,
    COLUMNS,
    KINDS,
    ROWS,
    SHAPES,
    WORDS,
    Kind,
    Object,
    Question,
)

T = TypeVar("T")

DESCRIBE = "describe the scene."
LIST_PLACES = "list the nine places."
ORDINALS = ("first", "second", "third")

# Every word that a question or an answer may contain, in the order of the vocabulary.
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *COLOURS,
            *SHAPES,
            *(f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES),
            *WORDS,
            *ROWS,
            *COLUMNS,
            *ORDINALS,
            *(*"0123456789", *(f"##{digit}" for digit in "0123456789")),
            *("yes", "no", "nothing", "word", "number", "label", "shape", "shapes", "colour"),
            *("what", "is", "are", "there", "how", "many", "a", "an", "the", "at", "in", "of"),
            *("row", "column", "and", "does", "say", "above", "below", "to", "it", "which"),
            *("describe", "scene", "list", "nine", "places", "objects", "image", "picture"),
            *("?", ".", ","),
        )
    )
)


def ask(
    rng: np.random.Generator, objects: Sequence[Object], kind: Kind | None = None
) -> tuple[Question, ...]:
    """Ask up to two questions of every kind that the scene admits, or only those of `kind`.

    Parameters
    ----------
    rng
        Chooses what is asked.
    objects
        The scene's, in reading order.
    kind
        One of `KINDS`; None for all.

    Returns
    -------
    tuple of Question
        Without repetition, in the order of `KINDS`.
    """
    asked: dict[str, Question] = {}
    for name in KINDS if kind is None else (kind,):
        for question in _ASKERS[name](rng, objects):
            asked.setdefault(question.text, question)
    return tuple(asked.values())


def caption(objects: Sequence[Object]) -> str:
    """Name every object and its place in reading order."""
    return ", ".join(f"{thing.phrase} {thing.place}" for thing in objects) + "."


def mentioned(text: str) -> list[str]:
    """Return the objects that a caption names, places left out: ``["red star", "word cat"]``.

    For CHAIR: an object named that is not among the scene's `Object.phrase` is hallucinated.
    Fragments that name no whole object are passed over.

    Parameters
    ----------
    text
        A caption, as `caption` or the model writes it.
    """
    named = []
    for part in text.rstrip(". ").split(","):
        words = part.split()
        if len(words) < 2:
            continue
        first, second = words[:2]
        shape = first in COLOURS and second in SHAPES
        label = (first == "word" and second in WORDS) or (first == "number" and second.isdigit())
        if shape or label:
            named.append(f"{first} {second}")
    return named


def article(phrase: str) -> str:
    """Return the indefinite article that goes before `phrase`."""
    return "an" if phrase[0] in "aeiou" else "a"


def _patches(*objects: Object) -> tuple[int, ...]:
    return tuple(sorted({patch for thing in objects for patch in thing.patches}))


def _shapes(objects: Iterable[Object]) -> list[Object]:
    return [thing for thing in objects if not thing.is_label]


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _unique(objects: Sequence[Object], key: Callable[[Object], str]) -> list[Object]:
    """Objects whose `key` no other object has."""
    counts = Counter(key(thing) for thing in objects)
    return [thing for thing in objects if counts[key(thing)] == 1]


def _pair(thing: Object) -> str:
    return f"{thing.attribute} {thing.name}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def _colour(rng: np.random.Generator, objects: Sequence[Object]) -> Iterable[Question]:
    shapes = _shapes(objects)
    if shapes:
        thing = _pick(rng, shapes)
        text = f"what colour is at the {thing.place}?"
        yield Question(text, thing.attribute, "colour", thing.patches)
    alone = _unique(shapes, lambda thing: thing.name)
    if alone:
        thing = _pick(rng, alone)
        text = f"what colour is the {thing.name}?"
        yield Question(text, thing.attribute, "colour", thing.patches)


def _shape(rng: np.random.Generator, objects: Sequence[Object]) -> Iterable[Question]:
    shapes = _shapes(objects)
    if shapes:
        thing = _pick(rng, shapes)
        text = f"what shape is at the {thing.place}?"
        yield Question(text, thing.name, "shape", thing.patches)
    alone = _unique(shapes, lambda thing: thing.attribute)
    if alone:
        thing = _pick(rng, alone)
        yield Question(f"what shape is {thing.attribute}?", thing.name, "shape", thing.patches)


def _existence(rng: np.random.Generator, objects: Sequence[Object]) -> Iterable[Question]:
    shapes = _shapes(objects)
    pairs = {_pair(thing) for thing in shapes}
    if shapes:
        wanted = _pair(_pick(rng, shapes))
        found = [thing for thing in shapes if _pair(thing) == wanted]
        yield Question(
            f"is there {article(wanted)} {wanted}?", "yes", "existence", _patches(*found)
        )
    # Half of what is absent would be there if one object had another's colour.
    colours = sorted({thing.attribute for thing in shapes})
    names = sorted({thing.name for thing in shapes})
    near = [f"{c} {s}" for c in colours for s in names if f"{c} {s}" not in pairs]
    if not near or rng.random() < 0.5:
        near = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in pairs]
    wanted = _pick(rng, near)
    yield Question(f"is there {article(wanted)} {wanted}?", "no", "existence", ())


def _count(rng: np.random.Generator, objects: Sequence[Object]) -> Iterable[Question]:
    shapes = _shapes(objects)
    yield Question("how many shapes are there?", str(len(shapes)), "count", _patches(*shapes))
    if rng.random() < 0.5:
        present = sorted({thing.attribute for thing in shapes})
        wanted = _pick(rng, present if present and rng.random() < 0.8 else list(COLOURS))
        found = [thing for thing in shapes if thing.attribute == wanted]
        text = f"how many {wanted} shapes are there?"
    else:
        present = sorted({thing.name for thing in shapes})
        wanted = _pick(rng, present if present and rng.random() < 0.8 else SHAPES)
        found = [thing for thing in shapes if thing.name == wanted]
        text = f"how many {_plural(wanted)} are there?"
    yield Question(text, str(len(found)), "count", _patches(*found))


def _reading(rng: np.random.Generator, objects: Sequence[Object]) -> Iterable[Question]:
    labels = [thing for thing in objects if thing.is_label]
    if labels:
        thing = _pick(rng, labels)
        text = f"what does the label at the {thing.place} say?"
        yield Question(text, thing.attribute, "reading", thing.patches)
    alone = _unique(labels, lambda thing: thing.name)
    if alone:
        thing = _pick(rng, alone)
        text = f"what {thing.name} is there?"
        yield Question(text, thing.attribute, "reading", thing.patches)


def _relation(rng: np.random.Generator, objects: Sequence[Object]) -> Iterable[Question]:
    alone = _unique(_shapes(objects), _pair)
    if not alone:
        return
    # A question of the neighbour, then one of two objects of which the wrong order is as likely.
    thing = _pick(rng, alone)
    neighbours = [
        (direction, thing.row + down, thing.column + right)
        for direction, down, right in (
            ("above", -1, 0),
            ("below", 1, 0),
            ("to the left of", 0, -1),
            ("to the right of", 0, 1),
        )
        if 0 <= thing.row + down < BOARD and 0 <= thing.column + right < BOARD
    ]
    at = {(other.row, other.column): other for other in objects}
    full = [way for way in neighbours if way[1:] in at]
    direction, row, column = _pick(rng, full if full and rng.random() < 0.7 else neighbours)
    other = at.get((row, column))
    text = f"what is {direction} the {_pair(thing)}?"
    if other is None:
        yield Question(text, "nothing", "relation", thing.patches)
    else:
        yield Question(text, other.phrase, "relation", _patches(thing, other))
    if len(alone) > 1:
        first, second = (alone[int(i)] for i in rng.permutation(len(alone))[:2])
        options = []
        if first.row != second.row:
            options.append(("above", first.row < second.row))
            options.append(("below", first.row > second.row))
        if first.column != second.column:
            options.append(("to the left of", first.column < second.column))
            options.append(("to the right of", first.column > second.column))
        direction, holds = _pick(rng, options)
        text = f"is the {_pair(first)} {direction} the {_pair(second)}?"
        answer = "yes" if holds else "no"
        yield Question(text, answer, "relation", _patches(first, second))


def _dense(rng: np.random.Generator, objects: Sequence[Object]) -> Iterable[Question]:
    shapes = _shapes(objects)
    if not shapes:
        return
    thing = _pick(rng, shapes)
    side = _pick(rng, sides(thing))
    there = beyond(objects, thing, side)
    wanted = _pick(rng, there).name if there and rng.random() < 0.6 else _pick(rng, SHAPES)
    yield search(objects, thing, side, wanted)


def sides(thing: Object) -> tuple[str, ...]:
    """Where something may lie from `thing`, up or down its column."""
    return (("below",), ("above", "below"), ("above",))[thing.row]


def beyond(objects: Iterable[Object], thing: Object, side: str) -> list[Object]:
    """Return the shapes that lie ``"above"`` or ``"below"`` a thing, in its column."""
    return [
        other
        for other in _shapes(objects)
        if other.column == thing.column
        and (other.row < thing.row if side == "above" else other.row > thing.row)
    ]


def search(objects: Sequence[Object], thing: Object, side: str, wanted: str) -> Question:
    """Ask for the colour of a shape named by its row, and whether a shape lies on a side of it.

    Parameters
    ----------
    objects
        The scene's, in reading order.
    thing
        The shape among them.
    side
        One of its `sides`.
    wanted
        One of `SHAPES`.
    """
    row = [other for other in _shapes(objects) if other.row == thing.row]
    found = [other for other in beyond(objects, thing, side) if other.name == wanted]
    text = (
        f"what colour is the {ORDINALS[row.index(thing)]} shape in the {ROWS[thing.row]} row, "
        f"and is a {wanted} {side} it?"
    )
    answer = f"{thing.attribute}, {'yes' if found else 'no'}"
    return Question(text, answer, "dense", _patches(thing, *found))


def _caption(rng: np.random.Generator, objects: Sequence[Object]) -> Iterable[Question]:
    yield Question(DESCRIBE, caption(objects), "caption", _patches(*objects))


def _places(rng: np.random.Generator, objects: Sequence[Object]) -> Iterable[Question]:
    at = {(thing.row, thing.column): thing.phrase for thing in objects}
    board = (at.get(divmod(place, BOARD), "nothing") for place in range(BOARD * BOARD))
    yield Question(LIST_PLACES, ", ".join(board) + ".", "places", _patches(*objects))


_ASKERS: dict[Kind, Callable[[np.random.Generator, Sequence[Object]], Iterable[Question]]] = {
    "colour": _colour,
    "shape": _shape,
    "existence": _existence,
    "count": _count,
    "reading": _reading,
    "relation": _relation,
    "dense": _dense,
    "caption": _caption,
    "places": _places,
}
