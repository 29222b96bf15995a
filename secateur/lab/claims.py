"""What the papers claim, checked on the lab's model.

Each claim is a difference of two things measured on the same scenes, with the interval that holds
95 of 100 bootstrap samples of scenes. It stands when the whole interval is on the claim's side,
falls when it is on the other, and is undecided otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from secateur.core.arrays import descending, namespace, to_numpy
from secateur.core.inputs import Tokens
from secateur.core.maximize import maximize
from secateur.core.methods.eadp import EADP
from secateur.core.methods.erase import ERASE
from secateur.core.methods.mixture import Mixture
from secateur.core.methods.sparsevlm import SparseVLM
from secateur.core.objectives import FacilityLocation
from secateur.core.relevance import text_entropy
from secateur.core.selection import Selection
from secateur.core.similarity import cosine, cosine_similarity
from secateur.lab.answers import prompt
from secateur.lab.bench import Cell, Lab, Usual, fitted
from secateur.lab.objects import Kind
from secateur.lab.scene import Scene

SCORED: tuple[Kind, ...] = (
    "colour",
    "shape",
    "existence",
    "count",
    "reading",
    "relation",
    "dense",
)
"""Kinds that claims are checked on; captions and places are long."""

SAMPLES = 2000
"""Bootstrap samples of scenes."""

Cells = Mapping[tuple[str, int | None], Mapping[str, Any]]


class MostRelevant(EADP):
    """EADP's weights without its facility location: the k most relevant tokens."""

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """By relevance alone."""
        r = self.relevance(tokens)
        return Selection.of(descending(r)[..., :k], tokens.size, scores=r)


class EvenCoverage(EADP):
    """EADP's facility location without its weights."""

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """By coverage alone."""
        return maximize(FacilityLocation(cosine_similarity(tokens.features)), k)


VARIANTS = {
    "EADP, no entropies": EADP(keep_ratio=1.0, entropy_temperature=1e6),
    "EADP, most relevant only": MostRelevant(),
    "EADP, coverage only": EvenCoverage(),
    "Mixture, fixed": Mixture(slope=0.0),
    "Mixture, inverse": Mixture(slope=-0.5),
    "ERASE, inside only": ERASE(ratios=(1.0,) * 4),
}
"""Methods with one thing left out, or turned round, for the claims to compare with."""


def variants(budgets: Sequence[int], usually: Usual) -> list[Cell]:
    """Every variant at every budget.

    Beside them ERASE with all of its pruning before the model, and SparseVLM as early as it prunes
    in models of 32 layers.
    """
    made = []
    for keep in budgets:
        made += [
            Cell(label, fitted(replace(method, keep=keep), usually))
            for label, method in VARIANTS.items()
        ]
        early = replace(ERASE(keep=keep), ratios=(1e-6,) * 4)
        made.append(Cell("ERASE, pixels only", fitted(early, usually)))
        made.append(Cell("SparseVLM, from layer 1", SparseVLM(keep=keep)))
    return made


@dataclass(frozen=True)
class Finding:
    """One claim and what was found.

    Attributes
    ----------
    claim
        What a paper says.
    measured
        What was compared, in words.
    difference, low, high
        How much more the claim's side has; its interval.
    """

    claim: str
    measured: str
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``"for"``, ``"against"`` or ``"undecided"``."""
        if self.low > 0:
            return "for"
        return "against" if self.high < 0 else "undecided"


def counts(cell: Mapping[str, Any], kinds: Sequence[str] = SCORED) -> np.ndarray[Any, Any]:
    """Right answers and questions of every scene, (S, 2)."""
    return np.array(
        [
            [sum(scene[what].get(kind, 0) for kind in kinds) for what in ("right", "asked")]
            for scene in cell["scenes"]
        ],
        dtype=np.float64,
    )


def samples(size: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """How often each scene is in each bootstrap sample, (SAMPLES, S)."""
    dice = np.random.default_rng(seed)
    return dice.multinomial(size, np.full(size, 1.0 / size), SAMPLES).astype(np.float64)


def interval(
    statistic: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], size: int
) -> tuple[float, float, float]:
    """A statistic of weighted scenes on all of them, and its 2.5th and 97.5th percentile.

    `statistic` takes weights (B, S) and gives (B,).
    """
    value = float(statistic(np.ones((1, size)))[0])
    drawn = statistic(samples(size))
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return value, float(low), float(high)


def _shares(parts: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Weighted sums of (S, 2) divided by each other, (B,)."""
    sums = weights @ parts
    return np.asarray(sums[:, 0] / np.where(sums[:, 1] == 0, np.nan, sums[:, 1]))


