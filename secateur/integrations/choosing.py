"""From an encoded image to the tokens that go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from secateur.core.acts import ChoosesParts, Folds, Makes, Shrinks, Skips
from secateur.core.arrays import to_numpy
from secateur.core.budget import allocate
from secateur.core.complexity import one_picture
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method
from secateur.core.selection import Selection
from secateur.integrations.encoded import (
    BY_TOKEN,
    OF_PARTS,
    PLANES,
    TEXT,
    Encoded,
    Indices,
    Part,
    Tensor,
    Visual,
    spread,
)
from secateur.integrations.families.base import Family
from secateur.integrations.report import Picture
from secateur.integrations.text import Flags, Text


@dataclass(frozen=True, eq=False)
class Chosen:
    """What was chosen of one image or video."""

    kept: Indices
    """Ascending places among its features, separators included."""
    features: Tensor
    """All its features; kept ones with what was folded into them."""
    pictures: list[Picture]
    places: Indices
    """Ascending places of what goes on: `kept`, and those that stand for what a method made."""
    selections: tuple[Selection, ...] = ()
    """What the method chose of each part; empty where it was not asked."""


def wanted(method: Method, family: Family, encoder: object | None) -> frozenset[str]:
    """The fields of `Tokens` to gather for a method, and `PLANES` if they join its features.

    Raises
    ------
    ValueError
        When the method needs something the family does not have.
    """
    if isinstance(method, Shrinks):
        raise ValueError(
            f"{type(method).__name__} makes the picture smaller before it is encoded, which no "
            "attachment does: give what its `shrink(pixels, grid)` makes to the processor"
        )
    if isinstance(method, Folds) and method.folds:
        _check_folding(method, family)
    if not method.prunes_before:
        return frozenset()
    if isinstance(method, Skips) and method.skips and not family.skips:
        raise ValueError(
            f"{type(method).__name__} drops cells before they are encoded, and the encoder of "
            f"{family.name} does not do without them here"
        )
    method.check_attached()
    offers = family.offers | TEXT | ({"embeds"} if encoder is not None else frozenset())
    if isinstance(method, Makes) and method.makes and not family.projects:
        raise ValueError(
            f"{type(method).__name__} folds tokens before the projector, which {family.name} does "
            "not let it do here"
        )
    needed = method.needs & family.when_needed
    missing = sorted(method.needs_in_model - offers - needed)
    if missing:
        raise ValueError(
            f"{type(method).__name__} needs {', '.join(missing)}, which {family.name} does not "
            f"have (it offers {', '.join(sorted(offers))})"
        )
    deep = {PLANES} if method.looks_deep else frozenset()
    return ((method.needs | method.optional) & offers) | needed | deep


def _check_folding(method: Folds, family: Family) -> None:
    """Refuse a method that folds where what follows the encoder cannot go on from what is left."""
    name = type(method).__name__
    if family.joins:
        raise ValueError(
            f"{name} folds tokens inside the encoder; behind that of {family.name} {family.joins}, "
            "which takes all of them"
        )
    if not family.folds:
        raise ValueError(
            f"{name} folds tokens inside the encoder; what follows that of {family.name} does not "
            "do without them here"
        )
    if family.lays_out and not method.in_place:
        raise ValueError(
            f"{name} folds tokens inside the encoder; as published they stand one after the other, "
            f"and {family.name} lays them out in a grid, so take published=False"
        )


def skips(method: Method, family: Family) -> bool:
    """Whether what a method drops stays out of the family's encoder."""
    if not isinstance(method, Skips):
        return False
    return family.skips if method.skips is None else method.skips


def keep_all(visual: Visual) -> Chosen:
    """Nothing is dropped before the language model of what the encoder returned."""
    kept = np.ones(visual.size, dtype=bool)
    for part, chosen in zip(visual.parts, visual.chosen, strict=False):
        kept[part.index] = to_numpy(chosen.mask())
    for place, marked in visual.separators if visual.chosen else ():
        kept[place] = bool(kept[marked].any())
    pictures = [Picture(part.grid, part.index, kept[part.index]) for part in visual.parts]
    places = np.flatnonzero(kept)
    return Chosen(places, visual.features, pictures, places)


