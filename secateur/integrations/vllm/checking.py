"""What vLLM is told about a configuration before it starts any process, in one sentence.

vLLM asks a class in `MODELS_CONFIG_MAP` about every configuration of an architecture, in the
process that a user started. `Checks` is entered there under our architectures, and under those of
vLLM's that have one of ours, where it only looks for a method that would be ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np

from secateur.core.acts import Cuts, Shrinks, Skips, acts_inside, forgets
from secateur.core.complexity import RunningCalibration
from secateur.core.inputs import Tokens
from secateur.core.methods import Method, methods
from secateur.integrations.encoded import TEXT
from secateur.integrations.families.newlines import SETTING, newlines_of
from secateur.integrations.vllm import counters, identity
from secateur.integrations.vllm.internals import CHECKED, READ, missing
from secateur.integrations.vllm.models import ROWS, kind_of

KEY = "secateur"
"""The key of the configuration that holds the method."""

RATE = 2.0**-20
"""vLLM asks a model for the positions of kept tokens only if it has a video pruning rate.

Every process sees this one, which nobody else would ask for, and nothing is pruned by it."""

MISTRALS = "pixtral"
"""The type of a configuration that vLLM makes of a checkpoint in Mistral's own format."""

MISTRALS_OWN = "PixtralForConditionalGeneration"
"""vLLM's class of those."""

STRATEGY = "vision_feature_select_strategy"
"""The setting of a configuration by which a class token is left out of the features."""

OBSERVED = frozenset({"attention", "attention_shallow", "keys"})
"""Inputs that hooks on the tower collect."""

CPU_ASKS = False
"""Whether vLLM's runner for CPUs asks models for positions, as those for accelerators do."""

CPU_SEES_BOTH_WAYS = False
"""Whether vLLM's attention for CPUs lets the tokens of an image see each other both ways."""


class ConfigurationError(RuntimeError):
    """A configuration that cannot be served, and why.

    No ValueError: vLLM's configuration wraps those in words of its own.
    """


def method_of(stored: Any, model_type: str) -> Method:
    """The method that a configuration asks for.

    Raises
    ------
    ValueError
        In one line, where it cannot be served.
    """
    if not isinstance(stored, Mapping) or "method" not in stored:
        raise ValueError(
            'secateur: expected {"method": name, "keep": count} under "secateur" in hf_overrides, '
            f"got {stored!r}"
        )
    try:
        method = Method.from_dict(stored)
    except (TypeError, ValueError) as error:
        raise ValueError(f"secateur: {error}") from None
    offers = ROWS[model_type].family.offers | TEXT
    for name, request in method.requests.items():
        if name in method.needs and (request.layer == "last" or request.heads == "one"):
            raise ValueError(
                f"secateur: {stored['method']} looks at the last layer of the tower or at all its "
                "heads as one, which vLLM's towers do not have; take transformers for it"
            )
    if isinstance(method, Shrinks):
        raise ValueError(
            f"secateur: {method.name} makes the picture smaller before it is encoded; give the "
            "server what its `shrink(pixels, grid)` makes"
        )
    lacking = sorted(method.needs_in_model - offers)
    if not method.prunes_before or lacking:
        serves = sorted(
            name
            for name, kind in methods().items()
            if kind.prunes_before and name != "mixture" and kind().needs <= offers
        )
        why = f"needs {', '.join(lacking)}, which vLLM's {model_type} does not give"
        if not method.prunes_before:
            where = "language model" if isinstance(method, Cuts) else "encoder"
            why = f"acts inside the {where}, whose attention vLLM does not show"
        raise ValueError(f"secateur: {stored['method']} {why}; take one of {', '.join(serves)}")
    if forgets(method):
        raise ValueError(
            f"secateur: {stored['method']} hides tokens while decoding by their attention, which "
            "vLLM does not show; leave sight out"
        )
    if method.counted_from == "features":
        raise ValueError(
            f"secateur: {method.name} with a count that depends on the features; vLLM makes room "
            "for tokens before it encodes an image, so take a fixed count"
        )
    told = _published(method, model_type)
    if told is not None:
        raise ValueError(f"secateur: {method.name} as published {told}; take transformers for it")
    if ROWS[model_type].cropped and method.parts_counted_from == "features":
        raise ValueError(
            f"secateur: {method.name} with crops whose shares are rounded down; how many tokens "
            "that leaves depends on the features, and vLLM makes room for them before it encodes "
            "an image, so take rounding='exact'"
        )
    if learns(method):
        raise ValueError(
            "secateur: a running mean makes answers depend on other requests; take a number or a "
            "Calibration"
        )
    if isinstance(method, Skips) and method.skips and not ROWS[model_type].family.skips:
        raise ValueError(
            f'secateur: {method.name} with before="encoder"; the encoder of {model_type} reads '
            'whole pictures, so leave it out or take "model"'
        )
    from secateur.integrations.choosing import wanted

    try:
        _tried(method, wanted(method, ROWS[model_type].family, None))
    except ValueError as error:
        raise ValueError(f"secateur: {error}") from None
    return method


