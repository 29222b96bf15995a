"""The page to explore: what it holds, and what a real browser makes of it."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("transformers", reason="answers come from a model of transformers")

import secateur as sc
from secateur import lab
from secateur.app.explore import explored, page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
QUESTION = "what colour is </script> the star?"


@pytest.fixture(scope="module")
def scene():
    return next(lab.scenes(1, lab.HELD_OUT, "colour"))


@pytest.fixture(scope="module")
def html(scene):
    from PIL import Image

    methods = [sc.DivPrune(keep=16), sc.ERASE(keep=16)]
    return explored(Image.fromarray(scene.image), QUESTION, methods)


@pytest.fixture(scope="module")
def data(html):
    (held,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, re.S)
    return json.loads(held)


def test_the_page_holds_what_the_methods_chose(data, scene):
    assert data["question"] == QUESTION
    assert data["grid"] == [12, 12]
    assert data["budgets"] == [4, 8, 12, 16, 24, 36, 48, 72, 96]
    assert data["budgets"][data["start"]] == 16
    assert list(data["methods"]) == ["DivPrune", "ERASE"]
    model, processor = lab.load()
    inputs = processor(images=[scene.image], text=[lab.prompt(QUESTION)], return_tensors="pt")
    features = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output[0]
    for keep, step in zip(data["budgets"], data["methods"]["DivPrune"], strict=True):
        chosen = sc.DivPrune(keep=keep).select(sc.Tokens(features=features.detach()))
        assert step["kept"] == np.sort(chosen.indices).tolist()
        assert step["inside"] is None
    for keep, step in zip(data["budgets"], data["methods"]["ERASE"], strict=True):
        assert step["inside"] in (None, keep)
        assert len(step["scores"]) == 144
        assert {0, 255} <= set(step["scores"])


def test_the_page_needs_nothing_else_and_nothing_closes_its_data(html):
    assert html.count("</script>") == 2
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "@import" not in html
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert "&" in page({"question": "a & b <!-- c"})
    assert "<!-- c" not in page({"question": "a & b <!-- c"})


def rendered(html, tmp_path, doing="", place=""):
    """The document as a browser has it after `doing`, JavaScript that a hand would cause."""
    path = tmp_path / "page.html"
    path.write_text(html.replace("</body>", f"<script>{doing}</script></body>"), "utf-8")
    ran = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         f"file://{path}{place}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    kept = re.findall(r'<rect[^>]*data-index="(\d+)"[^>]*class="token kept"', ran.stdout)
    answer = re.search(r'<dd id="answer"[^>]*>(.*?)</dd>', ran.stdout)[1]
    count = re.search(r'<output id="count">(.*?)</output>', ran.stdout)[1]
    return [int(n) for n in kept], answer, count


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_what_was_kept(html, data, tmp_path):
    kept, answer, count = rendered(html, tmp_path)
    first = data["methods"]["DivPrune"][data["start"]]
    assert kept == first["kept"]
    assert answer == (first["answer"] or "(nothing)")
    assert count == "16 of 144"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_moving_the_slider_and_switching_the_method(html, data, tmp_path):
    doing = """
        const budget = document.getElementById("budget");
        budget.value = 7;
        budget.dispatchEvent(new Event("input"));
        document.querySelector("input[value=ERASE]").click();
    """
    kept, answer, count = rendered(html, tmp_path, doing)
    step = data["methods"]["ERASE"][7]
    assert kept == step["kept"]
    assert answer == (step["answer"] or "(nothing)")
    assert count.startswith(f"{len(kept)} of 144")
    assert len(kept) >= 72


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_place_in_the_page_can_be_linked_to(html, data, tmp_path):
    kept, _, count = rendered(html, tmp_path, place="#method=DivPrune&keep=4")
    assert kept == data["methods"]["DivPrune"][0]["kept"]
    assert count == "4 of 144"
