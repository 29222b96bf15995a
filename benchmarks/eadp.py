"""Where EADP's time goes: ``python benchmarks/eadp.py``.

One image of 576 tokens, 1024 numbers each, an instruction of 77 tokens, 64 tokens kept, float32.
Against `select` end to end stand its two matrix products alone, the similarities of the tokens
and their similarities to the text, timed in turn in the same run; every number is the fastest of
many. Set OMP_NUM_THREADS for the number of cores; on a busy machine only long runs (--seconds)
catch all threads undisturbed.

Two parts take more than a fifth. The similarities: four fifths of theirs is the product itself,
the rest is scaling the tokens to length one and moving cosines into [0, 1]. The relevance: a
third is the product with the text, a quarter scaling to length one, a sixth the entropies.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from datetime import date

import numpy as np

import secateur as sc
from secateur.core.maximize import facility_location
from secateur.core.similarity import cosine_similarity


def image(tokens: int = 576, width: int = 1024, words: int = 77) -> sc.Tokens:
    """Tokens about 12 directions, as an encoder's are; the instruction about three of them."""
    dice = np.random.default_rng(0)
    side = round(tokens**0.5)
    directions = dice.normal(size=(12, width))
    features = directions[np.sort(dice.integers(0, 12, tokens))]
    features = features + dice.normal(size=(tokens, width))
    text = directions[dice.integers(0, 3, words)] + 2.0 * dice.normal(size=(words, width))
    return sc.Tokens(
        features=features.astype(np.float32),
        text=text.astype(np.float32),
        text_global=text.mean(0).astype(np.float32),
        grid=(side, side),
    )


def fastest(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Milliseconds of each call's fastest run; the calls take turns, so that all see the same."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def main() -> None:
    """Print the split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--backend", default="auto")
    given = parser.parse_args()

    tokens, method = image(), sc.EADP(keep=given.keep)
    features, text = tokens.features, tokens.text
    relevance = method.relevance(tokens)
    similarity = cosine_similarity(features)
    with sc.backend(given.backend):
        times = fastest(
            {
                "select": lambda: method.select(tokens),
                "  checks": lambda: method._check(tokens),
                "  relevance": lambda: method.relevance(tokens),
                "  similarity": lambda: cosine_similarity(features),
                "  greedy": lambda: facility_location(
                    sc.FacilityLocation(similarity, relevance), given.keep
                ),
                "two products": lambda: (features @ features.T, features @ text.T),
                "  of tokens": lambda: features @ features.T,
                "  with text": lambda: features @ text.T,
            },
            given.seconds,
        )
    whole, products = times["select"], times["two products"]
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {threads} threads, "
        f"NumPy {np.__version__}, backend {given.backend}"
    )
    for name, milliseconds in times.items():
        print(f"{name:16} {milliseconds:8.3f} ms {milliseconds / whole:7.1%} of select")
    print(f"select takes {whole / products:.2f} times its two matrix products")


if __name__ == "__main__":
    main()
