"""ERASE: levels of complexity, counts, the deep or shallow cut."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.acts import Cut

PATCH = 4


def picture(levels, seed=0):
    """Patches in one row; patch i holds 2 ** levels[i] equally frequent grey values."""
    dice = np.random.default_rng(seed)
    patches = []
    for level in levels:
        values = np.repeat(np.arange(2**level), PATCH * PATCH // 2**level)
        patches.append(dice.permutation(values).reshape(PATCH, PATCH))
    return np.repeat(np.concatenate(patches, axis=1)[..., None], 3, axis=-1).astype(np.uint8)


def tokens_of(*levels):
    pixels = np.stack([picture(each) for each in levels])
    batch = () if len(levels) == 1 else (len(levels),)
    pixels = pixels[0] if not batch else pixels
    return sc.Tokens(features=np.ones((*batch, len(levels[0]), 2)), pixels=pixels)


def method_of(**more):
    given = {"keep": 0.2, "patch": PATCH, "thresholds": (2.0, 1.0), "ratios": (0.8, 0.5, 0.3)}
    return sc.ERASE(**{**given, **more})


def test_entropies_are_those_of_the_patches():
    chosen = method_of().select(tokens_of([0, 1, 2, 3, 4]))
    np.testing.assert_allclose(chosen.scores, np.arange(5) * np.log(2))
    np.testing.assert_allclose(float(chosen.info["complexity"]), 2 * np.log(2))


@pytest.mark.parametrize(
    ("levels", "level", "count"),
    [
        ([4] * 10, 0, 8),
        ([2] * 10, 1, 5),
        ([1] * 10, 2, 3),
        ([0] * 10, 2, 3),
        # The lower of the two middle values decides.
        ([1] * 5 + [4] * 5, 2, 3),
        ([1] * 4 + [4] * 6, 0, 8),
    ],
)
def test_level_and_count(levels, level, count):
    chosen = method_of().select(tokens_of(levels))
    assert int(chosen.info["level"]) == level
    assert int(chosen.count) == count


def test_a_threshold_must_be_exceeded():
    method = method_of(thresholds=(float(np.log(4)), 1.0))
    tokens = tokens_of([2] * 4)
    entropy = float(sc.patch_entropy(tokens.pixels, PATCH)[0])
    assert method.level(entropy + 1e-9) == 0
    assert (
        sc.ERASE(patch=PATCH, thresholds=(entropy, 1.0), ratios=(0.9, 0.5, 0.1)).level(entropy) == 1
    )


def test_the_final_share_is_the_least():
    assert int(method_of(keep=0.7).select(tokens_of([0] * 10)).count) == 7
    assert int(method_of(keep=6).select(tokens_of([0] * 10)).count) == 6
    assert int(method_of(keep=6).select(tokens_of([4] * 10)).count) == 8


def test_the_highest_entropies_stay_in_order():
    chosen = method_of().select(tokens_of([0, 4, 1, 2, 3, 1, 0, 4, 1, 0]))
    # Median 1 bit, level 2: three of ten, the two best tie and come by index.
    assert chosen.indices.tolist() == [1, 7, 4]
    assert chosen.sorted().tolist() == [1, 4, 7]


def test_images_of_a_batch_keep_what_they_need():
    chosen = method_of().select(tokens_of([4] * 10, [0, 4] * 5, [2] * 10))
    assert chosen.count.tolist() == [8, 3, 5]
    assert chosen.info["level"].tolist() == [0, 2, 1]
    assert chosen.row(1).indices.tolist() == [1, 3, 5]
    assert chosen.indices[1, 3:].tolist() == [-1] * 5


def test_presets_are_the_published_settings():
    qwen25, qwen3 = (sc.ERASE.preset(name) for name in ("qwen2.5-vl-7b", "qwen3-vl-8b"))
    np.testing.assert_allclose(qwen25.thresholds, (1.6905, 1.3472, 1.1719), atol=5e-5)
    np.testing.assert_allclose(qwen25.ratios, (0.8268, 0.7514, 0.4947, 0.4034), atol=5e-5)
    np.testing.assert_allclose(qwen3.thresholds, (1.6103, 0.2269, 0.0562), atol=5e-5)
    np.testing.assert_allclose(qwen3.ratios, (0.8450, 0.7763, 0.7574, 0.1940), atol=5e-5)
    assert (qwen25.patch, qwen3.patch) == (28, 32)
    assert sc.ERASE() == qwen25
    assert sc.ERASE.preset("qwen3-vl-8b", keep=0.15).keep == 0.15
    with pytest.raises(ValueError, match=r"^model: expected one of qwen2\.5-vl-7b, qwen3-vl-8b"):
        sc.ERASE.preset("llava")


@pytest.mark.parametrize(
    ("name", "depth", "level", "earliest", "after"),
    [
        ("qwen2.5-vl-7b", 28, 0, 1, 16),
        ("qwen2.5-vl-7b", 28, 1, 1, 16),
        ("qwen2.5-vl-7b", 28, 2, 1, 1),
        ("qwen2.5-vl-7b", 28, 3, 1, 1),
        ("qwen2.5-vl-7b", 28, None, 1, 16),
        ("qwen3-vl-8b", 36, 0, 3, 21),
        ("qwen3-vl-8b", 36, 3, 3, 3),
        # Another depth is cut at the same share; never before the last deepstack layer.
        ("qwen2.5-vl-7b", 36, 0, 1, 21),
        ("qwen2.5-vl-7b", 4, 0, 1, 2),
        ("qwen2.5-vl-7b", 4, 3, 3, 3),
    ],
)
def test_where_the_second_stage_cuts(name, depth, level, earliest, after):
    cuts = sc.ERASE.preset(name).cuts(depth, 100, level=level, earliest=earliest)
    assert cuts == (Cut(after, 25),)


def test_how_many_levels_are_complex_is_a_parameter():
    for complex_levels, after in ((0, 1), (1, 16), (3, 16)):
        method = sc.ERASE(complex_levels=complex_levels)
        assert method.cuts(28, 100, level=0)[0].after == after


def test_nothing_to_drop_nothing_to_cut():
    assert sc.ERASE(keep=100).cuts(28, 100) == ()
    assert sc.ERASE(keep=1.0).cuts(28, 100) == ()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"thresholds": (1.0, 2.0)}, r"^thresholds: expected descending numbers"),
        ({"thresholds": (1.0, 1.0)}, r"^thresholds: expected descending numbers"),
        ({"thresholds": (float("nan"), 1.0)}, r"^thresholds: "),
        ({"ratios": (0.5, 0.4)}, r"^ratios: expected one more than the 2 thresholds"),
        ({"ratios": (0.5, 0.4, 0.0)}, r"^ratios: expected a share in \(0, 1\]"),
        ({"patch": 0}, r"^patch: "),
        ({"deep": 0.0}, r"^deep: "),
        ({"shallow": 0}, r"^shallow: "),
        ({"complex_levels": -1}, r"^complex_levels: "),
    ],
)
def test_parameters_are_checked(parameters, message):
    with pytest.raises(ValueError, match=message):
        method_of(**parameters)


def test_pixels_must_be_those_of_the_tokens():
    tokens = tokens_of([1] * 6)
    with pytest.raises(ValueError, match=r"pixels: \(4, 24, 3\) in patches of 3 are 1 x 8 tokens"):
        method_of(patch=3).select(tokens)
