"""Clips drawn by a seed: scenes that move.

A clip is a few frames of one board on one ground, each with a little noise of its own. Shapes
appear, leave, go to another place or change colour, at most one of each, and a label is shown for
an eighth to a quarter of the frames. Nothing else changes. No two shapes of a clip are alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secateur.lab.objects import BOARD, COLOURS, SHAPES, WORDS, Object
from secateur.lab.scene import (
    GRID,
    PATCH,
    PLACE,
    SIZE,
    TEXTURES,
    Texture,
    Tile,
    ground,
    label_tile,
    shape_tile,
)
from secateur.lab.watched import WATCHED, Actor, ClipQuestion, Role, Watched, ask

FRAMES = 8
SIDE = GRID // 2
"""Tokens of a frame on a side: two by two patches are pooled."""
NOISE = 3.0
"""Standard deviation of a frame's own noise, in levels of 255."""
STREAM = 18
"""What tells the dice of clips from those of scenes of the same seed."""


@dataclass(frozen=True)
class Clip:
    """Frames, what is in them, and what may be asked.

    Attributes
    ----------
    images
        uint8, shape ``(T, 96, 96, 3)``.
    actors
        What is to be seen, and when.
    questions
        Up to two of every kind; see `secateur.lab.watched.every_question`.
    texture
        What the ground looks like, one of `secateur.lab.TEXTURES`.
    seed, index
        What drew it.
    """

    images: NDArray[np.uint8] = field(repr=False)
    actors: tuple[Actor, ...]
    questions: tuple[ClipQuestion, ...]
    texture: Texture
    seed: int
    index: int

    @property
    def digest(self) -> str:
        """SHA-256 of the frames and every word about them."""
        told = repr((self.actors, self.questions, self.texture))
        return hashlib.sha256(self.images.tobytes() + told.encode()).hexdigest()


def clips(
    n: int, seed: int, kind: Watched | None = None, *, frames: int = FRAMES, start: int = 0
) -> Iterator[Clip]:
    """Draw `n` clips; the same arguments draw the same clips.

    Parameters
    ----------
    n
        How many.
    seed
        Clip i is drawn from ``(seed, start + i)`` alone. The model that watches was trained on
        the stream of seed 0.
    kind
        Ask questions of this kind only, and pass over clips without any; None asks every kind.
    frames
        How many a clip has, 8 to 16.
    start
        Index of the first clip.

    Examples
    --------
    >>> from secateur.lab import clips
    >>> clip = next(clips(1, seed=1, kind="count"))
    >>> clip.images.shape, clip.questions[0].text
    ((8, 96, 96, 3), 'how many shapes are there at the start?')
    """
    if kind is not None and kind not in WATCHED:
        raise ValueError(f"kind must be one of {', '.join(WATCHED)} or None, got {kind!r}")
    if not FRAMES <= frames <= 2 * FRAMES:
        raise ValueError(f"frames: expected {FRAMES} to {2 * FRAMES}, got {frames}")
    drawn, index = 0, start
    while drawn < n:
        clip = draw_clip(seed, index, frames, kind)
        index += 1
        if clip.questions:
            drawn += 1
            yield clip


def draw_clip(seed: int, index: int, frames: int = FRAMES, kind: Watched | None = None) -> Clip:
    """Draw clip `index` of the stream `seed`; it may have no question of `kind`."""
    rng = np.random.default_rng((seed, index, STREAM))
    texture = TEXTURES[max(0, int(rng.integers(-2, len(TEXTURES))))]
    canvas = ground(rng, texture)
    cast = _Cast(rng, frames)
    actors = cast.actors()
    questions = ask(rng, actors, SIDE)
    images = np.empty((frames, SIZE, SIZE, 3), dtype=np.uint8)
    for t in range(frames):
        frame = canvas + rng.normal(0, NOISE, canvas.shape)
        for actor in actors:
            state = actor.states[t]
            if state is not None:
                tile, opacity, _ = cast.tiles[state.phrase]
                y, x = state.row * PLACE, state.column * PLACE
                window = frame[y : y + PLACE, x : x + PLACE]
                window += opacity[..., None] * (tile - window)
        images[t] = np.clip(np.rint(frame), 0, 255)
    return Clip(
        images=images,
        actors=actors,
        questions=tuple(q for q in questions if kind in (None, q.kind)),
        texture=texture,
        seed=seed,
        index=index,
    )


