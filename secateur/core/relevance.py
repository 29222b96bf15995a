"""How much each visual token has to do with the question, and maps of such scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from secateur.core.arrays import (
    Array,
    checked,
    constant,
    device,
    epsilon,
    index_dtype,
    like,
    namespace,
    on_host,
    shape_of,
    shaped,
    spell,
    wide,
)
from secateur.core.dispatch import operation
from secateur.core.parameters import typed
from secateur.core.similarity import unit

Aggregate = Literal["entropy", "tempered", "topk"]
AGGREGATES: tuple[Aggregate, ...] = ("entropy", "tempered", "topk")
TOPK = 5
"""How many similarities the "topk" aggregate averages."""
COLDEST = 1e-12
"""No smaller `entropy_temperature`, and no `temperature` above one over it, tells words apart."""

ENTROPY_ROUNDING = 512
"""Steps of its dtype by which an entropy may be off, in proportion to it."""


@typed
def dense_relevance(
    visual: Array,
    text: Array | Sequence[Array],
    text_global: Array | Sequence[Array] | None = None,
    *,
    text_mask: Array | Sequence[Array] | None = None,
    temperature: float = 100.0,
    keep_ratio: float = 0.2,
    entropy_temperature: float = 0.01,
    alpha: float = 0.5,
    aggregate: Aggregate = "entropy",
    sign: int = -1,
    entropy_floor: float = 0.0,
    check_finite: bool = True,
) -> Array:
    r"""Relevance of each visual token to an instruction, by the instruction's sharpest words.

    With :math:`S_{il} = \text{sign} \cos(E_i, T_l)` and :math:`G_i = \text{sign} \cos(E_i, g)`:

    .. math::
        p(i \mid l) &= \operatorname{softmax}_i(\text{temperature} \cdot S_{il}), \qquad
        H_l = H(p(\cdot \mid l)) \\
        K &= \text{the } \max(1, \lfloor \text{keep\_ratio} \cdot L \rfloor)
        \text{ tokens of lowest } H_l \\
        D_i &= \sum_{l \in K} \operatorname{softmax}_{l \in K}(-H_l / \text{entropy\_temperature})
        \, S_{il} \\
        R_i &= \alpha G_i + (1 - \alpha) D_i

    A text token whose similarity is spread over the whole image says nothing about a place,
    so only those of low entropy speak.

    Parameters
    ----------
    visual
        Visual tokens (..., N, C) in a space shared with the text. Several crops of one image
        come as a leading axis: each keeps text tokens of its own.
    text
        Instruction tokens (..., L, C); their leading axes broadcast with those of `visual`.
        A list or tuple of several texts gives the mean of their relevances.
    text_global
        One embedding (..., C) of the whole instruction; without one, the mean of the text
        tokens that the mask lets through. A list where `text` is one.
    text_mask
        True for text tokens (..., L) that count. The others are as if they were not there:
        no answer depends on what they hold, not even on NaN.
    temperature
        Sharpness of the softmax over the image.
    keep_ratio
        Share of the text tokens kept, in (0, 1].
    entropy_temperature
        Temperature of the weights over the kept text tokens.
    alpha
        Share of the global similarity, in [0, 1].
    aggregate
        ``"entropy"`` as above; ``"tempered"``: weights for each visual token, the softmax over
        the kept l of :math:`S_{il} / (\text{entropy\_temperature} \cdot H_l)`; ``"topk"``: the
        mean of the five largest kept :math:`S_{il}`.
    sign
        -1 for encoders trained like CLIP, whose patch-text cosines are inverted: relevant
        patches score low. +1 takes cosines as they are.
    entropy_floor
        Added to :math:`H_l` under ``"tempered"``; the authors' program has 1e-6.

    Returns
    -------
    Array
        Relevances (..., N), higher is more relevant; not normalised.

    Notes
    -----
    O(N L C) time, O(N L) memory. Entropies are computed in the dtype of the input.

    References
    ----------
    EADP, ECCV 2026, arXiv 2607.02484, first stage. The authors' program scores every text
    position, padding included; the paper leaves out the end token; here the mask decides.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> visual = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> text = np.array([[1.0, 0.0], [0.5, 0.5]])
    >>> sc.dense_relevance(visual, text, sign=1, alpha=0.0).round(3)
    array([1. , 0. , 0.6])
    """
    if not 0.0 < keep_ratio <= 1.0:
        raise ValueError(f"keep_ratio: expected a share in (0, 1], got {keep_ratio}")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha: expected a share in [0, 1], got {alpha}")
    if sign not in (-1, 1):
        raise ValueError(f"sign: expected -1 or 1, got {sign}")
    check_temperatures(temperature, entropy_temperature)
    visual = unit(checked(visual, "visual", "(..., N, C)", check_finite=check_finite))

    def relevance(t: Array, g: Array | None, m: Array | None) -> Array:
        tokens, whole, mask = _checked_text(visual, t, g, m, check_finite)
        told = (temperature, keep_ratio, entropy_temperature, alpha, aggregate, sign)
        if entropy_floor and aggregate == "tempered":
            return _relevance(visual, tokens, whole, mask, *told, entropy_floor)
        return text_relevance(visual, tokens, whole, mask, *told)

    if not isinstance(text, (list, tuple)):
        return relevance(text, text_global, text_mask)
    if not text:
        raise ValueError("text: expected at least one text, got an empty list")
    wholes = _one_each(text_global, len(text), "text_global")
    masks = _one_each(text_mask, len(text), "text_mask")
    parts = [relevance(t, g, m) for t, g, m in zip(text, wholes, masks, strict=True)]
    return sum(parts[1:], parts[0]) / len(parts)


def check_temperatures(temperature: float, entropy_temperature: float) -> None:
    """Refuse those with which no softmax is left of single precision."""
    most = 1 / COLDEST
    if not 0 < temperature <= most:
        raise ValueError(
            f"temperature: expected a positive number, got {temperature}; at most {most:g}"
        )
    if not (entropy_temperature >= COLDEST and math.isfinite(entropy_temperature)):
        raise ValueError(
            f"entropy_temperature: expected a positive number, got {entropy_temperature}; "
            f"at least {COLDEST:g}"
        )


def _one_each(given: object, count: int, name: str) -> Sequence[Array | None]:
    if given is None:
        return [None] * count
    if not isinstance(given, (list, tuple)) or len(given) != count:
        raise ValueError(f"{name}: expected a list with one entry for each of the {count} texts")
    return given


def _checked_text(
    visual: Array,
    text: Array,
    text_global: Array | None,
    text_mask: Array | None,
    check_finite: bool,
) -> tuple[Array, Array, Array]:
    """Unit text tokens with those masked out set to zero, a unit global vector, and the mask."""
    # What the mask hides may be anything: its values are looked at only once it is gone.
    text = checked(text, "text", "(..., L, C)", check_finite=False, beside=visual)
    xp = namespace(visual, text)
    check_fit("text", text, visual, 2)
    if text_mask is None:
        mask = xp.ones(text.shape[:-1], dtype=xp.bool, device=device(text))
    else:
        mask = _checked_mask(text_mask, text, visual)
        text = xp.where(mask[..., None], text, xp.zeros_like(text))
        mask = xp.broadcast_to(mask, text.shape[:-1])
    text = checked(text, "text", "(..., L, C)", check_finite=check_finite)
    if text_global is None:
        # Only its direction counts, and that of the mean is that of the sum.
        text_global = xp.sum(text, axis=-2)
    text_global = checked(
        text_global, "text_global", "(..., C)", check_finite=check_finite, beside=visual
    )
    xp = namespace(visual, text_global)
    check_fit("text_global", text_global, visual, 1)
    return (
        xp.astype(unit(text), visual.dtype),
        xp.astype(unit(text_global), visual.dtype),
        mask,
    )


def _checked_mask(text_mask: Any, text: Array, visual: Array) -> Array:
    if isinstance(text_mask, (list, tuple)):
        text_mask = like(on_host(text_mask, "text_mask"), text)
    text_mask = shaped(text_mask, "text_mask", "(..., L)")
    xp = namespace(text_mask, text)
    mask = xp.astype(text_mask, xp.bool)
    if int(mask.shape[-1]) != int(text.shape[-2]):
        raise ValueError(f"text_mask: {mask.shape[-1]} places for {text.shape[-2]} text tokens")
    _check_axes("text_mask", shape_of(mask)[:-1], "text", shape_of(text)[:-2])
    _check_axes("text_mask", shape_of(mask)[:-1], "visual", shape_of(visual)[:-2])
    if not bool(xp.all(xp.any(mask, axis=-1))):
        raise ValueError("text_mask: masks every text token out; at least one must count")
    return mask


def check_fit(name: str, text: Array, visual: Array, axes: int, *, no_more: bool = False) -> None:
    """Refuse text of another vector length than visual, of another batch, or with more axes."""
    if int(text.shape[-1]) != int(visual.shape[-1]):
        raise ValueError(
            f"{name}: expected vectors of length {visual.shape[-1]} as the visual tokens have, "
            f"got {text.shape[-1]}"
        )
    batch = shape_of(visual)[:-2]
    _check_axes(name, shape_of(text)[:-axes], "visual", batch)
    if no_more and np.broadcast_shapes(shape_of(text)[:-axes], batch) != batch:
        raise ValueError(
            f"{name}: its leading axes {spell(shape_of(text)[:-axes])} are not those of the visual "
            f"tokens {spell(batch)}"
        )


def _check_axes(name: str, axes: tuple[int, ...], other: str, others: tuple[int, ...]) -> None:
    try:
        np.broadcast_shapes(axes, others)
    except ValueError:
        raise ValueError(
            f"{name}: its leading axes {spell(axes)} do not broadcast with {spell(others)} "
            f"of {other}"
        ) from None


@operation
def text_relevance(
    visual: Array,
    text: Array,
    text_global: Array,
    mask: Array,
    temperature: float,
    keep_ratio: float,
    entropy_temperature: float,
    alpha: float,
    aggregate: Aggregate,
    sign: int,
) -> Array:
    """The formula of `dense_relevance` on unit vectors, for texts of one shape.

    `visual` (..., N, C), `text` (..., L, C), `text_global` (..., C), `mask` (..., L); masked
    text tokens are zero vectors. O(N L C) time, O(N L) memory.
    """
    told = (temperature, keep_ratio, entropy_temperature, alpha, aggregate, sign)
    return _relevance(visual, text, text_global, mask, *told)


def _relevance(
    visual: Array,
    text: Array,
    text_global: Array,
    mask: Array,
    temperature: float,
    keep_ratio: float,
    entropy_temperature: float,
    alpha: float,
    aggregate: Aggregate,
    sign: int,
    entropy_floor: float = 0.0,
) -> Array:
    xp = namespace(visual)
    s = sign * (visual @ xp.matrix_transpose(text))
    h = text_entropy(s, temperature)
    kept = sharpest(h, mask, keep_ratio)
    infinity = xp.full_like(h, xp.inf)
    if aggregate == "topk":
        dense = _mean_of_largest(xp.where(kept[..., None, :], s, -infinity[..., None, :]))
    else:
        if aggregate == "entropy":
            logits = (-h / entropy_temperature)[..., None, :]
        else:
            least = xp.full_like(h, float(xp.finfo(h.dtype).smallest_normal) ** 0.5)
            spread = entropy_temperature * xp.maximum(h + entropy_floor, least)
            logits = s / spread[..., None, :]
        logits = xp.where(kept[..., None, :], logits, -infinity[..., None, :])
        dense = xp.sum(softmax(logits) * s, axis=-1)
    whole = sign * xp.sum(visual * text_global[..., None, :], axis=-1)
    return alpha * whole + (1.0 - alpha) * dense


def text_entropy(similarity: Array, temperature: float = 100.0) -> Array:
    """Entropy over the image (..., L) of each text token's similarities (..., N, L)."""
    xp = namespace(similarity)
    logits = temperature * (similarity - xp.max(similarity, axis=-2, keepdims=True))
    weight = xp.exp(logits)
    # All but the largest weight, which is 1: so the small entropies of sharp words are good to
    # as many digits as large ones, and those that tie can be told from those that do not.
    places = like(np.arange(int(logits.shape[-2])), logits, dtype=index_dtype(xp))[:, None]
    largest = places == xp.argmax(logits, axis=-2, keepdims=True)
    rest = xp.sum(xp.where(largest, xp.zeros_like(weight), weight), axis=-2)
    # A weight that underflows to zero has a finite logit and adds nothing.
    return xp.log1p(rest) - xp.sum(weight * logits, axis=-2) / (1.0 + rest)


