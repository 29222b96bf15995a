"""Arguments by the names of parameters, as the signatures of the library have them.

A parameter that is in no table here and whose declared type does not say what fits stops the
run: a new public function brings its makers along.
"""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from scene import PATCH, Scene

import secateur as sc
from secateur.core.dispatch import drivers
from secateur.core.kernels import KINDS
from secateur.core.objectives import Objective

Maker = Callable[[Scene], Any]


class Brought(Objective):
    """An objective of somebody's own: a value and nothing else."""

    submodular = True

    def __init__(self, scene: Scene) -> None:
        self.size = scene.total
        self.sample = scene.array(scene.total)

    def value(self, indices: Any) -> float:
        """How many residues modulo 3 there are."""
        return float(len({int(j) % 3 for j in indices}))


def _times(scene: Scene) -> tuple[int, ...]:
    return () if scene.frames is None else (scene.frames,)


def _square(scene: Scene, least: float | None = None) -> Any:
    return scene.tokens(scene.total, least=least)


def _kernel(scene: Scene, above: float = 0.0) -> Any:
    x = scene.values(*scene.batch, scene.total, scene.channels)
    kernel = x @ np.swapaxes(x, -1, -2) + above * np.eye(scene.total)
    return scene.lifted(kernel.astype(scene.dtype))


def _selectable(scene: Scene) -> Any:
    mask = scene.numbers.random((*scene.batch, scene.total)) < 0.7
    mask[..., -1] = True
    return scene.dice.choice([None, None, scene.lifted(mask)])


def _text(scene: Scene) -> Any:
    one = scene.array(scene.words, scene.channels)
    return scene.dice.choice([one, one, one, [one, scene.array(2, scene.channels)]])


