"""What rounding may do, said once: how many rounding errors count as none.

Each is a number of eps, the distance from 1 to the next number of a dtype. The core, the
drivers and the documents read them here; kernels in other languages repeat them as literals,
and tests hold their picks to the core's.
"""

from __future__ import annotations

SUM = 4
"""A sum of N terms is known to N times this, relative to the largest: gains nearer are equal."""

COSINE = 8
"""A cosine, or (1 + cos) / 2, is known to this, whatever its size."""

DISTANCE = 2 * COSINE
"""1 - cos = 2 (1 - s) is known to twice what s is."""

SPENT = 128
"""What is left of a token's variance counts as zero up to this share of the whole."""