def better(
    claim: str,
    cells: Cells,
    one: str,
    other: str,
    keep: int,
    where: str | None = None,
    what: Callable[[Mapping[str, Any]], np.ndarray[Any, Any]] = counts,
    called: str = "answers",
) -> Finding:
    """How much more right `one` is than `other` at a budget, on scenes of one complexity or all."""
    first, second = cells[one, keep], cells[other, keep]
    inside = np.array([where in (None, scene.get("complexity")) for scene in first["scenes"]])
    a, b = what(first)[inside], what(second)[inside]
    found = interval(lambda w: _shares(a, w) - _shares(b, w), len(a))
    there = "" if where is None else f" on {where} scenes"
    return Finding(claim, f"{called}{there}, {keep} tokens: {one} less {other}", *found)


def invented(cell: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Objects a caption invents, and those it names, (S, 2)."""
    pairs = [[scene["chair"]["invented"], scene["chair"]["named"]] for scene in cell["scenes"]]
    return np.array(pairs, dtype=np.float64)


def check(cells: Cells, budgets: Sequence[int]) -> list[Finding]:
    """Every claim that the cells of a run tell about."""
    found = []
    for keep in budgets:
        found += [
            better("EADP: weighing text tokens by entropy helps", cells, "eadp", one, keep)
            for one in ("EADP, no entropies",)
        ]
        found += [
            better(
                "EADP: facility location helps", cells, "eadp", "EADP, most relevant only", keep
            ),
            better("EADP: the instruction helps", cells, "eadp", "EADP, coverage only", keep),
            better(
                "AgilePruner: attention first wins on simple scenes",
                cells,
                "topk",
                "divprune",
                keep,
                "sparse",
            ),
            better(
                "AgilePruner: diversity first wins on complex scenes",
                cells,
                "divprune",
                "topk",
                keep,
                "crowded",
            ),
            better("AgilePruner beats attention alone", cells, "agilepruner", "topk", keep),
            better("AgilePruner beats diversity alone", cells, "agilepruner", "divprune", keep),
            better(
                "An adaptive mixture beats a fixed one",
                cells,
                "mixture",
                "Mixture, fixed",
                keep,
            ),
            better("The inverse rule hurts", cells, "Mixture, fixed", "Mixture, inverse", keep),
            better(
                "Diversity raises hallucination",
                cells,
                "divprune",
                "topk",
                keep,
                what=invented,
                called="invented among named objects",
            ),
            better(
                "ERASE: both stages beat pixels alone", cells, "erase", "ERASE, pixels only", keep
            ),
            better(
                "ERASE: both stages beat the inside alone",
                cells,
                "erase",
                "ERASE, inside only",
                keep,
            ),
        ]
    return sorted(found, key=lambda finding: finding.claim)


def pointing(lab: Lab, drawn: Sequence[Scene], usually: Usual, share: float = 0.2) -> Finding:
    """Whether the text tokens of lowest entropy point at what is asked, more than the others.

    A text token points right when the patch most like it shows what the answer speaks of.
    """
    import torch

    from secateur.integrations.attach import attach

    seen: list[Tokens] = []

    class Watching(EADP):
        def choose(self, tokens: Tokens, k: int) -> Selection:
            seen.append(tokens)
            return super().choose(tokens, k)

    method = fitted(Watching(keep=16), usually)
    rows: list[list[float]] = []
    with attach(lab.model, method, lab.processor, lab.encoder):
        for scene in drawn:
            row = np.zeros(4)
            for question in scene.questions:
                if question.kind not in ("colour", "shape", "reading") or not question.patches:
                    continue
                inputs = lab.processor(
                    images=[scene.image], text=[prompt(question.text)], return_tensors="pt"
                )
                with torch.no_grad():
                    lab.model(**inputs, logits_to_keep=1)
                row += _pointed(seen.pop(), question.patches, share)
            rows.append(row.tolist())
    parts = np.array(rows)
    found = interval(lambda w: _shares(parts[:, :2], w) - _shares(parts[:, 2:], w), len(parts))
    return Finding(
        "EADP: text tokens of low entropy point at what is asked",
        f"patches pointed at that show it: the lowest {share:.0%} of entropies less the others",
        *found,
    )


def _pointed(tokens: Tokens, patches: Sequence[int], share: float) -> np.ndarray[Any, Any]:
    """Hits and text tokens, of those of low entropy, then of the others."""
    one = tokens.text[0] if isinstance(tokens.text, (list, tuple)) else tokens.text
    text = one.reshape(-1, one.shape[-1])
    mask = tokens.text_mask
    mask = mask[0] if isinstance(mask, (list, tuple)) else mask
    if mask is not None:
        text = text[to_numpy(mask).reshape(-1).astype(bool)]
    space = tokens.space.reshape(-1, text.shape[-1])
    s = cosine(space, text)
    h = to_numpy(text_entropy(s, 100.0)).reshape(-1)
    best = to_numpy(namespace(s).argmax(s, axis=-2)).reshape(-1)
    hit = np.isin(best, patches)
    low = np.zeros(len(h), dtype=bool)
    low[np.argsort(h, kind="stable")[: max(1, int(share * len(h)))]] = True
    return np.array([hit[low].sum(), low.sum(), hit[~low].sum(), (~low).sum()], dtype=np.float64)
