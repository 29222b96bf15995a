"""Shortening a prompt: encode once, choose, and drop the rest from all that is as long as it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from secateur.core.methods.base import Method
from secateur.core.selection import Selection
from secateur.integrations.choosing import Chosen, choose, keep_all, wanted
from secateur.integrations.encoded import TEXT, Indices, Modality, Positions, Tensor, Visual, split
from secateur.integrations.observing import requests_of
from secateur.integrations.pixels import Pixels
from secateur.integrations.report import Report, scores_of
from secateur.integrations.text import Flags, Guidance
from secateur.integrations.transformers.models import Adapter


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
    report: Report

    @property
    def length(self) -> int:
        """T."""
        return int(self.mask.shape[1])


class Stopwatch:
    """Wall time by stage; waits for the device, so that a stage is charged for its own work."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.spent: dict[str, float] = {}
        self._last = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()

    def lap(self, stage: str) -> None:
        """Charge the time since the last lap to a stage."""
        now = self._now()
        self.spent[stage] = self.spent.get(stage, 0.0) + 1000.0 * (now - self._last)
        self._last = now


def has_visuals(family: Adapter, inputs: Mapping[str, Any]) -> bool:
    """Whether images or videos come with these inputs."""
    return any(
        inputs.get(name) is not None and len(inputs[name]) > 0
        for name in ("pixel_values", "pixel_values_videos")
    )


def compact(
    model: Any,
    family: Adapter,
    method: Method,
    inputs: Mapping[str, Any],
    *,
    guidance: Guidance,
    pixels: Pixels,
    positions: Positions,
    generating: bool,
) -> Prompt:
    """Encode the images and videos of a batch of prompts, choose, and shorten the prompts."""
    ids = inputs.get("input_ids")
    if ids is None:
        raise ValueError(
            "input_ids: expected beside pixel_values, because their placeholders tell where "
            "visual tokens stand; inputs_embeds alone cannot be pruned"
        )
    embedding = model.get_input_embeddings()
    watch = Stopwatch(embedding.weight.device)
    wants = wanted(method, family.family, guidance.encoder)
    requests = requests_of(method)
    visuals = family.encode(model, inputs, wants - TEXT, guidance.encoder, pixels, requests)
    watch.lap("encode")

    shown = ids.detach().cpu().numpy()
    given_mask = inputs.get("attention_mask")
    if given_mask is None:
        real = np.ones(shown.shape, dtype=bool)
    elif given_mask.ndim == 2:
        real = given_mask.detach().cpu().numpy().astype(bool)
    else:
        raise ValueError(f"attention_mask: expected shape (B, T), got {tuple(given_mask.shape)}")
    placed = _place(shown, visuals, family.placeholders(model))
    visual = np.zeros(shown.shape, dtype=bool)
    for row, columns in placed:
        visual[row, columns] = True
    text = guidance.find(shown, real, visual)
    guides = guidance.texts(ids, text) if wants & TEXT else None
    chosen = [
        choose(method, each, wants, guides[row] if guides is not None else None)
        if method.prunes_before
        else keep_all(each)
        for each, (row, _) in zip(visuals, placed, strict=True)
    ]
    watch.lap("choose")

    keep = np.ones(shown.shape, dtype=bool)
    choosable = np.zeros(shown.shape, dtype=bool)
    image, place = (np.full(shown.shape, -1, dtype=np.int64) for _ in range(2))
    images: list[list[int]] = [[] for _ in shown]
    selections: list[list[Selection]] = [[] for _ in shown]
    for each, picks, (row, columns) in zip(visuals, chosen, placed, strict=True):
        keep[row, columns] = False
        keep[row, columns[picks.places]] = True
        image[row, columns] = len(images[row])
        for part in each.parts:
            choosable[row, columns[part.index]] = True
            place[row, columns[part.index]] = place[row].max() + 1 + np.arange(len(part.index))
        images[row].append(sum(len(part.index) for part in each.parts))
        selections[row] += picks.selections
    given_columns, right = _layout(keep, real)
    device = embedding.weight.device
    gather = torch.from_numpy(given_columns).to(device)
    safe, padding = gather.clamp(min=0), gather < 0

    embeds = embedding(ids.to(device))
    for name in family.family.modalities:
        features = [
            picks.features
            for each, picks in zip(visuals, chosen, strict=True)
            if each.modality == name
        ]
        if features:
            where = torch.zeros(shown.shape, dtype=torch.bool)
            for each, (row, columns) in zip(visuals, placed, strict=True):
                if each.modality == name:
                    where[row, torch.from_numpy(columns)] = True
            filled = torch.cat(features, dim=0).to(device, embeds.dtype)
            embeds = embeds.masked_scatter(where.to(device)[..., None], filled)
    planes = _planes(visuals, chosen, placed, len(shown))
    shortened = embeds.gather(1, safe[..., None].expand(-1, -1, embeds.shape[-1]))
    if bool((given_columns < 0).any()):
        shortened = shortened.masked_fill(padding[..., None], 0.0)

    there = given_columns >= 0
    rows = np.arange(len(shown))[:, None]
    at = np.where(there, given_columns, 0)
    mask = there & real[rows, at]
    numbered = family.position_ids(model, inputs, given_mask, generating=generating).to(device)
    numbered = numbered.expand(*numbered.shape[:-2], len(shown), -1)
    places = safe.expand((*numbered.shape[:-1], safe.shape[1]))
    numbered = numbered.gather(-1, places).masked_fill(padding, 0)
    there_now = torch.from_numpy(mask).to(device)
    if positions == "compact":
        shorter = torch.from_numpy(~keep.all(axis=1, keepdims=True)).to(device)
        numbered = torch.where(shorter, _counted(there_now), numbered)
    family.remember(model, numbered, there_now)
    watch.lap("compact")
    report = _report(visuals, chosen, placed, given_columns, mask, real, watch.spent)
    return Prompt(
        embeds=shortened,
        mask=mask,
        positions=numbered,
        columns=given_columns,
        visual=visual[rows, at] & there,
        text=text[rows, at] & there,
        choosable=choosable[rows, at] & there,
        images=images,
        image=np.where(there, image[rows, at], -1),
        place=np.where(there, place[rows, at], -1),
        chosen=selections,
        planes=planes,
        before=shown.shape[1],
        right=right,
        report=report,
    )


