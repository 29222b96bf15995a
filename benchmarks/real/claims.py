"""What papers claim, held against molecules and photographs.

A claim is a difference, or a correlation, of things measured on the same pictures. It is *for* when
the interval that holds 95 of 100 bootstrap samples of pictures is on its side, *against* when it is
on the other, and *undecided* otherwise. Each budget and yardstick votes by itself, and none is
corrected for there being several.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import results

Found = list[tuple[str, tuple[float, float, float]]]
"""By what it was measured, and the difference with its interval."""

ATTENTION, DIVERSITY = "TopK, first attention", "DivPrune"


@dataclass(frozen=True)
class Claim:
    """What is said, by whom, and what was found."""

    says: str
    whose: str
    found: Callable[[], Found]
    note: str = ""


def better(one: str, other: str, photographs: tuple[str, str] | None = None) -> Callable[[], Found]:
    """Whether a method does better than another: right answers and what is explained."""

    def found() -> Found:
        told, pairs = results.reading(False), []
        for k in budgets(told):
            for kind, name, by in (
                ("exact", "read as from all tokens, points", 100),
                ("likely", "log-probability of a word of it", 1),
                ("tanimoto", "Tanimoto with what was drawn, points", 100),
            ):
                if (one, k) in told[kind] and (other, k) in told[kind]:
                    apart = by * (told[kind][one, k] - told[kind][other, k])
                    pairs.append((f"molecules, {k} of 256: {name}", results.interval(apart)))
        if photographs is not None:
            rows = results.photographs()["rows"]
            for k in (32, 64, 128):
                first, second = (rows[f"{name}|{k}"] for name in photographs)
                apart = np.array([first[p]["explained"] - second[p]["explained"] for p in first])
                pairs.append((f"patches explained, {k} of 576, points", _scaled(apart)))
        return pairs

    return found


def later() -> Found:
    """Whether dropping after two layers costs less than before the first."""
    return [
        (f"{name}, {where}", found)
        for name in ("Random", DIVERSITY, "cover, gaussian")
        for where, found in better(f"{name}, after 2 layers", name)()
    ]


def budgets(told: dict[str, Any]) -> list[int]:
    """Those at which molecules were judged."""
    return sorted({k for stage, k in told["places"] if stage == "judged"})


def _scaled(apart: np.ndarray) -> tuple[float, float, float]:
    mean, low, high = results.interval(100 * apart)
    return mean, low, high


def more_with(one: str, other: str, *measures: str) -> Callable[[], Found]:
    """Whether a method is ahead of another by more where measures of complexity are larger."""

    def found() -> Found:
        told, pairs = results.reading(False), []
        for k in budgets(told):
            if (one, k) in told["likely"] and (other, k) in told["likely"]:
                apart = told["likely"][one, k] - told["likely"][other, k]
                for measure in measures:
                    size = told[measure][told["places"]["judged", k]]
                    name = f"molecules, {k} of 256: its lead with {NAMES[measure]}, Spearman"
                    pairs.append((name, results.ranked(apart, size)))
        return pairs

    return found


SIZES = ("atoms", "rings", "words")
NAMES = {
    "erank": "effective rank",
    "atoms": "heavy atoms",
    "rings": "rings",
    "words": "words to write",
}


def harder(method: str) -> Callable[[], Found]:
    """Whether pruning costs larger molecules more."""

    def found() -> Found:
        told, pairs = results.reading(False), []
        for k in budgets(told):
            if (method, k) in told["exact"]:
                places = told["places"]["judged", k]
                lost = 1 - told["exact"][method, k]
                for measure in SIZES:
                    name = f"molecules, {k} of 256: misreading with {NAMES[measure]}, Spearman"
                    pairs.append((name, results.ranked(lost, told[measure][places])))
        return pairs

    return found


def rank_is_complexity() -> Found:
    """Effective rank with how much there is to see."""
    told = results.reading(False)
    pairs = [
        (f"molecules: rank with {NAMES[x]}, Spearman", results.ranked(told["erank"], told[x]))
        for x in SIZES
    ]
    each = results.photographs()["of each"].values()
    sizes = np.array([p["jpeg"] for p in each], dtype=float)
    for name in ("erank", "erank of the last"):
        rank = np.array([p[name] for p in each])
        pairs.append((f"photographs: {name} with JPEG size", results.ranked(rank, sizes)))
    return pairs


def rank_is_entropy() -> Found:
    """Effective rank with the entropy of attention."""
    told = results.reading(False)
    each = results.photographs()["of each"].values()
    rank = np.array([p["erank"] for p in each])
    entropy = np.array([p["entropies"][-2] for p in each])
    return [
        ("molecules, first step, Spearman", results.ranked(told["erank"], told["entropy"])),
        ("photographs, block before the last, Spearman", results.ranked(rank, entropy)),
    ]


def certificates() -> Found:
    """How far greedy's certificate is above what a random choice reaches."""
    flat = results.photographs()["flat"]
    return [
        (f"photographs, {name}: certified less random, points", _scaled(pair[:, 0] - pair[:, 1]))
        for name, pair in ((x, np.array(y)) for x, y in flat.items())
    ]


