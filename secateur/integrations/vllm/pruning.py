"""What the models of all families share: passes of the tower, and choices after each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)

from secateur.integrations.choosing import choose, wanted
from secateur.integrations.encoded import TEXT, Visual
from secateur.integrations.text import Text
from secateur.integrations.vllm.counters import Counters
from secateur.integrations.vllm.counting import configured, pixels_of
from secateur.integrations.vllm.models import ROWS
from secateur.integrations.vllm.passes import bounds, cut, moved
from secateur.integrations.vllm.requests import IDS, PIXELS


def over_heads(share: Any, ranks: int) -> Any:
    """The mean over all heads, of which each of the `ranks` of a tensor-parallel tower has some."""
    if ranks == 1:
        return share
    return tensor_model_parallel_all_reduce(share.contiguous()) / ranks


def all_heads(keys: Any, width: int) -> Any:
    """Keys (..., width) of all heads."""
    if keys.shape[-1] == width:
        return keys
    return tensor_model_parallel_all_gather(keys.contiguous())


class Pruned:
    """A model of vLLM with a method between its vision side and its language model."""

    config: Any
    language_model: Any
    kind = ""
    """The model type whose method is served."""

    def prepare(self, vllm_config: Any) -> None:
        """Read the method and what it wants to see; called once the model is built."""
        self.method = configured(self.config, self.kind)
        self.wants = wanted(self.method, ROWS[self.kind].family, None)
        self.most = int(vllm_config.scheduler_config.max_num_encoder_input_tokens)
        self.counters = Counters() if get_tensor_model_parallel_rank() == 0 else None
        self.pixels = None
        if "pixels" in self.wants:
            from vllm.transformers_utils.processor import cached_get_image_processor

            # Every rank counts as the processor did that made room for the tokens.
            model = vllm_config.model_config
            worker = cached_get_image_processor(
                model.model, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
            self.pixels = pixels_of(self.kind, worker)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Kept embeddings, a tensor an image or video, in vLLM's order."""
        found: list[Any] = []
        for given in self.passes(kwargs):
            ids = {name: given.pop(IDS + name, None) for name in PIXELS}
            for modality, inputs in self.inputs_of(given):
                if inputs["type"].endswith("_embeds"):
                    # What a user encoded has no encoder to look at, and is as long as it is.
                    found += self.given(modality, inputs)
                    continue
                visuals = self.encoded(modality, inputs)
                texts = self._texts(ids[modality])
                kept = self._counted(visuals, texts)
                found += self.finished(modality, inputs, visuals, kept)
        return found

    def passes(self, kwargs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The arguments of a call in parts that the tower takes at a time."""
        device = next(self.parameters()).device  # type: ignore[attr-defined]
        names = [name for name in PIXELS.values() if kwargs.get(name) is not None]
        if len(names) != 1:
            yield {**kwargs, **{name: moved(kwargs[name], device) for name in names}}
            return
        (name,) = names
        loads = self.loads(name, kwargs)
        flat = self.flat(name, kwargs)
        for first, last in bounds(loads, self.most):
            own = cut(kwargs, first, last, len(loads), flat)
            yield {**own, name: moved(own[name], device)}

    def loads(self, name: str, kwargs: Mapping[str, Any]) -> list[int]:
        """Tokens before pruning of each image or video whose pixels are called `name`."""
        raise NotImplementedError

    def flat(self, name: str, kwargs: Mapping[str, Any]) -> Mapping[str, Sequence[int]]:
        """Where items begin in tensors that hold them one after another; see `passes.cut`."""
        return {}

    def _counted(
        self, visuals: Sequence[Visual], texts: Sequence[Text] | None
    ) -> list[tuple[Any, Any]]:
        """`kept`, and what it came to for whoever reads /metrics."""
        if visuals[0].features.is_cuda:
            # Choosing waits for the tower anyhow; what the tower takes is not its time.
            torch.cuda.current_stream().synchronize()
        start = time.perf_counter()
        kept: list[tuple[Any, Any]] = self.kept(visuals, texts)
        seconds = time.perf_counter() - start
        if self.counters is not None:
            pictures = (len(each.parts) if each.modality == "video" else 1 for each in visuals)
            self.counters.add(
                pictures=sum(pictures),
                before=sum(each.size for each in visuals),
                after=sum(len(index) for index, _ in kept),
                seconds=seconds,
            )
        return kept

    def inputs_of(self, kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """vLLM's parsed inputs by modality, which some of its models call "images"."""
        parsed = self._parse_and_validate_multimodal_inputs(**kwargs)  # type: ignore[attr-defined]
        return [(name.removesuffix("s"), each) for name, each in parsed.items() if each is not None]

    def given(self, modality: str, inputs: Any) -> list[Any]:
        """Embeddings that came with the request."""
        return list(getattr(self, f"_process_{modality}_input")(inputs))

    def encoded(self, modality: str, inputs: Any) -> list[Visual]:
        """Run the vision side once and say what is where."""
        raise NotImplementedError

    def finished(
        self,
        modality: str,
        inputs: Any,
        visuals: Sequence[Visual],
        kept: Sequence[tuple[Any, Any]],
    ) -> list[Any]:
        """What goes to the language model, from places and features that were kept."""
        return [features for _, features in kept]

    def _texts(self, ids: Any) -> list[Text] | None:
        if not self.method.needs & TEXT:
            return None
        device = next(self.parameters()).device  # type: ignore[attr-defined]
        words = [
            self.language_model.embed_input_ids(each.reshape(-1).to(device)).detach()
            for each in ids
        ]
        return [Text(each, each.mean(dim=0)) for each in words]

    @torch.no_grad()
    def kept(
        self, visuals: Sequence[Visual], texts: Sequence[Text] | None
    ) -> list[tuple[Any, Any]]:
        """Places (n,) and features (n, D) of the tokens of each image that stay."""
        several = len(visuals) > 1 and any(each.modality == "video" for each in visuals)
        plain = not several and not any(each.crops for each in visuals)
        if plain and (texts is None or all(len(each.parts) == 1 for each in visuals)):
            return self._together(visuals, texts)
        kept = []
        for number, visual in enumerate(visuals):
            chosen = choose(
                self.method, visual, self.wants, None if texts is None else texts[number]
            )
            kept.append((chosen.kept, chosen.features[torch.from_numpy(chosen.kept)]))
        return kept

    def _together(
        self, visuals: Sequence[Visual], texts: Sequence[Text] | None
    ) -> list[tuple[Any, Any]]:
        """The images of a step in one call, batched where their grids agree."""
        starts = np.cumsum([0, *(each.size for each in visuals)])
        parts, separators = [], []
        for start, visual in zip(starts, visuals, strict=False):
            parts += [replace(part, index=part.index + start) for part in visual.parts]
            separators += [(place + start, marked + start) for place, marked in visual.separators]
        whole = Visual(
            modality=visuals[0].modality,
            features=torch.cat([each.features for each in visuals]),
            parts=parts,
            separators=separators,
            planes=[
                torch.cat(same) for same in zip(*(each.planes for each in visuals), strict=True)
            ],
            chosen=[selection for each in visuals for selection in each.chosen],
        )
        chosen = choose(self.method, whole, self.wants, texts)
        ends = np.searchsorted(chosen.kept, starts)
        kept = []
        for start, low, high in zip(starts, ends, ends[1:], strict=False):
            own = chosen.kept[low:high]
            kept.append((own - start, chosen.features[torch.from_numpy(own)]))
        return kept
