"""The page to explore: what it holds, and what a real browser makes of it."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("transformers", reason="answers come from a model of transformers")

from PIL import Image

import secateur as sc
from secateur import lab
from secateur.app.explore import explored, page
from secateur.core.methods.video import VideoMethod

VIDEOS = {name for name, kind in sc.methods().items() if issubclass(kind, VideoMethod)}
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
    methods = [sc.DivPrune(keep=16), sc.ERASE(keep=16)]
    return explored(Image.fromarray(scene.image), QUESTION, methods)


@pytest.fixture(scope="module")
def data(html):
    (held,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, re.S)
    return json.loads(held)


def left(step):
    """The tokens that survived every stage."""
    return [n for n, count in enumerate(step["survived"]) if count == len(step["stages"])]


def test_the_page_holds_what_the_methods_chose(data, scene):
    assert data["question"] == QUESTION
    assert data["grid"] == [12, 12]
    assert data["grids"] == 1
    assert data["budgets"] == [4, 8, 12, 16, 24, 36, 48, 72, 96]
    assert data["budgets"][data["start"]] == 16
    assert list(data["methods"]) == ["DivPrune", "ERASE"]
    model, processor = lab.load()
    inputs = processor(images=[scene.image], text=[lab.prompt(QUESTION)], return_tensors="pt")
    features = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output[0]
    for keep, step in zip(data["budgets"], data["methods"]["DivPrune"], strict=True):
        chosen = sc.DivPrune(keep=keep).select(sc.Tokens(features=features.detach()))
        assert left(step) == np.sort(chosen.indices).tolist()
        assert step["stages"] == [[0, keep]]


def test_every_budget_of_a_method_in_two_stages_shows_other_tokens(data):
    shown = set()
    for keep, step in zip(data["budgets"], data["methods"]["ERASE"], strict=True):
        (before, first), (after, last) = step["stages"]
        assert before == 0 < after
        assert keep == last == len(left(step)) <= first == sum(n > 0 for n in step["survived"])
        shown.add(tuple(left(step)))
        assert len(step["scores"]) == 144
        assert {0, 255} <= set(step["scores"])
    assert len(shown) == len(data["budgets"])


def test_the_page_needs_nothing_else_and_nothing_closes_its_data(html):
    assert html.count("</script>") == 2
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "@import" not in html
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert "&" in page({"question": "a & b <!-- c"})
    assert "<!-- c" not in page({"question": "a & b <!-- c"})


def browsed(html, tmp_path, place=""):
    """The document as a browser has it."""
    path = tmp_path / "page.html"
    path.write_text(html, "utf-8")
    ran = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,900",
         "--virtual-time-budget=3000", "--dump-dom", f"file://{path}{place}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return ran.stdout


def rendered(html, tmp_path, doing="", place=""):
    """What it shows after `doing`, JavaScript that a hand would cause: both sides, and the budget.

    A side is the tokens shown as kept, the answer, and what is said of its stages.
    """
    shown = browsed(html.replace("</body>", f"<script>{doing}</script></body>"), tmp_path, place)
    sides = []
    for side in ("left", "right"):
        figure = re.search(rf'<figure id="{side}">(.*?)</figure>', shown, re.S)[1]
        kept = re.findall(r'<rect[^>]*data-index="(\d+)"[^>]*class="token kept"', figure)
        says = re.search(r'<p class="says [^>]*>(.*?)</p>', figure)[1]
        told = re.search(r'<p class="told">(.*?)</p>', figure)[1]
        sides.append(([int(n) for n in kept], says, told))
    count = re.search(r'<output id="count">(.*?)</output>', shown)[1]
    return *sides, count


def keys(*names):
    """What pressing keys one after the other does."""
    pressed = (
        "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true}));"
    )
    return "".join(pressed % name for name in names)


browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def expected(step):
    return left(step), step["answer"] or "(nothing)"


@browser
def test_a_browser_shows_two_methods_side_by_side(html, data, tmp_path):
    one, two, count = rendered(html, tmp_path)
    start = data["start"]
    assert one == (*expected(data["methods"]["DivPrune"][start]), "16 of 144 tokens")
    assert two[:2] == expected(data["methods"]["ERASE"][start])
    assert re.fullmatch(r"\d+ of 144 before the language model, then 16 after layer \d+", two[2])
    assert count == "16 of 144"


@browser
def test_moving_the_slider_and_switching_the_method(html, data, tmp_path):
    doing = """
        const budget = document.getElementById("budget");
        budget.value = 7;
        budget.dispatchEvent(new Event("input"));
        const method = document.querySelector("#left select");
        method.value = "ERASE";
        method.dispatchEvent(new Event("change"));
    """
    one, two, count = rendered(html, tmp_path, doing)
    assert one[:2] == two[:2] == expected(data["methods"]["ERASE"][7])
    assert len(one[0]) == 72
    assert count == "72 of 144"


@browser
def test_a_place_in_the_page_can_be_linked_to(html, data, tmp_path):
    place = "#method=ERASE&beside=DivPrune&keep=4"
    one, two, count = rendered(html, tmp_path, place=place)
    assert one[:2] == expected(data["methods"]["ERASE"][0])
    assert two[:2] == expected(data["methods"]["DivPrune"][0])
    assert count == "4 of 144"


@browser
def test_keys_do_what_hands_do(html, data, tmp_path):
    pressed = keys("ArrowRight", "ArrowRight", "ArrowLeft", "x", "n", "v")
    one, two, count = rendered(html, tmp_path, pressed)
    step = data["start"] + 1
    assert count == f"{data['budgets'][step]} of 144"
    assert one[:2] == two[:2] == expected(data["methods"]["ERASE"][step])
    shown = browsed(html.replace("</body>", f"<script>{pressed}</script></body>"), tmp_path)
    fills = re.findall(r'<rect[^>]*style="[^"]*fill: (rgb\([^)]*\))', shown)
    assert len(fills) == 144, "the scores of one side, as colours"
    assert len(set(fills)) > 20


@browser
@pytest.mark.parametrize("shown", ["html", "film"])
def test_a_narrow_screen_needs_no_scrolling_aside(shown, tmp_path, request):
    within = request.getfixturevalue(shown).replace(
        "</body>",
        "<script>parent.postMessage([innerWidth, document.documentElement.scrollWidth,"
        "document.getElementById('right').offsetTop > document.getElementById('left').offsetTop],"
        "'*')</script></body>",
    )
    (tmp_path / "within.html").write_text(within, "utf-8")
    around = (
        "<p id=told></p>"
        "<iframe src=within.html style='width:390px;height:3000px;border:0'></iframe><script>"
        "onmessage = (event) => { document.getElementById('told').textContent = event.data; }"
        "</script>"
    )
    assert '<p id="told">390,390,true</p>' in browsed(around, tmp_path)


@pytest.fixture(scope="module")
def film(data):
    """A page of three frames, of which FastV and DivPrune keep unlike shares."""

    def step(*counts, stages):
        survived = [n for kept in counts for n in [len(stages)] * kept + [0] * (144 - kept)]
        return {"survived": survived, "scores": None, "answer": "it rolls", "stages": stages}

    (image,) = data["images"]
    methods = {
        "DivPrune": [step(4, 4, 4, stages=[[0, 12]]), step(9, 9, 9, stages=[[0, 27]])],
        "FastV": [step(1, 9, 2, stages=[[0, 432], [2, 12]]), step(0, 7, 20, stages=[[2, 27]])],
    }
    return page({**data, "images": [image] * 3, "budgets": [4, 9], "start": 0, "methods": methods})


@browser
def test_a_video_shows_its_frames_and_what_is_kept_of_each(film, tmp_path):
    doing = """
        const budget = document.getElementById("budget");
        budget.value = 1;
        budget.dispatchEvent(new Event("input"));
    """
    for more, counts in (("", [[4, 4, 4], [1, 9, 2]]), (doing, [[9, 9, 9], [0, 7, 20]])):
        one, two, _ = rendered(film, tmp_path, more)
        for (kept, says, _), expected in zip((one, two), counts, strict=True):
            assert np.bincount(np.array(kept) // 144, minlength=3).tolist() == expected
            assert says == "it rolls"
        shown = browsed(film.replace("</body>", f"<script>{more}</script></body>"), tmp_path)
        bars = [int(n) for n in re.findall(r'<rect[^>]*data-kept="(\d+)"', shown)]
        assert bars == [*counts[0], *counts[1]]
        assert shown.count("<image ") == 2 * 3
        assert "of each frame, on average" in shown
        assert 'id="part">' in shown


# Without those that no page can show: some need what the lab's model has not.
SHOWN = sorted(set(sc.methods()) - {"downsample", "idpruner", "visionselector", *VIDEOS})
SAID = {"sparsevlm": {"count": "limit"}}
"""By default the rank of its ratings decides, which here is below every budget."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_the_slider_changes_what_every_method_keeps(name, scene, monkeypatch):
    from secateur.app import explore

    monkeypatch.setattr(explore, "SHARES", (1 / 6, 1 / 2))
    method = sc.method(name, keep=24, **SAID.get(name, {}))
    html = explored(Image.fromarray(scene.image), "is there a star?", [method])
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', html, re.S)[1])
    assert (data["budgets"], data["start"]) == ([24, 72], 0)
    few, many = (
        sum(step["survived"]) / len(step["stages"]) for step in next(iter(data["methods"].values()))
    )
    assert few < many, "tokens left, on average over the stages"
