"""The last stage: dropping what was not chosen from all that is as long as the prompt."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from secateur.core.selection import Selection
from secateur.integrations.choosing import Chosen
from secateur.integrations.encoded import Encoded, Indices, Positions, Tensor, Visual
from secateur.integrations.report import Report, scores_of
from secateur.integrations.text import Flags
from secateur.integrations.transformers.encode import Stopwatch
from secateur.integrations.transformers.internals import device_of
from secateur.integrations.transformers.models import Adapter, family_of


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of prompts after compaction; T is its new length.

    Attributes
    ----------
    embeds
        (B, T, D), visual features in place.
    mask
        True (B, T) at real tokens.
    positions
        (B, T), or (P, B, T) where the family has several planes.
    columns
        (B, T) columns of the unpruned prompt, -1 at padding.
    visual, text
        True (B, T) at visual tokens, separators included, and at the instruction's.
    choosable
        True (B, T) at the visual tokens that pruning inside the language model may drop.
    images
        Visual tokens of each image of each prompt before any pruning, separators left out.
    image
        (B, T) which image of its prompt a visual token belongs to, -1 elsewhere.
    place
        (B, T) the number of a choosable token among all of its prompt, part after part as
        `chosen` lists them, -1 elsewhere.
    chosen
        What the method chose of each prompt's images, part by part.
    planes
        For each of the first layers, the features added at each row's visual tokens.
    before
        The length of the unpruned prompt.
    right
        Whether padding is on the right.
    both_ways
        The kinds of layers of the language model in which the tokens of an image see each other
        both ways.
    beside
        What else the language model reads of each token, as arguments (B, T, ...).
    """

    embeds: Tensor
    mask: Flags
    positions: Tensor
    columns: Indices
    visual: Flags
    text: Flags
    choosable: Flags
    images: list[list[int]]
    image: Indices
    place: Indices
    chosen: list[list[Selection]]
    planes: list[list[Tensor]]
    before: int
    right: bool
    both_ways: frozenset[str]
    beside: dict[str, Tensor]
    report: Report

    @property
    def length(self) -> int:
        """T."""
        return int(self.mask.shape[1])


def shorten(
    model: Any,
    inputs: Mapping[str, Any],
    encoded: Encoded,
    chosen: Sequence[Chosen],
    positions: Positions | None = None,
    *,
    generating: bool = True,
) -> Prompt:
    """Drop from prompts what was not chosen, from all that is as long as they are.

    Nothing is written into the model: decoding goes on from the positions that are returned.

    Parameters
    ----------
    model, positions
        As in `attach`.
    inputs
        What the processor returned.
    encoded
        These inputs, encoded.
    chosen
        What to keep of each image and video, as `choose_each` says.
    generating
        Number tokens as `generate` does, which does not count padding; else as `forward` does.
    """
    family = family_of(model)
    ids = inputs["input_ids"]
    embedding = model.get_input_embeddings()
    watch = Stopwatch(device_of(embedding))
    marks = _Marks.of(encoded, chosen, tuple(ids.shape))
    columns, right = _layout(marks.keep, encoded.real)
    gather = torch.from_numpy(columns).to(device_of(embedding))
    safe, padding = gather.clamp(min=0), gather < 0

    embeds = _embedded(embedding, ids, encoded, chosen)
    embeds = embeds.gather(1, safe[..., None].expand(-1, -1, embeds.shape[-1]))
    if bool((columns < 0).any()):
        embeds = embeds.masked_fill(padding[..., None], 0.0)

    there = columns >= 0
    rows = np.arange(len(columns))[:, None]
    at = np.where(there, columns, 0)
    mask = there & encoded.real[rows, at]
    numbered = family.position_ids(
        model, inputs, inputs.get("attention_mask"), generating=generating
    ).to(gather.device)
    numbered = numbered.expand(*numbered.shape[:-2], len(columns), -1)
    numbered = numbered.gather(-1, safe.expand((*numbered.shape[:-1], safe.shape[1])))
    numbered = numbered.masked_fill(padding, 0)
    if (positions or family.family.positions) == "compact":
        shorter = torch.from_numpy(~marks.keep.all(axis=1, keepdims=True)).to(gather.device)
        counted = _counted(torch.from_numpy(mask).to(gather.device))
        numbered = torch.where(shorter, counted, numbered)
    planes = _planes(encoded.visuals, chosen, encoded.places, len(columns))
    watch.lap("compact")
    spent = {**encoded.milliseconds, **watch.spent}
    return Prompt(
        embeds=embeds,
        mask=mask,
        positions=numbered,
        columns=columns,
        visual=marks.visual[rows, at] & there,
        text=encoded.text[rows, at] & there,
        choosable=marks.choosable[rows, at] & there,
        images=marks.images,
        image=np.where(there, marks.image[rows, at], -1),
        place=np.where(there, marks.place[rows, at], -1),
        chosen=marks.chosen,
        planes=planes,
        before=int(ids.shape[1]),
        right=right,
        both_ways=frozenset() if inputs.get(family.types) is None else family.both_ways(model),
        beside={
            name: x[torch.arange(len(x), device=x.device)[:, None], safe.to(x.device)]
            for name, x in family.beside(model, ids).items()
        },
        report=_report(encoded, chosen, columns, mask, spent),
    )


