"""What can be asked of a clip, with exact answers and the tokens that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from secateur.lab.objects import Object
from secateur.lab.questions import VOCABULARY

Watched = Literal["what", "where", "when", "count", "reading"]
WATCHED: tuple[Watched, ...] = get_args(Watched)
Role = Literal["stays", "appears", "leaves", "moves", "recolours", "flashes"]

VERBS: dict[Role, str] = {
    "appears": "appear",
    "leaves": "leave",
    "moves": "move",
    "recolours": "change colour",
}
WORDS_OF_CLIPS: tuple[str, ...] = (
    *VOCABULARY,
    *("appears", "leaves", "moves", "appear", "leave", "move", "change", "become"),
    *("where", "when", "was", "start", "end", "go", "shown"),
)
"""The vocabulary of scenes and, after it, what only clips need."""


@dataclass(frozen=True)
class Actor:
    """One thing and what it is in every frame.

    Attributes
    ----------
    role
        What happens to it. ``"flashes"`` is a label shown for a few frames.
    states
        The thing in each frame, None where it is not there.
    """

    role: Role
    states: tuple[Object | None, ...]

    @property
    def seen(self) -> tuple[int, ...]:
        """The frames it is in."""
        return tuple(t for t, state in enumerate(self.states) if state is not None)

    @property
    def first(self) -> Object:
        """What it is when it is first seen."""
        return self._at(self.seen[0])

    @property
    def last(self) -> Object:
        """What it is when it is last seen."""
        return self._at(self.seen[-1])

    def _at(self, frame: int) -> Object:
        state = self.states[frame]
        assert state is not None
        return state

    @property
    def change(self) -> int | None:
        """The first frame in which it is there and was not, or not as it was before."""
        if self.role == "flashes":
            return self.seen[0]
        for t in range(1, len(self.states)):
            if self.states[t] != self.states[t - 1]:
                return t
        return None


@dataclass(frozen=True)
class ClipQuestion:
    """What is asked of a clip, the exact answer, and where the answer lies.

    Attributes
    ----------
    text, answer
        As of `secateur.lab.objects.Question`. Frames are counted from 1.
    kind
        One of `WATCHED`.
    tokens
        Ascending indices, over all frames, of the pooled tokens that the answer speaks of; empty
        where the answer is that nothing does that.
    brief
        Whether it is about a label that is shown for a few frames.
    """

    text: str
    answer: str
    kind: Watched
    tokens: tuple[int, ...]
    brief: bool = False


def every_question(actors: Sequence[Actor], side: int) -> list[ClipQuestion]:
    """Everything that can be asked of a clip whose frames have side x side tokens."""
    asked = [*_what(actors, side), *_count(actors, side)]
    for actor in actors:
        asked += _of_label(actor, side) if actor.first.is_label else _of_shape(actor, side)
    return asked


def ask(
    rng: np.random.Generator, actors: Sequence[Actor], side: int, most: int = 2
) -> tuple[ClipQuestion, ...]:
    """Up to `most` questions of every kind, chosen by `rng`, in the order of `WATCHED`."""
    asked = every_question(actors, side)
    chosen = []
    for kind in WATCHED:
        mine = [question for question in asked if question.kind == kind]
        chosen += [mine[i] for i in sorted(rng.permutation(len(mine))[:most])]
    return tuple(chosen)


def _covered(actor: Actor, frames: Iterable[int], side: int) -> set[int]:
    """The pooled tokens that it covers in these frames."""
    fine = 2 * side
    return {
        t * side**2 + patch // fine // 2 * side + patch % fine // 2
        for t in frames
        if (state := actor.states[t]) is not None
        for patch in state.patches
    }


def _come(actor: Actor, side: int) -> tuple[int, ...]:
    """What shows that it is there now and was not."""
    t = actor.change
    assert t is not None
    return tuple(sorted(_covered(actor, (t,), side)))


def _event(actor: Actor, side: int) -> tuple[int, ...]:
    """What shows that it changes: itself then, and just before where it moves or leaves."""
    t = actor.change
    assert t is not None
    found = _covered(actor, (t,), side)
    if actor.role in ("leaves", "moves"):
        before = _covered(actor, (t - 1,), side)
        found |= before | {token + side**2 for token in before}
    return tuple(sorted(found))


def _what(actors: Sequence[Actor], side: int) -> Iterator[ClipQuestion]:
    """What comes to or leaves a place; whether it moved there or was not there before is one."""
    for actor in actors:
        if actor.role in ("appears", "moves"):
            text, phrase = f"what shape appears at the {actor.last.place}?", actor.first.phrase
            yield ClipQuestion(text, phrase, "what", _come(actor, side))
        if actor.role in ("leaves", "moves"):
            text, phrase = f"what shape leaves the {actor.first.place}?", actor.first.phrase
            yield ClipQuestion(text, phrase, "what", _event(actor, side))
        if actor.role == "appears":
            text = f"what shape leaves the {actor.last.place}?"
            yield ClipQuestion(text, "nothing", "what", ())
        if actor.role == "leaves":
            text = f"what shape appears at the {actor.first.place}?"
            yield ClipQuestion(text, "nothing", "what", ())


def _count(actors: Sequence[Actor], side: int) -> Iterator[ClipQuestion]:
    for when, t in (("start", 0), ("end", -1)):
        there = [a for a in actors if not a.first.is_label and a.states[t] is not None]
        frame = t % len(actors[0].states)
        tokens = sorted({token for actor in there for token in _covered(actor, (frame,), side)})
        text = f"how many shapes are there at the {when}?"
        yield ClipQuestion(text, str(len(there)), "count", tuple(tokens))


def _of_label(actor: Actor, side: int) -> Iterator[ClipQuestion]:
    name, brief = actor.first.name, actor.role == "flashes"
    tokens = tuple(sorted(_covered(actor, actor.seen, side)))
    yield ClipQuestion(f"what {name} is shown?", actor.first.attribute, "reading", tokens, brief)
    yield ClipQuestion(f"where is the {name}?", actor.first.place, "where", tokens, brief)
    if brief:
        text = f"when is the {name} shown?"
        yield ClipQuestion(text, str(actor.seen[0] + 1), "when", _event(actor, side), True)


def _of_shape(actor: Actor, side: int) -> Iterator[ClipQuestion]:
    phrase = actor.first.phrase
    if actor.role == "stays":
        tokens = tuple(sorted(_covered(actor, actor.seen, side)))
        yield ClipQuestion(f"where is the {phrase}?", actor.first.place, "where", tokens)
        return
    event, t = _event(actor, side), actor.change
    assert t is not None
    yield ClipQuestion(f"when does the {phrase} {VERBS[actor.role]}?", str(t + 1), "when", event)
    if actor.role == "recolours":
        text = f"what colour does the {phrase} become?"
        yield ClipQuestion(text, actor.last.attribute, "what", event)
    elif actor.role == "moves":
        text = f"where does the {phrase} go?"
        yield ClipQuestion(text, actor.last.place, "where", event)
    elif actor.role == "appears":
        text = f"where does the {phrase} appear?"
        yield ClipQuestion(text, actor.first.place, "where", event)
    else:
        tokens = tuple(sorted(_covered(actor, actor.seen, side)))
        yield ClipQuestion(f"where was the {phrase}?", actor.first.place, "where", tokens)
