"""The demo does what it says: it prunes, it reports, it draws."""

import numpy as np
import pytest
from PIL import Image

from secateur.app import photograph


@pytest.fixture(scope="module")
def kept():
    return photograph.choose(photograph.photograph(), 192)


def test_photograph_is_cut_evenly_by_every_patch_in_use():
    pixels = photograph.photograph()
    assert pixels.shape == (448, 672, 3)
    assert pixels.min() >= 0
    assert 200 < pixels.max() <= 255
    assert [side % patch for side in pixels.shape[:2] for patch in (14, 28, 32)] == [0] * 6


def test_patch_features_follow_the_pixels():
    """A picture bright below and dark above differs only where the two halves meet."""
    pixels = np.full((56, 28, 3), 10.0)
    pixels[28:] = 200.0
    pixels[7:14] = 60.0
    described = photograph.patch_features(np.random.default_rng(0).normal(pixels, 0.5), 14)
    assert described.shape == (8, 10)
    np.testing.assert_allclose(described.mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(described.std(0), 1.0)
    assert described[4:, 0].min() > described[:4, 0].max()
    assert list(np.argsort(described[:, 6])[-2:] // 2) == [0, 0]


def test_every_way_keeps_what_was_asked(kept):
    assert [each.title for each in kept] == [
        "EADP",
        "AgilePruner",
        "ERASE",
        "DivPrune",
        "Random",
    ]
    assert [int(each.mask.sum()) for each in kept] == [192] * 5
    assert {each.mask.shape for each in kept} == {(32, 48)}
    assert len({each.mask.tobytes() for each in kept}) == 5


def test_coverage_is_a_share_and_greedy_has_the_largest(kept):
    shares = {each.title: each.coverage for each in kept}
    assert all(0 < share <= 1 for share in shares.values())
    assert shares["EADP"] == max(shares.values())
    assert shares["EADP"] > 0.98
    assert shares["ERASE"] < 0.9


def test_picture_lights_what_was_kept(kept):
    pixels = photograph.photograph()
    sheet = np.asarray(photograph.picture(pixels, kept), dtype=np.float64)
    x = photograph.MARGIN + 48 * photograph.SIDE + photograph.MARGIN
    panel = sheet[
        photograph.MARGIN : photograph.MARGIN + 32 * photograph.SIDE, x : x + 48 * photograph.SIDE
    ]
    photo = Image.fromarray(pixels.astype(np.uint8)).resize((480, 320))
    lit = kept[0].mask.repeat(photograph.SIDE, 0).repeat(photograph.SIDE, 1)
    np.testing.assert_array_equal(panel[lit], np.asarray(photo)[lit])
    assert panel[~lit].max() <= 0.22 * 255 + max(photograph.PAPER)


def test_program_writes_the_picture_and_says_so(tmp_path, capsys):
    path = tmp_path / "kept.png"
    photograph.main([str(path), "--keep", "64"])
    said = capsys.readouterr().out
    assert "keeps 64 of 1536 patches" in said
    assert f"Wrote {path}" in said
    assert said.count("coverage at least") == 5
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (1552, 892)
