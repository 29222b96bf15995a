"""Models for VLMEvalKit that prune: entries of its registry, with a method attached.

VLMEvalKit has no plug-ins, but its registry is a plain dictionary of callables that build a model.
`register` adds an entry to it, made from one that is there.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

from secateur.core.methods import Method


def pruned(
    entry: Callable[..., Any], method: Method, *, text_encoder: Any = None, positions: Any = None
) -> partial[Any]:
    """Make an entry of VLMEvalKit's registry whose model prunes.

    Parameters
    ----------
    entry
        Builds a model that keeps a model of transformers as ``model`` and its processor as
        ``processor``, as ``LLaVA_Next``, ``LLaVA_OneVision_HF`` and ``Qwen2VLChat`` do.
    method
        What chooses the tokens.
    text_encoder, positions
        As in `secateur.attach`.

    Returns
    -------
    functools.partial
        Builds the same model; its attribute ``secateur`` is the attachment.
    """
    return partial(_build, entry, method, text_encoder, positions)


def register(
    name: str,
    method: Method,
    *,
    as_name: str | None = None,
    text_encoder: Any = None,
    positions: Any = None,
) -> str:
    """Add a pruned twin of a model to VLMEvalKit's registry, from where ``run.py`` takes it.

    Parameters
    ----------
    name
        A key of ``vlmeval.config.supported_VLM``.
    method, text_encoder, positions
        As in `secateur.attach`.
    as_name
        What to call it; results are filed under it. None: name, method and budget.

    Returns
    -------
    str
        The new key, such as ``"llava_next_vicuna_7b-eadp-64"``.
    """
    from vlmeval.config import supported_VLM

    if name not in supported_VLM:
        near = get_close_matches(name, supported_VLM, n=3) or sorted(supported_VLM)[:3]
        raise ValueError(f"name: VLMEvalKit has no model {name!r}; it has {', '.join(near)}, ...")
    key = as_name or f"{name}-{method.name}-{method.keep}"
    if key in supported_VLM:
        raise ValueError(f"as_name: {key!r} is registered already; give another")
    supported_VLM[key] = pruned(
        supported_VLM[name], method, text_encoder=text_encoder, positions=positions
    )
    return key


def _build(
    entry: Callable[..., Any], method: Method, text_encoder: Any, positions: Any, **kwargs: Any
) -> Any:
    from secateur.integrations.attach import attach

    built = entry(**kwargs)
    for needed in ("model", "processor"):
        if getattr(built, needed, None) is None:
            raise ValueError(
                f"{type(built).__name__} keeps no {needed} of transformers; take one that does, "
                "such as LLaVA_Next, LLaVA_OneVision_HF or Qwen2VLChat, without vLLM or LMDeploy"
            )
    built.secateur = attach(built.model, method, built.processor, text_encoder, positions)
    return built
