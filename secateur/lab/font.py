"""A bitmap font of capitals and digits, five pixels wide and seven high."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 5, 7

# Seven rows a glyph, top first; the low five bits of a byte are its pixels, left to right.
GLYPHS = {
    "A": "0e 11 11 1f 11 11 11",
    "B": "1e 11 11 1e 11 11 1e",
    "C": "0e 11 10 10 10 11 0e",
    "D": "1e 11 11 11 11 11 1e",
    "E": "1f 10 10 1e 10 10 1f",
    "F": "1f 10 10 1e 10 10 10",
    "G": "0e 11 10 17 11 11 0f",
    "H": "11 11 11 1f 11 11 11",
    "I": "0e 04 04 04 04 04 0e",
    "J": "07 02 02 02 02 12 0c",
    "K": "11 12 14 18 14 12 11",
    "L": "10 10 10 10 10 10 1f",
    "M": "11 1b 15 15 11 11 11",
    "N": "11 11 19 15 13 11 11",
    "O": "0e 11 11 11 11 11 0e",
    "P": "1e 11 11 1e 10 10 10",
    "Q": "0e 11 11 11 15 12 0d",
    "R": "1e 11 11 1e 14 12 11",
    "S": "0f 10 10 0e 01 01 1e",
    "T": "1f 04 04 04 04 04 04",
    "U": "11 11 11 11 11 11 0e",
    "V": "11 11 11 11 11 0a 04",
    "W": "11 11 11 15 15 1b 11",
    "X": "11 11 0a 04 0a 11 11",
    "Y": "11 11 0a 04 04 04 04",
    "Z": "1f 01 02 04 08 10 1f",
    "0": "0e 11 13 15 19 11 0e",
    "1": "04 0c 04 04 04 04 0e",
    "2": "0e 11 01 06 08 10 1f",
    "3": "1f 02 04 02 01 11 0e",
    "4": "02 06 0a 12 1f 02 02",
    "5": "1f 10 1e 01 01 11 0e",
    "6": "06 08 10 1e 11 11 0e",
    "7": "1f 01 02 04 04 04 04",
    "8": "0e 11 11 0e 11 11 0e",
    "9": "0e 11 11 0f 01 02 0c",
}


@functools.cache
def render(text: str) -> NDArray[np.bool_]:
    """Return the pixels that print `text`, one empty column between letters.

    Parameters
    ----------
    text
        Letters (printed as capitals) and digits.

    Returns
    -------
    numpy.ndarray
        Shape ``(7, 6 * len(text) - 1)``, True where there is ink. Read-only.
    """
    ink = np.zeros((HEIGHT, (WIDTH + 1) * len(text) - 1), dtype=bool)
    for position, letter in enumerate(text.upper()):
        rows = np.frombuffer(bytes.fromhex(GLYPHS[letter]), dtype=np.uint8)
        left = position * (WIDTH + 1)
        ink[:, left : left + WIDTH] = np.unpackbits(rows[:, None], axis=1)[:, -WIDTH:]
    ink.flags.writeable = False
    return ink