COSINE = "cover, cosine (FLoC)"
CLAIMS = (
    Claim(
        "Covering all tokens keeps more than taking the most attended ones.",
        "EADP, arXiv 2607.02484; FLoC, arXiv 2511.00141",
        better(COSINE, ATTENTION, (COSINE, "TopK")),
    ),
    Claim(
        "Covering beats spreading out (max-min diversity).",
        "EADP; FLoC",
        better(COSINE, DIVERSITY, (COSINE, "DivPrune")),
    ),
    Claim(
        "Weighing what is covered by relevance helps.",
        "EADP",
        better("oracle: cover, cosine (EADP's form)", COSINE),
        "relevance is an oracle's here, the attention of the whole reading: an upper line",
    ),
    Claim(
        "Covering under relevance beats taking the most relevant tokens.",
        "EADP",
        better("oracle: cover, cosine (EADP's form)", "oracle: TopK"),
        "the same oracle for both",
    ),
    Claim(
        "Greedy is certified near the best (by more than chance reaches).",
        "EADP, facility location on (1 + cos) / 2",
        certificates,
        "for (1 + cos) / 2 the lead over chance is small: certificates near 1 say little there",
    ),
    Claim(
        "The effective rank of features says how complex an image is.",
        "AgilePruner, arXiv 2603.01236",
        rank_is_complexity,
    ),
    Claim(
        "Effective rank and the entropy of attention rise together.",
        "AgilePruner",
        rank_is_entropy,
    ),
    Claim(
        "Diversity gains on attention where the effective rank is larger.",
        "AgilePruner",
        more_with(DIVERSITY, ATTENTION, "erank"),
    ),
    Claim(
        "Diversity gains on attention where there is more to read.",
        "AgilePruner, ERASE",
        more_with(DIVERSITY, ATTENTION, *SIZES),
    ),
    Claim(
        "A threshold that grows with complexity beats attention alone.",
        "AgilePruner",
        better("AgilePruner, tau_max 0.3", ATTENTION, ("AgilePruner, tau_max 0.3", "TopK")),
        "on the photographs attention alone fills up most of it; see the page of photographs",
    ),
    Claim(
        "It beats diversity alone.",
        "AgilePruner",
        better("AgilePruner, tau_max 0.3", DIVERSITY, ("AgilePruner, tau_max 0.3", "DivPrune")),
    ),
    Claim(
        "Complex images need more tokens: the same budget costs them more.",
        "ERASE, arXiv 2605.09982; AgilePruner",
        harder(COSINE),
    ),
    Claim(
        "Diversity beats attention.",
        "DivPrune, arXiv 2503.02175",
        better(DIVERSITY, ATTENTION, ("DivPrune", "TopK")),
    ),
    Claim(
        "Rows of a softmax cover better than cosines.",
        "MMTok, arXiv 2508.18264",
        better("cover, softmax", COSINE, ("cover, softmax", COSINE)),
    ),
    Claim(
        "Tokens that resemble all others in distribution beat spread-out ones.",
        "OTPrune",
        better("OTPrune", DIVERSITY, ("OTPrune", "DivPrune")),
    ),
    Claim(
        "Attention first, then diversity beats attention alone.",
        "VisPruner",
        better("VisPruner", ATTENTION, ("VisPruner", "TopK")),
    ),
    Claim(
        "Coverage times saliency beats coverage.",
        "SCOPE, arXiv 2510.24214",
        better("SCOPE", COSINE, ("SCOPE", COSINE)),
    ),
    Claim(
        "Visual tokens matter less after the second layer: dropping them there costs less.",
        "FastV, arXiv 2403.06764; PyramidDrop, arXiv 2410.17247",
        later,
        "the same tokens before the decoder and after two of its six layers",
    ),
    Claim(
        "After two layers attention says which ones matter (more than chance does).",
        "FastV",
        better("FastV", "Random, after 2 layers"),
        "attention is the first word's in the second layer, mean over the heads",
    ),
    Claim(
        "Dropping step by step beats dropping at once.",
        "PyramidDrop",
        better("PyramidDrop", "FastV"),
        "as many are left at the end",
    ),
    Claim(
        "A plain grid beats attention.",
        "said of many methods by later studies",
        better("UniformGrid", ATTENTION, ("UniformGrid", "TopK")),
    ),
    *(
        Claim(
            f"Covering by {name} beats covering by (1 + cos) / 2.",
            "ours",
            better(f"cover, {name}", COSINE, (f"cover, {name}", COSINE)),
        )
        for name in ("norms", "exemplar", "gaussian")
    ),
    *(
        Claim(
            f"Covering by a Gaussian, chosen beforehand, beats covering by {name}.",
            "ours",
            better("cover, gaussian", f"cover, {name}", ("cover, gaussian", f"cover, {name}")),
        )
        for name in ("norms", "exemplar", "softmax")
    ),
)


