"""The notebooks run cell by cell; the one for a checkpoint on a small one of the same classes."""

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


def test_the_notebook_for_a_checkpoint_runs_on_a_small_one(tmp_path, monkeypatch, capsys):
    """All but the download: a LLaVA and its CLIP pair from folders, by `from_pretrained`."""
    pytest.importorskip("transformers")
    from PIL import Image

    from secateur import lab

    model, processor = lab.load()
    pair, tokenizer = lab.text_encoder()
    for folder, held in (("llava", (model, processor)), ("clip", (pair, tokenizer))):
        for each in held:
            each.save_pretrained(tmp_path / folder)
    Image.fromarray(next(lab.scenes(1, seed=11)).image).save(tmp_path / "scene.png")
    for name, held in (("CHECKPOINT", "llava"), ("TOWER", "clip"), ("PHOTO", "scene.png")):
        monkeypatch.setenv(name, str(tmp_path / held))
    capsys.readouterr()
    names = {"__name__": "__main__"}
    for source in cells("checkpoint.ipynb", "code"):
        exec(compile(source, "checkpoint.ipynb", "exec"), names)
    assert type(names["model"]).__name__ == "LlavaForConditionalGeneration"
    assert [len(kept) for kept in names["attachment"].last.kept] == [18]
    told = capsys.readouterr().out
    assert [told.count(f"{name}(") for name in ("EADP", "DivPrune", "Report")] == [1, 2, 3]
    assert told.count("kept 18 of 144") == 3
