"""What scenes are made of, and what a question about one is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

BOARD = 3
Kind = Literal[
    "colour", "shape", "existence", "count", "reading", "relation", "dense", "caption", "places"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 130, 30),
    "yellow": (248, 218, 50),
    "green": (40, 160, 70),
    "cyan": (60, 205, 215),
    "blue": (40, 80, 215),
    "purple": (130, 50, 175),
    "pink": (245, 130, 190),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring")
WORDS = (
    *("cat", "dog", "sun", "map", "key", "box", "cup", "hat"),
    *("bird", "fish", "moon", "tree", "lamp", "ship", "rose", "wolf"),
)
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")


@dataclass(frozen=True)
class Object:
    """One thing in a scene.

    Attributes
    ----------
    name
        A shape (`SHAPES`), ``"word"`` or ``"number"``.
    attribute
        A shape's colour, the word printed, or the number's two digits.
    row, column
        Its place on the board, 0 to 2 each.
    box
        Left, top, right and bottom in pixels; right and bottom are one past the last.
    patches
        Ascending row-major indices of the patches it covers by at least a tenth.
    """

    name: str
    attribute: str
    row: int
    column: int
    box: tuple[int, int, int, int]
    patches: tuple[int, ...]

    @property
    def is_label(self) -> bool:
        """Whether it prints a word or a number."""
        return self.name in ("word", "number")

    @property
    def phrase(self) -> str:
        """As captions name it: ``"red star"``, ``"word cat"``, ``"number 47"``."""
        return f"{self.name} {self.attribute}" if self.is_label else f"{self.attribute} {self.name}"

    @property
    def place(self) -> str:
        """As questions name its place: ``"top left"``."""
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


@dataclass(frozen=True)
class Question:
    """What is asked of a scene, the exact answer, and where the answer lies.

    Attributes
    ----------
    text, answer
        Both as the tokeniser's decoder writes them: lower case, no space before punctuation.
    kind
        One of `KINDS`.
    patches
        Ascending indices of the patches of every object that the answer speaks of; empty where
        the answer is that there is no such thing.
    """

    text: str
    answer: str
    kind: Kind
    patches: tuple[int, ...]
