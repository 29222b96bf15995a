"""What the papers claim and arrays can show, and where we do better than the authors' programs."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.relevance import sharpest, text_entropy
from secateur.core.similarity import unit

SIDE, WIDTH = 16, 32


def scene(seed, regions, spread=0.3):
    """A grid of regions, each about a direction of its own; region of each token."""
    dice = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2)
    centres = dice.uniform(0, SIDE, (regions, 2))
    region = ((places[:, None] - centres) ** 2).sum(-1).argmin(1)
    directions = unit(dice.normal(size=(regions, WIDTH)))
    features = directions[region] + spread * unit(dice.normal(size=(SIDE * SIDE, WIDTH)))
    return features, region, directions, dice


class TestEADP:
    """Textual noise is filtered, small regions are covered."""

    def planted(self):
        """Tokens that share a direction beside their region's, and a word for that direction."""
        features, _, directions, _ = scene(0, 6)
        features = np.pad(unit(features), ((0, 0), (0, 1)), constant_values=0.5)
        words = np.pad(directions, ((0, 0), (0, 1)))
        return features, words, np.eye(WIDTH + 1)[-1]

    def test_the_filter_removes_a_planted_diffuse_word(self):
        features, words, diffuse = self.planted()
        text = np.vstack([words[:2], diffuse, words[2:4]])
        entropies = text_entropy(unit(features) @ unit(text).T)
        assert entropies.argmax() == 2
        # It lies on all tokens alike; the others point at a place.
        np.testing.assert_allclose(entropies[2], np.log(SIDE * SIDE))
        assert np.delete(entropies, 2).max() < 0.75 * np.log(SIDE * SIDE)
        kept = sharpest(entropies, np.ones(5, dtype=bool), 0.8)
        assert kept.tolist() == [True, True, False, True, True]

    def test_the_word_it_removes_changes_nothing(self):
        features, words, diffuse = self.planted()
        method = sc.EADP(keep=20, keep_ratio=0.5, sign=1)
        sharp = sc.Tokens(features=features, text=words[:1], text_global=words[0])
        noisy = sharp.with_(text=np.vstack([words[:1], diffuse]))
        np.testing.assert_allclose(method.select(noisy).scores, method.select(sharp).scores)
        unfiltered = sc.EADP(keep=20, keep_ratio=1.0, sign=1, entropy_temperature=100.0)
        assert not np.allclose(unfiltered.select(noisy).scores, method.select(sharp).scores)

    def test_a_small_region_is_covered_that_top_k_misses(self):
        features, region, directions, dice = scene(1, 5)
        # Six tokens in a corner that show something else, less attended than a large region.
        corner = np.array([0, 1, 2, SIDE, SIDE + 1, SIDE + 2])
        own = unit(dice.normal(size=WIDTH))
        features[corner] = own + 0.1 * unit(dice.normal(size=(6, WIDTH)))
        salient = np.bincount(np.delete(region, corner)).argmax()
        text = np.vstack([directions[salient], 0.9 * own + 0.4 * directions[salient]])
        tokens = sc.Tokens(features=features, text=text, text_global=text[0], grid=(SIDE, SIDE))
        eadp = sc.EADP(keep=12, keep_ratio=1.0, sign=1)
        chosen = eadp.select(tokens)
        top = sc.TopK(keep=12).select(tokens.with_(attention=chosen.scores))
        assert not np.isin(top.indices, corner).any()
        assert np.isin(chosen.indices, corner).any()

    def test_the_set_stands_for_more_than_top_k_does(self):
        for seed in range(5):
            features, _, directions, _ = scene(seed, 8)
            tokens = sc.Tokens(features=features, text=directions[:3], grid=(SIDE, SIDE))
            chosen = sc.EADP(keep=16, sign=1).select(tokens)
            top = sc.TopK(keep=16).select(tokens.with_(attention=chosen.scores))
            f = sc.FacilityLocation.from_features(features, chosen.scores)
            assert float(chosen.value) > 1.02 * float(f.value(top.indices))

    @pytest.mark.parametrize("grid", [(1, 1), (1, 9), (9, 1), (2, 1), (3, 5)])
    def test_grids_of_any_shape_are_smoothed(self, grid):
        """The authors' program pads by reflection, which needs sides of two, and squares."""
        dice = np.random.default_rng(0)
        n = grid[0] * grid[1]
        tokens = sc.Tokens(
            features=dice.normal(size=(n, 4)), text=dice.normal(size=(3, 4)), grid=grid
        )
        chosen = sc.EADP(keep=1).select(tokens)
        bare = sc.EADP(keep=1).select(tokens.with_(grid=None)).scores
        assert np.isfinite(chosen.scores).all()
        assert bare.min() <= chosen.scores.min()
        assert chosen.scores.max() <= bare.max()

    def test_flooring_loses_budget_where_we_spend_it(self):
        dice = np.random.default_rng(0)
        tokens = sc.Tokens(
            features=dice.normal(size=(5, 16, 8)), text=dice.normal(size=(3, 8)), grid=(4, 4)
        )
        floor, exact = (
            sc.EADP(keep=5, crops="importance", rounding=how).select(tokens)
            for how in ("floor", "exact")
        )
        assert int(floor.count.sum()) < 25
        assert int(exact.count.sum()) == 25


