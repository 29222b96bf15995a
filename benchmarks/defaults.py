"""Defaults that no paper gives, by the lab's model: ``python benchmarks/defaults.py``.

Right answers of the lab's model on scenes that are neither learnt nor held out, at 16 and 36 of 144
tokens, for values of AgilePruner's `tau_max`, of `Mixture`'s `share` and `slope`, of EADP's `alpha`
and `beta`, for what FLoC and EADP compare tokens by, and for the layer after which FastV drops
tokens, which says where the instruction has looked at what it asks for. A part of it: ``python
benchmarks/defaults.py similarity``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from machine import described

import secateur as sc
from secateur.core.kernels import KINDS
from secateur.lab import bench

SEED, SCENES = 3, 60
BUDGETS = (16, 36)
TAU_MAX = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
MIXTURES = (
    *((share, 0.0) for share in (0.0, 0.25, 0.5, 0.75, 1.0)),
    *((0.5, slope) for slope in (-0.5, 0.5, 1.0)),
    (0.75, 0.5),
)
RELEVANCE = ((0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (0.5, 0.5), (0.5, 2.0))
"""EADP's alpha and beta."""

Rows = dict[str, list[sc.Method]]


def tables() -> dict[str, Rows]:
    """What is asked with, by table and row; a method for each budget, FLoC's before EADP's."""

    def row(kind: Any, **more: Any) -> list[sc.Method]:
        return [kind(keep=keep, **more) for keep in BUDGETS]

    return {
        "tau_max": {str(tau): row(sc.AgilePruner, tau_max=tau) for tau in TAU_MAX},
        "mixture": {
            f"{share}, {slope}": row(sc.Mixture, share=share, slope=slope)
            for share, slope in MIXTURES
        },
        "relevance": {
            f"{alpha}, {beta}": row(sc.EADP, alpha=alpha, beta=beta) for alpha, beta in RELEVANCE
        },
        "after": {str(after): row(sc.FastV, after=after) for after in range(1, bench.DEEP)},
        "similarity": {
            name: [*row(sc.FLoC, similarity=name), *row(sc.EADP, similarity=name)] for name in KINDS
        },
    }


def asking(scenes: int = SCENES) -> Callable[[sc.Method], float]:
    """A function that says which share of answers is right with a method."""
    from secateur.lab import claims
    from secateur.lab import scenes as draw

    lab = bench.Lab.load()
    usually = bench.usual(lab)
    drawn = list(draw(scenes, SEED))

    def share(method: sc.Method) -> float:
        cell = bench.run_cell(lab, bench.Cell("", bench.fitted(method, usually)), drawn)
        right, asked = claims.counts(cell).sum(axis=0)
        return float(right / asked)

    return share


def main() -> None:
    """Print a table for each method."""
    print(described("secateur", "torch", "transformers"))
    share, known = asking(), tables()
    for name in sys.argv[1:] or list(known):
        heads = [f"{keep} tokens" for keep in BUDGETS]
        if name == "similarity":
            heads = [f"{kind}, {keep}" for kind in ("FLoC", "EADP") for keep in BUDGETS]
        first = {"mixture": "share, slope", "relevance": "alpha, beta"}.get(name, name)
        print(f"\n| {' | '.join([first, *heads])} |")
        print(f"| {' | '.join(['---', *['---:'] * len(heads)])} |")
        for label, made in known[name].items():
            cells = [f"{100 * share(method):.1f}" for method in made]
            print(f"| {' | '.join([label, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
