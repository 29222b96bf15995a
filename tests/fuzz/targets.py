"""What is called: every public function, every class's own methods, every registered method.

All of it is read off the library: `secateur.__all__`, signatures, the registry. Left to others
is what users do not call: `Selection` and other records that the library makes are only asked
questions, and what objectives and their trackers say to each other took its arguments from them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import makers
from makers import Maker
from scene import Scene

import secateur as sc
from secateur.core.acts import ChoosesParts, Layout, Shrinks
from secateur.core.objectives import Objective

RARE = {"warm_up": 200, "calibrate": 100, "methods": 20}
"""What takes long or takes nothing: one in so many of the others' turns."""

ASKED = {"value", "gain", "open", "rows"}
"""What people ask an objective; the rest is between it and the algorithms."""

RECORDS = {"Cut", "MissingInputError", "Selection", "SoftmaxBlock"}
"""Classes that the library makes: their fields are taken as they come."""


@dataclass(frozen=True)
class Target:
    """Something to call, and a maker for each of its arguments."""

    name: str
    makers: Mapping[str, Maker]
    call: Callable[[Scene, dict[str, Any]], Any]
    turns: float = 1.0


def targets() -> list[Target]:
    """All of them, in the order of their names."""
    found: list[Target] = []
    for name in sc.__all__:
        thing = getattr(sc, name)
        if isinstance(thing, type):
            if not issubclass(thing, sc.Method):
                found += _of_class(name, thing)
        else:
            found.append(_function(name, thing))
    for name, kind in sc.methods().items():
        found += _of_method(name, kind)
    return sorted(found, key=lambda target: target.name)


def _function(name: str, function: Callable[..., Any], turns: float = 1.0) -> Target:
    turns = turns / RARE.get(name, 1)
    if name == "backend":
        return Target(name, makers.makers(name, function), _entered, turns)
    return Target(name, makers.makers(name, function), _by_signature(function), turns)


def _by_signature(function: Callable[..., Any]) -> Callable[[Scene, dict[str, Any]], Any]:
    known = inspect.signature(function).parameters.values()
    some = [p.name for p in known if p.kind == p.VAR_POSITIONAL]
    before = [p.name for p in known if p.kind == p.POSITIONAL_OR_KEYWORD] if some else []

    def call(scene: Scene, given: dict[str, Any]) -> Any:
        first = [given.pop(name) for name in before]
        for name in some:
            more = given.pop(name)
            first += more if isinstance(more, list) else [more]
        return function(*first, **given)

    return call


def _entered(scene: Scene, given: dict[str, Any]) -> None:
    with sc.backend(**given):
        pass


def _of_class(name: str, kind: type) -> list[Target]:
    found = []
    if kind is Objective:
        return found
    if name not in RECORDS:
        found.append(_function(name, kind))
    parts = ASKED if issubclass(kind, Objective) else vars(kind)
    for part in sorted(
        {*parts, *_makes(kind)} - {"of"} if name in RECORDS else {*parts, *_makes(kind)}
    ):
        member = inspect.getattr_static(kind, part)
        if part.startswith("_") and part != "__repr__":
            continue
        if isinstance(member, classmethod):
            found.append(_function(f"{name}.{part}", getattr(kind, part)))
        elif inspect.isfunction(member) and name in makers.INSTANCES:
            found.append(_asked(f"{name}.{part}", makers.INSTANCES[name], member))
        elif isinstance(member, property) and name in makers.INSTANCES:
            found.append(_read(f"{name}.{part}", makers.INSTANCES[name], part))
    return found


def _makes(kind: type) -> list[str]:
    """The other ways to make one, inherited ones too."""
    return [
        part for part in dir(kind) if isinstance(inspect.getattr_static(kind, part), classmethod)
    ]


def _read(name: str, instance: Maker, part: str) -> Target:
    return Target(name, {"self": instance}, lambda scene, given: getattr(given["self"], part), 0.2)


def _asked(name: str, instance: Maker, function: Callable[..., Any]) -> Target:
    def call(scene: Scene, given: dict[str, Any]) -> Any:
        bound = getattr(given.pop("self"), function.__name__)
        answer = _by_signature(bound)(scene, given)
        return list(answer) if inspect.isgenerator(answer) else answer

    return Target(name, {"self": instance, **makers.makers(name, function)}, call)


