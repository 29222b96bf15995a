"""The example script runs as it stands, on a small random model of every family."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from secateur.integrations.transformers.models import FAMILIES

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "prune.py"


@pytest.mark.parametrize("family", sorted({x.partition(":")[0] for x in FAMILIES.values()}))
def test_example(family, tmp_path, monkeypatch, capsys):
    saved = tmp_path / "kept.png"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), family, "--picture", str(saved)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    new, report, first = printed.splitlines()[:3]
    assert new.count(",") == 19
    assert report.startswith("Report(kept ")
    assert first.startswith("part 0: ")
    assert ("after 2 layers" in printed or "after 3 layers" in printed) == (family == "qwen2_5_vl")
    with Image.open(saved) as picture:
        assert min(picture.size) > 100


def test_it_is_the_only_one():
    assert [path.name for path in SCRIPT.parent.glob("*.py")] == ["prune.py"]
