"""What settings that no paper gives do: ``python benchmarks/real/settings.py``.

On features of a transformer that others trained (layer by layer), on molecules that another model
reads, and on the lab's scenes: AgilePruner's `tau_max` and `mean_erank`, `Mixture`'s `share` and
`slope`, EADP's `alpha` and `beta`, ERASE's thresholds. What was measured is kept in the cache, so
that a run goes on where it was stopped. A part of it: ``python benchmarks/real/settings.py
photographs``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import molecules
import numpy as np
import packages
import photographs
import results
import torch
from PIL import Image
from reading import Reader
from transformer import BLOCKS, Transformer, pixels

import secateur as sc

sys.path.append(str(Path(__file__).parents[1]))
import defaults

EVERY = 3
"""Of the photographs, every so many are looked at layer by layer."""
TAUS = (0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
BUDGETS, FEWER = photographs.BUDGETS, (32, 16)
ERASED = 28
"""Pixels on a side of a visual token of Qwen2.5-VL, for which ERASE's settings are."""
BETAS = (0.5, 1.0, 2.0)
BEHIND = "behind the last norm"

AGILE = """`tau_max` stays 0.3, for they do not agree. Molecules, the lab at 16 tokens and the
photographs at 32 want 0.15 or more, the lab at 36 tokens and the photographs at 128 about 0.1; and
the layer matters more than any of these: after the block before the last 0.2 explains most at 64
tokens, behind the last norm 0.05. A threshold belongs to an encoder, a layer and a budget.
`AgilePruner.fitting` derives it from images, and where a call is filled up by more than a tenth a
warning says so with what would fit. What explains most is larger than what fits, up to three
times."""

MIXED = """All three agree that more diversity does better, at every budget: `share=0.75` with
`slope=0.5` before 0.5 with 0.5, so it is the default since, where 0.5 was. A slope of 0.5 does
better than none in the lab and, by log-probability, on molecules; on photographs slopes make no
difference. Diversity alone (`share=1`, which is `DivPrune`) does better yet on all three: what is
measured here does not ask for a mixture."""

DENSE = """`alpha=0.5` and `beta=1`, the defaults, stay: on the lab's scenes all of it is within
two points, and on molecules an oracle's relevance is best taken as it is."""

ERASING = """Thresholds that were found for one model's pictures tell these photographs hardly
apart, so that the first stage keeps as much of nearly all: `secateur calibrate FOLDER` finds
quartiles of pictures of yours. The defaults stay as published."""

Layer = dict[str, Any]


def kept(part: str) -> Path:
    """Where a part's numbers are."""
    return packages.CACHE / f"settings-{part}.json"


def layers() -> dict[str, Layer]:
    """By layer: effective rank, likeness of tokens, and what AgilePruner's scan fills up."""
    encoder, seen = Transformer(packages.transformer()), []
    for path in photographs.files()[::EVERY]:
        with Image.open(path) as picture:
            seen.append(encoder(pixels(picture, photographs.SIDE)))
    told = {}
    for block in range(BLOCKS + 1):
        behind = block == BLOCKS
        features = [
            np.float64((each.output if behind else each.features[block]).numpy()) for each in seen
        ]
        attention = [np.float64(each.attention[min(block, BLOCKS - 1)].numpy()) for each in seen]
        name = BEHIND if behind else str(block + 1)
        told[name] = _layer(features, attention, [np.float64(each.output.numpy()) for each in seen])
        print(f"looked at layer {name}", flush=True)
    return told


