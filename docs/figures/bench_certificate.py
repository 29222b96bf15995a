"""How near the optimum greedy is on the bench's images: python docs/figures/bench_certificate.py.

Every method that certifies its sets chooses from the 100 held-out scenes of the lab, each with the
first question about it, at the bench's budgets. Writes the picture and the table that
docs/algorithms/certificate.md shows.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import secateur as sc
from secateur.core.methods.video import VideoMethod
from secateur.integrations.attach import encode
from secateur.integrations.choosing import tokens_of
from secateur.lab import HELD_OUT, scenes
from secateur.lab.answers import prompt
from secateur.lab.bench import BUDGETS, SCENES, Lab, Usual, fitted, usual

DOCS = Path(__file__).parents[1]
COLOURS = {64: "#b9c0ca", 36: "#30343b", 16: "#e4572e"}
TRAINED = ("idpruner", "visionselector")
"""Those that need a scorer that was trained."""
WORST = 1 - 1 / np.e


def seen(lab: Lab) -> list[sc.Tokens]:
    """What methods see of the scenes, everything they may ask for."""
    found: list[sc.Tokens] = []
    drawn = list(scenes(SCENES, HELD_OUT))
    wants = {"attention", "attention_shallow", "keys", "states", "embeds", "pixels"}
    for first in range(0, len(drawn), 20):
        part = drawn[first : first + 20]
        inputs = lab.processor(
            images=[scene.image for scene in part],
            text=[prompt(scene.questions[0].text) for scene in part],
            padding=True,
            return_tensors="pt",
        )
        encoded = encode(
            lab.model,
            inputs,
            lab.processor,
            lab.encoder,
            wants=wants | {"text", "text_global", "text_mask"},
        )
        found += tokens_of(encoded)
    return found


def certified(images: list[sc.Tokens], usually: Usual) -> dict[str, dict[int, list[float]]]:
    """The certificates of each method that gives one, by budget."""
    found: dict[str, dict[int, list[float]]] = {}
    for name, kind in sorted(sc.methods().items()):
        if not kind.prunes_before or issubclass(kind, VideoMethod) or name in TRAINED:
            continue
        for keep in BUDGETS:
            method = fitted(kind(keep=keep), usually)
            if method.select(images[0]).guarantee is None:
                break
            chosen = method.select(images)
            found.setdefault(name, {})[keep] = [float(each.guarantee) for each in chosen]
    return found


def main() -> None:
    mpl.use("Agg")
    lab = Lab.load()
    found = certified(seen(lab), usual(lab))
    lines = ["| method | " + " | ".join(f"{keep} of 144 tokens" for keep in BUDGETS) + " |"]
    lines.append("| --- |" + " --- |" * len(BUDGETS))
    figure, axes = plt.subplots(figsize=(7.5, 0.7 + 0.6 * len(found)))
    for row, (name, budgets) in enumerate(found.items()):
        cells = []
        for shift, (keep, values) in enumerate(budgets.items()):
            low, middle, high = np.quantile(values, [0.0, 0.5, 1.0])
            cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
            place = np.full(len(values), row + 0.24 * (shift - 1))
            label = f"{keep} of 144 tokens" if row == 0 else None
            axes.scatter(values, place, s=9, alpha=0.5, color=COLOURS[keep], label=label, lw=0)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    axes.axvline(WORST, color="#30343b", ls=":", lw=1)
    axes.annotate("1 - 1/e", (WORST, -0.45), xytext=(4, 0), textcoords="offset points", fontsize=8)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlim(0.6, 1.005)
    axes.set_xlabel("certified share of the best value, one dot a scene")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(0.15, 0.5), fontsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(DOCS / "images" / "bench-certificate.png", dpi=110, metadata={"Software": None})
    table = "\n".join([*lines, "", "Median (smallest to largest) of 100 scenes.", ""])
    (DOCS / "algorithms" / "bench_certificate_table.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
