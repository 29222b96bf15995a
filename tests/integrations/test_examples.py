"""The example scripts run as they stand, on their small random models."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example(script, tmp_path, monkeypatch, capsys):
    saved = tmp_path / "kept.png"
    monkeypatch.setattr(sys, "argv", [str(script), "--picture", str(saved)])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    new, report = printed.splitlines()[:2]
    assert new.count(",") == 19
    assert report.startswith("Report(kept ")
    with Image.open(saved) as picture:
        assert min(picture.size) > 100


def test_there_is_one_for_every_family():
    from secateur.integrations.transformers.models import FAMILIES

    assert {path.stem for path in EXAMPLES} >= {x.partition(":")[0] for x in FAMILIES.values()}