def as_arguments(family: Adapter, prompt: Prompt, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call as long as the shortened prompt, without what only images need."""
    dropped = {"mm_token_type_ids", "token_type_ids", *family.visual_inputs} - {family.types}
    kept = {name: x for name, x in given.items() if name not in dropped} | prompt.beside
    device = prompt.embeds.device
    kept["attention_mask"] = torch.from_numpy(prompt.mask).to(device).long()
    kept["position_ids"] = prompt.positions
    for name, blank in (("labels", -100), (family.types, 0)):
        if (whole := kept.get(name)) is not None:
            columns = torch.from_numpy(prompt.columns).to(whole.device)
            shortened = whole.gather(1, columns.clamp(min=0))
            kept[name] = shortened.masked_fill(columns < 0, blank)
    return kept


def short_ids(family: Adapter, model: Any, ids: Tensor, prompt: Prompt) -> Tensor:
    """Shortened `input_ids`, for families whose `generate` takes visual features beside them."""
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        raise ValueError(
            "prune_inputs: this transformers takes no mm_encoder_outputs, without which "
            f"{family.family.name} cannot be handed what was kept; use attach(), or "
            "transformers 5.23"
        )
    columns = torch.from_numpy(prompt.columns).to(ids.device)
    pad = model.generation_config.pad_token_id
    return ids.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, pad or 0)


@dataclass(frozen=True, eq=False)
class _Marks:
    """What each token (B, T) of the unpruned prompts is; see `Prompt`."""

    keep: Flags
    visual: Flags
    choosable: Flags
    image: Indices
    place: Indices
    images: list[list[int]]
    chosen: list[list[Selection]]

    @classmethod
    def of(cls, encoded: Encoded, chosen: Sequence[Chosen], shape: tuple[int, ...]) -> _Marks:
        keep = np.ones(shape, dtype=bool)
        visual, choosable = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        image, place = (np.full(shape, -1, dtype=np.int64) for _ in range(2))
        images: list[list[int]] = [[] for _ in range(shape[0])]
        selections: list[list[Selection]] = [[] for _ in range(shape[0])]
        for each, picks, (row, columns) in zip(
            encoded.visuals, chosen, encoded.places, strict=True
        ):
            visual[row, columns] = True
            keep[row, columns] = False
            keep[row, columns[picks.places]] = True
            image[row, columns] = len(images[row])
            for part in each.parts:
                choosable[row, columns[part.index]] = True
                counted = place[row].max() + 1 + np.arange(len(part.index))
                place[row, columns[part.index]] = counted
            images[row].append(sum(len(part.index) for part in each.parts))
            selections[row] += picks.selections
        return cls(keep, visual, choosable, image, place, images, selections)


def _embedded(embedding: Any, ids: Tensor, encoded: Encoded, chosen: Sequence[Chosen]) -> Tensor:
    """Embeddings (B, T, D) of the unpruned prompts, features in their places."""
    embeds = embedding(ids.to(device_of(embedding)))
    for name in dict.fromkeys(each.modality for each in encoded.visuals):
        features = []
        where = torch.zeros(ids.shape, dtype=torch.bool)
        for each, picks, (row, columns) in zip(
            encoded.visuals, chosen, encoded.places, strict=True
        ):
            if each.modality == name:
                features.append(picks.features)
                where[row, torch.from_numpy(columns)] = True
        filled = torch.cat(features, dim=0).to(embeds.device, embeds.dtype)
        embeds = embeds.masked_scatter(where.to(embeds.device)[..., None], filled)
    return embeds


def _layout(keep: Flags, real: Flags) -> tuple[Indices, bool]:
    """Columns (B, T) of what stays, -1 at padding, and whether padding is on the right.

    Where nothing is dropped, nothing moves. Else rows are as short as the longest needs.
    """
    right = bool((~real[:, -1]).any())
    if keep.all():
        return np.broadcast_to(np.arange(keep.shape[1]), keep.shape).copy(), right
    stays = keep & real
    length = int(stays.sum(axis=1).max())
    laid = np.full((len(keep), length), -1, dtype=np.int64)
    for row, own in enumerate(stays):
        columns = np.flatnonzero(own)
        if right:
            laid[row, : len(columns)] = columns
        else:
            laid[row, length - len(columns) :] = columns
    return laid, right


def _planes(
    visuals: Sequence[Visual],
    chosen: Sequence[Chosen],
    placed: Sequence[tuple[int, Indices]],
    rows: int,
) -> list[list[Tensor]]:
    """For each layer that adds visual features, those kept, by prompt and in prompt order."""
    layers = max((len(each.planes) for each in visuals), default=0)
    found: list[list[Tensor]] = []
    for layer in range(layers):
        by_row: list[list[tuple[Indices, Tensor]]] = [[] for _ in range(rows)]
        for each, picks, (row, columns) in zip(visuals, chosen, placed, strict=True):
            plane = each.planes[layer]
            kept = torch.from_numpy(picks.kept).to(plane.device)
            by_row[row].append((columns[picks.kept], plane[kept]))
        found.append([_in_prompt_order(own) for own in by_row])
    return found


def _in_prompt_order(parts: Sequence[tuple[Indices, Tensor]]) -> Tensor:
    """Features of several images or videos of one prompt; frames of two may take turns."""
    if not parts:
        return None
    columns = np.concatenate([own for own, _ in parts])
    features = torch.cat([x for _, x in parts], dim=0)
    order = np.argsort(columns, kind="stable")
    if (order == np.arange(len(order))).all():
        return features
    return features[torch.from_numpy(order).to(features.device)]


def _counted(mask: Tensor) -> Tensor:
    """Positions 0, 1, ... of real tokens."""
    return (mask.long().cumsum(-1) - 1).masked_fill(~mask, 0)


def _report(
    encoded: Encoded,
    chosen: Sequence[Chosen],
    columns: Indices,
    mask: Flags,
    spent: dict[str, float],
) -> Report:
    visuals, placed = encoded.visuals, encoded.places
    order = sorted(range(len(visuals)), key=lambda n: (placed[n][0], int(placed[n][1][0])))
    after = int(mask.sum(axis=1).max())
    return Report(
        kept=[chosen[n].kept for n in order],
        scores=[scores_of(visuals[n].size, chosen[n].pictures) for n in order],
        grids=[[part.grid for part in chosen[n].pictures] for n in order],
        pictures=[chosen[n].pictures for n in order],
        rows=[placed[n][0] for n in order],
        modalities=[visuals[n].modality for n in order],
        positions=np.where(mask, columns, -1),
        prompt_length=(int(encoded.real.sum(axis=1).max()), after),
        milliseconds=spent,
        final_length=after,
        columns=[placed[n][1] for n in order],
    )
