"""Clips, and pictures as clips of one frame, as batches to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.lab.clip import SIDE, draw_clip
from secateur.lab.model import EOS, SPECIAL
from secateur.lab.objects import COLOURS, Object
from secateur.lab.scene import GRID, draw
from secateur.lab.training.batches import NAMES, NOT_ASKED, Asked, padded
from secateur.lab.watched import WATCHED, Actor, every_question
from secateur.lab.watcher import POOLED, build_reader

TAUGHT = (*WATCHED, "picture")
"""Kinds of questions, those on pictures together."""
CHANGES = ("none", "new here", "gone from here", "recoloured")
EVENTS = ("none", "appears", "leaves", "comes", "goes", "recolours", "flashes", "is over")
ON_PICTURES = ("colour", "shape", "existence", "count", "reading")

_ENCODED: dict[str, tuple[int, ...]] = {}
_READER: list[Any] = []


@dataclass
class Film(Asked):
    """Clips with everything to be said about them.

    Attributes
    ----------
    same
        int64, shape ``(B, T)``: the first frame that shows what this one shows.
    changes, events
        int64, shape ``(B, N)``: index in `CHANGES` and in `EVENTS` of what happens at a token.
    names, colours
        int64, shape ``(B, N)``: index in `NAMES` and in `COLOURS` of what it happens to, -100
        elsewhere.
    """

    same: Any
    changes: Any
    events: Any
    names: Any
    colours: Any


def encode(text: str) -> tuple[int, ...]:
    """Token ids of `text` without the one that begins a prompt."""
    if text not in _ENCODED:
        if not _READER:
            _READER.append(build_reader())
        _ENCODED[text] = tuple(_READER[0](text, add_special_tokens=False).input_ids)
    return _ENCODED[text]


def film(seed: int, step: int, size: int, room: int) -> Film:
    """Draw batch `step` of the stream `seed`: `size` clips, at most `room` tokens on each."""
    import torch

    drawn = [draw_clip(seed, step * size + index) for index in range(size)]
    rng = np.random.default_rng((seed, step, 2))
    asked = []
    for clip in drawn:
        every = every_question(clip.actors, SIDE)
        asked.append(
            [
                (every[i].text, every[i].answer, WATCHED.index(every[i].kind), every[i].tokens)
                for i in rng.permutation(len(every))
            ]
        )
    frames = len(drawn[0].images)
    labels = np.stack([_labels(clip.actors, frames) for clip in drawn], axis=1)
    changes, events, names, colours = (torch.from_numpy(each) for each in labels)
    return _film(
        np.stack([clip.images for clip in drawn]),
        asked,
        room,
        same=torch.tensor([_same(clip.actors, frames) for clip in drawn]),
        changes=changes,
        events=events,
        names=names,
        colours=colours,
    )


def stills(seed: int, step: int, size: int, room: int) -> Film:
    """Draw `size` scenes as clips of one frame, with questions of the kinds `ON_PICTURES`."""
    import torch

    drawn = [draw(seed, step * size + index) for index in range(size)]
    rng = np.random.default_rng((seed, step, 3))
    asked = []
    for scene in drawn:
        every = [question for question in scene.questions if question.kind in ON_PICTURES]
        asked.append(
            [
                (every[i].text, every[i].answer, len(WATCHED), _pooled(every[i].patches))
                for i in rng.permutation(len(every))
            ]
        )
    none = torch.zeros((size, POOLED), dtype=torch.long)
    images = np.stack([scene.image[None] for scene in drawn])
    first = torch.zeros((size, 1), dtype=torch.long)
    unnamed = torch.full_like(none, NOT_ASKED)
    told = {"changes": none, "events": none, "names": unnamed, "colours": unnamed}
    return _film(images, asked, room, same=first, **told)


def _pooled(patches: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted({p // GRID // 2 * SIDE + p % GRID // 2 for p in patches}))


def _film(
    images: np.ndarray[Any, Any],
    asked: Sequence[Sequence[tuple[str, str, int, tuple[int, ...]]]],
    room: int,
    **more: Any,
) -> Film:
    import torch

    size, visuals = len(images), images.shape[1] * POOLED + 1
    most = max(map(len, asked))
    cover = np.zeros((size, most, visuals), dtype=bool)
    rows: dict[str, list[list[int]]] = {
        name: [] for name in ("tokens", "turns", "offsets", "targets", "looks", "kinds")
    }
    for number, questions in enumerate(asked):
        row: dict[str, list[int]] = {name: [] for name in rows}
        for text, answer, kind, tokens in questions:
            words, told = encode(text), (*encode(answer), SPECIAL.index(EOS))
            length, turn = len(words) + len(told) - 1, len(row["kinds"])
            if len(row["tokens"]) + length > room:
                continue
            row["tokens"] += (*words, *told[:-1])
            row["turns"] += [turn] * length
            row["offsets"] += range(length)
            row["targets"] += [NOT_ASKED] * (len(words) - 1) + list(told)
            row["looks"] += [-1] * (len(words) - 1) + [turn] * (len(told) - 1) + [-1]
            row["kinds"].append(kind)
            cover[number, turn, list(tokens)] = True
        for name, values in row.items():
            rows[name].append(values)
    looks = padded(rows["looks"], -1)
    return Film(
        images=torch.from_numpy(images),
        tokens=padded(rows["tokens"], 0),
        turns=padded(rows["turns"], -1),
        offsets=padded(rows["offsets"], 0),
        targets=padded(rows["targets"], NOT_ASKED),
        looks=looks[..., None] == torch.arange(most),
        cover=torch.from_numpy(cover),
        kinds=padded(rows["kinds"], -1),
        **more,
    )


def _same(actors: Sequence[Actor], frames: int) -> list[int]:
    """For each frame the first of the frames before that shows the same."""
    shown = [tuple(actor.states[t] for actor in actors) for t in range(frames)]
    return [shown.index(each) for each in shown]


def _labels(actors: Sequence[Actor], frames: int) -> np.ndarray[Any, Any]:
    """What happens at every token and to what: `changes`, `events`, `names`, `colours`, (4, N)."""
    labels = np.zeros((4, frames, POOLED), dtype=np.int64)
    labels[2:] = NOT_ASKED

    def note(t: int, thing: Object, change: int, event: str) -> None:
        colour = NOT_ASKED if thing.is_label else list(COLOURS).index(thing.attribute)
        what = (change, EVENTS.index(event), NAMES.index(thing.name), colour)
        labels[:, t, list(_pooled(thing.patches))] = np.array(what)[:, None]

    for actor in actors:
        for t in range(1, frames):
            before, after = actor.states[t - 1], actor.states[t]
            if before == after:
                continue
            if actor.role == "recolours" and after is not None:
                note(t, after, 3, "recolours")
                continue
            if before is not None:
                gone = {"leaves": "leaves", "moves": "goes", "flashes": "is over"}
                note(t, before, 2, gone[actor.role])
            if after is not None:
                new = {"appears": "appears", "moves": "comes", "flashes": "flashes"}
                note(t, after, 1, new[actor.role])
    return labels.reshape(4, -1)