def choose_each(method: Method, encoded: Encoded) -> list[Chosen]:
    """What a method keeps of each image and video; all where it prunes elsewhere."""
    if not method.prunes_before:
        return [keep_all(visual) for visual in encoded.visuals]
    return [
        choose(method, visual, encoded.wants, encoded.text_of(number))
        for number, visual in enumerate(encoded.visuals)
    ]


def tokens_of(encoded: Encoded) -> Iterator[Tokens]:
    """What a method looks at, part after part of each image and video."""
    for number, visual in enumerate(encoded.visuals):
        for part in visual.parts:
            yield _tokens(visual, part, encoded.wants, encoded.text_of(number))


@torch.no_grad()
def choose(
    method: Method,
    visual: Visual,
    wants: frozenset[str],
    text: Text | Sequence[Text] | None,
) -> Chosen:
    """Let a method choose from the parts of an image or video, by one text or by one a part."""
    if visual.padded and isinstance(method, ChoosesParts) and method.sees_padding:
        visual = replace(visual, parts=visual.padded)
    texts: Sequence[Text | None]
    if isinstance(text, Sequence):
        texts = text
    else:  # moved once, so that frames know that they share it
        texts = [None if text is None else _beside(text, visual.features)] * len(visual.parts)
    tokens = [
        _tokens(visual, part, wants, own) for part, own in zip(visual.parts, texts, strict=True)
    ]
    _refuse_lost(tokens)
    with one_picture() if visual.modality == "image" else nullcontext():
        groups = _groups(method, visual, tokens)
    kept = np.zeros(visual.size, dtype=bool)
    goes_on = np.zeros(visual.size, dtype=bool)
    features = visual.features
    pictures = []
    for parts, given, selection in groups:
        index = np.concatenate([part.index for part in parts])
        own = np.zeros(len(index), dtype=bool)
        own[to_numpy(selection.sorted())] = True
        kept[index[own & (index >= 0)]] = True
        scores = None if selection.scores is None else to_numpy(selection.scores)
        start = 0
        for part in parts:
            stop = start + len(part.index)
            told = None if scores is None else scores[start:stop]
            pictures.append(Picture(part.grid, part.index, own[start:stop], told))
            start = stop
        places, standing = _standing(method, visual, index, given, selection, own)
        goes_on[places] = True
        if standing is not None:
            where = torch.from_numpy(places).to(features.device)
            features = features.index_copy(0, where, standing.to(features))
    for place, marked in visual.separators:
        kept[place] = goes_on[place] = bool(goes_on[marked].any())
    return Chosen(
        np.flatnonzero(kept),
        features,
        pictures,
        np.flatnonzero(goes_on),
        tuple(selection for _, _, selection in groups),
    )


PLACES = {
    "features": "the vision tower and projector",
    "attention": "a layer of the vision tower",
    "attention_shallow": "a layer of the vision tower near to the image",
    "keys": "a layer of the vision tower",
    "states": "the vision tower, before the projector,",
    "class_state": "the vision tower, before the projector,",
    "embeds": "the vision tower's projection into the text encoder's space",
    "text": "the text encoder, or the input embeddings of the prompt,",
    "text_global": "the text encoder, or the input embeddings of the prompt,",
}
"""Where in a model inputs come from, for messages."""


