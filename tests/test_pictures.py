import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image

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
