"""Draws the figures of the algorithm pages: python docs/figures/draw.py"""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import secateur as sc
from secateur.core.relevance import text_entropy

IMAGES = Path(__file__).parents[1] / "images"
INK, SOFT, STRONG = "#30343b", "#b9c0ca", "#e4572e"


def points() -> tuple[np.ndarray, np.ndarray]:
    """400 points in the plane in five clumps and a little haze, and their weights."""
    rng = np.random.default_rng(3)
    centres = np.array([[0, 0], [4, 1], [1, 4], [5, 5], [-2, 3]])
    spread = np.array([0.5, 0.9, 0.4, 0.7, 0.3])
    which = rng.integers(0, 5, 370)
    clumps = centres[which] + rng.normal(size=(370, 2)) * spread[which][:, None]
    haze = rng.uniform(-4, 8, (30, 2))
    return np.concatenate([clumps, haze]), rng.random(400) ** 3 + 0.05


def distances(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[:, None] - x[None], axis=-1)


def facility_location() -> None:
    x, w = points()
    d = distances(x)
    kept = sc.maximize(sc.FacilityLocation(1 - d / d.max(), w), 12).indices
    served = kept[d[:, kept].argmin(axis=1)]
    figure, axes = plt.subplots(figsize=(5.2, 4.6))
    for i, j in enumerate(served):
        axes.plot(*x[[i, j]].T, color=SOFT, lw=0.6, zorder=1)
    axes.scatter(*x.T, s=4 + 30 * w, color=INK, zorder=2, lw=0)
    axes.scatter(*x[kept].T, s=70, color=STRONG, zorder=3, edgecolor="white")
    finish(figure, [axes], "facility_location")


def farthest_first() -> None:
    x, _ = points()
    d = distances(x)
    choices = {
        "farthest-first": sc.maximize(sc.Dispersion(d), 12).indices,
        "facility location": sc.maximize(sc.FacilityLocation(1 - d / d.max()), 12).indices,
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2))
    for panel, (name, kept) in zip(axes, choices.items(), strict=True):
        panel.scatter(*x.T, s=8, color=SOFT, lw=0)
        panel.scatter(*x[kept].T, s=60, color=STRONG, edgecolor="white")
        for order, j in enumerate(kept, 1):
            panel.annotate(str(order), x[j], xytext=(5, 4), textcoords="offset points", fontsize=8)
        panel.set_title(name)
    finish(figure, axes, "farthest_first")


def log_determinant() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(8, 24))[rng.integers(0, 8, 300)] + 0.4 * rng.normal(size=(300, 24))
    kernel = features @ features.T
    f = sc.LogDeterminant(kernel)
    k = 24
    orders = {
        "greedy": sc.maximize(f, k).indices,
        "largest norm": np.argsort(-np.diag(kernel))[:k],
        "random": rng.permutation(300)[:k],
    }
    figure, axes = plt.subplots(figsize=(5.6, 3.6))
    for (name, order), colour in zip(orders.items(), (STRONG, INK, SOFT), strict=True):
        values = [float(f.value(order[:t])) for t in range(1, k + 1)]
        axes.plot(range(1, k + 1), values, label=name, color=colour, lw=2)
    axes.set_xlabel("tokens kept")
    axes.set_ylabel("log det")
    axes.legend(frameon=False)
    save(figure, "log_determinant")


def dense_relevance() -> None:
    rng = np.random.default_rng(5)
    side, c, words = 16, 4096, 12
    rows, columns = np.divmod(np.arange(side * side), side)
    region = (abs(rows - 10) < 2) & (abs(columns - 4) < 2)
    text = rng.normal(size=(words, c))
    visual = rng.normal(size=(side * side, c)) * 0.7
    visual += 0.5 * text[7]  # a diffuse word: a little of it everywhere
    visual[region] += 0.25 * text[2]  # a sharp word: only in the region
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    s = unit(visual) @ unit(text).T
    h = text_entropy(s)
    order = np.argsort(h)
    filtered = sc.dense_relevance(visual, text, sign=1, alpha=0.0)
    plain = s.mean(axis=1)
    maps = {
        f"sharpest word, H = {h[order[0]]:.2f}": s[:, order[0]],
        f"most diffuse word, H = {h[order[-1]]:.2f}": s[:, order[-1]],
        "mean over all words": plain,
        "entropy-filtered": filtered,
    }
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.3))
    for panel, (name, values) in zip(axes, maps.items(), strict=True):
        panel.imshow(values.reshape(side, side), cmap="magma")
        panel.add_patch(plt.Rectangle((2.5, 8.5), 3, 3, fill=False, edgecolor="#5bd1ff", lw=1.5))
        panel.set_title(name, fontsize=10)
    finish(figure, axes, "dense_relevance", frame=False)


