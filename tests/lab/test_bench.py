"""The bench: cells, counts for CHAIR, intervals, claims, the report and the command."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import secateur as sc
from secateur.app.cli import app
from secateur.lab import HELD_OUT, bench, claims, findings, scenes

USUAL = bench.Usual(15.0, (1.3, 0.4, 0.0))


@pytest.fixture(scope="module")
def lab():
    return bench.Lab.load()


@pytest.fixture(scope="module")
def planned():
    return bench.cells(["topk", "divprune"], [16], USUAL)


@pytest.fixture(scope="module")
def folder(lab, planned, tmp_path_factory):
    """A run of four scenes."""
    where = tmp_path_factory.mktemp("bench")
    bench.run(where, planned, 4, lab=lab)
    return where


def cell(right, asked, **more):
    """A cell of scenes that answered so many of so many questions on colours."""
    told = [
        {"right": {"colour": r}, "asked": {"colour": a}, "complexity": "sparse", **more}
        for r, a in zip(right, asked, strict=True)
    ]
    return {"label": "x", "keep": 16, "scenes": told}


def test_smaller_pictures_spend_what_their_tokens_are(lab):
    drawn = list(scenes(2, HELD_OUT))
    whole = bench.run_cell(lab, bench.Cell(bench.ALL), drawn)
    same = bench.run_cell(lab, bench.Cell("downsample", sc.method("downsample", keep=144)), drawn)
    small = bench.run_cell(lab, bench.Cell("downsample", sc.method("downsample", keep=40)), drawn)
    assert [each["right"] for each in same["scenes"]] == [each["right"] for each in whole["scenes"]]
    assert (same["spent"], small["spent"]) == (144.0, 36.0)
    assert small["megaflops"] < 0.5 * whole["megaflops"]
    row = findings.rows({(bench.ALL, None): whole, ("x", 40): small})[1]
    assert (row["frugal"], row["lavish"]) == (True, False)


def test_chair_counts_objects_named_invented_and_found():
    scene = next(scenes(1, HELD_OUT, complexity="medium"))
    phrases = [thing.phrase for thing in scene.objects]
    absent = next(
        f"{colour} star"
        for colour in ("red", "blue", "green", "pink", "cyan")
        if f"{colour} star" not in phrases
    )
    assert bench.chair(scene.caption, scene) == {
        "named": len(phrases),
        "invented": 0,
        "found": len(set(phrases)),
        "there": len(set(phrases)),
    }
    told = f"{phrases[0]} top left, {absent} top right."
    assert bench.chair(told, scene) == {
        "named": 2,
        "invented": 1,
        "found": 1,
        "there": len(set(phrases)),
    }


def test_intervals_hold_the_value_and_shrink_with_more_scenes():
    dice = np.random.default_rng(0)
    widths = []
    for size in (25, 400):
        hits = (dice.random(size) < 0.7).astype(float)
        value, low, high = claims.interval(lambda w, h=hits: w @ h / w.sum(axis=1), len(hits))
        assert value == pytest.approx(hits.mean())
        assert low < value < high
        # Of a mean the interval is known: 1.96 standard errors to each side.
        error = hits.std() / np.sqrt(size)
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_a_claim_stands_falls_or_is_undecided():
    better, worse = cell([2] * 30, [2] * 30), cell([1] * 30, [2] * 30)
    cells = {("a", 16): better, ("b", 16): worse}
    stands = claims.better("", cells, "a", "b", 16)
    assert (stands.difference, stands.verdict) == (0.5, "for")
    assert claims.better("", cells, "b", "a", 16).verdict == "against"
    assert claims.better("", cells, "a", "a", 16).verdict == "undecided"
    assert claims.better("", cells, "a", "b", 16, "sparse").difference == 0.5


def test_relative_to_all_tokens():
    share, low, high = findings.relative(cell([1] * 20, [2] * 20), cell([2] * 20, [2] * 20))
    assert (share, low, high) == (0.5, 0.5, 0.5)


def test_a_run_goes_on_where_it_was(folder, planned, lab):
    before = {path.name: path.read_bytes() for path in (folder / "cells").iterdir()}
    assert set(before) == {"all-tokens.json", "topk-16.json", "divprune-16.json"}
    (folder / "cells" / "topk-16.json").unlink()
    done = []
    bench.run(folder, planned, 4, lab=lab, done=lambda one: done.append(one.label))
    assert done == ["topk"]
    was = json.loads(before["topk-16.json"])
    again = json.loads((folder / "cells" / "topk-16.json").read_text())
    assert again["scenes"] == was["scenes"]
    assert again["megaflops"] == was["megaflops"]
    with pytest.raises(ValueError, match="other scenes"):
        bench.run(folder, planned, 5, lab=lab)


def test_what_is_kept_is_measured(folder, planned):
    everything, top, spread = bench.results(folder, planned)
    assert everything["prompt"] is None
    assert top["prompt"] == spread["prompt"] == 16 + 1 + 4
    assert spread["megaflops"] < everything["megaflops"]
    for scene in (*top["scenes"], *spread["scenes"]):
        assert scene["tokens"] == 16
        assert 1 <= scene["erank_kept"] <= min(16, 1.5 * scene["erank"])
        assert 0 <= scene["stable"] <= 1
    kept = [np.mean([s["erank_kept"] for s in one["scenes"]]) for one in (top, spread)]
    assert kept[0] < kept[1]


def test_the_share_of_picks_that_rounding_leaves():
    dice = torch.Generator().manual_seed(0)
    features = torch.randn(64, 32, generator=dice)
    # Attention whose order rounding to bfloat16 loses.
    attention = 1 + torch.arange(64) * 1e-4
    seen = bench.Seen()
    seen.spy(sc.TopK(keep=16)).select(sc.Tokens(features=features, attention=attention))
    (image,) = seen.images
    rounded = attention.to(torch.bfloat16).float()
    order = torch.sort(rounded, descending=True, stable=True).indices[:16]
    expected = np.mean([48 <= int(i) for i in order])
    assert image["stable"] == expected < 1


def test_low_entropies_point_at_what_is_asked(lab):
    finding = claims.pointing(lab, list(scenes(4, HELD_OUT)), USUAL)
    assert -1 <= finding.low <= finding.difference <= finding.high <= 1


def test_variants_leave_one_thing_out():
    cells = {one.label: one.method for one in claims.variants([16], USUAL)}
    dice = np.random.default_rng(0)
    features, text = dice.normal(size=(36, 8)), dice.normal(size=(5, 8))
    tokens = sc.Tokens(features=features, text=text, text_global=text.mean(0), grid=(6, 6))
    relevance = cells["EADP, most relevant only"].relevance(tokens)
    chosen = cells["EADP, most relevant only"].select(tokens).indices
    assert set(chosen) == set(np.argsort(-relevance)[:16])
    even = sc.maximize(sc.FacilityLocation.from_features(features), 16).indices
    assert cells["EADP, coverage only"].select(tokens).indices.tolist() == even.tolist()
    assert cells["Mixture, inverse"].slope == -0.5
    assert cells["Mixture, fixed"].slope == 0.0
    assert set(cells["ERASE, inside only"].ratios) == {1.0}
    assert cells["SparseVLM, from layer 1"].cuts(6, 144)[0].after == 1


def test_the_command_writes_a_report(folder, lab, monkeypatch):
    monkeypatch.setattr(bench.Lab, "load", classmethod(lambda cls: lab))
    given = ["bench", str(folder), "--methods", "topk,divprune", "--budgets", "16"]
    ran = CliRunner().invoke(app, [*given, "--scenes", "4", "--json"])
    assert ran.exit_code == 0, ran.output
    rows = {row["method"]: row for row in json.loads(ran.stdout)["rows"]}
    assert rows["all tokens"]["relative"] == 1.0
    page = (folder / "report" / "bench.md").read_text()
    assert f"`secateur bench {folder} --methods topk,divprune --budgets 16 --scenes 4`" in page
    assert (folder / "report" / "bench-accuracy.png").stat().st_size > 5000
    lines = (folder / "report" / "bench.csv").read_text().splitlines()
    assert len(lines) == 1 + len(rows)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--methods", "nope"], "no nope; there are agilepruner"),
        (["--budgets", "many"], "--budgets: expected counts"),
        (["--budgets", "200"], "has 144 tokens"),
    ],
)
def test_refusals_are_one_line(given, words, lab, monkeypatch, tmp_path):
    monkeypatch.setattr(bench.Lab, "load", classmethod(lambda cls: lab))
    ran = CliRunner().invoke(app, ["bench", str(tmp_path), *given])
    assert ran.exit_code == 2
    assert words in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_calibrate_measures_a_folder(tmp_path):
    from PIL import Image

    for scene in scenes(4, 5):
        Image.fromarray(scene.image).save(tmp_path / f"{scene.index}.png")
    file = tmp_path / "calibration.json"
    ran = CliRunner().invoke(app, ["calibrate", str(tmp_path), "-o", str(file), "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    found = sc.Calibration.load(file)
    assert found.images == 4
    assert told["calibration"]["erank"] == found.erank > 5
    assert sorted(told["thresholds"], reverse=True) == told["thresholds"]
    assert sc.Method.from_dict(told["erase"]).thresholds == tuple(told["thresholds"])
    few = tmp_path / "few"
    few.mkdir()
    ran = CliRunner().invoke(app, ["calibrate", str(few)])
    assert ran.exit_code == 2
    assert "at least four images" in ran.stderr


def test_methods_are_fitted_to_the_lab_and_what_is_given_stays():
    assert bench.fitted(sc.EADP(), USUAL).sign == 1
    assert bench.fitted(sc.AgilePruner(), USUAL) == sc.AgilePruner(mean_erank=15.0)
    given = sc.AgilePruner(mean_erank=3.0)
    assert bench.fitted(given, USUAL) == given
    erase = bench.fitted(sc.ERASE(keep=9), USUAL)
    assert (erase.patch, erase.thresholds, erase.shallow) == (8, USUAL.thresholds, 3)
    own = bench.fitted(sc.ERASE(thresholds=(2.0, 1.0, 0.5)), USUAL)
    assert (own.patch, own.thresholds, own.shallow) == (8, (2.0, 1.0, 0.5), 1)
    sparse = bench.fitted(sc.SparseVLM(keep=9), USUAL)
    assert [cut.after for cut in sparse.cuts(bench.DEEP, 144)] == [3, 4, 5]
    assert bench.fitted(sc.SparseVLM(after=(4, 9, 20)), USUAL).after == (4, 9, 20)
    assert bench.fitted(sc.TopK(), USUAL) == sc.TopK()


def test_what_is_usual_is_measured(lab):
    found = bench.usual(lab, 8)
    assert 5 < found.erank < 40
    assert list(found.thresholds) == sorted(found.thresholds, reverse=True)
    assert found.thresholds[0] > found.thresholds[2] >= 0
