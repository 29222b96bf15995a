"""A plug-in for vLLM: every image costs `keep` tokens.

vLLM finds `register` through the entry-point group ``vllm.general_plugins``. It adds models under
names of their own and changes none of vLLM's, so nothing happens until one of them is asked for:

    LLM(model, hf_overrides=secateur.integrations.vllm.overrides(sc.DivPrune(keep=64)))

or, with the same as JSON, ``vllm serve MODEL --hf-overrides '{"architectures":
["SecateurLlavaForConditionalGeneration"], "secateur": {"method": "divprune", "keep": 64}}'``.
Batching, caching and parallelism stay vLLM's.
"""

from __future__ import annotations

from typing import Any

from secateur.core.extras import extra
from secateur.core.methods import Method
from secateur.integrations.families.newlines import SETTING, Newlines
from secateur.integrations.vllm.checking import KEY, ConfigurationError, enter, method_of
from secateur.integrations.vllm.internals import CHECKED, INTERNALS, missing
from secateur.integrations.vllm.models import ROWS, SUPPORTED

__all__ = [
    "CHECKED",
    "INTERNALS",
    "KEY",
    "SUPPORTED",
    "ConfigurationError",
    "architecture",
    "method_of",
    "missing",
    "overrides",
    "register",
]


def register() -> None:
    """Make the models known to vLLM; their code is imported when one is asked for."""
    with extra("vllm", "secateur.integrations.vllm.register"):
        from vllm import ModelRegistry

    for row in ROWS.values():
        name = row.architecture
        ModelRegistry.register_model(name, f"secateur.integrations.vllm.{row.module}:{name}")
    enter()


def architecture(served: str) -> str:
    """What to write as "architectures" in a model's configuration for a class of `SUPPORTED`."""
    return f"Secateur{served}"


def overrides(
    method: Method, model_type: str = "llava", *, newlines: Newlines | None = None
) -> dict[str, Any]:
    """What to pass as ``hf_overrides``, checked.

    Parameters
    ----------
    method
        What chooses the tokens of every image.
    model_type
        That of the model's configuration: one of `SUPPORTED`; ``"pixtral"`` for Pixtral 12B, which
        shares ``"llava"`` with LLaVA and has another tower.
    newlines
        Which newline tokens of LLaVA-NeXT and LLaVA-OneVision stay: ``"all"``, ``"none"``, or
        ``"rows"``, those of rows that keep a token, with a method that picks by the grid alone.
        None: rows where possible, else none. The key ``secateur_newlines`` of a model's
        configuration says the same to `secateur.attach`.

    Returns
    -------
    dict
        Of plain values: as JSON it is the argument of ``vllm serve --hf-overrides``.

    Examples
    --------
    >>> import json, secateur as sc
    >>> from secateur.integrations.vllm import overrides
    >>> json.dumps(overrides(sc.TopK(keep=64)))
    '{"architectures": ["SecateurLlavaForConditionalGeneration"], "secateur": {"method": "topk", "keep": 64, ...}}'
    """  # noqa: E501
    if model_type not in SUPPORTED:
        raise ValueError(
            f"secateur: no plug-in for vLLM's {model_type!r} yet; there is one for "
            f"{', '.join(SUPPORTED)}"
        )
    stored = method.to_dict()
    with extra("vllm", "secateur.integrations.vllm.overrides"):
        method_of(stored, model_type)
    asked: dict[str, Any] = {"architectures": [architecture(SUPPORTED[model_type])], KEY: stored}
    if newlines is not None:
        asked[SETTING] = newlines
    return asked