def _layer(
    features: list[np.ndarray], attention: list[np.ndarray], last: list[np.ndarray]
) -> Layer:
    eranks = np.array([float(sc.effective_rank(x)) for x in features])
    cosines = []
    for x in features:
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        cosines.append(float((np.square(unit.sum(0)).sum() - len(x)) / (len(x) * (len(x) - 1))))
    steps = 0.01 * eranks / eranks.mean()
    filled: dict[str, float] = {}
    explained: dict[str, float] = {}
    for tau, k in product((0.0, *TAUS), BUDGETS):
        chosen = [
            sc.greedy_threshold(x, a, k, step, tau)
            for x, a, step in zip(features, attention, steps, strict=True)
        ]
        filled[f"{tau}|{k}"] = float(np.mean([int(each.info["filled"]) for each in chosen]))
        explained[f"{tau}|{k}"] = float(
            np.mean(
                [
                    photographs.explained(y, np.asarray(each.sorted()))
                    for y, each in zip(last, chosen, strict=True)
                ]
            )
        )
    return {
        "photographs": len(features),
        "erank": [float(eranks.mean()), float(eranks.std())],
        "cosine": float(np.mean(cosines)),
        "filled": filled,
        "explained": explained,
    }


def mixtures(found: list[photographs.Photograph]) -> dict[str, Any]:
    """What mixtures of attention and diversity keep of photographs, by share and slope."""
    told: dict[str, Any] = {}
    for half in (0, 1):
        seen, others = found[half::2], found[1 - half :: 2]
        erank = float(np.mean([float(sc.effective_rank(p.tokens.features)) for p in seen]))
        probe = photographs.Probe(seen)
        for each in others:
            share_of = float(sc.effective_rank(each.tokens.features)) / erank
            for (share, slope), k in product(defaults.MIXTURES, BUDGETS):
                # As with `mean_erank`, without working out the rank for every setting.
                part = float(np.clip(share + slope * (share_of - 1.0), 0.0, 1.0))
                chosen = np.asarray(sc.Mixture(keep=k, share=part).select(each.tokens).sorted())
                missed, nothing = probe.missed(each, chosen)
                row = [photographs.explained(each.last, chosen), missed, nothing]
                told.setdefault(f"{share}, {slope}|{k}", {})[each.name] = row
        print(f"mixed the tokens of {len(others)} photographs", flush=True)
    return told


def levels() -> dict[str, Any]:
    """Into which of ERASE's levels photographs fall, and what its first stage keeps."""
    found, shares = [], []
    for path in photographs.files():
        with Image.open(path) as picture:
            x = pixels(picture, photographs.SIDE).numpy()
        spread = np.array(((0.229,), (0.224,), (0.225,)))[..., None]
        mean = np.array(((0.485,), (0.456,), (0.406,)))[..., None]
        raw = np.uint8(np.clip(np.rint((x * spread + mean) * 255), 0, 255)).transpose(1, 2, 0)
        edge = photographs.SIDE // ERASED
        tokens = sc.Tokens(features=np.ones((edge**2, 1)), pixels=raw, grid=(edge, edge))
        chosen = sc.ERASE(keep=0.25).select(tokens)
        found.append(int(chosen.info["level"]))
        shares.append(int(chosen.count) / edge**2)
    return {"levels": found, "shares": shares}


def of_photographs() -> None:
    """Everything about photographs."""
    told = {"layers": layers(), "levels": levels(), "mixtures": mixtures(photographs.photographs())}
    kept("photographs").write_text(json.dumps(told))


