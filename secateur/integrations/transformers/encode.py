"""The first stage: prompts as a model reads them, with everything a method looks at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from secateur.core.acts import Folds
from secateur.core.inputs import REQUESTS, Request
from secateur.core.methods.base import Method, Reading
from secateur.integrations.choosing import skips
from secateur.integrations.encoded import TEXT, Encoded, Indices, Modality, Visual, split
from secateur.integrations.pixels import Pixels
from secateur.integrations.text import Flags, Guidance, TextEncoder
from secateur.integrations.transformers.internals import check_release, compiled_part, device_of
from secateur.integrations.transformers.models import (
    Adapter,
    UnsupportedModelError,
    family_of,
    inner_model,
)

PIXELS = ("pixel_values", "pixel_values_videos")
"""The arguments of `forward` that bring images and videos."""


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


@dataclass(frozen=True, eq=False)
class Reader:
    """What it takes to read a model's prompts, made ready once and used for each of them."""

    model: Any
    family: Adapter
    guidance: Guidance
    pixels: Pixels

    @classmethod
    def of(
        cls,
        model: Any,
        processor: Any = None,
        text_encoder: Any = None,
        instruction: str | list[str] | None = None,
        reads: Reading = "words",
    ) -> Reader:
        """For a model; the arguments are those of `encode`, and how a method reads texts."""
        family = family_of(model)
        check_release()
        encoder = TextEncoder.of(text_encoder, reads, device_of(model.get_input_embeddings()))
        if encoder is not None:
            encoder.check(family.tower(model), family.family.name)
        guidance = Guidance(model, family, processor, encoder, instruction)
        return cls(model, family, guidance, Pixels.of(family.family, processor))

    def read(
        self,
        inputs: Mapping[str, Any],
        wants: frozenset[str],
        requests: Mapping[str, Request] = REQUESTS,
        method: Method | None = None,
    ) -> Encoded:
        """Run the encoder once over the images and videos of a batch of prompts.

        With what a method drops before it and folds inside it.
        """
        ids = inputs.get("input_ids")
        if ids is None:
            raise ValueError(
                "input_ids: expected beside pixel_values, because their placeholders tell where "
                "visual tokens stand; inputs_embeds alone cannot be pruned"
            )
        part = compiled_part(self.model, itself=False)
        if part is not None:
            raise UnsupportedModelError(
                self.model,
                f"{part} in it was compiled, where nothing can be observed or dropped; compile "
                "the whole model, after attaching",
            )
        watch = Stopwatch(device_of(self.model.get_input_embeddings()))
        visuals: list[Visual] = []
        skipping = method is not None and skips(method, self.family.family)
        if has_visuals(inputs) and method is not None and skipping:
            visuals = self.family.encode_some(self.model, inputs, method.select, self.pixels)
        elif has_visuals(inputs) and isinstance(method, Folds) and method.folds:
            visuals = self.family.encode_folding(self.model, inputs, wants - TEXT, method, requests)
        elif has_visuals(inputs):
            visuals = self.family.encode(
                self.model, inputs, wants - TEXT, self.guidance.encoder, self.pixels, requests
            )
        watch.lap("encode")
        shown = ids.detach().cpu().numpy()
        mask = inputs.get("attention_mask")
        if mask is None:
            real = np.ones(shown.shape, dtype=bool)
        elif mask.ndim == 2:
            real = mask.detach().cpu().numpy().astype(bool)
        else:
            raise ValueError(f"attention_mask: expected shape (B, T), got {tuple(mask.shape)}")
        places = _places(self.family.standing(self.model, shown), visuals)
        visual = np.zeros(shown.shape, dtype=bool)
        for row, columns in places:  # what stands between its tiles or frames is nobody's words
            visual[row, columns[0] : columns[-1] + 1] = True
        text = self.guidance.find(shown, real, visual)
        texts = self.guidance.texts(ids, text) if wants & TEXT else None
        watch.lap("choose")
        return Encoded(
            visuals=visuals,
            places=places,
            real=real,
            text=text,
            texts=texts,
            wants=wants,
            milliseconds=watch.spent,
        )


def encode(
    model: Any,
    inputs: Mapping[str, Any],
    processor: Any = None,
    text_encoder: Any = None,
    *,
    wants: Iterable[str] = (),
    requests: Mapping[str, Request] = REQUESTS,
    instruction: str | list[str] | None = None,
    method: Method | None = None,
) -> Encoded:
    """Encode the images and videos of prompts, and observe on the way what methods look at.

    Parameters
    ----------
    model
        As in `attach`; it may be attached, encoding asks nothing of that.
    inputs
        What the processor returned.
    processor, text_encoder, instruction
        As in `attach`.
    wants
        The fields of `Tokens` to gather beside features and grid, such as ``"attention"``,
        ``"pixels"`` and ``"text"``: `method.needs | method.optional` says what a method wants.

    requests
        What to observe for each of these fields; `requests_of(method)` says what a method asks.
    method
        One that drops cells before the encoder or folds inside it (`core.acts`: `Skips`, `Folds`).

    Returns
    -------
    Encoded
        The images in order, then the videos, with their parts, and where all that stands.

    Raises
    ------
    UnsupportedModelError
        For a model nobody taught us.
    ValueError
        When the family cannot give what is wanted, or placeholders do not fit the images.

    Examples
    --------
    >>> encoded = encode(model, inputs, wants={"attention"})        # doctest: +SKIP
    >>> chosen = choose_each(sc.TopK(keep=64), encoded)             # doctest: +SKIP
    >>> shorten(model, inputs, encoded, chosen).embeds.shape        # doctest: +SKIP
    """
    model = inner_model(model)
    reader = Reader.of(model, processor, text_encoder, instruction)
    own = {"embeds"} if reader.guidance.encoder is not None else frozenset[str]()
    family = reader.family.family
    offers = family.offers | family.when_needed | TEXT | own
    asked = frozenset(wants)
    if asked - offers:
        raise ValueError(
            f"wants: {family.name} does not have {', '.join(sorted(asked - offers))} "
            f"(it offers {', '.join(sorted(offers))})"
        )
    if not has_visuals(inputs):
        raise ValueError("inputs: expected pixel_values or pixel_values_videos")
    return reader.read(inputs, asked, requests, method)


def has_visuals(inputs: Mapping[str, Any]) -> bool:
    """Whether images or videos come with these inputs."""
    return any(inputs.get(name) is not None and len(inputs[name]) > 0 for name in PIXELS)


def _places(
    standing: Mapping[Modality, Flags], visuals: Sequence[Visual]
) -> list[tuple[int, Indices]]:
    """The prompt and the columns of each image or video, by its placeholders."""
    found: dict[int, tuple[int, Indices]] = {}
    for name, marked in standing.items():
        rows, columns = np.nonzero(marked)
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
