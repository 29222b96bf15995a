"""Defaults that no paper gives, by the lab's model: ``python benchmarks/defaults.py``.

Right answers of the lab's model on scenes that are neither learnt nor held out, at 16 and 36 of 144
tokens, for values of AgilePruner's `tau_max`, of `Mixture`'s `share` and `slope`, and for what FLoC
and EADP compare tokens by. A part of it: ``python benchmarks/defaults.py similarity``.
"""

from __future__ import annotations

import sys

from machine import described

import secateur as sc
from secateur.core.kernels import KINDS
from secateur.lab import bench, claims, scenes

SEED, SCENES = 3, 60
TAU_MAX = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
MIXTURES = ((0.25, 0.0), (0.5, 0.0), (0.75, 0.0), (0.5, -0.5), (0.5, 0.5), (0.5, 1.0), (0.75, 0.5))


def main() -> None:
    """Print a table for each method."""
    print(described("secateur", "torch", "transformers"))
    lab = bench.Lab.load()
    usually = bench.usual(lab)
    drawn = list(scenes(SCENES, SEED))

    def share(method: sc.Method) -> str:
        cell = bench.run_cell(lab, bench.Cell("", bench.fitted(method, usually)), drawn)
        right, asked = claims.counts(cell).sum(axis=0)
        return f"{100 * right / asked:.1f}"

    wanted = sys.argv[1:] or ["tau_max", "mixture", "similarity"]
    budgets = (16, 36)

    def row(name: object, *made: sc.Method) -> None:
        print(f"| {name} | {' | '.join(share(method) for method in made)} |", flush=True)

    if "tau_max" in wanted:
        print("\n| tau_max | 16 tokens | 36 tokens |\n| ---: | ---: | ---: |")
        for tau in TAU_MAX:
            row(tau, *(sc.AgilePruner(keep=keep, tau_max=tau) for keep in budgets))
    if "mixture" in wanted:
        print("\n| share, slope | 16 tokens | 36 tokens |\n| --- | ---: | ---: |")
        for part, slope in MIXTURES:
            made = (sc.Mixture(keep=keep, share=part, slope=slope) for keep in budgets)
            row(f"{part}, {slope}", *made)
    if "similarity" in wanted:
        print("\n| similarity | FLoC, 16 | FLoC, 36 | EADP, 16 | EADP, 36 |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for name in KINDS:
            kinds = (sc.FLoC, sc.EADP)
            row(name, *(kind(keep=k, similarity=name) for kind in kinds for k in budgets))


if __name__ == "__main__":
    main()