def score_maps() -> None:
    rng = np.random.default_rng(2)
    side = 24
    rows, columns = np.divmod(np.arange(side * side), side)
    raw = np.exp(-((rows - 8) ** 2 + (columns - 15) ** 2) / 30) + 0.35 * rng.normal(size=side**2)
    scaled = sc.min_max(raw)
    smoothed = sc.smooth(scaled, (side, side))
    steps = {
        "scores": raw,
        "min_max": scaled,
        "smooth": smoothed,
        "polarize, beta = 2": sc.polarize(smoothed, 2.0),
    }
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.3))
    for panel, (name, values) in zip(axes, steps.items(), strict=True):
        shown = panel.imshow(values.reshape(side, side), cmap="magma")
        figure.colorbar(shown, ax=panel, fraction=0.046, pad=0.03)
        panel.set_title(name, fontsize=10)
    finish(figure, axes, "score_maps", frame=False)


def effective_rank() -> None:
    rng = np.random.default_rng(0)
    base = np.linalg.qr(rng.normal(size=(576, 4)))[0] @ np.linalg.qr(rng.normal(size=(64, 4)))[0].T
    noise = rng.normal(size=(576, 64)) / 24
    levels = np.logspace(-4, 0.5, 40)
    eranks = [float(sc.effective_rank(base + level * noise)) for level in levels]
    figure, axes = plt.subplots(figsize=(5.6, 3.6))
    axes.semilogx(levels, eranks, color=STRONG, lw=2, label="effective rank")
    axes.axhline(64, color=SOFT, lw=2, label="rank")
    axes.axhline(4, color=INK, lw=1, ls=":", label="directions planted")
    axes.set_xlabel("noise")
    axes.legend(frameon=False)
    save(figure, "effective_rank")


def patch_entropy() -> None:
    path = next((Path(sc.__file__).parent / "data").glob("*.jpg"))
    image = np.asarray(Image.open(path).convert("RGB"))
    patch = 14
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    h = sc.patch_entropy(image, patch).reshape(rows, columns)
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
    axes[0].imshow(image)
    shown = axes[1].imshow(h, cmap="magma")
    figure.colorbar(shown, ax=axes[1], fraction=0.03, pad=0.02, label="nats")
    finish(figure, axes, "patch_entropy", frame=False)


def threshold_scan() -> None:
    rng = np.random.default_rng(4)
    angle = np.concatenate([rng.normal(c, 0.12, 60) for c in (0.3, 1.1, 2.2)])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * rng.uniform(0.7, 1.0, 180)[:, None]
    attention = np.exp(-((angle - 0.3) ** 2) / 0.15) + 0.4 * rng.random(180)
    choices = {
        "step = 0: attention alone": sc.greedy_threshold(x, attention, 14, step=0.0),
        "step = 0.002, tau_max = 0.02": sc.greedy_threshold(
            x, attention, 14, step=0.002, tau_max=0.02
        ),
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8))
    for panel, (name, kept) in zip(axes, choices.items(), strict=True):
        panel.scatter(*x.T, s=4 + 40 * attention, color=SOFT, lw=0)
        panel.scatter(*x[kept.indices].T, s=55, color=STRONG, edgecolor="white")
        panel.set_title(name, fontsize=10)
    finish(figure, axes, "threshold_scan")


def finish(figure: plt.Figure, axes: object, name: str, frame: bool = True) -> None:
    for panel in axes:
        panel.set_xticks([])
        panel.set_yticks([])
        if frame:
            panel.set_aspect("equal")
        for spine in panel.spines.values():
            spine.set_visible(False)
    save(figure, name)


def save(figure: plt.Figure, name: str) -> None:
    figure.tight_layout()
    figure.savefig(IMAGES / f"{name}.png", dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    mpl.use("Agg")
    for draw in (
        facility_location,
        farthest_first,
        log_determinant,
        dense_relevance,
        score_maps,
        effective_rank,
        patch_entropy,
        threshold_scan,
    ):
        draw()
        print(f"docs/images/{draw.__name__}.png")
