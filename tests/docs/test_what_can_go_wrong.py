"""The page says what the library says: each of its sentences is provoked here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import secateur as sc

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "what-can-go-wrong.md"
EYE = np.eye(8)


def tokens(**more):
    return sc.Tokens(**{"features": EYE, "attention": np.ones(8), **more})


def mixed():
    torch = pytest.importorskip("torch")
    sc.TopK(keep=2).select(tokens(attention=torch.ones(8)))


def overflowed():
    torch = pytest.importorskip("torch")
    choosing = pytest.importorskip("secateur.integrations.choosing")
    choosing._refuse_lost([sc.Tokens(features=torch.full((4, 2), torch.inf))])


def layer():
    """Provoked in a model by `tests/integrations/test_lost.py`; here its source has the words."""
    source = Path(sc.__file__).parent / "integrations" / "transformers" / "layers.py"
    said = re.sub(r'"\s+f?"', "", source.read_text(encoding="utf-8"))
    found = re.search(r"what left layer \{after\} of .*overflowed", said)
    raise ValueError(found.group().replace("{after}", "3") if found else "")


def row(features, **more):
    pa = pytest.importorskip("pyarrow")
    corpus = pytest.importorskip("secateur.integrations.corpus")
    table = pa.table({"features": [features], **more})
    raise ValueError(corpus.Pruner(sc.DivPrune(keep=2))(table)["error"][0].as_py())


def calibration():
    Path("usual.json").write_text('{"erank": 2.0, "images": true}', encoding="utf-8")
    sc.Calibration.load("usual.json")


def picture():
    image = pytest.importorskip("PIL.Image")
    pictures = pytest.importorskip("secateur.app.pictures")
    image.new("RGB", (40, 40)).save("large.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "MAX_IMAGE_PIXELS", 100)
        pictures.opened(Path("large.png"))


def set_alpha():
    pytest.importorskip("secateur.app.command").method_of("eadp", "8", ["alpha=x"])


PROVOKED: list[Callable[[], object]] = [
    lambda: sc.TopK(keep=2).select(sc.Tokens(features=EYE)),
    set_alpha,
    lambda: sc.TopK(keep=1.5),
    lambda: tokens(grid=(3, 3)),
    mixed,
    lambda: tokens(attention=np.ma.masked_array(np.ones(8))),
    lambda: sc.DivPrune(keep=2).select(tokens(), backend="torch"),
    lambda: sc.FastV().select(tokens()),
    lambda: sc.AgilePruner(keep=2).select(tokens()),
    lambda: sc.DivPrune(keep=2).select(tokens(features=np.nan * EYE)),
    lambda: sc.maximize(sc.FacilityLocation(np.full((8, 8), 1e308)), 3),
    lambda: sc.ApET(keep=2).select(tokens(features=1e308 * EYE + 1e200)),
    overflowed,
    layer,
    calibration,
    picture,
    lambda: row([[1.0, 2.0], [3.0]]),
    lambda: row(EYE.tolist(), grid=[[4]]),
]


def sentences() -> list[str]:
    blocks = re.findall(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_each_sentence_is_provoked():
    assert len(sentences()) == len(PROVOKED)


@pytest.mark.parametrize("place", range(len(PROVOKED)))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_page_says_what_the_library_says(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence = sentences()[place]
    with pytest.raises((ValueError, OSError)) as told:
        PROVOKED[place]()
    if sentence.endswith("..."):
        assert str(told.value).startswith(sentence[:-3])
    else:
        assert str(told.value) == sentence
