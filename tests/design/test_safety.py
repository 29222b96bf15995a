"""What comes from files is data: nothing here runs it, and a picture has a size it may not pass."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HOME = Path(__file__).parents[2] / "secateur"
RUNS_WHAT_IT_READS = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "dill.load",
    "dill.loads",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "yaml.load",
    "yaml.unsafe_load",
    "eval",
    "exec",
    "os.system",
}


def calls(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == name), None)


def on(given: ast.keyword) -> bool:
    return isinstance(given.value, ast.Constant) and given.value.value is True


def told(path: Path) -> list[str]:
    """What in a file would run what it reads."""
    found = []
    for call in calls(path):
        name = ast.unparse(call.func)
        unsafe = (
            name in RUNS_WHAT_IT_READS
            or (name == "torch.load" and keyword(call, "weights_only") is not True)
            or (name in ("np.load", "numpy.load") and keyword(call, "allow_pickle") is True)
            or any(k.arg in ("trust_remote_code", "shell") and on(k) for k in call.keywords)
        )
        if unsafe:
            found.append(f"{path.name}:{call.lineno} {name}")
    return found


def test_nothing_runs_what_it_reads():
    files = sorted(HOME.rglob("*.py"))
    assert len(files) > 100
    assert [each for path in files for each in told(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(x)",
        "torch.load(path)",
        "np.load(x, allow_pickle=True)",
        "eval(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)",
    ],
)
def test_what_would_is_seen(tmp_path, line):
    path = tmp_path / "file.py"
    path.write_text(line)
    assert len(told(path)) == 1


@pytest.fixture
def bomb(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "large.png"
    image.new("RGB", (40, 40)).save(path)
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 100)
    return path


def test_a_picture_beyond_the_limit_is_one_sentence(bomb):
    pictures = pytest.importorskip("secateur.app.pictures")
    with pytest.raises(ValueError, match=r"large\.png cannot be read as a picture: .*1600 pixels"):
        pictures.opened(bomb)


def test_so_is_one_to_calibrate_on(bomb):
    folder = pytest.importorskip("secateur.calibration.folder")
    with pytest.raises(ValueError, match=r"large\.png cannot be read as a picture: .*1600 pixels"):
        folder.picture_at(bomb)


@pytest.mark.parametrize("value", ["__import__('os')", "!!python/object", "${HOME}", "`id`"])
def test_values_of_settings_are_json_or_words(value):
    command = pytest.importorskip("secateur.app.command")
    with pytest.raises(ValueError, match="aggregate: expected one of") as refused:
        command.method_of("eadp", "8", [f"aggregate={value}"])
    assert repr(value) in str(refused.value)