def of_molecules() -> None:
    """How the molecules for choosing are read from what settings keep."""
    erank = molecules.mean_erank()
    reader = Reader(packages.molecule_decoder())
    settings: dict[str, Callable[[int], sc.Method]] = {}
    for tau in defaults.TAU_MAX:
        settings[f"tau_max|{tau}"] = lambda k, tau=tau: sc.AgilePruner(
            keep=k, mean_erank=erank, tau_max=tau
        )
    for share, slope in defaults.MIXTURES:
        settings[f"mixture|{share}, {slope}"] = lambda k, share=share, slope=slope: sc.Mixture(
            keep=k, share=share, slope=slope, mean_erank=erank if slope else None
        )
    path = kept("molecules")
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"erank": erank}

    def asked(name: str, choose: molecules.Choose) -> None:
        for k in FEWER:
            if f"{name}|{k}" in known:
                continue
            answers: list[Any] = []
            for start in range(0, molecules.CHOOSING, molecules.CHUNK):
                tokens = molecules.chunk(start)["tokens"]
                whole = molecules.read_all(reader, start, tokens)
                jobs = [
                    molecules.Job(*molecules.kept_of(choose, each, k, place), whole["ids"][place])
                    for place, each in enumerate(molecules.inputs(reader, tokens, whole))
                ]
                answers += molecules.judged(reader, jobs)
            known[f"{name}|{k}"] = np.mean(np.float64(answers), axis=0).tolist()
            path.write_text(json.dumps(known))
            print(f"read {len(answers)} molecules from {k} tokens, {name}", flush=True)

    for name, made in settings.items():
        asked(name, lambda tokens, k, seed, made=made: made(k).select(tokens))
    for beta in BETAS:
        weighed = molecules.oracle(
            lambda tokens, k, seed, beta=beta: sc.maximize(
                sc.FacilityLocation.from_features(tokens.features, tokens.attention**beta), k
            )
        )
        asked(f"beta|{beta}", weighed)


def of_scenes() -> None:
    """What the lab's model answers, by setting."""
    path = kept("scenes")
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    share = None
    for table in ("relevance", "mixture", "tau_max"):
        for name, made in defaults.tables()[table].items():
            if f"{table}|{name}" in known:
                continue
            share = share or defaults.asking()
            known[f"{table}|{name}"] = [share(method) for method in made]
            path.write_text(json.dumps(known))
            print(f"asked with {table} {name}", flush=True)


PARTS = {"photographs": of_photographs, "scenes": of_scenes, "molecules": of_molecules}


