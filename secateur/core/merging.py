"""Tokens that become one: a shorter sequence in which some stand for several."""

from __future__ import annotations

from typing import NamedTuple

from secateur.core.arrays import Array, device, namespace, shape_of, spell, widened


class Merged(NamedTuple):
    """A shorter sequence in which some tokens stand for several."""

    states: Array
    """The tokens (..., M, D) that are left."""
    sizes: Array
    """How many tokens (..., M) each of them stands for."""
    group: Array
    """For every token (..., N) of before, its place 0 .. M - 1 now."""


def sizes_of(sizes: Array | None, states: Array) -> Array:
    """The sizes (..., N) given for the states (..., N, D), each 1 where there are none."""
    xp = namespace(states)
    if sizes is None:
        return xp.ones(states.shape[:-1], dtype=widened(states).dtype, device=device(states))
    if shape_of(sizes) != shape_of(states)[:-1]:
        raise ValueError(
            f"sizes: expected shape {spell(shape_of(states)[:-1])}, one of each token, "
            f"got {spell(shape_of(sizes))}"
        )
    return xp.astype(sizes, widened(states).dtype)