def verdict(found: Found) -> str:
    """For, against, undecided, or both where yardsticks differ."""
    votes = {"for" if low > 0 else "against" for _, (_, low, high) in found if low > 0 or high < 0}
    if len(votes) == 2:
        return "for and against"
    left = sum(low <= 0 <= high for _, (_, low, high) in found)
    if not votes:
        return "undecided"
    return f"{votes.pop()}{f' ({left} of {len(found)} undecided)' if left else ''}"


def of_the_lab() -> list[list[str]]:
    """The claims that the lab's model was asked, as its own page has them."""
    told = json.loads((Path(__file__).parents[2] / "docs" / "lab" / "bench.json").read_text())
    return [
        [
            each["claim"],
            each["measured"],
            "{:+.1f} ({:+.1f} to {:+.1f})".format(
                *(100 * each[name] for name in ("difference", "low", "high"))
            ),
            each["verdict"],
        ]
        for each in told["claims"]
    ]


def claims_page() -> str:
    """The page of claims."""
    from report import made_by, table

    rows, details = [], []
    for claim in CLAIMS:
        found = claim.found()
        said = [
            f"{name}: {mean:+.2f} ({low:+.2f} to {high:+.2f})" for name, (mean, low, high) in found
        ]
        rows.append([claim.says, claim.whose, verdict(found)])
        note = f"\n\n{claim.note[:1].upper()}{claim.note[1:]}." if claim.note else ""
        lines = "\n".join(f"- {each}" for each in said)
        details.append(f"### {claim.says}\n\n{claim.whose}: **{verdict(found)}**.{note}\n\n{lines}")
    numbers = "\n\n".join(details)
    return f"""# Claims, held against weights that others trained

{made_by("molecules.py", "photographs.py")}

A claim is *for* when the interval that holds 95 of 100 bootstrap samples of pictures is on its
side, *against* when it is on the other, *undecided* otherwise, and *for and against* where
yardsticks disagree. Nothing is corrected for the number of comparisons.

The yardsticks are answers of [one reader of molecules](molecules.md) and how well kept patches
explain the others in [one transformer](photographs.md). The reader's tokens come from a
convolutional encoder, which pays no attention: *attention* is what its decoder looks at before
its first word, and claims about attention rest on that and on the transformer's class token. On
the photographs everything that covers explains nearly all, so that differences are small there
even where they are certain. Pruning between layers was put to the reader's decoder, which looks
at the tokens by cross-attention in each of its six layers, and to the lab's model. Neither is a
vision-language model that follows an instruction: claims about text and hallucination were put to
the lab's model only, below.

{table(["claim", "whose", "found"], rows, 3)}

## The numbers

{numbers}

## On the lab's model

A small LLaVA that we trained on scenes that we drew; differences in percentage points, made by
`secateur bench` ([its page](../lab/bench.md)). It alone was asked about text and hallucination.

{table(["claim", "measured", "difference", "found"], of_the_lab(), 4)}
"""