class TestAgilePruner:
    """Diversity grows with the complexity of the image, and stays below DivPrune's."""

    def chosen(self, seed, regions, keep=24):
        features, region, _, dice = scene(seed, regions)
        attention = dice.gamma(0.5, size=regions)[region] + 0.1 * dice.random(SIDE * SIDE)
        tokens = sc.Tokens(features=features, attention=attention)
        method = sc.AgilePruner(keep=keep, mean_erank=15.0)
        kept = {
            "agile": method.select(tokens),
            "divprune": sc.DivPrune(keep=keep).select(tokens),
            "topk": sc.TopK(keep=keep).select(tokens),
        }
        return {
            name: float(sc.effective_rank(each.gather(features))) for name, each in kept.items()
        }

    @pytest.mark.parametrize("seed", range(4))
    def test_between_attention_and_diversity(self, seed):
        erank = self.chosen(seed, 24)
        assert erank["topk"] < erank["agile"] < erank["divprune"]

    @pytest.mark.parametrize("seed", range(4))
    def test_complex_images_keep_more_directions(self, seed):
        simple, complex_ = self.chosen(seed, 3), self.chosen(seed, 40)
        assert complex_["agile"] > simple["agile"] + 1.0

    @pytest.mark.parametrize("seed", range(4))
    def test_a_more_complex_beside_others_is_spread_further(self, seed):
        features, region, _, dice = scene(seed, 24)
        attention = dice.gamma(0.5, size=24)[region] + 0.1 * dice.random(SIDE * SIDE)
        tokens = sc.Tokens(features=features, attention=attention)
        own = float(sc.effective_rank(features))
        eranks = [
            float(sc.effective_rank(chosen.gather(features)))
            for chosen in (
                sc.AgilePruner(keep=24, mean_erank=own / share).select(tokens)
                for share in (0.25, 1.0, 3.0)
            )
        ]
        assert eranks[0] < eranks[1] < eranks[2]


class TestERASE:
    """Complex images keep more, and of each image its busiest part."""

    def image(self, busy):
        """Patches of 28 pixels, the first `busy` of 36 full of noise, the others nearly flat."""
        dice = np.random.default_rng(busy)
        pixels = np.full((6, 28, 6, 28, 3), 128, dtype=np.uint8)
        noise = dice.integers(0, 256, size=(busy, 28, 28, 3))
        for place in range(busy):
            pixels[place // 6, :, place % 6] = noise[place]
        return sc.Tokens(features=np.ones((36, 2)), pixels=pixels.reshape(168, 168, 3))

    def test_keeps_more_of_a_complex_image_than_of_a_flat_one(self):
        complex_, flat = (sc.ERASE().select(self.image(busy)) for busy in (36, 4))
        assert int(complex_.count) == int(36 * 0.8267)
        assert int(flat.count) == int(36 * 0.4034)
        assert (int(complex_.info["level"]), int(flat.info["level"])) == (0, 3)

    def test_what_is_kept_is_what_is_busy(self):
        chosen = sc.ERASE().select(self.image(10))
        assert set(range(10)) <= set(chosen.indices.tolist())

    def test_complex_images_reach_deeper_before_the_second_cut(self):
        method = sc.ERASE()
        depths = [
            method.cuts(28, 36, level=int(method.select(self.image(busy)).info["level"]))[0].after
            for busy in (36, 4)
        ]
        assert depths == [16, 1]


class TestWhereProgramsMisbehave:
    """Sizes and inputs that the authors' programs do not take."""

    @pytest.mark.parametrize("n", [5, 7, 23, 35, 49])
    def test_vispruner_takes_odd_sizes(self, n):
        """There, the even and odd halves of an odd list have different lengths and fail."""
        dice = np.random.default_rng(n)
        tokens = sc.Tokens(features=dice.normal(size=(n, 6)), attention=dice.random(n))
        for k in range(1, n + 1):
            picks = sc.VisPruner(keep=k).select(tokens).indices.tolist()
            assert len(set(picks)) == k == len(picks)

    def test_cdpruner_goes_on_past_the_rank(self):
        """There, the same token is taken again once nothing is left to explain."""
        dice = np.random.default_rng(0)
        tokens = sc.Tokens(features=dice.normal(size=(30, 4)), text_global=dice.normal(size=4))
        chosen = sc.CDPruner(keep=12).select(tokens)
        assert len(set(chosen.indices.tolist())) == 12
        assert np.isfinite(chosen.gains[:4]).all()
        assert np.isneginf(chosen.gains[4:]).all()
        assert chosen.indices[4:].tolist() == sorted(chosen.indices[4:].tolist())

    @pytest.mark.parametrize("name", ["cdpruner", "dart", "divprune", "eadp", "fps", "vispruner"])
    def test_an_image_of_one_colour_is_ordinary(self, name):
        tokens = sc.Tokens(
            features=np.ones((16, 4)),
            text=np.ones((2, 4)),
            text_global=np.ones(4),
            attention=np.ones(16),
            keys=np.ones((16, 4)),
            grid=(4, 4),
        )
        picks = sc.method(name, keep=5).select(tokens).indices.tolist()
        assert len(set(picks)) == 5

    def test_eadp_scores_no_padding(self):
        """There, every text position scores, padding included."""
        dice = np.random.default_rng(0)
        tokens = sc.Tokens(features=dice.normal(size=(25, 8)), text=dice.normal(size=(6, 8)))
        padding = dice.normal(size=(10, 8))
        padded = tokens.with_(text=np.vstack([tokens.text, padding]), text_mask=np.arange(16) < 6)
        method = sc.EADP(keep=5)
        np.testing.assert_allclose(method.select(padded).scores, method.select(tokens).scores)
