"""Scenes as batches to learn from: many questions a picture, and what every patch shows."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.lab.model import BOS, EOS, SPECIAL, build_tokenizer
from secateur.lab.objects import (
    BOARD,
    COLOURS,
    KINDS,
    ROWS,
    SHAPES,
    WORDS,
    Object,
    Question,
)
from secateur.lab.questions import ORDINALS, ask
from secateur.lab.scene import GRID, PATCH, Scene, draw
from secateur.lab.training.searches import searches

PATCHES = GRID * GRID
NOT_ASKED = -100
NAMES = (*SHAPES, "word", "number")

# What a probe of the tower names at every patch, and how many answers there are, nothing included.
PROBES = {
    "name": 1 + len(NAMES),
    "colour": 1 + len(COLOURS),
    "word": 1 + len(WORDS),
    "tens": 1 + 10,
    "ones": 1 + 10,
    "middle": 2,
}
PRESENT = len(COLOURS) * len(SHAPES) + len(WORDS)

_COLOUR = {name: index for index, name in enumerate(COLOURS)}
_NAME = {name: index for index, name in enumerate(NAMES)}
_WAYS = {"above": -BOARD, "below": BOARD, "left": -1, "right": 1}
_WORD = {word: index for index, word in enumerate(WORDS)}


@dataclass
class Asked:
    """Questions and answers on pictures or clips, many on each.

    Attributes
    ----------
    images
        uint8, shape ``(B, 96, 96, 3)``, or ``(B, T, 96, 96, 3)`` of clips.
    tokens
        int64, shape ``(B, T)``: question, answer, end; question, answer, end; and so on.
    turns
        int64, shape ``(B, T)``: the number of the question a token belongs to, -1 after the last.
    offsets
        int64, shape ``(B, T)``: how far a token is from the start of its question.
    targets
        int64, shape ``(B, T)``: the token that must follow where it is one of an answer, else -100.
    looks
        bool, shape ``(B, T, 9)``: the places that the answer's token to follow speaks of.
    cover
        bool, shape ``(B, 9, 144)``: the patches of each place's object, or of the empty place.
    kinds
        int64, shape ``(B, Q)``: index of the kind of each question, -1 where there is none.
    """

    images: Any
    tokens: Any
    turns: Any
    offsets: Any
    targets: Any
    looks: Any
    cover: Any
    kinds: Any


@dataclass
class Batch(Asked):
    """Pictures with everything to be said about them.

    Attributes
    ----------
    heard
        int64, shape ``(B, T, 3)``: the place of the object whose name ends at a token; at the
        token before a yes or no the places of both objects, or of one, and of it at "it" too; at
        the end of a question for a neighbour the neighbour's, last; else -100.
    aside
        bool, shape ``(B, T, 9)``: the places on a side of something where to look for an answer:
        the neighbour's at the end of a question for it; at "it", and at the token before a dense
        question's yes or no, those of the column.
    holds
        bool, shape ``(B, T, 7)``: the shapes at these places.
    wanted
        int64, shape ``(B, T)``: the shape that a dense question looks for there, else -100.
    patches
        For each of `PROBES` int64, shape ``(B, 144)``.
    present
        float32, shape ``(B, PRESENT)``: the pairs of colour and shape, and the words, in the scene.
    """

    heard: Any
    aside: Any
    holds: Any
    wanted: Any
    patches: dict[str, Any]
    present: Any


@functools.cache
def _tokenizer() -> Any:
    return build_tokenizer()


@functools.lru_cache(maxsize=65536)
def encode(text: str) -> tuple[int, ...]:
    """Token ids of `text` without the one that begins a prompt."""
    return tuple(_tokenizer()(text, add_special_tokens=False).input_ids)


def batch(seed: int, step: int, size: int, room: int, focus: float = 0.0) -> Batch:
    """Draw batch `step` of the stream `seed`: `size` scenes, at most `room` tokens on each.

    One question that runs over the whole scene comes first, then others in a random order as far
    as there is room; every picture encoded so teaches a dozen answers. With `focus` that share of
    the others is of relation and dense questions, more than two of each, as often the whole scene
    is not asked for, words that name an object look at it, and dense questions are those of
    `searches`.
    """
    import torch

    drawn = [draw(seed, step * size + index) for index in range(size)]
    rng = np.random.default_rng((seed, step, 1))
    packed = [_pack(rng, scene, room, focus) for scene in drawn]
    return Batch(
        images=torch.from_numpy(np.stack([scene.image for scene in drawn])),
        tokens=padded([row[0] for row in packed], SPECIAL.index("<pad>")),
        turns=padded([row[1] for row in packed], -1),
        offsets=padded([row[2] for row in packed], 0),
        targets=padded([row[3] for row in packed], NOT_ASKED),
        looks=_unpacked([row[5] for row in packed], BOARD * BOARD),
        cover=torch.from_numpy(np.stack([_cover(scene) for scene in drawn])),
        kinds=padded([row[4] for row in packed], -1),
        heard=torch.stack(
            [padded([row[6 + part] for row in packed], NOT_ASKED) for part in range(3)], dim=-1
        ),
        aside=_unpacked([row[9] for row in packed], BOARD * BOARD),
        holds=_unpacked([row[10] for row in packed], len(SHAPES)),
        wanted=padded([row[11] for row in packed], NOT_ASKED),
        patches={
            name: torch.from_numpy(np.stack([labels[name] for labels in map(_labels, drawn)]))
            for name in PROBES
        },
        present=torch.from_numpy(np.stack([_present(scene.objects) for scene in drawn])),
    )


def _pack(rng: np.random.Generator, scene: Scene, room: int, focus: float) -> tuple[list[int], ...]:
    tokens: list[int] = []
    turns: list[int] = []
    offsets: list[int] = []
    targets: list[int] = []
    kinds: list[int] = []
    looks: list[int] = []
    heard: tuple[list[int], ...] = ([], [], [], [], [], [])
    for question in _chosen(rng, scene, focus):
        asked = encode(question.text)
        told = (*encode(question.answer), SPECIAL.index(EOS))
        length = len(asked) + len(told) - 1
        if len(tokens) + length > room:
            continue
        tokens += (*asked, *told[:-1])
        turns += [len(kinds)] * length
        offsets += range(length)
        targets += [NOT_ASKED] * (len(asked) - 1) + list(told)
        places = _heard(scene, question, length)
        for column, more in zip(heard, places, strict=True):
            column += more
        names = places[0][: len(asked) - 1]
        looks += [1 << place if focus and place != NOT_ASKED else 0 for place in names]
        looks += _looks(scene, question, told)
        kinds.append(KINDS.index(question.kind))
    return tokens, turns, offsets, targets, kinds, looks, *heard


def _chosen(rng: np.random.Generator, scene: Scene, focus: float) -> list[Question]:
    """Order questions: one of the whole scene, then others by chance."""
    whole = [q for q in scene.questions if q.kind in ("caption", "places")]
    parts = [q for q in scene.questions if q.kind not in ("caption", "places")]
    chosen = [whole[int(rng.integers(len(whole)))]]
    parts = [parts[int(i)] for i in rng.permutation(len(parts))]
    if not focus:
        return chosen + parts
    if rng.random() < focus:
        chosen = []
    more: dict[str, Question] = {}
    for _ in range(8):
        for question in ask(rng, scene.objects, "relation"):
            more.setdefault(question.text, question)
    asked = [*more.values(), *searches(rng, scene.objects, 14)]
    hard = [asked[int(i)] for i in rng.permutation(len(asked))]
    parts = [q for q in parts if q.kind not in ("relation", "dense")]
    while hard or parts:
        take = hard if hard and (not parts or rng.random() < focus) else parts
        chosen.append(take.pop())
    return chosen


def _heard(scene: Scene, question: Question, length: int) -> tuple[list[int], ...]:
    """Return `heard`, `aside`, `holds` and `wanted` of `Batch` for a question, a column a list."""
    named, first, second, wanted = ([NOT_ASKED] * length for _ in range(4))
    aside, holds = ([0] * length for _ in range(2))
    words = re.findall(r"\w+|[^\w\s]", question.text)
    places: list[int] = []
    for index, pair in enumerate(pairwise(words)):
        there = [thing for thing in scene.objects if (thing.attribute, thing.name) == pair]
        if len(there) == 1:
            places.append(_place(there[0]))
            named[index + 1] = places[-1]
    last = len(words) - 1
    if question.kind == "relation" and len(places) == 2:
        first[last], second[last] = places
    elif question.kind == "relation":
        way = next(way for name, way in _WAYS.items() if name in words)
        first[last], second[last] = places[0], places[0] + way
        aside[last] = 1 << second[last]
        holds[last] = _held(scene.objects, aside[last])
    elif question.kind == "dense":
        row = ROWS.index(words[words.index("row") - 1])
        shapes = [thing for thing in scene.objects if thing.row == row and not thing.is_label]
        thing = shapes[ORDINALS.index(words[words.index("shape") - 1])]
        named[words.index("row")] = _place(thing)
        it = words.index("it")
        rows = range(row) if words[it - 1] == "above" else range(row + 1, BOARD)
        for token in (it, last + 2):
            first[token] = _place(thing)
            aside[token] = sum(1 << other * BOARD + thing.column for other in rows)
            holds[token] = _held(scene.objects, aside[token])
            wanted[token] = SHAPES.index(words[it - 2])
    return named, first, second, aside, holds, wanted


def _held(objects: Sequence[Object], places: int) -> int:
    """Return the shapes at some places, both a bit each."""
    shapes = [thing for thing in objects if not thing.is_label]
    held = {SHAPES.index(thing.name) for thing in shapes if places >> _place(thing) & 1}
    return sum(1 << shape for shape in held)


def _place(thing: Object) -> int:
    return thing.row * BOARD + thing.column


def _looks(scene: Scene, question: Question, told: Sequence[int]) -> list[int]:
    """For each token of an answer the places it speaks of, a bit each; none for the end."""
    if question.kind not in ("caption", "places"):
        places = {patch // (4 * GRID) * BOARD + patch % GRID // 4 for patch in question.patches}
        return [sum(1 << place for place in places)] * (len(told) - 1) + [0]
    (comma,) = encode(",")
    listed = [thing.row * BOARD + thing.column for thing in scene.objects]
    if question.kind == "places":
        listed = list(range(BOARD * BOARD))
    part = 0
    looks = []
    for token in told[:-1]:
        looks.append(1 << listed[part])
        part += token == comma
    return [*looks, 0]


def _cover(scene: Scene) -> NDArray[np.bool_]:
    row, column = np.divmod(np.arange(PATCHES), GRID)
    place = row // 4 * BOARD + column // 4
    cover: NDArray[np.bool_] = place == np.arange(BOARD * BOARD)[:, None]
    for thing in scene.objects:
        mine = thing.row * BOARD + thing.column
        cover[mine] = np.isin(np.arange(PATCHES), thing.patches)
    return cover


def _unpacked(rows: Sequence[Sequence[int]], bits: int) -> Any:
    """Bits as booleans, (B, T, bits)."""
    import torch

    return (padded(rows, 0)[..., None] >> torch.arange(bits)) % 2 == 1


def padded(rows: Sequence[Sequence[int]], value: int) -> Any:
    """Rows of unequal length as one table, filled up on the right."""
    import torch

    table = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for row, numbers in zip(table, rows, strict=True):
        row[: len(numbers)] = numbers
    return torch.from_numpy(table)


def _labels(scene: Scene) -> dict[str, NDArray[np.int64]]:
    """For each patch the object that covers most of it, if that is a fifth or more."""
    labels = {name: np.zeros(PATCHES, dtype=np.int64) for name in PROBES}
    for thing in scene.objects:
        covered = scene.coverage[thing.row * 3 + thing.column] >= 0.2
        labels["name"][covered] = 1 + _NAME[thing.name]
        if thing.name == "word":
            labels["word"][covered] = 1 + _WORD[thing.attribute]
        elif thing.name == "number":
            labels["tens"][covered] = 1 + int(thing.attribute[0])
            labels["ones"][covered] = 1 + int(thing.attribute[1])
        else:
            labels["colour"][covered] = 1 + _COLOUR[thing.attribute]
        left, top, right, bottom = thing.box
        labels["middle"][(top + bottom) // 2 // PATCH * GRID + (left + right) // 2 // PATCH] = 1
    return labels


def _present(objects: Sequence[Object]) -> NDArray[np.float32]:
    there = np.zeros(PRESENT, dtype=np.float32)
    for thing in objects:
        if thing.name == "word":
            there[len(COLOURS) * len(SHAPES) + _WORD[thing.attribute]] = 1
        elif thing.name != "number":
            there[_COLOUR[thing.attribute] * len(SHAPES) + _NAME[thing.name]] = 1
    return there


def pixels(images: Any) -> Any:
    """Turn uint8 ``(B, 96, 96, 3)`` into what the processor makes of it: ``(B, 3, 96, 96)``."""
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def prompt_start() -> int:
    """Return the id of the token before the image."""
    return SPECIAL.index(BOS)