def _pixels(scene: Scene) -> Any:
    shape = (*scene.batch, scene.height * PATCH, scene.width * PATCH, 3)
    x = scene.numbers.integers(0, 256, shape)
    return scene.lifted((x // 128 if scene.flavour == "rounded" else x).astype(np.uint8))


def _count(scene: Scene) -> Any:
    own = [scene.dice.randint(1, scene.total), scene.dice.random() or 0.5, 1, scene.total + 3]
    if scene.batch and scene.dice.random() < 0.3:
        return scene.numbers.integers(1, scene.total + 1, scene.batch)
    return scene.dice.choice(own)


def _picks(scene: Scene) -> Any:
    many = scene.dice.randint(0, scene.total)
    return scene.dice.sample(range(scene.total), many)


def _chosen_array(scene: Scene) -> Any:
    order = scene.numbers.random((*scene.batch, scene.total)).argsort(axis=-1)
    return scene.lifted(order[..., : max(1, scene.total // 2)])


def selection(scene: Scene) -> sc.Selection:
    """What a method returned, with folds or without."""
    if scene.dice.random() < 0.5:
        return sc.Selection.of(_chosen_array(scene), scene.total)
    keep = scene.dice.randint(1, scene.total)
    video = sc.Tokens(features=scene.tokens(scene.channels), keys=scene.tokens(2))
    return sc.method(scene.dice.choice(["apet", "topk", "dart"]), keep=keep).select(
        video.with_(attention=scene.tokens(least=0))
    )


def tokens(scene: Scene) -> sc.Tokens:
    """What a method may be given: mostly everything that there is."""
    return sc.Tokens(**{name: TOKENS[name](scene) for name in TOKENS})


def objective(scene: Scene) -> Objective:
    """An objective of ours of any kind that there is."""
    return scene.dice.choice(OBJECTIVES)(scene)


def _calibration(scene: Scene) -> sc.Calibration:
    return sc.Calibration(scene.dice.choice([1.0, 2.5]), scene.dice.choice([None, 1.2]), 3)


def _method(scene: Scene) -> sc.Method:
    return sc.method(scene.dice.choice(sorted(sc.methods())))


def _stored(scene: Scene) -> Any:
    return scene.dice.choice([_method(scene).to_dict(), _calibration(scene).to_dict()])


def _path(scene: Scene) -> Path:
    path = Path(tempfile.gettempdir()) / "secateur-fuzz.json"
    path.write_text(scene.dice.choice(['{"erank": 2.0}', "", "[", '{"erank": "x"}', "\0"]))
    return path


def _one_of(*values: Any) -> Maker:
    return lambda scene: scene.dice.choice(values)


def _blocks(scene: Scene) -> Any:
    part = scene.values(2, scene.total, least=0).astype(scene.dtype)
    rows = scene.array(scene.words, scene.channels)
    soft = sc.SoftmaxBlock(rows, scene.array(scene.total, scene.channels), 0.5)
    return scene.dice.choice([[scene.lifted(part)], [scene.lifted(part), soft]])


FINITE = _one_of(True, True, True, True, True, False)

BY_NAME: dict[str, Maker] = {
    "algorithm": _one_of("auto", "auto", "naive", "lazy", "incremental", "stochastic"),
    "attention": lambda scene: scene.tokens(least=0),
    "axis": _one_of(-1, -1, 0, -2),
    "backend": lambda scene: None,
    "beside": lambda scene: None,
    "best": _one_of(0.0, 1.0, 1e9),
    "blocks": _blocks,
    "check_finite": FINITE,
    "count": lambda scene: scene.dice.randint(1, scene.total),
    "distance": lambda scene: _square(scene, least=0),
    "f": lambda scene: scene.dice.choice([objective, objective, objective, Brought])(scene),
    "factors": lambda scene: scene.tokens(scene.channels),
    "features": lambda scene: scene.tokens(scene.channels),
    "frames": lambda scene: scene.frames or 1,
    "grid": lambda scene: (scene.height * (scene.frames or 1), scene.width),
    "image": _pixels,
    "images": lambda scene: scene.dice.randint(1, 9),
    "importance": lambda scene: scene.tokens(least=0),
    "indices": _picks,
    "j": lambda scene: scene.dice.choice([0, [0], list(range(scene.total))]),
    "k": _count,
    "keep": lambda scene: (
        scene.dice.choice([_count(scene), scene.dice.randint(1, 9), 0.25])
        if not scene.batch
        else scene.dice.choice([1, 3, 0.4])
    ),
    "kernel": _kernel,
    "layout": lambda scene: None,
    "maximum": lambda scene: scene.dice.choice([None, None, scene.total]),
    "minimum": _one_of(1, 1, 0, 2),
    "missing": _one_of("attention", "text"),
    "n": lambda scene: scene.dice.choice([None, scene.total + 2]),
    "name": lambda scene: scene.dice.choice([*sc.methods()]),
    "names": lambda scene: scene.dice.choice(sorted(TOKENS)),
    "neighbours": _one_of(1, 3, 50),
    "noise": lambda scene: scene.dice.choice([None, scene.tokens(least=0)]),
    "objective": lambda scene: lambda method: float(method.keep),
    "p": lambda scene: scene.tokens(least=0),
    "patch": _one_of(PATCH, 1, 3),
    "path": _path,
    "position": lambda scene: [0 for _ in scene.batch],
    "saliency": lambda scene: scene.tokens(least=0),
    "scores": lambda scene: scene.tokens(least=0),
    "seed": _one_of(0, 1, 7),
    "selectable": _selectable,
    "similarity": lambda scene: _square(scene, least=0),
    "size": _one_of(3, 3, 1, 5),
    "so_far": lambda scene: scene.dice.choice([None, _calibration(scene)]),
    "step": _one_of(0.01, 0.5, 1, 0),
    "storage": lambda scene: None,
    "stored": _stored,
    "study_name": lambda scene: "fuzz",
    "text": _text,
    "text_global": lambda scene: scene.dice.choice([None, scene.array(scene.channels)]),
    "text_mask": lambda scene: scene.dice.choice(
        [None, None, scene.lifted(scene.numbers.random(scene.words) < 0.8)]
    ),
    "tokens": tokens,
    "total": lambda scene: scene.dice.randint(1, 4 * scene.total),
    "trials": _one_of(1, 2),
    "vectors": lambda scene: scene.tokens(scene.channels),
    "visual": lambda scene: scene.tokens(scene.channels),
    "weights": lambda scene: scene.dice.choice([None, scene.tokens(least=0)]),
    "x": lambda scene: scene.tokens(scene.channels),
}
"""What a parameter of this name takes, whoever has it."""

BY_OWNER: dict[str, Maker] = {
    "Calibration.entropy": _one_of(None, 1.5),
    "Calibration.of.images": lambda scene: [tokens(scene), tokens(scene)],
    "FacilityLocation.from_features.similarity": _one_of(*KINDS),
    "FacilityLocation.of_blocks.weights": lambda scene: None,
    "MarginalRelevance.balance": _one_of(0.5, 0.0, 1.0),
    "MarginalRelevance.step": _one_of(1, 2, 50),
    "MarginalRelevance.from_features.step": _one_of(1, 2, 50),
    "Tokens.require.method": lambda scene: "EADP",
    "agilepruner.mean_erank": lambda scene: scene.dice.choice(
        [3.0, _calibration(scene), sc.RunningCalibration()]
    ),
    "backend.name": lambda scene: scene.dice.choice(["auto", "reference", *drivers()["numpy"]]),
    "calibrate.images": lambda scene: [tokens(scene), tokens(scene)],
    "calibrate.method": lambda scene: scene.dice.choice([None, sc.ERASE(patch=PATCH)]),
    "calibrate.progress": lambda scene: False,
    "eadp.similarity": _one_of(*KINDS),
    "erase.patch": _one_of(PATCH, PATCH, 28),
    "floc.similarity": _one_of(*KINDS),
    "mixture.attention": lambda scene: sc.TopK(),
    "mixture.diversity": lambda scene: scene.dice.choice([sc.DivPrune(), sc.FPS()]),
    "mixture.mean_erank": _one_of(3.0, None),
    "smooth.sigma": _one_of(1.0, 0.3),
    "visionselector.weights": lambda scene: None,
    "warm_up.backend": lambda scene: scene.dice.choice(["auto", *drivers()["numpy"]]),
    "warm_up.shapes": lambda scene: [(scene.size, scene.channels)],
}
"""Where a parameter means something else than its name does elsewhere."""

TOKENS: dict[str, Maker] = {
    "features": BY_NAME["features"],
    "grid": lambda scene: (scene.height, scene.width),
    "frames": lambda scene: scene.frames,
    "embeds": lambda scene: scene.dice.choice([None, scene.tokens(scene.channels)]),
    "text": _text,
    "text_global": BY_NAME["text_global"],
    "text_mask": BY_NAME["text_mask"],
    "attention": BY_NAME["attention"],
    "attention_shallow": BY_NAME["attention"],
    "pixels": lambda scene: None if scene.frames else _pixels(scene),
    "keys": lambda scene: scene.tokens(4),
    "states": lambda scene: scene.tokens(3),
    "class_state": lambda scene: scene.array(*scene.batch, *_times(scene), 3),
    "importance": BY_NAME["importance"],
    "selectable": lambda scene: None,
    "frame_features": lambda scene: scene.dice.choice(
        [None, scene.array(*scene.batch, scene.frames or 1, 3)]
    ),
}
"""The inputs of methods."""

OBJECTIVES: list[Maker] = [
    lambda scene: sc.FacilityLocation(
        _square(scene, least=0), BY_NAME["weights"](scene), selectable=_selectable(scene)
    ),
    lambda scene: sc.FacilityLocation.from_features(
        scene.tokens(scene.channels), BY_NAME["weights"](scene), selectable=_selectable(scene)
    ),
    lambda scene: sc.FacilityLocation.of_blocks(_blocks(scene)),
    lambda scene: sc.LogDeterminant(_kernel(scene), selectable=_selectable(scene)),
    lambda scene: sc.LogDeterminant(_kernel(scene, 1.01), above_identity=True),
    lambda scene: sc.LogDeterminant.from_factors(scene.tokens(scene.channels), 0.5),
    lambda scene: sc.LogDeterminant.from_span(scene.tokens(scene.channels)),
    lambda scene: sc.Dispersion(_square(scene, least=0)),
    lambda scene: sc.Dispersion.from_features(scene.tokens(scene.channels)),
    lambda scene: sc.MarginalRelevance.from_features(
        scene.tokens(scene.channels), scene.tokens(least=0)
    ),
    lambda scene: sc.SalientCoverage(_square(scene, least=0), scene.tokens(least=0)),
]
"""Objectives of a matrix, of features, of blocks."""

INSTANCES: dict[str, Maker] = {
    "Calibration": _calibration,
    "RunningCalibration": lambda scene: sc.RunningCalibration(BY_NAME["so_far"](scene)),
    "Selection": selection,
    "Tokens": tokens,
    **dict.fromkeys(
        (
            "Dispersion",
            "FacilityLocation",
            "LogDeterminant",
            "MarginalRelevance",
            "SalientCoverage",
        ),
        objective,
    ),
}
"""What a class's methods are called on; of objectives any, since they all answer alike."""

OF_TYPE: dict[Any, tuple[Any, ...]] = {
    float: (0.0, 0.1, 0.25, 0.5, 0.9, 1.0, 2.0, 0.01),
    int: (1, 1, 2, 3, 4, 0),
    bool: (True, False),
    str: ("x",),
    NoneType: (None,),
}


def of_type(declared: Any, default: Any = inspect.Parameter.empty) -> Maker | None:
    """Values of a declared type, the default most of the time; None where it says too little."""
    pool = _pool(declared)
    if pool is None:
        return None if default is inspect.Parameter.empty else lambda scene: default
    if default is inspect.Parameter.empty:
        return _one_of(*pool)
    return _one_of(*([default] * (2 * len(pool))), *pool)


def _pool(declared: Any) -> list[Any] | None:
    origin, inner = get_origin(declared), get_args(declared)
    if origin is Literal:
        return list(inner)
    if origin in (Union, UnionType):
        pools = [_pool(each) for each in inner]
        return None if None in pools else [value for pool in pools for value in pool or ()]
    if origin is tuple and inner:
        pool = _pool(inner[0])
        return None if pool is None else [(value,) * 2 for value in pool]
    return list(OF_TYPE[declared]) if declared in OF_TYPE else None


@cache
def makers(owner: str, function: Callable[..., Any]) -> Mapping[str, Maker]:
    """A maker for each parameter of a function, by the owner's table, by name, by type."""
    found: dict[str, Maker] = {}
    hints = get_type_hints(function.__init__ if isinstance(function, type) else function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self" or parameter.kind is parameter.VAR_KEYWORD:
            continue
        default = parameter.default
        if "HAS_DEFAULT_FACTORY" in repr(default):
            continue
        maker = BY_OWNER.get(f"{owner}.{name}") or BY_NAME.get(name)
        maker = maker or of_type(hints.get(name), default)
        if maker is None:
            raise LookupError(f"{owner}({name}): tests/fuzz/makers.py has nothing that it takes")
        found[name] = maker
    return found


@cache
def parameters_of(kind: type[sc.Method]) -> Mapping[str, Maker]:
    """A maker for each parameter of a method, from its declaration."""
    found: dict[str, Maker] = {}
    hints = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        maker = BY_OWNER.get(f"{kind.name}.{item.name}")
        if item.name == "keep":
            maker = BY_NAME["keep"]
        maker = maker or of_type(hints[item.name], item.default)
        if maker is None:
            raise LookupError(f"{kind.name}({item.name}): tests/fuzz/makers.py has nothing for it")
        found[item.name] = maker
    return found