def _place(
    ids: Indices, visuals: Sequence[Visual], placeholders: Mapping[Modality, int]
) -> list[tuple[int, Indices]]:
    """The prompt and the columns of each image or video, by its placeholders."""
    found: dict[int, tuple[int, Indices]] = {}
    for name, token in placeholders.items():
        rows, columns = np.nonzero(ids == token)
        own = list(split(visuals, name))
        expected = sum(each.size for each in own)
        if own and expected != len(rows):
            raise ValueError(
                f"{name} placeholders and features disagree: the prompts have {len(rows)} "
                f"placeholder tokens, the {len(own)} {name}s {expected} features "
                f"({', '.join(str(each.size) for each in own[:8])}{', ...' if own[8:] else ''})"
            )
        start = 0
        for each in own:
            stop = start + each.size
            if rows[start] != rows[stop - 1]:
                raise ValueError(
                    f"{name} placeholders and features disagree: an {name} of {each.size} features "
                    f"would begin in prompt {rows[start]} and end in prompt {rows[stop - 1]}"
                )
            found[id(each)] = (int(rows[start]), columns[start:stop])
            start = stop
    return [found[id(each)] for each in visuals]


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
    visuals: Sequence[Visual],
    chosen: Sequence[Chosen],
    placed: Sequence[tuple[int, Indices]],
    columns: Indices,
    mask: Flags,
    real: Flags,
    spent: dict[str, float],
) -> Report:
    order = sorted(range(len(visuals)), key=lambda n: (placed[n][0], int(placed[n][1][0])))
    after = int(mask.sum(axis=1).max())
    return Report(
        kept=[chosen[n].kept for n in order],
        scores=[scores_of(visuals[n].size, chosen[n].pictures) for n in order],
        grids=[[part.grid for part in visuals[n].parts] for n in order],
        pictures=[chosen[n].pictures for n in order],
        rows=[placed[n][0] for n in order],
        modalities=[visuals[n].modality for n in order],
        positions=np.where(mask, columns, -1),
        prompt_length=(int(real.sum(axis=1).max()), after),
        milliseconds=spent,
        final_length=after,
    )
