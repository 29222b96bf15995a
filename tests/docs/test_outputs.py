"""What the page of the command line shows is what the commands print today."""

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("transformers")

from typer.testing import CliRunner

from secateur.app.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "command-line.md"
SHOWN = dict(
    re.findall(r"^\$ secateur ([^\n]+)\n(.*?)(?=^\$|^```)", PAGE.read_text("utf-8"), re.M | re.S)
)


@pytest.mark.parametrize(
    "words",
    ["methods --needs features", "models", *(words for words in SHOWN if "eadpp" in words)],
)
def test_the_page_shows_what_is_printed(words):
    result = CliRunner().invoke(app, shlex.split(words))
    assert SHOWN[words] == result.stdout + result.stderr
