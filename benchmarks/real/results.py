"""What was measured on molecules and photographs, as arrays with one entry a picture."""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from typing import Any

import molecules
import numpy as np
import packages

SAMPLES = 2000
"""Bootstrap samples of pictures."""

Numbers = np.ndarray


def scored(pairs: list[tuple[str, str]]) -> list[tuple[bool, float]]:
    """Whether drawn and read are one molecule, and their Tanimoto; kept in the cache."""
    path = packages.CACHE / "compared.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    wanted = sorted({f"{a}\t{b}" for a, b in pairs} - known.keys())
    if wanted:
        asked, answer = (packages.CACHE / f"{name}.part.json" for name in ("asked", "answer"))
        asked.write_text(json.dumps([each.split("\t") for each in wanted]))
        packages.convert("compare", asked, answer)
        known |= dict(zip(wanted, json.loads(answer.read_text()), strict=True))
        path.write_text(json.dumps(known))
    return [known[f"{a}\t{b}"] for a, b in pairs]


@cache
def reading(choosing: bool) -> dict[str, Any]:
    """Of the molecules for choosing, or of the others, numbers by (method, budget).

    ``exact``: read as from all tokens. ``likely``: the mean log-probability of a word of that.
    ``right`` and ``tanimoto``: what was read against what was drawn. Beside them what is read
    from all tokens, and atoms, rings, words and effective ranks. ``places`` says which molecules
    a budget holds, by stage and budget; methods that no claim is about may hold fewer of them.
    """
    names = ("exact", "likely", "right", "tanimoto", "places")
    told: dict[str, Any] = {name: {} for name in names}
    starts = range(0, molecules.CHOOSING, molecules.CHUNK)
    if not choosing:
        starts = range(molecules.CHOOSING, molecules.COUNT, molecules.CHUNK)
    there = [s for s in starts if (molecules.FOLDER / f"all-{s:05d}.npz").exists()]
    styles = {s: molecules.chunk(s)["styles"] for s in there}
    for name in ("atoms", "rings"):
        told[name] = np.array([float(style[name]) for s in there for style in styles[s]])
    drawn = {s: [style["smiles"] for style in styles[s]] for s in there}
    told["all"] = _scores(
        [pair for s in there for pair in zip(drawn[s], _all_texts(s), strict=True)]
    )
    told["words"] = np.array([float(n) for s in there for n in _lengths(s)])
    told["erank"], told["entropy"] = (np.array([x for s in there for x in part(s)]) for part in _OF)
    begins = dict(zip(there, np.cumsum([0, *(len(drawn[s]) for s in there)]), strict=False))
    for stage, budget in product(molecules.STAGES, sorted(molecules.BUDGETS, reverse=True)):
        found = {s: _stored(stage, budget, s) for s in there}
        done = [s for s in there if all(name in found[s] for name in _wanted(choosing))]
        if not done:
            continue
        told["places"][stage, budget] = np.concatenate(
            [np.arange(len(drawn[s])) + begins[s] for s in done]
        )
        for name in dict.fromkeys(name for s in done for name in found[s]):
            some = [s for s in done if name in found[s]]
            answers = [each for s in some for each in found[s][name]]
            if stage == "judged":
                told["exact"][name, budget] = np.array([float(x[0]) for x in answers])
                told["likely"][name, budget] = np.array([float(x[1]) for x in answers])
            else:
                asked = [text for s in some for text in drawn[s]]
                right, alike = _scores(list(zip(asked, answers, strict=True)))
                told["right"][name, budget], told["tanimoto"][name, budget] = right, alike
    return told


def _wanted(choosing: bool) -> tuple[str, ...]:
    return molecules.COVERS if choosing else molecules.FIRST


def _stored(stage: str, budget: int, start: int) -> dict[str, Any]:
    path = molecules.stored(stage, budget, start)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _scores(pairs: list[tuple[str, str]]) -> tuple[Numbers, Numbers]:
    found = scored(pairs)
    return np.array([float(x[0]) for x in found]), np.array([float(x[1]) for x in found])


@cache
def _reader() -> Any:
    return molecules.Reader(packages.molecule_decoder())


def _all(start: int) -> dict[str, Any]:
    return molecules.read_all(_reader(), start, molecules.chunk(start)["tokens"])


def _all_texts(start: int) -> list[str]:
    return [_reader().text(ids) for ids in _all(start)["ids"]]


def _lengths(start: int) -> list[int]:
    return [len(ids) for ids in _all(start)["ids"]]


def _eranks(start: int) -> list[float]:
    path = molecules.FOLDER / f"eranks-{start:05d}.json"
    if not path.exists():
        tokens = molecules.chunk(start)["tokens"]
        found = [float(molecules.sc.effective_rank(np.float64(each))) for each in tokens]
        path.write_text(json.dumps(found))
    return list(json.loads(path.read_text()))


def _entropies(start: int) -> list[float]:
    first = np.float64(_all(start)["first"])
    return [float(molecules.sc.attention_entropy(each / each.sum())) for each in first]


_OF = (_eranks, _entropies)


def _kept(script: str) -> dict[str, Any]:
    path = packages.CACHE / f"{script}.json"
    if not path.exists():
        run = script.replace("-", ".py ") if "-" in script else f"{script}.py"
        raise packages.MissingError(f"{path} is missing: run benchmarks/real/{run}")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def photographs(name: str = "photographs") -> dict[str, Any]:
    """What ``photographs.py`` kept, of the usual side or, as ``photographs-518``, of another."""
    return _kept(name)


def views() -> dict[str, Any]:
    """What ``views.py`` kept."""
    return _kept("views")


def settings(part: str) -> dict[str, Any]:
    """What a part of ``settings.py`` kept."""
    path = packages.CACHE / f"settings-{part}.json"
    if not path.exists():
        raise packages.MissingError(f"{path} is missing: run benchmarks/real/settings.py {part}")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def halves() -> dict[str, Any]:
    """What ``halves.py`` kept."""
    return _kept("halves")


def interval(x: Numbers, seed: int = 0) -> tuple[float, float, float]:
    """The mean of numbers, and where 95 of 100 bootstrap samples of pictures have it."""
    dice = np.random.default_rng(seed)
    means = x[dice.integers(0, len(x), (SAMPLES, len(x)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(x.mean()), float(low), float(high)


def ranked(x: Numbers, y: Numbers, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's correlation with its bootstrap interval."""
    from scipy.stats import rankdata

    def of(places: Numbers) -> float:
        return float(np.corrcoef(rankdata(x[places]), rankdata(y[places]))[0, 1])

    dice = np.random.default_rng(seed)
    found = [of(dice.integers(0, len(x), len(x))) for _ in range(SAMPLES // 4)]
    low, high = np.quantile(found, (0.025, 0.975))
    return of(np.arange(len(x))), float(low), float(high)
