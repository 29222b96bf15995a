"""The Python blocks of the README run as they stand, one after the other."""

import re
from pathlib import Path

import pytest

from secateur.core.methods import own, table

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(?P<aside><!-- not run: [^\n]+ -->\n+)?```python\n(?P<code>.*?)```", re.DOTALL)


def test_python_blocks_run(tmp_path, monkeypatch):
    """A block below ``<!-- not run: reason -->`` need only be valid Python."""
    monkeypatch.chdir(tmp_path)
    found = list(BLOCK.finditer(README.read_text(encoding="utf-8")))
    names: dict[str, object] = {}
    for block in found:
        code = compile(block["code"], README.name, "exec")
        if block["aside"] is None:
            exec(code, names)
    kept = names["kept"]
    assert kept.sorted().shape == (64,)
    assert 1 - 1 / 2.718281828 < float(kept.guarantee) <= 1


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README.read_text("utf-8")))
def test_links_into_the_repository_lead_somewhere(target):
    assert target.startswith(("http:", "https:")) or (README.parent / target).exists()


def test_every_method_is_in_the_table_with_what_it_is_checked_against():
    text = README.read_text("utf-8")
    rows = table()
    assert [row.name for row in rows] == [kind.name for kind in own()]
    for row in rows:
        assert f"| `{row.name}` | {row.paper} | {row.acts} | {row.parity} |" in text