class _Cast:
    """Hands out places, pairs of colour and shape, and frames to change in."""

    def __init__(self, rng: np.random.Generator, frames: int) -> None:
        self.rng, self.frames = rng, frames
        self.places = [int(place) for place in rng.permutation(BOARD * BOARD)]
        palette = rng.permutation(list(COLOURS))[: rng.integers(4, len(COLOURS) + 1)]
        forms = rng.permutation(SHAPES)[: rng.integers(3, len(SHAPES) + 1)]
        pairs = [(str(form), str(colour)) for form in forms for colour in palette]
        self.pairs = [pairs[i] for i in rng.permutation(len(pairs))]
        self.tiles: dict[str, Tile] = {}

    def actors(self) -> tuple[Actor, ...]:
        """Draw who takes part."""
        rng = self.rng
        # Who changes colour comes first, while there is a pair of the same shape left.
        happens: tuple[Role, ...] = ("recolours", "appears", "leaves", "moves")
        roles = [role for role in happens if rng.random() < 0.6]
        roles += ["stays"] * int(rng.integers(0, 3))
        found = [self._shape(role) for role in roles]
        words = rng.random() < 0.5
        if rng.random() < 0.75 or not found:
            found.append(self._label(words, "flashes"))
        if rng.random() < 0.35 and self.places:
            found.append(self._label(not words, "stays"))
        return tuple(found)

    def _shape(self, role: Role) -> Actor:
        name, colour = self.pairs.pop()
        dice = int(self.rng.integers(2**31))
        place, change = self.places.pop(), int(self.rng.integers(1, self.frames))
        before: Object | None = self._drawn(name, colour, place, dice)
        after = before
        if role == "moves":
            near = [p for p in self.places if _neighbours(place, p)] or self.places
            target = near[int(self.rng.integers(len(near)))]
            self.places.remove(target)
            after = self._drawn(name, colour, target, dice)
        elif role == "recolours":
            other = next(pair for pair in self.pairs if pair[0] == name)
            self.pairs.remove(other)
            after = self._drawn(name, other[1], place, dice)
        elif role == "appears":
            before = None
        elif role == "leaves":
            after = None
        return Actor(role, (before,) * change + (after,) * (self.frames - change))

    def _label(self, is_word: bool, role: Role) -> Actor:
        rng = self.rng
        text = str(rng.choice(WORDS)) if is_word else str(rng.integers(10, 100))
        thing = self._drawn("word" if is_word else "number", text, self.places.pop(), 0)
        if role != "flashes":
            return Actor(role, (thing,) * self.frames)
        length = int(rng.integers(self.frames // 8, self.frames // 4 + 1))
        start = int(rng.integers(self.frames - length + 1))
        shown = range(start, start + length)
        return Actor(role, tuple(thing if t in shown else None for t in range(self.frames)))

    def _drawn(self, name: str, attribute: str, place: int, dice: int) -> Object:
        """The thing at a place; the same dice draw the same outline, whatever its colour."""
        if name in ("word", "number"):
            tile = label_tile(self.rng, attribute)
        else:
            tile = shape_tile(np.random.default_rng(dice), name, attribute)
        row, column = divmod(place, BOARD)
        y, x = row * PLACE, column * PLACE
        whole = np.zeros((SIZE, SIZE), dtype=np.float32)
        whole[y : y + PLACE, x : x + PLACE] = tile[1]
        cover = whole.reshape(GRID, PATCH, GRID, PATCH).mean(axis=(1, 3)).ravel()
        left, top, right, bottom = tile[2]
        box = (x + left, y + top, x + right, y + bottom)
        patches = tuple(int(i) for i in np.flatnonzero(cover >= 0.1))
        thing = Object(name, attribute, row, column, box, patches)
        self.tiles[thing.phrase] = tile
        return thing


def _neighbours(one: int, other: int) -> bool:
    rows, columns = np.abs(np.subtract(divmod(one, BOARD), divmod(other, BOARD)))
    return int(rows + columns) == 1


def strip(frames: NDArray[np.uint8], gap: int = 2) -> NDArray[np.uint8]:
    """Frames ``(T, H, W, 3)`` side by side, white between them."""
    height = frames[0].shape[0]
    white = np.full((height, gap, 3), 255, dtype=np.uint8)
    parts = [part for frame in frames for part in (frame, white)]
    return np.concatenate(parts[:-1], axis=1)
