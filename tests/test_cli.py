import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

import secateur as sc
from secateur.app.cli import app


def run(*words: str):
    return CliRunner().invoke(app, list(words))


def test_methods_lists_every_method():
    rows = json.loads(run("methods", "--json").stdout)
    assert {row["name"] for row in rows} == set(sc.methods())
    assert {row["paper"] for row in rows if row["name"] == "eadp"} == {sc.EADP.reference}
    assert "eadp" in run("methods").stdout


def test_models_lists_every_family():
    pytest.importorskip("transformers")
    rows = json.loads(run("models", "--json").stdout)
    assert "Qwen3VLForConditionalGeneration" in {row["class"] for row in rows}
    served = {row["class"] for row in rows if row["vllm"] == f"Secateur{row['class']}"}
    assert served >= {"LlavaForConditionalGeneration", "Qwen3VLForConditionalGeneration"}
    assert {row["class"] for row in rows if row["vllm"] is not None} == served


def test_doctor_says_what_is_installed_and_active():
    report = json.loads(run("doctor", "--json").stdout)
    assert report["installed"]["numpy"] == np.__version__
    assert report["active"]["numpy"][-1] == "secateur.backends.host.driver"
    assert "numpy" in run("doctor").stdout


@pytest.fixture
def source(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    rows = [{"id": i, "vis": rng.normal(size=(9, 4)).tolist()} for i in range(6)]
    rows[2]["vis"][0][0] = float("nan")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=3)
    return tmp_path / "in.parquet"


def test_corpus_prunes_and_goes_on(source, tmp_path):
    words = ["corpus", str(source), str(tmp_path / "out"), "--features", "vis", "--keep", "0.34"]
    first = json.loads(run(*words, "--json").stdout)
    assert (first["images"], first["bad"], first["shards"], first["done_before"]) == (5, 1, 2, 0)
    again = run(*words)
    assert again.exit_code == 0
    assert "2 of 2 shards were done before" in again.stdout

    import pyarrow.parquet as pq

    kept = pq.read_table(tmp_path / "out" / "in-00001.parquet").to_pylist()
    assert [len(row["kept"]) for row in kept] == [3, 3, 3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "nope"], "method: expected one of"),
        (["--keep", "many"], "--keep: expected a count or a share"),
        (["--keep", "1.5"], "a share lies in"),
        (["--set", "alpha"], "--set: expected name=value"),
        (["--set", "alpha=1"], "no parameter 'alpha'"),
        (["--features", "absent"], "needs a column 'absent'"),
    ],
)
def test_mistakes_get_one_line_and_status_2(source, tmp_path, words, said):
    result = run("corpus", str(source), str(tmp_path / "out"), *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.strip().count("\n") == 0


def test_a_missing_corpus_is_said(tmp_path):
    result = run("corpus", str(tmp_path / "nothing"), str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "no Parquet file there" in result.stderr


@pytest.fixture
def picture(tmp_path):
    pytest.importorskip("transformers")
    from PIL import Image

    from secateur.lab import scenes

    path = tmp_path / "scene.png"
    Image.fromarray(next(scenes(1, seed=11)).image).resize((200, 150)).save(path)
    return path


def test_prune_answers_with_all_tokens_and_with_those_kept(picture, tmp_path):
    from PIL import Image

    question = "what does the label at the top right say?"
    words = ["--compare", "eadp,agilepruner,erase,topk", "--keep", "16"]
    result = run(
        "prune",
        str(picture),
        "--question",
        question,
        *words,
        "-o",
        str(tmp_path / "p.png"),
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    answers = json.loads(result.stdout)["answers"]
    assert [row["method"] for row in answers] == [
        "all tokens", "EADP", "AgilePruner", "ERASE", "TopK"
    ]  # fmt: skip
    assert answers[0]["tokens"] is None
    assert [row["tokens"] for row in answers[1:]] == [16, 16, 16, 16]
    assert [len(answers[i]["kept"][0]) for i in (1, 2, 4)] == [16, 16, 16]
    # ERASE lets more into the model and prunes to 16 inside.
    assert len(answers[3]["kept"][0]) >= 16
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.width > 3 * 336


def test_prune_shows_the_scores_of_a_single_method(picture, tmp_path):
    from PIL import Image

    result = run(
        "prune", str(picture), "--question", "is there a star?", "-o", str(tmp_path / "p.png")
    )
    assert result.exit_code == 0, result.stderr
    assert "EADP" in result.stdout
    with Image.open(tmp_path / "p.png") as sheet:
        assert 3 * 336 < sheet.width < 4 * 336


@pytest.mark.parametrize(
    ("words", "said"), [(["--method", "nope"], "expected one of"), (["--set", "beta=-1"], "beta")]
)
def test_prune_tells_mistakes_in_one_line(picture, tmp_path, words, said):
    result = run("prune", str(picture), "--question", "?", "-o", str(tmp_path / "p.png"), *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.strip().count("\n") == 0


def test_a_picture_or_checkpoint_that_cannot_be_read_is_one_line_too(picture, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    for words in ((str(broken),), (str(picture), "--model", str(tmp_path))):
        result = run("prune", *words, "--question", "what?", "-o", str(tmp_path / "out.png"))
        assert result.exit_code == 2
        assert result.stderr.startswith("secateur: ")
        assert result.stderr.count("\n") == 1


def test_without_what_it_needs_it_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; from secateur.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ("secateur: the command line needs typer: pip install 'secateur[cli]'\n")


def test_it_is_a_module_too():
    told = subprocess.run(
        [sys.executable, "-m", "secateur", "methods", "--json"], capture_output=True, text=True
    )
    assert len(json.loads(told.stdout)) >= 18
