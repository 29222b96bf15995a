"""The search for ERASE's thresholds and ratios."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc

optuna = pytest.importorskip("optuna")

START = sc.ERASE(thresholds=(3.0, 1.0), ratios=(0.8, 0.5, 0.3), patch=4)


def far(method):
    """Best at ratios 0.65, 0.4, 0.2 and thresholds 4, 2."""
    asked = np.array([*method.ratios, *(np.array(method.thresholds) / 5.5)])
    return -float(np.abs(asked - np.array([0.65, 0.4, 0.2, 4 / 5.5, 2 / 5.5])).sum())


def search(trials, **more):
    return sc.calibrate(far, START, trials=trials, progress=False, **more)


def test_finds_better_than_it_started_with():
    found = search(60)
    assert found.value == far(found.method)
    assert found.value > far(START) + 0.3
    assert found.trials == len(found.study.trials) == 60
    assert (found.method.patch, found.method.keep) == (START.patch, START.keep)


def test_tries_what_it_was_given_first():
    found = search(1)
    np.testing.assert_allclose(found.method.thresholds, START.thresholds)
    np.testing.assert_allclose(found.method.ratios, START.ratios)
    assert found.value == far(START)


def test_proposals_are_methods_within_the_bounds():
    seen = []

    def watch(method):
        seen.append(method)
        return 0.0

    sc.calibrate(watch, START, trials=20, progress=False)
    for method in seen:
        assert list(method.thresholds) == sorted(method.thresholds, reverse=True)
        assert list(method.ratios) == sorted(method.ratios, reverse=True)
        assert 0.0 <= min(method.thresholds)
        assert max(method.thresholds) <= np.log(256)
        assert 0.1 <= min(method.ratios)
        assert max(method.ratios) <= 0.9
    assert len(set(seen)) == 20


def test_the_same_seed_gives_the_same_answer():
    first, again, other = search(25), search(25), search(25, seed=1)
    assert first.method == again.method
    assert first.method != other.method


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_stopped_search_goes_on_where_it_was(tmp_path, kind):
    path = tmp_path / "trials"
    if kind == "sqlite":
        pytest.importorskip("sqlalchemy")
    storage = path if kind == "journal" else f"sqlite:///{path}.db"
    calls = []

    def stops(method):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(method)
        return far(method)

    with pytest.raises(KeyboardInterrupt):
        sc.calibrate(stops, START, trials=12, progress=False, storage=storage)
    resumed = search(12, storage=storage)
    unbroken = search(12)
    assert resumed.trials == 12
    assert resumed.method == unbroken.method
    # Nothing is left to do, nothing is asked.
    again = sc.calibrate(
        lambda method: pytest.fail("asked again"), START, trials=12, progress=False, storage=storage
    )
    assert again.method == unbroken.method


def test_dropping_early_counts_when_images_are_given():
    dice = np.random.default_rng(0)
    noisy = dice.integers(0, 256, size=(8, 8, 3)).astype(np.uint8)
    flat = np.zeros((8, 8, 3), dtype=np.uint8)
    images = [
        sc.Tokens(features=np.ones((4, 2)), pixels=noisy),
        sc.Tokens(features=np.ones((2, 4, 2)), pixels=np.stack([flat, flat])),
    ]
    start = sc.ERASE(keep=0.35, thresholds=(2.0, 1.0), ratios=(0.8, 0.5, 0.3), patch=4)
    found = sc.calibrate(
        lambda method: 0.9, start, images=images, weight=0.75, trials=1, progress=False
    )
    # One image at level 0 keeps 0.8; two flat ones keep 0.3, but the final share is 0.35.
    assert found.value == pytest.approx(0.75 * 0.9 + 0.25 * (1 - (0.8 + 0.35 + 0.35) / 3))
    better = sc.calibrate(lambda method: 0.9, start, images=images, trials=25, progress=False)
    assert better.method.ratios[0] < 0.7


def test_the_bar_shows_where_it_is(capfd):
    sc.calibrate(far, START, trials=3)
    shown = capfd.readouterr().err
    assert "calibrate" in shown
    assert "3/3" in shown
    assert "best=" in shown


def test_optuna_stays_quiet(capfd):
    before = optuna.logging.get_verbosity()
    search(3)
    assert capfd.readouterr().err == ""
    assert optuna.logging.get_verbosity() == before


def test_the_answer_prints_itself():
    found = search(2)
    assert repr(found).startswith(f"CalibrationResult({found.value:.6g} after 2 trials: ERASE(")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trials": 0}, r"^trials: expected a whole number of at least 1"),
        ({"weight": 1.5}, r"^weight: expected a share in \[0, 1\]"),
        ({"images": []}, r"^images: expected at least one, got none"),
        ({"images": [sc.Tokens(features=np.ones((4, 2)))]}, r"^calibrate needs tokens\.pixels"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        sc.calibrate(far, START, **{"trials": 1, "progress": False, **arguments})


def test_an_objective_must_return_numbers():
    with pytest.raises(ValueError, match=r"^objective: expected a finite number, got nan"):
        sc.calibrate(lambda method: float("nan"), START, trials=1, progress=False)


def test_without_optuna_it_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'secateur\[calibrate\]'"):
        search(1)
