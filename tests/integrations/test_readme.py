"""README's lines for a checkpoint run as they stand, on small models of the families it names."""

import json
import re
from pathlib import Path

import pytest
import transformers
from PIL import Image

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"<!-- not run: needs a checkpoint; [^\n]+ -->\n```python\n(.*?)```", re.DOTALL)


class Whole:
    """What every processor does with a conversation; the one for Qwen here does not."""

    def __init__(self, processor):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.decode = processor.tokenizer.decode
        self.image_processor = processor.image_processor

    def apply_chat_template(self, turns, *, tokenize, return_dict, return_tensors, **options):
        assert (tokenize, return_dict, return_tensors) == (True, True, "pt")
        shown = [part["path"] for part in turns[0]["content"] if part["type"] == "image"]
        text = self.processor.apply_chat_template(turns, **options)
        images = [[Image.open(path).convert("RGB") for path in shown]]
        return transformers.BatchFeature(dict(self.processor(images=images, text=[text])))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_lines_for_a_model_on_a_gpu(cases, family, tmp_path, monkeypatch, capsys):
    case, asked = cases[family](), {}

    def given(kind, what):
        def from_pretrained(name, **options):
            asked[kind] = (name, options)
            return what

        return from_pretrained

    processor = case.processor()
    if not isinstance(processor, transformers.ProcessorMixin):
        processor = Whole(processor)
    for kind, what in (
        ("AutoModelForImageTextToText", case.model()),
        ("AutoProcessor", processor),
    ):
        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", given(kind, what))
    monkeypatch.chdir(tmp_path)
    case.images(1)[0].save("photo.jpg")
    (code,) = BLOCK.findall(README.read_text("utf-8"))
    names = {}
    exec(compile(code, README.name, "exec"), names)
    name, options = asked["AutoModelForImageTextToText"]
    assert options == {"dtype": "auto", "device_map": "auto"}
    assert asked["AutoProcessor"] == (name, {})
    report = names["attachment"].last
    size = sum(part.kept.size for part in report.pictures[0])
    assert sum(part.budget for part in report.pictures[0]) == pytest.approx(size / 4, abs=1)
    assert "Report(kept " in capsys.readouterr().out
    assert names["out"].shape[1] > names["inputs"]["input_ids"].shape[1]


def test_prune_with_a_checkpoint_of_a_folder(cases, tmp_path):
    """From the command line to a sheet and a page, on a model that is not the lab's."""
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from secateur.app.cli import app

    case = cases["llava"]()
    case.model().save_pretrained(tmp_path / "model")
    case.processor().save_pretrained(tmp_path / "model")
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "photo.png")
    words = ["prune", str(tmp_path / "photo.png"), "--question", "how many red dog ?"]
    words += ["--model", str(tmp_path / "model"), "--method", "eadp", "--keep", "6", "--json"]
    words += ["--device", "cpu", "--set", "beta=2.5", "-o", str(tmp_path / "kept.png")]
    result = CliRunner().invoke(app, [*words, "--html", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["answers"]
    assert [answer["tokens"] for answer in told] == [None, 6]
    assert "knows drawn scenes only" not in result.stderr
    page = (tmp_path / "page.html").read_text("utf-8")
    held = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.S)[1])
    assert held["grid"] == [4, 4]
    assert list(held["methods"]) == ["EADP"]
    with Image.open(tmp_path / "kept.png") as sheet:
        assert sheet.getpixel((30, 80)) == (0, 128, 128), "the picture, below the question"
