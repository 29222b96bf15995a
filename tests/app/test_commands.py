import json
import os
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

import secateur as sc
from secateur.app.cli import app
from secateur.app.command import told


def run(*words: str):
    return CliRunner().invoke(app, list(words))


def refused(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("secateur: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def picture(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "scene.png"
    image.fromarray(np.full((60, 80, 3), 90, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model is an error: what is wrong has to be said before."""
    ask = pytest.importorskip("secateur.app.ask")

    def never(*given, **more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(ask, "loaded", never)


def test_the_version():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"secateur {sc.__version__}\n")


def test_methods_are_sorted_and_fit_a_terminal():
    lines = run("methods").stdout.splitlines()
    names = [line.split()[0] for line in lines[:-1]]
    assert names == sorted(row["name"] for row in json.loads(run("methods", "--json").stdout))
    assert max(map(len, lines)) <= 80


def test_methods_by_what_they_need_and_where_they_act():
    rows = json.loads(run("methods", "--needs", "features, text", "--json").stdout)
    assert {"eadp", "divprune"} <= {row["name"] for row in rows}
    assert all(set(row["needs"].split(", ")) <= {"features", "text"} for row in rows)
    rows = json.loads(run("methods", "--acts", "inside", "--json").stdout)
    assert "fastv" in {row["name"] for row in rows}
    assert "divprune" not in {row["name"] for row in rows}
    assert "--acts: expected one of" in refused("methods", "--acts", "never")
    assert "--needs: expected inputs among" in refused("methods", "--needs", "luck")


def test_doctor_tries_every_driver():
    report = json.loads(run("doctor", "--json").stdout)
    choices = report["choices"]["numpy"]
    assert choices["reference"].startswith("chooses [")
    assert choices["numpy"] == "chooses the same"
    assert isinstance(report["newer_than_checked"], list)


def test_doctor_says_how_a_driver_is_installed(monkeypatch):
    from secateur.app import diagnosis

    monkeypatch.setattr(diagnosis, "_installed", lambda name: None)
    told = diagnosis._choice(np.zeros(1))
    assert told["numba"] == "is not installed: pip install 'secateur[numba]'"
    assert told["numpy"] == "chooses the same"


def test_newer_versions_are_told():
    from secateur.app.diagnosis import _newer

    assert _newer("5.18.0.dev1", "5.17")
    assert not _newer("5.17.9", "5.17")
    assert not _newer(None, "5.17")


def test_what_counts_as_checked_is_what_the_tests_run_with():
    from secateur.app.diagnosis import CHECKED

    pinned = Path(__file__).parents[2] / "constraints.txt"
    versions = dict(line.split("==") for line in pinned.read_text().split() if "==" in line)
    for name, newest in CHECKED.items():
        if name != "vllm":
            assert versions[name].startswith(f"{newest}.")


def test_serve_prints_what_it_runs_and_runs_it(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    words = ["serve", str(tmp_path), "--method", "divprune", "--keep", "0.25", "--port", "81"]
    printed = run(*words, "--dry-run").stdout
    assert printed.startswith(f"vllm serve {tmp_path} --hf-overrides '")
    ran = []
    monkeypatch.setattr("shutil.which", lambda name: "/bin/vllm")
    monkeypatch.setattr(os, "execv", lambda program, command: ran.append((program, command)))
    assert run(*words).stdout == printed
    assert shlex.split(printed) == json.loads(run(*words, "--json").stdout)["command"]
    del ran[1:]
    program, command = ran[0]
    assert program == "/bin/vllm"
    assert command[-2:] == ["--port", "81"]
    told = json.loads(command[command.index("--hf-overrides") + 1])
    assert told["architectures"] == ["SecateurQwen2_5_VLForConditionalGeneration"]
    assert told["secateur"]["keep"] == 0.25
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert run(*words, "--dry-run").stdout == printed
    (tmp_path / "config.json").unlink()  # said before the model is looked for
    assert "pip install 'secateur[vllm]'" in refused(*words)


@pytest.mark.parametrize(
    ("tower", "served"), [("clip_vision_model", "Llava"), ("pixtral", "Pixtral")]
)
def test_serve_tells_pixtral_from_llava_by_its_tower(tmp_path, tower, served):
    pytest.importorskip("torch")
    stored = {"model_type": "llava", "vision_config": {"model_type": tower}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    printed = run("serve", str(tmp_path), "--dry-run").stdout
    told = json.loads(printed.split("'")[1])
    assert told["architectures"] == [f"Secateur{served}ForConditionalGeneration"]


def test_serve_takes_what_the_authors_set_for_the_family_unless_told(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))

    def told(*words):
        result = run("serve", str(tmp_path), "--dry-run", *words)
        return json.loads(result.stdout.split("'")[1])["secateur"], result.stderr

    eadp, said = told("--method", "eadp")
    assert (eadp["beta"], eadp["sign"]) == (2.0, -1)
    assert "as its authors: EADP(" in said
    eadp, said = told("--method", "eadp", "--set", "beta=1.5")
    assert eadp["beta"] == 1.5
    assert said == ""
    erase, _ = told("--method", "erase", "--keep", "0.25")
    assert sc.Method.from_dict(erase) == sc.ERASE.preset("qwen3-vl-8b", keep=0.25)


def test_models_say_what_goes_with_a_checkpoint():
    pytest.importorskip("transformers")
    from secateur.integrations.families.checkpoints import CHECKPOINTS, suited
    from secateur.integrations.transformers.models import FAMILIES

    result = run("models")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "  text encoder  openai/clip-vit-large-patch14-336" in result.stdout
    rows = {row["class"]: row for row in json.loads(run("models", "--json").stdout)}
    assert rows["Qwen2VLForConditionalGeneration"]["settings"]["eadp"]["beta"] == 2.0
    assert CHECKPOINTS.keys() <= FAMILIES.keys() == rows.keys()
    for kind, known in CHECKPOINTS.items():
        for name, settings in known.settings.items():
            method = suited(sc.method(name), kind)
            assert {key: getattr(method, key) for key in settings} == settings
    assert suited(sc.TopK(), "Qwen2VLForConditionalGeneration") == sc.TopK()


def test_progress_is_for_terminals(capsys, monkeypatch):
    import sys

    from secateur.app import progress as telling

    with telling.progress(2, "images") as done:
        done()
    telling.saying("loading")
    assert capsys.readouterr().err == ""
    clock = iter([0.0, 0.0, 3.0, 6.0])
    monkeypatch.setattr(telling, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with telling.progress(2, "images") as done:
        done()
        done()
    said = [part.removeprefix("\033[K") for part in capsys.readouterr().err.split("\r")[1:]]
    assert said == ["images: 0 of 2", "images: 1 of 2, 3 s left", "images: 2 of 2", ""]


@pytest.mark.parametrize("command", ["doctor", "models", "calibrate", "prune"])
def test_commands_that_import_much_say_so_first(command, picture, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from secateur.app import answering, diagnosis, listing, measuring

    said = []
    for module in (answering, diagnosis, listing, measuring):
        monkeypatch.setattr(module, "saying", said.append)
    more = {
        "calibrate": [str(tmp_path / "none")],
        "prune": [
            str(picture),
            "--question",
            "?",
            "--dtype",
            "int3",
            "-o",
            str(tmp_path / "p.png"),
        ],
    }
    run(command, *more.get(command, []))
    assert len(said) == 1


def test_every_command_prints_json():
    for name in app.registered_commands:
        told = run(name.callback.__name__, "--help").stdout
        assert "--json" in told, name.callback.__name__


def test_serve_refuses_other_models(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "no plug-in for vLLM's 'bert'" in refused("serve", str(tmp_path), "--dry-run")


@pytest.mark.usefixtures("no_model")
def test_what_cannot_be_written_or_read_is_said_before_the_model_is_loaded(picture, tmp_path):
    ask = ["prune", "--question", "what?"]
    good = ["-o", str(tmp_path / "p.png")]
    missing = str(tmp_path / "missing" / "p.png")
    assert "none.png" in refused(*ask, str(tmp_path / "none.png"), *good)
    assert "there is no folder" in refused(*ask, str(picture), "-o", missing)
    assert "there is no folder" in refused(*ask, str(picture), *good, "--html", missing)
    assert "the name of a picture" in refused(*ask, str(picture), "-o", str(tmp_path / "p.txt"))
    assert "expected a file" in refused(*ask, str(picture), "-o", str(tmp_path))
    assert "go with --model" in refused(*ask, str(picture), *good, "--text-encoder", "x")
    refusal = refused(*ask, str(picture), *good, "--model", "x", "--method", "agilepruner")
    assert "secateur calibrate" in refusal
    assert not (tmp_path / "p.png").exists()


@pytest.mark.usefixtures("no_model")
def test_a_truncated_picture_is_named(picture, tmp_path):
    from PIL import Image

    whole = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    whole.write_bytes(whole.read_bytes()[:5000])
    said = refused("prune", str(whole), "--question", "?", "-o", str(tmp_path / "p.png"))
    assert "cut.jpg cannot be read as a picture" in said


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "setting", ["alpha=hello", "smoothing=foo", "layout=5", "temperature=null", "keep_ratio=[1]"]
)
def test_settings_of_another_type_are_one_line(picture, tmp_path, setting):
    name = setting.partition("=")[0]
    words = ["prune", str(picture), "--question", "?", "-o", str(tmp_path / "p.png")]
    assert f"secateur: {name}: expected" in refused(*words, "--set", setting)


@pytest.mark.usefixtures("no_model")
def test_what_is_said_twice_or_in_the_wrong_place_is_one_line(picture, tmp_path):
    words = ["prune", str(picture), "--question", "?", "-o", str(tmp_path / "p.png")]
    assert "keep is said twice, here and by --keep" in refused(*words, "--set", "keep=7")
    assert "method is said twice" in refused(*words, "--set", "method=topk")
    assert "smoothing is said twice" in refused(*words, *2 * ["--set", "smoothing=1.0"])
    words += ["--method", "agilepruner"]
    said = refused(*words, "--set", "mean_erank=usual.json")
    assert "--calibration usual.json reads a file" in said


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("name", "said"),
    [("idpruner", "needs importance, which LLaVA-1.5 does not have"),
     ("downsample", "makes the picture smaller before it is encoded")],
)  # fmt: skip
def test_what_a_model_cannot_give_is_said_before_it_is_loaded(picture, tmp_path, name, said):
    words = ["prune", str(picture), "--question", "?", "-o", str(tmp_path / "p.png")]
    assert said in refused(*words, "--method", name)


@pytest.mark.usefixtures("no_model")
def test_a_calibration_that_is_none_is_named(picture, tmp_path):
    usual = tmp_path / "usual.json"
    usual.write_text('{"erank": "wide"}')
    words = ["prune", str(picture), "--question", "?", "--calibration", str(usual)]
    said = refused(*words, "--method", "agilepruner", "-o", str(tmp_path / "p.png"))
    assert "usual.json is no calibration: erank: expected a mean above 0" in said
    assert "none of the methods" in refused(*words, "-o", str(tmp_path / "p.png"))


def saved(folder: Path, drop: str) -> str:
    """The lab's text encoder without the weights of a name, which `from_pretrained` makes up."""
    from secateur.lab import text_encoder

    model, tokenizer = text_encoder()
    weights = {k: v for k, v in model.state_dict().items() if drop not in k}
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_text_encoder_with_random_weights_is_refused(tmp_path):
    pytest.importorskip("transformers")
    from secateur.app.ask import _pair

    with pytest.raises(ValueError, match=r"it lacks text_model\..* and \d+ more, which would be"):
        _pair(saved(tmp_path / "cut", "text_model"), None, "auto")
    model, _ = _pair(saved(tmp_path / "whole", "nothing"), None, "auto")
    assert type(model).__name__ == "CLIPModel"


def test_siglip_text_encoders_are_loaded_as_such_and_others_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    from secateur.app.ask import _pair
    from secateur.lab import text_encoder

    small = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1
    }  # fmt: skip
    config = transformers.SiglipConfig(
        text_config={**small, "vocab_size": 99, "projection_size": 8},
        vision_config={**small, "image_size": 8, "patch_size": 4},
    )
    transformers.SiglipModel(config).save_pretrained(tmp_path / "siglip")
    text_encoder()[1].save_pretrained(tmp_path / "siglip")
    model, _ = _pair(str(tmp_path / "siglip"), None, "auto")
    assert type(model).__name__ == "SiglipModel"
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="expected a CLIP or SigLIP checkpoint"):
        _pair(str(tmp_path / "bert"), None, "auto")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--dtype", "int3"], "--dtype: expected one of"), (["--device", "moon"], "--device: expect")],
)
def test_where_a_model_cannot_go_is_said(picture, tmp_path, words, said):
    pytest.importorskip("transformers")
    words = [str(picture), "--question", "?", "-o", str(tmp_path / "p.png"), *words]
    assert said in refused("prune", *words)


def test_the_toy_says_what_it_knows(picture, tmp_path):
    pytest.importorskip("transformers")
    words = ["prune", str(picture), "--question", "what?", "-o", str(tmp_path / "p.png")]
    result = run(*words, "--dtype", "bfloat16", "--device", "cpu", "--json")
    assert "knows drawn scenes only" in result.stderr
    assert json.loads(result.stdout)["answers"][1]["tokens"] == 16


def test_corpora_refuse_what_they_cannot_do(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([{"id": "a", "features": [[1.0, 2.0], [2.0, 1.0]]}])
    pq.write_table(table, tmp_path / "in.parquet")
    words = ["corpus", str(tmp_path / "in.parquet"), str(tmp_path / "out")]
    assert "prunes inside a language model" in refused(*words, "--method", "fastv")
    assert "expected nested lists of numbers" in refused(*words, "--features", "id")
    assert run(*words, "--ray", "--workers", "0").exit_code == 2


def test_bench_refuses_what_it_cannot_measure_and_marks_the_frugal(tmp_path):
    pytest.importorskip("transformers")
    assert "cannot be measured" in refused("bench", "--methods", "topk,visionselector")
    from secateur.app.measuring import _named, _spent

    assert not {"visionselector", "evs"} & set(_named(None))
    assert {"downsample", "pool", "random", "uniform"} <= set(_named(None))
    assert _spent({"spent": 12.4, "keep": 64, "frugal": True}) == "12*"
    assert _spent({"spent": 64.0, "keep": 64, "frugal": False}) == "64"
    assert _spent({"spent": 18.0, "keep": 16, "frugal": False, "lavish": True}) == "18*"


def test_a_warning_is_one_line_and_afterwards_as_before(capsys):
    before = warnings.showwarning
    with told():
        warnings.simplefilter("always")
        warnings.warn("tau_max: 0.1 fits", stacklevel=1)
        warnings.simplefilter("error", DeprecationWarning)
        with pytest.raises(DeprecationWarning, match="old"):
            warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == "secateur: tau_max: 0.1 fits\n"
    assert warnings.showwarning is before
