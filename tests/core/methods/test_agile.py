"""AgilePruner: the scan with each image's own threshold, adaptive counts."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods import agile


def by_hand(tokens, k, step, tau_max):
    """The definition, one token after the other."""
    x = tokens.features / np.linalg.norm(tokens.features, axis=1, keepdims=True)
    candidates = list(np.argsort(-tokens.attention, kind="stable"))
    kept, removed = [], []
    while candidates and len(kept) < k:
        pick = candidates.pop(0)
        kept.append(pick)
        tau = min(tau_max, step * len(kept))
        removed += [j for j in candidates if 1 - x[j] @ x[pick] < tau]
        candidates = [j for j in candidates if 1 - x[j] @ x[pick] >= tau]
    fill = sorted(removed, key=lambda j: -tokens.attention[j])[: k - len(kept)]
    return kept + fill, len(fill)


@pytest.mark.parametrize("measure", ["erank", "entropy"])
@pytest.mark.parametrize("tau_max", [0.3, 0.9])
@pytest.mark.parametrize("k", [1, 8, 20, 36])
def test_the_definition(image, k, tau_max, measure):
    tokens = image()
    mean = 4.0 if measure == "erank" else 2.0
    method = sc.AgilePruner(keep=k, mean_erank=mean, tau_max=tau_max, step=0.05, measure=measure)
    chosen = method.select(tokens)
    if measure == "erank":
        share = float(sc.effective_rank(tokens.features)) / mean
    else:
        share = float(sc.attention_entropy(tokens.attention)) / mean
    picks, filled = by_hand(tokens, k, 0.05 * share, tau_max)
    assert chosen.indices.tolist() == picks
    assert int(chosen.info["filled"]) == filled
    np.testing.assert_allclose(float(chosen.info["relative_complexity"]), share, rtol=1e-12)


@pytest.mark.parametrize("count", ["fixed", "balanced"])
@pytest.mark.parametrize("measure", ["erank", "entropy"])
def test_every_array_library(image, xp, to_xp, to_numpy, measure, count):
    method = sc.AgilePruner(
        keep=8, mean_erank=3.0, measure=measure, count=count, step=0.05, least=0.1
    )
    chosen = method.select(image(batch=(3,), convert=to_xp))
    expected = method.select(image(batch=(3,)))
    assert to_numpy(chosen.indices).tolist() == expected.indices.tolist()
    assert to_numpy(chosen.info["filled"]).tolist() == expected.info["filled"].tolist()
    shares = to_numpy(chosen.info["relative_complexity"])
    np.testing.assert_allclose(shares, expected.info["relative_complexity"], rtol=1e-9)


def test_the_count_of_the_filled_up_is_told(image):
    tokens = image().with_(features=np.ones((36, 4)))
    chosen = sc.AgilePruner(keep=10, mean_erank=1.0).select(tokens)
    # All alike: the first drives away all others, and attention fills up.
    assert int(chosen.info["filled"]) == 9
    assert chosen.indices.tolist() == np.argsort(-tokens.attention)[:10].tolist()


def test_the_largest_threshold_that_fits(image):
    """Every fill-up is counted by hand, and a little more would fill too much."""
    images = [image(seed=seed) for seed in range(4)]
    method = sc.AgilePruner(keep=20, mean_erank=4.0, tau_max=0.9, step=0.2)
    filled = lambda m: sum(int(each.info["filled"]) for each in m.select(images))  # noqa: E731
    assert filled(method) > 8
    fitting = method.fitting(images)
    assert 0 < fitting.tau_max < 0.9
    assert filled(fitting) <= 8 < filled(replace(fitting, tau_max=fitting.tau_max + 0.0009))
    assert fitting == replace(method, tau_max=fitting.tau_max)
    assert fitting.fitting(images) == fitting
    assert filled(method.fitting(images, share=0.0)) == 0
    assert method.fitting([]) == method
    with pytest.raises(ValueError, match="share: expected a share"):
        method.fitting(images, share=2.0)


def test_much_that_is_filled_up_is_said_once(image, monkeypatch):
    """The threshold that the warning offers does what it says."""
    monkeypatch.setattr(agile, "_looks_left", agile.LOOKS)
    images = [image(seed=seed) for seed in range(4)]
    method = sc.AgilePruner(keep=20, mean_erank=4.0, tau_max=0.9, step=0.2)
    with pytest.warns(UserWarning, match="attention alone filled up") as said:
        chosen = method.select(images)
    assert len(said) == 1
    told = str(said[0].message)
    assert f"{100 * sum(int(each.info['filled']) for each in chosen) / 80:.0f} % of what" in told
    offered = float(re.search(r"tau_max=([\d.]+) is the largest", told).group(1))
    assert offered == pytest.approx(method.fitting(images).tau_max, abs=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.select(images)
        replace(method, tau_max=method.fitting(images).tau_max).select(images)
        replace(method, keep=10, tau_max=0.0).select(images)


def test_what_is_offered_asks_no_running_mean(image, monkeypatch):
    """Who is warned chooses the same afterwards as who is not."""
    monkeypatch.setattr(agile, "_looks_left", agile.LOOKS)
    running = sc.RunningCalibration()
    method = sc.AgilePruner(keep=20, mean_erank=running, tau_max=0.9, step=0.2)
    with pytest.warns(UserWarning, match="attention alone filled up"):
        method.select(image(seed=1))
    assert running.so_far.images == 1


@pytest.mark.parametrize("over", ["frame", "change", "video"])
def test_a_threshold_that_fits_a_video(image, over):
    frames = [image(seed=seed) for seed in range(4)]
    video = sc.Tokens(
        features=np.concatenate([each.features for each in frames]),
        attention=np.concatenate([each.attention for each in frames]),
        frames=4,
    )
    method = sc.AgilePruner(keep=20, mean_erank=4.0, tau_max=0.9, step=0.2, over=over)
    fitting = method.fitting([video])
    kept = fitting.select(video)
    assert np.sum(kept.info["filled"]) <= 0.1 * np.sum(kept.count)
    more = replace(fitting, tau_max=fitting.tau_max + 0.9 / agile.FINENESS).select(video)
    assert np.sum(more.info["filled"]) > 0.1 * np.sum(more.count)


def test_little_that_is_filled_up_is_not_said(image, monkeypatch):
    monkeypatch.setattr(agile, "_looks_left", agile.LOOKS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sc.AgilePruner(keep=8, mean_erank=4.0).select(image())
        assert sc.AgilePruner(mean_erank=4.0).select([]) == []


def test_not_every_call_is_looked_at(image, monkeypatch):
    """On a device a look waits for the scan."""
    monkeypatch.setattr(agile, "_looks_left", agile.LOOKS)
    method = sc.AgilePruner(keep=10, mean_erank=1.0)
    for _ in range(agile.LOOKS):
        method.select(image())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.select(image().with_(features=np.ones((36, 4))))


def test_without_a_threshold_it_is_top_k(image):
    for parameters in ({"tau_max": 0.0}, {"step": 0.0}):
        chosen = sc.AgilePruner(keep=9, mean_erank=1.0, **parameters).select(image())
        assert chosen.indices.tolist() == sc.TopK(keep=9).select(image()).indices.tolist()
        assert int(chosen.info["filled"]) == 0


def test_each_image_of_a_batch_has_its_own_threshold(image, row):
    features = image(batch=(2,)).features.copy()
    features[0, :, 2:] = 0.0
    tokens = image(batch=(2,)).with_(features=features)
    method = sc.AgilePruner(keep=8, mean_erank=4.0, step=0.05)
    together = method.select(tokens)
    shares = together.info["relative_complexity"]
    assert shares[0] < 0.6 < 1.4 < shares[1]
    for one in range(2):
        alone = method.select(row(tokens, one))
        assert together.row(one).indices.tolist() == alone.indices.tolist()


def test_takes_part_in_a_mixture(image):
    agile = sc.AgilePruner(mean_erank=4.0, step=0.05)
    mixed = sc.Mixture(10, agile, sc.DivPrune(), share=0.5).select(image())
    alone = sc.AgilePruner(keep=5, mean_erank=4.0, step=0.05).select(image())
    assert mixed.indices[:5].tolist() == alone.indices.tolist()


class TestCounts:
    """Complex images may keep more."""

    def images(self, image):
        """Effective ranks of about 1, 4 and 8."""
        found = []
        for seed, used in enumerate((1, 4, 8)):
            features = image(seed=seed).features.copy()
            features[:, used:] = 0.0
            found.append(image(seed=seed).with_(features=features))
        return found

    def test_adaptive_follows_the_formula(self, image):
        images = self.images(image)
        method = sc.AgilePruner(keep=10, mean_erank=4.0, count="adaptive", least=0.4)
        chosen = method.select(images)
        shares = [float(sc.effective_rank(each.features)) / 4.0 for each in images]
        expected = [round(10 * min(2.0, max(0.4, share))) for share in shares]
        assert [int(each.count) for each in chosen] == expected
        assert expected[0] == 4
        assert expected[2] > 15
        half = sc.AgilePruner(keep=10, mean_erank=4.0, count="adaptive", slope=0.5).select(images)
        assert [int(each.count) for each in half] == [
            round(10 * (1 + 0.5 * (share - 1))) for share in shares
        ]

    def test_balanced_keeps_the_mean(self, image):
        images = self.images(image)
        method = sc.AgilePruner(keep=10, mean_erank=2.0, count="balanced", least=0.2)
        counts = [int(each.count) for each in method.select(images)]
        assert sum(counts) == 30
        assert counts[0] < counts[1] < counts[2]
        assert min(counts) >= 2
        assert max(counts) <= 20

    def test_balanced_over_a_batch_too(self, image):
        parts = self.images(image)
        batch = image(batch=(3,)).with_(
            features=np.stack([each.features for each in parts]),
            attention=np.stack([each.attention for each in parts]),
        )
        method = sc.AgilePruner(keep=10, mean_erank=2.0, count="balanced", least=0.2)
        together = method.select(batch)
        assert together.count.tolist() == [int(each.count) for each in method.select(parts)]

    def test_never_more_than_there_are(self, image):
        method = sc.AgilePruner(keep=30, mean_erank=1.0, count="adaptive")
        assert int(method.select(image()).count) == 36
        balanced = sc.AgilePruner(keep=30, mean_erank=1.0, count="balanced").select(
            self.images(image)
        )
        assert sum(int(each.count) for each in balanced) == 90


class TestCalibration:
    """The mean over a set of images, small and on disk."""

    def test_means_over_images_and_batches(self, image):
        images = [image(seed=1), image(seed=2), image(batch=(3,), seed=3)]
        calibration = sc.Calibration.of(iter(images))
        eranks = np.concatenate([np.ravel(sc.effective_rank(each.features)) for each in images])
        entropies = np.concatenate(
            [np.ravel(sc.attention_entropy(each.attention)) for each in images]
        )
        assert calibration.images == 5
        np.testing.assert_allclose(calibration.erank, eranks.mean(), rtol=1e-12)
        np.testing.assert_allclose(calibration.entropy, entropies.mean(), rtol=1e-12)
        more = calibration.including(image(seed=4))
        np.testing.assert_allclose(
            6 * more.erank,
            5 * calibration.erank + float(sc.effective_rank(image(seed=4).features)),
        )

    def test_kept_as_json(self, image, tmp_path):
        calibration = sc.Calibration.of([image()])
        calibration.save(tmp_path / "mean.json")
        assert sc.Calibration.load(tmp_path / "mean.json") == calibration
        method = sc.AgilePruner(mean_erank=calibration)
        stored = json.loads(json.dumps(method.to_dict()))
        assert stored["mean_erank"]["images"] == 1
        assert sc.Method.from_dict(stored) == method
        assert eval(repr(method), dict(vars(sc))) == method

    def test_is_the_mean_it_stands_for(self, image):
        calibration = sc.Calibration(erank=4.0, entropy=2.0, images=9)
        for measure, mean in (("erank", 4.0), ("entropy", 2.0)):
            by_object, by_number = (
                sc.AgilePruner(keep=8, mean_erank=given, measure=measure, step=0.05).select(image())
                for given in (calibration, mean)
            )
            assert by_object.indices.tolist() == by_number.indices.tolist()

    def test_attention_is_optional_until_asked_for(self, image):
        calibration = sc.Calibration.of([image().with_(attention=None), image()])
        assert calibration.entropy is None
        with pytest.raises(ValueError, match=r"^entropy: the calibration images came without"):
            sc.AgilePruner(mean_erank=calibration, measure="entropy").select(image())

    def test_running_mean_counts_what_it_sees(self, image):
        running = sc.RunningCalibration()
        method = sc.AgilePruner(keep=8, mean_erank=running, step=0.05)
        first = method.select(image(seed=1))
        assert float(first.info["relative_complexity"]) == 1.0
        second = method.select(image(seed=2))
        expected = sc.Calibration.of([image(seed=1), image(seed=2)])
        assert running.so_far == expected
        share = float(sc.effective_rank(image(seed=2).features)) / expected.erank
        np.testing.assert_allclose(float(second.info["relative_complexity"]), share)
        again = sc.Method.from_dict(json.loads(json.dumps(method.to_dict())))
        assert again == method
        assert again.mean_erank is not running
        assert repr(sc.RunningCalibration()) == "RunningCalibration()"
        assert eval(repr(method), dict(vars(sc))) == method

    def test_nothing_to_calibrate_on(self):
        with pytest.raises(ValueError, match=r"^images: expected at least one"):
            sc.Calibration.of([])

    def test_without_one_it_says_what_to_do(self, image):
        with pytest.raises(ValueError, match=r"^mean_erank: .* pass Calibration\.of\(images\)"):
            sc.AgilePruner().select(image())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mean_erank": 0.0}, r"^mean_erank: expected a mean above 0"),
        ({"mean_erank": float("nan")}, r"^mean_erank: "),
        ({"mean_erank": True}, r"^mean_erank: "),
        ({"tau_max": 2.5}, r"^tau_max: expected a distance in \[0, 2\], got 2\.5"),
        ({"tau_max": float("nan")}, r"^tau_max: "),
        ({"step": -0.1}, r"^step: "),
        ({"measure": "rank"}, r"^measure: expected one of erank, entropy; got 'rank'"),
        ({"count": "free"}, r"^count: expected one of fixed, adaptive, balanced"),
        ({"slope": -1.0}, r"^slope: "),
        ({"least": 1.5}, r"^least: "),
        ({"most": 0.5}, r"^most: expected a multiple of at least 1, got 0\.5"),
    ],
)
def test_parameters_are_checked(parameters, message):
    with pytest.raises(ValueError, match=message):
        sc.AgilePruner(**parameters)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"erank": 0.0}, r"^erank: expected a mean above 0, got 0\.0"),
        ({"erank": 1.0, "entropy": float("inf")}, r"^entropy: "),
        ({"erank": 1.0, "images": 0}, r"^images: expected a count of at least 1"),
    ],
)
def test_calibrations_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        sc.Calibration(**fields)