def sharpest(entropies: Array, mask: Array, keep_ratio: float = 0.2) -> Array:
    """Mask (..., L) of the max(1, floor(keep_ratio * L)) counted text tokens of lowest entropy.

    Ties go to the earlier token. Entropies tie with the highest one kept where they differ from
    it by no more than rounding, `ENTROPY_ROUNDING` steps of their dtype: words whose entropies
    add up to the same, over duplicated patches for instance, go the same way in whatever order
    a backend adds.
    """
    xp = namespace(entropies)
    mask = xp.broadcast_to(mask, entropies.shape)
    infinity = xp.full_like(entropies, xp.inf)
    counted = xp.where(mask, constant(entropies), infinity)
    count = xp.sum(xp.astype(mask, wide(xp)), axis=-1, keepdims=True)
    room = xp.floor(keep_ratio * count + 1e-9)
    room = xp.maximum(room, xp.ones_like(room))
    places = like(np.arange(int(mask.shape[-1])), room, dtype=room.dtype)
    highest = xp.where(places < room, xp.sort(counted, axis=-1), -infinity)
    highest = xp.max(highest, axis=-1, keepdims=True)
    # Logits are a hundred times a cosine, and what they are off counts in proportion to H.
    near = ENTROPY_ROUNDING * epsilon(entropies) * highest
    # 0 surely kept, 1 tied with the highest, 2 above it.
    rank = xp.astype(~(counted < highest - near), room.dtype)
    rank = rank + xp.astype(~(counted <= highest + near), room.dtype)
    order = xp.argsort(rank, axis=-1, stable=True)
    return xp.astype(xp.argsort(order, axis=-1, stable=True), room.dtype) < room


def softmax(logits: Array) -> Array:
    """Softmax over the last axis; places at minus infinity get 0."""
    xp = namespace(logits)
    weight = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    return weight / xp.sum(weight, axis=-1, keepdims=True)


def _mean_of_largest(s: Array) -> Array:
    xp = namespace(s)
    largest = xp.flip(xp.sort(s, axis=-1), axis=-1)[..., : min(TOPK, int(s.shape[-1]))]
    there = xp.isfinite(largest)
    total = xp.sum(xp.where(there, largest, xp.zeros_like(largest)), axis=-1)
    return total / xp.sum(xp.astype(there, s.dtype), axis=-1)
