"""Reading molecules from some of their visual tokens: ``python benchmarks/real/molecules.py``.

DECIMER, which others trained, reads pictures of molecules that RDKit draws. Of its 256 visual
tokens every method that needs no text keeps 128, 64, 32 or 16, and the decoder reads from those;
methods between layers leave the decoder's first layers all of them.
The first hundred molecules are for choosing (the mean effective rank, thresholds, which
similarity is best); only the others are reported. What was encoded and read is kept in the cache,
so that a run goes on where it was stopped; hours on one core, and it prints where it is. Fewer
molecules and other budgets: ``python benchmarks/real/molecules.py 400 32 16``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import packages
import torch
from reading import GRID, LAYERS, Reader, Rule

import secateur as sc

COUNT, CHUNK, CHOOSING = 600, 50, 100
BUDGETS = (32, 16, 64, 128)
ROWS = 160
"""Rows read at once, at 32 tokens each."""
FOLDER = packages.CACHE / "molecules"

COVERS = tuple(
    f"cover, {name}" for name in ("cosine (FLoC)", "norms", "exemplar", "gaussian", "softmax")
)
FIRST = (
    *(*COVERS, "DivPrune", "TopK, first attention", "AgilePruner, tau_max 0.3"),
    *("OTPrune", "UniformGrid", "Random", "VisPruner", "SCOPE", "oracle: TopK"),
    "oracle: cover, cosine (EADP's form)",
)
"""Methods that are read before the others, since claims are about them."""

Choose = Callable[[sc.Tokens, int, int], sc.Selection]
OwnRule = Callable[[int, bool, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor | None]
"""A `Rule` of one molecule, without the row."""
Between = Callable[[sc.Tokens, int, int], OwnRule]


class Job(NamedTuple):
    """Tokens (k, D) handed on, their places (k,), what is read from all tokens, and who sees what.

    The last (layers, k) is None where every layer sees what was handed on.
    """

    tokens: np.ndarray
    places: np.ndarray
    ids: list[int]
    seen: np.ndarray | None = None


def _of(method: type[sc.Method], **more: Any) -> Choose:
    return lambda tokens, k, seed: method(keep=k, **more).select(tokens)


def _cover(similarity: Any, weights: str | None = None) -> Choose:
    def choose(tokens: sc.Tokens, k: int, seed: int) -> sc.Selection:
        w = None if weights is None else getattr(tokens, weights)
        f = sc.FacilityLocation.from_features(tokens.features, w, similarity=similarity)
        return sc.maximize(f, k)

    return choose


def _norms(tokens: sc.Tokens, k: int, seed: int) -> sc.Selection:
    lengths = np.linalg.norm(tokens.features, axis=-1)
    return sc.TopK(keep=k).select(tokens.with_(attention=lengths / lengths.sum()))


def oracle(choose: Choose) -> Choose:
    """With the attention of the reading itself, known only once everything was read."""

    def chosen(tokens: sc.Tokens, k: int, seed: int) -> sc.Selection:
        known = tokens.importance
        return choose(tokens.with_(attention=known / known.sum()), k, seed)

    return chosen


def contestants(erank: float) -> dict[str, Choose]:
    """Every method that needs no text, by name."""
    agile = {"mean_erank": erank}
    return {
        "Random": lambda tokens, k, seed: sc.Random(keep=k, seed=seed).select(tokens),
        "UniformGrid": _of(sc.UniformGrid),
        "FPS": _of(sc.FPS),
        "DivPrune": _of(sc.DivPrune),
        "OTPrune": _of(sc.OTPrune),
        "ApET": _of(sc.ApET),
        "TopK, norms": _norms,
        "TopK, first attention": _of(sc.TopK),
        "VisPruner": _of(sc.VisPruner),
        "VisionZip": _of(sc.VisionZip),
        "PruMerge": _of(sc.PruMerge),
        "DART": _of(sc.DART),
        "HiPrune": _of(sc.HiPrune),
        "VScan": _of(sc.VScan),
        "DUET": _of(sc.DUET),
        "SCOPE": _of(sc.SCOPE),
        "PruneSID": _of(sc.PruneSID),
        "Mixture": _of(sc.Mixture, mean_erank=erank),
        "AgilePruner, tau_max 0.3": _of(sc.AgilePruner, **agile),
        "AgilePruner, tau_max 0.1": _of(sc.AgilePruner, tau_max=0.1, **agile),
        "cover, cosine (FLoC)": _cover("cosine"),
        "cover, norms": _cover("norms"),
        "cover, exemplar": _cover("exemplar"),
        "cover, gaussian": _cover("gaussian"),
        "cover, softmax": _cover("softmax"),
        "oracle: TopK": oracle(_of(sc.TopK)),
        "oracle: cover, cosine (EADP's form)": oracle(_cover("cosine", "attention")),
        "oracle: cover, exemplar": oracle(_cover("exemplar", "attention")),
    }


def _by(method: Callable[[int], Any]) -> Between:
    """A method that drops between layers, asked by the only word that is known, the first."""

    def of(tokens: sc.Tokens, k: int, seed: int) -> OwnRule:
        asked = method(k)
        cuts = {cut.after: cut for cut in asked.cuts(LAYERS, GRID * GRID)}

        def rule(
            after: int, ahead: bool, q: torch.Tensor, keys: torch.Tensor, left: torch.Tensor
        ) -> torch.Tensor | None:
            if after not in cuts or ahead != asked.looks_ahead:
                return None
            # The word is no key of cross-attention: it stands last, where nobody looks.
            count = len(left)
            queries = torch.cat([q.expand(-1, count, -1), q], dim=1)
            return torch.as_tensor(
                asked.keep_visual(
                    cuts[after],
                    queries,
                    torch.cat([keys, -1e6 * q], dim=1),
                    visual=torch.arange(count),
                    text=torch.tensor([count]),
                    hidden=torch.zeros(count + 1, 1),
                )
            )

        return rule

    return of


def _at_two(choose: Callable[[sc.Tokens, int, int, torch.Tensor], sc.Selection]) -> Between:
    """What was chosen from encoded tokens is dropped after two layers, by what the second saw."""

    def of(tokens: sc.Tokens, k: int, seed: int) -> OwnRule:
        def rule(
            after: int, ahead: bool, q: torch.Tensor, keys: torch.Tensor, left: torch.Tensor
        ) -> torch.Tensor | None:
            if after != 2 or ahead:
                return None
            seen = (q @ keys.mT / q.shape[-1] ** 0.5).softmax(-1).mean(0)[0]
            return torch.as_tensor(choose(tokens, k, seed, seen).sorted())

        return rule

    return of


def _covered(tokens: sc.Tokens, k: int, seed: int, seen: torch.Tensor) -> sc.Selection:
    w = np.float64(seen.numpy())
    f = sc.FacilityLocation.from_features(tokens.features, w / w.sum(), similarity="gaussian")
    return sc.maximize(f, k)


def between() -> dict[str, Between]:
    """Methods that drop between layers of the decoder, by name."""
    gaussian = _cover("gaussian")
    return {
        "FastV": _by(lambda k: sc.FastV(keep=k)),
        "PyramidDrop": _by(lambda k: sc.PyramidDrop(keep=k)),
        "SparseVLM": _by(lambda k: sc.SparseVLM(keep=k, count="limit")),
        "Random, after 2 layers": _at_two(
            lambda tokens, k, seed, seen: sc.Random(keep=k, seed=seed).select(tokens)
        ),
        "DivPrune, after 2 layers": _at_two(
            lambda tokens, k, seed, seen: sc.DivPrune(keep=k).select(tokens)
        ),
        "cover, gaussian, after 2 layers": _at_two(
            lambda tokens, k, seed, seen: gaussian(tokens, k, seed)
        ),
        "cover, gaussian, by attention after 2 layers": _at_two(_covered),
    }


def chunk(start: int) -> dict[str, Any]:
    """The molecules from `start` on: tokens, styles, and what is read from all their tokens."""
    path = FOLDER / f"tokens-{start:05d}.npz"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        upto = min(COUNT, start + CHUNK)
        packages.convert("molecules", packages.molecule_model(), FOLDER, str(upto), str(CHUNK))
    with np.load(path) as stored:
        return {"tokens": stored["tokens"], "styles": json.loads(str(stored["styles"]))}


def read_all(reader: Reader, start: int, tokens: np.ndarray) -> dict[str, Any]:
    """What is read from all tokens, and where the reader looks."""
    path = FOLDER / f"all-{start:05d}.npz"
    if not path.exists():
        x = torch.from_numpy(tokens)
        found = reader.read(x, torch.arange(256).repeat(len(x), 1), 120)
        np.savez(
            path,
            ids=json.dumps(found.ids),
            over_all=found.over_all.numpy(),
            first=found.first.numpy(),
            shallow=found.shallow.numpy(),
        )
    with np.load(path) as stored:
        return {**stored, "ids": json.loads(str(stored["ids"]))}


def inputs(reader: Reader, tokens: np.ndarray, whole: dict[str, Any]) -> Iterator[sc.Tokens]:
    """What methods are given of each molecule: features, keys, the first step's attention."""
    keys = reader.keys(torch.from_numpy(tokens)).numpy()
    for place, features in enumerate(tokens):
        first, over_all = (np.float64(whole[name][place]) for name in ("first", "over_all"))
        yield sc.Tokens(
            features=np.float64(features),
            keys=np.float64(keys[place]),
            attention=first / first.sum(),
            attention_shallow=np.float64(whole["shallow"][place]),
            importance=over_all,
            grid=(16, 16),
        )


