"""The tables of the documents are those that the script writes, and list every method and model."""

import importlib.util
from pathlib import Path

import pytest

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


def test_every_method_has_a_row_and_a_page_with_the_functions_of_its_file():
    pages, rows = tables.api_pages(), tables.site_methods()
    for kind in own():
        name = f"{kind.__module__}.{kind.__name__}"
        assert pages.count(f"::: {name}\n") + pages.endswith(f"::: {name}") == 1
        assert rows.count(f"#{name})") == 1
    for name in (
        "pool.pooled",
        "duet.pooled_merge",
        "dycoke.moving_cache",
        "visionselector.Scorer",
    ):
        assert pages.count(f"::: secateur.core.methods.{name}\n") == 1


def test_every_run_is_told_with_its_model_and_what_is_compared():
    runs = tables.attached()
    assert len(runs) >= 55
    assert all(all(run) for run in runs)
    assert {name for name, *_ in runs} >= {"eadp", "erase", "divprune", "fastv", "sparsevlm"}
    assert {model for _, model, *_ in runs} == set(tables.MODELS.values())
