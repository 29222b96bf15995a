import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image

from secateur.app.pictures import seen
from secateur.app.sheets import MARGIN, Panel, heat, sheet


def test_heat_is_dark_low_and_light_high_and_grey_unknown():
    picture = np.asarray(heat(np.array([0.0, 1.0, np.nan, 0.5]), (2, 2), (20, 20)))
    assert picture.shape == (20, 20, 3)
    dark, light, unknown, middle = (picture[y, x] for y, x in ((2, 2), (2, 12), (12, 2), (12, 12)))
    assert dark.sum() < middle.sum() < light.sum()
    assert unknown.tolist() == [90, 90, 90]


def test_equal_scores_are_one_colour():
    picture = np.asarray(heat(np.ones(4), (2, 2), (4, 4)))
    assert (picture == picture[0, 0]).all()


def test_a_sheet_holds_its_panels_in_rows():
    white = Image.new("RGB", (50, 30), "white")
    paper = np.asarray(sheet([Panel(white, f"panel {i}", ["a line"]) for i in range(5)], columns=3))
    step_x, step_y = 50 + MARGIN, 30 + 54 + MARGIN
    assert paper.shape == (2 * step_y + MARGIN, 3 * step_x + MARGIN, 3)
    for place in range(6):
        y, x = MARGIN + place // 3 * step_y, MARGIN + place % 3 * step_x
        there = (paper[y : y + 30, x : x + 50] == 255).all()
        assert there == (place < 5)


def test_an_empty_sheet_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        sheet([])


@pytest.mark.parametrize("size", [(90, 40), (40, 90), (60, 60)])
def test_a_sheet_shows_the_part_of_a_picture_that_the_model_sees(size):
    transformers = pytest.importorskip("transformers")
    rows, columns = np.mgrid[: size[1], : size[0]]
    ramp = np.stack([255 * columns / size[0], 255 * rows / size[1], 0 * rows], axis=-1)
    picture = Image.fromarray(ramp.astype(np.uint8))
    square = {"height": 28, "width": 28}
    clip = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square)
    given = clip(picture, do_rescale=False, do_normalize=False)["pixel_values"][0]
    expected = np.asarray(given, dtype=np.float64).transpose(1, 2, 0)
    shown = np.asarray(seen(picture, clip).resize((28, 28), Image.Resampling.BICUBIC))
    assert np.abs(shown - expected).max() < 6
    stretched = transformers.SiglipImageProcessorPil()
    assert seen(picture, stretched) is picture
