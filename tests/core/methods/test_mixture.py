"""Two methods sharing a budget."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import secateur as sc


def by_hand(tokens, second, k, share):
    """The top of the attention, then what `second` chooses from those left."""
    count = int((1 - share) * k + 1e-9)
    kept = np.argsort(-tokens.attention, kind="stable")[:count]
    left = np.setdiff1d(np.arange(tokens.size), kept)
    if k == count:
        return kept.tolist()
    rest = sc.Tokens(features=tokens.features[left], attention=tokens.attention[left])
    more = replace(second, keep=k - count).select(rest).indices
    return [*kept.tolist(), *left[more].tolist()]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("second", [sc.DivPrune(), sc.VisPruner(important=0.0)])
def test_the_second_chooses_from_what_the_first_left(image, to_xp, to_numpy, row, share, second):
    host = image(batch=(2,))
    tokens = image(batch=(2,), convert=to_xp)
    for k in (1, 11, 36):
        chosen = sc.Mixture(keep=k, diversity=second, share=share).select(tokens)
        for b in range(2):
            expected = by_hand(row(host, b), second, k, share)
            assert to_numpy(chosen.indices)[b].tolist() == expected
            assert len(set(expected)) == k
        assert to_numpy(chosen.info["diverse"]).tolist() == [k - int((1 - share) * k)] * 2


def test_half_and_half_with_pairing_is_vispruner(image):
    tokens = image(n=61)
    mixed = sc.Mixture(keep=20, diversity=sc.VisPruner(important=0.0), share=0.5).select(tokens)
    assert mixed.indices.tolist() == sc.VisPruner(keep=20).select(tokens).indices.tolist()


def with_erank(rank, n=24):
    """An image whose n tokens point into `rank` directions equally: its effective rank."""
    return sc.Tokens(features=np.eye(n)[np.arange(n) % rank], attention=np.linspace(1.0, 0.1, n))


@pytest.mark.parametrize(
    ("slope", "expected"), [(0.5, [3, 6, 9, 12]), (-0.5, [9, 6, 3, 0]), (0.0, [6, 6, 6, 6])]
)
def test_the_share_is_a_line_in_the_relative_effective_rank(slope, expected):
    images = [with_erank(rank) for rank in (4, 8, 12, 24)]
    method = sc.Mixture(keep=12, mean_erank=8.0, share=0.5, slope=slope)
    assert [int(s.info["diverse"]) for s in method.select(images)] == expected
    calibrated = sc.Mixture(keep=12, mean_erank=sc.Calibration(8.0), share=0.5, slope=slope)
    assert [int(s.info["diverse"]) for s in calibrated.select(images)] == expected


def test_rows_of_a_batch_have_shares_of_their_own(to_xp, to_numpy):
    images = [with_erank(rank) for rank in (4, 12)]
    batch = sc.Tokens(
        features=to_xp(np.stack([each.features for each in images])),
        attention=to_xp(np.stack([each.attention for each in images])),
    )
    method = sc.Mixture(keep=12, mean_erank=8.0, share=0.5)
    chosen = method.select(batch)
    assert to_numpy(chosen.info["diverse"]).tolist() == [3, 9]
    for b, each in enumerate(images):
        assert to_numpy(chosen.indices)[b].tolist() == method.select(each).indices.tolist()


def test_by_default_diversity_chooses_three_quarters(image):
    chosen = sc.Mixture(keep=16).select(image())
    assert int(chosen.info["diverse"]) == 12


def test_an_adaptive_batch_without_images():
    none = sc.Tokens(features=np.empty((0, 16, 16)), attention=np.empty((0, 16)))
    chosen = sc.Mixture(keep=12, mean_erank=8.0).select(none)
    assert chosen.indices.shape == (0, 12)
    assert chosen.count.shape == (0,)


def test_entropy_as_the_measure_of_complexity():
    images = [
        sc.Tokens(features=np.eye(16), attention=(np.arange(16) < spread) / spread)
        for spread in (4, 16)
    ]
    method = sc.Mixture(keep=8, mean_erank=np.log(8.0), measure="entropy", share=0.5, slope=0.75)
    # log 4 / log 8 = 2/3 and log 16 / log 8 = 4/3: shares 1/4 and 3/4.
    assert [int(s.info["diverse"]) for s in method.select(images)] == [2, 6]
    assert "attention" in sc.Mixture(attention=sc.Random(), mean_erank=2.0, measure="entropy").needs


def test_it_needs_what_the_two_need(image):
    method = sc.Mixture(attention=sc.HiPrune(), diversity=sc.CDPruner())
    assert method.needs == {"attention", "attention_shallow", "features", "grid", "text_global"}
    assert method.optional == {"embeds"}
    with pytest.raises(sc.MissingInputError, match=r"Mixture needs tokens\.text_global"):
        method.select(image().with_(text_global=None))
    assert len(set(method.select(image()).indices.tolist())) == 36


@pytest.mark.parametrize(
    "method",
    [
        sc.Mixture(keep=0.25, attention=sc.HiPrune(alpha=0.3), diversity=sc.FPS(start=2)),
        sc.Mixture(attention=sc.Mixture(share=0.2), mean_erank=sc.Calibration(12.5)),
    ],
)
def test_nested_methods_survive_printing_and_storing(method):
    assert eval(repr(method), vars(sc)) == method
    assert sc.Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method


def test_what_cannot_be_mixed_is_refused(image):
    with pytest.raises(ValueError, match="diversity: UniformGrid works from the grid"):
        sc.Mixture(diversity=sc.UniformGrid())
    with pytest.raises(ValueError, match="attention: expected a method that prunes before"):
        sc.Mixture(attention=sc.FastV())
    with pytest.raises(ValueError, match="share: expected a share"):
        sc.Mixture(share=1.5)
    with pytest.raises(ValueError, match="slope: expected a finite number"):
        sc.Mixture(slope=float("nan"))
    adaptive = sc.Mixture(attention=sc.PruMergePlus(adaptive=True), share=0.5)
    with pytest.raises(ValueError, match=r"PruMergePlus: asked for 18 tokens it kept"):
        adaptive.select(image().with_(attention=np.ones(36)))
