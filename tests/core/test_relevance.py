"""Relevance and score maps, against the formulas written out in NumPy."""

import math

import numpy as np
import pytest

import secateur as sc
from secateur.core.relevance import sharpest, softmax, text_entropy

pytestmark = pytest.mark.usefixtures("computed_by")


def rows(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def by_the_formula(
    visual,
    text,
    whole=None,
    *,
    temperature=100.0,
    share=0.2,
    cool=0.01,
    alpha=0.5,
    how="entropy",
    sign=-1,
):
    """One image, one text, written out."""
    e = visual / np.linalg.norm(visual, axis=-1, keepdims=True)
    t = text / np.linalg.norm(text, axis=-1, keepdims=True)
    g = text.mean(0) if whole is None else whole
    s = sign * e @ t.T
    p = np.exp(temperature * (s - s.max(0)))
    p /= p.sum(0)
    h = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(0)
    kept = np.argsort(h, kind="stable")[: max(1, math.floor(share * len(text)))]
    if how == "topk":
        dense = np.sort(s[:, kept], axis=1)[:, -5:].mean(1)
    else:
        logits = np.broadcast_to(-h[kept] / cool, (len(e), len(kept)))
        if how == "tempered":
            logits = s[:, kept] / (cool * h[kept])
        w = np.exp(logits - logits.max(1, keepdims=True))
        dense = ((w / w.sum(1, keepdims=True)) * s[:, kept]).sum(1)
    return alpha * sign * e @ (g / np.linalg.norm(g)) + (1 - alpha) * dense


@pytest.mark.parametrize("how", ["entropy", "tempered", "topk"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_dense_relevance_is_the_formula(to_xp, to_numpy, how, sign):
    visual, text, whole = rows(0, 20, 6), rows(1, 40, 6), rows(2, 6)
    r = sc.dense_relevance(
        to_xp(visual),
        to_xp(text),
        to_xp(whole),
        aggregate=how,
        sign=sign,
        keep_ratio=0.3,
        alpha=0.3,
    )
    expected = by_the_formula(visual, text, whole, how=how, sign=sign, share=0.3, alpha=0.3)
    np.testing.assert_allclose(to_numpy(r), expected, rtol=1e-9, atol=1e-12)


def test_dense_relevance_by_default(to_xp, to_numpy):
    visual, text = rows(3, 12, 5), rows(4, 25, 5)
    r = sc.dense_relevance(to_xp(visual), to_xp(text))
    np.testing.assert_allclose(to_numpy(r), by_the_formula(visual, text), rtol=1e-9, atol=1e-12)


def test_temperatures_are_where_they_belong(to_xp, to_numpy):
    visual, text = rows(5, 9, 4), rows(6, 10, 4)
    r = sc.dense_relevance(
        to_xp(visual), to_xp(text), temperature=7.0, entropy_temperature=0.2, keep_ratio=0.5
    )
    expected = by_the_formula(visual, text, temperature=7.0, cool=0.2, share=0.5)
    np.testing.assert_allclose(to_numpy(r), expected, rtol=1e-9, atol=1e-12)


def test_each_crop_keeps_text_tokens_of_its_own(to_xp, to_numpy):
    crops, text = rows(7, 3, 8, 4), rows(8, 10, 4)
    r = to_numpy(sc.dense_relevance(to_xp(crops), to_xp(text)))
    for crop, got in zip(crops, r, strict=True):
        np.testing.assert_allclose(got, by_the_formula(crop, text), rtol=1e-9, atol=1e-12)


def test_several_texts_give_the_mean(to_xp, to_numpy):
    visual, first, second = rows(9, 8, 4), rows(10, 6, 4), rows(11, 11, 4)
    wholes = [rows(12, 4), rows(13, 4)]
    mask = np.ones(11, bool)
    mask[7:] = False
    r = sc.dense_relevance(
        to_xp(visual),
        [to_xp(first), to_xp(second)],
        [to_xp(g) for g in wholes],
        text_mask=[to_xp(np.ones(6, bool)), to_xp(mask)],
    )
    expected = by_the_formula(visual, first, wholes[0]) + by_the_formula(
        visual, second[:7], wholes[1]
    )
    np.testing.assert_allclose(to_numpy(r), expected / 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("filler", [0.0, 1e30, np.nan, np.inf])
@pytest.mark.parametrize("how", ["entropy", "tempered", "topk"])
def test_masked_text_is_as_if_it_were_not_there(to_xp, to_numpy, filler, how):
    visual, text = rows(14, 8, 4), rows(15, 10, 4)
    mask = np.array([1, 1, 0, 1, 0, 1, 1, 1, 0, 1], bool)
    text[~mask] = filler
    r = sc.dense_relevance(
        to_xp(visual), to_xp(text), text_mask=to_xp(mask), keep_ratio=0.5, aggregate=how
    )
    expected = by_the_formula(visual, text[mask], share=0.5, how=how)
    np.testing.assert_allclose(to_numpy(r), expected, rtol=1e-9, atol=1e-12)


def test_masks_may_differ_by_image_and_come_as_lists(to_xp, to_numpy):
    visual, text = rows(16, 2, 8, 4), rows(17, 5, 4)
    mask = [[True, True, False, False, False], [False, True, True, True, True]]
    r = to_numpy(sc.dense_relevance(to_xp(visual), to_xp(text), text_mask=mask))
    np.testing.assert_allclose(r[0], by_the_formula(visual[0], text[:2]), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(r[1], by_the_formula(visual[1], text[1:]), rtol=1e-9, atol=1e-12)


def test_zero_vectors_are_ordinary(to_xp, to_numpy):
    r = sc.dense_relevance(to_xp(np.zeros((4, 3))), to_xp(np.zeros((2, 3))), aggregate="tempered")
    assert to_numpy(r).tolist() == [0.0] * 4


def test_one_token_and_one_word(to_xp):
    r = sc.dense_relevance(to_xp([[3.0, 0.0]]), to_xp([[1.0, 1.0]]))
    assert float(r[0]) == pytest.approx(-math.sqrt(0.5))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"keep_ratio": 0.0}, r"keep_ratio: expected a share in \(0, 1\], got 0"),
        ({"keep_ratio": 1.1}, r"keep_ratio: .* got 1.1"),
        ({"alpha": -0.1}, r"alpha: expected a share in \[0, 1\], got -0.1"),
        ({"aggregate": "mean"}, "aggregate: expected one of entropy, tempered, topk; got 'mean'"),
        ({"sign": 0}, "sign: expected -1 or 1, got 0"),
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0"),
        ({"entropy_temperature": -1.0}, "entropy_temperature: expected a positive number"),
        ({"text": np.ones(4)}, r"text: expected shape \(\.\.\., L, C\), got \(4,\)"),
        (
            {"text": np.ones((2, 5))},
            "text: expected vectors of length 4 as the visual tokens have, got 5",
        ),
        ({"text": np.full((2, 4), np.nan)}, "text: contains NaN or infinity"),
        ({"text": np.ones((3, 2, 4))}, r"text: its leading axes \(3,\) do not broadcast with \(2,"),
        (
            {"text_global": np.ones(5)},
            "text_global: expected vectors of length 4 as the visual tokens have",
        ),
        ({"text_mask": np.ones(3, bool)}, "text_mask: 3 places for 2 text tokens"),
        ({"text_mask": np.zeros(2, bool)}, "text_mask: masks every text token out"),
        (
            {"text": np.ones((2, 2, 4)), "text_mask": np.ones((3, 2), bool)},
            r"text_mask: its leading axes \(3,\) do not broadcast with \(2,\) of text",
        ),
        ({"visual": np.full((2, 3, 4), np.inf)}, "visual: contains NaN or infinity"),
    ],
)
def test_dense_relevance_refuses(to_xp, arguments, words):
    given = {"visual": np.ones((2, 3, 4)), "text": np.ones((2, 4))} | arguments
    given = {k: to_xp(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    with pytest.raises(ValueError, match=words):
        sc.dense_relevance(**given)


def test_lists_of_texts_need_lists_of_the_rest(to_xp):
    visual, text = to_xp(np.ones((3, 4))), to_xp(np.ones((2, 4)))
    with pytest.raises(ValueError, match="text: expected at least one text"):
        sc.dense_relevance(visual, [])
    with pytest.raises(ValueError, match="text_global: expected a list with one entry for each"):
        sc.dense_relevance(visual, [text, text], to_xp(np.ones(4)))
    with pytest.raises(ValueError, match=r"text_mask: .* each of the 2 texts"):
        sc.dense_relevance(visual, [text, text], text_mask=[None])


def test_entropies_and_the_sharpest_words(to_xp, to_numpy):
    s = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    h = to_numpy(text_entropy(to_xp(s), 1.0))
    p = np.exp([1.0, 0, 0]) / np.exp([1.0, 0, 0]).sum()
    np.testing.assert_allclose(h, [-(p * np.log(p)).sum(), math.log(3)])
    entropies = to_xp([0.3, 0.1, 0.2, 0.1, 0.0])
    mask = to_xp(np.array([True, True, True, True, False]))
    assert to_numpy(sharpest(entropies, mask, 0.5)).tolist() == [0, 1, 0, 1, 0]
    assert to_numpy(sharpest(entropies, mask, 0.01)).tolist() == [0, 1, 0, 0, 0]
    # In float64 0.29 * 100 is a little under 29.
    many = to_xp(np.linspace(1.0, 2.0, 100))
    assert to_numpy(sharpest(many, to_xp(np.ones(100, dtype=bool)), 0.29)).sum() == 29


def test_softmax_gives_nothing_to_minus_infinity(to_xp, to_numpy):
    p = to_numpy(softmax(to_xp([1e30, 1e30, -np.inf])))
    assert p.tolist() == [0.5, 0.5, 0.0]


def test_min_max(to_xp, to_numpy):
    r = to_numpy(sc.min_max(to_xp([[2.0, 4.0, 3.0], [7.0, 7.0, 7.0]])))
    np.testing.assert_allclose(r[0], [1e-6 / (2 + 1e-6), 1.0, (1 + 1e-6) / (2 + 1e-6)], rtol=1e-12)
    assert r[1].tolist() == [1.0, 1.0, 1.0]


def test_min_max_over_all_crops_together(to_xp, to_numpy):
    r = to_numpy(sc.min_max(to_xp([[0.0, 1.0], [3.0, 4.0]]), axis=(-2, -1)))
    np.testing.assert_allclose(r, [[0, 0.25], [0.75, 1.0]], atol=1e-6)


def test_smooth_is_a_reflected_gaussian(to_xp, to_numpy):
    scores = rows(18, 4, 5)
    side = math.exp(-0.5 / 0.8**2)
    one = np.array([side, 1.0, side]) / (1.0 + 2.0 * side)
    padded = np.pad(scores, 1, mode="reflect")
    expected = sum(
        one[i] * one[j] * padded[i : i + 4, j : j + 5] for i in range(3) for j in range(3)
    )
    got = sc.smooth(to_xp(scores.reshape(20)), (4, 5), sigma=0.8)
    np.testing.assert_allclose(to_numpy(got).reshape(4, 5), expected, rtol=1e-12)


@pytest.mark.parametrize(("grid", "size"), [((1, 1), 5), ((1, 4), 3), ((2, 2), 7)])
def test_smooth_on_grids_smaller_than_its_window(to_xp, to_numpy, grid, size):
    n = grid[0] * grid[1]
    constant = to_numpy(sc.smooth(to_xp(np.full(n, 2.5)), grid, size=size))
    np.testing.assert_allclose(constant, np.full(n, 2.5), rtol=1e-14)


def test_polarize_is_a_power(to_xp, to_numpy):
    scores = [0.0, 0.25, 1.0]
    assert to_numpy(sc.polarize(to_xp(scores), 0.5)).tolist() == [0.0, 0.5, 1.0]
    assert to_numpy(sc.polarize(to_xp(scores), 1)).tolist() == scores
    assert to_numpy(sc.polarize(to_xp(scores), 0.0)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: sc.smooth(x, (2, 4)), "grid: 2 x 4 = 8 places for 6 tokens"),
        (lambda x: sc.smooth(x, (2, -3)), r"grid: expected \(h, w\), two positive whole numbers"),
        (lambda x: sc.smooth(x, 6), r"grid: expected \(h, w\)"),
        (lambda x: sc.smooth(x, (2, 3), size=4), "size: expected an odd window .* got 4"),
        (lambda x: sc.smooth(x, (2, 3), sigma=0.0), "sigma: expected a positive width, got 0"),
        (lambda x: sc.polarize(x, -1.0), "beta: expected a finite power of at least 0, got -1"),
        (lambda x: sc.polarize(x, math.inf), "beta: expected a finite power"),
        (lambda x: sc.polarize(-x, 1.0), "scores: expected no negative numbers, .* -1"),
        (lambda x: sc.min_max(x * math.nan), "scores: contains NaN or infinity"),
        (lambda x: sc.min_max(x[:0]), r"scores: expected shape \(\.\.\., N\) without empty axes"),
    ],
)
def test_maps_refuse(to_xp, call, words):
    with pytest.raises(ValueError, match=words):
        call(to_xp(np.ones(6)))


def test_check_finite_can_be_switched_off(to_xp, to_numpy):
    assert math.isnan(to_numpy(sc.min_max(to_xp([math.nan, 1.0]), check_finite=False))[0])
    assert math.isnan(to_numpy(sc.polarize(to_xp([math.nan]), 2.0, check_finite=False))[0])


def test_words_whose_entropies_tie_but_for_rounding_go_the_same_way() -> None:
    """On duplicated patches two words tie in truth, and each backend adds in its own order."""
    torch = pytest.importorskip("torch")
    differ = 0
    for seed in range(40):
        dice = np.random.default_rng(seed)
        half = dice.standard_normal((24, 6))
        visual = np.concatenate([half, half[dice.permutation(24)]])
        turn = np.linalg.qr(dice.standard_normal((6, 6)))[0]
        # A reflection that maps the patches onto themselves, and words onto other words.
        flip = turn @ np.diag([-1.0, 1, 1, 1, 1, 1]) @ turn.T
        visual = np.concatenate([visual, visual @ flip])
        word = dice.standard_normal((4, 6))
        text = np.concatenate([word, word @ flip])
        kinds = {}
        for name in ("reference", "numpy", "torch"):
            lift = torch.from_numpy if name == "torch" else np.asarray
            with sc.backend(name):
                kinds[name] = np.asarray(
                    sc.dense_relevance(lift(visual), lift(text), keep_ratio=0.125)
                )
        order = dice.permutation(len(visual))
        moved = sc.dense_relevance(visual[order], text, keep_ratio=0.125)
        for other in (kinds["numpy"], kinds["torch"], moved[np.argsort(order)]):
            differ += not np.allclose(kinds["reference"], other, rtol=0, atol=1e-9)
    assert differ == 0


def test_powers_that_overflow_are_refused(to_xp) -> None:
    with pytest.raises(ValueError, match="scores: 9 to the power beta = 1000 leaves the range"):
        sc.polarize(to_xp(np.asarray([1.0, 2.0, 9.0])), 1000.0)
    assert float(sc.polarize(to_xp(np.asarray([0.0, 1.0])), 1000.0)[1]) == 1.0
