"""README's lines for a checkpoint run as they stand, on small models of the families it names."""

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
