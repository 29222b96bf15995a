"""Every Python block of every page runs, the blocks of a page one after the other."""

import re
from pathlib import Path

import pytest

from secateur.core import dispatch

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(
    r"(?P<aside><!-- not run: [^\n]+ -->\n+)?^```python[^\n]*\n(?P<code>.*?)^```", re.DOTALL | re.M
)
PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_page_runs(page, tmp_path, monkeypatch):
    """A block below ``<!-- not run: reason -->`` need only be valid Python."""
    monkeypatch.chdir(tmp_path)
    for registry in ("_drivers", "_modules"):
        # What a page registers is gone when the page ends.
        monkeypatch.setattr(dispatch, registry, dict(getattr(dispatch, registry)))
    names: dict[str, object] = {"__name__": "page"}
    for block in BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")):
        code = compile(block["code"], page, "exec")
        if block["aside"] is None:
            exec(code, names)


def test_pages_hold_code():
    blocks = [m for p in PAGES for m in BLOCK.finditer((DOCS / p).read_text(encoding="utf-8"))]
    assert len(blocks) >= 15
