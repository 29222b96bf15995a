"""Attention received, against the whole matrix written out."""

import math

import numpy as np
import pytest

from secateur.core import attention
from secateur.core.attention import attention_received, attention_rows

pytestmark = pytest.mark.usefixtures("computed_by")


def in_full(queries, keys, *, scale=None, mask=None, positions=None):
    """Attention (..., Q, T), averaged over the heads, head by head in NumPy."""
    *batch, heads, count, size = queries.shape
    group = heads // keys.shape[-3]
    out = np.zeros((*batch, count, keys.shape[-2]))
    for b in np.ndindex(*batch):
        for h in range(heads):
            logits = queries[b][h] @ keys[b][h // group].T * (scale or 1 / math.sqrt(size))
            if positions is not None:
                seen = np.arange(keys.shape[-2]) <= positions[b][:, None]
                logits = np.where(seen, logits, -np.inf)
            if mask is not None:
                logits = np.where(mask[b], logits, -np.inf)
            top = logits.max(-1, keepdims=True)
            weight = np.exp(logits - np.where(np.isfinite(top), top, 0))
            total = weight.sum(-1, keepdims=True)
            out[b] += weight / np.where(total > 0, total, 1) / heads
    return out


@pytest.fixture
def layer():
    rng = np.random.default_rng(0)
    return {
        "queries": rng.normal(size=(2, 4, 5, 3)),
        "keys": rng.normal(size=(2, 2, 7, 3)),
        "weights": rng.random((2, 5)),
        "mask": np.array([[1, 1, 1, 1, 1, 1, 0], [1, 0, 1, 1, 1, 1, 1]], bool),
        "positions": np.array([[0, 2, 4, 5, 6], [1, 1, 3, 3, 6]]),
    }


def test_every_query_sees_every_key(layer, to_xp, to_numpy):
    got = attention_received(to_xp(layer["queries"]), to_xp(layer["keys"]))
    expected = in_full(layer["queries"], layer["keys"]).sum(-2)
    np.testing.assert_allclose(to_numpy(got), expected, rtol=1e-10)
    np.testing.assert_allclose(to_numpy(got).sum(-1), 5.0)


def test_weights_masks_scales_and_positions(layer, to_xp, to_numpy):
    got = attention_received(
        to_xp(layer["queries"]),
        to_xp(layer["keys"]),
        scale=0.7,
        query_weights=to_xp(layer["weights"]),
        key_mask=to_xp(layer["mask"]),
        positions=to_xp(layer["positions"]),
    )
    rows = in_full(
        layer["queries"],
        layer["keys"],
        scale=0.7,
        mask=layer["mask"],
        positions=layer["positions"],
    )
    expected = (rows * layer["weights"][..., None]).sum(-2)
    np.testing.assert_allclose(to_numpy(got), expected, rtol=1e-10, atol=1e-15)
    assert to_numpy(got)[0, 6] == to_numpy(got)[1, 1] == 0.0


def test_blocks_of_queries_add_up(layer, to_xp, to_numpy, monkeypatch):
    arguments = to_xp(layer["queries"]), to_xp(layer["keys"])
    more = {
        "query_weights": to_xp(layer["weights"]),
        "positions": to_xp(layer["positions"]),
        "key_mask": to_xp(layer["mask"]),
    }
    whole = to_numpy(attention_received.reference(*arguments, **more))
    monkeypatch.setattr(attention, "BLOCK", 2 * 4 * 7 * 2)
    np.testing.assert_allclose(
        to_numpy(attention_received.reference(*arguments, **more)), whole, rtol=1e-12
    )
    monkeypatch.setattr(attention, "BLOCK", 1)
    np.testing.assert_allclose(
        to_numpy(attention_rows(*arguments)), in_full(layer["queries"], layer["keys"]), rtol=1e-10
    )


def test_a_query_that_sees_nothing_gives_nothing(to_xp, to_numpy):
    got = attention_received(
        to_xp(np.ones((1, 2, 3))),
        to_xp(np.ones((1, 2, 3))),
        key_mask=to_xp(np.array([False, True])),
        positions=to_xp(np.array([0, 1])),
    )
    np.testing.assert_allclose(to_numpy(got), [0.0, 1.0])


def test_half_precision_is_computed_in_float32(xp, to_numpy):
    for name in ("float16", "bfloat16"):
        if hasattr(xp, name):
            dtype = getattr(xp, name)
            got = attention_received(
                xp.ones((2, 3, 4), dtype=dtype), xp.ones((1, 5, 4), dtype=dtype)
            )
            assert str(got.dtype).endswith("float32")
            np.testing.assert_allclose(to_numpy(got), np.full(5, 0.6), rtol=1e-6)


def test_extreme_logits_do_not_overflow(to_xp, to_numpy):
    queries = to_xp(np.full((1, 1, 1), 1e15))
    got = attention_received(queries, to_xp(np.array([[[1e15], [-1e15], [1e15]]])))
    assert to_numpy(got).tolist() == [0.5, 0.0, 0.5]


def test_heads_must_share_the_keys_evenly(to_xp):
    with pytest.raises(ValueError, match="queries: 3 heads are no multiple of the keys' 2"):
        attention_received(to_xp(np.ones((3, 1, 2))), to_xp(np.ones((2, 4, 2))))
