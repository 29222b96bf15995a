"""One notebook runs cell by cell as it stands; the one for a checkpoint is valid Python."""

import ast
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
RUNS = "arrays-to-picture.ipynb"


def cells(name, kind):
    held = json.loads((FOLDER / name).read_text("utf-8"))
    assert (held["nbformat"], held["nbformat_minor"]) == (4, 5)
    assert held["metadata"]["kernelspec"]["language"] == "python"
    ids = [cell["id"] for cell in held["cells"]]
    assert len(set(ids)) == len(ids)
    return ["".join(cell["source"]) for cell in held["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs_and_its_links_lead_somewhere(name):
    held = json.loads((FOLDER / name).read_text("utf-8"))
    code = [cell for cell in held["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for source in cells(name, "code"):
        ast.parse(source, name)
    for target in re.findall(r"\]\(([^)]+)\)", "\n".join(cells(name, "markdown"))):
        assert (FOLDER / target).exists(), target


def test_the_notebook_runs(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for source in cells(RUNS, "code"):
        exec(compile(source, RUNS, "exec"), names)
    assert names["whole"] == "84"
    assert len(names["report"].kept[0]) == 16
    assert [answer.title for answer in names["answers"]] == [
        "all tokens", "EADP", "DivPrune", "ERASE"
    ]  # fmt: skip
    assert names["sheet"].width > 4 * 336
