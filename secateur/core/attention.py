"""How much attention tokens receive, from queries and keys, without the matrix between them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from secateur.core.arrays import (
    Array,
    device,
    like,
    namespace,
    shape_of,
    spell,
    to_numpy,
    top,
    wide,
    widened,
)
from secateur.core.dispatch import operation

BLOCK = 1 << 22
"""Attention weights that may be held at once."""


@operation
def attention_received(
    queries: Array,
    keys: Array,
    *,
    scale: float | None = None,
    query_weights: Array | None = None,
    key_mask: Array | None = None,
    positions: Array | None = None,
) -> Array:
    r"""Attention each key receives, summed over the queries and averaged over the heads.

    .. math::
        a_j = \sum_q u_q \frac{1}{H} \sum_h
        \operatorname{softmax}_j(\text{scale} \cdot \langle Q_{hq}, K_{hj} \rangle)

    One query, the class token's, gives the class-token row; all queries with weights 1 / Q the
    mean received attention; the text's queries with `positions` the causal attention of the
    text to every token before it.

    Parameters
    ----------
    queries
        (..., H, Q, d), rotated as the layer rotates them.
    keys
        (..., G, T, d), with H a multiple of G (grouped queries).
    scale
        Factor on the products; 1 / sqrt(d) when absent.
    query_weights
        Weights u (..., Q) of the queries; 1 when absent.
    key_mask
        True (..., T) at keys that exist; the others receive nothing.
    positions
        Places (..., Q) of the queries among the keys: query q sees keys 0 .. positions[q].
        Without them every query sees every key.

    Returns
    -------
    Array
        (..., T), float32 or wider.

    Notes
    -----
    O(H Q T d) time; the weights are held for a block of queries at a time, so memory is
    O(H T) beyond the inputs.

    Examples
    --------
    >>> import numpy as np
    >>> from secateur.core.attention import attention_received
    >>> queries, keys = np.ones((1, 2, 4)), np.ones((1, 3, 4))
    >>> attention_received(queries, keys, positions=np.array([1, 2])).round(3)
    array([0.833, 0.833, 0.333])
    """
    xp = namespace(queries)
    *batch, _, _, _ = shape_of(queries)
    length = int(keys.shape[-2])
    received = xp.zeros((*batch, length), dtype=wide(xp), device=device(queries))
    for part, shares in _shares(queries, keys, scale, key_mask, positions):
        shares = xp.astype(shares, received.dtype)
        if query_weights is not None:
            shares = shares * xp.astype(query_weights[..., part], received.dtype)[..., None]
        received = received + xp.sum(shares, axis=-2)
    return xp.astype(received, widened(queries).dtype)


def attention_rows(
    queries: Array,
    keys: Array,
    *,
    scale: float | None = None,
    key_mask: Array | None = None,
    positions: Array | None = None,
) -> Array:
    """Attention (..., Q, T) that each query pays each key, averaged over the heads.

    Arguments as in `attention_received`, which sums these rows. O(H Q T d) time, O(Q T) memory.
    """
    parts = [shares for _, shares in _shares(queries, keys, scale, key_mask, positions)]
    return namespace(queries).concat(parts, axis=-2)


def _shares(
    queries: Array,
    keys: Array,
    scale: float | None,
    key_mask: Array | None,
    positions: Array | None,
) -> Iterator[tuple[slice, Array]]:
    """Blocks of queries, and the attention (..., block, T) they pay, averaged over the heads."""
    queries, keys = widened(queries), widened(keys)
    xp = namespace(queries)
    *batch, heads, count, size = shape_of(queries)
    groups, length = shape_of(keys)[-3:-1]
    if heads % groups:
        raise ValueError(f"queries: {heads} heads are no multiple of the keys' {groups}")
    factor = 1.0 / math.sqrt(size) if scale is None else scale
    queries = xp.reshape(queries, (*batch, groups, heads // groups, count, size))
    turned = xp.matrix_transpose(keys)[..., :, None, :, :]
    places = xp.arange(length, device=device(queries))
    rows = math.prod(batch) * heads * length
    step = max(1, BLOCK // max(1, rows))
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        logits = factor * (queries[..., part, :] @ turned)
        hidden = None
        if positions is not None:
            seen = places <= positions[..., part][..., None]
            hidden = xp.logical_not(seen)[..., None, None, :, :]
        if key_mask is not None:
            absent = xp.logical_not(key_mask)[..., None, None, None, :]
            hidden = absent if hidden is None else hidden | absent
        if hidden is not None:
            logits = xp.where(hidden, like(-math.inf, logits, dtype=logits.dtype), logits)
        peak = xp.max(logits, axis=-1, keepdims=True)
        # A query that sees nothing gives nothing.
        peak = xp.where(xp.isfinite(peak), peak, xp.zeros_like(peak))
        weight = xp.exp(logits - peak)
        total = xp.sum(weight, axis=-1, keepdims=True)
        weight = weight / xp.where(total > 0, total, xp.ones_like(total))
        yield part, xp.sum(weight, axis=(-4, -3)) / heads


def text_attention(
    queries: Array,
    keys: Array,
    *,
    visual: Array,
    text: Array,
    mask: Array | None = None,
) -> Array:
    r"""Causal attention that visual tokens (N,) receive from text tokens, summed over the text.

    .. math::
        \sum_{q \in \text{text}} \frac{1}{H} \sum_h
        \operatorname{softmax}_{j \le q}(\langle Q_{hq}, K_{hj} \rangle / \sqrt{d})

    Arguments as in `InsideMethod.keep_visual`; masked text tokens neither ask nor are asked.
    O(H L T d) time.
    """
    check_attention(queries, keys, visual, text)
    xp = namespace(queries)
    weights = None
    if mask is not None:
        weights = xp.astype(xp.take(mask, text), xp.float32)
    received = attention_received(
        xp.take(queries, text, axis=-2),
        keys,
        query_weights=weights,
        key_mask=mask,
        positions=text,
    )
    return xp.take(received, visual, axis=-1)


def best(scores: Array, keep: int) -> Array:
    """Ascending places of the `keep` highest scores, ties to the lowest place."""
    return namespace(scores).sort(top(scores, min(keep, int(scores.shape[-1]))))


def real(positions: Array, mask: Array | None) -> Array:
    """Those of the positions (L,) that hold no padding."""
    if mask is None:
        return positions
    there = np.flatnonzero(to_numpy(namespace(mask).take(mask, positions)))
    if there.size == 0:
        raise ValueError("mask: leaves no token to ask; at least one must be real")
    return namespace(positions).take(positions, like(there, positions))


def check_attention(queries: Array, keys: Array, visual: Array, text: Array) -> None:
    """Refuse queries, keys and positions that do not fit together."""
    if queries.ndim != 3 or keys.ndim != 3 or shape_of(queries)[1:] != shape_of(keys)[1:]:
        raise ValueError(
            f"queries and keys: expected shapes (H, T, d) and (G, T, d), "
            f"got {spell(shape_of(queries))} and {spell(shape_of(keys))}"
        )
    if int(visual.shape[0]) == 0:
        raise ValueError("visual: expected the position of at least one visual token, got none")
    if int(text.shape[0]) == 0:
        raise ValueError("text: expected the position of at least one text token, got none")
