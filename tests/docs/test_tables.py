"""The tables of the documents are those that the script writes, and list every method and model."""

import importlib.util
from pathlib import Path

import pytest

from secateur.core.inputs import INPUTS
from secateur.core.methods import own

pytest.importorskip("transformers", reason="the rows of models need transformers")

SCRIPT = Path(__file__).parents[2] / "docs" / "tables.py"
spec = importlib.util.spec_from_file_location("tables_of_the_documents", SCRIPT)
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


def test_no_table_is_stale():
    assert [path.name for path in tables.stale()] == [], "make tables writes them"


def test_a_changed_table_is_stale(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- begin it -->\nold\n<!-- end it -->\nbelow\n")
    monkeypatch.setattr(tables, "parts", lambda: [(page, "it", "new")])
    assert tables.stale() == {page: "above\n<!-- begin it -->\nnew\n<!-- end it -->\nbelow\n"}
    page.write_text("above\n<!-- begin it -->\nnew\n")
    with pytest.raises(ValueError, match="expected one <!-- begin it -->"):
        tables.stale()


def test_every_method_has_a_row_and_a_page_with_all_that_its_file_offers(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    pages = importlib.import_module("method_pages").pages()
    rows = tables.site_methods()
    assert list(pages) == [f"methods/{kind.name}.md" for kind in own()]
    for kind in own():
        page = pages[f"methods/{kind.name}.md"]
        assert rows.count(f"({kind.name}.md)") == 1
        assert page.count(f"::: {kind.__module__}.{kind.__name__}\n") == 1
        assert f"Checked against {kind.parity}." in page
        for name, x in kind.as_published.items():
            assert f"| `{name}` | `{getattr(kind(), name)!r}` | `{x!r}` |" in page
        for name in sorted(kind().needs):
            assert f"`{name}`, {INPUTS[name].says}" in page
    for name in (
        "pool.pooled",
        "duet.pooled_merge",
        "dycoke.moving_cache",
        "visionselector.Scorer",
    ):
        place = f"::: secateur.core.methods.{name}\n"
        assert [page.count(place) for page in pages.values()].count(1) == 1
    runs = [run for run in tables.attached() if run[0] == "hiprune"]
    assert len(runs) > 0
    assert all(f"`{case}`" in pages["methods/hiprune.md"] for _, _, case, _, _ in runs)
    assert "| only the instruction's tokens score |" in pages["methods/eadp.md"]
    assert "by: all" in pages["methods/hiprune.md"], "what it asks a model for"


def test_every_run_is_told_with_its_model_and_what_is_compared():
    runs = tables.attached()
    assert len(runs) >= 55
    assert all(all(run) for run in runs)
    assert {name for name, *_ in runs} >= {"eadp", "erase", "divprune", "fastv", "sparsevlm"}
    assert {model for _, model, *_ in runs} == set(tables.MODELS.values())