def _refuse_lost(tokens: Sequence[Tokens]) -> None:
    """Refuse NaN and infinity, from which no choice could be trusted; the device is asked once."""
    names, lost = [], []
    for each in tokens:
        for name in PLACES:
            given = getattr(each, name)
            several = isinstance(given, (list, tuple))
            for place, x in enumerate(given if several else [given]):
                if x is None:
                    continue
                mask = each.text_mask[place] if several and each.text_mask else each.text_mask
                if name == "text" and mask is not None:
                    x = x[mask]
                names.append(name)
                lost.append(~torch.isfinite(x).all())
    found = torch.stack([each.to(lost[0].device) for each in lost]).tolist()
    for name, is_lost in zip(names, found, strict=True):
        if is_lost:
            raise ValueError(
                f"{name}: {PLACES[name]} gave NaN or infinity, so that no token can be chosen; "
                "half precision may have overflowed: load the model in bfloat16 or float32"
            )


Group = tuple[Sequence[Part], Tokens, Selection]
"""Parts that one selection speaks of, what it was chosen from, and it."""


def _groups(method: Method, visual: Visual, tokens: Sequence[Tokens]) -> list[Group]:
    """Choose from the parts: a video as a whole, crops that share a budget, or each by itself."""
    if visual.chosen:
        left = list(visual.chosen)
        if isinstance(method, Folds):
            left = [_within(method, *each) for each in zip(tokens, left, strict=True)]
        return _by_part(visual, tokens, left)
    alike = len({part.grid for part in visual.parts}) == 1
    first = tokens[0]
    same = all(each.text is first.text for each in tokens)
    if visual.modality == "video" and alike and same and first.pixels is None:
        video = _joined(tokens)
        return [(visual.parts, video, method.select(video, check_finite=False).row())]
    if isinstance(method, ChoosesParts) and not visual.crops:
        method = method.alone
    if visual.crops and isinstance(method, ChoosesParts):
        selections = method.select_parts(tokens, visual.crops)
    elif visual.crops:
        selections = _crops(method, tokens, visual.crops)
    elif alike and len(tokens) > 1:
        together = method.select(_stacked(tokens), check_finite=False)
        selections = [together.row(frame) for frame in range(len(tokens))]
    else:
        selections = method.select(tokens, check_finite=False)
    return _by_part(visual, tokens, selections)


def _by_part(
    visual: Visual, tokens: Sequence[Tokens], selections: Sequence[Selection]
) -> list[Group]:
    return [
        ([part], each, selection)
        for part, each, selection in zip(visual.parts, tokens, selections, strict=True)
    ]


def _within(method: Method, tokens: Tokens, left: Selection) -> Selection:
    """What a method chooses of the tokens that are left, told of all of them."""
    places = left.sorted()
    some: dict[str, Any] = {"grid": None}
    for name in ("features", *BY_TOKEN):
        if getattr(tokens, name) is not None:
            some[name] = getattr(tokens, name)[places]
    chosen = method.select(tokens.with_(**some), check_finite=False)
    info = {name: spread(x, places, left.size) for name, x in chosen.info.items()}
    scores = None if chosen.scores is None else spread(chosen.scores, places, left.size)
    return Selection.of(places[chosen.sorted()], left.size, scores=scores, info=info)


def _joined(frames: Sequence[Tokens]) -> Tokens:
    """The frames of one video, one after the other."""
    changes: dict[str, Any] = {"frames": len(frames)}
    for name in ("features", *BY_TOKEN):
        if getattr(frames[0], name) is not None:
            changes[name] = torch.cat([getattr(each, name) for each in frames])
    return frames[0].with_(**changes)


def _standing(
    method: Method, visual: Visual, index: Indices, tokens: Tokens, chosen: Selection, own: Flags
) -> tuple[Indices, Tensor | None]:
    """Places that go on of those at `index`, and the features there where they are others."""
    if own.all():
        return index[index >= 0], None
    if isinstance(method, Makes) and method.makes:
        assert visual.project is not None
        made = visual.project(method.make(tokens, chosen).to(tokens.states))
        # What is more than the kept tokens stands for the first of the others.
        spare = np.flatnonzero(~own)[: len(made) - int(own.sum())]
        return np.sort(index[np.concatenate([np.flatnonzero(own), spare])]), made
    places = index[own]
    there = places >= 0
    if chosen.folded is None and chosen.shares is None:
        return places[there], None
    padded = bool((index < 0).any())
    features = tokens.features if padded else visual.features[torch.from_numpy(index)]
    return places[there], chosen.merge(features)[torch.from_numpy(there)]