def settings_page() -> str:
    """The page of settings; ``report.py`` writes it."""
    from report import made_by, table

    of_real = results.settings("photographs")
    of_lab, of_reader = (results.settings(part) for part in ("scenes", "molecules"))
    rows = of_real["layers"]
    count = next(iter(rows.values()))["photographs"]

    def cells(name: str, scale: float = 100.0) -> list[str]:
        """Answers on the lab's scenes and log-probabilities on molecules, by setting."""
        told = [f"{scale * x:.1f}" for x in of_lab.get(name, ())] or ["not run"] * 2
        for k in FEWER:
            found = of_reader.get(f"{name}|{k}")
            told += [f"{100 * found[0]:.0f}", f"{found[1]:.3f}"] if found else ["not run"] * 2
        return told

    asked = [
        *(f"lab, {k} of 144" for k in defaults.BUDGETS),
        *(f"{what}, {k} of 256" for k in FEWER for what in ("molecules", "log-probability")),
    ]

    def of_layer(name: str, layer: Layer) -> list[str]:
        mean, spread = layer["erank"]
        fits = [
            max(
                (tau for tau in TAUS if layer["filled"][f"{tau}|{k}"] <= 0.1 * k),
                default=0.0,
            )
            for k in BUDGETS
        ]
        return [
            name,
            f"{mean:.0f} ± {spread:.0f}",
            f"{layer['cosine']:.2f}",
            *(f"{layer['filled'][f'0.3|{k}']:.0f}" for k in BUDGETS),
            *(f"{tau:g}" if tau else "none" for tau in fits),
        ]

    def mixed(name: str) -> list[str]:
        told = []
        for k in BUDGETS:
            of_each = np.array(list(of_real["mixtures"][f"{name}|{k}"].values()))
            share, missed, nothing = of_each.mean(axis=0)
            told += [f"{100 * share:.1f}", f"{100 * (1 - missed / nothing):.1f}"]
        return told

    before, behind = rows[str(BLOCKS - 1)], rows[BEHIND]
    explained = [
        [f"{tau:g}" if tau else "0 (`TopK`)"]
        + [
            f"{100 * layer['explained'][f'{tau}|{k}']:.1f}"
            for layer in (before, behind)
            for k in BUDGETS
        ]
        for tau in (0.0, *TAUS)
    ]
    levels = np.bincount(of_real["levels"]["levels"], minlength=4)
    shares = np.array(of_real["levels"]["shares"])
    return f"""# What settings do on real features

{made_by("settings.py")}

No paper gives these settings, or gives them for one model. Here is what ours do on features of a
[transformer that others trained](photographs.md), on [molecules that another model
reads](molecules.md) (the {molecules.CHOOSING} for choosing, of which nothing else is reported:
% read as from all tokens, and the mean log-probability of a word of that), and on scenes of the
[lab](../lab/bench.md) that are neither learnt nor held out ({defaults.SCENES} of seed
{defaults.SEED}: % of answers right, by `benchmarks/defaults.py`).

A default is changed only where lab, molecules and photographs agree. What follows from that stands
below each table.

## AgilePruner

By layer of the transformer, {count} photographs, 576 tokens: the mean effective rank, which is
`mean_erank`, the mean cosine of two tokens, how many of 32, 64 and 128 kept tokens attention alone
fills up with `tau_max=0.3`, and the largest of {
        ", ".join(f"{tau:g}" for tau in TAUS)
    } with which it
fills up at most a tenth.

{
        table(
            [
                *("after block", "effective rank", "cosine"),
                *(f"filled of {k}" for k in BUDGETS),
                *(f"fits {k}" for k in BUDGETS),
            ],
            (of_layer(name, layer) for name, layer in rows.items()),
        )
    }

`mean_erank` belongs to a layer: calibrate it on the layer that the method is attached to
(`secateur.calibrate_on`, `sc.Calibration.of`), and never take one layer's for another. Molecules
for choosing have {of_reader["erank"]:.0f}.

How much of the variance behind the last norm the kept patches explain, in percent:

{
        table(
            [
                "tau_max",
                *(f"{where}, {k}" for where in ("last but one", "last") for k in BUDGETS),
            ],
            explained,
        )
    }

{table(["tau_max", *asked], ([str(tau), *cells(f"tau_max|{tau}")] for tau in defaults.TAU_MAX))}

{AGILE}

## Mixture

`share` and `slope`; on the photographs ({len(next(iter(of_real["mixtures"].values())))} of them,
block before the last) what is explained and what a probe tells of the pooled output, in percent.

{
        table(
            ["share, slope", *(f"{k}: {what}" for k in BUDGETS for what in ("explained", "probe"))],
            (
                [f"{share}, {slope}", *mixed(f"{share}, {slope}")]
                for share, slope in defaults.MIXTURES
            ),
        )
    }

{
        table(
            ["share, slope", *asked],
            (
                [f"{share}, {slope}", *cells(f"mixture|{share}, {slope}")]
                for share, slope in defaults.MIXTURES
            ),
        )
    }

{MIXED}

## EADP

`alpha` and `beta` on the lab's scenes, which alone have instructions:

{
        table(
            ["alpha, beta", *asked[:2]],
            (
                [f"{alpha}, {beta}", *cells(f"relevance|{alpha}, {beta}")[:2]]
                for alpha, beta in defaults.RELEVANCE
            ),
        )
    }

`beta` on molecules, with the attention of the whole reading as relevance, which an oracle knows:

{table(["beta", *asked[2:]], ([str(beta), *cells(f"beta|{beta}")[2:]] for beta in BETAS))}

{DENSE}

## ERASE

Of {len(shares)} photographs at {photographs.SIDE} pixels, with the settings published for
Qwen2.5-VL at a quarter of the tokens and its patches of {ERASED} pixels, {levels[0]} fall into the
most complex level, {levels[1]}, {levels[2]} and {levels[3]} into the others; the first stage keeps
{100 * shares.mean():.0f} % of their tokens ({100 * shares.min():.0f} to {100 * shares.max():.0f}).

{ERASING}
"""


def main() -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    try:
        for part in sys.argv[1:] or list(PARTS):
            if part != "photographs" or not kept(part).exists():
                PARTS[part]()
    except packages.MissingError as error:
        sys.exit(f"benchmarks/real: {error}")


if __name__ == "__main__":
    main()
