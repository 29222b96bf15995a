r"""Models for lmms-eval that prune: its own classes for transformers, with a method attached.

lmms-eval finds `manifests` through the entry-point group ``lmms_eval.models``. It adds models
under names of their own, so nothing changes until one of them is asked for:

    lmms-eval --model secateur_llava_hf --tasks pope,textvqa_val \
        --model_args pretrained=llava-hf/llava-1.5-7b-hf,secateur=eadp,keep=64

Loading, prompts, tasks and scores stay lmms-eval's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from secateur.core.methods import Method, methods

CHECKED = ("0.7.3",)
"""The releases of lmms-eval this was run with."""

MODELS = ("llava_hf", "qwen2_5_vl", "qwen3_vl")
"""lmms-eval's models that get a twin. ``llava_hf`` reads LLaVA-1.5, NeXT and OneVision."""

KINDS = ("simple", "chat")
"""The kinds of prompt that lmms-eval has a class of each for."""


def manifests() -> list[Any]:
    """What lmms-eval's registry is told: ``secateur_NAME`` for each of `MODELS`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(
            f"secateur_{name}",
            **{f"{kind}_class_path": f"{__name__}.{name}_{kind}" for kind in KINDS},
        )
        for name in MODELS
    ]


def __getattr__(name: str) -> Any:
    """The class of a manifest, made from lmms-eval's own when it is first asked for."""
    model, _, kind = name.rpartition("_")
    if model not in MODELS or kind not in KINDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmms_eval.models import get_model

    stock = get_model(model, force_simple=kind == "simple")
    made = type(f"Pruned{stock.__name__}", (Pruned, stock), {"__module__": __name__})
    globals()[name] = made
    return made


def read(model_args: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """Split model arguments into a method and what lmms-eval's own class takes.

    Parameters
    ----------
    model_args
        With ``secateur``, the name of a method, and its parameters beside it; or with
        ``secateur`` as JSON, what `Method.to_dict` wrote.

    Examples
    --------
    >>> from secateur.integrations.lmms_eval import read
    >>> method, rest = read({"pretrained": "some/model", "secateur": "topk", "keep": 64})
    >>> method.keep, rest
    (64, {'pretrained': 'some/model'})
    """
    rest = dict(model_args)
    given = rest.pop("secateur", None)
    known = methods()
    try:
        if str(given).startswith("{"):
            return Method.from_dict(json.loads(str(given))), rest
        if given not in known:
            raise ValueError(f"expected one of {', '.join(sorted(known))}; got {given!r}")
        names = {item.name for item in fields(known[given])} & rest.keys()
        parameters = {name: _plain(rest.pop(name)) for name in sorted(names)}
        return Method.from_dict({"method": given, **parameters}), rest
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"model_args: secateur: {error}; write for example secateur=eadp,keep=64"
        ) from None


def _plain(value: Any) -> Any:
    """A parameter as JSON has it, where lmms-eval leaves text: lists, null."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


class _Stop(BaseException):
    """Carries an error past lmms-eval, which takes an `Exception` for an empty answer."""


class Pruned:
    """Attaches a method to the model that lmms-eval's class loaded; in front of that class.

    Parameters
    ----------
    secateur
        The method, as `read` takes it; parameters of the method stand beside it.
    text_encoder
        Name or folder of the CLIP or SigLIP checkpoint that the vision tower comes from.
    positions
        As in `secateur.attach`.
    model_args
        What lmms-eval's own class takes.

    Attributes
    ----------
    attachment
        What is attached.
    lengths
        Of every prompt with images so far: tokens it had, and those that every layer caches.
    """

    model: Any

    def __init__(
        self, *, text_encoder: str | None = None, positions: Any = None, **model_args: Any
    ) -> None:
        method, rest = read(model_args)
        super().__init__(**rest)
        from secateur.integrations.attach import attach

        encoder = None
        if text_encoder is not None:
            from transformers import AutoModel, AutoTokenizer

            loaded = AutoModel.from_pretrained(text_encoder, dtype="auto").eval()
            encoder = loaded.to(self.model.device), AutoTokenizer.from_pretrained(text_encoder)
        own = vars(self)
        processor = own["processor"] if "processor" in own else own["_image_processor"]
        self.attachment = attach(self.model, method, processor, encoder, positions)
        self.lengths: list[tuple[int, int]] = []

    def generate_until(self, requests: list[Any]) -> Any:
        """Answer, as lmms-eval's own class does."""
        with self._watched():
            return super().generate_until(requests)  # type: ignore[misc]

    def generate_until_multi_round(self, requests: list[Any]) -> Any:
        """Answer in several rounds, where lmms-eval's own class can."""
        with self._watched():
            return super().generate_until_multi_round(requests)  # type: ignore[misc]

    def loglikelihood(self, requests: list[Any]) -> Any:
        """Refuse: logits of a pruned prompt do not line up with the prompt."""
        raise NotImplementedError(
            "secateur: tasks of output_type loglikelihood read logits at places of the unpruned "
            "prompt; take a task of output_type generate_until"
        )

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Count what `generate` is given, and let its errors end the run."""
        model, attachment = self.model, self.attachment
        pruning = model.generate

        def generate(*args: Any, **kwargs: Any) -> Any:
            before = attachment.last
            try:
                out = pruning(*args, **kwargs)
            except Exception as error:
                raise _Stop from error
            if attachment.last is not None and attachment.last is not before:
                report = attachment.last
                self.lengths.append((report.prompt_length[0], report.final_length))
            return out

        model.generate = generate
        try:
            yield
        except _Stop as stop:
            raise RuntimeError(f"secateur: {stop.__cause__}") from stop.__cause__
        finally:
            model.generate = pruning