def _tokens(visual: Visual, part: Part, wants: frozenset[str], text: Text | None) -> Tokens:
    if part.features is None:
        places = torch.from_numpy(part.index).to(visual.features.device)
        features = visual.features.detach()[places]
        if PLANES in wants:
            planes = (plane.detach()[places] for plane in visual.planes)
            features = torch.cat([features, *planes], 1)
    else:
        features = part.features.detach()
    given: dict[str, Any] = {
        name: getattr(part, name)
        for name in OF_PARTS
        if name in wants and getattr(part, name) is not None
    }
    given = {name: x.to(features.device) for name, x in given.items()}
    if text is not None:
        text = _beside(text, features)
        given |= {"text": text.tokens, "text_global": text.whole, "text_mask": text.mask}
    return Tokens(features=features, grid=part.grid, **given)


def _beside(text: Text, features: Tensor) -> Text:
    """A text on the device of features, in their dtype."""
    return Text(*(_moved(x, features) for x in (text.tokens, text.whole, text.mask)))


def _moved(x: Any, like: Tensor) -> Any:
    if isinstance(x, (list, tuple)):
        moved = [_moved(each, like) for each in x]
        return x if all(new is old for new, old in zip(moved, x, strict=True)) else moved
    if x is None or x.dtype == torch.bool:
        return x if x is None else x.to(like.device)
    return x.to(like.device, like.dtype)


def _stacked(tokens: Sequence[Tokens]) -> Tokens:
    """Frames of one video, or images of one size, as a batch."""
    first = tokens[0]
    together: dict[str, Any] = {"grid": first.grid}
    for name in ("features", *OF_PARTS):
        if getattr(first, name) is not None:
            together[name] = torch.stack([getattr(each, name) for each in tokens])
    if all(each.text is first.text for each in tokens):
        for name in ("text", "text_global", "text_mask"):
            together[name] = _repeated(getattr(first, name), len(tokens))
    else:
        lengths = torch.tensor([each.text.shape[0] for each in tokens], device=first.text.device)
        longest = int(lengths.max())
        together["text"] = torch.nn.utils.rnn.pad_sequence(
            [each.text for each in tokens], batch_first=True
        )
        together["text_global"] = torch.stack([each.text_global for each in tokens])
        together["text_mask"] = torch.arange(longest, device=lengths.device) < lengths[:, None]
    return Tokens(**together)


def _repeated(x: Any, times: int) -> Any:
    if isinstance(x, (list, tuple)):
        return [_repeated(each, times) for each in x]
    return None if x is None else x.expand(times, *x.shape)


def _crops(method: Method, crops: Sequence[Tokens], pictures: int) -> list[Selection]:
    """Choose from crops of one image, which share K times `keep` tokens, K the `pictures`.

    Crops get tokens in proportion to the sums of what the method makes of each (`Method.weigh`),
    as EADP's published "importance"; in proportion to their sizes where it does not say.
    """
    sizes = np.array([each.size for each in crops])
    total = method.budget_of_parts(int(sizes.sum()), len(crops), pictures)
    weights = sizes.astype(np.float64)
    if total < sizes.sum():
        own = [method.weigh(each.without_gradients()) for each in crops]
        known = [to_numpy(each) for each in own if each is not None]
        if len(known) == len(crops) and all((each >= 0).all() for each in known):
            weights = np.array([each.sum(dtype=np.float64) for each in known])
    budgets = allocate(weights, total, minimum=1, maximum=sizes)
    return [
        _with_budget(method, int(budget)).select(each, check_finite=False)
        for each, budget in zip(crops, budgets, strict=True)
    ]


def _with_budget(method: Method, keep: int) -> Method:
    return replace(method, keep=keep)