def _published(method: Method, model_type: str) -> str | None:
    """What of its authors' program is not to be had here; None where nothing is missing."""
    if not method.published or not method.prunes_before:
        return None
    if acts_inside(method):
        return "acts inside the language model too, whose attention vLLM does not show"
    if method.positions == "compact" and ROWS[model_type].placed:
        return f"numbers kept tokens anew, and in vLLM's {model_type} they stay where they were"
    return None


def _tried(method: Method, wants: frozenset[str]) -> None:
    """Let a method choose from noise, so that what it lacks shows before an image comes."""
    if "pixels" in wants:
        return
    side, width, dice = 12, 16, np.random.default_rng(0)
    shapes = {
        "features": (side * side, width),
        "keys": (side * side, width),
        "attention": (side * side,),
        "attention_shallow": (side * side,),
        "text": (3, width),
        "text_global": (width,),
    }
    given: dict[str, Any] = {"features": dice.random(shapes["features"])}
    given |= {name: dice.random(shape) for name, shape in shapes.items() if name in wants}
    chosen = method.select(Tokens(grid=(side, side), **given), backend="reference")
    count, said = int(chosen.count), method.budget(side * side)
    if method.counted_from == "size" and count != said:
        raise ValueError(f"{method.name} kept {count} tokens of noise where it says {said}")


def sees_sizes_alone(method: Method) -> bool:
    """Whether a method picks by the grid, so that its picks are known before encoding."""
    return method.needs | method.optional <= {"grid"}


def learns(method: Method) -> bool:
    """Whether a method, or one that it is made of, changes with what it has seen."""
    parts = [getattr(method, item.name) for item in fields(method)]
    return any(isinstance(part, RunningCalibration) for part in parts) or any(
        learns(part) for part in parts if isinstance(part, Method)
    )


class Checks:
    """What vLLM calls for a configuration, in the process that was started by hand."""

    theirs: ClassVar[type[Any] | None] = None
    """What vLLM asks about its own class of the same model, where it does."""

    @classmethod
    def verify_and_update_model_config(cls, model_config: Any) -> None:
        """Refuse what cannot be served, and say once to all processes that positions are asked."""
        told = refused(model_config)
        if told is not None:
            raise ConfigurationError(f"secateur: {told.removeprefix('secateur: ')}")
        row = _asked(model_config.architecture)
        if row is not None and ROWS[row].placed:
            model_config.multimodal_config.video_pruning_rate = RATE
        if cls.theirs is not None:
            cls.theirs.verify_and_update_model_config(model_config)

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        """Refuse settings under which a tower cannot be watched; say what is served."""
        if cls.theirs is not None:
            cls.theirs.verify_and_update_config(vllm_config)
        model_config = vllm_config.model_config
        model_type = _asked(model_config.architecture)
        if model_type is None:
            return
        method = method_of(getattr(model_config.hf_config, KEY), model_type)
        told = _engine(vllm_config, method, model_type)
        if told is not None:
            raise ConfigurationError(f"secateur: {told}")
        counters.offer(method.name)
        _announce(method, model_type)