def mean_erank() -> float:
    """Over the molecules for choosing."""
    path = FOLDER / "erank.json"
    if not path.exists():
        found = [
            float(sc.effective_rank(np.float64(each)))
            for start in range(0, CHOOSING, CHUNK)
            for each in chunk(start)["tokens"]
        ]
        path.write_text(json.dumps(float(np.mean(found))))
    return float(json.loads(path.read_text()))


def kept_of(choose: Choose, tokens: sc.Tokens, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens handed on, with what was folded into them, and their places."""
    chosen = choose(tokens, k, seed)
    places = np.asarray(chosen.sorted())[: int(chosen.count)]
    return np.float32(chosen.merge(tokens.features))[: len(places)], np.int64(places)


def batches(jobs: list[Job]) -> Iterator[list[int]]:
    """Places of jobs that go together: as many tokens each, and ending at about the same time."""
    order = sorted(range(len(jobs)), key=lambda i: (len(jobs[i].places), len(jobs[i].ids)))
    start = 0
    while start < len(order):
        count = len(jobs[order[start]].places)
        size = max(16, ROWS * 32 // count)
        part = [i for i in order[start : start + size] if len(jobs[i].places) == count]
        start += len(part)
        yield part


def judged(reader: Reader, jobs: list[Job]) -> list[Any]:
    """Whether each job is read as from all tokens, and the mean log-probability of that."""
    found: list[Any] = [None] * len(jobs)
    for part in batches(jobs):
        x, places, seen = _together(jobs, part)
        same, likely = reader.judge(x, places, [jobs[i].ids for i in part], seen)
        for i, each in zip(part, zip(same.tolist(), likely.tolist(), strict=True), strict=True):
            found[i] = each
    return found


def texts(reader: Reader, jobs: list[Job]) -> list[Any]:
    """What is read; a fourth more words than from all tokens, and eight, end it."""
    found: list[Any] = [None] * len(jobs)
    for part in batches(jobs):
        most = [len(jobs[i].ids) * 5 // 4 + 8 for i in part]
        x, places, seen = _together(jobs, part)
        for i, ids in zip(part, reader.read(x, places, most, seen).ids, strict=True):
            found[i] = reader.text(ids)
    return found


def _together(
    jobs: list[Job], part: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    x = torch.from_numpy(np.stack([jobs[i].tokens for i in part]))
    places = torch.from_numpy(np.stack([jobs[i].places for i in part]))
    seen = [each for i in part if (each := jobs[i].seen) is not None]
    return x, places, torch.from_numpy(np.stack(seen)) if seen else None


STAGES = {"judged": judged, "read": texts}


def stored(stage: str, budget: int, start: int) -> Path:
    """Where the answers of a chunk are kept, a list for each method."""
    return FOLDER / f"{stage}-{budget:03d}-{start:05d}.json"


def run(reader: Reader, stage: str, start: int, budget: int, names: Collection[str]) -> None:
    """Answers about a chunk by some methods at a budget; what is known is not asked again."""
    path = stored(stage, budget, start)
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    methods, inside = contestants(mean_erank()), between()
    missing = [name for name in (*methods, *inside) if name in names and name not in known]
    if not missing:
        return
    tokens = chunk(start)["tokens"]
    whole = read_all(reader, start, tokens)
    images = list(inputs(reader, tokens, whole))
    jobs: dict[tuple[str, int], Job] = {}
    for name in missing:
        if name in methods:
            for place, each in enumerate(images):
                kept = kept_of(methods[name], each, budget, start + place)
                jobs[name, place] = Job(*kept, whole["ids"][place])
        else:
            rules = [inside[name](each, budget, start + i) for i, each in enumerate(images)]
            seen = reader.seen(torch.from_numpy(tokens), _each(rules)).numpy()
            for place, x in enumerate(tokens):
                jobs[name, place] = Job(x, np.arange(len(x)), whole["ids"][place], seen[place])
    answers: dict[tuple[str, int], Any] = {}
    if stage == "read" and (judged := stored("judged", budget, start)).exists():
        # Greedy goes along what was read from all tokens: there is nothing to read again.
        same = json.loads(judged.read_text())
        for name, place in jobs:
            if name in same and same[name][place][0]:
                answers[name, place] = reader.text(whole["ids"][place])
    asked = [at for at in jobs if at not in answers]
    found = STAGES[stage](reader, [jobs[at] for at in asked])
    answers.update(zip(asked, found, strict=True))
    for name in missing:
        known[name] = [answers[name, place] for place in range(len(images))]
    path.write_text(json.dumps(known))


def _each(rules: list[OwnRule]) -> Rule:
    return lambda after, ahead, row, q, keys, left: rules[row](after, ahead, q, keys, left)


def main() -> None:
    """Encode, judge and read whatever is missing, the claims' methods before the others."""
    torch.set_num_threads(1)
    began, spent = time.time(), time.process_time()
    last = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    budgets = [int(each) for each in sys.argv[2:]] or BUDGETS
    try:
        reader = Reader(packages.molecule_decoder())
        everybody = (*contestants(mean_erank()), *between())
        turns = [("judged", FIRST), ("read", FIRST), ("judged", everybody), ("read", everybody)]
        for stage, names in turns:
            begin = 0 if stage == "judged" else CHOOSING
            for start, budget in product(range(begin, last, CHUNK), budgets):
                run(reader, stage, start, budget, COVERS if start < CHOOSING else names)
                passed, worked = time.time() - began, time.process_time() - spent
                print(
                    f"{stage}, {len(names)} methods, {budget} of 256 tokens, "
                    f"{start + CHUNK} of {last} molecules: "
                    f"{passed:.0f} s, {worked:.0f} s of them at work",
                    flush=True,
                )
    except packages.MissingError as error:
        sys.exit(f"benchmarks/real: {error}")


if __name__ == "__main__":
    main()
