"""The demo asks, counts and draws, on the model that comes with the package."""

import re

import pytest

pytest.importorskip("transformers", reason="the demo asks a model of transformers")

from PIL import Image

from secateur import lab
from secateur.app import demo


def test_it_asks_to_read_a_label_that_nothing_else_says():
    scene = demo.scene()
    asked = demo.question(scene)
    assert asked.kind == "reading"
    assert len(scene.objects) >= 6
    assert [type(each).__name__ for each in demo.methods(9)] == ["EADP", "AgilePruner", "ERASE"]
    assert {each.keep for each in demo.methods(9)} == {9}


def test_it_counts_right_answers(monkeypatch):
    monkeypatch.setattr(demo, "COUNTED", ("colour",))
    counted = demo.right(16, 3)
    asked = sum(
        question.kind == "colour"
        for scene in lab.scenes(3, lab.HELD_OUT)
        for question in scene.questions
    )
    assert [row[0] for row in counted] == ["all tokens", "EADP", "AgilePruner", "ERASE"]
    assert {row[2] for row in counted} == {asked}
    assert counted[0][1] == asked


def test_it_says_what_it_did(tmp_path, capsys):
    path = tmp_path / "asked.png"
    demo.main([str(path), "--keep", "9", "--scenes", "0"])
    said = capsys.readouterr().out
    assert said.count(" 9 of 144 tokens  ") == 2
    assert re.search(r"ERASE +\d+ of 144 tokens, 9 after layer \d", said)
    assert "144 tokens" in said
    assert f"Wrote {path}" in said
    with Image.open(path) as image:
        assert image.width > 4 * 336


def test_it_refuses_more_tokens_than_there_are(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--keep", "145"])
    assert "has 144 visual tokens, got 145" in capsys.readouterr().err