def enter() -> None:
    """Have vLLM ask `Checks`; what it asks others for stays."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    MODELS_CONFIG_MAP.setdefault(MISTRALS_OWN, Checks)
    for row in ROWS.values():
        checks = MODELS_CONFIG_MAP.get(row.served, Checks)
        if not issubclass(checks, Checks):
            checks = type("Checks", (Checks,), {"theirs": checks})
        MODELS_CONFIG_MAP[row.architecture] = MODELS_CONFIG_MAP[row.served] = checks


def refused(model_config: Any) -> str | None:
    """Why a model's configuration is not served; None where it is, or where nobody asks us."""
    config, architecture = model_config.hf_config, model_config.architecture
    asked = _asked(architecture)
    if asked is None and getattr(config, KEY, None) is None:
        return None
    if config.model_type == MISTRALS:
        return (
            "this checkpoint is in Mistral's own format; take one with a config.json, such as "
            "mistral-community/pixtral-12b, and --config-format hf"
        )
    if asked is None:
        known = _known(config)
        ours = ROWS[known].architecture if known is not None else "one of ours"
        return (
            f'hf_overrides have "{KEY}" and no architecture that reads it; add "architectures": '
            f'["{ours}"], as secateur.integrations.vllm.overrides() does'
        )
    known = _known(config)
    if known != asked:
        better = f"; take {ROWS[known].architecture}" if known is not None else ""
        told = known or config.model_type
        return f"{architecture} serves {asked}, and this checkpoint is a {told}{better}"
    try:
        method = method_of(getattr(config, KEY, None), asked)
    except ValueError as error:
        return str(error)
    try:
        newlines = newlines_of(config)
    except ValueError as error:
        return str(error)
    if newlines == "rows" and not sees_sizes_alone(method):
        return (
            f'{SETTING}: "rows" with {type(method).__name__}: which rows keep a token is not known '
            'before an image is encoded; take "all" or "none"'
        )
    towers, tower = ROWS[asked].towers, config.vision_config.model_type
    if towers and tower not in towers:
        return f"{asked} with a {tower} is not served; take one with a {' or '.join(towers)}"
    if tower == "pixtral" and getattr(config, STRATEGY, "full") != "full":
        return f"{STRATEGY}: the features must be all patches"
    multimodal = model_config.multimodal_config
    if multimodal is None:
        return f"{asked} without images; vLLM was told to serve text alone"
    if multimodal.video_pruning_rate not in (None, RATE):
        return "--video-pruning-rate prunes videos a second time; leave it out, keep says how many"
    gone = missing(ROWS[asked].within)
    if gone:
        return f"this vLLM lacks {', '.join(gone)}; take one of {', '.join(CHECKED)}"
    return None


def _known(config: Any) -> str | None:
    """The row of a configuration; None for those that nobody serves."""
    tower = getattr(getattr(config, "vision_config", None), "model_type", "")
    return kind_of(config.model_type, tower)


def _asked(architecture: str) -> str | None:
    """The type of model that an architecture of ours serves; None for others."""
    return next((kind for kind, row in ROWS.items() if row.architecture == architecture), None)


def _engine(vllm_config: Any, method: Method, model_type: str) -> str | None:
    from vllm.platforms import current_platform

    placed = ROWS[model_type].placed
    name = type(method).__name__
    if vllm_config.model_config.multimodal_config.mm_encoder_tp_mode == "data":
        return (
            "mm_encoder_tp_mode='data' spreads images over ranks, and what the tower attends to "
            "is not seen; leave it at 'weights'"
        )
    seen = (method.needs | method.optional) & OBSERVED
    if vllm_config.compilation_config.compile_mm_encoder and seen:
        return (
            f"{name} watches the tower, which compile_mm_encoder hides; leave that off, or take a "
            "method such as divprune"
        )
    if placed and current_platform.is_cpu() and not CPU_ASKS:
        return (
            f"{model_type} on a CPU: vLLM's runner for CPUs does not ask where kept tokens were; "
            "serve it on an accelerator"
        )
    both_ways = vllm_config.model_config.is_mm_prefix_lm
    if both_ways and current_platform.is_cpu() and not CPU_SEES_BOTH_WAYS:
        return (
            f"{model_type} on a CPU: vLLM's attention for CPUs does not let the tokens of an image "
            "see each other both ways, pruned or not; serve it on an accelerator"
        )
    if placed and vllm_config.parallel_config.pipeline_parallel_size > 1:
        return (
            f"{model_type} in stages (pipeline_parallel_size > 1): later stages are not told the "
            "positions of kept tokens; use tensor_parallel_size"
        )
    return None


def _announce(method: Method, model_type: str) -> None:
    """One line in the server's log."""
    import vllm
    from vllm.logger import init_logger

    theirs = vllm.__version__.partition("+")[0]
    ran = f"run with {', '.join(CHECKED)}"
    if theirs not in CHECKED:
        ran += f"; {theirs} " + ("only read" if theirs in READ else "not known to us")
    if acts_inside(method):
        ran += "; without its stage inside the language model"
    init_logger("vllm.secateur").info(
        "secateur %s: %r on %s (%s), vLLM %s (%s)",
        identity.release("secateur"),
        method,
        ROWS[model_type].family.name,
        model_type,
        vllm.__version__,
        ran,
    )
