"""Scenes drawn by a seed: coloured shapes and small print on plain or textured grounds.

A scene is 96 pixels square, a board of three rows and three columns of places. Each place holds
one object or none: a shape of one of eight colours and twenty to thirty pixels, or a label
that prints a word or a number five pixels wide and seven high a letter. Objects know the patches
of eight pixels that they cover, so that a question knows which patches its answer needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from secateur.lab.font import render
from secateur.lab.objects import (
    BOARD,
    COLOURS,
    KINDS,
    SHAPES,
    WORDS,
    Kind,
    Object,
    Question,
)
from secateur.lab.questions import ask, caption

SIZE = 96
PATCH = 8
GRID = SIZE // PATCH
PLACE = SIZE // BOARD

Complexity = Literal["sparse", "medium", "crowded"]
Texture = Literal["plain", "gradient", "stripes", "checks", "speckles", "noise"]

COMPLEXITIES: tuple[Complexity, ...] = get_args(Complexity)
TEXTURES: tuple[Texture, ...] = get_args(Texture)
_COUNTS: dict[Complexity, tuple[int, int]] = {
    "sparse": (1, 3),
    "medium": (4, 6),
    "crowded": (7, 9),
}


@dataclass(frozen=True)
class Scene:
    """A picture, what is in it, and what may be asked.

    Attributes
    ----------
    image
        uint8, shape ``(96, 96, 3)``.
    objects
        In reading order.
    questions
        The questions of the kinds asked for; see `secateur.lab.questions.ask`.
    caption
        What a perfect answer to ``"describe the scene."`` says: every object in reading order.
    texture
        What the ground looks like, one of `TEXTURES`.
    coverage
        float32, shape ``(9, 144)``: how much of each patch the object at each place covers.
    seed, index
        What drew it.
    """

    image: NDArray[np.uint8] = field(repr=False)
    objects: tuple[Object, ...]
    questions: tuple[Question, ...]
    caption: str
    texture: Texture
    coverage: NDArray[np.float32] = field(repr=False)
    seed: int
    index: int

    @property
    def complexity(self) -> Complexity:
        """Sparse for up to three objects, medium up to six, crowded beyond."""
        return next(name for name, (_, most) in _COUNTS.items() if len(self.objects) <= most)

    @property
    def digest(self) -> str:
        """SHA-256 of the picture and every word about it: equal if and only if the scenes are."""
        told = repr((self.objects, self.questions, self.caption, self.texture))
        return hashlib.sha256(self.image.tobytes() + told.encode()).hexdigest()


def scenes(
    n: int,
    seed: int,
    kind: Kind | None = None,
    complexity: Complexity | None = None,
    *,
    texture: Texture | None = None,
    start: int = 0,
) -> Iterator[Scene]:
    """Draw `n` scenes; the same arguments draw the same scenes.

    Parameters
    ----------
    n
        How many.
    seed
        Scene i is drawn from ``(seed, start + i)`` alone, so any part of a stream can be drawn by
        itself. The shipped model was trained on the stream of seed 0; take another for held-out
        scenes.
    kind
        Ask questions of this kind only, and draw only scenes of which such a question can be
        asked (others are passed over); None asks every kind that a scene admits.
    complexity
        ``"sparse"`` (one to three objects), ``"medium"`` (four to six) or ``"crowded"`` (seven to
        nine); None draws all three, one as often as another.
    texture
        One of `TEXTURES`; None draws all, plain ones a third of the time.
    start
        Index of the first scene.

    Yields
    ------
    Scene
        With `image`, `objects`, `questions` and `caption`.

    Examples
    --------
    >>> from secateur.lab import scenes
    >>> scene = next(scenes(1, seed=1, complexity="sparse"))
    >>> scene.image.shape, scene.image.dtype
    ((96, 96, 3), dtype('uint8'))
    """
    for name, value, known in (
        ("kind", kind, KINDS),
        ("complexity", complexity, COMPLEXITIES),
        ("texture", texture, TEXTURES),
    ):
        if value is not None and value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)} or None, got {value!r}")
    index = start
    drawn = 0
    while drawn < n:
        scene = draw(seed, index, kind, complexity, texture)
        index += 1
        if scene.questions:
            drawn += 1
            yield scene


def draw(
    seed: int,
    index: int,
    kind: Kind | None = None,
    complexity: Complexity | None = None,
    texture: Texture | None = None,
) -> Scene:
    """Draw scene `index` of the stream `seed`; it may have no question of `kind`."""
    rng = np.random.default_rng((seed, index))
    if complexity is None:
        complexity = COMPLEXITIES[rng.integers(3)]
    if texture is None:
        texture = TEXTURES[max(0, int(rng.integers(-2, len(TEXTURES))))]
    canvas = ground(rng, texture)
    fewest, most = _COUNTS[complexity]
    places = np.sort(rng.permutation(BOARD * BOARD)[: rng.integers(fewest, most + 1)])
    # Few colours and few shapes in a scene make counts that differ and questions that are hard.
    palette = rng.permutation(list(COLOURS))[: rng.integers(2, len(COLOURS) + 1)]
    forms = rng.permutation(SHAPES)[: rng.integers(2, len(SHAPES) + 1)]
    label_share = rng.choice([0.0, 0.25, 0.5])
    coverage = np.zeros((BOARD * BOARD, GRID * GRID), dtype=np.float32)
    objects = []
    for place in places:
        row, column = divmod(int(place), BOARD)
        if rng.random() < label_share:
            if rng.random() < 0.5:
                name, attribute = "word", str(rng.choice(WORDS))
            else:
                name, attribute = "number", str(rng.integers(10, 100))
            tile, opacity, box = label_tile(rng, attribute)
        else:
            name, attribute = str(rng.choice(forms)), str(rng.choice(palette))
            tile, opacity, box = shape_tile(rng, name, attribute)
        y, x = row * PLACE, column * PLACE
        window = canvas[y : y + PLACE, x : x + PLACE]
        window += opacity[..., None] * (tile - window)
        whole = np.zeros((SIZE, SIZE), dtype=np.float32)
        whole[y : y + PLACE, x : x + PLACE] = opacity
        coverage[place] = whole.reshape(GRID, PATCH, GRID, PATCH).mean(axis=(1, 3)).ravel()
        patches = tuple(int(i) for i in np.flatnonzero(coverage[place] >= 0.1))
        left, top, right, bottom = box
        box = (x + left, y + top, x + right, y + bottom)
        objects.append(Object(name, attribute, row, column, box, patches))
    scenery = tuple(objects)
    return Scene(
        image=np.clip(np.rint(canvas), 0, 255).astype(np.uint8),
        objects=scenery,
        questions=ask(rng, scenery, kind),
        caption=caption(scenery),
        texture=texture,
        coverage=coverage,
        seed=seed,
        index=index,
    )


def ground(rng: np.random.Generator, texture: Texture) -> NDArray[np.float32]:
    """Draw the ground: greys of little colour, so that no ground is taken for a shape."""
    base = rng.uniform(60, 200) + rng.uniform(-12, 12, 3)
    other = base + rng.choice([-1, 1]) * rng.uniform(18, 40)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    if texture == "plain":
        share = np.zeros((SIZE, SIZE))
    elif texture == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        slope = np.cos(angle) * x + np.sin(angle) * y
        share = 1.5 * (slope - slope.min()) / np.ptp(slope)
    elif texture == "stripes":
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
        wave = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period)
        share = 0.5 + 0.5 * wave
    elif texture == "checks":
        period = int(rng.integers(4, 12))
        share = ((x // period + y // period) % 2).astype(np.float64)
    elif texture == "speckles":
        share = (rng.random((SIZE, SIZE)) < 0.06).astype(np.float64) * 1.5
    else:
        share = 0.5 + 0.5 * rng.standard_normal((SIZE, SIZE))
    ground: NDArray[np.float32] = (base + share[..., None] * (other - base)).astype(np.float32)
    return ground


Box = tuple[int, int, int, int]
Tile = tuple[NDArray[np.float32], NDArray[np.float32], Box]

_Y, _X = np.mgrid[:PLACE, :PLACE].astype(np.float32) + 0.5


def shape_tile(rng: np.random.Generator, name: str, colour: str) -> Tile:
    """Draw a shape somewhere in its place: colours, opacity (anti-aliased) and box."""
    radius = float(rng.uniform(10, 15))
    middle = rng.uniform(radius + 0.5, PLACE - radius - 0.5, 2)
    x, y = _X - np.float32(middle[0]), _Y - np.float32(middle[1])
    opacity = np.clip(0.5 - _distance(name, x, y, radius), 0, 1).astype(np.float32)
    tint = np.array(COLOURS[colour]) + rng.uniform(-14, 14, 3)
    tile = np.broadcast_to(tint.astype(np.float32), (PLACE, PLACE, 3))
    return tile, opacity, _extent(opacity)


def _distance(
    name: str, x: NDArray[np.float32], y: NDArray[np.float32], radius: float
) -> NDArray[np.float32]:
    """Signed distance in pixels to the outline of a shape about the origin, negative inside."""
    distance: NDArray[np.floating[Any]]
    if name == "circle":
        distance = np.hypot(x, y) - radius
    elif name == "square":
        distance = np.maximum(abs(x), abs(y)) - 0.82 * radius
    elif name == "triangle":
        slanted = 0.866 * abs(x) - 0.5 * y
        distance = np.maximum(slanted - 0.45 * radius, y - 0.85 * radius)
    elif name == "diamond":
        distance = (abs(x) * 1.25 + abs(y) - radius) / 1.6
    elif name == "star":
        fifth = np.pi / 5
        turn = np.arctan2(x, -y) % (2 * fifth)
        fold = np.minimum(turn, 2 * fifth - turn)
        length = np.hypot(x, y)
        inner = 0.45 * radius
        rise, run = inner * np.cos(fifth) - radius, inner * np.sin(fifth)
        along, across = length * np.cos(fold) - radius, length * np.sin(fold)
        distance = (along * run - across * rise) / np.hypot(rise, run)
    elif name == "cross":
        long, wide = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
        distance = np.maximum(long - 0.95 * radius, wide - 0.3 * radius)
    else:
        distance = abs(np.hypot(x, y) - 0.76 * radius) - 0.24 * radius
    return distance.astype(np.float32)


def label_tile(rng: np.random.Generator, text: str) -> Tile:
    """Print dark letters on a light plate; its lines and its start keep to the grid of patches."""
    ink = render(text)
    height, width = ink.shape[0] + 4, ink.shape[1] + 4
    left = PATCH * int(rng.integers(0, (PLACE - width) // PATCH + 1))
    top = PATCH * int(rng.integers(1, 3)) - 2
    paper = rng.uniform(225, 250) + rng.uniform(-5, 5, 3)
    dark = rng.uniform(10, 60, 3)
    tile = np.zeros((PLACE, PLACE, 3), dtype=np.float32)
    opacity = np.zeros((PLACE, PLACE), dtype=np.float32)
    opacity[top : top + height, left : left + width] = 1
    tile[top : top + height, left : left + width] = paper
    tile[top + 2 : top + height - 2, left + 2 : left + width - 2][ink] = dark
    return tile, opacity, (left, top, left + width, top + height)


def _extent(opacity: NDArray[np.float32]) -> Box:
    rows, columns = np.flatnonzero(opacity.any(axis=1)), np.flatnonzero(opacity.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
