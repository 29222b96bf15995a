"""EADP: scoring options, texts, crops, frames."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc


def by_hand(tokens, method):
    """The formulas, written out in NumPy for one image."""
    e = tokens.features if tokens.embeds is None else tokens.embeds
    e = e / np.linalg.norm(e, axis=1, keepdims=True)
    t = tokens.text / np.linalg.norm(tokens.text, axis=1, keepdims=True)
    g = tokens.text_global / np.linalg.norm(tokens.text_global)
    s = method.sign * e @ t.T
    p = np.exp(method.temperature * s)
    p = p / p.sum(0)
    h = -(p * np.log(p)).sum(0)
    kept = np.argsort(h, kind="stable")[: max(1, int(method.keep_ratio * len(t)))]
    w = np.exp(-(h[kept] - h[kept].min()) / method.entropy_temperature)
    dense = s[:, kept] @ (w / w.sum())
    r = method.alpha * method.sign * e @ g + (1 - method.alpha) * dense
    r = (r - r.min() + 1e-6) / (r.max() - r.min() + 1e-6)
    window = np.exp(-0.5 * (np.array([-1, 0, 1]) / method.smoothing) ** 2)
    window = np.outer(window, window) / np.outer(window, window).sum()
    padded = np.pad(r.reshape(tokens.grid), 1, mode="reflect")
    h_, w_ = tokens.grid
    r = sum(
        window[i, j] * padded[i : i + h_, j : j + w_] for i in range(3) for j in range(3)
    ).ravel()
    return r**method.beta


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"alpha": 0.0, "beta": 2.0},
        {"alpha": 1.0, "sign": 1},
        {"keep_ratio": 0.7, "entropy_temperature": 0.5, "temperature": 20.0},
        {"smoothing": 0.6},
    ],
)
def test_relevance_is_the_formula(image, parameters):
    tokens, method = image(), sc.EADP(keep=6, **parameters)
    chosen = method.select(tokens)
    np.testing.assert_allclose(chosen.scores, by_hand(tokens, method), rtol=1e-9)
    x = tokens.features / np.linalg.norm(tokens.features, axis=1, keepdims=True)
    f = sc.FacilityLocation((1 + x @ x.T) / 2, chosen.scores)
    assert chosen.indices.tolist() == sc.maximize(f, 6, "naive").indices.tolist()
    np.testing.assert_allclose(float(f.value(chosen.indices)), float(chosen.value), rtol=1e-12)


@pytest.mark.parametrize("aggregate", ["tempered", "topk"])
def test_other_aggregates(image, aggregate):
    tokens = image()
    r = sc.dense_relevance(
        tokens.features, tokens.text, tokens.text_global, aggregate=aggregate, keep_ratio=0.8
    )
    expected = sc.smooth(sc.min_max(r), tokens.grid)
    chosen = sc.EADP(keep=6, aggregate=aggregate, keep_ratio=0.8).select(tokens)
    np.testing.assert_allclose(chosen.scores, expected, rtol=1e-12)
    assert not np.allclose(chosen.scores, sc.EADP(keep=6, keep_ratio=0.8).select(tokens).scores)


def test_several_texts_count_with_their_mean(image):
    tokens = image()
    other = np.random.default_rng(1).normal(size=(9, 8))
    both = tokens.with_(text=[tokens.text, other], text_global=None)
    parts = [sc.dense_relevance(tokens.features, text, None) for text in (tokens.text, other)]
    expected = sc.smooth(sc.min_max((parts[0] + parts[1]) / 2), tokens.grid)
    np.testing.assert_allclose(sc.EADP(keep=6).select(both).scores, expected, rtol=1e-12)


def test_without_a_grid_nothing_is_smoothed(image):
    bare = image().with_(grid=None)
    unsmoothed = sc.EADP(keep=6, smoothing=0.0).select(image())
    assert np.array_equal(sc.EADP(keep=6).select(bare).scores, unsmoothed.scores)
    assert not np.allclose(sc.EADP(keep=6).select(image()).scores, unsmoothed.scores)


def test_embeds_score_and_features_cover(image):
    tokens = image()
    embeds = np.random.default_rng(2).normal(size=(36, 8))
    chosen = sc.EADP(keep=6).select(tokens.with_(embeds=embeds))
    np.testing.assert_allclose(
        chosen.scores, sc.EADP(keep=6).select(tokens.with_(features=embeds)).scores
    )
    f = sc.FacilityLocation.from_features(tokens.features, chosen.scores)
    assert chosen.indices.tolist() == sc.maximize(f, 6).indices.tolist()


def test_frames_are_chosen_one_by_one(image, row):
    video = image(batch=(3,))
    together = sc.EADP(keep=5).select(video)
    assert together.indices.shape == (3, 5)
    for frame in range(3):
        alone = sc.EADP(keep=5).select(row(video, frame))
        assert together.row(frame).indices.tolist() == alone.indices.tolist()
        np.testing.assert_allclose(together.scores[frame], alone.scores)


def test_a_large_image_needs_no_matrix(image, monkeypatch):
    from secateur.core.methods import eadp

    expected = sc.EADP(keep=6).select(image())
    monkeypatch.setattr(eadp, "MATRIX_UP_TO", 10)
    monkeypatch.setattr(eadp, "cosine_similarity", None)
    chosen = sc.EADP(keep=6).select(image())
    assert chosen.indices.tolist() == expected.indices.tolist()


class TestCrops:
    """Five crops of one image share five times the budget."""

    def test_normalised_together_smoothed_apart(self, image):
        tokens = image(batch=(5,))
        raw = sc.dense_relevance(tokens.features, tokens.text, tokens.text_global)
        expected = sc.smooth(sc.min_max(raw, axis=(-2, -1)), tokens.grid)
        chosen = sc.EADP(keep=4, crops="importance").select(tokens)
        np.testing.assert_allclose(chosen.scores, expected)
        frames = sc.EADP(keep=4).select(tokens)
        assert not np.allclose(chosen.scores, frames.scores)

    @pytest.mark.parametrize("crops", ["importance", "guided", "joint"])
    @pytest.mark.parametrize("keep", [1, 4, 7, 0.3, 35, 36, 50])
    def test_exact_rounding_spends_all(self, image, crops, keep):
        tokens = image(batch=(5,))
        chosen = sc.EADP(keep=keep, crops=crops).select(tokens)
        k = sc.EADP(keep=keep).budget(36)
        assert int(chosen.count.sum()) == 5 * k
        for crop in range(5):
            picks = chosen.row(crop).indices.tolist()
            assert len(set(picks)) == len(picks) == int(chosen.count[crop])
            assert len(picks) >= 1 or crops == "joint"

    def test_importance_follows_the_sums(self, image):
        tokens = image(batch=(5,))
        chosen = sc.EADP(keep=4, crops="importance", rounding="floor").select(tokens)
        sums = chosen.scores.sum(-1)
        expected = np.maximum(1, np.floor(20 * sums / (sums.sum() + 1e-6)))
        assert chosen.count.tolist() == expected.tolist()
        exact = sc.EADP(keep=4, crops="importance").select(tokens).count
        assert exact.tolist() == sc.allocate(sums, 20).tolist()

    @pytest.mark.parametrize("rounding", ["exact", "floor"])
    def test_guided_follows_the_quarters_of_the_overview(self, image, rounding):
        tokens = image(batch=(5,))
        chosen = sc.EADP(keep=6, crops="guided", rounding=rounding).select(tokens)
        overview = chosen.scores[0].reshape(6, 6)
        quarters = [overview[i : i + 3, j : j + 3].sum() for i in (0, 3) for j in (0, 3)]
        rest = sc.allocate(np.array(quarters), 24, rounding=rounding)
        assert chosen.count.tolist() == [6, *rest.tolist()]

    def test_guided_follows_other_layouts(self, image):
        tokens = image(batch=(3,))
        chosen = sc.EADP(keep=10, crops="guided", layout=(1, 2)).select(tokens)
        overview = chosen.scores[0].reshape(6, 6)
        halves = np.array([overview[:, :3].sum(), overview[:, 3:].sum()])
        assert chosen.count.tolist() == [6, *sc.allocate(halves, 24).tolist()]

    def test_joint_is_one_pool(self, image):
        tokens = image(batch=(5,))
        chosen = sc.EADP(keep=4, crops="joint").select(tokens)
        f = sc.FacilityLocation.from_features(
            tokens.features.reshape(180, 8), chosen.scores.reshape(180)
        )
        pool = sc.maximize(f, 20)
        expected = np.zeros(180, dtype=bool)
        expected[pool.indices] = True
        assert np.array_equal(chosen.mask().reshape(180), expected)
        np.testing.assert_allclose(float(chosen.info["pool_value"]), float(pool.value))
        np.testing.assert_allclose(float(chosen.value.sum()), float(pool.value))
        assert float(chosen.info["pool_upper_bound"]) >= float(pool.value)

    @pytest.mark.parametrize("crops", ["importance", "guided", "joint"])
    def test_images_of_a_batch_bring_their_own_texts(self, image, crops):
        dice = np.random.default_rng(3)
        pair = image(batch=(2, 5))
        texts, wholes = dice.normal(size=(2, 7, 8)), dice.normal(size=(2, 8))
        mask = np.array([[True] * 7, [True] * 4 + [False] * 3])
        method = sc.EADP(keep=4, crops=crops)
        together = method.select(pair.with_(text=texts, text_global=wholes, text_mask=mask))
        for one in range(2):
            alone = method.select(
                image(batch=(2, 5)).with_(
                    features=pair.features[one],
                    attention=None,
                    attention_shallow=None,
                    keys=None,
                    text=texts[one],
                    text_global=wholes[one],
                    text_mask=mask[one],
                )
            )
            assert np.array_equal(together.mask()[one], alone.mask())
            for crop in range(5):
                expected = alone.row(crop).indices.tolist()
                assert together.row(one, crop).indices.tolist() == expected

    def test_several_texts_beside_crops(self, image):
        dice = np.random.default_rng(4)
        tokens = image(batch=(5,))
        texts = [tokens.text, dice.normal(size=(9, 8))]
        both = tokens.with_(text=texts, text_global=None, text_mask=[None, [True] * 9])
        raw = [sc.dense_relevance(tokens.features, text) for text in texts]
        expected = sc.smooth(sc.min_max((raw[0] + raw[1]) / 2, axis=(-2, -1)), tokens.grid)
        chosen = sc.EADP(keep=4, crops="importance").select(both)
        np.testing.assert_allclose(chosen.scores, expected, rtol=1e-12)

    @pytest.mark.parametrize("crops", ["importance", "guided", "joint"])
    def test_every_array_library(self, image, xp, to_xp, to_numpy, crops):
        method = sc.EADP(keep=4, crops=crops)
        chosen = method.select(image(batch=(5,), convert=to_xp))
        expected = method.select(image(batch=(5,)))
        for name in ("indices", "count"):
            answer = getattr(chosen, name)
            assert type(answer) is type(chosen.scores)
            assert to_numpy(answer).tolist() == getattr(expected, name).tolist()
        np.testing.assert_allclose(to_numpy(chosen.gains), expected.gains, rtol=1e-9)

    def test_what_does_not_fit_is_refused(self, image):
        with pytest.raises(ValueError, match=r"crops='joint' expects shape \(\.\.\., K, N, D\)"):
            sc.EADP(crops="joint").select(image())
        with pytest.raises(ValueError, match=r"layout \(2, 2\) expects an overview and 4 crops"):
            sc.EADP(keep=2, crops="guided").select(image(batch=(3,)))
        with pytest.raises(ValueError, match=r"^grid: crops='guided' needs"):
            sc.EADP(keep=2, crops="guided").select(image(batch=(5,)).with_(grid=None))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": 1.5}, r"^alpha: expected a share in \[0, 1\], got 1\.5"),
        ({"beta": -1.0}, r"^beta: expected a finite number of at least 0"),
        ({"keep_ratio": 0.0}, r"^keep_ratio: expected a share in \(0, 1\]"),
        ({"temperature": 0.0}, r"^temperature: expected a finite number above 0"),
        ({"entropy_temperature": -1.0}, r"^entropy_temperature: "),
        ({"aggregate": "mean"}, r"^aggregate: expected one of entropy, tempered, topk"),
        ({"sign": 0}, r"^sign: expected -1 or 1, got 0"),
        ({"smoothing": -1.0}, r"^smoothing: "),
        ({"crops": "all"}, r"^crops: expected one of importance, guided, joint"),
        ({"rounding": "up"}, r"^rounding: expected one of exact, floor"),
        ({"layout": (2,)}, r"^layout: expected "),
        ({"layout": (0, 2)}, r"^layout: expected a whole number of at least 1"),
    ],
)
def test_parameters_are_checked(parameters, message):
    with pytest.raises(ValueError, match=message):
        sc.EADP(**parameters)


@pytest.mark.parametrize("similarity", ["norms", "exemplar", "gaussian", "softmax"])
def test_other_similarities_cover_by_the_same_relevance(image, similarity):
    tokens = image()
    chosen = sc.EADP(keep=6, similarity=similarity).select(tokens)
    f = sc.FacilityLocation.from_features(tokens.features, chosen.scores, similarity=similarity)
    assert chosen.indices.tolist() == sc.maximize(f, 6, "naive").indices.tolist()
    np.testing.assert_allclose(chosen.scores, sc.EADP(keep=6).select(tokens).scores)
    assert float(chosen.guarantee) > 1 - 1 / np.e
