"""Scenes: the same seed draws the same ones, and what is told about them is true of the pixels."""

import hashlib
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from secateur.lab import COMPLEXITIES, KINDS, TEXTURES, mentioned, scenes
from secateur.lab.font import GLYPHS, render
from secateur.lab.objects import COLOURS, SHAPES
from secateur.lab.scene import PLACE


@pytest.fixture(scope="module")
def drawn():
    return list(scenes(150, seed=11))


def asked(drawn, kind):
    return [(scene, q) for scene in drawn for q in scene.questions if q.kind == kind]


def test_a_seed_draws_the_same_scenes():
    first, again = (list(scenes(8, seed=5)) for _ in range(2))
    assert [scene.digest for scene in first] == [scene.digest for scene in again]
    assert len({scene.digest for scene in first}) == 8
    assert next(scenes(1, seed=6)).digest != first[0].digest


def test_words_of_a_seed_are_these():
    """Answers of shipped weights and of old logs stay comparable only while this holds."""
    told = "\n".join(
        f"{q.kind} {q.text} {q.answer}" for scene in scenes(20, seed=0) for q in scene.questions
    )
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "9e463f7e4f5d8590"


def test_any_part_of_a_stream_can_be_drawn_by_itself():
    whole = list(scenes(6, seed=3))
    assert next(scenes(1, seed=3, start=4)).digest == whole[4].digest


def test_a_picture_has_the_size_and_its_place_in_the_stream(drawn):
    assert {scene.image.shape for scene in drawn} == {(96, 96, 3)}
    assert {scene.image.dtype for scene in drawn} == {np.dtype(np.uint8)}
    assert [scene.index for scene in drawn] == list(range(150))


@pytest.mark.parametrize(
    ("complexity", "fewest", "most"), zip(COMPLEXITIES, (1, 4, 7), (3, 6, 9), strict=True)
)
def test_complexity_is_the_number_of_objects(complexity, fewest, most):
    counts = {len(scene.objects) for scene in scenes(40, seed=2, complexity=complexity)}
    assert counts == set(range(fewest, most + 1))
    assert {s.complexity for s in scenes(5, seed=2, complexity=complexity)} == {complexity}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_asks_that_alone(kind):
    assert {q.kind for scene in scenes(10, seed=4, kind=kind) for q in scene.questions} == {kind}


@pytest.mark.parametrize("texture", TEXTURES)
def test_ground_is_plain_or_not(texture):
    scene = next(scenes(1, seed=9, complexity="sparse", texture=texture))
    empty = next(
        place
        for place in range(9)
        if place not in {thing.row * 3 + thing.column for thing in scene.objects}
    )
    y, x = (PLACE * part for part in divmod(empty, 3))
    spread = scene.image[y : y + PLACE, x : x + PLACE].std(axis=(0, 1)).max()
    assert (spread == 0) == (texture == "plain")


def test_shapes_have_the_colour_told(drawn):
    """The colour nearest to the middle of a shape that is filled there is the one named."""
    names, values = list(COLOURS), np.array(list(COLOURS.values()))
    shapes = [(s, o) for s in drawn for o in s.objects if o.name in SHAPES and o.name != "ring"]
    assert len(shapes) > 300
    for scene, thing in shapes:
        left, top, right, bottom = thing.box
        pixel = scene.image[(top + bottom) // 2, (left + right) // 2].astype(float)
        assert names[np.square(values - pixel).sum(axis=1).argmin()] == thing.attribute


def test_labels_print_what_is_told(drawn):
    """Dark pixels of the plate are exactly the font's."""
    labels = [(scene, thing) for scene in drawn for thing in scene.objects if thing.is_label]
    assert len(labels) > 100
    for scene, thing in labels:
        left, top, right, bottom = thing.box
        plate = scene.image[top + 2 : bottom - 2, left + 2 : right - 2]
        np.testing.assert_array_equal(plate.max(axis=2) < 128, render(thing.attribute))


def test_patches_are_those_of_the_box(drawn):
    for scene in drawn[:40]:
        for thing in scene.objects:
            left, top, right, bottom = thing.box
            touched = {
                row * 12 + column
                for row in range(top // 8, (bottom - 1) // 8 + 1)
                for column in range(left // 8, (right - 1) // 8 + 1)
            }
            assert set(thing.patches) <= touched
            assert len(thing.patches) >= len(touched) / 4
            middle = (top + bottom) // 16 * 12 + (left + right) // 16
            assert middle in thing.patches or thing.name == "ring"


def test_questions_name_the_patches_that_answer(drawn):
    for scene, question in asked(drawn, "colour"):
        (thing,) = [o for o in scene.objects if o.patches == question.patches]
        assert question.answer == thing.attribute
    for _, question in asked(drawn, "existence"):
        assert bool(question.patches) == (question.answer == "yes")


def test_counts_are_counted(drawn):
    for scene, question in asked(drawn, "count"):
        wanted = question.text.removeprefix("how many ").removesuffix(" are there?").split()
        shapes = [thing for thing in scene.objects if thing.name in SHAPES]
        if wanted == ["shapes"]:
            right = len(shapes)
        elif len(wanted) == 2:
            right = sum(thing.attribute == wanted[0] for thing in shapes)
        else:
            singular = {"crosses": "cross"}.get(wanted[0], wanted[0][:-1])
            right = sum(thing.name == singular for thing in shapes)
        assert question.answer == str(right)


def test_dense_answers_hold(drawn):
    rows, ordinals = ("top", "middle", "bottom"), ("first", "second", "third")
    for scene, question in asked(drawn, "dense"):
        words = question.text.replace(",", "").rstrip("?").split()
        row = rows.index(words[words.index("row") - 1])
        shapes = [o for o in scene.objects if o.name in SHAPES]
        ordinal = next(ordinals.index(word) for word in words if word in ordinals)
        thing = [o for o in shapes if o.row == row][ordinal]
        wanted, side = words[-3], words[-2]
        there = any(
            o.name == wanted
            and o.column == thing.column
            and (o.row < row if side == "above" else o.row > row)
            for o in shapes
        )
        assert question.answer == f"{thing.attribute}, {'yes' if there else 'no'}"


@pytest.mark.parametrize("kind", ["existence", "relation", "dense"])
def test_yes_is_about_as_frequent_as_no(kind):
    answers = Counter(
        q.answer.split()[-1] for s in scenes(300, seed=8, kind=kind) for q in s.questions
    )
    assert 0.3 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.6


def test_caption_names_every_object(drawn):
    for scene in drawn:
        assert mentioned(scene.caption) == [thing.phrase for thing in scene.objects]


def test_mentioned_passes_over_fragments():
    assert mentioned("red star top left, number 47 centre, star, blue") == ["red star", "number 47"]


def test_font_prints_a_letter():
    rows = ["".join(".#"[dot] for dot in row) for row in render("L1").astype(int)]
    assert rows == [
        "#.......#..",
        "#......##..",
        "#.......#..",
        "#.......#..",
        "#.......#..",
        "#.......#..",
        "#####..###.",
    ]
    assert len({render(letter).tobytes() for letter in GLYPHS}) == 36


@pytest.mark.parametrize("name", ["kind", "complexity", "texture"])
def test_unknown_words_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got 'huge'"):
        list(islice(scenes(1, 0, **{name: "huge"}), 1))
