"""How tight the certificate is: python docs/figures/certificate.py writes a table and a picture.

Small problems, where the best set is found by trying all, tell what greedy misses; token-like
problems tell what is certified where nobody can try all.
"""

from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import secateur as sc

DOCS = Path(__file__).parents[1]
INK, SOFT, STRONG = "#30343b", "#b9c0ca", "#e4572e"
TRIALS = 40


def clumps(rng: np.random.Generator, n: int, d: int, k: int, noise: float) -> np.ndarray:
    return rng.normal(size=(k, d))[rng.integers(0, k, n)] + noise * rng.normal(size=(n, d))


KINDS = {
    "clumps, little noise": lambda rng, n: clumps(rng, n, 32, max(3, n // 20), 0.2),
    "clumps, much noise": lambda rng, n: clumps(rng, n, 32, max(3, n // 20), 1.0),
    "no structure": lambda rng, n: rng.normal(size=(n, 32)),
    "non-negative (after a ReLU)": lambda rng, n: np.maximum(rng.normal(size=(n, 32)), 0),
}


def best(f: sc.FacilityLocation, k: int) -> float:
    return max(float(f.value(list(s))) for s in combinations(range(f.size), k))


def spread(values: list[float]) -> str:
    low, middle, high = np.quantile(values, [0.0, 0.5, 1.0])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    mpl.use("Agg")
    rng = np.random.default_rng(0)
    columns = ["features", "true share, N = 12, k = 3", "certified, N = 12, k = 3"]
    columns += ["certified, N = 576, k = 16", "k = 64", "k = 144"]
    lines = [f"| {' | '.join(columns)} |", "|---|---|---|---|---|---|"]
    figure, axes = plt.subplots(figsize=(7.5, 4))
    for row, (name, make) in enumerate(KINDS.items()):
        true, small = [], []
        for _ in range(TRIALS):
            f = sc.FacilityLocation.from_features(make(rng, 12), rng.random(12))
            kept = sc.maximize(f, 3)
            true.append(float(kept.value) / best(f, 3))
            small.append(float(kept.guarantee))
        large = {}
        for k in (16, 64, 144):
            large[k] = []
            for _ in range(8):
                f = sc.FacilityLocation.from_features(make(rng, 576), rng.random(576))
                large[k].append(float(sc.maximize(f, k).guarantee))
        lines.append(
            f"| {name} | {spread(true)} | {spread(small)} | "
            + " | ".join(spread(large[k]) for k in large)
            + " |"
        )
        for shift, (values, colour, label) in enumerate(
            [
                (true, INK, "true share, N = 12, k = 3"),
                (small, SOFT, "certified, N = 12, k = 3"),
                (large[64], STRONG, "certified, N = 576, k = 64"),
            ]
        ):
            height = row + 0.22 * (shift - 1) + 0.05 * rng.uniform(-1, 1, len(values))
            axes.scatter(values, height, s=14, color=colour, label=label if row == 0 else None)
    axes.axvline(1 - 1 / np.e, color=INK, ls=":", lw=1)
    axes.annotate("1 - 1/e", (1 - 1 / np.e, -0.45), xytext=(4, 0), textcoords="offset points")
    axes.set_yticks(range(len(KINDS)), list(KINDS))
    axes.invert_yaxis()
    axes.set_xlim(0.6, 1.005)
    axes.set_xlabel("share of the best value")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.05, 0.02), fontsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(DOCS / "images" / "certificate.png", dpi=110, metadata={"Software": None})
    table = "\n".join([*lines, "", "Median (smallest to largest); weights uniform in [0, 1].", ""])
    (DOCS / "algorithms" / "certificate_table.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
