"""The bench on clips: cells, budgets, what is compared, the report and the command."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import secateur as sc
from secateur.app.cli import app
from secateur.lab import HELD_OUT, bench_video, clips, findings_video
from secateur.lab.bench import ALL, Cell, Usual
from secateur.lab.bench_video import Eyes, cells, dropping, named, run_cell, said_of, variants
from secateur.lab.watcher import watch_all

USUAL = Usual(8.0, ())


@pytest.fixture(scope="module")
def eyes():
    return Eyes.load()


def cell(right, asked, **more):
    """A cell of clips that answered so many of so many questions on what, and on short events."""
    told = [
        {"right": {"what": r}, "asked": {"what": a}, "brief": [r, a], "lasting": [a, a], **more}
        for r, a in zip(right, asked, strict=True)
    ]
    return {"label": "x", "keep": 4, "scenes": told, "spent": 32.0, "seconds": 1.0}


def test_methods_for_videos_come_first_and_what_has_no_frames_is_refused():
    names = named(None)
    assert names[:6] == ["dycoke", "evs", "fastvid", "flashvid", "holitom", "vidcom2"]
    assert {"random", "uniform", "topk", "divprune"} <= set(names)
    with pytest.raises(ValueError, match="fastv is not measured on clips"):
        named(["topk", "fastv"])


def test_a_budget_is_so_many_tokens_a_frame(eyes):
    drawn = list(clips(1, HELD_OUT))
    for name in ("evs", "uniform"):
        told = run_cell(eyes, cells([name], [4], USUAL)[1], drawn)
        assert told["spent"] == pytest.approx(32, abs=4)
    for one in (
        Cell("x", sc.TopK(keep=4, over="video")),
        Cell("x", sc.TopK(keep=4, over="change")),
    ):
        assert run_cell(eyes, one, drawn)["spent"] == 32


def test_keeping_all_answers_as_all_tokens_do(eyes):
    drawn = list(clips(1, HELD_OUT))
    whole = run_cell(eyes, Cell(ALL), drawn)
    same = run_cell(eyes, Cell("x", sc.EVS(keep=36)), drawn)
    assert [x["right"] for x in same["scenes"]] == [x["right"] for x in whole["scenes"]]
    said = [q.answer == told for _, q, told in watch_all(eyes.model, eyes.reader, drawn)]
    assert sum(said) == sum(sum(x["right"].values()) for x in whole["scenes"])
    assert len(said) == sum(sum(x["asked"].values()) for x in whole["scenes"])


def test_choosing_once_says_what_an_attached_model_says(eyes):
    drawn = list(clips(2, HELD_OUT))
    for method in (sc.FastVID(keep=9), sc.DivPrune(keep=4, over="video")):
        once = [(question.text, said) for _, question, said, _ in said_of(eyes, method, drawn)]
        with sc.attach(eyes.model, method, eyes.reader):
            asked = watch_all(eyes.model, eyes.reader, drawn)
            assert [(question.text, said) for _, question, said in asked] == once


def test_dropping_keeps_the_same_tokens_and_folds_nothing():
    dice = np.random.default_rng(0)
    video = sc.Tokens(
        features=dice.normal(size=(8 * 36, 16)),
        attention=dice.random(8 * 36),
        frames=8,
        grid=(6, 6),
    )
    for name in bench_video.MERGING:
        merging = sc.method(name, keep=4)
        one, other = merging.select(video), dropping(merging).select(video)
        assert one.indices.tolist() == other.indices.tolist()
        assert one.folded is not None
        assert other.folded is other.fold_weights is other.shares is None


def test_variants_say_what_is_left_out():
    made = {one.label: one.method for one in variants([4], USUAL)}
    assert made["topk, by change"] == sc.TopK(keep=4, over="change")
    assert made["divprune, one pool"] == sc.DivPrune(keep=4, over="video")
    even = made["vidcom2, even"]
    dice = np.random.default_rng(0)
    video = sc.Tokens(features=dice.normal(size=(8 * 36, 16)), frames=8, grid=(6, 6))
    kept = even.select(video).indices
    assert np.bincount(kept // 36).tolist() == [4] * 8


def test_claims_are_differences_of_what_was_answered():
    better, worse = cell([2] * 30, [2] * 30), cell([1] * 30, [2] * 30)
    found = {
        (ALL, None): better,
        ("fastvid", 4): better,
        ("fastvid, dropping", 4): worse,
        ("topk", 4): worse,
        ("topk, by change", 4): better,
    }
    told = {(each.claim, each.measured): each for each in findings_video.check(found, [4])}
    assert {(c.split()[0], x.difference, x.verdict) for (c, _), x in told.items()} == {
        ("Merging", 0.5, "for"),
        ("Adaptive", 0.5, "for"),
        ("Short", 0.5, "for"),
    }
    assert len(told) == 4


def test_the_command_writes_a_report(eyes, tmp_path, monkeypatch):
    monkeypatch.setattr(Eyes, "load", classmethod(lambda cls: eyes))
    given = ["bench", str(tmp_path), "--video", "--methods", "evs,random", "--budgets", "9"]
    ran = CliRunner().invoke(app, [*given, "--no-claims", "--scenes", "2", "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert [(row["method"], row["keep"]) for row in told["rows"]] == [
        (ALL, None),
        ("evs", 9),
        ("random", 9),
    ]
    report = tmp_path / "report"
    page = (report / "video.md").read_text("utf-8")
    assert "secateur bench" in page
    assert "--video --methods evs,random --budgets 9 --scenes 2" in page
    assert "72 of 288 tokens, 9 a frame" in page
    assert (report / "video-accuracy.png").stat().st_size > 5000
    again = CliRunner().invoke(app, [*given, "--no-claims", "--scenes", "2"])
    assert again.exit_code == 0
    assert "Right answers on 2 clips" in again.output