def _of_method(name: str, kind: type[sc.Method]) -> list[Target]:
    own = makers.parameters_of(kind)
    given_in_tokens = {f"tokens.{key}": maker for key, maker in makers.TOKENS.items()}

    def split(given: dict[str, Any]) -> tuple[sc.Method, sc.Tokens]:
        inside = {key: given.pop(key) for key in [*given] if key.startswith("tokens.")}
        method = kind(**given)
        return method, sc.Tokens(**{key[len("tokens.") :]: x for key, x in inside.items()})

    def select(scene: Scene, given: dict[str, Any]) -> Any:
        finite = given.pop("check_finite")
        method, one = split(given)
        several = scene.dice.random() < 0.1
        chosen = method.select([one, one] if several else one, check_finite=finite)
        for each in chosen if several else [chosen]:
            _within(method, one, each)
        return chosen

    def parts(scene: Scene, given: dict[str, Any]) -> Any:
        method, one = split(given)
        rows = list(one.each_frame().rows())
        return method.select_parts([*rows, *rows], 1) if rows else []  # type: ignore[attr-defined]

    def stored(scene: Scene, given: dict[str, Any]) -> Any:
        method = kind(**given)
        if sc.Method.from_dict(method.to_dict()) != method:
            raise AssertionError(f"{method} is not what it was stored as")
        return repr(method)

    def plan(scene: Scene, given: dict[str, Any]) -> Any:
        layout = given.pop("self")
        return kind(**given).plan(layout)  # type: ignore[attr-defined]

    every = {**own, **given_in_tokens}
    found = [Target(f"{name}.select", {**every, "check_finite": makers.FINITE}, select, 3.0)]
    found.append(Target(f"{name}.to_dict", own, stored, 0.3))
    found.append(
        Target(
            f"published({name})",
            own,
            lambda scene, given: sc.published(name, **{**given, "published": True}),
            0.3,
        )
    )
    if issubclass(kind, ChoosesParts):
        found.append(Target(f"{name}.select_parts", every, parts))
    if hasattr(kind, "plan"):
        layouts = makers._one_of(*(Layout(d, (n,)) for d in (2, 12, 28) for n in (1, 9, 576)))
        found.append(Target(f"{name}.plan", {**own, "self": layouts}, plan, 0.3))
    if issubclass(kind, Shrinks):
        found.append(Target(f"{name}.shrink", every, _shrunk(split)))
    return found


def _shrunk(split: Any) -> Any:
    def shrink(scene: Scene, given: dict[str, Any]) -> Any:
        method, one = split(given)
        one.require(type(method).__name__, "pixels", "grid")
        return method.shrink(one.pixels, one.grid)

    return shrink


def _within(method: sc.Method, given: sc.Tokens, chosen: sc.Selection) -> None:
    """No more than the budget, and exactly that where the size alone decides."""
    from verdict import FaultError

    counts = sc.core.arrays.to_numpy(chosen.count)
    most = method.budget(given.size, given.times)
    if getattr(method, "crops", None) is not None and given.frames is None:
        # Crops share a budget; rounded down, each gets one at least.
        parts = given.batch_shape[-1]
        counts, most = counts.sum(axis=-1), most * parts
        if method.parts_counted_from == "features":
            if parts and counts.max(initial=0) > most + parts:
                raise FaultError("another count", f"kept {counts}, the budget is {most}")
            return
    kept = {int(each) for each in counts.ravel()}
    if method.counted_from == "features":
        # Parts of windows are rounded up; a budget on average has a most of its own.
        most = int(min(most * getattr(method, "most", 1.0), given.size)) + 2 * given.times
    if method.counted_from == "pixels":
        most = given.size  # the share that stays inside in the end is no bound here
    # Some authors' programs lose a few to rounding, or make some that are no token's.
    exact = method.counted_from == "size" and not method.published
    if any(each > most for each in kept) or (exact and kept - {most}):
        raise FaultError("another count", f"kept {kept}, the budget is {most}")
