"""Videos from a folder of frames to a sheet and a page, on a small model that reads them."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("typer")

import torch
import transformers
from PIL import Image
from typer.testing import CliRunner

import secateur as sc
from secateur.app import ask as asking
from secateur.app.cli import app
from secateur.app.explore import explored
from secateur.app.pictures import watched

QUESTION = "what is this ?"


class Reads:
    """A processor that takes frames; Qwen's own does so where torchvision is installed."""

    def __init__(self, processor):
        self.processor = processor
        self.apply_chat_template = processor.apply_chat_template
        self.batch_decode = processor.tokenizer.batch_decode
        self.asked = []

    def __call__(self, *, videos, text, return_tensors, do_sample_frames, video_metadata):
        assert (return_tensors, do_sample_frames) == ("pt", False)
        self.asked += video_metadata
        (frames,) = videos
        # Two frames are read as one, the last again where they are odd.
        pairs = -(-len(frames) // 2)
        made = self.processor.image_processor
        images = [made(images=[frames[2 * n]], return_tensors="pt") for n in range(pairs)]
        grid = images[0]["image_grid_thw"].clone()
        grid[:, 0] = pairs
        pixels = torch.cat([each["pixel_values"] for each in images])
        held = {"pixel_values_videos": pixels, "video_grid_thw": grid}
        return transformers.BatchFeature(dict(self.processor(text=text, videos=held)))


@pytest.fixture
def network(cases):
    case = cases["qwen2_5_vl"]()
    model = case.model()
    model.generation_config.eos_token_id = list(range(128))  # an answer of one token will do
    return model, Reads(case.processor()), None


@pytest.fixture
def folder(tmp_path):
    held = tmp_path / "frames"
    held.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        noise = rng.integers(0, 255, (32, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(held / f"{number:02}.png")
    return held


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_page_shows_every_frame_that_the_model_reads(network, folder):
    frames = watched(folder)
    methods = [sc.DivPrune(keep=3), sc.FastV(keep=3), sc.VidCom2(keep=3)]
    html = explored(frames, QUESTION, methods, network=network, own=False, fps=2.0)
    assert network[1].asked[0] == {
        "fps": 2.0, "total_num_frames": 5, "frames_indices": [0, 1, 2, 3, 4]
    }  # fmt: skip
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', html, re.S)[1])
    assert (data["grid"], data["grids"], len(data["images"])) == ([4, 3], 1, 3)
    assert data["budgets"][data["start"]] == 3
    for keep, step in zip(data["budgets"], data["methods"]["DivPrune"], strict=True):
        shares = np.reshape(step["survived"], (3, 12)).sum(axis=1)
        assert shares.tolist() == [keep] * 3
        assert step["stages"] == [[0, 3 * keep]]
    for keep, step in zip(data["budgets"], data["methods"]["FastV"], strict=True):
        assert step["stages"] == [[0, 36], [2, 3 * keep]]
        assert np.count_nonzero(np.equal(step["survived"], 2)) == 3 * keep
        assert len(step["scores"] or [0] * 36) == 36
    assert len(data["methods"]["VidCom2"][0]["scores"]) == 36


def test_the_command_takes_a_folder_of_frames(network, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "loaded", lambda *given, **more: network)
    monkeypatch.setattr(asking, "readable", lambda *given, **more: None)
    words = ["prune", folder, "--question", QUESTION, "--model", "a folder", "--fps", "0.5"]
    words += ["--compare", "divprune,fastv", "--keep", "0.25", "-o", tmp_path / "sheet.png"]
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["answers"]
    assert [row["tokens"] for row in rows] == [None, 9, 9]
    assert network[1].asked[0]["fps"] == 0.5
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 2 * 192, "a strip for each method"


def test_what_reads_no_videos_is_refused_before_it_is_loaded(cases, folder, tmp_path, monkeypatch):
    def never(*given, **more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(asking, "loaded", never)
    words = ["prune", folder, "--question", QUESTION, "-o", tmp_path / "sheet.png"]
    assert "the lab's small model reads no videos" in run(*words).stderr
    cases["llava"]().model().config.save_pretrained(tmp_path / "llava")
    said = run(*words, "--model", tmp_path / "llava").stderr
    assert "LlavaForConditionalGeneration reads no videos" in said
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    picture = ["prune", folder / "00.png", *words[2:]]
    said = run(*picture, "--model", tmp_path / "bert").stderr
    assert "bert is no model that answers about pictures" in said
    transformers.Blip2Config().save_pretrained(tmp_path / "blip")
    said = run(*picture, "--model", tmp_path / "blip").stderr
    assert "Blip2ForConditionalGeneration is not among those of 'secateur models'" in said
    assert "--fps: expected a rate above 0" in run(*words, "--fps", "0").stderr


def test_what_is_no_video_is_said(tmp_path):
    words = ["--question", QUESTION, "-o", tmp_path / "sheet.png"]
    assert "give a folder of its frames" in run("prune", tmp_path / "clip.mp4", *words).stderr
    (tmp_path / "empty").mkdir()
    said = run("prune", tmp_path / "empty", *words).stderr
    assert "expected the frames of a video, got 0 pictures" in said
    for number, size in enumerate([(8, 8), (9, 8)]):
        Image.new("RGB", size).save(tmp_path / "empty" / f"{number}.png")
    said = run("prune", tmp_path / "empty", *words).stderr
    assert "expected frames of one size, got (8, 8) and (9, 8)" in said


def test_an_animated_picture_is_a_video(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    shown = watched(tmp_path / "moves.gif")
    assert [frame.getpixel((0, 0)) for frame in shown] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    frames[0].save(tmp_path / "still.gif")
    assert watched(tmp_path / "still.gif").size == (8, 6)
