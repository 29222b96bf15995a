"""Which tau_max AgilePruner should have: ``python benchmarks/tau_max.py``.

Images are made up: regions on a 24 x 24 grid, each with a direction of its own beside one that
all share, tokens scattered about it as an encoder's are, attention on few regions and on
scattered sinks. For each tau_max and budget it prints how well the kept tokens cover all tokens
(the facility location of EADP with equal weights, as a share of what is possible) and how many
of them the scan had to fill up. It needs NumPy alone and takes about a minute.
"""

from __future__ import annotations

import numpy as np

import secateur as sc

SIDE, WIDTH, IMAGES = 24, 256, 24
BUDGETS = (32, 64, 128)
CAPS = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.2)


def image(seed: int) -> sc.Tokens:
    """One image of 3 to 60 regions; within a region cosines are about 0.75, across about 0.35."""
    dice = np.random.default_rng(seed)
    regions = int(np.exp(dice.uniform(np.log(3), np.log(60))))
    places = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2)
    centres = dice.uniform(0, SIDE, (regions, 2))
    region = ((places[:, None] - centres) ** 2).sum(-1).argmin(1)
    shared = dice.normal(size=WIDTH)
    own = dice.normal(size=(regions, WIDTH))
    scatter = dice.normal(size=(SIDE * SIDE, WIDTH))
    features = 0.6 * shared + 0.65 * own[region] + 0.5 * scatter
    drawn = dice.gamma(0.3, size=regions)[region] + 0.2 * dice.gamma(0.5, size=SIDE * SIDE)
    drawn[dice.choice(SIDE * SIDE, 6, replace=False)] += 3.0
    return sc.Tokens(features=features, attention=drawn / drawn.sum(), grid=(SIDE, SIDE))


def main() -> None:
    """Print the table."""
    images = [image(seed) for seed in range(IMAGES)]
    calibration = sc.Calibration.of(images)
    print(calibration)
    objectives = [sc.FacilityLocation.from_features(each.features) for each in images]
    bounds = {k: [float(sc.maximize(f, k).upper_bound) for f in objectives] for k in BUDGETS}
    print(f"{'tau_max':>8}" + "".join(f"{f'k={k}':>18}" for k in BUDGETS))
    for cap in CAPS:
        cells = []
        for k in BUDGETS:
            method = sc.AgilePruner(keep=k, mean_erank=calibration, tau_max=cap)
            chosen = method.select(images)
            covered = [
                float(f.value(each.indices)) / bound
                for f, each, bound in zip(objectives, chosen, bounds[k], strict=True)
            ]
            filled = np.mean([int(each.info["filled"]) for each in chosen])
            cells.append(f"{np.mean(covered):11.2%} {filled:6.1f}")
        print(f"{cap:8.2f}" + "".join(cells))


if __name__ == "__main__":
    main()
